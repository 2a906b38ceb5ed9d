"""Which failpoints there are, and which attack reaches them."""

from __future__ import annotations

from millstream.failpoints import KNOWN


def declared() -> set[str]:
    """Every failpoint of the product."""
    import sinks.clickhouse
    import sinks.parquet
    import sources.feed
    import streams.engine.app  # noqa: F401

    return set(KNOWN)


IN_BATCHES = ("parquet.open_batch.", "parquet.merge.", "parquet.publish.", "clickhouse.finalize.", "clickhouse.schema.")
IN_FEEDERS = ("feed.",)
IN_LOADS = ("load.",)


def of_stream() -> list[str]:
    """Those that a worker of the generic stream passes."""
    return sorted(name for name in declared() if not name.startswith(IN_BATCHES + IN_FEEDERS))


def of_feeder() -> list[str]:
    """Those that a feeder passes."""
    return sorted(name for name in declared() if name.startswith(IN_FEEDERS))


def of_job() -> list[str]:
    """Those that a worker of the job passes and a generic stream does not, and the parts' and inserts' again."""
    return sorted(name for name in declared() if name.startswith(("parquet.", "clickhouse.")))
