"""Which agents read what, and which partitions belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from millstream.cluster import TP
from millstream.errors import ConfigError
from millstream.settings import Settings
from streams.engine.app import App
from streams.engine.topology import Source, Topology, tables_in

SCHEMA = pa.schema([("id", pa.int64())])


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(Settings(app_id="topology", data_dir=tmp_path, namespace="ns."))


def source(
    *names: str, pattern: str | None = None, partitions: int | None = None, tables: Iterable[str] = ()
) -> Source:
    return Source(names, re.compile(pattern) if pattern else None, None, partitions, tables=set(tables))


def test_partitions_of_topics_without_tables_are_tasks_of_their_own() -> None:  # T11
    topology = Topology([source("a", "b", partitions=2)])
    keys = {topology.task_of(TP(t, p)) for t in "ab" for p in range(2)}
    assert len(keys) == 4
    assert len({k.family for k in keys if k}) == 1


def test_topics_that_share_a_table_are_one_task_per_partition() -> None:  # hole d
    topology = Topology([source("a", tables=["t"]), source("b", tables=["t", "u"]), source("c", tables=["u"])])
    assert topology.task_of(TP("a", 1)) == topology.task_of(TP("b", 1)) == topology.task_of(TP("c", 1))
    assert topology.task_of(TP("a", 0)) != topology.task_of(TP("a", 1))
    assert {s.tables == {"t", "u"} for s in topology.sources} == {True}


def test_topics_of_tables_that_have_nothing_in_common_are_apart() -> None:
    topology = Topology([source("a", tables=["t"]), source("b", tables=["u"])])
    assert topology.task_of(TP("a", 0)) != topology.task_of(TP("b", 0))


def test_a_shared_table_refuses_topics_of_other_partition_counts() -> None:  # hole d, T8
    with pytest.raises(ConfigError, match=r"a \(4 partitions\) and b \(8\) share table 't'"):
        Topology([source("a", partitions=4, tables=["t"]), source("b", partitions=8, tables=["t"])])


@pytest.mark.parametrize("flip", [False, True])
def test_a_changelog_has_the_partitions_of_whichever_source_declares_them(flip: bool) -> None:
    sources = [source("a", partitions=4, tables=["t"]), source("b", tables=["t"])]
    assert Topology(sources[::-1] if flip else sources).table_partitions() == {"t": 4}


def test_a_pattern_matches_whole_names_and_new_topics() -> None:  # T12
    topology = Topology([source(pattern=r"redis\..*"), source("plain.topic")])
    assert topology.task_of(TP("redis.new", 0))
    assert topology.task_of(TP("xredis.new", 0)) is None
    subscription = topology.subscription
    for name, wanted in [("redis.1", True), ("plain.topic", True), ("plain-topic", False), ("plain.topic.dlq", False)]:
        assert bool(subscription.match(name)) is wanted, name
    assert not subscription.match("plain.topic\n")


def test_a_pattern_does_not_read_its_own_dead_letters() -> None:
    topology = Topology([source(pattern=r"redis\..*"), source("other.dlq")])
    for name, wanted in [("redis.1", True), ("redis.1.dlq", False), ("redis.dlq.1", True), ("other.dlq", True)]:
        assert bool(topology.subscription.match(name)) is wanted, name
        assert bool(topology.task_of(TP(name, 0))) is wanted, name


def test_nothing_to_read_subscribes_to_nothing() -> None:
    assert not Topology([]).subscription.match("")


def test_tables_named_in_a_function_its_closure_and_its_nested_functions_are_found(app: App) -> None:
    stock, seen, unused = (app.Table(n) for n in ("stock", "seen", "unused"))
    windowed = app.Table("windowed").tumbling(10)

    async def agent(chunks: Any) -> None:
        async for chunk in chunks:
            stock["k"] = chunk

            def remember() -> None:
                seen["k"] = windowed

            remember()

    assert tables_in(agent) == {"stock", "seen", "windowed"}
    assert unused.name not in tables_in(agent)


def test_a_table_that_is_declared_after_the_agent_is_found_as_well(app: App) -> None:
    async def agent(chunks: Any) -> None:
        async for _ in chunks:
            late["k"] = 1

    assert tables_in(agent) == set()
    late = app.Table("late")
    assert tables_in(agent) == {"late"}


def test_declared_tables_count_instead_of_those_in_the_body(app: App) -> None:
    stock, other = app.Table("stock"), app.Table("other")

    @app.agent(app.chunk_topic("a", schema=SCHEMA), tables=[other])
    async def agent(chunks: Any) -> None:
        async for _ in chunks:
            stock["k"] = 1

    assert app.topology.sources[0].tables == {"other"}
    assert {t.changelog for t in app.tables_of(TP("ns.a", 0)).values()} == {"ns.topology-other-changelog"}


def test_topics_carry_the_namespace(app: App) -> None:
    @app.agent(app.chunk_topic(pattern=r"in\..*", schema=SCHEMA))
    async def by_pattern(chunks: Any) -> None: ...

    @app.agent(app.topic("plain"))
    async def by_name(events: Any) -> None: ...

    assert app.topology.task_of(TP("ns.in.x", 0))
    assert app.topology.task_of(TP("ns.plain", 0))
    assert app.topology.task_of(TP("in.x", 0)) is None


def test_chunk_topics_can_be_listed_by_name_and_by_pattern(app: App) -> None:  # `faust agents`
    names = [
        app.chunk_topic("a", schema=SCHEMA),
        app.chunk_topic("a", "b", schema=SCHEMA),
        app.chunk_topic(pattern=r"in\..*", schema=SCHEMA),
    ]
    assert [t.get_topic_name() for t in names] == ["ns.a", "ns.a,ns.b", r"ns\.in\..*"]


def test_one_topic_is_read_by_chunks_or_by_events_not_both(app: App) -> None:
    @app.agent(app.chunk_topic("a", schema=SCHEMA))
    async def chunks(chunks: Any) -> None: ...

    @app.agent(app.topic("a"))
    async def events(events: Any) -> None: ...

    with pytest.raises(ConfigError, match="choose one"):
        _ = app.topology


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ("a",)}, "give a schema or a codec"),
        ({"names": (), "schema": SCHEMA}, "either names or a pattern"),
        ({"names": ("a",), "pattern": "b", "schema": SCHEMA}, "either names or a pattern"),
        ({"names": ("a",), "schema": SCHEMA, "payload": "xml"}, "json, msgpack, arrow"),
    ],
)
def test_a_chunk_topic_declared_wrongly_is_refused(app: App, arguments: dict[str, Any], message: str) -> None:
    names = arguments.pop("names")
    with pytest.raises(ConfigError, match=message):
        app.chunk_topic(*names, **arguments)


def test_declared_topics_have_their_partitions_and_changelogs_those_of_their_sources(app: App) -> None:
    stock = app.Table("stock")

    @app.agent(app.chunk_topic("a", schema=SCHEMA, partitions=3))
    async def agent(chunks: Any) -> None:
        async for _ in chunks:
            stock["k"] = 1

    app.topic("out", partitions=5)
    declared = {t.topic: t.num_partitions for t in app.declarations()}
    assert declared == {"ns.topology-registry": 1, "ns.a": 3, "ns.out": 5, "ns.topology-stock-changelog": 3}
