"""What lives in Postgres: migrations in order (`NNNN_name.sql`), and the full schema they add up to (`schema.sql`)."""

from schemas.postgres.migrate import migrate, migrations, pending, require_migrated, schema_sql

__all__ = ["migrate", "migrations", "pending", "require_migrated", "schema_sql"]
