"""Parts: one durable file per chunk, named by its range, holding the chunk's identity.

A part of a batch is an Arrow IPC file with lz4: 0.09 µs CPU per row to write and 0.07 to read, where Parquet takes
0.15 and more. It is read once, by the merge. A sorted part also holds the first key of each of its record batches.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from millstream.errors import IdentityMismatchError
from millstream.failpoints import declare, failpoint
from schemas.chunk import Chunk
from sinks.files import fsync, put_new
from sinks.parquet.config import BATCH_BYTES, BATCH_ROWS
from sinks.parquet.encode import PART, is_one_db, sorted_part, to_part

STEPS = {
    "before_write": declare("parquet.part.before_write", "a chunk's file is about to be written"),
    "after_write": declare("parquet.part.after_write", "a chunk's file is written, not yet fsynced"),
    "after_fsync": declare("parquet.part.after_fsync", "a chunk's file is durable under its temporary name"),
    "after_rename": declare("parquet.part.after_rename", "a chunk's file stands under its own name"),
}

CHUNK_KEY = b"millstream.chunk"
"""Where a file of a chunk, part or published, holds its identity."""
_INDEX_KEY = b"millstream.index"
_PART_NAME = re.compile(r"(\d{20})-(\d{20})\.arrow", re.ASCII)

INDEX = pa.schema([("db", pa.int64()), ("key", pa.binary()), ("rows", pa.int64()), ("bytes", pa.int64())])
"""Of each record batch of a sorted part: its one db, first key, size."""

_WRITE = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_READ = ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True, slots=True)
class Part:
    """A part as its file describes itself."""

    path: Path
    identity: str
    first: int
    last: int
    rows: int
    index: pa.RecordBatch | None
    """Schema INDEX; None if the rows are not sorted."""


def identity(chunk: Chunk) -> str:
    """What makes a chunk this chunk, as JSON. Attempt and generation are not part of it."""
    i, run = chunk.id, chunk.run
    what: dict[str, str | int] = {
        "topic": i.topic, "topic_id": i.topic_id, "epoch": i.epoch, "partition": i.partition,
        "first": i.first, "last": i.last, "crc": i.crc, "rows": chunk.rows,
    }  # fmt: skip
    if run is not None:
        what |= {"run": run.run_id, "batch": run.batch.key, "instance": run.instance}
    return json.dumps(what, ensure_ascii=False)


def part_path(directory: Path, chunk: Chunk) -> Path:
    """Path of a chunk's part in its run's directory."""
    return directory / f"{chunk.id.first:020d}-{chunk.id.last:020d}.arrow"


def put_chunk(path: Path, chunk: Chunk, sort: bool) -> bool:
    """Write a chunk's part, durably. False if one stands there already. Raises OSError, SinkError."""
    rows = to_part(chunk.records)
    metadata = {CHUNK_KEY: identity(chunk).encode()}
    batches = [rows]
    if sort:
        batches = list(pieces(sorted_part(rows), chunk.id.first))
        metadata[_INDEX_KEY] = index_of(batches).serialize().to_pybytes()
    schema = PART.with_metadata(metadata)
    return put_new(path, lambda tmp: write_ipc(tmp, schema, batches), reached)


def reached(step: str) -> None:
    """Step of `put_new`: pass the failpoint that stands for it."""
    failpoint(STEPS[step])


def accept(path: Path, found: str, expected: str) -> None:
    """Check that what stands under a chunk's name is the chunk, and make its name durable (another may have died)."""
    if found != expected:
        raise IdentityMismatchError(
            f"{path} holds another chunk: {found or 'no identity'} instead of {expected}. "
            "Was the topic made anew or cut off? Move the file away, or use `millstream reset`"
        )
    fsync(path.parent)


def read_part(path: Path) -> Part:
    """Describe a part. Raises FileNotFoundError; IdentityMismatchError if the file is no part."""
    name = _PART_NAME.fullmatch(path.name)
    try:
        with pa.OSFile(str(path)) as file:
            metadata = ipc.open_file(file, options=_READ).schema.metadata
        what = metadata[CHUNK_KEY].decode()
        index = metadata.get(_INDEX_KEY)
        if index is not None:
            index = ipc.read_record_batch(pa.py_buffer(index), INDEX)
        if name is None:
            raise KeyError(path.name)
        first, last = map(int, name.groups())
        return Part(path, what, first, last, json.loads(what)["rows"], index)
    except (pa.ArrowInvalid, ValueError, KeyError, TypeError) as e:
        raise IdentityMismatchError(f"{path} is damaged or no part of ours: {e!r}. Move it away") from e


def list_parts(directory: Path) -> list[Part]:
    """The parts of a run by first offset; unfinished files beside them do not count."""
    return [read_part(p) for p in sorted(directory.iterdir()) if _PART_NAME.fullmatch(p.name)]


def pieces(rows: pa.RecordBatch, seed: int = 0) -> Iterator[pa.RecordBatch]:
    """Cut sorted rows into record batches of one db each, small enough that a merge can hold one per part.

    The first one is shortened by the seed: if the batches of all parts began at like keys, a merge would have to take
    one of each at once, 200,000 rows instead of 30,000.
    """
    if not rows.num_rows:
        return
    step = max(1, min(BATCH_ROWS, BATCH_BYTES * rows.num_rows // rows.nbytes))
    lead = 1 + zlib.crc32(seed.to_bytes(8, "big")) % step
    ends = [rows.num_rows] if is_one_db(rows) else pc.run_end_encode(rows["db"]).run_ends.to_pylist()
    start = 0
    for end in ends:
        while start < end:
            count = min(lead, end - start)
            yield rows.slice(start, count)
            start, lead = start + count, step


def index_of(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """Schema INDEX of sorted pieces."""
    rows = [(b["db"][0].as_py(), b["key"][0].as_py(), b.num_rows, b.nbytes) for b in batches]
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), INDEX, strict=True)]
        if rows
        else [pa.array([], f.type) for f in INDEX],
        schema=INDEX,
    )


def write_ipc(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches into an IPC file."""
    with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, schema, options=_WRITE) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_ipc(file: pa.NativeFile) -> ipc.RecordBatchFileReader:
    """Reader of an open IPC file; it must not outlive the file."""
    return ipc.open_file(file, options=_READ)
