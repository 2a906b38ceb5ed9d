"""Options of the Parquet sinks. Every default is named here with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from millstream.errors import ConfigError

Compression = Literal["zstd", "snappy", "none"]

ZSTD_LEVEL = 1
"""Level 3 made files 3 % smaller for 25 % more CPU."""
ROW_GROUP_ROWS = 65_536
"""Rows of a row group of a published file: twice as many take 15 MB more memory and save 1 % of CPU and size."""
ROW_GROUP_BYTES = 32 << 20
"""A row group is closed earlier where rows are large: bounds what a merge holds."""
BATCH_ROWS = 512
"""Rows of a record batch of a sorted part; a merge holds one per part (40 kB). 1024 cost 25 MB, saved 0.05 µs a row."""
BATCH_BYTES = 256 << 10
"""The same bound for large rows."""
RANGE_ROWS = 32_768
"""Rows that a sorted merge sorts at once, about."""
FAN_IN = 256
"""Parts merged at once: about 10 MB of batches, and that many open files. Where there are more, some go first."""


@dataclass(frozen=True, slots=True)
class ParquetConfig:
    """Options of both sinks (RP-2, RP-3, RP-4)."""

    dir: Path
    """Everything is written below it; it must be one local file system (hard links, no NFS)."""
    compression: Compression = "zstd"
    sort: bool = False
    """Published files sorted by (db, key), as unsigned bytes."""
    owner: str = "millstream"
    """Who may open, merge and publish a batch: the app id with its namespace. Another owner's batch is refused."""

    def __post_init__(self) -> None:
        """RP-5: raises ConfigError that names the option."""
        if self.compression not in {"zstd", "snappy", "none"}:
            raise ConfigError(f"parquet compression {self.compression!r}: zstd, snappy or none are allowed")
        if not self.owner:
            raise ConfigError("parquet owner is empty: give the app id")

    @property
    def codec(self) -> dict[str, Any]:
        """Arguments of a pyarrow ParquetWriter."""
        return {
            "compression": self.compression,
            "compression_level": ZSTD_LEVEL if self.compression == "zstd" else None,
        }
