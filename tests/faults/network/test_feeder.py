"""A feeder whose connection breaks while it commits: the rule of hole j holds for sources too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from millstream.settings import Settings
from sources.transactional import FencedError, TransactionalSource
from tests.conftest import Unique
from tests.faults.network.site import Site, site
from tests.support.kafka import create_topic, read_all
from tests.support.proxy import END_TXN, INVALID_PRODUCER_EPOCH, PRODUCER_FENCED, TXN_OFFSET_COMMIT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("kafka"), 0) as made:
        yield made


@pytest.fixture
def topic(place: Site, unique: Unique) -> str:
    return create_topic(AdminClient({"bootstrap.servers": place.direct}), unique("fed"))


def _source(servers: str, topic: str, **more: float) -> TransactionalSource:
    source = TransactionalSource(Settings(bootstrap_servers=servers, **more), f"feed-{topic}", topic, 1 << 20)
    source.position()
    return source


def _feed(source: TransactionalSource, *numbers: int) -> None:
    for number in numbers:
        source.send(b"k", b"%d" % number, [])
    source.commit(numbers[-1] + 1, f"at {numbers[-1] + 1}")


@pytest.mark.parametrize("api", [END_TXN, TXN_OFFSET_COMMIT], ids=["EndTxn", "TxnOffsetCommit"])
def test_what_is_late_of_one_commit_does_nothing_to_the_next_one(place: Site, topic: str, api: int) -> None:
    source = _source(place.proxy.address, topic)
    _feed(source, 0)
    held = place.proxy.hold(lambda r: r.api == api and r.names(topic), cut=True)
    _feed(source, 1)
    assert held.request is not None
    source.send(b"k", b"2", [])
    source.flush()
    assert held.release() in {INVALID_PRODUCER_EPOCH, PRODUCER_FENCED}
    again = _source(place.direct, topic)  # the open transaction is aborted
    assert again.position() == "at 2"
    assert [m.value() for m in read_all(place.direct, topic)] == [b"0", b"1"]


def test_a_feeder_that_was_cut_off_does_not_take_back_what_another_one_took_over(place: Site, topic: str) -> None:
    first = _source(place.proxy.address, topic)
    _feed(first, 0)
    second = _source(place.direct, topic)
    _feed(second, 1)
    place.proxy.cut()
    wait_until(first._client._lost, 60, "the first feeder to notice")
    with pytest.raises(FencedError, match="took over"):
        first.send(b"k", b"1", [])
    assert [m.value() for m in read_all(place.direct, topic)] == [b"0", b"1"]
