"""Published batches read back: which there are, and the figures of one, row group by row group.

Only columns that are needed are read, one row group at a time (65,536 rows or 32 MiB, as the sink writes them); what is
kept is sums, so memory does not grow with the number of keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millstream.errors import ConfigError, IdentityMismatchError, SinkError
from schemas.batch import SLUG, Batch
from schemas.names import batch_dir
from schemas.prefixes import KeySample, Prefix, PrefixCounter, cut, significant
from schemas.slots import CODIS_SLOTS, REDIS_SLOTS, redis_slots
from schemas.survey import (
    BIG_OTHER,
    BIG_STRING,
    EXPIRY,
    SHOWN_KEY_BYTES,
    TOP_KEYS,
    Cell,
    Difference,
    Group,
    KeyRow,
    Progress,
    Slots,
    Survey,
    expiry_bounds,
    expiry_groups,
)
from sinks.parquet.difference import difference
from sinks.parquet.instances import InstanceFile, Ints, naming, sums_by
from sinks.parquet.publish import read_footer

_ORDER = [("rdb_size", "descending"), ("key", "ascending"), ("instance", "ascending"), ("db", "ascending")]
_SHOWN = ["key", "rdb_size", "member_count", "type", "encoding", "instance", "db", "expire_at"]


class ParquetArchive:
    """The published batches below a directory. Blocking. Use it as a context manager, as ClickHouse's."""

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        """For messages."""
        self._directory = directory

    def __enter__(self) -> Self:
        if not self._directory.is_dir():
            raise ConfigError(f"{self._directory}: no such directory; give the one that batches were published to")
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def published(self) -> list[Batch]:
        """All published batches, the newest first. Staging trees and `tmp_` directories are none."""
        with naming(self._directory):
            found = [
                _batch_of(batch)
                for cluster in self._directory.iterdir()
                if cluster.is_dir() and not cluster.name.startswith(".")
                for batch in cluster.iterdir()
                if SLUG.fullmatch(batch.name) and batch.is_dir()
            ]
        return sorted(found, key=lambda b: (b.batch_ts, b.cluster), reverse=True)

    def directory_of(self, batch: Batch) -> Path:
        """Where a batch is once it is published."""
        return batch_dir(self._directory, batch)

    def files(self, batch: Batch) -> list[InstanceFile]:
        """The files of a published batch, by instance."""
        directory = self.directory_of(batch)
        found = []
        for path in directory.glob("*.parquet"):
            with naming(path):
                metadata = pq.read_metadata(path)
                footer = read_footer(path)
            of, instance = Batch.from_key(str(footer["batch"])), str(footer["instance"])
            found.append(InstanceFile(path, of, instance, metadata.num_rows, metadata.num_row_groups))
        if not found:
            raise SinkError(f"{directory} holds no Parquet file: was it taken away meanwhile?")
        return sorted(found, key=lambda f: f.instance)

    def survey(self, batch: Batch, progress: Progress) -> Survey:
        """The figures of a published batch: two passes over its files. Raises SinkError."""
        files = self.files(batch)
        rows = max(1, sum(f.rows for f in files))
        counts = _Counts(batch)
        done = 0
        for file in files:
            for table in file.tables(_Counts.COLUMNS):
                counts.add(file.instance, table)
                done += table.num_rows
                progress(f"counting {batch.slug}", 0.5 * done / rows)
        prefixes = _prefixes(files, counts.sample, counts.size, lambda part: progress("prefixes", 0.5 + 0.5 * part))
        return counts.survey(prefixes)

    def difference(self, older: Survey, newer: Survey, progress: Progress) -> Difference:
        """What happened to the keys between two surveyed batches. Raises SinkError."""
        prefixes = sorted({p.prefix for p in (*older.prefixes, *newer.prefixes)})
        return difference(
            (older.batch, self.files(older.batch)), (newer.batch, self.files(newer.batch)), prefixes, progress
        )


class _Counts:
    """All figures but prefixes, added up."""

    COLUMNS = ("db", "key", "type", "encoding", "member_count", "rdb_size", "expire_at", "codis_slot", "redis_slot")

    def __init__(self, batch: Batch) -> None:
        self.batch, self.sample, self.size = batch, KeySample(), 0
        self._cells: list[Cell] = []
        self._at: dict[tuple[str, int, str, str], int] = {}
        self._bounds = expiry_bounds(batch)
        self._expiry = np.zeros((2, len(EXPIRY)), np.int64)
        self._top: pa.Table | None = None
        self._big: dict[str, tuple[pa.Table, int, int]] = {}
        self._slots = {
            "codis": _SlotCounts(CODIS_SLOTS),
            "redis": _SlotCounts(REDIS_SLOTS),
            "reckoned": _SlotCounts(REDIS_SLOTS),
        }

    def add(self, instance: str, table: pa.Table) -> None:
        """More rows of an instance."""
        sizes = table["rdb_size"].to_numpy()
        if not len(sizes):
            return
        keys = table["key"].chunk(0)
        self.size += int(sizes.sum())
        self.sample.add(cut(keys), sizes)
        self._add_cells(instance, table)
        self._add_expiry(table["expire_at"].cast(pa.int64()), sizes)
        self._add_slots(instance, table, keys, sizes)
        floor = self._top["rdb_size"][-1].as_py() if self._top is not None and len(self._top) == TOP_KEYS else 0
        if (sizes >= floor).any():
            best = _best(_named(table.filter(pa.array(sizes >= floor)), instance), TOP_KEYS)
            self._top = best if self._top is None else _best(pa.concat_tables([self._top, best]), TOP_KEYS)
        self._add_big(instance, table, sizes)

    def _add_cells(self, instance: str, table: pa.Table) -> None:
        sums = table.group_by(["db", "type", "encoding"]).aggregate(
            [([], "count_all"), ("rdb_size", "sum"), ("member_count", "sum"), ("rdb_size", "max")]
        )
        columns = (sums[name].to_pylist() for name in sums.column_names)
        for row in zip(*columns, strict=True):
            by = dict(zip(sums.column_names, row, strict=True))
            where = (instance, by["db"], by["type"], by["encoding"])
            more = Cell(*where, by["count_all"], by["rdb_size_sum"], by["member_count_sum"], by["rdb_size_max"])
            at = self._at.setdefault(where, len(self._cells))
            if at == len(self._cells):
                self._cells.append(more)
                continue
            old = self._cells[at]
            self._cells[at] = Cell(
                *where,
                old.keys + more.keys,
                old.size + more.size,
                old.members + more.members,
                max(old.largest, more.largest),
            )

    def _add_expiry(self, expiry: pa.ChunkedArray, sizes: Ints) -> None:
        number = np.searchsorted(self._bounds, expiry.fill_null(0).to_numpy(), side="right")
        number[expiry.is_null().to_numpy()] = len(EXPIRY) - 1
        self._expiry[0] += np.bincount(number, minlength=len(EXPIRY))
        self._expiry[1] += sums_by(number, sizes, len(EXPIRY))

    def _add_slots(self, instance: str, table: pa.Table, keys: pa.Array, sizes: Ints) -> None:
        missing = np.ones(len(sizes), bool)
        for kind in ("codis", "redis"):
            column = table[f"{kind}_slot"]
            if column.null_count < len(column):
                there = column.is_valid().to_numpy()
                self._slots[kind].add(instance, column.fill_null(0).to_numpy()[there], sizes[there])
                missing &= ~there
        if missing.any():
            reckoned = redis_slots(keys.filter(pa.array(missing)))
            self._slots["reckoned"].add(instance, reckoned, sizes[missing])

    def _add_big(self, instance: str, table: pa.Table, sizes: Ints) -> None:
        if sizes.max() <= BIG_STRING:
            return
        is_string = pc.equal(table["type"].cast(pa.utf8()), "string").to_numpy()
        over = sizes > np.where(is_string, BIG_STRING, BIG_OTHER)
        rows = _named(table.filter(pa.array(over)), instance)
        for kind in pc.unique(rows["type"]).to_pylist():
            of = rows.filter(pc.equal(rows["type"], kind))
            count, size = of.num_rows, pc.sum(of["rdb_size"]).as_py()
            if kind in self._big:
                before, keys_before, size_before = self._big[kind]
                of, count, size = pa.concat_tables([before, of]), count + keys_before, size + size_before
            self._big[kind] = (_best(of, 1), count, size)

    def survey(self, prefixes: list[Prefix]) -> Survey:
        """All of it."""
        kind = next((k for k in ("codis", "redis") if self._slots[k].used), "reckoned")
        big = sorted((_key_rows(row)[0] for row, _, _ in self._big.values()), key=lambda r: (-r.size, r.type))
        counts = zip(range(len(EXPIRY)), *self._expiry.tolist(), strict=True)
        return Survey(
            batch=self.batch,
            cells=tuple(sorted(self._cells)),
            expiry=expiry_groups(counts),
            top=tuple(_key_rows(self._top)) if self._top is not None else (),
            big=tuple(big),
            over=tuple(Group(kind, count, size) for kind, (_, count, size) in sorted(self._big.items())),
            prefixes=tuple(prefixes),
            slots=Slots(
                kind="codis" if kind == "codis" else "redis",
                recorded=kind != "reckoned",
                keys=self._slots[kind].keys.tolist(),
                sizes=self._slots[kind].sizes.tolist(),
                instances=self._slots[kind].instances(),
            ),
        )


class _SlotCounts:
    def __init__(self, count: int) -> None:
        self.keys, self.sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._seen: dict[str, npt.NDArray[np.bool_]] = defaultdict(lambda: np.zeros(count, bool))

    @property
    def used(self) -> bool:
        return bool(self._seen)

    def add(self, instance: str, slots: npt.NDArray[Any], sizes: Ints) -> None:
        keys = np.bincount(slots, minlength=len(self.keys))
        self.keys += keys
        self.sizes += sums_by(slots, sizes, len(self.keys))
        self._seen[instance] |= keys > 0

    def instances(self) -> list[int]:
        """Number of instances that each slot was seen on."""
        total = np.zeros(len(self.keys), np.int64)
        for seen in self._seen.values():
            total += seen
        return total.tolist()


def _prefixes(files: Sequence[InstanceFile], sample: KeySample, size: int, progress: Any) -> list[Prefix]:
    weight, rows = significant(size), max(1, sum(f.rows for f in files))
    drawn = sample.drawn()
    for attempt in range(1, 1000):  # once, but for a draw in a billion
        counter, again, done = PrefixCounter(drawn), KeySample(seed=attempt), 0
        for file in files:
            for table in file.tables(("key", "rdb_size")):
                if not table.num_rows:
                    continue
                keys, sizes = cut(table["key"].chunk(0)), table["rdb_size"].to_numpy()
                counter.add(keys, sizes)
                again.add(keys, sizes)
                done += table.num_rows
                progress(done / rows)
        if counter.close_enough(weight):
            return counter.significant(weight)
        drawn |= again.drawn()
    raise AssertionError("the draw never gets close enough")


def _named(table: pa.Table, instance: str) -> pa.Table:
    """Rows as they are shown, with their instance."""
    table = table.append_column("instance", pa.repeat(instance, table.num_rows)).select(_SHOWN)
    for name in ("type", "encoding"):
        table = table.set_column(_SHOWN.index(name), name, table[name].cast(pa.utf8()))
    return table


def _best(table: pa.Table, count: int) -> pa.Table:
    """The first rows in the order of the largest keys."""
    if table.num_rows > count:
        sizes = table["rdb_size"].to_numpy()
        table = table.filter(pa.array(sizes >= np.partition(sizes, -count)[-count]))
    return table.take(pc.sort_indices(table, _ORDER)[:count])


def _key_rows(table: pa.Table) -> list[KeyRow]:
    shown = pc.binary_slice(table["key"], 0, SHOWN_KEY_BYTES).to_pylist()
    lengths = pc.binary_length(table["key"]).to_pylist()
    rest = [table[n].to_pylist() for n in ("rdb_size", "member_count", "type", "encoding", "instance", "db")]
    expiry = table["expire_at"].cast(pa.int64()).to_pylist()  # not as datetime: exact past year 9999 (T35)
    return [KeyRow(*row) for row in zip(shown, lengths, *rest, expiry, strict=True)]


def _batch_of(directory: Path) -> Batch:
    """The batch that a published directory holds, with its nanoseconds and the cluster's name as given."""
    for path in sorted(directory.glob("*.parquet")):
        try:
            return Batch.from_key(str(read_footer(path)["batch"]))
        except IdentityMismatchError:
            continue  # who asks for this batch is told
    at = datetime.strptime(directory.name[:-5], "%Y-%m-%d_%H-%M-%S").replace(tzinfo=UTC)
    return Batch(directory.parent.name, int(at.timestamp()) * 1_000_000_000 + int(directory.name[-4:-1]) * 1_000_000)
