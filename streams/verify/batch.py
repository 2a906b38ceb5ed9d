"""A published batch of dumps: Parquet and ClickHouse against each other, and each against what the topics had.

A row becomes one text, the same in Python and in ClickHouse's SQL, and its CRC-32 a summand of its range. Parquet files
are read once, and again only where a range differs.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millstream.errors import ConfigError
from millstream.postgres.queries import load
from millstream.settings import Settings
from schemas.batch import Batch
from schemas.names import cluster_dir
from sinks.clickhouse.client import Client, make_client
from sinks.clickhouse.config import ClickHouseConfig
from sinks.clickhouse.encode import EXPIRE_MAX_MS, EXPIRE_MIN_MS
from sinks.clickhouse.schema import COMPLETED, RAW
from sinks.factory import NONE_CONFIGURED, clickhouse_config
from streams.verify.compare import Verdict, judge

_SQL = load("streams.verify", "batch.sql")
_COLUMNS = ("db", "key", "type", "member_count", "rdb_size", "encoding", "expire_at", "idle_seconds", "freq",
            "codis_slot", "redis_slot")  # fmt: skip
_ROWS = 65_536

Place = tuple[str, int]
"""Instance and range."""
Sums = dict[Place, tuple[int, int]]
"""Rows and sum of hashes."""
Keys = dict[str, tuple[int, int]]
"""`instance db key` -> the same."""


@dataclass
class BatchLook:
    """One look. Raises ConfigError, SinkError, BrokerError."""

    settings: Settings
    batch: Batch
    ranges: int
    facts: Mapping[str, int] | None
    """Instance -> rows that its topic had, by the archive's facts; None if there are none."""
    verdicts: list[Verdict] = field(default_factory=list)

    async def look(self) -> list[Verdict]:
        """Compare what is configured."""
        found: dict[str, Sums] = {}
        directory, config = self._directory(), clickhouse_config(self.settings)
        if directory is None and config is None:
            raise ConfigError(NONE_CONFIGURED)
        client = None if config is None else make_client(config)
        try:
            if directory is not None:
                found["Parquet"] = await asyncio.to_thread(self._parquet_sums, directory)
            if client is not None and config is not None:
                await client.open()
                found["ClickHouse"] = await self._clickhouse_sums(client, config)
            if not any(found.values()) and not self.facts:
                raise ConfigError(
                    f"there is no batch {self.batch.rfc3339} of cluster {self.batch.cluster!r} in {' or '.join(found)}"
                )
            if directory is not None and client is not None and config is not None:
                self.verdicts.append(await self._by_each_other(found, directory, client, config))
            if self.facts is not None:
                self.verdicts += [_by_facts(self.facts, name, sums) for name, sums in found.items()]
            elif len(found) == 1:
                raise ConfigError(
                    f"nothing to compare {next(iter(found))} with: no facts about batch {self.batch.rfc3339} are in "
                    "Kafka (a one-shot removes its own, others go after 30 days), and no other sink is configured"
                )
        finally:
            if client is not None:
                await client.close()
        return self.verdicts

    async def _by_each_other(
        self, found: dict[str, Sums], directory: Path, client: Client, config: ClickHouseConfig
    ) -> Verdict:
        one, other = found["Parquet"], found["ClickHouse"]
        counts = [sum(rows for rows, _ in sums.values()) for sums in (one, other)]
        verdict = Verdict("Parquet (source), ClickHouse (sink)", counts[0], counts[1], self.ranges)
        which = sorted({place[1] for place in one.keys() | other.keys() if one.get(place) != other.get(place)})
        if which:
            verdict.differing = len(which)
            keys = await asyncio.to_thread(self._parquet_keys, directory, set(which))
            judge(verdict, keys, await self._clickhouse_keys(client, config, which))
        return verdict

    # ------------------------------------------------------------------ Parquet
    def _directory(self) -> Path | None:
        root = self.settings.parquet_dir
        return None if root is None else root.absolute() / cluster_dir(self.batch.cluster) / self.batch.slug

    def _parquet_sums(self, directory: Path) -> Sums:
        found: defaultdict[Place, list[int]] = defaultdict(lambda: [0, 0])
        for instance, _, ranges, hashes in self._read(directory):
            for number in np.unique(ranges):
                mine = ranges == number
                total = found[instance, int(number)]
                total[0] += int(mine.sum())
                total[1] += int(hashes[mine].sum())
        return {place: (rows, total) for place, (rows, total) in found.items()}

    def _parquet_keys(self, directory: Path, which: set[int]) -> Keys:
        found: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        for instance, table, ranges, hashes in self._read(directory):
            mine = np.isin(ranges, list(which))
            keys = table.filter(pa.array(mine))
            for db, key, value in zip(*(keys.column(n).to_pylist() for n in ("db", "key")), hashes[mine], strict=True):
                total = found[_named(instance, db, key)]
                total[0] += 1
                total[1] += int(value)
        return {name: (rows, total) for name, (rows, total) in found.items()}

    def _read(self, directory: Path) -> Iterator[tuple[str, pa.RecordBatch, Any, Any]]:
        """Instance, rows, their ranges, their hashes."""
        for path in sorted(directory.glob("*.parquet")):
            for rows in pq.ParquetFile(path).iter_batches(_ROWS, columns=["batch", "instance", *_COLUMNS]):
                if rows.num_rows and rows.column("batch")[0].value != self.batch.batch_ts:
                    raise ConfigError(f"{path} is of another batch of the same millisecond")
                ranges, hashes = hashed(rows, self.ranges)
                yield (rows.column("instance")[0].as_py() if rows.num_rows else ""), rows, ranges, hashes

    # ------------------------------------------------------------------ ClickHouse
    async def _clickhouse_sums(self, client: Client, config: ClickHouseConfig) -> Sums:
        (done,) = await client.rows(*self._query("completed", config, COMPLETED), purpose="look for the batch")
        if not int(done[0]):
            return {}
        rows = await client.rows(*self._query("sums", config, RAW), purpose="add up the batch", slow=True)
        return {(str(i), int(r)): (int(count), int(total)) for i, r, count, total in rows}

    async def _clickhouse_keys(self, client: Client, config: ClickHouseConfig, which: list[int]) -> Keys:
        sql, parameters = self._query("keys", config, RAW)
        sql = sql.replace("{which}", ", ".join(map(str, which)))
        rows = await client.rows(sql, parameters, purpose="list the keys that differ", slow=True)
        return {_named(i, int(db), bytes.fromhex(key)): (int(n), int(total)) for i, db, key, n, total in rows}

    def _query(self, name: str, config: ClickHouseConfig, table: str) -> tuple[str, dict[str, str | int | list[str]]]:
        sql = _SQL[name].replace("{table}", f"`{config.database}`.{table}").replace("{ranges}", str(self.ranges))
        row = _SQL["row"].rpartition("\n")[2]
        return sql.replace("{row}", row), {"cluster": self.batch.cluster, "batch": self.batch.batch_ts}


def hashed(rows: pa.RecordBatch, ranges: int) -> tuple[Any, Any]:
    """Range and hash of each row."""
    texts = pc.binary_join_element_wise(*(_text(name, rows.column(name)) for name in _COLUMNS), b"|")
    count = rows.num_rows
    keys = np.fromiter(map(zlib.crc32, rows.column("key").to_pylist()), np.uint64, count)
    return keys % np.uint64(ranges), np.fromiter(map(zlib.crc32, texts.to_pylist()), np.uint64, count)


def _text(name: str, column: pa.Array) -> pa.Array:
    if name == "key":
        return column
    if name == "expire_at":  # as ClickHouse holds it (T35)
        column = pc.min_element_wise(column.cast(pa.int64()), EXPIRE_MAX_MS, skip_nulls=False)
        column = pc.max_element_wise(column, EXPIRE_MIN_MS, skip_nulls=False)
    return pc.fill_null(column.cast(pa.utf8()), "-").cast(pa.binary())


def _by_facts(facts: Mapping[str, int], name: str, sums: Sums) -> Verdict:
    held = Counter[str]()
    for (instance, _), (rows, _) in sums.items():
        held[instance] += rows
    counts = {instance: rows for instance, rows in facts.items() if rows or instance in held}
    verdict = Verdict(f"topic (source), {name} (sink)", sum(counts.values()), held.total(), len(facts))
    judge(verdict, counts, held)
    verdict.differing = len(verdict.keys)
    return verdict


def _named(instance: str, db: int, key: bytes) -> str:
    text = key.decode("utf-8", "replace")
    return f"{instance} db {db} {text if text.isprintable() and text.encode() == key else 'hex:' + key.hex()}"
