"""Options of the Parquet sinks. Every default is named here with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from millstream.errors import ConfigError

Compression = Literal["zstd", "snappy", "none"]

ZSTD_LEVEL = 1
"""Level 3 made files 3 % smaller for 25 % more CPU."""
ROW_GROUP_ROWS = 131_072
"""Rows of a row group of a published file, roughly when sorted: 1 % of a 10 M row file, 8 MB in memory."""
ROW_GROUP_BYTES = 32 << 20
"""A row group is closed earlier where rows are large: bounds what a merge holds."""
BATCH_ROWS = 1024
"""Rows of a record batch of a part: what a sorted merge holds per part (60 kB)."""
BATCH_BYTES = 256 << 10
"""The same bound for large rows."""
FAN_IN = 512
"""Parts merged at once: 30 MB of batches, and 512 open files of the usual 1024. More are merged in two rounds."""


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
