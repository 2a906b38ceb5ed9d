"""A real worker with MILLSTREAM_TRACES=console: from the record's span to the sink's and on to what is sent (RO-67)."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Unique
from tests.integration.engine.workers import Shop
from tests.support.waiting import wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_record_is_followed_through_chunk_sink_and_commit(kafka: str, tmp_path: Path, unique: Unique) -> None:
    with Shop(kafka, tmp_path / "home", unique("traced"), TRACES="console") as shop:
        worker = shop.start()
        shop.wait_ready()
        headers = [("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode())]
        value = json.dumps({"id": 1, "item": "pears"}).encode()
        shop.send("orders", [{"value": value, "key": b"1", "headers": headers}])
        wait_until(lambda: shop.lag("orders") == 0, 40, "the order to be committed")
        assert shop.stop(worker) == 0
        lines = [line for line in shop.log().splitlines() if '"trace_id"' in line]
        spans = [json.loads(line[line.index("{") :]) for line in lines]
        named = {name: [s for s in spans if s["name"] == name] for name in ("chunk", "files write_chunk", "commit")}
        (chunk,), (write,) = named["chunk"], named["files write_chunk"]
        assert [link["context"]["trace_id"] for link in chunk["links"]] == [f"0x{TRACE}"]
        assert chunk["attributes"]["messaging.destination.name"] == f"{shop.namespace}orders"
        assert chunk["attributes"]["messaging.batch.message_count"] == 1
        assert write["parent_id"] == chunk["context"]["span_id"]
        ids = [link["context"]["span_id"] for commit in named["commit"] for link in commit["links"]]
        assert ids == [chunk["context"]["span_id"]]
