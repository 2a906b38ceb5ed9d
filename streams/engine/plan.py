"""What stands in the metadata of a partition's group offset: whose position it is, and the range planned next.

`ms2|<topic id>|<epoch>` for a position, and with `|<first>|<last>|<count>|<crc>|<attempt>|<replays>` an open plan.
Version 2 is the first one released (version 1 was the prototype's). Kafka allows 4096 bytes; ours stay below 256.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from millstream.errors import MillstreamError

VERSION = "ms2"


class ForeignOffsetError(MillstreamError):
    """The group offset was not written by this engine (reset tool, another consumer in the group)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A range on record: it is written, and after any crash replayed, exactly as it stands here."""

    first: int
    last: int
    count: int
    """Kafka records in the range."""
    crc: int
    attempt: int = 0
    replays: int = 0
    """How many owners met this plan open and took it up (hole i)."""

    def raised(self) -> Plan:
        """The same range under the next attempt (hole a)."""
        return replace(self, attempt=self.attempt + 1)

    def replayed(self) -> Plan:
        """The same range, met once more by an owner."""
        return replace(self, replays=self.replays + 1)


@dataclass(frozen=True, slots=True)
class Position:
    """A partition's committed state: next offset, and the open plan if there is one."""

    offset: int
    topic_id: str
    epoch: int
    plan: Plan | None = None

    @property
    def metadata(self) -> str:
        """The text for the group offset's metadata."""
        head = f"{VERSION}|{self.topic_id}|{self.epoch}"
        p = self.plan
        return f"{head}|{p.first}|{p.last}|{p.count}|{p.crc}|{p.attempt}|{p.replays}" if p else head

    def unless_kept(self, kept: Position | None) -> Position:
        """This position as it was loaded, or `kept` if the plan was this process's own before and nobody's since.

        A rebalance that a worker lives through says nothing against its chunk: it is no replay (hole i).
        """
        if kept is not None and kept.plan is not None and replace(kept, plan=kept.plan.replayed()) == self:
            return kept
        return self

    @classmethod
    def parse(cls, offset: int, metadata: str | None) -> Position:
        """The position behind a group offset. Raises ForeignOffsetError."""
        version, *rest = (metadata or "").split("|")
        try:
            if version != VERSION or len(rest) not in (2, 8):
                raise ValueError(version)
            topic_id, epoch, *numbers = rest
            plan = Plan(*map(int, numbers)) if numbers else None
            if plan and (plan.first != offset or plan.last < plan.first):
                raise ValueError(f"plan {plan.first}..{plan.last} at offset {offset}")
            return cls(offset, topic_id, int(epoch), plan)
        except ValueError as exc:
            raise ForeignOffsetError(
                f"group offset {offset} carries metadata {metadata!r}, which this engine did not write ({exc}). "
                "Was the offset reset by another tool, or is another program in this consumer group? "
                "Use `millstream reset` to set a position on purpose."
            ) from None
