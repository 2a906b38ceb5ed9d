"""chdb in this process: one at a time, kill -9 at any point, nothing doubled and nothing lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from blockbuster import BlockBuster

import sinks.clickhouse  # noqa: F401  (declares its failpoints)
from millstream.errors import ConfigError, SinkError
from millstream.failpoints import KNOWN
from sinks.clickhouse import ClickHouseBatches, ClickHouseConfig
from sinks.clickhouse.http import make_client
from tests.integration.clickhouse.data import NOW_NS, a_chunk, a_run
from tests.integration.clickhouse.victim import CHUNK, exactly_once, whole_batch

ROOT = Path(__file__).parents[3]
FAILPOINTS = sorted(name for name in KNOWN if name.startswith("clickhouse."))


def _victim(url: str, mode: str, first: int, failpoint: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.clickhouse.victim", url, mode, str(first), str(NOW_NS)]
    environment = {**os.environ, "MILLSTREAM_FAILPOINTS": f"{failpoint}=kill"} if failpoint else None
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


async def _open(url: str) -> ClickHouseBatches:
    sink = ClickHouseBatches(ClickHouseConfig.parse(url, auto_create_tables=True))
    await sink.open()
    return sink


async def _rows(url: str, sql: str) -> list[list[object]]:
    client = make_client(ClickHouseConfig.parse(url))
    await client.open()
    try:
        return await client.rows(sql, purpose="check")
    finally:
        await client.close()


def test_every_failpoint_the_brief_names_is_there() -> None:
    assert FAILPOINTS == [
        "clickhouse.fence.after",
        "clickhouse.finalize.after_delete",
        "clickhouse.finalize.after_marker",
        "clickhouse.finalize.before_marker",
        "clickhouse.finalize.closed",
        "clickhouse.insert.after",
        "clickhouse.insert.before",
        "clickhouse.insert.mid",
        "clickhouse.schema.created",
    ]


@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_a_process_killed_at_a_failpoint_is_replayed_to_exactly_its_rows(tmp_path: Path, failpoint: str) -> None:
    # T3, T31
    url = f"chdb://{tmp_path}/db?database=d"
    with _victim(url, "batch", 0, failpoint) as victim:
        assert victim.wait(60) == -signal.SIGKILL
    sink = await _open(url)
    try:
        valid = await whole_batch(sink, NOW_NS, replayed=True, generation=2)
        assert await sink.count_by_instance(valid.batch) == {valid.instance: 20}
        checked = await _rows(
            url,
            "SELECT toInt32(count()), toInt32(uniqExact(_offset)), toInt32(min(_offset)), toInt32(max(_offset))"
            " FROM d.redis_records_raw WHERE key IN (SELECT key FROM d.redis_records_view)",
        )
        assert checked == [[20, 20, 10, 29]]
        assert await _rows(url, "SELECT toInt32(count()) FROM d.import_batches_completed") == [[1]]
    finally:
        await sink.close()


async def test_lives_ended_at_random_leave_every_offset_once(tmp_path: Path) -> None:
    seed = int(os.environ.get("MILLSTREAM_TEST_SEED", "0")) or random.randrange(1 << 30)
    print(f"MILLSTREAM_TEST_SEED={seed}")
    rng, url, first = random.Random(seed), f"chdb://{tmp_path}/db?database=d", 0
    for _life in range(4):
        with _victim(url, "chunks", first) as victim:
            assert victim.stdout
            for _ in range(rng.randrange(1, 6)):
                first = int(victim.stdout.readline()) + CHUNK
            await asyncio.sleep(rng.uniform(0, 0.02))  # a moment somewhere inside of the next chunks
            victim.kill()
            for line in victim.stdout:  # acknowledged, and the "commit" lost: written again
                assert int(line) >= first
    sink, run = await _open(url), a_run(batch_ts=NOW_NS)
    try:
        # The commit of up to a few chunks was lost with the process: all of them are replayed.
        for again in range(first, first + 40 * CHUNK, CHUNK):
            await exactly_once(sink, a_chunk(run, again, again + CHUNK - 1, replayed=True))
        total = first + 40 * CHUNK
        rows = await _rows(
            url, "SELECT toInt32(count()), toInt32(uniqExact(_offset)), toInt32(max(_offset)) FROM d.redis_records_raw"
        )
        assert rows == [[total, total, total - 1]]
    finally:
        await sink.close()


async def test_a_second_process_on_one_directory_is_told_what_to_do(tmp_path: Path) -> None:
    url = f"chdb://{tmp_path}/db?database=d"
    with _victim(url, "chunks", 0) as victim:
        assert victim.stdout
        victim.stdout.readline()
        sink = ClickHouseBatches(ClickHouseConfig.parse(url, auto_create_tables=True))
        with pytest.raises(SinkError, match=r"in use by another process: embedded chdb is for one process.*http"):
            await sink.open()
        victim.kill()
    await sink.open()  # the lock went with the process
    await sink.close()


async def test_one_process_opens_one_directory_and_closing_it_frees_it(tmp_path: Path) -> None:
    one, same = await _open(f"chdb://{tmp_path}/a?database=d"), await _open(f"chdb://{tmp_path}/a/?database=e")
    other = ClickHouseBatches(ClickHouseConfig.parse(f"chdb://{tmp_path}/b?database=d", auto_create_tables=True))
    with pytest.raises(ConfigError, match=r"already has .*/a open, and can have only one"):
        await other.open()
    await one.close()
    await one.close()
    await same.write_chunk(a_chunk(a_run(), 0, 9))  # still open for its other user
    await same.close()
    await other.open()
    await other.close()
    with pytest.raises(SinkError, match="not open"):
        await other.write_chunk(a_chunk(a_run(), 0, 9))


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    # T43
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match=r"could not open the directory: .*file/db"):
        await _open(f"chdb://{tmp_path}/file/db?database=d")
    await (await _open(f"chdb://{tmp_path}/db?database=d")).close()


async def test_a_forked_child_is_refused_and_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = await _open(f"chdb://{tmp_path}/db?database=d")
    try:
        with monkeypatch.context() as forked:
            pid = os.getpid()
            forked.setattr(os, "getpid", lambda: pid + 1)
            with pytest.raises(SinkError, match="opened before a fork"):
                await sink.write_chunk(a_chunk(a_run(), 0, 9))
        await sink.write_chunk(a_chunk(a_run(), 0, 9))
    finally:
        await sink.close()


async def test_nothing_of_the_sink_blocks_the_event_loop(tmp_path: Path, no_blocking: BlockBuster) -> None:
    sink = await _open(f"chdb://{tmp_path}/db?database=d")
    run = a_run()
    try:
        await asyncio.gather(*(sink.write_chunk(a_chunk(run, f, f + 999)) for f in range(0, 5000, 1000)))
        assert await sink.have(a_chunk(run, 0, 999, replayed=True)) is not None
    finally:
        await sink.close()


async def test_the_name_of_a_database_may_hold_a_hyphen(tmp_path: Path, unique: Callable[[str], str]) -> None:
    sink = await _open(f"chdb://{tmp_path}/with%20space/db?database={unique('a-b_C')}")
    await sink.write_chunk(a_chunk(a_run(), 0, 9))
    await sink.close()
