"""RocksDB store whose changes wait in the chunk's overlay until its Kafka transaction is committed.

Registered with Faust under the URL scheme `millstream`. One database per table partition; each holds, beside the data,
one record with the changelog position it stands for, written in the same batch as the data.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import rocksdict
from faust.stores import base
from faust.utils import json as faust_json

from millstream.errors import MillstreamError
from tables import columns
from tables.scope import Changes, OutsideChunkError, Scope, current

_POSITION_KEY = b"\0millstream.position"
"""No key of Faust's starts with a NUL byte: JSON text never does; raw keys that do are refused below."""

MANY = 4096
"""Keys that one look-up asks for: the interpreter stands still while RocksDB searches, 5 ms."""


_SIZES = ("live-sst-files-size", "cur-size-all-mem-tables")


class StoreLockedError(MillstreamError):
    """Another process has the database open."""


class StorePosition(NamedTuple):
    """What a table partition on disk stands for."""

    topic_id: str
    """Id of the changelog topic."""
    next_offset: int
    """Changelog offset to restore from."""
    applied_at: float
    """Unix seconds when it was last written (hole k: an old store may miss tombstones already compacted away)."""


class Store(base.SerializedStore):
    """One table's partitions on this worker."""

    logger = logging.getLogger("faust.tables")

    def __init__(self, url: Any, app: Any, table: Any, **kwargs: Any) -> None:
        super().__init__(url, app, table, **kwargs)
        self._dbs: dict[int, rocksdict.Rdict] = {}
        self._looking = threading.Lock()
        """Held while somebody looks on from outside: an iterator would keep a database open that is being closed."""
        known = faust_json.orjson is None  # it escapes otherwise, and would be Faust's choice
        self._plain_keys = known and self.key_serializer == "json" and self.key_type in (None, int, str)
        self._plain_values = known and self.value_serializer == "json" and self.value_type in (None, int)

    # ------------------------------------------------------------------ partitions (called by the engine)
    def path(self, partition: int) -> Path:
        """Directory of a partition's database."""
        return Path(self.app.conf.tabledir) / f"{self.table_name}-{partition}.rocksdb"

    def open_partition(self, partition: int) -> StorePosition | None:
        """Open a partition's database; None if it holds nothing yet. Blocking. Raises StoreLockedError."""
        db = self._dbs.get(partition)
        if db is None:
            path = self.path(partition)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                db = rocksdict.Rdict(str(path), _options())
            except Exception as exc:
                if "lock" in str(exc).lower():
                    raise StoreLockedError(
                        f"table {self.table_name!r}: another process has {path} open. Give each worker on this "
                        "host its own MILLSTREAM_WORKER_SLOT (or MILLSTREAM_DATA_DIR)."
                    ) from exc
                raise
            self._dbs[partition] = db
        raw = db.get(_POSITION_KEY)
        return None if raw is None else msgspec.json.decode(raw, type=StorePosition)

    def wipe_partition(self, partition: int) -> None:
        """Drop a partition's data, to be restored from the start of its changelog. Blocking."""
        self.close_partition(partition)
        shutil.rmtree(self.path(partition), ignore_errors=False) if self.path(partition).exists() else None
        self.open_partition(partition)

    def close_partition(self, partition: int) -> None:
        """Close a partition that is no longer ours. Blocking."""
        with self._looking:
            if (db := self._dbs.pop(partition, None)) is not None:
                db.close()

    def apply(self, partition: int, changes: Iterable[tuple[bytes, bytes | None]], position: StorePosition) -> None:
        """Write committed changes and the position they lead to in one batch. Blocking.

        In the order of the keys, which takes RocksDB a third of the time.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in sorted(changes):
            if value is None:
                delete(key)
            else:
                put(key, value)
        put(_POSITION_KEY, msgspec.json.encode(position._replace(applied_at=time.time())))
        self._dbs[partition].write(batch)

    @property
    def partitions(self) -> set[int]:
        """Partitions that are open here."""
        return set(self._dbs)

    # ------------------------------------------------------------------ for those who look on (any thread)
    def scan(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """What is committed under keys that begin so, of all partitions here. Blocking."""
        found: list[tuple[bytes, bytes]] = []
        with self._looking:
            for db in tuple(self._dbs.values()):
                items: Iterator[tuple[bytes, bytes]] = db.items(from_key=prefix)  # type: ignore[assignment] # raw mode
                for key, value in items:
                    if not key.startswith(prefix):
                        break
                    found.append((key, value))
        return found

    def size(self) -> tuple[int, int]:
        """Keys, as RocksDB estimates them, and bytes in files and memory. Blocking."""
        keys = size = 0
        with self._looking:
            for db in tuple(self._dbs.values()):
                keys += max(0, (db.property_int_value("rocksdb.estimate-num-keys") or 0) - 1)  # the position's
                size += sum(db.property_int_value(f"rocksdb.{name}") or 0 for name in _SIZES)
        return keys, size

    async def on_stop(self) -> None:
        """Close everything."""
        for partition in list(self._dbs):
            self.close_partition(partition)

    # ------------------------------------------------------------------ many keys at once (called by our table)
    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values as the current chunk sees them, None for a key that is not there. Blocking."""
        scope, changes = self._scope()
        look_up: Any = self._db(scope.table_partition).get  # takes lists of keys, which its types do not tell
        found: list[bytes | None] = []
        for at in range(0, len(keys), MANY):
            part = keys[at : at + MANY]
            if changes and (unknown := [k for k in part if k not in changes]) != part:
                stored = dict(zip(unknown, look_up(unknown), strict=True)) if unknown else {}
                found += [changes[k] if k in changes else stored[k] for k in part]
            else:
                found += look_up(list(part))
        return found

    def put_many(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Change many keys in the current chunk; None deletes. The last value of a key wins."""
        for key in keys:
            _check_key(self.table_name, key)
        self._scope()[1].update(zip(keys, values, strict=True))

    def encode_keys(self, keys: pa.Array) -> list[bytes]:
        """Each key as `table[key]` would write it."""
        if pa.types.is_binary(keys.type) and not keys.null_count:
            return list(keys.to_pylist())  # Faust takes bytes as they are
        found = columns.text_of(keys) if self._plain_keys else None
        return [self._encode_key(k) for k in keys.to_pylist()] if found is None else found

    def encode_values(self, values: Sequence[Any]) -> list[bytes | None]:
        """Each value as `table[key] = value` would write it; None stays None."""
        if self._plain_values and set(map(type, values)) <= {int, float}:
            return list(columns.texts(values))
        return [None if v is None else self._encode_value(v) for v in values]

    def decode_values(self, values: Sequence[bytes | None]) -> list[Any]:
        """Each value as `table[key]` would give it; None stays None."""
        kinds = frozenset([int] if self.value_type is int else [int, float])
        found = columns.numbers(values, kinds) if self._plain_values else None
        if found is not None:
            return found
        return [None if v is None else self._decode_value(v) for v in values]

    # ------------------------------------------------------------------ one key or value
    # Numbers and text, which most tables hold, past five layers of Faust: the bytes are the same.
    def _encode_key(self, key: Any) -> bytes:
        found = columns.dumps(key) if self._plain_keys else None
        return super()._encode_key(key) if found is None else found

    def _encode_value(self, value: Any) -> bytes | None:
        found = columns.dumps(value) if self._plain_values else None
        return super()._encode_value(value) if found is None else found

    def _decode_value(self, value: bytes | None) -> Any:
        if value is not None and self._plain_values and value.isdigit():
            return int(value)
        return super()._decode_value(value)

    # ------------------------------------------------------------------ what Faust's table calls
    def _scope(self) -> tuple[Scope, Changes]:
        scope = current()
        if scope is None:
            raise OutsideChunkError(
                f"table {self.table_name!r} can only be changed while an agent processes a chunk or an event: "
                "send a record to the agent's topic instead of writing from a timer, a web view or a spawned task."
            )
        return scope, scope.table_changes(self.table_name)

    def _set(self, key: bytes, value: bytes | None) -> None:
        _check_key(self.table_name, key)
        self._scope()[1][key] = value

    def _del(self, key: bytes) -> None:
        self._scope()[1][key] = None

    def _get(self, key: bytes) -> bytes | None:
        if current() is None:  # a web view or a timer: what is committed, in whichever partition has it
            found = (db.get(key) for db in self._dbs.values())
            return next((value for value in found if value is not None), None)
        scope, changes = self._scope()
        return changes[key] if key in changes else self._db(scope.table_partition).get(key)

    def _db(self, partition: int) -> rocksdict.Rdict:
        try:
            return self._dbs[partition]
        except KeyError:
            raise OutsideChunkError(
                f"table {self.table_name!r}: partition {partition} is not on this worker. Declare the table at the "
                "agent: @app.agent(topic, tables=[table])."
            ) from None

    def _contains(self, key: bytes) -> bool:
        return self._get(key) is not None

    def _iteritems(self) -> Iterator[tuple[bytes, bytes]]:
        changes: Changes = {}
        dbs: list[Any] = list(self._dbs.values())
        if current() is not None:
            scope, changes = self._scope()
            dbs, changes = [self._db(scope.table_partition)], dict(changes)
        for db in dbs:
            for key, value in db.items():
                if key != _POSITION_KEY and key not in changes:
                    yield key, value
        yield from ((k, v) for k, v in changes.items() if v is not None)

    def _iterkeys(self) -> Iterator[bytes]:
        return (key for key, _ in self._iteritems())

    def _itervalues(self) -> Iterator[bytes | None]:
        return (value for _, value in self._iteritems())

    def _size(self) -> int:
        return sum(1 for _ in self._iteritems())

    def _clear(self) -> None:
        for key in list(self._iterkeys()):
            self._del(key)

    def reset_state(self) -> None:
        """Faust's `reset` command: forget what is on disk."""
        for path in Path(self.app.conf.tabledir).glob(f"{self.table_name}-*.rocksdb"):
            shutil.rmtree(path)

    async def backup_partition(self, tp: Any, flush: bool = True, purge: bool = False, keep: int = 1) -> None:
        """Not offered: the changelog is the backup."""
        raise MillstreamError(f"table {self.table_name!r} needs no backup: its changelog topic restores it")

    def restore_backup(self, tp: Any, latest: bool = True, backup_id: int = 0) -> None:
        """Not offered: the changelog is the backup."""
        raise MillstreamError(f"table {self.table_name!r} needs no backup: its changelog topic restores it")

    # Faust's own recovery has nothing to do: the engine restores (streams.engine.recovery).
    def persisted_offset(self, tp: Any) -> int | None:
        """Never asked for by the engine; None tells Faust that nothing is known."""
        return None

    def set_persisted_offset(self, tp: Any, offset: int) -> None:
        """Positions are written with the data only, in `apply`."""


def _check_key(table: str, key: bytes) -> None:
    if key[:1] == b"\0":
        raise ValueError(f"table {table!r}: key {key!r} starts with a NUL byte, which is reserved")


def _options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(16 << 20)
    options.set_max_write_buffer_number(3)
    options.set_keep_log_file_num(2)
    options.set_max_background_jobs(2)
    return options
