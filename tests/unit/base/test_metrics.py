"""Metrics: declared once, explained, bounded."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase

import millstream
from millstream import metrics

DECLARED = [value for _, value in inspect.getmembers(metrics) if isinstance(value, MetricWrapperBase)]


def test_no_metric_has_a_label_that_grows_with_the_data() -> None:  # T23
    assert len(DECLARED) > 20
    for metric in DECLARED:
        assert set(metric._labelnames) <= metrics.LABELS, metric._name
    assert not metrics.LABELS & {"batch", "instance", "topic", "cluster", "partition", "run"}


def test_every_metric_carries_our_prefix_a_help_text_and_no_doubled_unit() -> None:
    for metric in DECLARED:
        assert re.fullmatch(r"millstream_[a-z_]+", metric._name)
        assert len(metric._documentation) > 10


def test_no_other_module_declares_a_metric() -> None:
    root = Path(millstream.__file__).parent.parent
    packages = ["millstream", "schemas", "sources", "sinks", "tables", "streams"]
    files = [path for package in packages for path in (root / package).rglob("*.py") if path.name != "metrics.py"]
    assert len(files) > 20
    declares = re.compile(r"from prometheus_client import .*\b(Counter|Gauge|Histogram|Summary|Info)\b")
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


def test_the_build_is_told() -> None:
    assert b'millstream_build_info{version="' in generate_latest()
