"""Postgres: rows of chunks, in one transaction with the chunk's receipt.

`PostgresStream(config, apply)` is the sink; `apply` says what is done with the rows: `Append(table)` copies them,
`VideoProjection()` merges events, `Products()` compares and writes products.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinks.postgres.append import Append
    from sinks.postgres.config import PostgresConfig
    from sinks.postgres.products import Products
    from sinks.postgres.projection import VideoProjection
    from sinks.postgres.service import Apply, PostgresStream

_WHERE = {
    "Append": "append",
    "Apply": "service",
    "PostgresConfig": "config",
    "PostgresStream": "service",
    "Products": "products",
    "VideoProjection": "projection",
}

__all__ = ["Append", "Apply", "PostgresConfig", "PostgresStream", "Products", "VideoProjection"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: the factory needs the configuration only, not the driver."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
