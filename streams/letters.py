"""Dead letters from outside: listed, sent to their topic again, or dropped, each of them once.

What became of a letter stands in the compacted topic `<group>-dlq-handled`, by the letter's own place, written in the
transaction that sends it again: a requeue that was killed has sent and marked a letter, or neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import confluent_kafka as ck
import msgspec

from millstream.cluster import DEAD_LETTER_BYTES, Cluster, client_config, new_topic
from millstream.errors import BrokerError, ConfigError
from millstream.failpoints import declare, failpoint
from millstream.settings import Settings
from millstream.transactional import TransactionalClient
from schemas.names import DLQ_SUFFIX, dlq_topic
from schemas.products.codec import KIND, ROW, RUN
from streams.engine.dead_letters import HEADER
from streams.engine.reader import read_committed

SENT = declare("dlq.sent", "letters were sent again and marked, the transaction is open")
COMMITTED = declare("dlq.committed", "the transaction is committed, nobody was told")

AT_ONCE = 200
"""Letters in one transaction."""


_FENCED = (ck.KafkaError._FENCED, ck.KafkaError.PRODUCER_FENCED, ck.KafkaError.INVALID_PRODUCER_EPOCH)


class LettersBusyError(BrokerError):
    """Another process requeues or drops at this moment."""


class Letter(NamedTuple):
    """One record of a dead-letter topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    handled: str
    """What became of it, as `requeued 2026-01-31T12:00:00Z`; empty while it waits."""

    @property
    def id(self) -> str:
        """Its place in the dead-letter topic."""
        return f"{self.partition}:{self.offset}"

    def note(self, name: str) -> str:
        """A header of those that the engine added: reason, topic, partition, offset, timestamp."""
        found = [value for header, value in self.headers if header == HEADER + name]
        return (found[-1] or b"").decode("utf-8", "replace") if found else ""

    @property
    def came_from(self) -> tuple[str, int]:
        """Topic and partition that it came from; ("", 0) if it does not say so."""
        partition = self.note("partition")
        return (self.note("topic"), int(partition)) if partition.isdecimal() else ("", 0)

    @property
    def original_headers(self) -> list[tuple[str, bytes | None]]:
        """The headers it came with."""
        return [(name, value) for name, value in self.headers if not name.startswith(HEADER)]


class Letters:
    """The dead letters of one topic. Blocking. Raises BrokerError, ConfigError."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._config = settings, client_config(settings)
        self.source = settings.namespace + topic.removeprefix(settings.namespace).removesuffix(DLQ_SUFFIX)
        self.topic = dlq_topic(self.source)
        self.marks = f"{settings.group_id}-dlq-handled"
        self._cluster = Cluster(self._config, settings.request_timeout)

    def all(self) -> list[Letter]:
        """Every letter that is still in the topic, handled ones too."""
        info = self._cluster.topics([self.topic]).get(self.topic)
        if info is None:
            if self.source not in self._cluster.topics([self.source]):
                raise ConfigError(f"there is no topic {self.source!r}, and no {self.topic!r}: check the name")
            return []
        handled = {bytes(m.key() or b""): m.value() for m in self._read(self.marks)}
        found = []
        for m in self._read(self.topic):
            at = (m.partition() or 0, m.offset() or 0)
            mark = handled.get(_mark(info.id, *at))
            headers = [(name, v.encode() if isinstance(v, str) else v) for name, v in m.headers() or []]
            found.append(Letter(*at, m.key(), m.value(), headers, mark.decode() if mark else ""))
        return sorted(found)

    def requeue(self, ids: Sequence[str]) -> int:
        """Send letters to their topic again, with their own key and headers; those handled before are left alone."""
        return self._handle(ids, "requeued")

    def drop(self, ids: Sequence[str]) -> int:
        """Give letters up; they stay in the topic until its retention ends, and are not offered again."""
        return self._handle(ids, "dropped")

    def _handle(self, ids: Sequence[str], action: str) -> int:
        self._cluster.create([new_topic(self._settings, self.marks, 1, **{"cleanup.policy": "compact"})])
        client = self._client()
        # Read after the producer has fenced off every other one: nobody else can handle a letter any more.
        letters = {letter.id: letter for letter in self.all()}
        if unknown := [name for name in ids if name not in letters]:
            raise ConfigError(f"{self.topic} has no letter {unknown[0]!r}: `millstream dlq list` shows their ids")
        waiting = [letter for name in dict.fromkeys(ids) if not (letter := letters[name]).handled]
        topic_id = self._cluster.topics([self.topic])[self.topic].id
        if action == "requeued":
            self._check_targets(waiting)
        done = 0
        for first in range(0, len(waiting), AT_ONCE):
            part = waiting[first : first + AT_ONCE]
            if client.refresh():  # whoever came in between is fenced off again; what they have handled is done
                handled = {letter.id for letter in self.all() if letter.handled}
                part = [letter for letter in part if letter.id not in handled]
            if part:
                self._transact(client.producer, part, action, topic_id)
            done += len(part)
        return done

    def _check_targets(self, letters: list[Letter]) -> None:
        for letter in letters:
            headers = dict(letter.original_headers)
            if headers.get(KIND) == ROW and RUN in headers:
                # The sink leaves out the rows of earlier runs, and a later one may have brought a newer row (T72).
                run = (headers[RUN] or b"").decode("utf-8", "replace")
                raise ConfigError(
                    f"letter {letter.id} is a row of the product ETL's run {run}: nothing was sent. Such rows come "
                    "from the staging table: mend the row there, and the next `millstream etl products` reads it (with "
                    "--no-resume if its src_updated_at is old); then drop the letter"
                )
        found = self._cluster.topics({letter.came_from[0] for letter in letters})
        for letter in letters:
            topic, partition = letter.came_from
            if topic not in found or partition >= found[topic].partitions:
                raise ConfigError(
                    f"letter {letter.id} came from topic {topic!r}, partition {partition}, which does not exist: "
                    "nothing was sent. Create it, or drop the letter"
                )

    def _transact(self, producer: ck.Producer, letters: list[Letter], action: str, topic_id: str) -> None:
        mark = f"{action} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}".encode()
        failed: list[str] = []

        def on_delivery(error: ck.KafkaError | None, message: ck.Message) -> None:
            if error is not None:
                failed.append(f"topic {message.topic()}: {error.str()}")

        try:
            producer.begin_transaction()
            for letter in letters:
                if action == "requeued":
                    topic, partition = letter.came_from
                    producer.produce(
                        topic, letter.value, letter.key, partition, on_delivery, headers=letter.original_headers
                    )
                key = _mark(topic_id, letter.partition, letter.offset)
                producer.produce(self.marks, mark, key, on_delivery=on_delivery)
            failpoint(SENT)
            producer.commit_transaction(self._settings.request_timeout)
            failpoint(COMMITTED)
        except ck.KafkaException as exc:
            error = exc.args[0]
            if error.code() in _FENCED:
                raise LettersBusyError(
                    "another `millstream dlq` began meanwhile and goes on with these letters; look with `dlq list`"
                ) from exc
            why = failed[0] if failed else error.str()
            raise BrokerError(f"letters {letters[0].id} to {letters[-1].id} were not {action}: {why}") from exc

    def _client(self) -> TransactionalClient:
        config = {**self._config, "message.max.bytes": int(self._settings.max_message_bytes) + DEAD_LETTER_BYTES}
        timeout = self._settings.request_timeout
        return TransactionalClient(config, self.marks, timeout, timeout)

    def _read(self, topic: str) -> Iterator[ck.Message]:
        return read_committed(self._cluster, topic, self._settings.request_timeout)


def as_json(letter: Letter, *, whole: bool = False) -> dict[str, Any]:
    """For `--json` and `show`: bytes as text where they are UTF-8, else as `hex:…`."""
    found: dict[str, Any] = {"id": letter.id, "reason": letter.note("reason"), "handled": letter.handled}
    found |= {name: letter.note(name) for name in ("topic", "partition", "offset", "timestamp")}
    found["key"] = shown(letter.key)
    if whole:
        found["headers"] = [[name, shown(value)] for name, value in letter.original_headers]
        found["value"] = shown(letter.value)
    return found


def shown(raw: bytes | None) -> str | None:
    """Bytes for the eye."""
    if raw is None:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "hex:" + raw.hex()
    return text if text.isprintable() else "hex:" + raw.hex()


def _mark(topic_id: str, partition: int, offset: int) -> bytes:
    return msgspec.json.encode([topic_id, partition, offset])
