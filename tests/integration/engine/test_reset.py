"""`millstream reset` against a real broker: begun again after a crash, never half done for a worker."""

from __future__ import annotations

from typing import Any

import pytest

from millstream.errors import BrokerError
from streams.engine.plan import ForeignOffsetError
from streams.engine.reset import Resetter
from tests.integration.engine.test_recovery import Group, group

__all__ = ["group"]


def test_a_reset_that_died_half_way_keeps_workers_away_until_it_is_run_again(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:  # rule 6
    def dies(*_: Any) -> None:
        raise BrokerError("killed here")

    group.fill()
    for tp in group.tps:
        group.register(tp)
        group.ours(tp, 7)
    resetter = Resetter(group.app.cluster, group.app.registry, group.app.conf.id)
    with monkeypatch.context() as patched:
        patched.setattr(Resetter, "_register", dies)
        with pytest.raises(BrokerError, match="killed here"):
            resetter.run(resetter.plan([group.topic], [group.changelog]))
    group.app.cluster.create(group.app.declarations())  # as a worker does that is started now
    with pytest.raises(ForeignOffsetError, match="millstream reset was not finished: run it again"):
        group.load()
    resetter.run(resetter.plan([group.topic], [group.changelog]))
    group.app.cluster.create(group.app.declarations())
    assert {(p.offset, p.epoch) for p in group.load().positions.values()} == {(0, 2)}
