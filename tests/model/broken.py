"""Known-bad variants: those of tests/chaos/controls.py, each with one rule taken away, applied to simulated workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from millstream.cluster import Cluster
from schemas.chunk import Chunk, Receipt
from sinks.memory import MemorySink
from streams.engine import cycle, loading, recovery
from tests.chaos import controls
from tests.model.machine import Protocol
from tests.model.world import World

PATCHED = (
    (cycle.CommitCycle, "__init__"),
    (loading, "group_metadata"),
    (Cluster, "stable_offsets"),
    (Cluster, "offsets"),
    (recovery.Recovery, "load"),
    (recovery, "read_to_end"),
)
"""What the controls replace; put back afterwards."""


class Broken(Protocol):
    """The model without one rule. Judged as by a checker that reads only input and sinks."""

    control = ""
    strict = False
    # The blows that real workers are dealt in tests/chaos; without the others a failure is found sooner.
    pause = expel = time_out = arrive_late = give_up_insert = swallow = None  # type: ignore[assignment]
    hold_markers = write_markers = write_marker = lose_disk = None  # type: ignore[assignment]


@contextlib.contextmanager
def without_rule(machine: type[Broken]) -> Iterator[None]:
    """The rule is taken away in here."""
    with contextlib.ExitStack() as stack:
        for where, name in PATCHED:
            stack.enter_context(mock.patch.object(where, name, getattr(where, name)))
        stack.enter_context(mock.patch.object(controls, "print", create=True))
        controls.CONTROLS[machine.control]()
        yield


class NoPlan(Broken):
    control = "no_plan"


class NoGeneration(Broken):
    control = "no_generation"


class UnstableOffsets(Broken):
    control = "unstable_offsets"


class CommittedEndsFirst(Broken):
    control = "committed_ends_first"


class PlainFiles(MemorySink):
    """The usual loop: a file per write, under a name of its own."""

    async def have(self, chunk: Chunk) -> Receipt | None:
        return None

    async def write_chunk(self, chunk: Chunk) -> Receipt:
        self.chunks[f"file {len(self.chunks)}"] = chunk
        return Receipt(self.name, chunk.rows)


class WriteThenSave(Broken):
    """Write the file, then save the offset."""

    control = "no_plan"

    def make_world(self) -> World:
        world = super().make_world()
        world.files = PlainFiles("files")
        return world


BROKEN = {
    "no_plan": NoPlan,
    "no_generation": NoGeneration,
    "unstable_offsets": UnstableOffsets,
    "committed_ends_first": CommittedEndsFirst,
    "write_then_save": WriteThenSave,
}
