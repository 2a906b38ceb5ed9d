"""Metrics: declared once, explained, bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest

import millstream
from millstream import metrics

DECLARED = list(metrics.declared().values())


def test_no_metric_has_a_label_that_grows_with_the_data() -> None:  # T23
    assert len(DECLARED) > 20
    for metric in DECLARED:
        assert set(metric._labelnames) <= metrics.LABELS, metric._name
    assert not metrics.LABELS & {"batch", "instance", "topic", "cluster", "run"}
    assert {m._name for m in DECLARED if "partition" in m._labelnames} == {m._name for m in metrics.PER_PARTITION}


def test_every_metric_carries_our_prefix_a_help_text_and_no_doubled_unit() -> None:
    for metric in DECLARED:
        assert re.fullmatch(r"millstream_[a-z_]+", metric._name)
        assert len(metric._documentation) > 10
        assert len({m._name for m in DECLARED}) == len(DECLARED)


def test_no_other_module_declares_a_metric() -> None:
    root = Path(millstream.__file__).parent.parent
    packages = ["millstream", "schemas", "sources", "sinks", "tables", "streams"]
    files = [path for package in packages for path in (root / package).rglob("*.py") if path.name != "metrics.py"]
    assert len(files) > 20
    declares = re.compile(r"\b(Counter|Gauge|Histogram|Summary|Info)\(\s*f?\"")
    assert [str(path) for path in files if declares.search(path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("topic", "namespace", "label"),
    [
        ("rdb.records.prod.10.0.0.1-6379", "", "rdb.records"),
        ("rdb.records", "", "rdb.records"),
        ("one-shot-1.rdb.records.prod.x", "one-shot-1.", "rdb.records"),
        ("rdb.batches", "", "rdb.batches"),
        ("orders", "", "orders"),
    ],
)
def test_a_topic_per_instance_is_labelled_by_its_stream(topic: str, namespace: str, label: str) -> None:  # T23
    assert metrics.stream_label(topic, namespace) == label


@pytest.fixture
def patterns() -> Iterator[None]:
    yield
    metrics.streams_by_pattern([])


@pytest.mark.parametrize(
    ("pattern", "topic", "label"),
    [
        (r"sensors\.[a-z]+", "sensors.kitchen", "sensors"),
        (r"orders-(eu|us)", "orders-eu", "orders"),
        (r"ab?\..*", "ab.x", "a"),
        (r"one\..*|two\..*", "two.x", r"one\..*|two\..*"),
        (".*", "anything", ".*"),
        (r"live\.rdb\.records\.([a-z]+|x)\.[0-9]+", "live.rdb.records.prod.1", "live.rdb.records"),
    ],
)
@pytest.mark.usefixtures("patterns")
def test_all_topics_of_a_pattern_are_one_stream(pattern: str, topic: str, label: str) -> None:  # T23
    metrics.streams_by_pattern([re.compile(pattern)])
    assert metrics.stream_label(topic) == label
    assert metrics.stream_label("elsewhere") == ("elsewhere" if pattern != ".*" else ".*")


def test_the_build_is_told() -> None:
    assert b'millstream_build_info{version="' in generate_latest()
