"""Published batches read back by set-based SQL: the server does the work, what comes here is sums.

The same figures as `sinks.parquet.reading` gives, from the raw table and the markers of published batches, as the view
shows the latest batch only (facts 2.1, defect 2; T38).
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections import defaultdict
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any, Self

from millstream.errors import ConfigError
from schemas.batch import Batch
from schemas.prefixes import PREFIX_BYTES, Prefix, significant
from schemas.slots import CODIS_SLOTS, REDIS_SLOTS
from schemas.survey import (
    BIG_OTHER,
    BIG_STRING,
    CHANGED_KEYS,
    EXPIRY,
    SHOWN_KEY_BYTES,
    TOP_KEYS,
    Cell,
    Changed,
    ChangedKey,
    ChangedPrefix,
    Difference,
    Group,
    KeyRow,
    Progress,
    Slots,
    Survey,
    expiring_until,
    expiry_bounds,
    expiry_groups,
    millis,
)
from sinks.clickhouse.client import Parameters
from sinks.clickhouse.config import ClickHouseConfig
from sinks.clickhouse.http import make_client
from sinks.clickhouse.schema import quoted, statement

GROUPING_BYTES = 1 << 30
"""Memory of a comparison's grouping by key on the server; beyond it the server spills to its disk."""
_MAX_PREFIXES = 300
"""Of one statement: of 256 bytes each they are 150 KiB as hex, and a server takes statements of 256 KiB."""

_CRC = [crc_hqx(bytes([i]), 0) for i in range(256)]


class ClickHouseArchive:
    """The published batches in a database. Blocking, with an event loop of its own. Use it as a context manager."""

    def __init__(self, config: ClickHouseConfig) -> None:
        self.where = f"ClickHouse {config.url}"
        """For messages."""
        self._config, self._client = config, make_client(config)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        path = self._config.path
        if path is not None and not path.is_dir():
            raise ConfigError(f"{self.where}: there is no directory {path}; give the one that batches were written to")
        try:
            self._runner.run(self._client.open())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._runner:
            self._runner.run(self._client.close())

    def published(self) -> list[Batch]:
        """All published batches, the newest first. Raises SinkError."""
        rows = self._ask("report_published", {}, "list the published batches")
        return [Batch(str(cluster), int(batch)) for cluster, batch in rows]

    def survey(self, batch: Batch, progress: Progress) -> Survey:
        """The figures of a published batch, by a statement each. Raises SinkError."""
        return _Surveying(self, batch, progress).survey()

    def difference(self, older: Survey, newer: Survey, progress: Progress) -> Difference:
        """What happened to the keys between two surveyed batches. Raises SinkError."""
        prefixes = sorted({p.prefix for p in (*older.prefixes, *newer.prefixes)})
        before, after = older.batch, newer.batch
        of: Parameters = {"cluster": after.cluster}
        purpose = f"compare batch {after.rfc3339} with {before.rfc3339} of cluster {after.cluster!r}"
        common = {"memory": str(GROUPING_BYTES)}
        common["changes"] = self._statement(
            "report_changes",
            older=_nanos(before),
            newer=_nanos(after),
            newer_ms=str(millis(after)),
            until_ms=str(expiring_until(before, after)),
        )
        cells = self._ask("report_changed", of, purpose, **common)
        progress("comparing", 0.3)
        by_prefix: list[list[Any]] = []
        for some in _portions(prefixes):
            names = {"lengths": _lengths(some), "prefixes": _set(some)}
            by_prefix += self._ask("report_changed_prefixes", of, purpose, **common, **names)
        progress("comparing", 0.7)
        shown = {"shown": str(SHOWN_KEY_BYTES), "count": str(CHANGED_KEYS)}
        top: dict[str, list[ChangedKey]] = defaultdict(list)
        for change, key, length, db, kind, instance, *sizes in self._ask(
            "report_changed_keys", of, purpose, **common, **shown
        ):
            row = ChangedKey(bytes.fromhex(key), int(length), int(db), kind, instance, *_ints(sizes))
            top[change].append(row)
        progress("comparing", 1.0)
        return Difference(
            older=before,
            newer=after,
            cells=tuple(sorted(Changed(*row[:3], *_ints(row[3:])) for row in cells)),
            prefixes=tuple(
                sorted(ChangedPrefix(bytes.fromhex(p), change, *_ints(rest)) for p, change, *rest in by_prefix)
            ),
            top={change: tuple(rows) for change, rows in top.items()},
        )

    def _ask(self, statement_name: str, parameters: Parameters, purpose: str, **names: str) -> list[list[Any]]:
        sql = self._statement(statement_name, **names)
        return self._runner.run(self._client.rows(sql, parameters, purpose=purpose, slow=True))

    def _statement(self, statement_name: str, **names: str) -> str:
        return statement(statement_name, database=quoted(self._config.database), **names)


class _Surveying:
    def __init__(self, archive: ClickHouseArchive, batch: Batch, progress: Progress) -> None:
        self._archive, self._batch, self._progress = archive, batch, progress
        self._rows = archive._statement("report_rows")

    def survey(self) -> Survey:
        shown = {"shown": str(SHOWN_KEY_BYTES)}
        limits = {"string": str(BIG_STRING), "other": str(BIG_OTHER)}
        cells = [Cell(i, int(db), t, e, *_ints(rest)) for i, db, t, e, *rest in self._ask(0.0, "report_cells")]
        bounds = str(expiry_bounds(self._batch))
        expiry = self._ask(0.15, "report_expiry", never=str(len(EXPIRY) - 1), bounds=bounds)
        top = self._ask(0.25, "report_top", **shown, count=str(TOP_KEYS))
        big = self._ask(0.35, "report_big", **shown, **limits)
        over = self._ask(0.4, "report_over", **limits)
        slots = self._slots()
        return Survey(
            batch=self._batch,
            cells=tuple(sorted(cells)),
            expiry=expiry_groups((int(n), int(keys), int(size)) for n, keys, size in expiry),
            top=tuple(map(_key_row, top)),
            big=tuple(sorted(map(_key_row, big), key=lambda r: (-r.size, r.type))),
            over=tuple(Group(kind, int(keys), int(size)) for kind, keys, size in over),
            prefixes=tuple(self._prefixes(significant(sum(c.size for c in cells)))),
            slots=slots,
        )

    def _slots(self) -> Slots:
        ((codis, redis),) = self._ask(0.45, "report_slots_recorded")
        column = "codis_slot" if int(codis) else "redis_slot" if int(redis) else _RECKONED
        found = {int(slot): _ints(rest) for slot, *rest in self._ask(0.5, "report_slots", slot=column)}
        count = CODIS_SLOTS if int(codis) else REDIS_SLOTS
        keys, sizes, instances = ([found.get(slot, (0, 0, 0))[i] for slot in range(count)] for i in range(3))
        return Slots("codis" if int(codis) else "redis", column != _RECKONED, keys, sizes, instances)

    def _prefixes(self, weight: int) -> list[Prefix]:
        """Level by level: the prefixes of one level stand side by side, so there are a hundred of them at most."""
        found: list[Prefix] = []
        level = [b""]
        for depth in range(PREFIX_BYTES):
            if not level:
                break
            parts: list[list[Any]] = []
            for some in _portions(level):
                names = {"lengths": _lengths(some), "prefixes": _set(some), "weight": str(weight)}
                parts += self._ask(1 - 0.4 * 0.8**depth, "report_prefixes", bytes=str(PREFIX_BYTES), **names)
            level = []
            for low, high, keys, size, length in parts:
                prefix = _common(bytes.fromhex(low), bytes.fromhex(high))
                assert len(prefix) > int(length)
                found.append(Prefix(prefix, int(keys), int(size)))
                level.append(prefix)
        return sorted(found)

    def _ask(self, part: float, statement_name: str, **names: str) -> list[list[Any]]:
        self._progress(f"asking ClickHouse about {self._batch.slug}", part)
        batch = self._batch
        of: Parameters = {"cluster": batch.cluster, "batch": batch.batch_ts}
        purpose = f"read batch {batch.rfc3339} of cluster {batch.cluster!r}"
        return self._archive._ask(statement_name, of, purpose, rows=self._rows, **names)


_OPEN = "position(key, '{')"
_CLOSE = f"position(key, '}}', toUInt64({_OPEN} + 1))"
_TAG = f"if({_OPEN} > 0 AND {_CLOSE} > {_OPEN} + 1, substring(key, {_OPEN} + 1, {_CLOSE} - {_OPEN} - 1), key)"
_RECKONED = f"""bitAnd(arrayFold(
        (crc, byte) -> toUInt16(
            bitXor(bitAnd(crc * 256, 65535), arrayElement({_CRC}, 1 + bitXor(intDiv(crc, 256), byte)))
        ),
        reinterpret({_TAG}, 'Array(UInt8)'),
        toUInt16(0)
    ), {REDIS_SLOTS - 1})"""
"""The slot of `key`, as schemas.slots reckons it."""


def _key_row(row: list[Any]) -> KeyRow:
    key, length, size, members, kind, encoding, instance, db, expiry = row
    (ends,) = _ints([expiry])
    return KeyRow(bytes.fromhex(key), int(length), int(size), int(members), kind, encoding, instance, int(db), ends)


def _ints(values: Iterable[Any]) -> list[Any]:
    """JSON's 64-bit integers are texts."""
    return [None if value is None else int(value) for value in values]


def _nanos(batch: Batch) -> str:
    return f"fromUnixTimestamp64Nano(toInt64({batch.batch_ts}), 'UTC')"


def _portions(prefixes: list[bytes]) -> Iterable[list[bytes]]:
    return (prefixes[i : i + _MAX_PREFIXES] for i in range(0, len(prefixes), _MAX_PREFIXES))


def _lengths(prefixes: list[bytes]) -> str:
    return str(sorted({len(p) for p in prefixes}))


def _set(prefixes: list[bytes]) -> str:
    return ", ".join(f"unhex('{p.hex()}')" for p in prefixes)


def _common(low: bytes, high: bytes) -> bytes:
    """What all texts between the two begin with."""
    same = next((i for i, (a, b) in enumerate(zip_longest(low, high)) if a != b), len(low))
    return low[:same]
