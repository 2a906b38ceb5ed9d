"""Names of files and topics: legal, collision-free, never a way out (T15, RP-13, RP-17, RP-71)."""

import re
import unicodedata
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from millstream.errors import ConfigError
from schemas import names

HARD = [
    "../../etc", "../x:1", "[fe80::1%eth0]:6379", "/tmp/redis.sock", "生产集群", "a\x00b", ".", "..", "con", "~",
    "a b", "A:1", "a:1\n", "a", "a.", "x.tmp", "x.parquet", "é", "e\u0301", "İ", "a_b", "a.b", "x" * 300, "中" * 99,
    "10.0.0.1-6379", "..:1", ".staging", "tmp_x", "0123456789abcdef.a:1", "esc_0123456789abcdef", "\u2028",
]  # fmt: skip
plain = st.from_regex(r"[a-z0-9.]{1,20}:[0-9]{1,5}", fullmatch=True)
simple = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
name = st.one_of(st.sampled_from(HARD), plain, simple, anything)
pairs = st.tuples(name, name)


def metric(topic: str) -> str:
    """Kafka's name of a topic in its metrics; two topics that share it are refused by the broker."""
    return topic.replace(".", "_").lower()


def test_a_host_and_port_only_swaps_the_colon_for_a_dash() -> None:  # RP-13, RP-17
    assert names.instance_file("127.0.0.1:6379") == "127.0.0.1-6379"


def test_every_other_instance_is_escaped_and_gets_a_tilde_and_a_hash_of_the_original() -> None:  # RP-71
    expected = sha256(b"/tmp/Redis.sock").hexdigest()[:16]
    assert names.instance_file("/tmp/Redis.sock") == f"tmp-redis-sock~{expected}"


@pytest.mark.parametrize("cluster", ["prod", "a", "prod-1.eu_west", "0" * 100])
def test_a_plain_cluster_keeps_its_name_as_directory(cluster: str) -> None:
    assert names.cluster_dir(cluster) == cluster


@pytest.mark.parametrize("cluster", ["a.", "x.tmp", "x.parquet", "Prod", "-a", "0" * 101])
def test_a_cluster_name_that_could_do_harm_is_escaped(cluster: str) -> None:
    assert "~" in names.cluster_dir(cluster)


@given(name)
@example("../../etc")
def test_a_name_never_leaves_its_directory(text: str) -> None:  # T15
    for part in (names.instance_file(text), names.cluster_dir(text)):
        assert re.fullmatch(r"[a-z0-9._~-]{1,200}", part)
        root = Path("/data")
        assert (root / f"{part}.parquet").resolve().parent == root
    directory = names.cluster_dir(text)
    assert not directory.startswith(".")
    assert directory[-1] != "."


@given(st.lists(name, min_size=2, unique=True))
@example(["é", unicodedata.normalize("NFD", "é"), "É", "e", "E"])
@example(["10.0.0.1:6379", "10.0.0.1-6379", "10.0.0.1-6379~0123456789abcdef"])
def test_no_two_names_share_a_file_also_where_case_is_ignored(texts: list[str]) -> None:  # T15
    for function in (names.instance_file, names.cluster_dir):
        assert len({function(t).lower() for t in texts}) == len(texts)


@given(st.lists(pairs, min_size=2, unique=True))
@example([("a.b", "c:1"), ("a", "b.c:1"), ("a_b", "c:1"), ("A", "b.c:1"), ("a", "b-c:1")])
@example([("Esc", "10.0.0.1:1"), ("esc", sha256(b"Esc").hexdigest()[:16] + ".10.0.0.1:1")])
def test_no_two_instances_share_a_topic_or_a_metric_name(both: list[tuple[str, str]]) -> None:  # T15
    topics = [names.records_topic(*p) for p in both]
    topics += [names.dlq_topic(t) for t in topics]
    topics += [names.shared_records_topic(), names.batches_topic(), names.dlq_topic(names.shared_records_topic())]
    assert len({metric(t) for t in topics}) == len(topics)


@given(pairs, st.from_regex(r"([a-z0-9-]{1,64}\.?)?", fullmatch=True))
@example(("x" * 300, "中" * 300), "n" * 64 + ".")
def test_a_topic_is_legal_for_kafka_with_namespace_and_dead_letter_suffix(p: tuple[str, str], namespace: str) -> None:
    topic = names.records_topic(*p, namespace)
    for t in (topic, names.dlq_topic(topic)):
        assert re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", t)
    cluster, _, instance = topic.removeprefix(f"{namespace}rdb.records.").partition(".")
    assert "." not in cluster
    assert instance


@given(pairs, st.sampled_from(["", "a", "rdb", "rdb.", "x-", "x."]), st.sampled_from(["", "a", "rdb", "rdb.", "x."]))
def test_the_pattern_matches_the_instance_topics_of_its_namespace_and_nothing_else(
    p: tuple[str, str], namespace: str, other: str
) -> None:
    topic, pattern = names.records_topic(*p, namespace), re.compile(names.records_pattern(namespace))
    assert pattern.match(topic)
    assert not pattern.match(names.dlq_topic(topic))
    assert not pattern.match(names.shared_records_topic(namespace))
    assert not pattern.match(names.batches_topic(namespace))
    assert bool(pattern.match(names.records_topic(*p, other))) == (namespace == other)


def test_a_plain_topic_can_be_read() -> None:
    assert names.records_topic("prod", "10.0.0.1:6379") == "rdb.records.prod.10.0.0.1-6379"
    assert names.records_topic("prod", "10.0.0.1:6379", "demo-") == "demo-rdb.records.prod.10.0.0.1-6379"
    assert names.shared_records_topic() == "rdb.records"
    assert names.batches_topic() == "rdb.batches"


@pytest.mark.parametrize("function", [names.instance_file, names.cluster_dir])
@pytest.mark.parametrize(("bad", "says"), [("", "empty"), ("a\ud800", "not valid UTF-8 at character 1")])
def test_an_empty_name_and_a_surrogate_are_refused_with_a_reason(function, bad: str, says: str) -> None:  # T15
    with pytest.raises(ConfigError, match=says):
        function(bad)
    with pytest.raises(ConfigError, match=says):
        names.records_topic("c", bad)


@pytest.mark.parametrize("namespace", ["a.b", "a_", "A", "a/", "n" * 65, "..", "."])
def test_a_namespace_that_could_make_topics_collide_is_refused(namespace: str) -> None:
    with pytest.raises(ConfigError, match="namespace"):
        names.batches_topic(namespace)


def test_a_topic_too_long_for_a_dead_letter_topic_is_refused() -> None:
    assert len(names.dlq_topic("t" * 245)) == 249
    with pytest.raises(ConfigError, match="245"):
        names.dlq_topic("t" * 246)
