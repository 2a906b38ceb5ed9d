"""The projection of video events under attack: topic, Postgres, workers, and a writer whose events come in disorder."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.events import UPDATED, Event
from tests.chaos.fleet import Fleet
from tests.chaos.group import Group
from tests.chaos.scenario import Scenario
from tests.support.kafka import create_topic
from tests.support.postgres import new_database
from tests.support.projection import record
from tests.unit.events.events import event, history, uuid

VIDEOS = 400
"""Videos of one attack; each has some events, shuffled, a part of them sent again later."""
AT_ONCE = 20
"""Records of one tick."""


class ProjectionScenario(Scenario):
    """One application on an empty, migrated database of the Postgres at `server`."""

    kinds = ("projection",)

    def __init__(
        self, kafka: str, home: Path, name: str, seed: int, server: str, *, partitions: int = 4, pace: str = "short",
        **settings: Any,
    ) -> None:  # fmt: skip
        self.kafka, self.name, self.topic = kafka, name, f"{name}-events"
        create_topic(AdminClient({"bootstrap.servers": kafka}), self.topic, partitions)
        self.database = new_database(server)
        values = {
            "BOOTSTRAP_SERVERS": kafka,
            "APP_ID": name,
            "STREAMS": "streams.projection",
            "OUTBOX_TOPICS": f"video={self.topic}",
            "OUTBOX_TOPIC_PARTITIONS": partitions,
            "POSTGRES_URL": self.database,
            "CHUNK_MAX_ROWS": 200,
        }
        self.fleet = Fleet(home, "streams", seed, pace, **(values | settings))
        self.group = Group(kafka, name)
        self.source = [TopicPartition(self.topic, p) for p in range(partitions)]
        self._random = random.Random(seed)
        self._left = [e for video in range(1, VIDEOS + 1) for e in history(self._random, video, 8)]
        self._random.shuffle(self._left)
        self._sent: list[Event] = []
        self._producer = Producer(
            {"bootstrap.servers": kafka, "enable.idempotence": True, "linger.ms": 5, "partitioner": "murmur2_random"}
        )
        self._number = 0

    def tick(self) -> None:
        """A few records: new events, redeliveries, equal versions, refused ones, poison (T13, T44-T49, T53, T57)."""
        for _ in range(AT_ONCE):
            self._send()
        self._producer.poll(0)

    def finish_input(self) -> None:
        """All of it is in the log."""
        assert self._producer.flush(120) == 0

    def unfinished(self) -> str:
        """Input that is not committed, or a chunk that is open."""
        return self.group.lag(self.source)

    def check_arguments(self) -> list[object]:
        """Topic, database, and the table's changelog."""
        return ["projection", "--kafka", self.kafka, "--name", self.name, "--postgres", self.database]

    def _send(self) -> None:
        self._number += 1
        draw = self._random.random()
        if self._sent and (draw < 0.15 or not self._left):
            found = self._random.choice(self._sent)
        elif draw < 0.2:
            found = event(UPDATED, self._random.randint(1, 8), 1 << 20 | self._number, self._random.randint(1, VIDEOS))
        else:
            found = self._left.pop()
        sent = record(found, 0, as_json=self._random.random() < 0.5)
        if draw < 0.01:
            sent = sent._replace(value=self._random.randbytes(20) + b"\xff")
        elif draw < 0.03:
            other = uuid(self._number << 40)
            sent = sent._replace(headers=[(n, other.encode() if n == "event_id" else v) for n, v in sent.headers])
        else:
            self._sent.append(found)
        self._producer.produce(self.topic, sent.value, sent.key, headers=list(sent.headers))
