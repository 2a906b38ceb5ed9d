"""What the runbook tells to ask Postgres, asked. Its other commands are parsed by tests/unit/docs."""

from __future__ import annotations

import pytest

from millstream.postgres import connect
from tests.unit.deploy.dockerfile import ROOT
from tests.unit.docs.documents import commands

QUERIES = [words[3] for words in commands(ROOT / "docs" / "runbook.md") if words[0] == "psql"]


@pytest.mark.parametrize("query", QUERIES)
async def test_every_query_of_the_runbook_fits_the_schema(query: str, postgres: str) -> None:
    async with connect(postgres) as connection:
        assert await connection.fetch(query) == []
