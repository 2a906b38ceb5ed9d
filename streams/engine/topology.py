"""Which agents read which topics, which tables they share, and so which partitions one worker must hold together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

import faust

from millstream.cluster import TP
from millstream.errors import ConfigError
from schemas.codecs import Codec
from schemas.names import DLQ_SUFFIX


class TaskKey(NamedTuple):
    """Partitions that are always on one worker, with one open chunk among them (hole d)."""

    family: str
    """Tasks of one family are spread evenly over the workers."""
    task: str


@dataclass(slots=True)
class Source:
    """A topic, or all topics of a pattern, with the agents that read it."""

    names: tuple[str, ...]
    pattern: re.Pattern[str] | None
    codec: Codec | None
    """None: an ordinary topic, whose agents get events one by one."""
    partitions: int | None
    agents: list[Any] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    family: str = ""

    def matches(self, topic: str) -> bool:
        """True if the topic is one of these. A pattern never matches dead letters: they would come round again."""
        if self.pattern is None or topic.endswith(DLQ_SUFFIX):
            return topic in self.names
        return bool(self.pattern.fullmatch(topic))

    @property
    def label(self) -> str:
        """Names or pattern, for messages."""
        return self.pattern.pattern if self.pattern else ",".join(self.names)


class Topology:
    """All sources of an app."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self.sources = list(sources)
        self._cache: dict[str, Source | None] = {}
        self._join()

    def source_of(self, topic: str) -> Source | None:
        """The source that a topic belongs to."""
        if topic not in self._cache:
            self._cache[topic] = next((s for s in self.sources if s.matches(topic)), None)
        return self._cache[topic]

    def task_of(self, tp: TP) -> TaskKey | None:
        """The task of a partition; None if no agent reads the topic."""
        source = self.source_of(tp.topic)
        if source is None:
            return None
        # Without tables nothing ties partitions together: each goes where there is room (T11).
        return TaskKey(source.family, str(tp.partition) if source.tables else f"{tp.topic}-{tp.partition}")

    def table_partitions(self) -> dict[str, int | None]:
        """Table -> partitions of its source topics, where they are declared."""
        found: dict[str, int | None] = {}
        for source in self.sources:
            for table in sorted(source.tables):
                found[table] = found.get(table) or source.partitions
        return found

    @property
    def subscription(self) -> re.Pattern[str]:
        """One pattern for every topic that any agent reads."""
        names = [re.escape(n) for s in self.sources for n in s.names]
        dead = re.escape(DLQ_SUFFIX)
        patterns = [rf"(?!.*{dead}\Z)(?:{s.pattern.pattern})" for s in self.sources if s.pattern]
        return re.compile(rf"(?:{'|'.join([*names, *patterns]) or '(?!)'})\Z")

    def _join(self) -> None:
        """Sources that share a table are one family; their partition counts must agree."""
        for i, source in enumerate(self.sources):
            source.family = f"{i}:{source.label}"
        changed = True
        while changed:
            changed = False
            for a in self.sources:
                for b in self.sources:
                    if a is not b and a.tables & b.tables and (a.family, a.tables) != (b.family, b.tables):
                        a.family = b.family = min(a.family, b.family)
                        a.tables = b.tables = a.tables | b.tables
                        changed = True
        for a in self.sources:
            for b in self.sources:
                if a.tables & b.tables and None not in (a.partitions, b.partitions) and a.partitions != b.partitions:
                    raise ConfigError(
                        f"topics {a.label} ({a.partitions} partitions) and {b.label} ({b.partitions}) share table "
                        f"{min(a.tables & b.tables)!r}: they must have the same number of partitions, or keys of one "
                        "land on another worker than the table's (hole d). Re-partition one of them."
                    )


def tables_in(fun: Any) -> set[str]:
    """Names of the tables that a function's body names: in its globals, its closure and nested functions.

    Only a default for `tables=`: a table reached in another way is refused when it is used.
    """
    fun = getattr(fun, "__wrapped__", fun)
    if not isinstance(fun, FunctionType):
        return set()
    cells = dict(zip(fun.__code__.co_freevars, fun.__closure__ or (), strict=True))
    found = set()
    for name in _names(fun.__code__):
        value = fun.__globals__.get(name)
        if name in cells:
            value = next(_content(cells[name]), None)
        table = getattr(value, "table", value)  # a windowed table wraps one
        if isinstance(table, faust.Table):
            found.add(table.name)
    return found


def _content(cell: CellType) -> Iterator[Any]:
    with suppress(ValueError):  # a local variable that was not given a value yet
        yield cell.cell_contents


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _names(const)
