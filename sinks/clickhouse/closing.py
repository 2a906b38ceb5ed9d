"""A batch is closed before it is completed, so that no row of another run comes in behind its marker.

A run may begin while its batch is being published, and its worker has looked at the batch before. Every insert of a
batch carries the condition that the batch is not closed (as the fence does with generations); closing comes before the
end of the inserts that had looked already, that before the deletion of voided rows, and the marker last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from millstream.errors import BatchRefusedError, RetryableSinkError, RunVoidError
from millstream.failpoints import declare, failpoint
from schemas.batch import Batch, Run
from sinks.base import InstanceRange
from sinks.clickhouse.client import Client, Parameters
from sinks.clickhouse.insert import Gate
from sinks.clickhouse.schema import CLOSED, quoted, statement

AFTER = declare("clickhouse.finalize.closed", "the batch takes no more rows, inserts under way are not ended yet")

_OTHER = "Feed it under another --batch-timestamp"


class Closing:
    """The closed batches of one database."""

    def __init__(self, client: Client, database: str) -> None:
        self._client, self._database = client, quoted(database)

    def gate(self, run: Run) -> Gate:
        """What an insert of the run is conditional on; bound to `cluster` and `batch`."""

        async def verify() -> None:
            if await self._runs(run.batch):
                raise RunVoidError(
                    f"ClickHouse {self._client.url}: batch {run.batch.key} is closed, it is published without run"
                    f" {run.run_id} of instance {run.instance}, which began too late. {_OTHER}"
                )

        return Gate(f"({statement('closed', database=self._database)}) = 0", tag(run.batch), verify)

    async def check_open(self, batch: Batch) -> None:
        """Raise BatchRefusedError if the batch is closed."""
        if await self._runs(batch):
            raise BatchRefusedError(
                f"ClickHouse {self._client.url}: batch {batch.key} is closed, it is being published. {_OTHER}"
            )

    async def close(self, batch: Batch, runs: Mapping[str, tuple[Run, InstanceRange]]) -> None:
        """Close the batch for good, with these runs. Raises BatchRefusedError if it was closed with others."""
        digest = _digest(runs)
        await self._client.run(
            statement("close_batch", database=self._database),
            {**_parameters(batch), "runs": digest},
            purpose=f"close batch {batch.key}",
        )
        failpoint(AFTER)
        found = await self._runs(batch)
        if not found:
            raise RetryableSinkError(
                f"ClickHouse {self._client.url}: acknowledged that batch {batch.key} is closed and does not have it in"
                f" {CLOSED}"
            )
        if found != {digest}:
            raise BatchRefusedError(
                f"ClickHouse {self._client.url}: batch {batch.key} was closed with other runs in {CLOSED}. Was"
                f" `millstream reset` called while it was published? {_OTHER}"
            )

    async def _runs(self, batch: Batch) -> set[str]:
        rows = await self._client.rows(
            statement("closed_runs", database=self._database), _parameters(batch), purpose=f"read {CLOSED}"
        )
        return {str(runs) for (runs,) in rows}


def tag(batch: Batch) -> str:
    """What ids of the batch's inserts have in common, and no other ones."""
    return f"-{hashlib.sha256(batch.key.encode()).hexdigest()[:16]}"


def _digest(runs: Mapping[str, tuple[Run, InstanceRange]]) -> str:
    named = sorted((instance, run.run_id) for instance, (run, _) in runs.items())
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _parameters(batch: Batch) -> Parameters:
    return {"cluster": batch.cluster, "batch": batch.batch_ts}
