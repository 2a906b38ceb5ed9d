"""Faust tables whose changelog is produced by the commit cycle, in the chunk's transaction."""

from __future__ import annotations

import logging
from typing import Any

import faust

from millstream.errors import ConfigError


class Table(faust.Table):
    """A Faust table in every respect but two: it never sends to its changelog itself, and windows do not expire."""

    logger = logging.getLogger("faust.tables")

    def __getitem__(self, key: Any) -> Any:
        """As in Faust, with one look at the store instead of two: each encodes the key anew."""
        self.on_key_get(key)
        try:
            return self.data[key]
        except KeyError:
            return self.__missing__(key)

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
