"""The sinks of dump batches that the settings ask for (RU-12)."""

from __future__ import annotations

from millstream.errors import ConfigError
from millstream.settings import Settings
from sinks.base import BatchSink
from sinks.clickhouse.config import ClickHouseConfig
from sinks.parquet.config import ParquetConfig
from sinks.postgres.config import PostgresConfig

NONE_CONFIGURED = (
    "no sink is configured: set MILLSTREAM_PARQUET_DIR to a directory, MILLSTREAM_CLICKHOUSE_URL to "
    "http(s)://user:password@host:port?database=d or chdb:///absolute/path?database=d, or both"
)


def create_output(settings: Settings) -> list[BatchSink]:
    """Parquet, ClickHouse, both, or none. Raises ConfigError for a URL that is not allowed. Opens nothing yet."""
    found: list[BatchSink] = []
    if settings.parquet_dir is not None:
        from sinks.parquet import ParquetBatches

        found.append(
            ParquetBatches(
                ParquetConfig(
                    settings.parquet_dir.absolute(),
                    settings.parquet_compression,
                    settings.parquet_sort,
                    settings.group_id,
                )
            )
        )
    if (config := clickhouse_config(settings)) is not None:
        from sinks.clickhouse import ClickHouseBatches

        found.append(ClickHouseBatches(config))
    return found


def clickhouse_config(settings: Settings) -> ClickHouseConfig | None:
    """Where the ClickHouse sink writes; None without one. Raises ConfigError."""
    if settings.clickhouse_url is None:
        return None
    proxy = settings.clickhouse_proxy_url
    return ClickHouseConfig.parse(
        settings.clickhouse_url.get_secret_value(),
        auto_create_tables=settings.clickhouse_auto_create_tables,
        proxy_url=proxy.get_secret_value() if proxy is not None else None,
        send_timeout=settings.clickhouse_timeout,
    )


def postgres_config(settings: Settings) -> PostgresConfig:
    """Where the Postgres sinks write. Raises ConfigError without a URL."""
    from millstream.postgres import postgres_url  # asyncpg is for those who use it

    return PostgresConfig(postgres_url(settings), settings.postgres_pool_size, settings.group_id)


def require_output(sinks: object) -> None:
    """Raise ConfigError that names the variables if there is no sink."""
    if not sinks:
        raise ConfigError(NONE_CONFIGURED)
