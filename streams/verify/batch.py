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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import ConfigError
from millstream.postgres.queries import load
from millstream.settings import Settings
from schemas.batch import Batch
from sinks.clickhouse.client import Client
from sinks.clickhouse.config import ClickHouseConfig
from sinks.clickhouse.encode import EXPIRE_MAX_MS, EXPIRE_MIN_MS
from sinks.clickhouse.http import make_client
from sinks.clickhouse.schema import COMPLETED, RAW
from sinks.factory import NONE_CONFIGURED, clickhouse_config
from sinks.parquet.instances import InstanceFile, sums_by
from sinks.parquet.reading import ParquetArchive
from streams.verify.compare import Verdict, judge

_SQL = load("streams.verify", "batch.sql")
_COLUMNS = ("db", "key", "type", "member_count", "rdb_size", "encoding", "expire_at", "idle_seconds", "freq",
            "codis_slot", "redis_slot")  # fmt: skip

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
        directory, config = self.settings.parquet_dir, clickhouse_config(self.settings)
        archive = None if directory is None else ParquetArchive(directory.absolute())
        if archive is None and config is None:
            raise ConfigError(NONE_CONFIGURED)
        client = None if config is None else make_client(config)
        try:
            if archive is not None:
                found["Parquet"] = await asyncio.to_thread(self._parquet_sums, archive)
            if client is not None and config is not None:
                await client.open()
                found["ClickHouse"] = await self._clickhouse_sums(client, config)
            if not any(found.values()) and not self.facts:
                raise ConfigError(
                    f"there is no batch {self.batch.rfc3339} of cluster {self.batch.cluster!r} in {' or '.join(found)}"
                )
            if archive is not None and client is not None and config is not None:
                self.verdicts.append(await self._by_each_other(found, archive, client, config))
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
        self, found: dict[str, Sums], archive: ParquetArchive, client: Client, config: ClickHouseConfig
    ) -> Verdict:
        one, other = found["Parquet"], found["ClickHouse"]
        counts = [sum(rows for rows, _ in sums.values()) for sums in (one, other)]
        verdict = Verdict("Parquet (source), ClickHouse (sink)", counts[0], counts[1], self.ranges)
        which = sorted({place[1] for place in one.keys() | other.keys() if one.get(place) != other.get(place)})
        if which:
            verdict.differing = len(which)
            keys = await asyncio.to_thread(self._parquet_keys, archive, which)
            judge(verdict, keys, await self._clickhouse_keys(client, config, which))
        return verdict

    # ------------------------------------------------------------------ Parquet
    def _parquet_sums(self, archive: ParquetArchive) -> Sums:
        found: Sums = {}
        for file in self._files(archive):
            rows, totals = np.zeros(self.ranges, np.int64), np.zeros(self.ranges, np.int64)
            for _, ranges, hashes in self._hashed(file):
                rows += np.bincount(ranges, minlength=self.ranges)
                totals += sums_by(ranges, hashes, self.ranges)
            found |= {(file.instance, int(n)): (int(rows[n]), int(totals[n])) for n in np.flatnonzero(rows)}
        return found

    def _parquet_keys(self, archive: ParquetArchive, which: list[int]) -> Keys:
        found: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        for file in self._files(archive):
            for rows, ranges, hashes in self._hashed(file):
                mine = np.isin(ranges, which)
                keys = rows.filter(pa.array(mine))
                columns = (keys.column(name).to_pylist() for name in ("db", "key"))
                for db, key, value in zip(*columns, hashes[mine], strict=True):
                    total = found[_named(file.instance, db, key)]
                    total[0] += 1
                    total[1] += int(value)
        return {name: (rows, total) for name, (rows, total) in found.items()}

    def _files(self, archive: ParquetArchive) -> list[InstanceFile]:
        if not archive.directory_of(self.batch).is_dir():
            return []
        files = archive.files(self.batch)
        for file in files:
            if file.batch != self.batch:
                raise ConfigError(f"{file.path} is of another batch of the same millisecond")
        return files

    def _hashed(self, file: InstanceFile) -> Iterator[tuple[pa.RecordBatch, Any, Any]]:
        """Rows, their ranges, their hashes."""
        for table in file.tables(_COLUMNS):
            for rows in table.to_batches():
                yield rows, *hashed(rows, self.ranges)

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
    keys = np.fromiter(map(zlib.crc32, rows.column("key").to_pylist()), np.int64, count)
    return keys % ranges, np.fromiter(map(zlib.crc32, texts.to_pylist()), np.int64, count)


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
