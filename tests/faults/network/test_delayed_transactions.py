"""EndTxn and TxnOffsetCommit of one transaction reach the broker in the next one (hole j).

Found in Kafka by Jepsen (Bufstream 0.1.0, "torn transactions"): the protocol gives requests of two connections no
order, and librdkafka sends a request whose connection broke again on another one, silently. The first copy may come
later. KIP-890 mends that for clients that take a new epoch after each transaction; librdkafka 2.16 does not, so the
transaction version of the broker makes no difference to us. Our rule does: a producer whose connection broke or whose
request timed out is made anew, with a new epoch, before the next transaction begins.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.check import bad
from tests.chaos.failpoints import FULL
from tests.chaos.fleet import PATIENCE
from tests.chaos.stream import StreamScenario
from tests.conftest import Unique
from tests.faults.load import record
from tests.faults.network.site import Site, site
from tests.support.proxy import (
    END_TXN,
    INVALID_PRODUCER_EPOCH,
    NONE,
    PRODUCER_FENCED,
    TXN_OFFSET_COMMIT,
    Held,
)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

RECORDS = 300
FENCED = {INVALID_PRODUCER_EPOCH, PRODUCER_FENCED}


@pytest.fixture(scope="module", params=[0, pytest.param(2, marks=pytest.mark.faults)], ids=["tv0", "tv2"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("kafka"), request.param) as made:
        yield made


def _second_life(scenario: StreamScenario, place: Site, api: int, armed: str, *, cut: bool) -> Held:
    """A worker whose next transaction only plans, and whose request `api` in it is held; returns what holds it."""
    scenario.feeder.send(RECORDS)
    first = scenario.fleet.spawn("a")
    scenario.group.wait_past(scenario.ends(), PATIENCE)
    first.kill()
    scenario.feeder.send(RECORDS)
    held = place.proxy.hold(lambda r: r.api == api and r.names(f"{scenario.name}-a"), cut=cut)
    scenario.fleet.spawn("a", armed)
    held.wait(PATIENCE)
    return held


def _judge(scenario: StreamScenario, control: str, answered: int | None, *caught: str) -> None:
    scenario.feeder.send(RECORDS)
    scenario.drain()
    found = scenario.verdict()
    if control:
        assert answered == NONE, f"seed {scenario.fleet.seed}: the broker refused the late request: {answered}"
        assert all(bad({name: found[name]}) for name in caught), f"seed {scenario.fleet.seed}: not caught: {found}"
    else:
        assert answered in FENCED, f"seed {scenario.fleet.seed}: the broker took the late request: {answered}"
        assert bad(found) == 0, f"seed {scenario.fleet.seed}: {found}"
    attack = f"{scenario.name.rpartition('-')[0]} of one transaction in the next"
    result = f"caught: control {control}" if control else "exact"
    record(attack, scenario, found, {"broker's answer, error": answered}, result=result)


@pytest.mark.parametrize("control", ["", "same_producer"])
def test_an_end_of_the_last_transaction_does_not_end_the_next_one(
    place: Site, home: Path, unique: Unique, seed: int, control: str
) -> None:
    with StreamScenario(
        place.direct, home, unique("EndTxn"), seed, partitions=1, control=control,
        BOOTSTRAP_SERVERS=place.proxy.address, TRANSACTION_TIMEOUT=60,
    ) as scenario:  # fmt: skip
        held = _second_life(scenario, place, END_TXN, f"txn.produced{FULL}=stop1", cut=True)
        worker = scenario.fleet.workers["a"]
        worker.wait_stopped()  # the outputs of the next transaction are in the log, its offsets are not
        answered = held.release()
        worker.kill()
        _judge(scenario, control, answered, "topic")


@pytest.mark.parametrize("control", ["", pytest.param("same_producer", marks=pytest.mark.faults)])
def test_offsets_of_the_last_transaction_do_not_go_into_the_next_one(
    place: Site, home: Path, unique: Unique, seed: int, control: str
) -> None:
    with StreamScenario(
        place.direct, home, unique("TxnOffsetCommit"), seed, partitions=1, control=control,
        BOOTSTRAP_SERVERS=place.proxy.address, TRANSACTION_TIMEOUT=60,
    ) as scenario:  # fmt: skip
        armed = f"txn.offsets_sent{FULL}=stop1,txn.committed{FULL}=kill"
        held = _second_life(scenario, place, TXN_OFFSET_COMMIT, armed, cut=True)
        worker = scenario.fleet.workers["a"]
        worker.wait_stopped()  # the offsets of the next transaction are sent, it is not committed
        answered = held.release()
        worker.signal(signal.SIGCONT)
        assert worker.wait() == -signal.SIGKILL
        _judge(scenario, control, answered, "topic")


@pytest.mark.faults
@pytest.mark.parametrize("api", [END_TXN, TXN_OFFSET_COMMIT], ids=["EndTxn", "TxnOffsetCommit"])
def test_a_request_held_past_the_timeout_of_its_client_does_nothing_to_the_next_transaction(
    place: Site, home: Path, unique: Unique, seed: int, api: int
) -> None:
    """The connection stays; the client gives up by itself, and comes back with another one."""
    with StreamScenario(
        place.direct, home, unique("late"), seed, partitions=1, BOOTSTRAP_SERVERS=place.proxy.address
    ) as scenario:
        held = _second_life(scenario, place, api, "", cut=False)
        first = scenario.fleet.workers["a"]
        assert first.wait() == 70
        successor = scenario.fleet.spawn("a", f"txn.produced{FULL}=stop1")
        successor.wait_stopped()
        answered = held.release()
        successor.kill()
        _judge(scenario, "", answered)
