"""librdkafka as the engine uses it, its requests made to the simulated broker. Stands in for the module's classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import confluent_kafka as ck

from millstream.cluster import TP
from tests.model.broker import OFFSETS, Broker, kafka_error
from tests.model.kernel import Later, Process


class Message:
    """A record, or the end of a partition."""

    def __init__(self, tp: TP, offset: int, key: Any = None, value: Any = None, error: Any = None) -> None:
        self._tp, self._offset, self._key, self._value, self._error = tp, offset, key, value, error

    def topic(self) -> str:
        return self._tp.topic

    def partition(self) -> int:
        return self._tp.partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def error(self) -> ck.KafkaError | None:
        return self._error


class Producer:
    """A transactional producer. As in librdkafka, records go out when it is flushed, offsets last."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._process: Process = config["sim"]
        self._broker: Broker = config["broker"]
        self._id: str = config["transactional.id"]
        self._epoch = -1
        self._queue: list[tuple[TP, bytes | None, bytes | None, Any]] = []

    def _call(self, kind: str, effect: Callable[[], Any]) -> Any:
        return self._process.call(kind, effect)

    def init_transactions(self, _timeout: float) -> None:
        _, self._epoch = self._call("txn.init", lambda: self._broker.init(self._id))

    def begin_transaction(self) -> None:
        self._queue = []

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        on_delivery: Any,
        _partitioner: Any = None,
        _timestamp: int = 0,
        _headers: Any = (),
    ) -> None:
        self._queue.append((TP(topic, max(partition, 0)), key, value, on_delivery))

    def poll(self, _timeout: float) -> int:
        return 0

    def flush(self, _timeout: float) -> int:
        epoch, queue = self._epoch, self._queue
        parts: dict[TP, list[tuple[bytes | None, bytes | None, Any]]] = defaultdict(list)
        for tp, key, value, told in queue:
            parts[tp].append((key, value, told))
        if parts:
            self._call("txn.add", lambda: self._broker.add(self._id, epoch, set(parts)))
        for tp, found in parts.items():
            records = [(k, v) for k, v, _ in found]
            first = self._call("txn.produce", lambda: self._broker.produce(self._id, epoch, tp, records))  # noqa: B023
            for i, (key, value, told) in enumerate(found):
                if told is not None:
                    told(None, Message(tp, first + i, key, value))
        return 0

    def send_offsets_to_transaction(self, offsets: list[ck.TopicPartition], metadata: bytes, _timeout: float) -> None:
        epoch = self._epoch
        positions = {TP(o.topic, o.partition): (o.offset, o.metadata) for o in offsets}
        self._call("txn.add", lambda: self._broker.add(self._id, epoch, {OFFSETS}))
        self._call(
            f"txn.offsets{self._what}", lambda: self._broker.commit_offsets(self._id, epoch, metadata, positions)
        )

    @property
    def _what(self) -> str:
        return " with changes" if any("changelog" in tp.topic for tp, *_ in self._queue) else ""

    def commit_transaction(self, _timeout: float) -> None:
        epoch = self._epoch
        self._call(f"txn.end{self._what}", lambda: self._broker.end(self._id, epoch, commit=True))

    def abort_transaction(self, _timeout: float) -> None:
        epoch = self._epoch
        self._call("txn.end", lambda: self._broker.end(self._id, epoch, commit=False))


class Consumer:
    """A reader of assigned partitions, and of the group's offsets."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._process: Process = config["sim"]
        self._broker: Broker = config["broker"]
        self._stable = config.get("isolation.level") == "read_committed"
        self._positions: dict[TP, int] = {}
        self._told: dict[TP, int] = {}

    def assign(self, tps: Iterable[ck.TopicPartition]) -> None:
        self._positions = {TP(t.topic, t.partition): t.offset for t in tps}

    def pause(self, tps: Iterable[ck.TopicPartition]) -> None:
        for tp in tps:
            del self._positions[TP(tp.topic, tp.partition)]

    def consume(self, _most: int, _timeout: float) -> list[Message]:
        return self._process.call("read", self._read, idle=list)

    def _read(self) -> list[Message]:
        found: list[Message] = []
        for tp, position in self._positions.items():
            log = self._broker.logs[tp]
            for entry in log.read(position):
                found += [Message(tp, r.offset, r.key, r.value) for r in entry.records if r.offset >= position]
            end = self._positions[tp] = max(position, log.stable)
            if self._told.get(tp) != end:
                self._told[tp] = end
                found.append(Message(tp, end, error=ck.KafkaError(ck.KafkaError._PARTITION_EOF)))
        if not found:
            raise Later
        return found

    def committed(self, tps: list[ck.TopicPartition], _timeout: float) -> list[ck.TopicPartition]:
        def answer() -> list[ck.TopicPartition]:
            wanted = [TP(t.topic, t.partition) for t in tps]
            if self._stable and self._broker.unstable(wanted):
                raise Later
            found = [(tp, self._broker.group.offsets.get(tp, (-1001, ""))) for tp in wanted]
            return [ck.TopicPartition(*tp, offset, metadata=text) for tp, (offset, text) in found]

        def late() -> None:
            raise kafka_error(ck.KafkaError._TIMED_OUT)

        return self._process.call("offsets", answer, idle=late)

    def close(self) -> None:
        pass


def Done(result: Any) -> Future[Any]:
    """A future that is done."""
    future: Future[Any] = Future()
    future.set_result(result)
    return future


class Admin:
    """AdminClient."""

    def __init__(self, process: Process, broker: Broker) -> None:
        self._process, self._broker = process, broker

    def describe_topics(self, names: Any, request_timeout: float) -> dict[str, Future[Any]]:
        def answer() -> dict[str, Future[Any]]:
            return {
                n: Done(SimpleNamespace(topic_id=topic_id(n), partitions=[None] * self._broker.topics[n]))
                for n in names.topic_names
            }

        return self._process.call("describe", answer)

    def list_offsets(self, request: Any, isolation_level: Any, request_timeout: float) -> dict[Any, Future[Any]]:
        committed = isolation_level == ck.IsolationLevel.READ_COMMITTED

        def answer() -> dict[Any, Future[Any]]:
            found = {}
            for tp, at in request.items():
                log = self._broker.logs[TP(tp.topic, tp.partition)]
                latest = isinstance(at, type(ck.admin.OffsetSpec.latest()))
                offset = (log.stable if committed else log.end) if latest else 0
                found[tp] = Done(SimpleNamespace(offset=offset))
            return found

        return self._process.call("ends", answer)

    def describe_configs(self, resources: Any, request_timeout: float) -> dict[Any, Future[Any]]:
        day = str(24 * 3600 * 1000)
        return {r: Done({"delete.retention.ms": SimpleNamespace(value=day)}) for r in resources}


def topic_id(name: str) -> str:
    return f"id-{name}"


LIBRDKAFKA = SimpleNamespace(
    **{
        name: getattr(ck, name)
        for name in ("TopicPartition", "KafkaException", "KafkaError", "IsolationLevel", "TopicCollection", "Message")
    }
    | {"Producer": Producer, "Consumer": Consumer}
)
"""What stands where the engine's modules say `ck`."""

__all__ = ["LIBRDKAFKA", "Admin", "Later", "topic_id"]
