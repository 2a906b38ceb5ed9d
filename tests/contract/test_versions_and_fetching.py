"""Internals of aiokafka that the engine leans on. A failure says what broke and where it is used."""

from __future__ import annotations

import inspect
import pathlib
import re
import textwrap
from importlib.metadata import version
from typing import Any

import aiokafka
import pytest
from aiokafka import conn
from aiokafka.consumer import fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from streams.engine import fetch

PINNED = {"faust-streaming": "0.15.3", "aiokafka": "0.14.0", "confluent-kafka": "2.16.1", "rocksdict": "0.3.29"}


@pytest.mark.parametrize("package", PINNED)
def test_the_versions_are_those_whose_internals_were_read(package: str) -> None:
    assert version(package) == PINNED[package], (
        f"{package} {version(package)} is installed, {PINNED[package]} is what streams/engine was written against: run "
        "tests/contract and tests/integration/engine with the new one, then change the pin here and in pyproject.toml"
    )


def built(first: int, values: list[bytes], *, transactional: bool = False, control: bool = False) -> bytes:
    """A record batch as a broker returns it."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=int(transactional), producer_id=7, producer_epoch=0,
        base_sequence=0, batch_size=1 << 20,
    )  # fmt: skip
    for i, value in enumerate(values):
        assert builder.append(i, 1000 + i, b"k", value, [("h", b"v")]) is not None
    raw = bytearray(builder.build())
    raw[0:8] = first.to_bytes(8, "big")  # the broker sets the base offset, which no CRC covers
    return bytes(raw)


def unpack(raw: bytes, position: int, aborted: Any = (), *, whole: bool = True) -> tuple[Any, list[Any]]:
    """What aiokafka's PartitionRecords makes of a fetch answer, with our subclass if `whole`."""
    fetch.install()
    token = fetch.WHOLE_BATCHES.set(whole)
    try:
        records = fetcher.PartitionRecords(
            TopicPartition("t", 0), MemoryRecords(raw), list(aborted), position, None, None, True,
            fetcher.READ_COMMITTED,
        )  # fmt: skip
    finally:
        fetch.WHOLE_BATCHES.reset(token)
    return records, list(records)


def test_the_fetcher_makes_partition_records_by_their_global_name() -> None:
    source = inspect.getsource(fetcher.Fetcher)
    assert "PartitionRecords(" in source, (
        "aiokafka's Fetcher no longer calls the module's PartitionRecords: streams/engine/fetch.py install() replaces "
        "that name and would have no effect (whole batches would not be fetched)"
    )
    assert inspect.getsource(fetcher).count("PartitionRecords(") <= 3


def test_partition_records_takes_what_our_subclass_passes_on_and_has_what_it_reads() -> None:
    names = list(inspect.signature(fetcher.PartitionRecords.__mro__[-2].__init__).parameters)
    assert names == [
        "self", "tp", "records", "aborted_transactions", "fetch_offset", "key_deserializer", "value_deserializer",
        "check_crcs", "isolation_level",
    ], f"PartitionRecords.__init__ changed to {names}: streams/engine/fetch.py"  # fmt: skip
    records, _ = unpack(built(0, [b"a"]), 0, whole=False)
    for name in ("_records", "_tp", "_check_crcs", "_isolation_level", "_aborted_producers", "next_fetch_offset"):
        assert hasattr(records, name), f"PartitionRecords.{name} is gone: streams/engine/fetch.py reads it"


def test_without_our_switch_aiokafka_gives_records_as_always() -> None:
    _, found = unpack(built(5, [b"a", b"b"]), 5, whole=False)
    assert [(type(r), r.offset) for r in found] == [(aiokafka.ConsumerRecord, 5), (aiokafka.ConsumerRecord, 6)]


def test_whole_batches_come_with_offsets_crc_and_records() -> None:
    raw = built(5, [b"a", b"bb"]) + built(7, [b"c"])
    records, (first, second) = unpack(raw, 5)
    assert (first.first, first.last, first.nbytes, second.first, second.last) == (5, 6, 3, 7, 7)
    assert first.crc != second.crc
    record = first.records[1]
    assert (record.offset, record.timestamp, record.key, record.value) == (6, 1001, b"k", b"bb"), (
        "DefaultRecord lost a field that streams/engine/task.py and schemas/codecs.py read"
    )
    assert list(record.headers) == [("h", b"v")]
    assert (record.timestamp_type, record.checksum) == (0, None)
    assert records.next_fetch_offset == 8, "the next fetch would read again, or skip: streams/engine/fetch.py"


def test_a_position_inside_a_batch_gives_the_rest_of_it() -> None:  # hole o
    _, (found,) = unpack(built(5, [b"a", b"b", b"c"]), 6)
    assert (found.first, found.last, [r.offset for r in found.records]) == (6, 7, [6, 7])


def test_batches_of_aborted_transactions_are_skipped_and_their_offsets_belong_to_the_next() -> None:
    raw = built(0, [b"x", b"y"], transactional=True) + built(2, [b"a"])
    records, (found,) = unpack(raw, 0, aborted=[(7, 0)])
    assert (found.first, found.last, [r.value for r in found.records]) == (2, 2, [b"a"])
    assert records.next_fetch_offset == 3


def test_a_batch_that_was_changed_on_its_way_is_noticed() -> None:
    raw = bytearray(built(0, [b"value"]))
    raw[-3] ^= 1
    with pytest.raises(fetcher.Errors.CorruptRecordException):
        unpack(bytes(raw), 0)


def test_connections_read_in_the_two_ways_that_our_reader_knows() -> None:
    source = inspect.getsource(conn.AIOKafkaConnection)
    assert set(re.findall(r"reader\.(\w+)\(", source)) == {"readexactly", "at_eof"}, (
        "aiokafka reads its socket in another way: streams/engine/frames.py FrameReader knows those two only"
    )
    made = ["asyncio.StreamReader(limit=READER_LIMIT, loop=loop)", "AIOKafkaProtocol(self._closed_fut, reader, loop="]
    assert all(m in source for m in made), "streams/engine/frames.py takes the reader over in the protocol's __init__"


def test_a_record_batch_has_the_fields_that_say_what_it_is() -> None:
    batch = DefaultRecordBatch(built(5, [b"a"]))
    for name in ("base_offset", "next_offset", "crc", "producer_id", "is_control_batch", "is_transactional"):
        assert hasattr(batch, name), f"DefaultRecordBatch.{name} is gone: streams/engine/fetch.py reads it"
    assert (batch.base_offset, batch.next_offset, batch.validate_crc()) == (5, 6, True)


def test_the_coordinator_says_generation_and_member_of_the_joined_group() -> None:
    source = inspect.getsource(GroupCoordinator)
    for name in ("self.generation", "self.member_id"):
        assert name in source, f"GroupCoordinator has no {name}: streams/engine/membership.py notes it for every commit"


async def test_a_consumer_reads_new_topics_that_match_its_pattern(kafka: str, make_topic: Any, unique: Any) -> None:
    """T12. Also: generation and member id are those of the group."""
    prefix = unique("pattern")
    consumer = aiokafka.AIOKafkaConsumer(
        bootstrap_servers=kafka, group_id=prefix, metadata_max_age_ms=300, auto_offset_reset="earliest",
        enable_auto_commit=False,
    )  # fmt: skip
    consumer.subscribe(pattern=rf"(?:{prefix}-.*)\Z")
    await consumer.start()
    try:
        assert (consumer._coordinator.generation, consumer._coordinator.member_id) != (-1, ""), (
            "not the generation of a joined member: every commit of streams/engine/loading.py would be unfenced"
        )
        name = make_topic(prefix)
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka)
        await producer.start()
        await producer.send_and_wait(name, b"new")
        await producer.stop()
        record = await consumer.getone()
        assert (record.topic, record.value) == (name, b"new")
    finally:
        await consumer.stop()


def test_this_folder_says_where_things_are_used() -> None:
    """Every module of the engine that reaches into a library's internals is named in these tests."""
    here = pathlib.Path(__file__).parent
    text = "".join(p.read_text() for p in here.glob("test_*.py"))
    for module in (
        "fetch",
        "consumer",
        "membership",
        "loading",
        "assignor",
        "task",
        "producer",
        "transaction",
        "transport",
        "app",
    ):
        assert f"streams/engine/{module}.py" in text, textwrap.dedent(f"no contract test names {module}.py")
