"""The store: changes wait in the chunk, and reach RocksDB with their changelog position in one batch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import ConfigError, MillstreamError
from millstream.settings import Settings
from schemas.chunk import ChunkId
from streams.engine.app import App
from streams.engine.chunk import Chunk
from tables.scope import CURRENT, OutsideChunkError
from tables.store import Store, StoreLockedError, StorePosition


def make_app(directory: Path) -> App:
    return App(Settings(app_id="store", data_dir=directory))


def chunk(partition: int = 0, tables: tuple[str, ...] = ("stock",)) -> Chunk:
    return Chunk(ChunkId("orders", "id", 1, partition, 0, 9), [], tables=frozenset(tables))


@contextmanager
def working_on(scope: Chunk) -> Iterator[Chunk]:
    token = CURRENT.set(scope)
    try:
        yield scope
    finally:
        CURRENT.reset(token)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Any]:
    table = make_app(tmp_path).Table("stock", default=int)
    for partition in (0, 1):
        table.data.open_partition(partition)
    yield table
    for partition in (0, 1):
        table.data.close_partition(partition)


def commit(table: Any, scope: Chunk, offset: int) -> None:
    position = StorePosition("changelog-id", offset, 0)
    table.data.apply(scope.partition, scope.changes.get("stock", {}).items(), position)
    scope.abandon()


def test_a_change_is_seen_by_its_own_chunk_and_by_nobody_else_before_the_commit(table: Any) -> None:
    with working_on(chunk()) as first:
        table["apples"] += 3
        table["apples"] += 1
        assert table["apples"] == 4
        assert dict(table.items()) == {"apples": 4}
    assert table.data._dbs[0].get(b'"apples"') is None, "RocksDB was written before the commit"
    with working_on(chunk()):
        assert table["apples"] == 0
    assert len(first.changes["stock"]) == 1, "coalesced: one changelog record per key"


def test_the_next_chunk_of_the_partition_sees_what_was_committed(table: Any) -> None:  # rule 9
    with working_on(chunk()) as first:
        table["apples"] = 4
    commit(table, first, 1)
    with working_on(chunk()):
        assert table["apples"] == 4
    with working_on(chunk(partition=1)):
        assert table["apples"] == 0, "another partition holds other keys"


def test_data_and_changelog_position_are_written_together(table: Any, tmp_path: Path) -> None:
    store = table.data
    assert store.open_partition(0) is None
    with working_on(chunk()) as first:
        table["apples"] = 4
    before = time.time()
    commit(table, first, 17)
    store.close_partition(0)
    position = store.open_partition(0)
    assert position is not None
    assert (position.topic_id, position.next_offset) == ("changelog-id", 17)
    assert before <= position.applied_at <= time.time()
    with working_on(chunk()):
        assert list(table.keys()) == ["apples"], "the position is no key of the table"
        assert len(table) == 1


def test_deleting_a_key_is_a_tombstone_and_hides_what_is_on_disk(table: Any) -> None:  # T17
    with working_on(chunk()) as first:
        table["apples"], table["pears"] = 4, 5
    commit(table, first, 2)
    with working_on(chunk()) as second:
        del table["apples"]
        assert "apples" not in table
        assert dict(table.items()) == {"pears": 5}
        assert list(second.changes["stock"].values()) == [None]
    commit(table, second, 3)
    with working_on(chunk()):
        assert dict(table.items()) == {"pears": 5}


def test_clear_deletes_what_the_chunk_sees(table: Any) -> None:
    with working_on(chunk()) as first:
        table["apples"] = 4
    commit(table, first, 1)
    with working_on(chunk()) as second:
        table["pears"] = 1
        table.clear()
        assert len(table) == 0
        assert set(second.changes["stock"].values()) == {None}


def test_nothing_can_be_written_outside_of_a_chunk(table: Any) -> None:  # T20
    with pytest.raises(OutsideChunkError, match="send a record to the agent's topic"):
        table["apples"] = 1
    with pytest.raises(OutsideChunkError, match="'stock'"):
        del table["apples"]


def test_outside_of_a_chunk_what_is_committed_can_be_read(table: Any) -> None:
    for partition, key in ((0, "apples"), (1, "pears")):
        with working_on(chunk(partition)) as scope:
            table[key] = partition + 1
        commit(table, scope, 1)
    assert (table["apples"], table["pears"], "plums" in table) == (1, 2, False)
    assert sorted(table.items()) == [("apples", 1), ("pears", 2)]


def test_an_abandoned_chunk_can_neither_write_nor_read(table: Any) -> None:  # rule 9, T7
    with working_on(chunk()) as lost:
        table["apples"] = 1
        lost.abandon()
        for use in (lambda: table.__setitem__("apples", 2), lambda: table["apples"], lambda: list(table.items())):
            with pytest.raises(OutsideChunkError, match="abandoned"):
                use()
    assert table.data._dbs[0].get(b'"apples"') is None


def test_a_table_that_the_agent_does_not_declare_is_refused(table: Any) -> None:
    with working_on(chunk(tables=("other",))), pytest.raises(OutsideChunkError, match=r"tables=\[table\]"):
        table["apples"] = 1


def test_a_partition_that_is_not_here_is_refused(table: Any) -> None:
    with working_on(chunk(partition=7)), pytest.raises(OutsideChunkError, match="partition 7 is not on this worker"):
        table["apples"]


def test_a_wiped_partition_is_empty_and_without_a_position(table: Any) -> None:  # T18
    with working_on(chunk()) as first:
        table["apples"] = 1
    commit(table, first, 5)
    table.data.wipe_partition(0)
    assert table.data.open_partition(0) is None
    with working_on(chunk()):
        assert dict(table.items()) == {}


def test_a_lost_data_directory_is_an_empty_table(tmp_path: Path) -> None:  # T18
    table = make_app(tmp_path).Table("stock")
    table.data.open_partition(0)
    table.data.close_partition(0)
    shutil.rmtree(table.data.path(0).parent)
    assert table.data.open_partition(0) is None
    table.data.close_partition(0)


def test_a_database_that_another_process_has_open_is_refused_with_the_way_out(tmp_path: Path) -> None:  # T18
    store: Store = make_app(tmp_path).Table("stock").data
    path = store.path(0)
    path.parent.mkdir(parents=True)
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from tables.store import *\nfrom tables.store import _options\n"
            f"db = rocksdict.Rdict({str(path)!r}, _options())\nprint(flush=True)\ninput()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StoreLockedError, match="MILLSTREAM_WORKER_SLOT"):
            store.open_partition(0)
        other.communicate(b"\n")
    assert store.open_partition(0) is None
    store.close_partition(0)


def test_keys_that_collide_with_the_position_are_refused(tmp_path: Path) -> None:
    store: Store = make_app(tmp_path).Table("stock").data
    with working_on(chunk()), pytest.raises(ValueError, match="NUL byte"):
        store._set(b"\0millstream.position", b"1")


def test_windows_work_inside_a_chunk_unless_they_expire(tmp_path: Path) -> None:  # T20
    app = make_app(tmp_path)
    with pytest.raises(ConfigError, match="expires"):
        app.Table("stock", default=int).tumbling(10, expires=60)
    plain = app.Table("stock2", default=int)
    assert plain.tumbling(10).table is plain


async def test_faust_backups_are_refused(table: Any) -> None:
    with pytest.raises(MillstreamError, match="changelog topic restores it"):
        await table.data.backup_partition(None)
    with pytest.raises(MillstreamError, match="changelog topic restores it"):
        table.data.restore_backup(None)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from("abc"), st.integers()),
        st.tuples(st.just("del"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("commit"), st.just(""), st.just(0)),
        st.tuples(st.just("abandon"), st.just(""), st.just(0)),
        st.tuples(st.just("reopen"), st.just(""), st.just(0)),
    ),
    max_size=25,
)


@given(OPERATIONS)
@settings(max_examples=60)
def test_the_table_is_what_a_dictionary_with_transactions_would_be(tmp_path_factory: Any, operations: Any) -> None:
    """Commits make changes permanent, abandoned chunks leave no trace, and the changelog says the same as the disk."""
    table = make_app(tmp_path_factory.mktemp("model")).Table("stock")
    committed: dict[str, int] = {}
    changelog: dict[bytes, bytes | None] = {}
    open_, scope = dict(committed), chunk()
    table.data.open_partition(0)
    for operation, key, value in operations:
        with working_on(scope):
            if operation == "set":
                table[key] = open_[key] = value
            elif operation == "del":
                if key in open_:  # as a dictionary, deleting what is not there is a KeyError
                    del table[key], open_[key]
            elif operation == "commit":
                changelog |= scope.changes.get("stock", {})
                commit(table, scope, 1)
                committed, scope = dict(open_), chunk()
            elif operation == "abandon":
                scope.abandon()
                open_, scope = dict(committed), chunk()
        if operation == "reopen":
            table.data.close_partition(0)
            table.data.open_partition(0)
        with working_on(scope):
            assert dict(table.items()) == open_
    assert dict(table.items()) == committed
    restored = {k: v for k, v in changelog.items() if v is not None}
    assert restored == dict(table.data._iteritems())
    table.data.close_partition(0)


def test_who_looks_on_sees_what_is_committed_and_how_large_it_is(table: Any) -> None:
    for partition, keys in ((0, (b"b/1", b"b/2", b"c")), (1, (b"b/3",))):
        table.data.apply(partition, [(key, b"v") for key in keys], StorePosition("id", 1, 0))
    assert sorted(key for key, _ in table.data.scan(b"b/")) == [b"b/1", b"b/2", b"b/3"]
    keys, size = table.data.size()
    assert keys == 4
    assert size > 0
    table.data.close_partition(0)
    assert [key for key, _ in table.data.scan(b"") if not key.startswith(b"\0")] == [b"b/3"]
