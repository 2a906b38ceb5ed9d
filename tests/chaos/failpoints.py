"""Which failpoints there are, and which attack reaches them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from millstream import failpoints
from tests.chaos.forks import ROOT

PACKAGES = ("millstream", "schemas", "sources", "sinks", "tables", "streams")
FULL = "+outputs"
"""Suffix of a transaction's failpoint when it carries output or changelog records, see `tell_full_transactions`."""


def declared() -> set[str]:
    """Every failpoint of the product, out of its source: what is imported lazily must not be forgotten."""
    texts = (path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {name for text in texts for name in re.findall(r'declare\(\s*"([^"]+)"', text)}


IN_BATCHES = ("parquet.open_batch.", "parquet.merge.", "parquet.publish.", "clickhouse.finalize.", "clickhouse.schema.")
IN_FEEDERS = ("feed.",)
IN_POSTGRES = ("postgres.", "outbox.")
IN_COMMANDS = ("dlq.", "etl.", "replay.", "verify.")


def of_stream() -> list[str]:
    """Those that a worker of the generic stream passes; the transactions' with and without records."""
    found = {name for name in declared() if not name.startswith(IN_BATCHES + IN_FEEDERS + IN_POSTGRES + IN_COMMANDS)}
    return sorted(found | {name + FULL for name in found if name.startswith("txn.")})


def of_projection() -> list[str]:
    """Those that a worker of the projection passes."""
    others = ("parquet.", "clickhouse.")
    found = {name for name in of_stream() if "+" not in name and not name.startswith(others)}
    return sorted(found | {name for name in declared() if name.startswith("postgres.")})


def of_feeder() -> list[str]:
    """Those that a feeder passes."""
    return sorted(name for name in declared() if name.startswith(IN_FEEDERS))


def of_job() -> list[str]:
    """Those of the sinks that a worker of the job passes."""
    return sorted(name for name in declared() if name.startswith(("parquet.", "clickhouse.")))


def tell_full_transactions(before: Callable[[str], None] = lambda _name: None) -> None:
    """In a worker: `txn.begun+outputs` and the like are reached by transactions that carry records.

    The first transaction of a life is one that only plans; a worker that dies in that one never comes to the others.
    `before` is called with the name first.
    """
    from streams.engine import transaction

    commit, full = transaction.TransactionalProducer.commit, False

    def noting(self: Any, txn: transaction.Transaction, metadata: bytes) -> None:
        nonlocal full
        full = bool(txn.outputs or txn.changelogs)
        commit(self, txn, metadata)

    def reach(name: str) -> None:
        failpoints.failpoint(name)
        if full:
            before(name + FULL)
            failpoints.failpoint(name + FULL)

    transaction.TransactionalProducer.commit = noting  # type: ignore[method-assign]
    transaction.failpoint = reach  # type: ignore[attr-defined]
