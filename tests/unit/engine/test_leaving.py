"""How the consumer thread ends."""

from __future__ import annotations

from types import SimpleNamespace

from streams.engine.membership import ConsumerThread


def test_a_rebalance_while_the_app_stops_leaves_closing_to_the_threads_own_end() -> None:
    """Marked as closed by Faust, aiokafka's consumer would not be stopped any more (chaos seed 636318587)."""
    thread = ConsumerThread.__new__(ConsumerThread)
    consumer = SimpleNamespace(_closed=False)
    thread._consumer = consumer  # type: ignore[assignment]
    thread.close()
    assert consumer == SimpleNamespace(_closed=False)
