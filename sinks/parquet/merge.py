"""Parts of one run into one Parquet file, in offset order or sorted by (db, key), in bounded memory."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millstream.failpoints import declare, failpoint
from schemas.batch import Run
from sinks.parquet.config import FAN_IN, RANGE_ROWS, ROW_GROUP_BYTES, ROW_GROUP_ROWS
from sinks.parquet.encode import DICTIONARIES, PART, WRITER, record_to_columns, sorted_part
from sinks.parquet.parts import Part, index_of, pieces, read_ipc, write_ipc

MID = declare("parquet.merge.mid", "one row group of a merged file is written")

SORTING = pq.SortingColumn.from_ordering(WRITER, [("db", "ascending"), ("key", "ascending")])

_Source = tuple[Path, pa.RecordBatch]
"""A file of sorted pieces, and its index."""


def write_merged(
    tmp: Path, parts: Sequence[Part], run: Run, *, sort: bool, codec: dict[str, Any], metadata: dict[str, str]
) -> None:
    """Write the rows of `parts` into the Parquet file `tmp`. Scratch files stand beside the parts while it runs."""
    pool = pa.default_memory_pool()
    with ExitStack() as stack:
        stack.callback(pool.release_unused)
        if sort:
            scratch = stack.enter_context(_scratch(tmp))
            tables = _sorted(_few(_all_sorted(parts, scratch), scratch))
        else:
            tables = _in_order(parts)
        writer = stack.enter_context(
            pq.ParquetWriter(
                stack.enter_context(pa.OSFile(str(tmp), "wb")),
                WRITER,
                use_dictionary=DICTIONARIES,
                sorting_columns=SORTING if sort else None,
                store_schema=False,
                **codec,
            )
        )
        for rows in _row_groups(tables):
            writer.write_table(record_to_columns(rows, run.batch, run.instance), row_group_size=rows.num_rows)
            failpoint(MID)
            # The pool keeps what was freed: 40 MB more resident without this.
            pool.release_unused()
        writer.add_key_value_metadata(metadata)


def _in_order(parts: Iterable[Part]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        with pa.OSFile(str(part.path)) as file:
            reader = read_ipc(file)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of ROW_GROUP_ROWS rows, the last one and those of large rows smaller."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        held.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows < ROW_GROUP_ROWS and size < ROW_GROUP_BYTES:
            continue
        table = pa.Table.from_batches(held, PART)
        while table.num_rows >= ROW_GROUP_ROWS:
            yield table.slice(0, ROW_GROUP_ROWS)
            table = table.slice(ROW_GROUP_ROWS)
        if table.nbytes >= ROW_GROUP_BYTES:
            yield table
            table = table.slice(table.num_rows)
        held = [b for b in table.to_batches() if b.num_rows]
        rows, size = table.num_rows, table.nbytes
    if rows:
        yield pa.Table.from_batches(held, PART)


def _sorted(sources: Sequence[_Source]) -> Iterator[pa.RecordBatch]:
    """Merge by key ranges: load batches by their first key, sort what lies below the first key not loaded yet.

    Only whole-column calls, no work per row in Python. Holds at most one batch per source beside the range itself.
    """
    heads = _heads(sources)
    if not heads.num_rows:
        return
    source, number, dbs, rows, size = (heads[c].to_pylist() for c in ("source", "number", "db", "rows", "bytes"))
    keys = heads["key"]
    with ExitStack() as stack:
        files = [stack.enter_context(pa.OSFile(str(path))) for path, _ in sources]
        readers = [read_ipc(file) for file in files]
        pending: list[pa.RecordBatch] = []
        at, count = 0, heads.num_rows
        while at < count:
            db, loaded, loaded_bytes = dbs[at], 0, 0
            while at < count and dbs[at] == db and loaded < RANGE_ROWS and loaded_bytes < ROW_GROUP_BYTES:
                pending.append(readers[source[at]].get_batch(number[at]))
                loaded, loaded_bytes, at = loaded + rows[at], loaded_bytes + size[at], at + 1
            if at < count and dbs[at] == db:
                ready, pending = _split(pending, keys[at])
            else:
                ready, pending = pending, []
            if ready:
                yield _sort_range(ready)


def _sort_range(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Sort what comes of several sorted batches of one db. Empties the list: the caller holds rows only once."""
    whole = pa.concat_batches(batches)
    several = len(batches) > 1
    batches.clear()
    return whole.take(pc.array_sort_indices(whole["key"])) if several else whole


def _heads(sources: Sequence[_Source]) -> pa.Table:
    """All record batches of all sources, in the order in which a merge needs them."""
    tables = [
        pa.Table.from_batches([index])
        .append_column("source", pa.repeat(pa.scalar(i), index.num_rows))
        .append_column("number", pa.array(range(index.num_rows), pa.int64()))
        for i, (_, index) in enumerate(sources)
    ]
    if not tables:
        return pa.table({})
    heads = pa.concat_tables(tables).combine_chunks()
    return heads.take(pc.sort_indices(heads, sort_keys=[("db", "ascending"), ("key", "ascending")]))


def _split(
    batches: Iterable[pa.RecordBatch], bound: pa.BinaryScalar
) -> tuple[list[pa.RecordBatch], list[pa.RecordBatch]]:
    """Sorted batches cut at a key: what is smaller, what is not."""
    below, above = [], []
    for batch in batches:
        cut = pc.search_sorted(batch["key"], bound).as_py()
        if cut:
            below.append(batch.slice(0, cut))
        if cut < batch.num_rows:
            above.append(batch.slice(cut))
    return below, above


def _all_sorted(parts: Iterable[Part], scratch: Path) -> list[_Source]:
    """The parts as sources; one written before `sort` was turned on is sorted now."""
    return [
        (part.path, part.index)
        if part.index is not None
        else _write_source(scratch, (sorted_part(batch) for batch in _in_order([part])))
        for part in parts
    ]


def _few(sources: list[_Source], scratch: Path) -> list[_Source]:
    """At most FAN_IN sources: the first ones are merged into scratch files, no more of them than must be."""
    while len(sources) > FAN_IN:
        many = min(FAN_IN, len(sources) - FAN_IN + 1)
        sources = [*sources[many:], _write_source(scratch, _sorted(sources[:many]))]
    return sources


def _write_source(scratch: Path, batches: Iterable[pa.RecordBatch]) -> _Source:
    path, heads = scratch / uuid.uuid4().hex, []

    def cut() -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for piece in pieces(batch):
                heads.append(index_of([piece]))
                yield piece

    write_ipc(path, PART, cut())
    pa.default_memory_pool().release_unused()
    return path, pa.concat_batches(heads) if heads else index_of([])


@contextmanager
def _scratch(tmp: Path) -> Iterator[Path]:
    """A directory for scratch files; a killed merge leaves it to the staging tree's end."""
    path = tmp.with_name(f"{tmp.name}.scratch")
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
