"""Errors named for the situation. The message says what happened, where, and what to do."""

from __future__ import annotations


class MillstreamError(Exception):
    """Base of all errors raised on purpose. Whoever catches it can show its text to a user as it is."""


class ConfigError(MillstreamError):
    """A setting or an argument is wrong. The text names it and what is allowed."""


class BrokerError(MillstreamError):
    """Kafka cannot be reached, or refused what was asked."""


class KafkaRefusedError(BrokerError):
    """Kafka is there, but user, password, certificate or protocol are wrong. The text names the settings."""


class PostgresError(MillstreamError):
    """Postgres refused a statement, or the embedded server cannot be started."""


class PostgresUnavailableError(PostgresError):
    """Postgres is away, full, or busy: the same statement may work later."""


class RetryableSinkError(MillstreamError):
    """The sink may accept the same write later. The sink wrapper retries; nothing else may catch it."""


class SinkError(MillstreamError):
    """The sink cannot take the chunk, now or later (disk full, no permission, wrong schema). Stops the worker."""


class IdentityMismatchError(SinkError):
    """The sink holds something under this chunk's name that is not this chunk. Stops the worker (hole b)."""


class AttemptExhaustedError(MillstreamError):
    """An insert under the chunk's token was acknowledged, yet the sink lacks rows of it.

    The engine answers by raising the attempt in a fenced transaction (hole a) and asking the sink again.
    """


class BatchRefusedError(MillstreamError):
    """The sink will not take this batch (already published, foreign `tmp_` directory, older than the TTL).

    The batch is marked as failed with this text; the worker goes on with other batches.
    """


class RunVoidError(SinkError):
    """The sink has no use for this run: aborted, voided by a later run, published without it, or parts are missing.

    The run is marked as failed with this text, its later chunks are skipped; the worker goes on.
    """


class CorruptSourceError(MillstreamError):
    """The source's bytes are truncated or corrupt. The text names the file and the byte offset."""
