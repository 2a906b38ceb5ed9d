"""Words and pictures of a report."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.batch import Batch
from schemas.prefixes import Prefix
from schemas.survey import Cell, Slots, Survey, expiry_groups
from streams.report import render, words
from streams.report.flame import tree


def shown_bytes(text: str) -> bytes:
    """What `words.text` stands for."""

    def plain(match: re.Match[str]) -> str:
        escape = match[0]
        if escape == "\\\\":
            return "\\"
        if escape.startswith("\\x"):
            code = int(escape[2:], 16)
            return chr(code if code < 0x80 else 0xDC00 + code)
        return chr(int(escape[3:-1], 16))

    return re.sub(r"\\\\|\\x[0-9a-f]{2}|\\u\{[0-9a-f]+\}", plain, text).encode("utf-8", "surrogateescape")


@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
def test_a_key_is_shown_with_every_byte_and_nothing_that_cannot_be_seen(key: bytes) -> None:  # T34
    text = words.text(key)
    assert text.isprintable()
    assert shown_bytes(text) == key


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (10_240, "10.0 KiB"), (1_048_575, "1.00 MiB"),
     (-2048, "−2.00 KiB"), (123_456_789, "118 MiB"), (2**62, "4096 PiB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(None, "never"), (0, "1970-01-01 00:00:00"), (253_402_300_799_999, "9999-12-31 23:59:59"),
     (253_402_300_800_000, "253,402,300,800,000 ms"), (-1, "-1 ms"), (2**63 - 1, "9,223,372,036,854,775,807 ms")],
)  # fmt: skip
def test_times_beyond_the_calendar_are_numbers(ms: int | None, text: str) -> None:  # T35
    assert words.time(ms) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "1970-01-01T00:00:00Z"), (10 * 10**9, "1970-01-01T00:00:10Z"), (10**8, "1970-01-01T00:00:00.1Z"),
     (1, "1970-01-01T00:00:00.000000001Z")],
)  # fmt: skip
def test_a_batchs_time_is_shown_exactly_and_without_idle_zeros(ns: int, text: str) -> None:  # T36
    assert words.when(Batch("c", ns)) == text


def test_long_keys_are_cut() -> None:
    assert len(words.short(b"x" * 4096, 10**8)) < 200
    assert words.short(b"x" * 4096, 10**8).endswith("… (100,000,000 bytes)")
    assert words.short(b"a" * 300 + b"end").endswith("end")
    assert words.short(b"") == "(empty key)"


def a_survey(prefixes: tuple[Prefix, ...], size: int = 1000, name: str = "i:1") -> Survey:
    return Survey(
        batch=Batch("c", 0),
        cells=(Cell(name, 0, "string", "raw", 10, size, 10, 100),),
        expiry=expiry_groups([]),
        top=(),
        big=(),
        over=(),
        prefixes=prefixes,
        slots=Slots("redis", False, [0] * 16384, [0] * 16384, [0] * 16384),
    )


def test_the_flame_graph_stands_as_the_prefixes_do() -> None:
    found = tree(
        a_survey((Prefix(b"a:", 6, 600), Prefix(b"a:1", 2, 200), Prefix(b"a:2", 2, 300), Prefix(b"b", 3, 300)))
    )
    assert [(n.label, n.depth, n.parent, n.left, n.size) for n in found] == [
        (b"", 0, -1, 0, 1000),
        (b"a:", 1, 0, 0, 600),
        (b"1", 2, 1, 0, 200),
        (b"2", 2, 1, 200, 300),
        (b"b", 1, 0, 600, 300),
    ]
    assert found[1].colour == found[2].colour != found[4].colour


def test_prefixes_as_deep_as_can_be_do_not_make_the_picture_endless() -> None:
    chain = tuple(Prefix(b"x" * n, 300 - n, 10_000 - n) for n in range(1, 257))
    found = tree(a_survey(chain, size=10_000))
    assert max(n.depth for n in found) == 31
    assert len(render(a_survey(chain, size=10_000), source="here")) < 500_000


def test_markup_in_any_name_stays_text() -> None:
    bad = "</script><img src=x onerror=alert(1)>\"'"
    page = render(a_survey((Prefix(bad.encode(), 1, 1000),), name=bad), source=bad)
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert page.count("<script") == 2
