"""One file per chunk of an ordinary stream."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millstream import failpoints
from millstream.errors import IdentityMismatchError, RetryableSinkError, SinkError
from schemas.chunk import Chunk, ChunkId
from sinks.base import Sink
from sinks.parquet import ParquetConfig, ParquetStream
from sinks.parquet.parts import STEPS

ID = ChunkId("views", "AbC", 0, 3, 10, 19, crc=7)
DATA = pa.table({"user": ["a", "b"], "n": [1, 2], "_offset": [10, 11]})
CHUNK = Chunk(ID, DATA)


@pytest.fixture
def sink(tmp_path: Path) -> ParquetStream:
    return ParquetStream(ParquetConfig(tmp_path / "out"))


@pytest.fixture(autouse=True)
def _disarm():
    yield
    failpoints.arm("")


async def test_a_chunk_becomes_one_file_under_its_identity(sink: ParquetStream) -> None:
    kept: Sink = sink
    await kept.open()
    assert await sink.have(CHUNK) is None
    receipt = await sink.write_chunk(CHUNK)
    path = sink.config.dir / "views" / "3" / f"chunk-{ID}.parquet"
    assert receipt.rows == 2
    assert receipt.bytes == path.stat().st_size
    assert [p for p in sink.config.dir.rglob("*") if p.is_file()] == [path]
    assert pq.read_table(path, partitioning=None).equals(DATA)
    assert await sink.have(CHUNK) == receipt
    await sink.close()


@pytest.mark.parametrize("topic_id", ["_ijPT8wdSoy4ARpbO95Oyg", "-jPT8wdSoy4ARpbO95Oygg"])
async def test_a_reader_of_the_directory_sees_every_chunk_whatever_the_topic_id(
    sink: ParquetStream, topic_id: str
) -> None:
    # pyarrow and Spark pass over names that begin with "_" or ".": Kafka's ids may begin with "_"
    chunk = replace(CHUNK, id=replace(ID, topic_id=topic_id))
    await sink.write_chunk(chunk)
    (sink.config.dir / "views" / "3" / ".half.tmp").write_bytes(b"not Parquet")  # as a killed writer leaves it
    assert pq.read_table(sink.config.dir / "views", partitioning=None).num_rows == chunk.rows


async def test_the_same_chunk_again_and_by_rivals_gives_the_same_file(sink: ParquetStream) -> None:  # rule 8
    receipts = await asyncio.gather(*(sink.write_chunk(CHUNK) for _ in range(5)))
    assert {r.rows for r in receipts} == {2}
    assert len([p for p in sink.config.dir.rglob("*") if p.is_file()]) == 1


async def test_attempt_and_generation_are_not_part_of_the_identity(sink: ParquetStream) -> None:
    await sink.write_chunk(CHUNK)
    assert await sink.have(CHUNK.at_attempt(4)) is not None


@pytest.mark.parametrize("other", [{"crc": 8}, {"topic": "views"}])
async def test_another_chunk_under_the_same_name_stops(sink: ParquetStream, other: dict) -> None:  # hole b
    await sink.write_chunk(CHUNK)
    fields = {f: getattr(ID, f) for f in ("topic", "topic_id", "epoch", "partition", "first", "last", "crc")}
    rows = DATA if "crc" in other else DATA.slice(1)
    changed = Chunk(ChunkId(**fields | other), rows)
    for verb in (sink.have, sink.write_chunk):
        with pytest.raises(IdentityMismatchError, match="holds another chunk"):
            await verb(changed)


@pytest.mark.parametrize("content", [b"", b"PAR1 half a file"])
def test_a_file_that_is_not_whole_stops(sink: ParquetStream, content: bytes) -> None:
    receipt = asyncio.run(sink.write_chunk(CHUNK))
    Path(receipt.details["path"]).write_bytes(content)
    with pytest.raises(IdentityMismatchError, match="not a whole Parquet file"):
        asyncio.run(sink.have(CHUNK))


async def test_a_schema_picks_and_casts_the_columns(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int32()), ("user", pa.utf8())])
    receipt = await ParquetStream(ParquetConfig(tmp_path, "snappy"), schema).write_chunk(CHUNK)
    file = pq.ParquetFile(receipt.details["path"])
    assert file.schema_arrow.remove_metadata() == schema
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"


async def test_rows_that_do_not_fit_the_schema_name_the_chunk(tmp_path: Path) -> None:
    for field, says in ((("gone", pa.utf8()), "has no field gone"), (("user", pa.int64()), "does not fit")):
        with pytest.raises(SinkError, match=rf"chunk {ID} of views.*{says}"):
            await ParquetStream(ParquetConfig(tmp_path), pa.schema([field])).write_chunk(CHUNK)


@pytest.mark.parametrize("topic", ["", "..", "a/b"])
async def test_a_topic_that_is_no_directory_name_is_refused(sink: ParquetStream, topic: str) -> None:  # T15
    with pytest.raises(SinkError, match="directory name"):
        await sink.write_chunk(Chunk(ChunkId(topic, "AbC", 0, 0, 0, 1), DATA))


@pytest.mark.parametrize("step", STEPS.values())
async def test_a_full_disk_is_not_retried_and_leaves_its_file_for_diagnosis(sink: ParquetStream, step: str) -> None:
    failpoints.arm(f"{step}=enospc")  # T43, RP-62
    with pytest.raises(SinkError, match=rf"{sink.config.dir}.*No space left"):
        await sink.write_chunk(CHUNK)
    failpoints.arm("")
    assert (await sink.write_chunk(CHUNK)).rows == 2
    left = [p for p in sink.config.dir.rglob("*.tmp") if p.is_file()]
    assert len(left) == (0 if step.endswith("before_write") else 1)


async def test_an_input_output_error_may_be_retried(sink: ParquetStream) -> None:
    failpoints.arm("parquet.part.after_write=eio")
    with pytest.raises(RetryableSinkError, match="Input/output error"):
        await sink.write_chunk(CHUNK)


async def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:  # RP-63
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(SinkError, match=rf"{tmp_path / 'out'}.*[Nn]ot a directory"):
        await ParquetStream(ParquetConfig(tmp_path / "out")).open()
