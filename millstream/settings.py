"""All settings, in one typed class: environment (`MILLSTREAM_…`) over `millstream.toml` over the defaults here."""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from millstream import setting_types as types
from millstream.errors import ConfigError
from millstream.secrets import mask_url, register_secret, register_url
from millstream.setting_rules import contradictions

PREFIX = "MILLSTREAM_"
OTHER_VARIABLES = ("CONFIG", "FAILPOINTS", "FAILPOINT_LOG", "SEED")
"""`MILLSTREAM_…` variables that are no fields: where the TOML file is, and the failpoints of tests."""

MIB = 1024 * 1024


class Settings(BaseSettings):
    """Settings of one process. Frozen. A wrong one raises ConfigError, which lists every problem at once.

    Durations are in seconds, sizes in bytes (`32MiB` and the like are understood). A variable that is set but empty
    counts as unset; `none` stands for None.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        env_parse_none_str="none",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    # --- Kafka
    bootstrap_servers: Annotated[str | None, AfterValidator(types.servers)] = Field(
        None, description="host:port[,host:port] of Kafka. Unset: one-shot commands start the embedded broker."
    )
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(types.upper)
    ] = Field(
        "PLAINTEXT", description="How Kafka is spoken to: with TLS (`…SSL`), with a user (`SASL_…`), both, or not."
    )
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None, BeforeValidator(types.upper)
    ] = Field(None, description="How the password is proved to Kafka; required with `SASL_…`.")
    sasl_username: str | None = Field(None, description="User towards Kafka; required with `SASL_…`.")
    sasl_password: SecretStr | None = Field(None, description="Password of that user; required with `SASL_…`.")
    ssl_ca_location: Path | None = Field(
        None, description="PEM file: the authorities that may sign brokers' certificates. Unset: those of the system."
    )
    ssl_certificate_location: Path | None = Field(
        None, description="PEM file: our certificate and its chain, for brokers that ask for one."
    )
    ssl_key_location: Path | None = Field(None, description="PEM file: the key of that certificate.")
    ssl_key_password: SecretStr | None = Field(None, description="Password of that key, if it is encrypted.")
    app_id: Annotated[types.Name, AfterValidator(types.not_empty)] = Field(
        "millstream", description="Consumer group, and prefix of transactional ids and changelog topics."
    )
    namespace: Annotated[str, AfterValidator(types.namespace)] = Field(
        "", description="Prefix of app id and topics, for private one-shots and tests."
    )
    worker_slot: Annotated[types.Name, AfterValidator(types.not_empty)] = Field(
        default_factory=lambda: re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "worker",
        description="Stable name of this worker: its transactional id. Two live workers must not share one.",
    )
    topic_replication_factor: int = Field(
        1, ge=1, le=32767, description="Of topics we create; 3 (and min.insync.replicas 2) in production."
    )
    topic_layout: Literal["instance", "shared"] = Field(
        "instance", description="One topic per Redis instance, or one shared topic keyed by instance."
    )
    shared_topic_partitions: int = Field(
        12, ge=1, le=10_000, description="Partitions of the shared topic, when created."
    )
    discovery_interval: types.Seconds = Field(
        3.0, description="Seconds between looks for topics of new instances (T12)."
    )
    exactly_once: bool = Field(True, description="Off: chunks are committed without transactions (for benchmarks).")

    # --- Group membership. Session + transaction timeout bound how long a paused worker stalls its partitions.
    session_timeout: types.Seconds = Field(
        30.0, description="Seconds without heartbeat until the group expels a worker."
    )
    heartbeat_interval: types.Seconds = Field(
        3.0, description="Seconds between heartbeats; at most a third of the session."
    )
    rebalance_timeout: types.Seconds = Field(
        60.0, description="Seconds a worker may take to rejoin: the running commit and sink writes must end within it."
    )
    transaction_timeout: types.Seconds = Field(15.0, description="Seconds until the broker aborts an open transaction.")
    stability_timeout: types.Seconds = Field(
        90.0, description="Seconds to wait at assignment for a predecessor's open transaction to be decided (hole j)."
    )
    request_timeout: types.Seconds = Field(
        30.0, description="Seconds until one request to the broker counts as failed."
    )
    shutdown_timeout: types.Seconds = Field(
        30.0, description="Seconds from SIGTERM for finishing open chunks; what is left is replayed by the next owner."
    )

    # --- Fetching and chunks
    chunk_max_rows: int = Field(50_000, ge=1, le=1_000_000, description="Rows that seal a chunk.")
    chunk_max_bytes: ByteSize = Field(
        ByteSize(32 * MIB), ge=1024, le=1024 * MIB, description="Decoded bytes that seal a chunk."
    )
    chunk_max_age: types.Seconds = Field(1.0, description="Seconds after its first record that seal a chunk.")
    fetch_max_bytes: ByteSize = Field(
        ByteSize(16 * MIB), ge=1024, le=1024 * MIB, description="Bytes of one fetch answer."
    )
    partition_fetch_bytes: ByteSize = Field(
        ByteSize(4 * MIB), ge=1024, le=1024 * MIB, description="Bytes of one partition in one fetch answer."
    )
    buffer_max_bytes: ByteSize = Field(
        ByteSize(128 * MIB), ge=1024, description="Decoded bytes that all partitions of a worker may hold unplanned."
    )
    worker_threads: int = Field(8, ge=1, le=256, description="Threads for decoding and sinks, all partitions together.")
    max_message_bytes: ByteSize = Field(
        ByteSize(8 * MIB),
        ge=1024,
        le=1024 * MIB,
        description="Largest message we produce; max.message.bytes of our topics.",
    )
    max_replays: int = Field(10, ge=1, description="Replays of one chunk after which its partition is parked (hole i).")
    allow_dead_letters: bool = Field(False, description="Publish a batch although some of its records were refused.")

    # --- Streams and local state
    streams: Annotated[list[str], NoDecode, BeforeValidator(types.split), AfterValidator(types.modules)] = Field(
        default=["streams.archive", "streams.batches"], description="Modules with agents, with commas between."
    )
    data_dir: Path = Field(
        Path("var/data"), description="Tables (RocksDB), one folder per worker slot, and the embedded broker's data."
    )

    # --- Sinks
    parquet_dir: Path | None = Field(None, description="Directory of the Parquet sink. Unset: no Parquet sink.")
    parquet_compression: Literal["zstd", "snappy", "none"] = Field("zstd", description="Codec of Parquet columns.")
    parquet_sort: bool = Field(False, description="Sort each instance's file by (db, key).")
    clickhouse_url: Annotated[SecretStr | None, AfterValidator(types.clickhouse)] = Field(
        None, description="http(s)://user:password@host:port?database=d or chdb:///absolute/path?database=d."
    )
    clickhouse_auto_create_tables: bool = Field(
        False, description="Create the ClickHouse tables if none of them exists."
    )
    clickhouse_proxy_url: Annotated[SecretStr | None, AfterValidator(types.proxy)] = Field(
        None, description="HTTP proxy on the way to ClickHouse."
    )
    clickhouse_timeout: types.Seconds = Field(10.0, description="Seconds to connect to, or send to, ClickHouse.")
    postgres_url: Annotated[SecretStr | None, AfterValidator(types.postgres)] = Field(
        None, description="postgresql://user:password@host:port/database, for changefeeds and the Postgres sinks."
    )
    postgres_pool_size: int = Field(8, ge=1, le=1000, description="Connections to Postgres that a worker may open.")
    sink_retry_timeout: types.Seconds | None = Field(
        None, description="Seconds of retrying one sink call until it counts as failed; unset: keep trying."
    )

    # --- Redis as a source of dumps
    redis_username: str = Field("", description="ACL user for dumps from Redis servers. Option: --username.")
    redis_password: SecretStr | None = Field(
        None,
        description="Password for dumps from Redis servers. Option: --password, which others on the host can see.",
    )
    redis_timeout: types.Seconds = Field(
        60.0, description="Seconds without a byte until a Redis counts as gone; while it prepares a dump it sends some."
    )
    redis_retry_timeout: types.Seconds = Field(
        30.0, description="Seconds to wait for a Redis that is loading, busy, or without its master."
    )

    # --- Products: what `millstream etl` does
    etl_overlap: Annotated[float, Field(ge=0)] = Field(
        60.0, description="Seconds before the watermark at which a run begins: rows that were committed late (T63)."
    )

    # --- Outbox: what `millstream outbox` and streams.outbox do
    outbox_topics: Annotated[dict[str, str], NoDecode, BeforeValidator(types.pairs), AfterValidator(types.topics)] = (
        Field(
            default={"video": "catalog.video.events"},
            description="Topic of each aggregate type: type=topic, with commas between. Others are left alone.",
        )
    )
    outbox_topic_partitions: int = Field(4, ge=1, le=10_000, description="Partitions of those topics, when created.")
    outbox_via: Literal["polling", "replication"] = Field(
        "polling", description="How the relay learns of events: by asking the table, or from a replication slot."
    )
    outbox_batch_size: int = Field(500, ge=1, le=10_000, description="Events of one claim; 100 to 500 are sensible.")
    outbox_lease: types.Seconds = Field(
        120.0, description="Seconds after which another relay may take over what a silent one holds: rows, slot (T52)."
    )
    outbox_publish_timeout: types.Seconds = Field(
        10.0, description="Seconds until a batch that Kafka has not acknowledged counts as failed, and is tried again."
    )
    outbox_backoff: types.Seconds = Field(
        2.0, description="Seconds until a failed event is tried again; doubles each time."
    )
    outbox_backoff_max: types.Seconds = Field(120.0, description="Seconds at which that stops growing.")
    outbox_max_attempts: int = Field(
        20, ge=1, description="Refusals by Kafka after which an event is parked, and its aggregate held back (T54)."
    )
    outbox_poll_min: types.Seconds = Field(
        0.25, description="Seconds up to which an idle relay waits at first, at random."
    )
    outbox_poll_max: types.Seconds = Field(
        30.0, description="Seconds up to which that doubles; a notification ends the wait."
    )
    outbox_slot: Annotated[str, AfterValidator(types.identifier)] = Field(
        "millstream_outbox", description="Replication slot of the relay via replication."
    )
    outbox_publication: Annotated[str, AfterValidator(types.identifier)] = Field(
        "millstream_outbox", description="Publication that it reads: inserts into catalog.outbox_events."
    )

    # --- Projection: what streams.projection and streams.videos do
    projection_inbox_retention: types.Seconds | None = Field(
        30 * 86_400.0,
        description="Seconds until an applied event is forgotten (T19): above Kafka's retention. Unset: never.",
    )
    projection_clickhouse: bool = Field(False, description="Keep video events in ClickHouse too, with the same view.")
    videos_wait_max: types.Seconds = Field(5.0, description="Seconds that a reader of a video may wait for a version.")

    # --- Looking at it
    web_bind: Annotated[str, AfterValidator(types.not_empty)] = Field(
        "127.0.0.1", description="Address of the web views; Faust's own default would be every interface."
    )
    web_port: int = Field(
        6066,
        ge=1,
        le=65535,
        description="Port of a worker's web views: /status, /metrics, /livez, /readyz, /statusz. Given and taken, the "
        "worker ends; only the default gives way.",
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port of /metrics for commands without a worker: relay, feed, dump, etl."
    )
    traces: Literal["off", "otlp", "console"] = Field(
        "off", description="Where OpenTelemetry spans go; `otlp`: over HTTP to OTEL_EXPORTER_OTLP_ENDPOINT."
    )
    metrics_interval: types.Seconds = Field(
        5.0, description="Seconds between looks at the ends of the logs, for the lag, and at tables and batches."
    )
    ready_sink_failing: types.Seconds = Field(
        60.0, description="Seconds of retrying one sink call after which a worker is not ready."
    )
    ready_stalled: types.Seconds = Field(
        300.0, description="Seconds that a chunk may stay in one state before its worker is not ready."
    )
    log_format: Annotated[Literal["console", "json"], BeforeValidator(types.lower)] = Field(
        "console", description="How log lines look."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(types.lower)] = Field(
        "info", description="Lowest level that is logged."
    )

    def __init__(self, **values: Any) -> None:
        problems = _unknown_variables()
        try:
            super().__init__(**values)
        except ValidationError as e:
            problems += [_problem(error) for error in e.errors(include_url=False)]
        except ConfigError as e:
            problems.append(str(e))
        if problems:  # Raised out here, so that no exception with unmasked values hangs on it.
            raise ConfigError("\n".join(problems))
        for secret in (self.clickhouse_url, self.clickhouse_proxy_url, self.postgres_url):
            if secret is not None:
                register_url(secret.get_secret_value())
        if self.redis_password is not None:
            register_secret(self.redis_password.get_secret_value(), self.redis_username)
        if self.sasl_password is not None:
            register_secret(self.sasl_password.get_secret_value(), self.sasl_username or "")
        if self.ssl_key_password is not None:
            register_secret(self.ssl_key_password.get_secret_value())

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if problems := contradictions(PREFIX, self):
            raise ValueError("\n".join(problems))
        return self

    @property
    def uses_sasl(self) -> bool:
        """Whether we prove to Kafka who we are by a user and a password."""
        return self.security_protocol.startswith("SASL_")

    @property
    def uses_tls(self) -> bool:
        """Whether connections to Kafka are encrypted, and its certificates checked."""
        return self.security_protocol.endswith("SSL")

    @property
    def group_id(self) -> str:
        """Consumer group of the workers: namespace and app id."""
        return self.namespace + self.app_id

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the TOML file."""
        return init_settings, env_settings, _TomlFile(settings_cls)


class _TomlFile(PydanticBaseSettingsSource):
    """`millstream.toml` in the working directory, or the file that MILLSTREAM_CONFIG names (which must exist)."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise AssertionError("not used: __call__ gives all fields at once")

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get(f"{PREFIX}CONFIG")
        path = Path(named or "millstream.toml")
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            if named:
                raise ConfigError(f"{PREFIX}CONFIG = {named!r}: no such file") from None
            return {}
        except (OSError, ValueError) as e:
            raise ConfigError(f"{path}: cannot be read as TOML: {mask_url(str(e))}") from None
        known = Settings.model_fields
        unknown = [f"{path}: unknown key {key!r}{_did_you_mean(key, known)}" for key in values if key not in known]
        if unknown:
            raise ConfigError("\n".join(unknown))
        return {key: None if value == "none" else value for key, value in values.items()}


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"


def _unknown_variables() -> list[str]:
    known = {PREFIX + name.upper() for name in (*Settings.model_fields, *OTHER_VARIABLES)}
    ours = (name for name in os.environ if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}TEST_"))
    return [f"{name}: unknown variable{_did_you_mean(name, known)}" for name in sorted(ours) if name not in known]


def _problem(error: Any) -> str:
    """One line: the variable, the value (masked if secret), what is allowed."""
    if not error["loc"]:  # From a validator over several fields: names its variables itself.
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0])
    field = Settings.model_fields.get(name)
    if field is None:
        return f"{name}: unknown setting{_did_you_mean(name, Settings.model_fields)}"
    secret = "SecretStr" in str(field.annotation)
    value = mask_url(str(error["input"])) if secret else repr(error["input"])
    if secret and value == str(error["input"]):
        value = "***"  # No password found to mask: it may stand anywhere in what was typed.
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{PREFIX}{name.upper()} = {value}: {message[:1].lower()}{message[1:]}"


_current: Settings | None = None


def get_settings() -> Settings:
    """The settings of this process, read once. Raises ConfigError."""
    global _current  # noqa: PLW0603
    if _current is None:
        _current = Settings()
    return _current


@contextmanager
def override_settings(**values: Any) -> Iterator[Settings]:
    """Inside, `get_settings()` gives the current settings with `values` in their place, validated anew."""
    global _current  # noqa: PLW0603
    before = _current
    base = {name: getattr(before, name) for name in before.model_fields_set} if before is not None else {}
    _current = Settings(**(base | values))
    try:
        yield _current
    finally:
        _current = before
