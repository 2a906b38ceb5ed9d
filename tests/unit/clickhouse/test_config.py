"""The ClickHouse URL: what is allowed, and that its password never shows."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millstream import secrets
from millstream.errors import ConfigError
from sinks.clickhouse import ClickHouseConfig, schema_ddl


@pytest.fixture(autouse=True, scope="module")
def _forget_secrets() -> Iterator[None]:
    """The passwords of these tests are not scrubbed out of the texts of others."""
    known, pattern = set(secrets._known), secrets._pattern
    yield
    secrets._known, secrets._pattern = known, pattern


def test_a_server_url_is_read_in_all_its_parts() -> None:
    config = ClickHouseConfig.parse(
        "https://ada:p%40ss%2Fword@ch.example:8443?database=red-is_1", proxy_url="http://p:3128"
    )
    assert (config.scheme, config.host, config.port, config.database) == ("https", "ch.example", 8443, "red-is_1")
    assert (config.username, config.password, config.embedded) == ("ada", "p@ss/word", False)
    assert config.send_timeout == 10
    assert ClickHouseConfig.parse("http://[::1]:8123/?database=d").host == "::1"
    assert ClickHouseConfig.parse("http://[::1]:8123/?database=d").url == "http://[::1]:8123?database=d"


def test_an_embedded_url_is_a_directory() -> None:
    config = ClickHouseConfig.parse("chdb:///var/my%20data?database=d")
    assert (config.path, config.embedded) == (Path("/var/my data"), True)
    assert ClickHouseConfig.parse(config.url) == config


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("tcp://h:9000?database=d", "scheme must be http, https or chdb"),
        ("h:8123?database=d", "scheme"),
        ("", "scheme"),
        ("http://h?database=d", "names no port"),
        ("http://h:0?database=d", "names no port"),
        ("http://:8123?database=d", "names no host"),
        ("http://h:8123", r"\?database=<name> is required"),
        ("http://h:8123?database=", r"\?database=<name> is required"),
        ("http://h:8123?database=a&database=b", "once"),
        ("http://h:8123?database=a.b", r"database 'a\.b' may hold only"),
        ("http://h:8123?database=a`b", "may hold only"),
        ("http://h:8123?database=d%C3%A9", "may hold only"),
        ("http://h:8123?database=d%0A", "may hold only"),
        ("http://h:8123/d?database=d", "it has a path"),
        ("http://h:8123?database=d&async_insert=1", "unknown argument async_insert"),
        ("http://h:99999?database=d", "cannot be read"),
        ("chdb://var/lib?database=d", "absolute path"),
        ("chdb:///?database=d", "absolute path"),
        ("chdb:var?database=d", "absolute path"),
        ("chdb:///a%3Fb?database=d", r"may not hold '\?'"),
    ],
)
def test_a_wrong_url_is_refused_with_what_is_allowed(url: str, problem: str) -> None:
    # facts 2.1: scheme, explicit port, ?database= required, its characters
    with pytest.raises(ConfigError, match=problem) as refused:
        ClickHouseConfig.parse(url)
    assert "Allowed: http(s)://user:password@host:port?database=name" in str(refused.value)


@pytest.mark.parametrize("proxy", ["socks5://p:1", "http://p", "p:3128", "http://u:hunter2two@p:no?", "http://"])
def test_a_wrong_proxy_url_is_refused(proxy: str) -> None:
    with pytest.raises(ConfigError, match="proxy URL") as refused:
        ClickHouseConfig.parse("http://h:8123?database=d", proxy_url=proxy)
    assert "hunter2" not in _everything(refused.value)
    with pytest.raises(ConfigError, match="proxy URL"):
        ClickHouseConfig.parse("chdb:///a?database=d", proxy_url="http://p:3128")


def _everything(error: BaseException) -> str:
    text, seen = "".join(traceback.format_exception(error)), [error]
    while (cause := seen[-1].__cause__ or seen[-1].__context__) is not None:
        seen.append(cause)
    return text + "".join(f"{e!s}{e!r}{e.args}" for e in seen)


SECRET = "".join(["hunter", "2two"])


@pytest.mark.parametrize(
    "url",
    [
        "http://u:{}@h:8123",
        "http://u:{}@h?database=d",
        "http://u:a/{}@h:8123?database=d",
        "http://u:a#{}@h:8123?database=d",
        "http://u:{}#a@h:8123?database=d",
        "http://u:a?{}@h:8123?database=d",
        "http://u:a@{}@h:8123?database=x.y",
        "http://h:{}@8123?database=d",
        "ftp://u:{}@h:8123?database=d",
        "http://h:8123?database=d&password={}",
        "http://u:[{}@h:8123?database=d",
    ],
)
def test_the_password_of_a_refused_url_shows_nowhere(url: str) -> None:
    # T42, also in the chain: urllib's own errors quote pieces of what they could not read
    with pytest.raises(ConfigError) as refused:
        ClickHouseConfig.parse(url.format(SECRET))
    assert SECRET not in _everything(refused.value).split("ConfigError", 1)[1]
    assert refused.value.__cause__ is refused.value.__context__ is None


PASSWORDS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=6, max_size=20)


@settings(max_examples=40, deadline=None)
@given(PASSWORDS)
@example("p@ss:w/rd?#%")
def test_any_password_is_read_as_it_is_and_never_shown(password: str) -> None:
    # T42
    config = ClickHouseConfig.parse(f"http://ada:{quote(password, safe='')}@h-0:8123?database=d")
    assert config.password == password
    shown = f"{config!r} {config!s} {config.url} {[config]}"
    assert config.url == "http://ada:***@h-0:8123?database=d"
    assert password not in shown.replace("ClickHouseConfig", "").replace("http://ada:***@h-0:8123?database=d", "")


def test_the_ddl_is_printed_for_a_legal_database_only() -> None:
    text = schema_ddl("my-db", 30)
    assert text.count(";\n") == 6
    assert "CREATE DATABASE IF NOT EXISTS `my-db`" in text
    assert "INTERVAL 30 DAY" in text
    assert "{{" not in text
    with pytest.raises(ConfigError, match="may hold only"):
        schema_ddl("d; DROP")
