"""Settings: where they come from, and what a wrong one says."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import ConfigError
from millstream.logs import error_chain
from millstream.settings import PREFIX, Settings, get_settings, override_settings

SECRET = "s3cr3t-Passw0rd"


def problems(**values: object) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        Settings(**values)
    return str(raised.value).splitlines()


def test_the_defaults_are_those_of_the_design() -> None:
    s = Settings()
    assert (s.chunk_max_rows, s.chunk_max_bytes, s.chunk_max_age) == (50_000, 32 * 1024**2, 1.0)  # RU-39
    assert s.bootstrap_servers is None
    assert s.sink_retry_timeout is None
    assert s.exactly_once
    assert (s.web_bind, s.web_port) == ("127.0.0.1", 6066)
    assert s.streams == ["streams.archive", "streams.batches"]
    assert s.worker_slot


def test_every_setting_is_described_and_every_duration_has_a_unit() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if name.endswith(("_timeout", "_interval", "_age")):
            assert "econds" in field.description, name


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "millstream.toml").write_text('chunk_max_rows = 7\nweb_port = 7000\nstreams = ["a.b", "c"]\n')
    monkeypatch.setenv("MILLSTREAM_CHUNK_MAX_ROWS", "8")
    s = Settings()
    assert (s.chunk_max_rows, s.web_port, s.max_replays) == (8, 7000, 10)
    assert s.streams == ["a.b", "c"]
    assert Settings(chunk_max_rows=9).chunk_max_rows == 9


def test_another_file_can_be_named(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workdir / "millstream.toml").write_text("web_port = 1\n")
    (workdir / "other.toml").write_text("web_port = 2\n")
    monkeypatch.setenv("MILLSTREAM_CONFIG", str(workdir / "other.toml"))
    assert Settings().web_port == 2


def test_a_named_file_that_is_missing_or_no_toml_is_an_error(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_CONFIG", "gone.toml")
    assert problems() == ["MILLSTREAM_CONFIG = 'gone.toml': no such file"]
    (workdir / "gone.toml").write_text("web_port = = 2")
    assert "gone.toml: cannot be read as TOML" in problems()[0]


def test_values_from_the_environment_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "STREAMS": "my.stream, streams.archive",
        "CHUNK_MAX_BYTES": "2MiB",
        "SINK_RETRY_TIMEOUT": "none",
        "EXACTLY_ONCE": "off",
        "LOG_LEVEL": "DEBUG",
        "BOOTSTRAP_SERVERS": "",
        "PARQUET_DIR": "/data",
    }.items():
        monkeypatch.setenv(PREFIX + name, value)
    s = Settings()
    assert s.streams == ["my.stream", "streams.archive"]
    assert s.chunk_max_bytes == 2 * 1024**2
    assert s.sink_retry_timeout is None
    assert not s.exactly_once
    assert s.log_level == "debug"
    assert s.bootstrap_servers is None
    assert s.parquet_dir == Path("/data")


def test_all_problems_are_told_at_once_each_with_variable_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MILLSTREAM_CHUNK_MAX_ROWS", "1000001")
    monkeypatch.setenv("MILLSTREAM_PARQUET_COMPRESSION", "gzip")
    monkeypatch.setenv("MILLSTREAM_CHUNK_MAX_AGE", "soon")
    monkeypatch.setenv("MILLSTREAM_CHUNK_MAX_ROW", "3")
    assert sorted(problems(bootstrap_servers="kafka")) == [
        "MILLSTREAM_BOOTSTRAP_SERVERS = 'kafka': must be host:port, several of them with commas between",
        "MILLSTREAM_CHUNK_MAX_AGE = 'soon': input should be a valid number, unable to parse string as a number",
        "MILLSTREAM_CHUNK_MAX_ROW: unknown variable; did you mean MILLSTREAM_CHUNK_MAX_ROWS?",
        "MILLSTREAM_CHUNK_MAX_ROWS = '1000001': input should be less than or equal to 1000000",
        "MILLSTREAM_PARQUET_COMPRESSION = 'gzip': input should be 'zstd', 'snappy' or 'none'",
    ]


def test_an_unknown_key_in_the_file_is_an_error(workdir: Path) -> None:
    (workdir / "millstream.toml").write_text('parquet_dirs = "x"\nchunk_rows = 1\n')
    told = problems()
    assert told[0] == "millstream.toml: unknown key 'parquet_dirs'; did you mean parquet_dir?"
    assert "unknown key 'chunk_rows'" in told[1]


def test_the_variables_of_failpoints_and_of_tests_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FAILPOINTS", "FAILPOINT_LOG", "SEED", "TEST_BOOTSTRAP"):
        monkeypatch.setenv(PREFIX + name, "1")
    assert Settings()


@pytest.mark.parametrize(
    "values",
    [
        {"heartbeat_interval": 11, "session_timeout": 30},
        {"partition_fetch_bytes": "2MiB", "fetch_max_bytes": "1MiB"},
    ],
)
def test_settings_that_do_not_fit_one_another_name_both_variables(values: dict[str, object]) -> None:
    (told,) = problems(**values)
    for name in values:
        assert PREFIX + name.upper() in told


@pytest.mark.parametrize(
    "url",
    [
        f"ftp://u:{SECRET}@h:1?database=d",
        f"http://u:{SECRET}@h?database=d",
        f"http://u:{SECRET}@h:1",
        f"http://u:{SECRET}@h:1?database=a;b",
        f"http://u:{SECRET}@h:99999?database=d",
        f"http://u:{SECRET}/x@h:1?database=d",
        f"u:{SECRET}",
        "chdb://relative/path?database=d",
        "chdb:///?database=d",
    ],
)
def test_a_wrong_clickhouse_url_says_what_is_allowed_and_hides_the_password(url: str) -> None:  # T42
    with pytest.raises(ConfigError) as raised:
        Settings(clickhouse_url=url)
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + str(error_chain(raised.value))
    assert "MILLSTREAM_CLICKHOUSE_URL" in shown
    assert "chdb:///absolute/path?database=d" in shown
    # The traceback quotes this file's lines, none of which holds the value.
    assert SECRET not in shown
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    "url", ["http://h:8123?database=d", f"https://u:{SECRET}@h:8443/?database=my-db_1", "chdb:///abs/path?database=d"]
)
def test_a_right_clickhouse_url_is_taken_and_never_shown(url: str) -> None:  # T42
    s = Settings(clickhouse_url=url, clickhouse_proxy_url=f"http://u:{SECRET}@proxy:3128")
    assert s.clickhouse_url is not None
    assert s.clickhouse_url.get_secret_value() == url
    assert SECRET not in repr(s) + str(s) + str(s.model_dump()) + s.model_dump_json()


def test_settings_cannot_be_changed_only_overridden_for_a_while() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().web_port = 1
    before = get_settings()
    with override_settings(web_port=1) as s:
        assert get_settings() is s
        with override_settings(max_replays=2):
            assert (get_settings().web_port, get_settings().max_replays) == (1, 2)
    assert get_settings() is before


def test_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_settings()
    monkeypatch.setenv("MILLSTREAM_WEB_PORT", "1")
    assert get_settings() is first


@given(st.text())
def test_any_text_as_a_url_is_taken_or_refused_by_name(text: str) -> None:
    refused = ""
    try:
        Settings(clickhouse_url=text)
    except ConfigError as e:
        refused = str(e)
    assert not refused or refused.startswith("MILLSTREAM_CLICKHOUSE_URL = ")
