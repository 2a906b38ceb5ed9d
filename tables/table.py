"""Faust tables whose changelog is produced by the commit cycle, in the chunk's transaction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import faust
import pyarrow as pa

from millstream.errors import ConfigError
from tables import columns
from tables.columns import Column
from tables.store import Store


class Table(faust.Table):
    """A Faust table that never sends to its changelog itself, whose windows do not expire, and that takes columns.

    `table[key] += 1` and the methods that take columns may be mixed: they see each other's changes at once.
    """

    logger = logging.getLogger("faust.tables")

    def __getitem__(self, key: Any) -> Any:
        """As in Faust, with one look at the store instead of two: each encodes the key anew."""
        self.on_key_get(key)
        try:
            return self.data[key]
        except KeyError:
            return self.__missing__(key)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adding = asyncio.Lock()
        """Two additions at once could both see the old value."""

    # ------------------------------------------------------------------ many keys at once
    async def add(self, keys: Column, amounts: Column | int = 1) -> None:
        """`table[key] += amount` for each row: counts the keys, or sums a column of integers or floats by key.

        One look-up and one change per distinct key, and no Python per row. A null amount adds nothing. A sum of floats
        is rounded once more than row by row, the same at each replay. Raises KeyError for a key without a value in a
        table without `default`, TypeError for amounts that are no numbers.
        """
        async with self._adding:
            await asyncio.to_thread(self._add, _array(keys), amounts if isinstance(amounts, int) else _array(amounts))

    async def get_many(self, keys: Column) -> list[Any]:
        """The value of each key, None where there is none (whatever the table's `default`)."""
        return await asyncio.to_thread(self._get_many, _array(keys))

    async def put_many(self, keys: Column, values: Sequence[Any] | Column) -> None:
        """`table[key] = value` for each row, but None deletes the key. The last value of a key wins.

        With `get_many` this changes state by any rule: group the rows by key, get the old values, compute, put.
        """
        found = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values
        await asyncio.to_thread(self._put_many, _array(keys), found)

    def _add(self, keys: pa.Array, amounts: pa.Array | int) -> None:
        distinct, totals = columns.sums(keys, amounts)
        store: Store = self.data
        raw = store.encode_keys(distinct)
        # A null key comes last. It is stored as b"null", which a key of bytes may be too.
        if distinct.null_count and raw[-1] in (others := raw[:-1]):
            totals[others.index(raw[-1])] += totals[-1]
            raw, totals = others, totals[:-1]
        old = store.decode_values(store.get_many(raw))
        if None in old:
            missing = old.index(None)
            start = self.__missing__(distinct[missing].as_py())
            old = [start if o is None else o for o in old]
        store.put_many(raw, store.encode_values([o + n for o, n in zip(old, totals, strict=True)]))

    def _get_many(self, keys: pa.Array) -> list[Any]:
        store: Store = self.data
        return store.decode_values(store.get_many(store.encode_keys(keys)))

    def _put_many(self, keys: pa.Array, values: Sequence[Any]) -> None:
        store: Store = self.data
        store.put_many(store.encode_keys(keys), store.encode_values(values))

    def on_key_set(self, key: Any, value: Any) -> None:
        """The change stands in the chunk's overlay already."""
        self._sensor_on_set(self, key, value)

    def on_key_del(self, key: Any) -> None:
        """The change stands in the chunk's overlay already."""
        self._sensor_on_del(self, key)

    def partition_for_key(self, key: Any) -> int | None:
        """Tables are partitioned as their source topic: the key's partition is the chunk's."""
        return None

    def using_window(self, window: Any, *, key_index: bool = False) -> Any:
        """Windowed view of the table. Raises ConfigError for a window that expires."""
        if window.expires:  # None or 0.0, by the class of window, when it does not
            raise ConfigError(
                f"table {self.name!r}: Faust expires windows from a timer, outside any transaction (trap T20). Leave "
                "`expires` out and delete old keys in the agent."
            )
        return super().using_window(window, key_index=key_index)


def _array(column: Column) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
