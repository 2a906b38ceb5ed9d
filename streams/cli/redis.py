"""`millstream dump from-standalone|from-cluster|from-codis …`: dumps straight from Redis servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click

from millstream.secrets import register_secret, register_url
from millstream.settings import get_settings
from sources.feed import FeedJob
from sources.redis import RedisEndpoint, Tls
from sources.redis.endpoint import join, split
from streams.cli.errors import Group
from streams.cli.given import batch_timestamp, give, now_ns


class Address(click.ParamType):
    """host:port."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Host and port."""
        try:
            return value if isinstance(value, tuple) else split(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class Addresses(click.ParamType):
    """host:port[,host:port…]."""

    name = "host:port,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, int], ...]:
        """Each with host and port."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(split(one) for one in value.split(","))
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_LOGIN: list[Callable[[Any], Any]] = [
    click.option("--username", help="ACL user (Redis 6 and later).  [env var: MILLSTREAM_REDIS_USERNAME]"),
    click.option(
        "--password",
        help="Its password. On the command line other users of this host can see it: better in the variable."
        "  [env var: MILLSTREAM_REDIS_PASSWORD]",
    ),
    click.option("--tls", is_flag=True, help="Speak TLS."),
    click.option("--tls-ca-cert", type=_FILE, help="PEM of the authority to trust. Default: the system's."),
    click.option("--tls-cert", type=_FILE, help="PEM of the client's certificate."),
    click.option("--tls-key", type=_FILE, help="PEM of its key, without passphrase."),
    click.option("--tls-insecure", is_flag=True, help="Do not verify the server's certificate."),
]
_require_slave = click.option(
    "--require-slave", is_flag=True, help="Dump replicas only: fail if there is none, instead of dumping the master."
)


def _login(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_LOGIN):
        command = option(command)
    return command


def _endpoint(
    username: str | None,
    password: str | None,
    tls: bool,
    tls_ca_cert: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_insecure: bool,
) -> RedisEndpoint:
    """What all servers of the source have in common. Raises UsageError."""
    if not tls and (tls_ca_cert or tls_cert or tls_key or tls_insecure):
        raise click.UsageError("--tls-… options go with --tls")
    if tls_key and not tls_cert:
        raise click.UsageError("--tls-key goes with --tls-cert")
    settings = get_settings()
    user = settings.redis_username if username is None else username
    if password is None:
        password = settings.redis_password.get_secret_value() if settings.redis_password else ""
    if user and not password:
        raise click.UsageError(f"--username {user} needs a password: --password, or MILLSTREAM_REDIS_PASSWORD")
    if password:
        register_secret(password, user)
    ca, cert, key = (str(p.absolute()) if p else "" for p in (tls_ca_cert, tls_cert, tls_key))
    secure = Tls(ca_file=ca, cert_file=cert, key_file=key, verify=not tls_insecure) if tls else None
    return RedisEndpoint(host="", port=0, username=user, password=password, tls=secure)


def _jobs(
    found: Sequence[tuple[str, RedisEndpoint]],
    cluster: str,
    batch_ts: int | None,
    slots: Literal["codis", "redis"] | None = None,
) -> list[FeedJob]:
    """One per instance (RU-57: host:port of the server that is dumped)."""
    ts, instances = now_ns() if batch_ts is None else batch_ts, [name for name, _ in found]
    return [
        FeedJob(redis=endpoint, cluster=cluster, instance=name, batch_ts=ts, instances=instances, slots=slots)
        for name, endpoint in found
    ]


def _named(ctx: click.Context, cluster: str) -> str:
    if not cluster:
        raise click.UsageError("--cluster must not be empty", ctx)
    return cluster


def _show(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


@click.group("from-standalone", cls=Group)
@click.option("--addr", type=Address(), required=True, help="The server: master or replica.")
@click.option("--cluster", required=True, help="Name of the cluster: any text.")
@_login
@batch_timestamp
@click.pass_context
def from_standalone(
    ctx: click.Context, /, addr: tuple[str, int], cluster: str, batch_timestamp: int | None, **login: Any
) -> None:
    """From one Redis server, which takes this for a replica; better a replica than a master.

    \b
    millstream dump from-standalone --addr 10.0.0.1:6379 --cluster prod into-parquet --dir out
    """
    endpoint, name = _endpoint(**login).at(*addr), _named(ctx, cluster)
    give(ctx, lambda: _jobs([(endpoint.address, endpoint)], name, batch_timestamp))


@click.group("from-cluster", cls=Group)
@click.option("--nodes", type=Addresses(), required=True, help="Some of its nodes; the first that answers is asked.")
@click.option("--cluster", required=True, help="Name of the cluster: any text.")
@_require_slave
@_login
@batch_timestamp
@click.pass_context
def from_cluster(
    ctx: click.Context,
    /,
    nodes: tuple[tuple[str, int], ...],
    cluster: str,
    require_slave: bool,
    batch_timestamp: int | None,
    **login: Any,
) -> None:
    """From a Redis Cluster: of each shard one node, a replica if there is a healthy one.

    \b
    millstream dump from-cluster --nodes 10.0.0.1:7000,10.0.0.2:7000 --cluster prod --require-slave \\
      into-parquet --dir out
    """
    common, name = _endpoint(**login), _named(ctx, cluster)

    def jobs() -> list[FeedJob]:
        from sources.redis.cluster import discover

        chosen = asyncio.run(discover([common.at(*node) for node in nodes], require_slave=require_slave))
        _show(chosen.notes)
        # A certificate names hosts rather than addresses.
        found = [(n.address, common.at((common.tls and n.hostname) or n.host, n.port)) for n in chosen.nodes]
        return _jobs(found, name, batch_timestamp, "redis")

    give(ctx, jobs)


@click.group("from-codis", cls=Group)
@click.option("--dashboard", required=True, help="URL of the Codis dashboard, like http://10.0.0.9:18080.")
@click.option("--cluster", help="Name of the cluster: any text. Default: the product's name.")
@_require_slave
@_login
@batch_timestamp
@click.pass_context
def from_codis(
    ctx: click.Context,
    /,
    dashboard: str,
    cluster: str | None,
    require_slave: bool,
    batch_timestamp: int | None,
    **login: Any,
) -> None:
    """From a Codis: of each group one server, a replica without read traffic if there is one.

    \b
    millstream dump from-codis --dashboard http://10.0.0.9:18080 --require-slave into-parquet --dir out
    """
    url = urlsplit(dashboard)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise click.UsageError(f"--dashboard {dashboard}: a URL like http://host:port is expected", ctx)
    register_url(dashboard)
    common = _endpoint(**login)
    if cluster is not None:
        _named(ctx, cluster)

    def jobs() -> list[FeedJob]:
        from sources.redis.codis import discover

        codis = asyncio.run(discover(dashboard, require_slave=require_slave))
        _show(codis.notes)
        found = [(join(*server), common.at(*server)) for server in codis.servers]
        return _jobs(found, cluster or codis.product, batch_timestamp, "codis")

    give(ctx, jobs)
