"""Answers that are no answers: cut, half, wrong in what they claim; and a server that dies in the worst moment."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import pytest

from millstream.errors import RetryableSinkError, RunVoidError, SinkError
from tests.integration.clickhouse.conftest import Batches, Place
from tests.integration.clickhouse.data import a_chunk, a_run, where
from tests.support.clickhouse_server import ClickHouseServer

MANY = 40_000
"""Rows of a body that does not fit into the buffers of a connection: 3 MB."""


@pytest.mark.parametrize(
    ("mode", "arguments", "present"),
    [
        ("reset_upload", {}, 0),
        ("half_header", {}, MANY),
        ("exception_200", {"code": 241}, 0),
        ("exception_200", {"code": 252}, 0),
        ("exception_200_after", {"code": 159}, MANY),
    ],
)
async def test_an_insert_with_a_broken_answer_is_counted_and_ends_exact(
    served: Place, server: ClickHouseServer, batches: Batches, mode: str, arguments: dict[str, int], present: int
) -> None:
    # T3, T5
    sink, chunk = await batches(served), a_chunk(a_run(), 0, MANY - 1)
    server.fault(mode, **arguments)
    with pytest.raises(
        RetryableSinkError, match=r"could not insert rdb.records.c.i\[0\] 0..39999 into d-.*raw:"
    ) as told:
        await sink.write_chunk(chunk)
    if "code" in arguments:
        assert f"code {arguments['code']}" in str(told.value)
    assert await served.count() == present
    assert (await sink.write_chunk(chunk)).rows == MANY
    assert await served.count() == MANY


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (252, "MILLSTREAM_CHUNK_MAX_ROWS"),
        (241, "max_memory_usage"),
        (242, "read-only"),
        (164, "a user that may write"),
        (60, "millstream misc clickhouse-schema"),
        (81, "create the database"),
    ],
)
@pytest.mark.parametrize("mode", ["error", "exception_200"])
async def test_an_insert_that_is_refused_names_the_table_and_what_to_do(
    served: Place, server: ClickHouseServer, batches: Batches, mode: str, code: int, hint: str
) -> None:
    sink = await batches(served)
    server.fault(mode, code=code)
    with pytest.raises((SinkError, RetryableSinkError), match=rf"{served.database}.redis_records_raw:.*What.*{hint}"):
        await sink.write_chunk(a_chunk(a_run(), 0, 9))
    assert await served.count() == 0
    assert (await sink.write_chunk(a_chunk(a_run(), 0, 9))).rows == 10
    assert await served.count() == 10


READS = [
    "millstream_fence\nWHERE partition",
    "SELECT DISTINCT runs",
    "SELECT count() FROM `{db}`.redis_records_raw",
    "SELECT count() FROM `{db}`.import_batches_completed",
]
CHANGES = [
    "INSERT INTO `{db}`.millstream_fence",
    "INSERT INTO `{db}`.millstream_closed_batches",
    "KILL QUERY",
    "DELETE FROM",
    "INSERT INTO `{db}`.import_batches_completed",
]


@pytest.mark.parametrize(
    ("mode", "statement"),
    [("exception_200", s) for s in READS + CHANGES]
    + [("half_body", s) for s in READS]
    + [("drop_after", s) for s in CHANGES],
)
async def test_a_batch_is_published_exactly_whichever_of_its_statements_has_a_broken_answer(
    served: Place, server: ClickHouseServer, batches: Batches, mode: str, statement: str
) -> None:
    # T31: an exception behind a 200 must not count as done; the next try, by another worker, finishes it
    voided, valid = a_run(n=1), a_run(n=2)
    runs = {valid.instance: (valid, where(9, 20))}
    server.fault(mode, match=statement.replace("{db}", served.database), code=159)
    told = 0
    for _ in range(3):
        sink = await batches(served)
        try:
            for chunk in (a_chunk(voided, 1, 7, replayed=told > 0), a_chunk(valid, 10, 19, replayed=told > 0)):
                with suppress(RunVoidError) if told and chunk.run == voided else nullcontext():
                    assert (told and await sink.have(chunk)) or await sink.write_chunk(chunk)
            await sink.finalize_batch(valid.batch, runs)
            break
        except RetryableSinkError:
            told += 1
    # Half an answer to a read the driver may ask for again by itself.
    assert told <= 1 if mode == "half_body" else told == 1
    assert any(statement.replace("{db}", served.database) in s for s in server.statements())
    assert await served.count("redis_records_view") == 10
    assert await served.count() == 10
    assert await served.count("import_batches_completed") == 1
