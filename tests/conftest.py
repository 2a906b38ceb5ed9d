"""Fixtures for every test. One real broker serves the whole run; it starts when the first test asks for it."""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
from blockbuster import BlockBuster
from confluent_kafka.admin import AdminClient
from hypothesis import settings as hypothesis_settings

from millstream import settings as settings_module
from millstream.broker import EmbeddedBroker
from millstream.logs import configure
from millstream.postgres import Connection, EmbeddedPostgres, connect
from millstream.settings import Settings
from tests.support.kafka import create_topic
from tests.support.postgres import new_database

MakeTopic = Callable[..., str]
Unique = Callable[[str], str]

# No deadline: a busy machine is no bug. The gate tries the same examples every time; `make fuzz` looks for new ones.
hypothesis_settings.register_profile("millstream", deadline=None, derandomize=True)
hypothesis_settings.register_profile("fuzz", deadline=None, print_blob=True, max_examples=300)
hypothesis_settings.load_profile("millstream")


@pytest.fixture(scope="session", autouse=True)
def _process() -> None:
    """No setting of the developer reaches a test or a program that a test starts: neither variable nor TOML file."""
    for name in list(os.environ):
        if name.startswith("MILLSTREAM_") and not name.startswith("MILLSTREAM_TEST_"):
            del os.environ[name]
    os.environ["MILLSTREAM_CONFIG"] = os.devnull
    configure(Settings(log_level="debug"))


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of one test reaches the next one."""
    monkeypatch.setattr(settings_module, "_current", None)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a real Kafka: that of MILLSTREAM_TEST_BOOTSTRAP, else one embedded broker for the run."""
    given = os.environ.get("MILLSTREAM_TEST_BOOTSTRAP")
    if given:
        yield given
        return
    with EmbeddedBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.bootstrap_servers
        gc.collect()  # clients that nobody has any more, and that would complain of the broker's end


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Postgres: that of MILLSTREAM_TEST_POSTGRES_URL, else one embedded server for the run."""
    given = os.environ.get("MILLSTREAM_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), fsync="off") as server:
        yield server.url


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """URL of an empty, migrated database of this test's own."""
    return new_database(postgres_server)


@pytest.fixture
async def database(postgres: str) -> AsyncIterator[Connection]:
    """A connection to it."""
    async with connect(postgres) as connection:
        yield connection


@pytest.fixture
def unique() -> Unique:
    """`unique("orders")` is a name that no other test uses."""

    def make(name: str = "t") -> str:
        return f"{name}-{secrets.token_hex(4)}"

    return make


@pytest.fixture(scope="session")
def admin(kafka: str) -> AdminClient:
    """An AdminClient of the broker."""
    return AdminClient({"bootstrap.servers": kafka})


@pytest.fixture
def make_topic(admin: AdminClient, unique: Unique) -> Iterator[MakeTopic]:
    """`make_topic("orders", partitions=4, config={…})` creates a topic of a unique name; it goes after the test."""
    made: list[str] = []

    def make(name: str = "t", partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        made.append(create_topic(admin, unique(name), partitions, config))
        return made[-1]

    yield make
    if made:
        for deleted in admin.delete_topics(made).values():
            deleted.exception(30)


@pytest.fixture
def no_blocking() -> Iterator[BlockBuster]:
    """A blocking call on the event loop raises BlockingError; threads may block."""
    guard = BlockBuster()
    guard.activate()
    try:
        yield guard
    finally:
        guard.deactivate()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test that uses the broker carries the marker `kafka`."""
    for item in items:
        if "kafka" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kafka)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is the working directory; a `millstream.toml` in it is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MILLSTREAM_CONFIG")
    return tmp_path
