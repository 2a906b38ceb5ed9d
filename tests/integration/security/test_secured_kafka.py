"""Workers and commands on a Kafka that takes users over TLS, or certificates of clients, and allows nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError
from click.testing import Result
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from faust.transport.drivers import aiokafka as driver

from millstream.broker import check_broker, unanswered
from millstream.cluster import Cluster, client_config
from millstream.errors import BrokerError
from millstream.settings import Settings
from streams.cli import connected
from streams.engine import logins
from streams.engine.transport import credentials
from tests.acceptance.cli import FIXTURES, Cli, expected_rows, pairs, parquet_rows
from tests.integration.engine.workers import Shop, totals
from tests.support.secured import CERTIFIED, TLS, Secured, secured_broker
from tests.support.waiting import wait_until

SHORT = {"SESSION_TIMEOUT": "6", "HEARTBEAT_INTERVAL": "1", "DISCOVERY_INTERVAL": "1"}
Grant = tuple[ResourceType, str, str]
"""Kind of resource, what its names begin with, operation."""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_broker(tmp_path_factory.mktemp("secured")) as broker:
        yield broker


@pytest.fixture
def superuser(secured: Secured) -> AdminClient:
    return AdminClient({"bootstrap.servers": secured.plaintext, "log_level": 2})


def of(values: Mapping[str, str]) -> Settings:
    return Settings(**{name.lower(): value for name, value in values.items()})  # type: ignore[arg-type]


def acls(user: str, grants: Iterable[Grant]) -> list[AclBinding]:
    return [
        AclBinding(
            kind, prefix, ResourcePatternType.PREFIXED, f"User:{user}", "*", AclOperation[op], AclPermissionType.ALLOW
        )
        for kind, prefix, op in grants
    ]


def grant(admin: AdminClient, user: str, grants: Iterable[Grant]) -> None:
    for made in admin.create_acls(acls(user, grants)).values():
        made.result(30)


def revoke(admin: AdminClient, user: str, grants: Iterable[Grant]) -> None:
    found = [
        AclBindingFilter(
            b.restype, b.name, b.resource_pattern_type, b.principal, b.host, b.operation, b.permission_type
        )
        for b in acls(user, grants)
    ]
    for gone in admin.delete_acls(found).values():
        assert len(gone.result(30)) == 1


TOPIC, GROUP, PRODUCER = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID


def worker_rights(namespace: str) -> list[Grant]:
    """Of docs/security.md, for a worker whose topics exist."""
    return [
        (TOPIC, f"{namespace}rdb.", "READ"),
        (TOPIC, f"{namespace}rdb.", "WRITE"),
        (TOPIC, f"{namespace}millstream-", "READ"),
        (TOPIC, f"{namespace}millstream-", "WRITE"),
        (TOPIC, f"{namespace}millstream-", "DESCRIBE_CONFIGS"),
        (GROUP, f"{namespace}millstream", "READ"),
        (GROUP, "millstream-reader", "DESCRIBE"),
        (PRODUCER, f"{namespace}millstream-", "WRITE"),
    ]


def to_create(namespace: str) -> list[Grant]:
    return [(TOPIC, f"{namespace}rdb.", "CREATE"), (TOPIC, f"{namespace}millstream-", "CREATE")]


def feeder_rights(namespace: str) -> list[Grant]:
    """Of docs/security.md, for `millstream dump … feed`."""
    return [
        (TOPIC, f"{namespace}rdb.", "CREATE"),
        (TOPIC, f"{namespace}rdb.", "READ"),  # to commit its position
        (TOPIC, f"{namespace}rdb.", "WRITE"),
        (TOPIC, f"{namespace}rdb.", "DESCRIBE_CONFIGS"),
        (GROUP, f"{namespace}millstream-feed-", "READ"),
        (PRODUCER, f"{namespace}millstream-feed-", "WRITE"),
    ]


def publish(worker: Cli, feeder: Cli, fixture: str, hour: str) -> Path:
    """Start a worker, feed it a dump, and wait for the file that it publishes."""
    with worker.worker() as running:
        words = ["--cluster", "c", "--batch-timestamp", f"2026-11-23T{hour}:30:00Z", "feed"]
        done = feeder.here("dump", "from-file", *pairs({"a:1": FIXTURES / f"{fixture}.rdb"}), *words)
        assert done.exit_code == 0, done.output
        path = worker.directory / "out" / "c" / f"2026-11-23_{hour}-30-00.000Z" / "a-1.parquet"

        def published() -> bool:
            assert running.poll() is None, (worker.directory / "worker-w1.log").read_text()
            return path.exists()

        wait_until(published, 60, f"{path} to be there", every=0.2)
    return path


def test_a_dump_goes_through_kafka_by_users_over_tls_with_the_least_rights(
    secured: Secured, superuser: AdminClient, tmp_path: Path, unique: Any
) -> None:
    """The worker logs in by SCRAM, the feeder by PLAIN; topics are created by the first start, and then no more."""
    namespace = unique("tls") + "."
    common = {"NAMESPACE": namespace, "PARQUET_DIR": str(tmp_path / "out")} | SHORT
    worker = Cli(None, tmp_path, **common, **secured.user("worker"))
    feeder = Cli(None, tmp_path, **common, **secured.user("feeder"))
    grant(superuser, "worker", worker_rights(namespace) + to_create(namespace))
    grant(superuser, "feeder", feeder_rights(namespace))
    first = publish(worker, feeder, "redis7.0-all", "08")
    revoke(superuser, "worker", to_create(namespace))
    second = publish(worker, feeder, "valkey9-all", "09")
    assert parquet_rows(first) == expected_rows("redis7.0-all")
    assert parquet_rows(second) == expected_rows("valkey9-all")
    listed = worker.here("batches", "list", "--json")
    assert listed.exit_code == 0, listed.output
    assert listed.output.count('"published"') == 2
    log = (tmp_path / "worker-w1.log").read_text()
    assert "s3cr3t" not in log  # T42
    assert "Traceback" not in log


def test_a_stream_is_exact_with_a_certificate_instead_of_a_user(
    secured: Secured, superuser: AdminClient, tmp_path: Path, unique: Any
) -> None:
    with Shop(secured.plaintext, tmp_path, unique("mutual"), **secured.certified()) as shop:
        grant(superuser, CERTIFIED, [(kind, shop.namespace, "ALL") for kind in (TOPIC, GROUP, PRODUCER)])
        grant(superuser, CERTIFIED, [(GROUP, "millstream-reader", "DESCRIBE")])
        shop.start()
        shop.wait_ready()
        shop.order(0, 900)
        shop.wait_done("orders")
        assert sorted(int(line.split()[1]) for line in shop.sunk()) == list(range(900))
        assert totals(shop.changelog("totals")) == {"apples": 300, "pears": 300, "plums": 300}
        assert len(shop.read("large")) == 90
        assert "opensesame" not in shop.log()  # T42


def wrong(secured: Secured, what: str) -> tuple[dict[str, str], str]:
    """Settings, and what has to be told of them."""
    user = secured.user()
    plaintext = {"BOOTSTRAP_SERVERS": secured.secured}
    no_certificate = {
        k: v for k, v in secured.certified().items() if k in (*plaintext, "SECURITY_PROTOCOL", "SSL_CA_LOCATION")
    }
    return {
        "password": (user | {"SASL_PASSWORD": "wrong-s3cr3t"}, "refuses the user 'worker' by SCRAM-SHA-512: correct "),
        "authority": (user | {"SSL_CA_LOCATION": str(TLS / "other-ca.pem")}, "SSL_CA_LOCATION ("),
        "plaintext": (plaintext, "wants TLS or SASL otherwise than MILLSTREAM_SECURITY_PROTOCOL = PLAINTEXT says"),
        # "does not speak TLS", or "hangs up on us" if librdkafka saw no more than that.
        "tls": (user | {"BOOTSTRAP_SERVERS": secured.plaintext}, "MILLSTREAM_SECURITY_PROTOCOL = SASL_SSL"),
        "host": (
            user | {"BOOTSTRAP_SERVERS": secured.secured.replace("127.0.0.1", "127.1")},
            "for the host name given",
        ),
        "certificate": (no_certificate, "correct MILLSTREAM_SSL_CERTIFICATE_LOCATION and MILLSTREAM_SSL_KEY_LOCATION"),
    }[what]


@pytest.mark.parametrize("what", ["password", "authority", "host", "certificate"])
def test_a_command_that_kafka_refuses_names_the_setting(what: str, secured: Secured, tmp_path: Path) -> None:
    settings, told = wrong(secured, what)
    assert_told(Cli(None, tmp_path, **settings).here("batches", "list"), told)


def test_a_port_that_speaks_otherwise_is_told_with_the_setting(
    secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might be a broker that stops, so it is asked until the time is up."""
    monkeypatch.setattr(connected, "check_broker", functools.partial(check_broker, timeout=4))
    settings, told = wrong(secured, "tls")
    with ThreadPoolExecutor() as threads:
        other = threads.submit(unanswered, client_config(of(settings)), 4)
        plaintext, told_of_plaintext = wrong(secured, "plaintext")
        assert_told(Cli(None, tmp_path, **plaintext).here("batches", "list"), told_of_plaintext)
        assert told in (other.result() or "")


def assert_told(done: Result, told: str) -> None:
    assert done.exit_code == 1
    assert done.output.startswith("Error: Kafka at MILLSTREAM_BOOTSTRAP_SERVERS = '")
    assert told in done.output
    assert len(done.output.splitlines()) == 1, done.output
    assert "s3cr3t" not in done.output  # T42


def test_a_worker_that_kafka_refuses_ends_and_names_the_setting(secured: Secured, tmp_path: Path) -> None:
    cases = ("password", "authority", "plaintext")
    found = {what: wrong(secured, what) for what in cases}
    given = {"PARQUET_DIR": str(tmp_path), "REQUEST_TIMEOUT": "2", "NAMESPACE": "refused."} | SHORT
    with ExitStack() as stack:  # side by side
        workers = {
            what: stack.enter_context(Cli(None, tmp_path, **given, **settings).worker(what))
            for what, (settings, _) in found.items()
        }
        assert {what: worker.wait(60) for what, worker in workers.items()} == dict.fromkeys(cases, 70)
    for what, (_, told) in found.items():
        log = (tmp_path / f"worker-{what}.log").read_text()
        assert told in log
        assert log.count("worker_failed") == 1
        assert "Traceback" not in log
        assert "s3cr3t" not in log  # T42


async def test_a_login_that_is_refused_while_a_worker_runs_is_told_with_the_settings(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    """The lines are of aiokafka's client that connects, as it does again in a worker."""
    settings = of(secured.user() | {"SASL_PASSWORD": "changed-s3cr3t"})
    auth = driver.credentials_to_aiokafka_auth(credentials(settings), None)
    logins.watch(settings)
    try:
        consumer = AIOKafkaConsumer(bootstrap_servers=secured.secured, **auth)
        for _ in range(2):
            with pytest.raises(KafkaConnectionError):
                await consumer.start()
    finally:
        logins.watch(Settings())
    refused = [r for r in caplog.records if "login_refused" in r.getMessage()]
    assert len(refused) == 1
    for part in ("'worker'", "MILLSTREAM_SASL_PASSWORD", "start it again"):
        assert part in refused[0].getMessage()
    assert len([r for r in caplog.records if "SaslAuthenticationFailed" in r.getMessage()]) >= 2
    assert "s3cr3t" not in caplog.text  # T42
    await consumer.stop()


def test_librdkafka_logs_in_by_every_mechanism_and_to_a_host_by_its_name(secured: Secured) -> None:
    by_name = {"BOOTSTRAP_SERVERS": secured.secured.replace("127.0.0.1", "localhost")}
    for given in (secured.user("feeder"), secured.user(mechanism="SCRAM-SHA-256"), secured.user() | by_name):
        assert unanswered(client_config(of(given)), 30) is None


def test_rights_that_are_missing_are_told_with_the_topic(secured: Secured) -> None:
    with pytest.raises(BrokerError, match="cannot describe topic 'of-others': Broker: Topic authorization failed"):
        Cluster(client_config(of(secured.user()))).topics(["of-others"])
