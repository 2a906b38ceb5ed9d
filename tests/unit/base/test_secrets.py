"""Masking: T42."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream import secrets
from millstream.secrets import mask_url, register_secret, register_url, scrub


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(secrets, "_pattern", None)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("http://user:pw@host:8123?database=d", "http://user:***@host:8123?database=d"),
        ("http://user:p@ss@host:1", "http://user:***@host:1"),
        ("http://:pw@host", "http://:***@host"),
        ("http://user@host:1/x", "http://user@host:1/x"),
        ("http://host:8123/a:b@c", "http://host:8123/a:b@c"),
        ("postgresql+psycopg://u:p@h/db?sslmode=off", "postgresql+psycopg://u:***@h/db?sslmode=off"),
        ("http://h:1?database=d&password=pw&x=1", "http://h:1?database=d&password=***&x=1"),
        ("two: a://u:p@h and b://v:q@i", "two: a://u:***@h and b://v:***@i"),
    ],
)
def test_passwords_in_urls_are_masked_and_nothing_else(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_a_registered_password_is_taken_out_of_any_text_in_every_spelling() -> None:
    password = "hunter2/ü x"
    register_url(f"http://me:{quote(password, safe='')}@h:1?database=d")
    basic = base64.b64encode(f"me:{password}".encode()).decode()
    text = f"Authentication failed for {password!r} ({quote(password, safe='')}), Authorization: Basic {basic}"
    assert scrub(text) == "Authentication failed for '***' (***), Authorization: Basic ***"


def test_a_secret_that_contains_another_is_taken_out_whole() -> None:
    register_secret("swordfish")
    register_secret("swordfish-2")
    assert scrub("swordfish-2 swordfish") == "*** ***"


def test_a_very_short_password_does_not_garble_the_text_but_is_masked_in_urls() -> None:
    register_url("http://u:a@h:1")
    assert scrub("a banana at http://u:a@h:1") == "a banana at http://u:***@h:1"


@given(st.text(alphabet=st.characters(exclude_characters="/?#[]@:\\", exclude_categories=["C", "Z"]), min_size=4))
def test_no_registered_password_survives_scrubbing(password: str) -> None:
    register_url(f"http://user:{password}@host:8123?database=d")
    assert password not in scrub(f"x {password} http://user:{password}@host:8123").replace("***", "")


def test_what_is_no_url_is_left_alone() -> None:
    register_url("http://[::1")
    assert scrub("nothing here") == "nothing here"
