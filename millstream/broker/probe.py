"""Whether a broker answers, and if not, what to tell of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient

from millstream import kafka_security

_ONE_REQUEST = 0.5
"""Seconds between looks at what went wrong so far: a wrong password is told then, not when the time is up."""


class _Hints:
    """librdkafka's logger: why brokers hung up is told there alone."""

    def __init__(self, errors: list[ck.KafkaError]) -> None:
        self._errors = errors

    def log(self, _level: int, _template: str, facility: str, _client: str, text: str) -> None:
        """One line of librdkafka's log."""
        if facility == "FAIL":
            self._errors.append(ck.KafkaError(ck.KafkaError._TRANSPORT, text.partition("]: ")[2]))


def unanswered(config: Mapping[str, Any], timeout: float) -> str | None:
    """None if a broker answers a metadata request within `timeout` seconds, else what is wrong and what to do.

    `config`: librdkafka's, as `client_config` gives it. Blocking.
    """
    errors: list[ck.KafkaError] = []
    own = {
        "log_level": 6,
        "logger": _Hints(errors),
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 200,
        "error_cb": errors.append,
    }
    client = AdminClient({**config, **own})
    deadline = time.monotonic() + timeout
    while True:
        try:
            client.list_topics(timeout=max(0.05, min(_ONE_REQUEST, deadline - time.monotonic())))
        except ck.KafkaException as exc:
            client.poll(0)  # serves error_cb
            refused = kafka_security.refusal(config, errors)
            if time.monotonic() >= deadline or (refused is not None and refused.sure):
                return kafka_security.unanswered(config, [*errors, exc.args[0]])
        else:
            return None
