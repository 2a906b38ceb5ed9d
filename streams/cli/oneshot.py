"""A one-shot: a private namespace, a worker of its own, feed, wait until the batch is published, clean up.

The namespace follows from cluster, batch and target, so a one-shot that was killed and is started again for the same
batch finds what it has done, and goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient

from millstream.broker import broker_from
from millstream.cluster import client_config
from millstream.errors import MillstreamError
from millstream.settings import PREFIX, Settings, get_settings, override_settings
from schemas.batch import Batch
from sources.feed import FeedJob, FeedResult, prepare_topics
from sources.feeders import FeedError, feed_all
from streams.cli.progress import DumpProgress
from streams.cli.states import States
from streams.cli.worker import WorkerProcess
from streams.ledger import ABORTED, FAILED, PUBLISHED, BatchState

IDLE_SECONDS = 180.0
"""Without any change for so long the one-shot gives up; above the sinks' retry timeout."""
_DEFAULTS = {
    "SESSION_TIMEOUT": "10",  # a one-shot that was killed is started again: its successor waits for this
    "SINK_RETRY_TIMEOUT": "60",  # RU-73
    "LOG_FORMAT": "console",
    "WORKER_THREADS": str(max(2, os.cpu_count() or 2)),  # each thread keeps a heap; there is one machine to use up
}
_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
"""Less held back by allocators: 330 MiB become 220 in the worker of a 10 M key dump, at the same speed."""


class DumpFailedError(MillstreamError):
    """The batch was not published. The text says why and what to do."""


@dataclass(frozen=True)
class OneShot:
    """What to dump and where to."""

    jobs: Sequence[FeedJob]
    sinks: Mapping[str, str]
    """Settings of the sinks, names without prefix; those not given are switched off."""
    concurrency: int
    options: Mapping[str, str] = field(default_factory=dict)
    """Other settings of the worker, names without prefix."""

    @property
    def batch(self) -> Batch:
        """The batch."""
        return self.jobs[0].batch

    @property
    def namespace(self) -> str:
        """The same for the same cluster, batch and target."""
        target = sorted((k, v) for k, v in self.sinks.items() if k in ("PARQUET_DIR", "CLICKHOUSE_URL"))
        text = repr((self.batch.key, target))
        return f"oneshot-{hashlib.sha256(text.encode()).hexdigest()[:16]}."

    async def run(self) -> BatchState:
        """Until the batch is published. Raises DumpFailedError, WorkerFailedError, BrokerError, ConfigError."""
        given = get_settings()
        async with broker_from(given) as servers:
            with override_settings(bootstrap_servers=servers, namespace=self.namespace) as settings:
                environment = self._environment(given, servers)
                log_path = (given.data_dir / "logs" / f"{self.namespace}log").absolute()
                with States(settings) as states:
                    found = (await asyncio.to_thread(states.load)).batch(self.batch.key)
                if found is not None and found.state == PUBLISHED:
                    await asyncio.to_thread(self._clean_up, settings)  # killed between publishing and this
                    return found
                if found is not None and found.state in (FAILED, ABORTED):
                    await asyncio.to_thread(self._clean_up, settings)  # what failed once is begun anew
                await asyncio.to_thread(prepare_topics, settings, list(self.jobs))
                with States(settings) as states:
                    async with WorkerProcess(environment, log_path) as worker:
                        try:
                            state = await self._feed_and_wait(states, worker, environment)
                        except DumpFailedError as exc:
                            raise DumpFailedError(f"{exc}\nThe log of the worker: {log_path}") from exc
                await asyncio.to_thread(self._clean_up, settings)
                log_path.unlink(missing_ok=True)
                return state

    async def _feed_and_wait(self, states: States, worker: WorkerProcess, environment: Mapping[str, str]) -> BatchState:
        key, expected = self.batch.key, len(self.jobs)
        sizes = {job.instance: _size(job.path) for job in self.jobs}
        with DumpProgress(sum(sizes.values()), expected) as progress, worker.log_path.open("ab") as log:
            feeding = asyncio.create_task(
                feed_all(
                    self.jobs,
                    self.concurrency,
                    lambda job, rows, at: progress.fed(job.instance, rows, at),
                    environment,
                    log,
                )
            )
            try:
                last_change = time.monotonic()
                while True:
                    before = states.changes, progress.fed_rows
                    await asyncio.to_thread(states.update, 0.2)
                    state = states.batch(key)
                    if state is not None:
                        progress.stored(state.rows, state.done)
                    if feeding.done() and (failed := _failures(feeding.result())):
                        raise DumpFailedError(f"batch {self.batch.rfc3339} was not published: {failed}{self._again()}")
                    if state is not None and state.state == PUBLISHED and feeding.done():
                        progress.finished()
                        return state
                    if state is not None and state.state in (FAILED, ABORTED):
                        # What it has for feeders that failed is said better by these.
                        if not feeding.done():
                            with suppress(TimeoutError):
                                await asyncio.wait_for(asyncio.shield(feeding), 1)
                                continue
                        raise DumpFailedError(
                            f"batch {self.batch.rfc3339} {state.state}: {state.reason}{self._again()}"
                        )
                    worker.check()
                    if (states.changes, progress.fed_rows) != before:
                        last_change = time.monotonic()
                    elif time.monotonic() - last_change > IDLE_SECONDS:
                        raise DumpFailedError(
                            f"nothing arrived for {IDLE_SECONDS:.0f} s; {state.done if state else 0} of {expected} "
                            f"instances are done. The end of the worker's log:\n{worker.tail()}"
                        )
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    def _again(self) -> str:
        return f"\nWhen it is mended start again with --batch-timestamp {self.batch.rfc3339}"

    def _environment(self, given: Settings, servers: str) -> dict[str, str]:
        """Of the worker and the feeders."""
        environment = dict(os.environ)
        defaults = {k: v for k, v in _DEFAULTS.items() if k.lower() not in given.model_fields_set}
        ours = {
            **defaults,
            "BOOTSTRAP_SERVERS": servers,
            "NAMESPACE": self.namespace,
            "WORKER_SLOT": "oneshot",
            "DATA_DIR": str(given.data_dir.absolute()),
            "STREAMS": "streams.archive,streams.batches",
            "PARQUET_DIR": "none",
            "CLICKHOUSE_URL": "none",
            "CLICKHOUSE_PROXY_URL": "none",
            **self.options,
            **self.sinks,
        }
        return _MEMORY | environment | {PREFIX + name: value for name, value in ours.items()}

    def _clean_up(self, settings: Settings) -> None:
        """Topics, groups and local state of the namespace. Blocking."""
        admin, timeout = AdminClient(client_config(settings)), settings.request_timeout
        groups = admin.list_consumer_groups(request_timeout=timeout).result().valid
        ours = [g.group_id for g in groups if g.group_id.startswith(self.namespace)]
        # A group whose member was killed is not empty yet; without its topics it means nothing and expires.
        for future in (admin.delete_consumer_groups(ours, request_timeout=timeout) if ours else {}).values():
            with suppress(ck.KafkaException):
                future.result()
        topics = [t for t in admin.list_topics(timeout=timeout).topics if t.startswith(self.namespace)]
        for name, future in (admin.delete_topics(topics, request_timeout=timeout) if topics else {}).items():
            try:
                future.result()
            except ck.KafkaException as exc:
                if exc.args[0].code() != ck.KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise DumpFailedError(f"cannot delete topic {name!r}: {exc.args[0].str()}") from exc
        shutil.rmtree(settings.data_dir / settings.group_id, ignore_errors=True)


def _failures(results: Mapping[str, FeedResult | FeedError]) -> str:
    """What went wrong with the feeders, or nothing."""
    said = []
    for instance, result in results.items():
        if isinstance(result, FeedError):
            said.append(f"instance {instance}: {result}")
        elif result.outcome == "aborted":
            said.append(f"instance {instance}: {result.reason}")
    return "\n".join(said)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
