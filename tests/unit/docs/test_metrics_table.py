"""docs/metrics.md has every metric as it is declared, and every name of the systems before."""

from __future__ import annotations

import re

import pytest

from millstream import metrics
from tests.unit.docs import metrics_table

BEFORE = """
rdbinsight_build_info rdbinsight_records_parsed_total outbox_publish_success_total outbox_publish_failure_total
outbox_publish_retry_total outbox_publish_latency_ms outbox_publish_lag_ms outbox_backlog outbox_pending_count
outbox_max_delivery_attempts outbox.aggregate_type outbox.event_type outbox.result
projection_apply_success_total projection_apply_failure_total projection_event_lag_ms
projection_process_error_total projection_process_latency projection_version_lag dlq_message_count
pubsub_publish_total pubsub_publish_latency_ms pubsub_publish_payload_bytes pubsub_receive_total
pubsub_handler_duration_ms pubsub_ack_latency_ms pubsub_delivery_attempt_total records_processed bytes_processed
processing_time error_count success_rate
"""
"""facts.md 2.1 to 2.3, and the alerts of RO-95."""


def test_the_tables_are_those_of_the_declarations() -> None:
    assert metrics_table.written() == metrics_table.table().strip()
    told = [name for names in metrics_table.groups().values() for name in names]
    assert told == list(metrics.declared())


@pytest.mark.parametrize("name", BEFORE.split())
def test_each_metric_of_the_systems_before_is_mapped_to_ours(name: str) -> None:  # RO-65
    rows = metrics_table.DOCUMENT.read_text("utf-8").partition("| there | here |")[2].splitlines()
    (row,) = (row for row in rows if f"`{name}" in row.rpartition(" | ")[0].partition(" | ")[0] + " ")
    assert "`" in row.partition(" | ")[2] or "none" in row


def test_metrics_that_the_page_names_exist() -> None:
    page = metrics_table.DOCUMENT.read_text("utf-8")
    known = {m._name for m in metrics.declared().values()} | {
        metrics_table.shown_name(m) for m in metrics.declared().values()
    }
    named = set(re.findall(r"`(millstream_[a-z_]+)", page)) - {"millstream_partition_lag_"}
    assert named <= known
