"""Codis: which servers to dump, from what the dashboard says (`GET /topom`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import aiohttp
import msgspec

from millstream.secrets import mask_url
from sources.redis.endpoint import split
from sources.redis.errors import RedisSourceError

TIMEOUT_SECONDS = 30.0


class _Server(msgspec.Struct):
    server: str
    replica_group: bool = False
    """Clients read from it."""


class _Group(msgspec.Struct):
    id: int
    servers: list[_Server] = []


class _Groups(msgspec.Struct):
    models: list[_Group] = []


class _Stats(msgspec.Struct):
    group: _Groups = msgspec.field(default_factory=_Groups)


class _Model(msgspec.Struct):
    product_name: str


class _Overview(msgspec.Struct):
    model: _Model | None = None
    stats: _Stats | None = None


@dataclass(frozen=True)
class Codis:
    """A product, and the servers to dump: one of each group, as host and port."""

    product: str
    servers: list[tuple[str, int]]
    notes: list[str] = field(default_factory=list)


def choose(answer: bytes, *, require_slave: bool) -> Codis:
    """Of each group a replica that clients do not read from, else one that they do, else the master (the first server).

    `require_slave`: only a replica without read traffic will do. Raises RedisSourceError.
    """
    try:
        overview = msgspec.json.decode(answer, type=_Overview)
    except msgspec.MsgspecError as exc:
        raise RedisSourceError(f"its answer is no overview of a Codis dashboard ({exc}): {answer[:80]!r}") from exc
    if overview.model is None or not overview.model.product_name:
        raise RedisSourceError("its answer names no product (model.product_name)")
    servers, notes, missing = [], [], []
    for group in sorted(overview.stats.group.models if overview.stats else [], key=lambda g: g.id):
        if not group.servers:
            continue
        master, *replicas = group.servers
        quiet = sorted(s.server for s in replicas if not s.replica_group)
        read = sorted(s.server for s in replicas if s.replica_group)
        if require_slave and not quiet:
            how = "only replicas that clients read from" if read else "no replica"
            missing.append(f"group {group.id} (master {master.server}) has {how}")
            continue
        address = (quiet or read or [master.server])[0]
        if not quiet:
            what = "a replica that clients read from" if read else "a master"
            notes.append(f"{address} of group {group.id} is {what}: there is no other")
        try:
            servers.append(split(address))
        except ValueError as exc:
            raise RedisSourceError(f"group {group.id}: {exc}") from exc
    if missing:
        raise RedisSourceError("; ".join(missing) + ", and --require-slave asks for a replica without read traffic")
    if not servers:
        raise RedisSourceError(f"product {overview.model.product_name!r} has no group with a server")
    return Codis(overview.model.product_name, servers, notes)


async def discover(dashboard: str, *, require_slave: bool) -> Codis:
    """Ask the dashboard. Raises RedisSourceError naming its URL."""
    url, shown = f"{dashboard.rstrip('/')}/topom", mask_url(dashboard)
    try:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            answer = await response.read()
            if response.status != 200:
                raise RedisSourceError(f"it answered GET /topom with status {response.status}: {answer[:200]!r}")
        return choose(answer, require_slave=require_slave)
    except RedisSourceError as exc:
        raise RedisSourceError(f"Codis dashboard {shown}: {exc}") from exc
    except TimeoutError as exc:
        raise RedisSourceError(f"Codis dashboard {shown} did not answer within {TIMEOUT_SECONDS:g} s") from exc
    except (aiohttp.ClientError, ValueError) as exc:
        raise RedisSourceError(f"Codis dashboard {shown}: {mask_url(str(exc))}. Is the URL right?") from exc
