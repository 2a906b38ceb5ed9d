"""A login that Kafka refuses while a worker runs is told once a minute, beside what aiokafka says."""

from __future__ import annotations

import logging

import pytest
from aiokafka.errors import NodeNotReadyError, SaslAuthenticationFailed

from millstream.settings import Settings
from streams.engine.logins import EVERY_SECONDS, RefusedLogins, watch

SETTINGS = Settings(
    bootstrap_servers="h:1",
    security_protocol="SASL_PLAINTEXT",
    sasl_mechanism="PLAIN",
    sasl_username="me",
    sasl_password="hush-hush",
)


def test_a_minute_of_refusals_is_one_line_with_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    refusals = RefusedLogins(SETTINGS, lambda: now)
    text = "Unable connect to node with id %s: %s"
    other = logging.LogRecord("aiokafka", logging.ERROR, "", 1, text, (1, NodeNotReadyError("away")), None)
    failed = logging.LogRecord("aiokafka", logging.ERROR, "", 1, text, (1, SaslAuthenticationFailed("no")), None)
    assert refusals.filter(other)
    assert caplog.records == []
    for _ in range(3):
        assert refusals.filter(failed)
    assert len(caplog.records) == 1
    now += EVERY_SECONDS
    assert refusals.filter(failed)
    assert len(caplog.records) == 2
    for part in ("login_refused", "'me'", "MILLSTREAM_SASL_PASSWORD"):
        assert part in caplog.records[1].getMessage()
    assert "hush" not in caplog.text


def test_one_watch_at_a_time_and_none_without_users() -> None:
    logger = logging.getLogger("aiokafka")
    before = list(logger.filters)
    for _ in range(2):
        watch(SETTINGS)
    assert len(logger.filters) == len(before) + 1
    watch(Settings())
    assert logger.filters == before
