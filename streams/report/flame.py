"""The flame graph: significant prefixes as a tree, each as wide as its share."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.survey import Survey

ROW = 22
"""Height of a level in pixels."""
_LEVELS, _NODES = 32, 1000
"""What is drawn; deeper and smaller ones stay in the exported data."""


@dataclass(frozen=True, slots=True)
class Node:
    """A prefix in the picture. The first node is the whole batch."""

    prefix: bytes
    label: bytes
    """What it adds to the prefix above it."""
    depth: int
    parent: int
    keys: int
    size: int
    left: int
    """Bytes of all that stands to the left of it."""
    colour: int


def tree(survey: Survey) -> list[Node]:
    """The nodes, parents before children, in the order of the prefixes."""
    largest = sorted(survey.prefixes, key=lambda p: (-p.size, len(p.prefix), p.prefix))[:_NODES]
    nodes = [Node(b"", b"", 0, -1, survey.keys, survey.size, 0, 0)]
    filled = [0]
    path = [0]
    for prefix in sorted(largest):
        while not prefix.prefix.startswith(nodes[path[-1]].prefix):
            path.pop()
        parent = nodes[path[-1]]
        if parent.depth + 1 >= _LEVELS:
            continue
        colour = len([n for n in nodes if n.parent == 0]) % 8 if parent.depth == 0 else parent.colour
        left = parent.left + filled[path[-1]]
        filled[path[-1]] += prefix.size
        label = prefix.prefix[len(parent.prefix) :]
        nodes.append(Node(prefix.prefix, label, parent.depth + 1, path[-1], prefix.keys, prefix.size, left, colour))
        filled.append(0)
        path.append(len(nodes) - 1)
    return nodes
