"""A one-shot: a private namespace, a worker of its own, feed, wait until the batch is published, clean up.

The namespace follows from cluster, batch and target, so a one-shot that was killed and is started again for the same
batch finds what it has done, and goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from millstream.errors import MillstreamError
from schemas.batch import Batch
from sources.feed import FeedJob, FeedResult, prepare_topics
from sources.feeders import FeedError, feed_all
from streams.cli.private import private
from streams.cli.progress import DumpProgress, size_of
from streams.cli.states import States
from streams.cli.worker import WorkerProcess
from streams.ledger import ABORTED, FAILED, PUBLISHED, BatchState

_OPTIONS = {
    "STREAMS": "streams.archive,streams.batches",
    "PARQUET_DIR": "none",
    "CLICKHOUSE_URL": "none",
    "CLICKHOUSE_PROXY_URL": "none",
}
IDLE_SECONDS = 180.0
"""Without any change for so long the one-shot gives up; above the sinks' retry timeout."""


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
        async with private(self.namespace, _OPTIONS | {**self.options, **self.sinks}) as one:
            with States(one.settings) as states:
                found = (await asyncio.to_thread(states.load)).batch(self.batch.key)
            if found is not None and found.state == PUBLISHED:
                await asyncio.to_thread(one.clean_up)  # killed between publishing and this
                return found
            if found is not None and found.state in (FAILED, ABORTED):
                await asyncio.to_thread(one.clean_up)  # what failed once is begun anew
            await asyncio.to_thread(prepare_topics, one.settings, list(self.jobs))
            with States(one.settings) as states:
                async with one.worker() as worker:
                    try:
                        state = await self._feed_and_wait(states, worker, one.environment)
                    except DumpFailedError as exc:
                        raise DumpFailedError(f"{exc}\nThe log of the worker: {one.log_path}") from exc
            await asyncio.to_thread(one.clean_up)
            one.log_path.unlink(missing_ok=True)
            return state

    async def _feed_and_wait(self, states: States, worker: WorkerProcess, environment: Mapping[str, str]) -> BatchState:
        key, expected = self.batch.key, len(self.jobs)
        with DumpProgress(size_of(self.jobs), expected) as progress, worker.log_path.open("ab") as log:
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
                    before = states.changes, progress.reports
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


def _failures(results: Mapping[str, FeedResult | FeedError]) -> str:
    """What went wrong with the feeders, or nothing."""
    said = []
    for instance, result in results.items():
        if isinstance(result, FeedError):
            said.append(f"instance {instance}: {result}")
        elif result.outcome == "aborted":
            said.append(f"instance {instance}: {result.reason}")
    return "\n".join(said)
