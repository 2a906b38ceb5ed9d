"""The app's producer: no side door past the transactions.

What is sent while a chunk is processed becomes an output record of that chunk. What is sent elsewhere (a timer, the
command line, a web view) goes out at once, through an idempotent librdkafka producer. Faust's default producer would
send at once in both cases.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import NewTopic
from faust.transport import base
from faust.types import TP as FaustTP
from faust.types.tuples import FutureMessage, RecordMetadata
from mode import Service

from millstream.errors import BrokerError
from streams.engine.chunk import Chunk, Output
from streams.engine.failure import die
from tables.scope import current


class Producer(base.Producer):
    """Faust producer over librdkafka."""

    logger = logging.getLogger("faust.producer")

    _producer: ck.Producer | None = None
    _pending = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sent = asyncio.Event()

    async def on_start(self) -> None:
        """Connect."""
        await super().on_start()
        self._producer = ck.Producer(
            {
                **self.app.kafka_config,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "compression.type": "lz4",
                "message.max.bytes": int(self.app.settings.max_message_bytes),
            }
        )

    async def on_stop(self) -> None:
        """Send what is left."""
        await self.flush()
        await super().on_stop()

    async def send(  # type: ignore[no-untyped-def]
        self, topic, key, value, partition, timestamp, headers, *, transactional_id=None
    ) -> Any:
        """Into the chunk's transaction, or at once. In a chunk, the future is done with offset -1 (not yet known)."""
        output = _output(topic, key, value, partition, timestamp, headers)
        future: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        if isinstance(chunk := current(), Chunk):
            chunk.emit(output)
            future.set_result(_metadata(topic, -1 if partition is None else partition, -1))
        else:
            self._send(output, future)
        return future

    async def send_and_wait(  # type: ignore[no-untyped-def]
        self, topic, key, value, partition, timestamp, headers, *, transactional_id=None
    ) -> RecordMetadata:
        """As `send`, and wait for the broker's answer (in a chunk there is none before the commit)."""
        metadata: RecordMetadata = await (await self.send(topic, key, value, partition, timestamp, headers))
        return metadata

    def send_soon(self, fut: FutureMessage) -> None:
        """From synchronous code: in a chunk, its output; else by way of Faust's buffer."""
        if not isinstance(chunk := current(), Chunk):
            super().send_soon(fut)
            return
        m = fut.message
        topic = m.channel.get_topic_name()
        chunk.emit(_output(topic, m.key, m.value, m.partition, m.timestamp, m.headers))
        fut.set_result(_metadata(topic, -1 if m.partition is None else m.partition, -1))

    async def flush(self) -> None:
        """Wait until all that was sent at once is in the log. Raises BrokerError after the request timeout."""
        if self._producer is not None:
            await self.buffer.flush()
            left = await asyncio.to_thread(self._producer.flush, self.app.settings.request_timeout)
            if left:
                raise BrokerError(f"{left} records could not be sent: the broker does not answer")

    async def create_topic(  # type: ignore[no-untyped-def]
        self, topic, partitions, replication, *, config=None, timeout=30.0, retention=None, compacting=None,  # noqa: ASYNC109
        deleting=None, ensure_created=False,
    ) -> None:  # fmt: skip
        """Create a topic unless it is there."""
        policy = ",".join(p for p, on in (("compact", compacting), ("delete", deleting)) if on)
        settings = dict(config or {})
        if policy:
            settings["cleanup.policy"] = policy
        if retention:
            settings["retention.ms"] = str(int(retention * 1000))
        new = NewTopic(topic, partitions or -1, replication or -1, config={k: str(v) for k, v in settings.items()})
        try:
            await asyncio.to_thread(self.app.cluster.create, [new])
        except BrokerError as exc:
            if self.app.client_only or self.app.producer_only:
                raise
            die(exc)  # a worker: Faust would make exit code 1 of it

    def supports_headers(self) -> bool:
        """Yes."""
        return True

    def key_partition(self, topic: str, key: bytes) -> FaustTP:
        """Not known here: librdkafka chooses when it sends."""
        raise NotImplementedError("the partition of a key is chosen by librdkafka (murmur2)")

    def _send(self, output: Output, future: asyncio.Future[RecordMetadata]) -> None:
        if self._producer is None:
            raise RuntimeError("the producer is not running")
        loop = asyncio.get_running_loop()

        def delivered(error: ck.KafkaError | None, message: ck.Message) -> None:
            def settle() -> None:
                self._pending -= 1
                if future.done():
                    return
                if error is not None:
                    future.set_exception(BrokerError(f"cannot send to topic {output.topic!r}: {error.str()}"))
                else:
                    future.set_result(_metadata(output.topic, message.partition() or 0, message.offset() or 0))

            loop.call_soon_threadsafe(settle)

        self._producer.produce(
            output.topic,
            output.value,
            output.key,
            output.partition,
            delivered,
            None,
            output.timestamp_ms,
            list(output.headers),
        )
        self._pending += 1
        self._sent.set()

    @Service.task
    async def _serve_answers(self) -> None:
        """librdkafka calls back only while somebody polls."""
        while not self.should_stop:
            await self._sent.wait()
            while self._pending and self._producer is not None:
                await asyncio.to_thread(self._producer.poll, 0.05)
            self._sent.clear()


def _output(
    topic: str, key: bytes | None, value: bytes | None, partition: int | None, timestamp: float | None, headers: Any
) -> Output:
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers or ())
    return Output(
        topic, key, value, -1 if partition is None else partition, int(timestamp * 1000) if timestamp else 0, pairs
    )


def _metadata(topic: str, partition: int, offset: int) -> RecordMetadata:
    return RecordMetadata(topic, partition, FaustTP(topic, partition), offset)
