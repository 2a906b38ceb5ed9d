"""Products: rows of the staging table, normalised and versioned (facts 2.4)."""

from schemas.products.normalise import BadRowError, Product, normalise
from schemas.products.stable import SCHEMA_VERSION, data_version, stable_json

TOPIC = "products.staging.rows"
"""Rows of the staging table on their way to the products; key: JSON pair `["brand","sku"]`, one partition."""
CHANGES_TOPIC = "products.changes"
"""Entries of the change log; the same key."""

__all__ = [
    "CHANGES_TOPIC",
    "SCHEMA_VERSION",
    "TOPIC",
    "BadRowError",
    "Product",
    "data_version",
    "normalise",
    "stable_json",
]
