"""The Faust app with the engine in it."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import socket
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import faust
import pyarrow as pa
from confluent_kafka.admin import NewTopic
from mode.utils.logging import FileLogProxy

from millstream import metrics, tracing
from millstream.broker import unanswered
from millstream.cluster import TP, Cluster, client_config, new_topic
from millstream.errors import BrokerError, ConfigError, KafkaRefusedError
from millstream.logs import configure, get_logger, logging_config
from millstream.settings import Settings
from millstream.start import load_pandas
from schemas.codecs import Codec, make_codec
from schemas.names import dlq_topic
from sinks.base import Sink
from streams.engine.agents import Agent, ChunkTopic
from streams.engine.assignor import Assignor
from streams.engine.failure import die, end_within, unreachable
from streams.engine.memory import keep_freed_memory
from streams.engine.observer import Observer
from streams.engine.recovery import Recovery, TableLog
from streams.engine.registry import Registry
from streams.engine.sinking import Sinks
from streams.engine.slot import SlotLock
from streams.engine.task import EventMessage
from streams.engine.topology import Source, Topology
from streams.engine.transport import credentials, register
from streams.web import views
from tables.table import Table

log = get_logger(__name__)

_LAST_LOOK = 5.0
"""Seconds that a broker has to answer once a start has failed, to tell whether that is because of it."""
GC_THRESHOLDS = (50_000, 50, 100)
"""Allocations between collections: with the default of 700 the collector takes a third of a worker's time."""


class EventTopic(faust.Topic):
    """An ordinary topic: an event that cannot be decoded is a dead letter, not a crash (T13)."""

    async def on_key_decode_error(self, exc: Exception, message: Any) -> None:
        """Send the record to the dead-letter topic, in its chunk's transaction."""
        await self.on_value_decode_error(exc, message)

    async def on_value_decode_error(self, exc: Exception, message: Any) -> None:
        """Send the record to the dead-letter topic, in its chunk's transaction."""
        if not isinstance(message, EventMessage):
            await super().on_value_decode_error(exc, message)
            return
        message.chunk.reject(message.offset, f"{type(exc).__name__}: {exc}")


class App(faust.App):
    """A Faust app whose agents may read chunks, and which commits exactly once."""

    logger = logging.getLogger("faust.app")  # not ours: it says "Starting..." at INFO

    def __init__(self, settings: Settings, **options: Any) -> None:
        register()
        self.settings = settings
        self.kafka_config = client_config(settings)
        servers: str = self.kafka_config["bootstrap.servers"]
        self._topology: Topology | None = None
        self.sink_groups: list[Sinks] = []
        self._declared: list[tuple[str, int]] = []
        self._seen_topics: set[str] = set()
        self._slot: SlotLock | None = None
        self.observer = Observer(self)
        self._has_views = False
        self.before_start: list[Callable[[], Awaitable[None]]] = []
        """Awaited before the worker joins its group: declare topics, look at what must be there."""
        super().__init__(
            settings.group_id,
            broker=[f"millstream://{server}" for server in servers.split(",")],
            broker_credentials=credentials(settings),
            store="millstream://",
            datadir=settings.data_dir / settings.group_id / settings.worker_slot,
            Agent=Agent,
            Table=Table,
            Topic=EventTopic,
            PartitionAssignor=Assignor,
            topic_replication_factor=settings.topic_replication_factor,
            topic_partitions=8,
            topic_disable_leader=True,
            table_standby_replicas=0,
            recovery_consistency_check=False,
            stream_wait_empty=False,
            broker_session_timeout=settings.session_timeout,
            broker_heartbeat_interval=settings.heartbeat_interval,
            broker_rebalance_timeout=settings.rebalance_timeout,
            broker_request_timeout=3600.0,  # bounds loading an assignment, tables included
            broker_max_poll_interval=settings.rebalance_timeout,
            web_bind=settings.web_bind,
            web_port=settings.web_port,
            web_host=settings.web_bind,
            producer_partitioner=None,
            logging_config=logging_config(settings),
            **options,
        )

    # ------------------------------------------------------------------ for users
    def chunk_topic(
        self,
        *names: str,
        pattern: str | None = None,
        schema: pa.Schema | None = None,
        payload: str = "json",
        codec: Codec | None = None,
        keys: bool = False,
        partitions: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> ChunkTopic:
        """A topic whose agents get chunks: a range of the log at a time, as one Arrow table.

        `schema` and `payload` (json, msgpack, arrow) say how values become rows; a `codec` of your own does too.
        `keys` adds the record key as column `_key`. With `partitions` the topic is created if missing. `pattern`
        (a regular expression for the whole name) reads every topic that matches, new ones as they appear.
        """
        if codec is None:
            if schema is None:
                raise ConfigError(f"chunk topic {names or pattern}: give a schema or a codec")
            codec = make_codec(payload, schema, keys)
        if bool(names) == bool(pattern):
            raise ConfigError("a chunk topic has either names or a pattern")
        prefix = self.settings.namespace
        return ChunkTopic(
            self,
            codec=codec,
            topics=[prefix + n for n in names] or None,
            pattern=re.compile(re.escape(prefix) + pattern) if pattern else None,
            partitions=partitions,
            config=config or {},
        )

    def topic(self, *topics: str, partitions: int | None = None, has_prefix: bool = False, **kwargs: Any) -> Any:
        """An ordinary topic, as in Faust; with `partitions` it is created if missing when the worker starts."""
        # The app's own topics (changelogs, replies) begin with its id, which has the namespace in it already.
        own = f"{self.settings.group_id}-"
        names = [t if has_prefix or t.startswith(own) else self.settings.namespace + t for t in topics]
        made = super().topic(*names, partitions=partitions, has_prefix=has_prefix, **kwargs)
        if partitions:
            self._declared += [(name, partitions) for name in names]
        return made

    def SetTable(self, name: str, **_: Any) -> Any:
        """Not offered: its changes would go to the changelog past the transaction. Raises ConfigError."""
        raise ConfigError(f"SetTable {name!r} is not offered: use app.Table with sets, or lists, as values")

    def GlobalTable(self, name: str, **_: Any) -> Any:
        """Not offered: a table's partition is where its topic's partition is. Raises ConfigError."""
        raise ConfigError(f"GlobalTable {name!r} is not offered: use app.Table, and topics that are keyed alike")

    def SetGlobalTable(self, name: str, **_: Any) -> Any:
        """Not offered. Raises ConfigError."""
        raise ConfigError(f"SetGlobalTable {name!r} is not offered: use app.Table")

    def sinks(self, *sinks: Sink, retry_timeout: float | None = None) -> Sinks:
        """Sinks that a stream writes to; opened and closed with the worker."""
        group = Sinks(sinks, retry_timeout if retry_timeout is not None else self.settings.sink_retry_timeout)
        self.sink_groups.append(group)
        return group

    # ------------------------------------------------------------------ for the engine
    @property
    def topology(self) -> Topology:
        """Which agents read what. Built when first asked for: all agents must be declared by then."""
        if self._topology is None:
            self._topology = Topology(self._sources())
            metrics.streams_by_pattern(s.pattern for s in self._topology.sources if s.pattern)
        return self._topology

    @property
    def cluster(self) -> Cluster:
        """Admin client."""
        if "_cluster" not in self.__dict__:
            self._cluster = Cluster(self.kafka_config, self.settings.request_timeout)
        return self._cluster

    @property
    def registry(self) -> Registry:
        """Partitions that were ever started."""
        return Registry(self.cluster, self.conf.id)

    @property
    def recovery(self) -> Recovery:
        """Loads assignments."""
        if "_recovery" not in self.__dict__:
            self._recovery = Recovery(self.cluster, self.registry, self.conf.id, self.settings.stability_timeout)
        return self._recovery

    def tables_of(self, tp: TP) -> dict[str, TableLog]:
        """Tables that chunks of this partition may change."""
        source = self.topology.source_of(tp.topic)
        names = source.tables if source else ()
        return {n: TableLog(self.tables[n].changelog_topic.get_topic_name(), self.tables[n].data) for n in names}

    def changelogs_of(self, tps: Iterable[TP]) -> set[TP]:
        """Changelog partitions that go with source partitions."""
        return {TP(t.changelog, tp.partition) for tp in tps for t in self.tables_of(tp).values()}

    def close_table_partitions(self) -> None:
        """Close all table partitions on this worker. Blocking."""
        for table in self.tables.values():
            for partition in table.data.partitions:
                table.data.close_partition(partition)

    def _sources(self) -> list[Source]:
        found: dict[tuple[Any, ...], Source] = {}
        for agent in self.agents.values():
            channel = agent.channel
            if not isinstance(channel, faust.Topic):
                continue
            names, pattern = tuple(channel.topics or ()), channel.pattern
            codec = channel.codec if isinstance(channel, ChunkTopic) else None
            source = found.setdefault((names, pattern), Source(names, pattern, codec, channel.partitions))
            if (source.codec is None) != (codec is None):
                raise ConfigError(f"topic {source.label} is read by chunk agents and by ordinary agents: choose one")
            source.agents.append(agent)
            source.tables |= agent.table_names
        return list(found.values())

    def _partitions_found(self, table: str) -> int | None:
        """Partitions that the existing source topics of a table have."""
        sources = [s for s in self.topology.sources if table in s.tables]
        names = self.cluster.matching(lambda name: any(s.matches(name) for s in sources))
        return max((info.partitions for info in self.cluster.topics(names).values()), default=None)

    def declarations(self) -> list[NewTopic]:
        """Topics that must exist before the worker starts, with their partition counts. May block."""
        settings = self.settings
        found = {self.registry.topic: self.registry.declaration(settings)}
        sources = [(n, s.partitions) for s in self.topology.sources for n in s.names if s.partitions]
        for name, partitions in [*self._declared, *sources]:
            found[name] = new_topic(settings, name, partitions)
        for table, count in self.topology.table_partitions().items():
            topic = self.tables[table].changelog_topic
            topic.partitions = count or self._partitions_found(table) or topic.partitions
            name = topic.get_topic_name()
            found[name] = new_topic(settings, name, topic.partitions, **{"cleanup.policy": "compact"})
        return list(found.values())

    def ensure_topics(self, names: set[str]) -> None:
        """Output topics must exist before a transaction begins; dead-letter topics are made. Blocking."""
        missing = names - self._seen_topics - self.cluster.topics(names - self._seen_topics).keys()
        letters = {name for name in missing if name.endswith(dlq_topic(""))}
        if missing - letters:
            raise ConfigError(
                f"output topic {min(missing - letters)!r} does not exist: create it, or give app.topic(…, partitions=N)"
            )
        self.cluster.create([new_topic(self.settings, name, 1) for name in letters])
        self._seen_topics |= names

    # ------------------------------------------------------------------ life cycle
    def worker_init_post_autodiscover(self) -> None:
        """Our web views, before Faust's own: the first one of a path answers. Called again by each part of its CLI."""
        if not self._has_views:
            self._has_views = True
            views.install(self)
        super().worker_init_post_autodiscover()

    def on_init_dependencies(self) -> Any:
        """A port that was asked for and is taken ends the worker: who asked for it looks there. The default gives way,
        so that a second worker on a host needs no port."""
        self._keep_stderr()
        if self.conf.web_enabled and (why := self._port_refused()):
            given = "web_port" in self.settings.model_fields_set or self.conf.web_port != self.settings.web_port
            where = f"{self.conf.web_bind}:{self.conf.web_port}"
            if given:
                die(
                    ConfigError(
                        f"the web views cannot be served at {where}: {why}. Give this worker another "
                        "MILLSTREAM_WEB_PORT (or MILLSTREAM_WEB_BIND), or start it with --without-web"
                    )
                )
            with warnings.catch_warnings(action="ignore"):  # Faust's, about settings that change late
                self.conf.web_enabled = False
            log.warning(
                "web_port_taken",
                port=self.conf.web_port,
                description=f"{where}: {why}. The worker goes on without metrics, health checks and web views; give "
                "it a MILLSTREAM_WEB_PORT of its own",
            )
        return super().on_init_dependencies()

    def _port_refused(self) -> str:
        """Why the port of the web views cannot be listened at, or nothing."""
        try:
            family, kind, *_, address = socket.getaddrinfo(
                self.conf.web_bind, self.conf.web_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as exc:
            return exc.strerror or str(exc)
        return ""

    def _keep_stderr(self) -> None:
        """Faust turns stderr into a logger, which would swallow every line that our log handler writes there."""
        if isinstance(sys.stderr, FileLogProxy):
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        configure(self.settings)

    async def on_first_start(self) -> None:
        """Faust makes the last level of the data directory only."""
        self._keep_stderr()
        await asyncio.to_thread(Path(self.conf.datadir).mkdir, parents=True, exist_ok=True)
        await super().on_first_start()

    async def on_start(self) -> None:
        """Everything that can be wrong before joining the group is found here."""
        await super().on_start()
        if self.client_only or self.producer_only:
            return
        keep_freed_memory()
        try:
            tracing.start(self.settings, "worker")
            self._slot = SlotLock(Path(self.conf.datadir))
            topics = asyncio.to_thread(lambda: self.cluster.create(self.declarations()))
            await asyncio.gather(topics, asyncio.to_thread(load_pandas))
            for prepare in self.before_start:
                await prepare()
            for group in self.sink_groups:
                await group.open()
        except Exception as exc:  # noqa: BLE001 - said once, plainly, instead of Faust's traceback of tasks
            if self.should_stop:  # SIGTERM meanwhile: the stop has closed what was being opened (T22)
                log.info("start_abandoned", description=f"told to stop while starting ({type(exc).__name__}: {exc})")
                return
            why = None
            if isinstance(exc, BrokerError) and not isinstance(exc, KafkaRefusedError):
                why = await asyncio.to_thread(unanswered, self.kafka_config, _LAST_LOOK)
            die(unreachable(self.kafka_config, exc, why) if why else exc)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    async def _stop_consumer(self) -> None:
        """Finish or abandon what is open before Faust takes the parts away (T22)."""
        consumer: Any = self._consumer
        if consumer is not None:
            bound = self.settings.shutdown_timeout
            end_within(bound * 2 + 10, "the orderly stop")
            await consumer.drain(bound)
        await super()._stop_consumer()
        for group in self.sink_groups:
            await group.close()
        await asyncio.to_thread(tracing.stop)
        if self._slot is not None:
            self._slot.release()
