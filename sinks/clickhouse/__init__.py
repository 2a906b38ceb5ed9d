"""ClickHouse: dump batches into the tables of `sql/`, ordinary streams into a table of the user's own.

`ClickHouseConfig.parse(url)` reads the URL; `ClickHouseBatches` and `ClickHouseStream` are the sinks; `schema_ddl`
gives the DDL as text. A `chdb://` URL runs the engine in this process, `http(s)://` talks to a server; the same code
runs on both. No real ClickHouse server was run in our tests, only its engine (chdb), in-process and behind a small
HTTP server of ours.
"""

from sinks.clickhouse.config import ClickHouseConfig
from sinks.clickhouse.schema import schema_ddl
from sinks.clickhouse.service import ClickHouseBatches, ClickHouseStream

__all__ = ["ClickHouseBatches", "ClickHouseConfig", "ClickHouseStream", "schema_ddl"]
