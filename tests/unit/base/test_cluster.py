"""What is asked of the controller, when the one that librdkafka knows is gone."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import confluent_kafka as ck
import pytest

from millstream.cluster import Cluster, TopicInfo
from millstream.errors import BrokerError, KafkaRefusedError


class Admin:
    """Answers as librdkafka does: from its controller, which it looks up when it is asked for metadata."""

    def __init__(self, *, controller_comes_back: bool) -> None:
        self.knows_controller, self.comes_back = False, controller_comes_back

    def describe_topics(self, topics: Any, request_timeout: float) -> dict[str, Future[Any]]:
        future: Future[Any] = Future()
        if self.knows_controller:
            future.set_result(SimpleNamespace(topic_id="a/b", partitions=[0, 1]))
        else:
            future.set_exception(ck.KafkaException(ck.KafkaError(ck.KafkaError._TIMED_OUT)))
        return {"t": future}

    def list_topics(self, timeout: float) -> None:
        self.knows_controller = self.comes_back

    def poll(self, timeout: float) -> None:
        """Nothing went wrong that librdkafka would tell."""


def test_a_controller_that_died_is_looked_up_anew() -> None:
    cluster = Cluster({}, request_timeout=10)
    admin: Any = Admin(controller_comes_back=True)
    cluster.admin = admin
    assert cluster.topics(["t"]) == {"t": TopicInfo("a_b", 2)}


def test_without_any_controller_the_request_fails_in_time() -> None:
    cluster = Cluster({}, request_timeout=0.3)
    admin: Any = Admin(controller_comes_back=False)
    cluster.admin = admin
    with pytest.raises(BrokerError, match="cannot describe topic 't'"):
        cluster.topics(["t"])


def test_a_password_that_is_refused_is_told_without_waiting_for_the_end_of_the_time() -> None:
    cluster = Cluster({"bootstrap.servers": "kafka:9093", "sasl.username": "me"}, request_timeout=3600)

    class Refused(Admin):
        def poll(self, timeout: float) -> None:
            cluster._errors.append(ck.KafkaError(ck.KafkaError._AUTHENTICATION, "Authentication failed"))

    admin: Any = Refused(controller_comes_back=False)
    cluster.admin = admin
    with pytest.raises(KafkaRefusedError, match=r"refuses the user 'me' .* correct MILLSTREAM_SASL_USERNAME"):
        cluster.topics(["t"])
