"""ClickHouse: dump batches into the tables of `sql/`, ordinary streams into a table of the user's own.

`ClickHouseConfig.parse(url)` reads the URL; `ClickHouseBatches` and `ClickHouseStream` are the sinks; `schema_ddl`
gives the DDL as text. A `chdb://` URL runs the engine in this process, `http(s)://` talks to a server; the same code
runs on both. No real ClickHouse server was run in our tests, only its engine (chdb), in-process and behind a small
HTTP server of ours.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinks.clickhouse.config import ClickHouseConfig
    from sinks.clickhouse.schema import schema_ddl
    from sinks.clickhouse.service import ClickHouseBatches, ClickHouseStream

_WHERE = {
    "ClickHouseBatches": "service",
    "ClickHouseConfig": "config",
    "ClickHouseStream": "service",
    "schema_ddl": "schema",
}

__all__ = ["ClickHouseBatches", "ClickHouseConfig", "ClickHouseStream", "schema_ddl"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: the driver and pandas take 40 MiB, and reading a URL needs neither."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
