"""The wrapper runs on the event loop; what time it is can be played."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from blockbuster import BlockBuster


@pytest.fixture(autouse=True)
def _unblocked(no_blocking: BlockBuster) -> None:
    """The wrapper runs on the event loop: it must not block it."""


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock jumps: sleeping takes no time, and the lengths of the sleeps are on record; nothing else takes any."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("stamina._core._smart_sleep", sleep)
    monkeypatch.setattr("tenacity.time", SimpleNamespace(monotonic=lambda: sum(slept)))
    return slept
