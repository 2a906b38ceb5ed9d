"""Redis Cluster: which node to dump for each master, from what `CLUSTER NODES` says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from millstream.logs import get_logger
from sources.redis.connection import Connection, Refused
from sources.redis.endpoint import RedisEndpoint, join
from sources.redis.errors import RedisSourceError

SLOTS = 16384
_NO_HOST = frozenset({"noaddr", "handshake"})
_FAILING = frozenset({"fail", "fail?"})

log = get_logger(__name__)


@dataclass(frozen=True)
class Node:
    """A line of `CLUSTER NODES`."""

    id: str
    host: str
    """Empty where the node asked does not know its own address, or has forgotten that of another."""
    port: int
    hostname: str
    """Announced with cluster-announce-hostname (Redis 7); else empty."""
    flags: frozenset[str]
    master: str
    """Id of its master; empty for a master."""
    linked: bool
    """The node asked has a link to it."""
    slots: tuple[tuple[int, int], ...] = ()
    """First and last of each range, both included."""
    moving: int = 0
    """Slots that it is handing over or taking over."""

    @property
    def address(self) -> str:
        """host:port."""
        return join(self.host, self.port)

    @property
    def is_master(self) -> bool:
        """By its flags."""
        return "master" in self.flags

    @property
    def healthy(self) -> bool:
        """Nothing speaks against dumping it."""
        return bool(self.host) and not self.flags & (_FAILING | _NO_HOST)


def parse_nodes(text: str, asked: str = "") -> list[Node]:
    """The lines of `CLUSTER NODES`, of any version since Redis 3. `asked`: host under which the node was reached.

    Raises ValueError naming the line.
    """
    nodes = []
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            nodes.append(_parse_line(line.split(), asked))
        except ValueError as exc:
            raise ValueError(f"CLUSTER NODES: {line[:200]!r}: {exc}") from exc
    return nodes


def _parse_line(words: list[str], asked: str) -> Node:
    if len(words) < 8:
        raise ValueError(f"{len(words)} words, 8 or more are expected")
    identity, where, flags, master, _ping, _pong, _epoch, link, *slots = words
    # ip:port before Redis 4, ip:port@bus before 7, then ip:port@bus,hostname[,key=value …]
    address, *more = where.split(",")
    host, colon, port = address.partition("@")[0].rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"the address {where!r} has no port")
    names = frozenset(flags.split(","))
    if "myself" in names and not host:
        host = asked
    ranges, moving = [], 0
    for slot in slots:
        if slot.startswith("["):  # [93-<-id] or [93->-id]
            moving += 1
            continue
        first, _, last = slot.partition("-")
        ranges.append((int(first), int(last or first)))
    return Node(
        id=identity,
        host=host,
        port=int(port),
        hostname=more[0] if more and "=" not in more[0] and more[0] != "?" else "",
        flags=names,
        master="" if master == "-" else master,
        linked=link == "connected" or "myself" in names,
        slots=tuple(ranges),
        moving=moving,
    )


@dataclass(frozen=True)
class Chosen:
    """The nodes to dump, one per master, ordered by address; and what a person should know."""

    nodes: list[Node]
    notes: list[str] = field(default_factory=list)


def choose(nodes: Sequence[Node], *, require_slave: bool) -> Chosen:
    """One node for every master: a healthy replica, else the master.

    The same replica every time, so that a dump that is begun again has the same instances. A failed master without
    slots has been replaced, and is left out. Raises RedisSourceError naming a master that nobody can stand in for.
    """
    replicas = defaultdict[str, list[Node]](list)
    for node in nodes:
        if node.master and node.healthy and node.linked:
            replicas[node.master].append(node)
    chosen, notes, missing = [], list[str](), list[str]()
    # A node that only shakes hands is no member yet; one without slots that failed is none any more.
    masters = [n for n in nodes if n.is_master and "handshake" not in n.flags and (n.healthy or n.slots)]
    for master in masters:
        there = sorted(replicas[master.id], key=lambda n: (n.host, n.port))
        if there:
            chosen.append(there[0])
        elif require_slave:
            missing.append(f"{_named(master)} has no healthy replica, and --require-slave asks for one")
        elif "fail" in master.flags or not master.host:
            missing.append(f"{_named(master)} has failed and has no healthy replica: its slots cannot be dumped")
        else:
            chosen.append(master)
            notes.append(f"{master.address} is a master without a healthy replica, and is dumped itself")
    if missing:
        raise RedisSourceError("; ".join(missing) + ". Mend the cluster (CLUSTER NODES shows it), then start again")
    if not chosen:
        raise RedisSourceError("CLUSTER NODES names no master: the cluster has not been formed yet")
    covered = sum(last - first + 1 for node in nodes if node.is_master for first, last in node.slots)
    if covered < SLOTS:
        notes.append(f"{SLOTS - covered} of {SLOTS} slots belong to no node: their keys, if any, are not in this dump")
    if any(node.moving for node in nodes):
        notes.append("slots are being moved: a key may be found on both nodes, or on none; the report shows the slots")
    return Chosen(sorted(chosen, key=lambda n: (n.host, n.port)), notes)


def _named(master: Node) -> str:
    ranges = " ".join(f"{a}-{b}" if a != b else str(a) for a, b in master.slots[:4])
    more = " …" if len(master.slots) > 4 else ""
    return f"master {master.address if master.host else master.id} (slots {ranges or 'none'}{more})"


async def discover(seeds: Sequence[RedisEndpoint], *, require_slave: bool) -> Chosen:
    """Ask the first of `seeds` that answers. Raises RedisSourceError with what each of them said, ConfigError."""
    said = []
    for seed in seeds:
        try:
            connection = await Connection.open(seed)
            try:
                await connection.log_in()
                try:
                    text = await connection.command("CLUSTER", "NODES")
                except Refused as exc:
                    raise connection.explain("CLUSTER NODES", str(exc)) from None
            finally:
                await connection.close()
            nodes = parse_nodes(text, seed.host)
        except (RedisSourceError, ValueError) as exc:
            said.append(str(exc) if seed.address in str(exc) else f"{seed.address}: {exc}")
            continue
        return choose(nodes, require_slave=require_slave)
    raise RedisSourceError("no node of --nodes told about the cluster:\n" + "\n".join(f"- {text}" for text in said))
