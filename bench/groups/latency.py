"""From a record being produced to a reader having read it from the sink, at a steady pace."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

from bench import data
from bench.runner import Contender, ContenderError, Process, Running, app_id
from bench.session import OFF, Bench, worker
from bench.verify import check_files

SECONDS = (0, 42)
RATE = 10_000
PACE_SECONDS = 15.0
AGE = {"MILLSTREAM_CHUNK_MAX_AGE": "0.1"}


def run(bench: Bench) -> None:
    """Producer, worker and reader are processes of their own, with one clock."""
    n = int(RATE * PACE_SECONDS)
    bench.title("latency", f"Latency at {RATE:,} records/s into Parquet, chunks sealed after 100 ms")
    contenders = [
        Contender("on", "millstream, exactly once", worker("json"), "", n, AGE),
        Contender("off", "millstream, at least once", worker("json"), "", n, AGE | OFF),
    ]
    for turn in range(bench.rounds):
        for contender in contenders[turn % 2 :] + contenders[: turn % 2]:
            topic = f"paced-{turn}-{contender.key}"
            data.create(bench.servers, topic)
            _paced(bench, replace(contender, topic=topic))


def _paced(bench: Bench, contender: Contender) -> None:
    where, app = bench.directory / contender.topic, app_id(contender)
    seen = where / "seen.json"
    for partition in range(data.PARTITIONS):
        (where / "sink" / contender.topic / str(partition)).mkdir(parents=True)
    with Running(contender, bench.servers, where, app) as running:
        beside = running.env | {"BENCH_RATE": str(RATE), "BENCH_SEEN": str(seen)}
        reader = Process([sys.executable, "-m", "bench.watch"], beside, where / "reader.log")
        try:
            running.wait(running.started, "start")
            producer = Process([sys.executable, "-m", "bench.paced"], beside, where / "producer.log")
            try:
                running.wait(running.done, "result")
            finally:
                producer.stop()
            if (ended := reader.wait(60)).code:
                raise ContenderError(f"the reader ended with {ended.code}:\n{reader.tail()}")
        finally:
            reader.stop()
        result = running.result(**json.loads(seen.read_text()))
    check_files(bench.servers, contender.topic, where / "sink")
    bench.add("latency", contender.key, contender.name, replace(result, bytes_out=bench.bytes_out(where, app)))
    shutil.rmtree(where)
