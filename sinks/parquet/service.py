"""The two Parquet sinks: files of ordinary streams, and batches of dump records."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from millstream.errors import IdentityMismatchError, RunVoidError, SinkError
from millstream.logs import get_logger
from schemas.batch import Batch, Run
from schemas.chunk import Chunk, Receipt
from schemas.names import instance_file
from sinks.base import InstanceRange
from sinks.files import Root, ensure_dir, naming, put_new, remove_temporary, sweep
from sinks.parquet import publish
from sinks.parquet.config import ParquetConfig
from sinks.parquet.encode import encodings
from sinks.parquet.parts import CHUNK_KEY, accept, identity, part_path, put_chunk, reached, read_part
from sinks.parquet.staging import Staging

log = get_logger(__name__)


class ParquetStream:
    """Each chunk one file: `<dir>/<topic>/<partition>/chunk-<chunk id>.parquet`, visible at once."""

    name = "parquet"

    def __init__(self, config: ParquetConfig, schema: pa.Schema | None = None) -> None:
        """With a schema its columns are written, cast to it; without one all columns as they come."""
        self.config, self.schema = config, schema
        self._root = Root(config.dir)

    async def open(self) -> None:
        """Make the directory. Raises SinkError if it cannot be written to."""
        await asyncio.to_thread(_open, self._root)

    async def close(self) -> None:
        """Nothing is held between calls."""

    async def have(self, chunk: Chunk) -> Receipt | None:
        """The receipt if the chunk's file stands. Raises IdentityMismatchError if it is another chunk's."""
        return await asyncio.to_thread(self._have, chunk)

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        """Write the chunk's file, fsynced, unless it stands."""
        return await asyncio.to_thread(self._write, chunk)

    def _path(self, chunk: Chunk) -> Path:
        topic = chunk.id.topic
        if topic in {"", ".", ".."} or "/" in topic or "\0" in topic:
            raise SinkError(f"topic {topic!r} cannot be a directory name")
        # "chunk-": a topic id may begin with "_", and readers of directories pass over names that do.
        return self.config.dir / topic / str(chunk.id.partition) / f"chunk-{chunk.id}.parquet"

    def _have(self, chunk: Chunk) -> Receipt | None:
        path = self._path(chunk)
        with self._root.standing(path):
            try:
                found = (pq.read_metadata(path).metadata or {}).get(CHUNK_KEY, b"").decode()
            except FileNotFoundError:
                return None
            except pa.ArrowInvalid as e:
                raise IdentityMismatchError(f"{path} is not a whole Parquet file: {e}. Move it away") from e
            accept(path, found, identity(chunk))
            return _receipt(path, chunk)

    def _write(self, chunk: Chunk) -> Receipt:
        path, table = self._path(chunk), self._table(chunk)
        table = table.replace_schema_metadata({CHUNK_KEY: identity(chunk)})
        how = self.config.codec | encodings(table)

        def write(tmp: Path) -> None:
            with pa.OSFile(str(tmp), "wb") as file:
                pq.write_table(table, file, row_group_size=max(1, table.num_rows), **how)

        with self._root.standing(path):
            ensure_dir(path.parent)
            new = put_new(path, write, reached)
            if chunk.replayed:
                remove_temporary(path)
            if new:
                return _receipt(path, chunk)
        receipt = self._have(chunk)
        if receipt is None:
            raise SinkError(f"{path} was there and is gone: who else writes here?")
        return receipt

    def _table(self, chunk: Chunk) -> pa.Table:
        if self.schema is None:
            return chunk.records
        missing = [name for name in self.schema.names if name not in chunk.records.column_names]
        if missing:
            raise SinkError(f"chunk {chunk.id} of {chunk.id.topic} has no field {', '.join(missing)}")
        try:
            return chunk.records.select(self.schema.names).cast(self.schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
            raise SinkError(f"chunk {chunk.id} of {chunk.id.topic} does not fit the sink's schema: {e}") from e


class ParquetBatches:
    """Dump records: parts in a staging tree, merged into one file per instance, published as a directory."""

    name = "parquet"

    def __init__(self, config: ParquetConfig) -> None:
        self.config = config
        self._root = Root(config.dir)
        self._merging = asyncio.Lock()
        """One merge at a time: bounds memory and open files of the worker, and keeps threads free for chunks."""

    async def open(self) -> None:
        """Make the directory, delete what a killed drop left. Raises SinkError if it cannot be written to."""
        await asyncio.to_thread(self._open)

    async def close(self) -> None:
        """Nothing is held between calls."""

    async def open_batch(self, run: Run) -> None:
        """Take the batch for our owner and make the run its instance's valid one.

        Raises BatchRefusedError (published, foreign `tmp_`, other owner, other batch in the same millisecond: RP-70,
        T29, T30) and SinkError (the run was voided by a later one).
        """
        await asyncio.to_thread(self._open_batch, run)

    async def have(self, chunk: Chunk) -> Receipt | None:
        """The receipt if the chunk's part stands. Raises IdentityMismatchError if it is another chunk's."""
        return await asyncio.to_thread(self._have, chunk)

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        """Write the chunk's part, fsynced, unless it stands. Raises SinkError if the run is not open (any more)."""
        return await asyncio.to_thread(self._write, chunk)

    async def finalize_instance(self, run: Run, where: InstanceRange) -> int:
        """Merge the run's parts. Raises SinkError if they do not cover the range, IdentityMismatchError."""
        async with self._merging:
            return await asyncio.to_thread(self._finalize_instance, run, where)

    async def finalize_batch(self, batch: Batch, runs: publish.Runs) -> None:
        """Publish the batch. Raises BatchRefusedError, SinkError, IdentityMismatchError; nothing is cleaned up then."""
        await asyncio.to_thread(self._finalize_batch, batch, runs)

    async def abort_run(self, run: Run) -> None:
        """Void the run and drop its parts. `tmp_` stays (RP-62), what is published too."""
        await asyncio.to_thread(self._abort_run, run)

    def _staging(self, batch: Batch) -> Staging:
        return Staging(self.config.dir, batch, self.config.owner)

    def _open(self) -> None:
        _open(self._root)
        trash = self.config.dir / ".staging"
        with naming(trash):
            ensure_dir(trash)
            sweep(trash)

    def _open_batch(self, run: Run) -> None:
        staging = self._staging(run.batch)
        with self._root.standing(staging.working, run.instance):
            staging.open()
            staging.open_run(run)

    def _have(self, chunk: Chunk) -> Receipt | None:
        run, path = self._part(chunk)
        with self._root.standing(path, run.instance):
            try:
                found = read_part(path).identity
            except FileNotFoundError:
                return None
            accept(path, found, identity(chunk))
            return _receipt(path, chunk)

    def _write(self, chunk: Chunk) -> Receipt:
        run, path = self._part(chunk)
        with self._root.standing(path, run.instance):
            try:
                receipt = _receipt(path, chunk) if put_chunk(path, chunk, self.config.sort) else None
            except FileNotFoundError as e:
                raise RunVoidError(
                    f"{path.parent}: instance {run.instance}, run {run.run_id} is not open: it was published, voided "
                    "by a later run, aborted, or never opened"
                ) from e
        receipt = receipt or self._have(chunk)
        if receipt is None:
            raise RunVoidError(f"{path}: instance {run.instance}, the part is gone: its run was voided or published")
        tell = {"path": str(path), "instance": run.instance}
        log.info("parquet_batch_written", description="part is durable", **tell, rows=chunk.rows)
        return receipt

    def _part(self, chunk: Chunk) -> tuple[Run, Path]:
        if chunk.run is None:
            raise SinkError(f"chunk {chunk.id} of {chunk.id.topic} belongs to no run: ParquetStream takes such")
        return chunk.run, part_path(self._staging(chunk.run.batch).parts(chunk.run), chunk)

    def _finalize_instance(self, run: Run, where: InstanceRange) -> int:
        staging = self._staging(run.batch)
        with self._root.standing(staging.working / f"{instance_file(run.instance)}.parquet", run.instance):
            return publish.finalize_instance(self.config, staging, run, where)

    def _finalize_batch(self, batch: Batch, runs: publish.Runs) -> None:
        staging = self._staging(batch)
        with self._root.standing(staging.working):
            publish.finalize_batch(staging, runs)

    def _abort_run(self, run: Run) -> None:
        staging = self._staging(run.batch)
        with self._root.standing(staging.working, run.instance):
            staging.abort_run(run)


def _open(root: Root) -> None:
    with naming(root.path):
        root.open()


def _receipt(path: Path, chunk: Chunk) -> Receipt:
    return Receipt("parquet", chunk.rows, path.stat().st_size, {"path": str(path)})
