"""Membership and fetching, which stay aiokafka's: the consumer in Faust's consumer thread, who we are in the group."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import aiokafka
from aiokafka.client import ConnectionGroup
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver

from millstream.cluster import TP
from streams.engine import fetch, logins
from streams.engine.failure import die, unreachable
from streams.engine.plan import Position

FETCH_MIN_BYTES = 64 * 1024
FETCH_MAX_WAIT, FETCH_LEAST_WAIT = 0.1, 0.01
"""The broker answers a fetch when so much has come, or after so many seconds; sooner where chunks are sealed young. An
answer for every few records costs worker and broker a core at 10,000 records a second."""
FETCH_BATCHES = 2000
"""Record batches that one read may bring; the memory bound is the fetch size."""
LEAVING_PATIENCE = 2.0
"""Seconds for a rebalance that is under way while we stop."""


class RebalanceListener(driver.ConsumerRebalanceListener):
    """Runs in the consumer thread, the only place where generation and member id belong together for sure."""

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> Any:
        """Note whether we are still a member (a rebalance), or were expelled."""
        coordinator = self._thread._consumer._coordinator
        consumer = self._thread.consumer
        consumer.expelled = consumer.joined_as != (coordinator.generation, coordinator.member_id)
        return super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Note who we are in this generation, then go on as Faust does."""
        coordinator = self._thread._consumer._coordinator
        self._thread.consumer.joined_as = (coordinator.generation, coordinator.member_id)
        await super().on_partitions_assigned(assigned)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with our assignor, a pattern subscription and fetches of whole batches."""

    logger = logging.getLogger("faust.consumer")

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        app, settings = self.app, self.app.settings
        self._assignor = app.assignor
        fetch.install()
        fetch.WHOLE_BATCHES.set(True)
        logins.watch(settings)
        return aiokafka.AIOKafkaConsumer(
            client_id=app.conf.broker_client_id,
            group_id=app.conf.id,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="none",  # hole c: out of range is never skipped
            isolation_level="read_committed",
            check_crcs=True,
            max_poll_records=None,
            max_poll_interval_ms=int(settings.rebalance_timeout * 1000),
            fetch_max_bytes=int(settings.fetch_max_bytes),
            max_partition_fetch_bytes=int(settings.partition_fetch_bytes),
            fetch_min_bytes=FETCH_MIN_BYTES,
            fetch_max_wait_ms=int(1000 * min(FETCH_MAX_WAIT, max(FETCH_LEAST_WAIT, settings.chunk_max_age / 4))),
            request_timeout_ms=int(max(settings.request_timeout, settings.rebalance_timeout + 5) * 1000),
            session_timeout_ms=int(settings.session_timeout * 1000),
            rebalance_timeout_ms=int(settings.rebalance_timeout * 1000),
            heartbeat_interval_ms=int(settings.heartbeat_interval * 1000),
            metadata_max_age_ms=int(settings.discovery_interval * 1000),  # how soon new topics are seen (T12)
            **driver.credentials_to_aiokafka_auth(app.conf.broker_credentials, app.conf.ssl_context),
        )

    async def on_start(self) -> None:
        """Connect. A broker that went away after the app found it ends the worker like every error of a broker."""
        try:
            await super().on_start()
        except aiokafka.errors.KafkaError as exc:
            die(unreachable(self.app.kafka_config, exc))

    def close(self) -> None:
        """Nothing. Faust calls it at a rebalance while the app stops, marks the consumer as closed and closes its parts
        in another loop than theirs: neither was then ever done in order, and the worker hung (seed 636318587)."""

    async def on_thread_stop(self) -> None:
        """Leave the group. A rebalance that is under way may wait for members that died: we do not wait with it."""
        stopping = asyncio.ensure_future(super().on_thread_stop())
        while not (await asyncio.wait([stopping], timeout=LEAVING_PATIENCE))[0]:
            self._hang_up()
        await stopping

    def _hang_up(self) -> None:
        """The broker answers requests of a connection in turn: leaving would stand behind joining."""
        if self._consumer is None:
            return
        coordinator = (self._consumer._coordinator.coordinator_id, ConnectionGroup.COORDINATION)
        connection = self._consumer._client._conns.get(coordinator)
        if connection is not None:
            connection.close()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe to every topic that an agent reads, those to come included."""
        pattern = self.app.topology.subscription.pattern
        await self.call_thread(self._ensure_consumer().subscribe, pattern=pattern, listener=self._rebalance_listener)

    async def getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109
        """Fetch whole batches."""
        return await self.call_thread(
            self._fetch_records,
            self._ensure_consumer(),
            active_partitions,
            timeout=timeout,
            max_records=FETCH_BATCHES,
        )

    async def positions(self, tps: Iterable[Any]) -> dict[Any, int]:
        """Where the fetcher is, for those partitions whose position is known."""
        found: dict[Any, int] = await self.call_thread(self._positions, self._ensure_consumer(), tps)
        return found

    async def _positions(self, consumer: aiokafka.AIOKafkaConsumer, tps: Iterable[Any]) -> dict[Any, int]:
        assignment = consumer._subscription.subscription.assignment
        states = {tp: assignment.state_value(tp) for tp in tps} if assignment is not None else {}
        return {tp: s.position for tp, s in states.items() if s is not None and s.has_valid_position}

    async def attend(self) -> None:
        """Tell aiokafka that the application lives. Raises KafkaError: what its coordinator cannot go on after."""
        await self.call_thread(self._attend, self._ensure_consumer())

    async def _attend(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        with consumer._subscription.fetch_context():
            consumer._coordinator.check_errors()

    async def commit_plain(self, offsets: dict[TP, Position]) -> None:
        """Commit offsets without a transaction (exactly_once off)."""
        await self.call_thread(
            self._ensure_consumer().commit,
            {aiokafka.TopicPartition(*tp): OffsetAndMetadata(p.offset, p.metadata) for tp, p in offsets.items()},
        )
