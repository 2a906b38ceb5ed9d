"""The file of one instance in a published batch, and what every reader of such files needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from millstream.errors import SinkError
from schemas.batch import Batch

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InstanceFile:
    """A published file, of one instance."""

    path: Path
    batch: Batch
    instance: str
    rows: int
    row_groups: int

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The row groups, one chunk per column; text as dictionaries. Raises SinkError for a damaged file."""
        with naming(self.path), pq.ParquetFile(self.path, read_dictionary=["type", "encoding"]) as file:
            for number in range(self.row_groups):
                yield file.read_row_group(number, columns=list(columns)).combine_chunks()


def sums_by(numbers: npt.NDArray[Any], sizes: Ints, count: int) -> Ints:
    """Sum of the sizes of each number; exact, since a row group's sum fits a float's 53 bits by far."""
    return np.bincount(numbers, weights=sizes, minlength=count).astype(np.int64)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What fails in here is a SinkError that names the file or directory."""
    try:
        yield
    except (pa.ArrowException, OSError) as e:
        raise SinkError(f"{path} cannot be read: {' '.join(str(e).split())[:300]}") from e
