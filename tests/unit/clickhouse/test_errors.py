"""Which failures may pass by waiting, and what is said about the others."""

from __future__ import annotations

import pytest

from millstream.errors import RetryableSinkError, SinkError
from millstream.secrets import register_secret
from sinks.clickhouse.client import RETRYABLE_CODES, failure
from sinks.clickhouse.schema import literal, quoted, statement, ttl_seconds

URL = "http://ada:***@h:1?database=d"


@pytest.mark.parametrize("code", sorted(RETRYABLE_CODES))
def test_overload_network_and_keeper_trouble_may_pass(code: int) -> None:
    error = failure(URL, "insert x", f"Code: {code}. DB::Exception: y", None)
    assert isinstance(error, RetryableSinkError)
    assert f"ClickHouse {URL}: could not insert x: code {code}" in str(error)


@pytest.mark.parametrize("code", [16, 53, 60, 62, 81, 164, 243, 497, 516])
def test_wrong_schema_rights_and_full_disk_do_not_pass(code: int) -> None:
    for transient in (False, True):
        error = failure(URL, "insert x", "y", code, transient=transient)
        assert isinstance(error, SinkError)
        assert code == 62 or "What to do: " in str(error)


def test_a_failure_without_a_code_passes_only_if_the_network_made_it() -> None:
    assert isinstance(failure(URL, "p", "reset", None, transient=True), RetryableSinkError)
    assert isinstance(failure(URL, "p", "odd", None), SinkError)


def test_a_failure_never_quotes_a_password() -> None:
    # T42
    register_secret("tr0ub4dor&3", "ada")
    text = str(failure(URL, "p", "Code: 516. for http://ada:tr0ub4dor&3@h tr0ub4dor%263", None))
    assert "tr0ub4dor" not in text


@pytest.mark.parametrize(
    ("ddl", "seconds"),
    [
        ("… TTL toDateTime(batch) + toIntervalDay(3) SETTINGS …", 3 * 86_400),
        ("… TTL toDateTime(batch) + toIntervalHour(36)", 36 * 3600),
        ("… ORDER BY x SETTINGS …", None),
    ],
)
def test_the_ttl_is_read_from_the_servers_ddl(ddl: str, seconds: int | None) -> None:
    # T37
    assert ttl_seconds(ddl) == seconds


def test_a_ttl_that_cannot_be_reckoned_with_is_refused() -> None:
    with pytest.raises(SinkError, match="MODIFY TTL"):
        ttl_seconds("… TTL toDateTime(batch) + toIntervalMonth(1) TO DISK 'cold'")


def test_names_in_statements_are_quoted() -> None:
    assert quoted("a`b\\") == "`a\\`b\\\\`"
    assert literal("Enum8('a' = 1)") == "'Enum8(\\'a\\' = 1)'"
    with pytest.raises(ValueError, match="lacks a name"):
        statement("count_range", table="t")
    assert "--" not in statement("insert", table="t", columns="c", structure="'s'", database="d", gate="1 = 1")
