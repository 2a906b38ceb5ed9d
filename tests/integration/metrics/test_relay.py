"""A relay without a worker: its metrics over HTTP, and what it tells at level debug."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from millstream.child import free_port
from millstream.postgres import connect
from tests.conftest import MakeTopic
from tests.integration.metrics.web import Web
from tests.integration.outbox.world import insert, insert_many
from tests.support.waiting import until


async def test_a_relay_shows_its_backlog_and_what_it_published(
    postgres: str, kafka: str, make_topic: MakeTopic, tmp_path: Path
) -> None:  # RO-41, RO-66
    port, log = free_port(), tmp_path / "relay.log"
    settings = {
        "BOOTSTRAP_SERVERS": kafka, "POSTGRES_URL": postgres, "OUTBOX_TOPICS": f"video={make_topic('events')}",
        "LOG_LEVEL": "debug", "LOG_FORMAT": "json",
    }  # fmt: skip
    async with connect(postgres) as db:
        await insert_many(db, 3, 2)
        event = await insert(db, 50, 1, b"payload")
        with log.open("wb") as out:
            relay = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "from streams.cli import main; main()",
                "outbox", "relay", "--metrics-port", str(port),
                env=os.environ | {f"MILLSTREAM_{k}": v for k, v in settings.items()}, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            web, labels = Web(port), {"aggregate_type": "video"}
            await until(
                lambda: web.value("millstream_outbox_publish_success_total", **labels) == 7, 60, "7 events", every=0.1
            )
            assert web.value("millstream_outbox_publish_failure_total", **labels) == 0
            assert web.value("millstream_outbox_publish_bytes_total", **labels) > len(b"payload")
            assert web.value("millstream_outbox_last_publish_timestamp_seconds") > 1e9
            assert web.value("millstream_outbox_failures_in_a_row") == 0
            assert web.value("millstream_outbox_batch_events_sum") == 7
            assert web.get("/livez") == (200, "ok\n")
        finally:
            relay.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(relay.wait(), 30) == 0
    (told,) = (line for line in log.read_text().splitlines() if "outbox_event_published" in line and str(event) in line)
    for field in ('"aggregate_id"', '"version": "1"', '"message_id"'):
        assert field in told
