"""What an assignment starts from, and when it must not start: against a real broker, without a worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pyarrow as pa
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from millstream.cluster import TP
from millstream.errors import ConfigError
from millstream.settings import Settings
from streams.engine.app import App
from streams.engine.plan import ForeignOffsetError, Plan, Position
from streams.engine.recovery import Loaded, LostPositionError, PositionOutOfRangeError, TopicRecreatedError
from streams.engine.registry import Entry
from tests.support.kafka import create_topic, produce, read_all
from tests.support.waiting import wait_until

KEYS = 200_000


class Group:
    """An app on a topic of 2 partitions, whose offsets the test sets by hand."""

    def __init__(self, kafka: str, directory: Path, name: str) -> None:
        self.app = App(Settings(bootstrap_servers=kafka, app_id=name, data_dir=directory))
        self.kafka, self.topic = kafka, f"{name}-in"
        self.table = self.app.Table("stock", default=int)
        table = self.table

        @self.app.agent(self.app.chunk_topic(self.topic, schema=pa.schema([("id", pa.int64())]), partitions=2))
        async def agent(chunks: Any) -> None:
            async for _ in chunks:
                table["k"] = 1

        self.changelog = table.changelog_topic_name
        self.app.cluster.create(self.app.declarations())
        self.tps = [TP(self.topic, 0), TP(self.topic, 1)]

    @property
    def topic_id(self) -> str:
        return self.app.cluster.topics([self.topic])[self.topic].id

    def load(self, *tps: TP) -> Loaded:
        wanted = tps or self.tps
        return self.app.recovery.load(
            wanted, {tp: list(self.app.tables_of(tp).values()) for tp in wanted}, lambda: True
        )

    def commit(self, tp: TP, offset: int, metadata: str | None) -> None:
        """As a reset tool or another program would."""
        consumer = ck.Consumer({"bootstrap.servers": self.kafka, "group.id": self.app.conf.id})
        at = ck.TopicPartition(*tp, offset, metadata=metadata) if metadata else ck.TopicPartition(*tp, offset)
        consumer.commit(offsets=[at], asynchronous=False)
        consumer.close()

    def ours(self, tp: TP, offset: int, plan: Plan | None = None) -> None:
        self.commit(tp, offset, Position(offset, self.topic_id, 1, plan).metadata)

    def register(self, tp: TP) -> None:
        output = self.app.registry.output(self.topic_id, Entry(self.topic, tp.partition, 1))
        produce(self.kafka, output.topic, [{"key": output.key, "value": output.value, "partition": output.partition}])

    def fill(self, n: int = 10) -> None:
        for p in (0, 1):
            produce(self.kafka, self.topic, [{"value": b"{}", "partition": p}] * n)

    def content(self) -> dict[bytes, bytes]:
        return dict(self.table.data._iteritems())


@pytest.fixture
def group(kafka: str, tmp_path: Path, unique: Any, admin: AdminClient) -> Iterator[Group]:
    group = Group(kafka, tmp_path, unique("load"))
    yield group
    group.app.close_table_partitions()
    for deleted in admin.delete_topics([group.topic, group.changelog, group.app.registry.topic]).values():
        deleted.exception(30)


def test_partitions_begin_once_resume_where_they_were_and_count_an_open_plan(group: Group) -> None:  # rule 6, hole i
    group.fill()
    loaded = group.load()
    assert loaded.positions == {tp: Position(0, group.topic_id, 1) for tp in group.tps}
    assert [f.output.key for f in loaded.fresh] == [f"{group.topic_id}/{p}".encode() for p in (0, 1)]
    group.ours(group.tps[0], 5)
    group.ours(group.tps[1], 5, Plan(5, 7, 3, 99, attempt=1, replays=2))
    loaded = group.load()
    assert loaded.positions == {
        group.tps[0]: Position(5, group.topic_id, 1),
        group.tps[1]: Position(5, group.topic_id, 1, Plan(5, 7, 3, 99, attempt=1, replays=3)),
    }
    assert loaded.fresh == []


def test_a_partition_on_record_without_an_offset_is_not_begun_again(group: Group) -> None:  # rule 6
    group.register(group.tps[0])
    with pytest.raises(LostPositionError, match=r"in-0 .*millstream reset --topic"):
        group.load()
    assert group.load(group.tps[1]).fresh, "the other one was never begun"


@pytest.mark.parametrize("metadata", [None, "ms2|x", "somebody else's"])
def test_an_offset_that_another_program_set_is_refused(group: Group, metadata: str | None) -> None:
    group.fill()
    group.commit(group.tps[0], 3, metadata)
    with pytest.raises(ForeignOffsetError, match="group offset 3 carries metadata"):
        group.load(group.tps[0])


def test_a_topic_made_anew_is_not_mistaken_for_the_old_one(group: Group, admin: AdminClient) -> None:  # hole b
    group.fill()
    group.ours(group.tps[0], 5)
    old = group.topic_id
    admin.delete_topics([group.topic], operation_timeout=30)[group.topic].result(30)
    wait_until(lambda: not group.app.cluster.topics([group.topic]), 20, "the topic to be gone")
    create_topic(admin, group.topic, 2)
    group.fill()
    # Deleting a topic deletes its group offsets too; a mirror or a restored backup brings them back.
    group.commit(group.tps[0], 5, Position(5, old, 1).metadata)
    with pytest.raises(TopicRecreatedError, match=f"belongs to {old}"):
        group.load(group.tps[0])


def test_a_topic_made_anew_begins_under_a_new_epoch(group: Group, admin: AdminClient) -> None:  # hole b
    group.register(group.tps[0])
    admin.delete_topics([group.topic], operation_timeout=30)[group.topic].result(30)
    wait_until(lambda: not group.app.cluster.topics([group.topic]), 20, "the topic to be gone")
    create_topic(admin, group.topic, 2)
    assert group.load(group.tps[0]).positions[group.tps[0]].epoch == 2


def test_records_lost_to_retention_are_never_skipped(group: Group, admin: AdminClient) -> None:  # hole c
    group.fill(10)
    group.ours(group.tps[0], 5, Plan(5, 9, 5, 1))
    assert group.load(group.tps[0]).positions
    admin.delete_records([ck.TopicPartition(*group.tps[0], 6)])
    wait_until(lambda: _start(group) == 6, 20, "the records to be deleted")
    with pytest.raises(
        PositionOutOfRangeError, match=r"position 5 with plan \.\.9 is outside the log, which holds 6\.\.9"
    ):
        group.load(group.tps[0])


@pytest.mark.parametrize(("offset", "plan"), [(11, None), (8, Plan(8, 10, 3, 1))])
def test_a_position_beyond_the_log_is_refused(group: Group, offset: int, plan: Plan | None) -> None:  # hole c
    group.fill(10)
    group.ours(group.tps[0], offset, plan)
    with pytest.raises(PositionOutOfRangeError, match=r"holds 0\.\.9"):
        group.load(group.tps[0])


def _start(group: Group) -> int:
    from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

    return group.app.cluster.offsets([group.tps[0]], OffsetSpec.earliest())[group.tps[0]]


def test_a_large_table_comes_back_in_seconds_with_its_tombstones(
    group: Group, capsys: pytest.CaptureFixture[str]
) -> None:  # T17, T18, hole k
    records = [{"key": b'"key-%d"' % i, "value": b"%d" % i, "partition": i % 2} for i in range(KEYS)]
    deleted = [{"key": r["key"], "value": None, "partition": r["partition"]} for r in records[::10]]
    produce(
        group.kafka,
        group.changelog,
        records + deleted,
        {"compression.type": "lz4", "queue.buffering.max.messages": 10**6},
    )
    expected = {r["key"]: r["value"] for i, r in enumerate(records) if i % 10}
    began = time.monotonic()
    group.load()
    seconds = time.monotonic() - began
    n = len(records) + len(deleted)
    with capsys.disabled():
        print(f"\n  restored {n:,} changelog records of {KEYS:,} keys in {seconds:.1f} s: {n / seconds:,.0f} records/s")
    assert group.content() == expected

    # Loaded again, nothing is read again; from where the store stands, only what is new.
    group.app.close_table_partitions()
    produce(group.kafka, group.changelog, [{"key": b'"key-1"', "value": None, "partition": 1}])
    group.load()
    del expected[b'"key-1"']
    assert group.content() == expected

    # A store of another changelog, or beyond its end, or too old for its tombstones: wiped and restored.
    store = group.table.data
    for stale in (
        {"topic_id": "another"},
        {"next_offset": 10**9},
    ):
        position = store.open_partition(0)
        store.apply(0, [(b'"stale"', b"1")], position._replace(**stale))
        assert b'"stale"' in group.content()
        group.load()
        assert group.content() == expected, stale
    # As old as it may be, a store at the changelog's end lacks nothing; its age counts anew from then on.
    group.app.recovery._retention[group.changelog] = 1e-6  # delete.retention.ms: everything on disk is too old
    before = store.open_partition(0)
    assert before is not None
    store.apply(0, [(b'"kept"', b"1")], before)
    group.load()
    after = store.open_partition(0)
    assert after is not None
    assert (after.next_offset, group.content()) == (before.next_offset, expected | {b'"kept"': b"1"})
    assert after.applied_at > before.applied_at
    # Behind it, tombstones may be gone already.
    produce(group.kafka, group.changelog, [{"key": b'"new"', "value": b"1", "partition": 0}])
    group.load()
    assert group.content() == expected | {b'"new"': b"1"}


def test_a_topic_that_does_not_fit_its_table_is_refused(group: Group, admin: AdminClient) -> None:  # hole d, T8, T9
    from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

    admin.create_partitions([NewPartitions(group.topic, 4)], operation_timeout=30)[group.topic].result(30)
    wait_until(lambda: group.app.cluster.topics([group.topic])[group.topic].partitions == 4, 20, "4 partitions")
    with pytest.raises(ConfigError, match=r"has 4 partitions, the changelog .* has 2"):
        group.load(group.tps[0])


def test_a_key_whose_tombstone_was_compacted_away_does_not_come_back(
    group: Group, admin: AdminClient
) -> None:  # hole k, with a log that is really compacted
    key = b'"gone"'
    quick = {"segment.ms": "50", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "50"}
    _configure(admin, ConfigResource(ConfigResource.Type.TOPIC, group.changelog, incremental_configs=_set(quick)))
    cleaner = {"log.cleaner.backoff.ms": "200"}  # the default of 15 s is only patience
    for broker in admin.list_topics(timeout=10).brokers:
        _configure(admin, ConfigResource(ConfigResource.Type.BROKER, str(broker), incremental_configs=_set(cleaner)))
    produce(group.kafka, group.changelog, [{"key": key, "value": b"1", "partition": p} for p in (0, 1)])
    group.load()
    store = group.table.data
    assert [store._db(p).get(key) for p in (0, 1)] == [b"1", b"1"]
    group.app.close_table_partitions()
    produce(group.kafka, group.changelog, [{"key": key, "value": None, "partition": p} for p in (0, 1)])

    def compacted() -> bool:
        produce(group.kafka, group.changelog, [{"key": b'"new"', "value": b"1", "partition": p} for p in (0, 1)])
        return all(m.key() != key for m in read_all(group.kafka, group.changelog))

    wait_until(compacted, 60, "the tombstones to be compacted away", every=0.2)
    # Without the rule the log alone brings the key back, for ever.
    group.app.recovery._retention[group.changelog] = 10**9
    group.load(group.tps[1])
    assert store._db(1).get(key) == b"1"
    group.app.recovery._retention.clear()
    group.load(group.tps[0])
    assert store._db(0).get(key) is None
    assert store._db(0).get(b'"new"') == b"1"


def _set(values: dict[str, str]) -> list[ConfigEntry]:
    return [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in values.items()]


def _configure(admin: AdminClient, resource: ConfigResource) -> None:
    admin.incremental_alter_configs([resource])[resource].result(30)
