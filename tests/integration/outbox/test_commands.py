"""`millstream outbox`, as an operator uses it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from millstream import settings as settings_module
from millstream.postgres import Connection, connect
from streams.cli import cli
from tests.conftest import MakeTopic
from tests.integration.outbox.world import insert, insert_many, read


def run(*arguments: str) -> Result:
    settings_module._current = None
    return CliRunner().invoke(cli, ["outbox", *arguments])


def ok(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_events_are_published_shown_requeued_exported_and_pruned(
    postgres: str, kafka: str, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:  # RO-69, RO-81, RO-82
    topic = make_topic("events")
    monkeypatch.setenv("MILLSTREAM_BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("MILLSTREAM_POSTGRES_URL", postgres)
    monkeypatch.setenv("MILLSTREAM_OUTBOX_TOPICS", f"video={topic}")

    def on(do: Callable[[Connection], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            async with connect(postgres) as db:
                return await do(db)

        return asyncio.run(connected())

    on(lambda db: insert_many(db, 3, 2))
    assert ok("relay", "--once").endswith("published: 6\n")
    event: UUID = on(lambda db: insert(db, 50, 1, b"\x00bytes"))
    on(lambda db: db.execute("UPDATE catalog.outbox_events SET parked_at = now() WHERE event_id = $1", event))
    told = json.loads(ok("stats", "--json"))
    assert (told["pending"], told["parked"], told["slot"]) == (1, 1, None)
    assert told["parked_events"][0]["event_id"] == str(event)
    assert f"parked: {event} version 1" in ok("stats")
    (line,) = ok("export").splitlines()
    assert base64.b64decode(json.loads(line)["payload"]) == b"\x00bytes"
    assert "would prune: 6" in ok("prune", "--older-than", "0s", "--dry-run")
    assert "pruned: 6" in ok("prune", "--older-than", "0s")
    assert "requeued: 1" in ok("requeue", "--parked")
    assert ok("relay", "--once").endswith("published: 1\n")
    assert len(read(kafka, topic)) == 7
    missing = run("requeue", "--event", "00000000-0000-0000-0000-000000000007")
    assert missing.exit_code == 1
    assert "not in the outbox" in missing.output
    assert run("requeue").exit_code == run("prune", "--older-than", "soon").exit_code == 2
    assert "--create-slot goes with --via replication" in run("relay", "--create-slot").output
