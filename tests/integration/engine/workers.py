"""Real workers as processes, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from millstream.cluster import TP, Cluster
from schemas.chunk import ChunkId
from tests.support.kafka import produce, read_all
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
APP = "tests.integration.engine.shop"
SETTINGS = {
    "APP_ID": "shop",
    "SESSION_TIMEOUT": "6",
    "HEARTBEAT_INTERVAL": "0.5",
    "REBALANCE_TIMEOUT": "10",
    "TRANSACTION_TIMEOUT": "5",
    "SHUTDOWN_TIMEOUT": "5",
    "DISCOVERY_INTERVAL": "0.5",
    "CHUNK_MAX_AGE": "0.1",
    "CHUNK_MAX_ROWS": "200",
    "MAX_REPLAYS": "100",
    "LOG_FORMAT": "json",
}


class Shop:
    """One application in a namespace of its own."""

    def __init__(self, kafka: str, home: Path, namespace: str, **settings: object) -> None:
        self.kafka, self.home, self.namespace = kafka, home, f"{namespace}."
        self.admin = AdminClient({"bootstrap.servers": kafka})
        self.cluster = Cluster({"bootstrap.servers": kafka})
        self.group = f"{self.namespace}shop"
        self.workers: list[subprocess.Popen[bytes]] = []
        values = SETTINGS | {"BOOTSTRAP_SERVERS": kafka, "NAMESPACE": self.namespace, "DATA_DIR": home / "data"}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLSTREAM_")}
        self.env = clean | {f"MILLSTREAM_{k}": str(v) for k, v in (values | settings).items()}
        self.env |= {"MILLSTREAM_CONFIG": os.devnull, "SHOP_HOME": str(home)}

    # ------------------------------------------------------------------ processes
    def log(self, slot: str = "w0") -> str:
        path = self.home / f"{slot}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, slot: str = "w0", *, web: int = 0, **settings: object) -> subprocess.Popen[bytes]:
        env = self.env | {f"MILLSTREAM_{k}": str(v) for k, v in settings.items()} | {"MILLSTREAM_WORKER_SLOT": slot}
        arguments = ["--web-port", str(web)] if web else ["--without-web"]
        with (self.home / f"{slot}.log").open("ab") as log:
            worker = subprocess.Popen(
                [BIN / "faust", "-A", APP, "worker", *arguments], cwd=ROOT, env=env, stdout=log, stderr=log
            )
        self.workers.append(worker)
        return worker

    def wait_ready(self, slot: str = "w0", times: int = 1) -> None:
        """Until it has loaded an assignment so many times."""

        def ready() -> bool:
            assert any(w.poll() is None for w in self.workers), "all workers have ended"
            return self.log(slot).count("partitions_loaded") >= times

        wait_until(ready, 40, f"{slot} to be ready")

    def stop(self, worker: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
        worker.send_signal(number)
        return worker.wait(40)

    def command(self, *arguments: str) -> str:
        """Output of a `faust -A streams` command."""
        done = subprocess.run(
            [BIN / "faust", "-A", APP, *arguments], cwd=ROOT, env=self.env, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def __enter__(self) -> Self:
        self.home.mkdir(exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait(10)
        if error is not None:
            for log in sorted(self.home.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")
        mine = [t for t in self.admin.list_topics(timeout=10).topics if t.startswith(self.namespace)]
        for deleted in self.admin.delete_topics(mine).values() if mine else ():
            deleted.exception(30)

    # ------------------------------------------------------------------ data
    def create(self, name: str, partitions: int = 1) -> str:
        full = self.namespace + name
        self.admin.create_topics([NewTopic(full, partitions, 1)], operation_timeout=30)[full].result(30)
        wait_until(lambda: self.cluster.topics([full]), 20, f"topic {full}")
        return full

    def order(self, first: int, n: int, *, topic: str = "orders") -> None:
        """Orders of the items apples, pears and plums, spread over the partitions."""
        items = ("apples", "pears", "plums")
        values = (json.dumps({"id": i, "item": items[i % 3]}).encode() for i in range(first, first + n))
        produce(self.kafka, self.namespace + topic, ({"value": v, "key": v[6:12]} for v in values))

    def send(self, topic: str, records: list[dict[str, Any]]) -> None:
        produce(self.kafka, self.namespace + topic, records)

    def read(self, topic: str) -> list[Any]:
        return read_all(self.kafka, self.namespace + topic)

    def partitions(self, topic: str) -> list[TP]:
        info = self.cluster.topics([self.namespace + topic])[self.namespace + topic]
        return [TP(self.namespace + topic, p) for p in range(info.partitions)]

    def lag(self, topic: str) -> int:
        """Records of the topic that are not committed yet."""
        from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

        tps = self.partitions(topic)
        ends = self.cluster.offsets(tps, OffsetSpec.latest())
        found = self.cluster.stable_offsets(self.group, tps, 30, lambda: True)
        return sum(ends[tp] - max(0, found[tp][0]) for tp in tps)

    def wait_done(self, topic: str, timeout: float = 60) -> None:
        """Until all records of the topic are committed."""

        def done() -> bool:
            assert any(w.poll() is None for w in self.workers), "all workers have ended"
            return self.lag(topic) == 0

        wait_until(done, timeout, f"lag of {topic} to be 0", every=0.1)

    def members(self) -> list[Any]:
        """Members of the group; none while nobody knows."""
        try:
            return list(self.admin.describe_consumer_groups([self.group])[self.group].result(10).members)
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.NOT_COORDINATOR:
                raise
            return []

    def sunk(self, topic: str = "orders") -> list[str]:
        """Lines of all files of the topic in the sink: offset, id, item."""
        prefix = f"{self.namespace}{topic}@"
        files = [p for p in (self.home / "sink").glob("*.jsonl") if p.name.startswith(prefix)]
        return [line for p in files for line in p.read_text().splitlines()]

    def changelog(self, table: str) -> dict[tuple[int, bytes], bytes]:
        """What the table's changelog says: (partition, key) -> value."""
        found: dict[tuple[int, bytes], bytes] = {}
        for m in self.read(f"shop-{table}-changelog"):
            found[m.partition(), m.key()] = m.value()
        return {k: v for k, v in found.items() if v is not None}

    def on_disk(self, table: str, slot: str = "w0") -> dict[tuple[int, bytes], bytes]:
        """What RocksDB holds, of a worker that has stopped."""
        import rocksdict

        from tables.store import _POSITION_KEY, _options

        found: dict[tuple[int, bytes], bytes] = {}
        for path in (self.home / "data").glob(f"*/{slot}/**/{table}-*.rocksdb"):
            db = rocksdict.Rdict(str(path), _options())
            partition = int(path.stem.rpartition("-")[2])
            found |= {(partition, k): v for k, v in db.items() if k != _POSITION_KEY}
            db.close()
        return found


def totals(pairs: dict[tuple[int, bytes], bytes]) -> Counter[str]:
    """Values of a table of numbers, over its partitions."""
    found: Counter[str] = Counter()
    for (_, key), value in pairs.items():
        found[json.loads(key)] += json.loads(value)
    return found


def chunk_ids(shop: Shop, topic: str = "orders") -> list[str]:
    """Names of the chunks in the sink."""
    prefix = f"{shop.namespace}{topic}@"
    return [p.stem.removeprefix(prefix) for p in (shop.home / "sink").glob(f"{prefix}*.jsonl")]


__all__ = ["ChunkId", "Shop", "chunk_ids", "totals"]
