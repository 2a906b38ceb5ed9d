"""`CLUSTER NODES` of every version, and which node of each shard is dumped."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.redis.cluster import SLOTS, Node, choose, parse_nodes
from sources.redis.errors import RedisSourceError

# Redis 3.0, 5.0 and 7.2, as documented and as servers answer.
REDIS_3 = """\
07c37dfe 127.0.0.1:30004 slave e7d1eecc 0 1426238317239 4 connected
67ed2db8 127.0.0.1:30002 master - 0 1426238316232 2 connected 5461-10922
292f8b36 127.0.0.1:30003 master - 0 1426238318243 3 connected 10923-16383
e7d1eecc :30001 myself,master - 0 0 1 connected 0-5460
"""
REDIS_7 = """\
0a1 10.0.0.1:7000@17000,one.example,tls-port=0,shard-id=69bc myself,master - 0 0 1 connected 0-8191 [93-<-0b2]
0b2 10.0.0.2:7000@17000,,shard-id=70bc master - 0 1426 2 connected 8192-16383 [77->-0a1]
0c3 fd00::3:7000@17000,three.example slave,nofailover 0a1 0 1426 1 connected
0d4 10.0.0.4:7000@17000 slave,fail? 0b2 0 1426 2 disconnected
0e5 :0@0 slave,fail,noaddr 0b2 0 1426 2 disconnected
0f6 10.0.0.6:7000@17000 handshake - 0 0 0 disconnected
"""


def addresses(text: str, *, require_slave: bool = False) -> list[str]:
    return [n.address for n in choose(parse_nodes(text, "10.9.9.9"), require_slave=require_slave).nodes]


def test_the_answer_of_an_old_server_is_read() -> None:
    nodes = {n.id[:2]: n for n in parse_nodes(REDIS_3, "10.9.9.9")}
    assert nodes["e7"].address == "10.9.9.9:30001"  # it does not know its own address
    assert nodes["07"].master == nodes["e7"].id
    assert nodes["67"].slots == ((5461, 10922),)
    assert addresses(REDIS_3) == ["127.0.0.1:30002", "127.0.0.1:30003", "127.0.0.1:30004"]


def test_bus_ports_host_names_and_moving_slots_are_read() -> None:
    nodes = {n.id: n for n in parse_nodes(REDIS_7)}
    assert [nodes[i].hostname for i in ("0a1", "0b2", "0c3")] == ["one.example", "", "three.example"]
    assert nodes["0c3"].address == "[fd00::3]:7000"
    assert nodes["0a1"].slots == ((0, 8191),)
    assert [nodes[i].moving for i in ("0a1", "0b2", "0c3")] == [1, 1, 0]
    chosen = choose(list(nodes.values()), require_slave=False)
    assert [n.id for n in chosen.nodes] == ["0b2", "0c3"]  # the replicas of 0b2 are not healthy
    assert any("10.0.0.2:7000 is a master without a healthy replica" in note for note in chosen.notes)
    assert any("slots are being moved" in note for note in chosen.notes)


def test_a_required_replica_that_is_missing_is_told_with_its_master() -> None:
    with pytest.raises(
        RedisSourceError, match=r"10\.0\.0\.2:7000 \(slots 8192-16383\) has no healthy replica.*--require-slave"
    ):
        addresses(REDIS_7, require_slave=True)


SHARD = "a1 10.0.0.1:1@2 {flags} - 0 0 1 {link} 0-16383\n"
REPLICA = "b{n} 10.0.0.2:{n}@3 {flags} a1 0 0 1 {link}\n"


@pytest.mark.parametrize("flags", ["master,fail", "master,fail,noaddr"])
def test_a_failed_master_is_replaced_by_its_replica_or_named(flags: str) -> None:
    failed = SHARD.format(flags=flags, link="disconnected")
    assert addresses(failed + REPLICA.format(n=5, flags="slave", link="connected")) == ["10.0.0.2:5"]
    with pytest.raises(
        RedisSourceError, match=r"10\.0\.0\.1:1 \(slots 0-16383\) has failed and has no healthy replica"
    ):
        addresses(failed + REPLICA.format(n=5, flags="slave,fail", link="disconnected"))


def test_a_failed_master_whose_slots_went_to_another_is_left_out() -> None:
    old = "c3 10.0.0.3:1@2 master,fail - 1 1 0 disconnected\n"
    assert addresses(SHARD.format(flags="myself,master", link="connected") + old) == ["10.0.0.1:1"]


def test_a_suspected_master_without_a_replica_is_tried() -> None:
    assert addresses(SHARD.format(flags="master,fail?", link="disconnected")) == ["10.0.0.1:1"]


def test_of_several_replicas_it_is_always_the_same() -> None:
    lines = [REPLICA.format(n=n, flags="slave", link="connected") for n in (9, 5, 7)]
    shard = SHARD.format(flags="master", link="connected")
    assert addresses(shard + "".join(lines)) == addresses("".join(reversed(lines)) + shard) == ["10.0.0.2:5"]


def test_slots_that_nobody_has_are_told() -> None:
    text = SHARD.format(flags="master", link="connected").replace("0-16383", "0-100 200")
    assert (
        f"{SLOTS - 102} of {SLOTS} slots belong to no node" in choose(parse_nodes(text), require_slave=False).notes[-1]
    )


def test_a_cluster_that_was_not_formed_is_told() -> None:
    with pytest.raises(RedisSourceError, match="names no master"):
        choose([], require_slave=False)


@pytest.mark.parametrize("line", ["a b c", "a1 noport master - 0 0 1 connected", "a1 h:1 master - 0 0 1 connected x-y"])
def test_a_line_that_cannot_be_read_is_shown(line: str) -> None:
    with pytest.raises(ValueError, match=f"CLUSTER NODES: '{line[:5]}"):
        parse_nodes(line)


hosts = st.sampled_from(["10.0.0.1", "fd00::1", "redis.example"])
flags = st.sets(st.sampled_from(["fail?", "fail", "handshake", "noaddr", "nofailover"]), max_size=4)
slots = st.lists(st.tuples(st.integers(0, 16383), st.integers(0, 16383)).map(lambda p: (min(p), max(p))), max_size=3)
old_form = st.just("")
new_form = st.sampled_from(["@17000", "@17000,", "@17000,h.example", "@17000,,shard-id=1f", "@17000,h.example,a=b,c=d"])


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, Node]:
    known, host, port = draw(flags), draw(hosts), draw(st.integers(1, 65535))
    suffix, master = draw(old_form | new_form), draw(st.sampled_from(["-", "f" * 40]))
    known |= {"master" if master == "-" else "slave"} | (draw(st.sampled_from([set(), {"myself"}])))
    link, ranges = draw(st.sampled_from(["connected", "disconnected"])), draw(slots)
    moving = draw(st.lists(st.sampled_from(["[93-<-0b2]", "[77->-0a1]"]), max_size=2))
    words = [str(a) if a == b else f"{a}-{b}" for a, b in ranges]
    text = f"{'e' * 40} {host}:{port}{suffix} {','.join(sorted(known))} {master} 0 1426 7 {link}"
    hostname = "h.example" if "h.example" in suffix else ""
    linked = link == "connected" or "myself" in known
    node = Node("e" * 40, host, port, hostname, frozenset(known), master.strip("-"), linked, tuple(ranges), len(moving))
    return " ".join([text, *words, *moving]), node


@given(st.lists(lines(), max_size=5))
def test_what_a_line_says_is_read_back(given_lines: list[tuple[str, Node]]) -> None:
    assert parse_nodes("".join(f"{line}\n" for line, _ in given_lines)) == [node for _, node in given_lines]


@given(st.lists(lines(), max_size=6), st.booleans())
def test_what_is_chosen_can_be_dumped(given_lines: list[tuple[str, Node]], require_slave: bool) -> None:
    nodes = [node for _, node in given_lines]
    chosen = list[Node]()
    with suppress(RedisSourceError):
        chosen = choose(nodes, require_slave=require_slave).nodes
    for node in chosen:
        assert node.host
        assert not node.flags & {"fail", "handshake"}
        assert not (require_slave and node.is_master)


@given(st.text(max_size=200))
def test_any_other_text_is_an_error_that_shows_it(text: str) -> None:
    said = "CLUSTER NODES: "
    try:
        parse_nodes(text)
    except ValueError as exc:
        said = str(exc)
    assert said.startswith("CLUSTER NODES: ")
