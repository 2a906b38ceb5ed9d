"""A one-shot: a private namespace, a worker of its own, feed, wait until the batch is published, clean up.

The namespace follows from cluster, batch and target, so a one-shot that was killed and is started again for the same
batch finds what it has done, and goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from millstream.errors import MillstreamError
from millstream.settings import get_settings
from schemas.batch import Batch
from schemas.names import batch_dir
from sinks.clickhouse.config import ClickHouseConfig
from sources.feed import FeedJob, FeedResult, prepare_topics
from sources.feeders import FeedError, feed_all
from streams.cli.private import Private, begun, private
from streams.cli.progress import DumpProgress, size_of
from streams.cli.states import States
from streams.cli.worker import WorkerFailedError, WorkerProcess
from streams.ledger import ABORTED, FAILED, PUBLISHED, BatchState

_OPTIONS = {
    "STREAMS": "streams.archive,streams.batches",
    "PARQUET_DIR": "none",
    "CLICKHOUSE_URL": "none",
    "CLICKHOUSE_PROXY_URL": "none",
}
IDLE_SECONDS = 180.0
"""Without any change for so long the one-shot gives up; above the sinks' retry timeout."""
ASK_SECONDS = 5.0
"""For ClickHouse to say whether it has the batch; if it does not answer the worker finds out, and retries."""
_OTHER_TIMESTAMP = re.compile(r"another (--batch-|batch )timestamp")
"""In a refusal that the same timestamp would meet again."""


class DumpFailedError(MillstreamError):
    """The batch was not published. The text says why and what to do."""


class BatchFailedError(DumpFailedError):
    """The batch has failed, and what there is of it is of no use: the next start begins anew."""


class AlreadyPublishedError(BatchFailedError):
    """The batch was published before, by a command that is done or by others."""


class Outage:
    """That a sink is tried again is said once, and not anew before the time is over that was said."""

    def __init__(self, timeout: float | None, clock: Callable[[], float] = time.time) -> None:
        """`timeout`: seconds for which sinks are retried; None: for ever."""
        self._timeout, self._clock, self._until = timeout, clock, 0.0

    def told(self, why: str, idle: float) -> str:
        """The line to show, or nothing. `idle`: seconds for which nothing has arrived."""
        now, left, setting = self._clock(), IDLE_SECONDS - idle, ""
        if now < self._until:
            return ""
        if self._timeout is not None and self._timeout <= left:
            left, setting = self._timeout, f" (MILLSTREAM_SINK_RETRY_TIMEOUT = {self._timeout:g} s)"
        self._until = now + left
        at = time.strftime("%H:%M:%S", time.localtime(self._until))
        return f"{why.partition(' <- ')[0]}. It is tried again until {at}{setting}"


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
        # The embedded Kafka is in the same directory: nothing is in it either, and it need not be started to say so.
        new = get_settings().bootstrap_servers is None and not begun(self.namespace)
        if new:
            await self._refuse_published()
        async with private(self.namespace, _OPTIONS | {**self.options, **self.sinks}) as one:
            with States(one.settings) as states:
                found = (await asyncio.to_thread(states.load)).batch(self.batch.key)
            if found is not None and found.state == PUBLISHED:
                await asyncio.to_thread(one.clean_up)  # killed between publishing and this
                return found
            try:
                if found is not None and found.state in (FAILED, ABORTED):
                    await asyncio.to_thread(one.clean_up)  # what failed once is begun anew
                    found = None
                if found is None and not new:
                    await self._refuse_published()
                state = await self._work(one)
            except BatchFailedError:
                with suppress(MillstreamError):
                    await asyncio.to_thread(one.clean_up)
                raise
            except BaseException:
                await asyncio.to_thread(one.drop_tables)
                raise
            await asyncio.to_thread(one.clean_up)
            one.log_path.unlink(missing_ok=True)
            return state

    async def _work(self, one: Private) -> BatchState:
        await asyncio.to_thread(prepare_topics, one.settings, list(self.jobs))
        with States(one.settings) as states:
            async with one.worker() as worker:
                try:
                    return await self._feed_and_wait(states, worker, one)
                except DumpFailedError as exc:
                    exc.add_note(f"The log of the worker: {one.log_path}")
                    raise
                except WorkerFailedError as exc:
                    exc.add_note(self._again().strip())
                    raise

    async def _refuse_published(self) -> None:
        """Raise AlreadyPublishedError if a sink shows the batch. The embedded ClickHouse is left to the worker."""
        where = ""
        if (directory := self.sinks.get("PARQUET_DIR")) is not None:
            published = batch_dir(Path(directory), self.batch)
            where = str(published) if published.exists() else ""
        if not where and (url := self.sinks.get("CLICKHOUSE_URL")) is not None:
            config = ClickHouseConfig.parse(url, proxy_url=self.sinks.get("CLICKHOUSE_PROXY_URL"))
            if not config.embedded and await _shows(config, self.batch):
                where = f"ClickHouse {config.url}"
        if where:
            raise AlreadyPublishedError(
                f"batch {self.batch.rfc3339} of cluster {self.batch.cluster!r} is published already: {where}. It stays "
                "as it is, and nothing was done. To dump anew leave out --batch-timestamp, or give another one"
                + (f"; to replace that batch remove {where} first" if where.startswith("/") else "")
            )

    async def _feed_and_wait(self, states: States, worker: WorkerProcess, one: Private) -> BatchState:
        key, expected = self.batch.key, len(self.jobs)
        outage = Outage(one.settings.sink_retry_timeout)
        with DumpProgress(size_of(self.jobs), expected) as progress, worker.log_path.open("ab") as log:
            feeding = asyncio.create_task(
                feed_all(
                    self.jobs,
                    self.concurrency,
                    lambda job, rows, at: progress.fed(job.instance, rows, at),
                    one.environment,
                    log,
                )
            )
            try:
                last_change = time.monotonic()
                while True:
                    before = states.changes, progress.reports
                    await asyncio.to_thread(states.update, 0.2)
                    state = states.batch(key)
                    if state is not None:
                        progress.stored(state.rows, state.done)
                    if feeding.done() and (failed := _failures(feeding.result())):
                        # Without a feeder's answer the others' work may be gone on with.
                        kind = BatchFailedError if _aborted(feeding.result()) else DumpFailedError
                        raise kind(f"batch {self.batch.rfc3339} was not published: {failed}{self._again()}")
                    if state is not None and state.state == PUBLISHED and feeding.done():
                        progress.finished()
                        return state
                    if state is not None and state.state in (FAILED, ABORTED):
                        # What it has for feeders that failed is said better by these.
                        if not feeding.done():
                            with suppress(TimeoutError):
                                await asyncio.wait_for(asyncio.shield(feeding), 1)
                                continue
                        again = "" if _OTHER_TIMESTAMP.search(state.reason) else self._again()
                        raise BatchFailedError(f"batch {self.batch.rfc3339} {state.state}: {state.reason}{again}")
                    worker.check()
                    why = await asyncio.to_thread(worker.retrying)
                    if why and (line := outage.told(why, time.monotonic() - last_change)):
                        progress.tell(line)
                    if (states.changes, progress.reports) != before:
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


async def _shows(config: ClickHouseConfig, batch: Batch) -> bool:
    """Whether the batch is published there, if that can be had quickly."""
    from sinks.clickhouse import ClickHouseBatches

    with suppress(MillstreamError, TimeoutError):
        async with asyncio.timeout(ASK_SECONDS):
            return await ClickHouseBatches(config).published(batch)
    return False


def _aborted(results: Mapping[str, FeedResult | FeedError]) -> bool:
    """Whether it is on record of an instance that it has failed."""
    return any(isinstance(result, FeedResult) and result.outcome == "aborted" for result in results.values())


def _failures(results: Mapping[str, FeedResult | FeedError]) -> str:
    """What went wrong with the feeders, or nothing."""
    said = []
    for instance, result in results.items():
        if isinstance(result, FeedError):
            said.append(f"instance {instance}: {result}")
        elif result.outcome == "aborted":
            said.append(f"instance {instance}: {result.reason}")
    return "\n".join(said)
