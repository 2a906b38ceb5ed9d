"""Before the first row is read: is there everything that a run needs, and if not, the SQL that mends it (PE-65)."""

from __future__ import annotations

from millstream.errors import ConfigError
from schemas.products.normalise import BRAND, STYLE, UPDATED
from sources.staging.reader import StagingReader

_TYPES = {BRAND: "varchar(64)", STYLE: "varchar(64)", UPDATED: "timestamptz"}


async def check_staging(reader: StagingReader, *, unique: bool, unique_sql: str) -> None:
    """Raises ConfigError with the SQL. `unique`: whether (brand_code, sku) is unique in shop.products."""
    has, table = await reader.columns(), reader.table
    if not has:
        raise ConfigError(
            f"there is no table {table}: give its name with --table, or, for a first try, run `millstream migrate`"
        )
    missing = {name: kind for name, kind in _TYPES.items() if name not in has}
    fixes = [f"ALTER TABLE {table} ADD COLUMN {name} {kind};" for name, kind in missing.items()]
    problems = [f"{table} has no column {name}" for name in missing]
    if not unique:
        problems.append("(brand_code, sku) is not unique in shop.products")
        fixes.append(unique_sql)
    if problems:
        raise ConfigError(f"{'; '.join(problems)}. To mend it:\n" + "\n".join(fixes))
