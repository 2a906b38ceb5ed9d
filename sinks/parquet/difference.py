"""What happened to the keys between two published batches.

Both are read once and spilled to files by a hash of the key, so that all rows of one key are in one file; each file is
then grouped by itself. Memory is that of the largest one, not of the batch (docs/report.md has figures); the disk space
is about 40 bytes and the key for each row of both, before compression, in the directory for temporary files (TMPDIR).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from millstream.errors import SinkError
from schemas.batch import Batch
from schemas.prefixes import PrefixRanges, in_order
from schemas.records import TYPES
from schemas.slots import crc16
from schemas.survey import (
    CHANGED_KEYS,
    CHANGES,
    SHOWN_KEY_BYTES,
    Changed,
    ChangedKey,
    ChangedPrefix,
    Difference,
    Progress,
    expiring_until,
    millis,
)
from sinks.parquet.instances import InstanceFile, Ints, sums_by

SPILL_ROWS = 250_000
"""Rows of both batches in one spilled file, about."""
_MAX_FILES = 256
"""Open at the same time; larger batches get larger files."""

_KINDS = sorted(TYPES)
_SPILLED = pa.schema(
    [
        pa.field("db", pa.int64()),
        pa.field("key", pa.binary()),
        *(pa.field(f"{name}_{side}", kind) for side in ("old", "new")
          for name, kind in (("size", pa.int64()), ("type", pa.int8()), ("instance", pa.int32()),
                             ("expiry", pa.int64()))),
    ]
)  # fmt: skip
_SUMMED = [("size_old", "sum"), ("size_new", "sum")]
_LEAST = [(f"{name}_{side}", "min") for side in ("old", "new") for name in ("type", "instance", "expiry")]
_READ = ("db", "key", "type", "rdb_size", "expire_at")

_Side = tuple[Batch, Sequence[InstanceFile]]


def difference(older: _Side, newer: _Side, prefixes: Sequence[bytes], progress: Progress) -> Difference:
    """The difference, with totals for the given prefixes (in order). Raises SinkError, OSError."""
    totals = _Totals(older[0], newer[0], sorted({f.instance for _, files in (older, newer) for f in files}), prefixes)
    with _spilling(), tempfile.TemporaryDirectory(prefix="millstream-report-") as directory:
        paths = _spill(Path(directory), (older[1], newer[1]), totals.instances, progress)
        for number, path in enumerate(paths):
            with pa.OSFile(str(path)) as file:
                rows = ipc.open_stream(file).read_all()
            totals.add(rows.group_by(["db", "key"]).aggregate([*_SUMMED, *_LEAST]).combine_chunks())
            path.unlink()
            del rows
            pa.default_memory_pool().release_unused()  # or the pool keeps what was freed
            progress("comparing", 0.5 + 0.5 * (number + 1) / len(paths))
    return totals.difference()


def _spill(
    directory: Path, sides: Sequence[Sequence[InstanceFile]], instances: Sequence[str], progress: Progress
) -> list[Path]:
    rows = sum(f.rows for files in sides for f in files)
    count = max(1, min(_MAX_FILES, -(-rows // SPILL_ROWS)))
    paths = [directory / f"{i}.arrow" for i in range(count)]
    done = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                ipc.new_stream(
                    stack.enter_context(pa.OSFile(str(path), "wb")),
                    _SPILLED,
                    options=ipc.IpcWriteOptions(compression="lz4"),
                )
            )
            for path in paths
        ]
        for side, files in zip(("old", "new"), sides, strict=True):
            for file in files:
                for table in file.tables(_READ):
                    for number, part in _parts(_columns(table, side, instances.index(file.instance)), count):
                        writers[number].write_batch(part)
                    done += table.num_rows
                    progress("comparing", 0.5 * done / max(1, rows))
    return paths


@contextmanager
def _spilling() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        where = tempfile.gettempdir()
        raise SinkError(
            f"{where}: no room to compare two batches there ({e}). Let TMPDIR name another directory"
        ) from e


def _columns(table: pa.Table, side: str, instance: int) -> pa.RecordBatch:
    """The rows of one side; the columns of the other side are null."""
    count = table.num_rows
    given = {
        "db": table["db"],
        "key": table["key"],
        f"size_{side}": table["rdb_size"],
        f"type_{side}": pc.index_in(table["type"].cast(pa.utf8()), pa.array(_KINDS)).cast(pa.int8()),
        f"instance_{side}": pa.repeat(pa.scalar(instance, pa.int32()), count),
        f"expiry_{side}": table["expire_at"].cast(pa.int64()),
    }
    arrays = [given[f.name] if f.name in given else pa.nulls(count, f.type) for f in _SPILLED]
    flat = [a.combine_chunks() if isinstance(a, pa.ChunkedArray) else a for a in arrays]
    return pa.RecordBatch.from_arrays(flat, schema=_SPILLED)


def _parts(rows: pa.RecordBatch, count: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    if count == 1 or not rows.num_rows:
        yield 0, rows
        return
    number = crc16(rows["key"]) % count
    order = np.argsort(number, kind="stable")
    bounds = np.searchsorted(number[order], np.arange(count + 1))
    rows = rows.take(pa.array(order))
    for i in range(count):
        if bounds[i] < bounds[i + 1]:
            yield i, rows.slice(bounds[i], bounds[i + 1] - bounds[i])


class _Totals:
    def __init__(self, older: Batch, newer: Batch, instances: list[str], prefixes: Sequence[bytes]) -> None:
        self.older, self.newer, self.instances = older, newer, instances
        self._prefixes, self._ranges = list(prefixes), PrefixRanges(prefixes)
        self._cells: dict[tuple[str, str, str], Ints] = defaultdict(lambda: np.zeros(3, np.int64))
        self._by_prefix = {change: np.zeros((3, len(prefixes)), np.int64) for change in CHANGES}
        self._top: dict[str, pa.Table] = {}

    def add(self, rows: pa.Table) -> None:
        """Keys, each once."""
        if not rows.num_rows:
            return
        there, was = rows["type_new_min"].is_valid(), rows["type_old_min"].is_valid()
        before, after = (rows[f"size_{side}_sum"].fill_null(0).to_numpy() for side in ("old", "new"))
        masks = _masks(rows, there.to_numpy(), was.to_numpy(), before, after, self.older, self.newer)
        rows = pa.table(
            {
                "key": rows["key"],
                "db": rows["db"],
                "type": pc.if_else(there, rows["type_new_min"], rows["type_old_min"]),
                "instance": pc.if_else(there, rows["instance_new_min"], rows["instance_old_min"]),
                "before": pa.array(before),
                "after": pa.array(after),
                "expiry": pc.if_else(there, rows["expiry_new_min"], rows["expiry_old_min"]),
                "moved": pa.array(np.abs(after - before)),
            }
        )
        for change, mask in masks.items():
            if mask.any():
                self._add_change(change, rows.filter(pa.array(mask)))

    def _add_change(self, change: str, rows: pa.Table) -> None:
        before, after = rows["before"].to_numpy(), rows["after"].to_numpy()
        code = rows["type"].to_numpy().astype(np.int64) * len(self.instances) + rows["instance"].to_numpy()
        size = len(_KINDS) * len(self.instances)
        sums = [np.bincount(code, minlength=size), sums_by(code, before, size), sums_by(code, after, size)]
        for at in np.flatnonzero(sums[0]):
            where = (change, _KINDS[at // len(self.instances)], self.instances[at % len(self.instances)])
            self._cells[where] += [column[at] for column in sums]
        ordered, running = in_order(rows["key"].combine_chunks(), before, after)
        first, last = self._ranges.of(ordered)
        self._by_prefix[change] += [last - first, *(of[last] - of[first] for of in running)]
        if change != "same":
            best = _best(rows, change)
            self._top[change] = (
                _best(pa.concat_tables([self._top[change], best]), change) if change in self._top else best
            )

    def difference(self) -> Difference:
        """All of it."""
        prefixes = [
            ChangedPrefix(self._prefixes[i], change, *(int(n) for n in totals[:, i]))
            for change, totals in self._by_prefix.items()
            for i in np.flatnonzero(totals[0])
        ]
        return Difference(
            older=self.older,
            newer=self.newer,
            cells=tuple(sorted(Changed(*where, *map(int, sums)) for where, sums in self._cells.items())),
            prefixes=tuple(sorted(prefixes)),
            top={change: tuple(self._rows(rows)) for change, rows in self._top.items()},
        )

    def _rows(self, rows: pa.Table) -> Iterator[ChangedKey]:
        for row in rows.to_pylist():
            yield ChangedKey(
                row["key"][:SHOWN_KEY_BYTES],
                len(row["key"]),
                row["db"],
                _KINDS[row["type"]],
                self.instances[row["instance"]],
                row["before"],
                row["after"],
                row["expiry"],
            )


def _masks(
    rows: pa.Table,
    there: npt.NDArray[np.bool_],
    was: npt.NDArray[np.bool_],
    before: Ints,
    after: Ints,
    older: Batch,
    newer: Batch,
) -> dict[str, npt.NDArray[np.bool_]]:
    """Which keys each kind of change is about."""
    far = np.iinfo(np.int64).max
    ends_old, ends_new = (rows[f"expiry_{side}_min"].fill_null(far).to_numpy() for side in ("old", "new"))
    both = there & was
    return {
        "new": there & ~was,
        "gone": was & ~there,
        "grown": both & (after > before),
        "shrunk": both & (after < before),
        "same": both & (after == before),
        "expired": was & ~there & (ends_old <= millis(newer)),
        "expiring": there & (ends_new > millis(newer)) & (ends_new <= expiring_until(older, newer)),
    }


def _best(rows: pa.Table, change: str) -> pa.Table:
    """The keys of the most bytes: moved ones, of expiring keys all."""
    by = "after" if change == "expiring" else "moved"
    if rows.num_rows > CHANGED_KEYS:
        sizes = rows[by].to_numpy()
        rows = rows.filter(pa.array(sizes >= np.partition(sizes, -CHANGED_KEYS)[-CHANGED_KEYS]))
    order = pc.sort_indices(rows, [(by, "descending"), ("key", "ascending"), ("db", "ascending")])
    return rows.take(order[:CHANGED_KEYS])
