"""The generic stream under attack: topics, table, workers and records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from tests.chaos.feeding import Feeder
from tests.chaos.fleet import Fleet
from tests.chaos.group import Group
from tests.chaos.scenario import Scenario, database
from tests.support.clickhouse_server import ClickHouseServer
from tests.support.kafka import create_topic

KINDS = ("parquet", "clickhouse", "table", "topic")
"""Kinds of output, as `stream_app` and the checker know them. Another sink: its name here, its target there, its
reader in the checker, and its setting in `_settings` below."""
PAYLOADS = ("json", "arrow")

EVENTS = (
    "CREATE TABLE {db}.events (id Int64, k String, _topic LowCardinality(String), _partition Int32, _offset Int64)"
    " ENGINE = MergeTree ORDER BY (_topic, _partition, _offset) SETTINGS non_replicated_deduplication_window = 1000"
)


class StreamScenario(Scenario):
    """One application, its records and its workers. Without `server` nothing is written to ClickHouse."""

    def __init__(
        self,
        kafka: str,
        home: Path,
        name: str,
        seed: int,
        server: ClickHouseServer | None = None,
        *,
        kinds: Sequence[str] = KINDS,
        payload: str = "json",
        partitions: int = 4,
        rate: float = 200.0,
        control: str = "",
        pace: str = "short",
        **settings: Any,
    ) -> None:
        self.kinds = tuple(k for k in kinds if k != "clickhouse" or server is not None)
        self.kafka, self.name, self.payload, self.parquet = kafka, name, payload, home / "parquet"
        create_topic(AdminClient({"bootstrap.servers": kafka}), f"{name}-in", partitions)
        self.url = ""
        if server is not None and "clickhouse" in self.kinds:
            self.url = database(server, name.replace("-", "_"), EVENTS)
        values = {"BOOTSTRAP_SERVERS": kafka, "APP_ID": name} | self._settings() | settings
        self.fleet = Fleet(home, "tests.chaos.stream_app", seed, pace, **values)
        self.fleet.env |= {
            "CHAOS_PARTITIONS": str(partitions),
            "CHAOS_CONTROL": control,
            "CHAOS_KINDS": ",".join(self.kinds),
            "CHAOS_PAYLOAD": payload,
        }
        self.group = Group(kafka, name)
        self.source = [TopicPartition(f"{name}-in", p) for p in range(partitions)]
        self.feeder = Feeder(kafka, f"{name}-in", partitions, seed, rate, payload)

    def _settings(self) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {
            "parquet": {"PARQUET_DIR": self.parquet},
            "clickhouse": {"CLICKHOUSE_URL": self.url, "CLICKHOUSE_AUTO_CREATE_TABLES": "true"},
        }
        return {name: value for kind in self.kinds for name, value in found.get(kind, {}).items()}

    def ends(self) -> dict[tuple[str, int], int]:
        """Where the input ends now."""
        return self.group.ends(self.source)

    def unfinished(self) -> str:
        """Input that is not committed, or a chunk that is open."""
        return self.group.lag(self.source)

    def tick(self) -> None:
        """A thread feeds it."""
        if not self.feeder.running:
            self.feeder.start()

    def finish_input(self) -> None:
        """Stop the thread."""
        self.feeder.finish()

    def close(self) -> None:
        """Its input ends too."""
        self.feeder.stop()
        super().close()

    def check_arguments(self) -> list[object]:
        """Only the kinds of output that there are."""
        arguments: list[object] = ["stream", "--kafka", self.kafka, "--name", self.name, "--payload", self.payload]
        arguments += ["--kinds", ",".join(self.kinds), "--parquet", self.parquet]
        return arguments + (["--clickhouse", self.url] if self.url else [])
