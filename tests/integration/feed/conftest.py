"""A namespace of each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from tests.conftest import Unique


@pytest.fixture
def namespace(unique: Unique, admin: AdminClient) -> Iterator[str]:
    """Its topics go after the test."""
    prefix = unique("feed") + "."
    yield prefix
    names = [t for t in admin.list_topics(timeout=10).topics if t.startswith(prefix)]
    for deleted in admin.delete_topics(names).values() if names else ():
        deleted.exception(30)
