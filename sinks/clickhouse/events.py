"""Events of videos in ClickHouse: every event of the log appended once, and a view that gives the projection.

The view answers as `catalog.video_projection` of Postgres does, from the same rule: of each field the greatest
(version, event id) above the deleted version. Times are microseconds since 1970-01-01 UTC, `tags` is JSON text.
"""

from __future__ import annotations

from importlib.resources import files

from millstream.errors import SinkError
from sinks.clickhouse.config import ClickHouseConfig
from sinks.clickhouse.schema import ensure_database, quoted
from sinks.clickhouse.service import ClickHouseStream

TABLE, VIEW = "video_events", "video_projection"
COLUMNS = ("event_id", "event_type", "aggregate_id", "version", "changes", "digest", "_offset")
"""Columns of a chunk that the table keeps."""

_TEXTS = (
    "uploader_id", "title", "description", "status", "media_status", "analysis_status", "thumbnail_url",
    "hls_master_playlist", "difficulty", "summary", "tags", "raw_subtitle_url",
)  # fmt: skip
_NUMBERS = ("duration_micros", "created_at", "published_at")
_VALUE = "argMaxIf(tuple(if(raw = 'null', NULL, value)), place, field = '{0}' AND register.version > gone).1"


def events_ddl(database: str) -> list[str]:
    """The statements that create table and view."""
    columns = [f"    {_VALUE.format(name)} AS {name}" for name in _TEXTS]
    columns += [f"    toInt64OrNull({_VALUE.format(name)}) AS {_shown(name)}" for name in _NUMBERS]
    fields = ",\n".join(columns)
    return [sql.replace("{{database}}", quoted(database)).replace("{{fields}}", fields) for sql in _SQL]


def _shown(name: str) -> str:
    return f"{name.removesuffix('_micros')}_micros"


class VideoEvents(ClickHouseStream):
    """`ClickHouseStream` into `video_events`; makes table and view if the settings allow it."""

    def __init__(self, config: ClickHouseConfig) -> None:
        super().__init__(config, TABLE)

    async def _check_tables(self) -> None:
        if self._config.auto_create_tables:
            await ensure_database(self._client, self._config.database, create=True)
            for sql in events_ddl(self._config.database):
                await self._client.run(sql, purpose=f"create {TABLE} and {VIEW}")
        try:
            await super()._check_tables()
        except SinkError as e:
            e.add_note("MILLSTREAM_CLICKHOUSE_AUTO_CREATE_TABLES=true makes it")
            raise


_SQL = [files("sinks.clickhouse").joinpath("sql", f"{name}.sql").read_text("utf-8") for name in (TABLE, VIEW)]
"""Read at import: later on it would block the event loop."""
