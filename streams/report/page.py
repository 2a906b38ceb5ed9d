"""The page, from a survey and perhaps a difference."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from schemas.prefixes import significant
from schemas.survey import BIG_OTHER, BIG_STRING, CHANGES, Difference, Group, Slots, Survey
from streams.report import words
from streams.report.changes import changes_view
from streams.report.flame import ROW, Node, tree

_SLOT_BARS = 128
_HEAVIEST = 10
_ROWS = 200
"""Rows of a table of instances, databases or prefixes; what is left out is counted."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """A table's first rows, and what it leaves out."""

    shown: list[Any]
    left: int


def render(survey: Survey, difference: Difference | None = None, *, source: str, now: datetime | None = None) -> str:
    """The HTML. `source` says where the batch was read from; it must hold no secret."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loading = Environment(
        loader=PackageLoader("streams.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loading.filters.update(
        text=words.text,
        short=words.short,
        size=words.size,
        signed=words.signed_size,
        number=words.number,
        time=words.time,
        when=words.when,
    )
    loading.globals.update(share=words.share, percent=words.percent)
    style, script = _asset("report.css"), _asset("report.js")
    nodes = tree(survey)
    return loading.get_template("report.html.j2").render(
        style=style,
        script=script,
        # Nothing but our own style and script may run or be loaded, whatever a key holds.
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'",
        survey=survey,
        batch=survey.batch,
        source=source,
        version=version("millstream"),
        made=(now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M:%S"),
        by_type=survey.by("type"),
        by_encoding=survey.by("type", "encoding"),
        by_db=_rows(survey.by("db")),
        by_instance=_rows(survey.by("instance")),
        spread=_spread(survey.by("instance")),
        with_expiry=survey.keys - survey.expiry[-1].keys,
        threshold=significant(survey.size),
        prefixes=_prefixes(nodes, survey),
        flame=nodes,
        flame_height=(1 + max((n.depth for n in nodes), default=0)) * ROW,
        row=ROW,
        big_string=BIG_STRING,
        big_other=BIG_OTHER,
        slots=survey.slots,
        slot_view=_slots(survey.slots),
        changes=changes_view(difference) if difference is not None else None,
        data=_data(survey, difference, nodes),
    )


def _asset(name: str) -> str:
    return files("streams.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _rows(groups: list[Group]) -> _Rows:
    return _Rows(groups[:_ROWS], max(0, len(groups) - _ROWS))


def _spread(groups: list[Group]) -> float:
    """How much larger the largest is than the mean."""
    total = sum(g.size for g in groups)
    return groups[0].size * len(groups) / total if total else 0.0


def _prefixes(nodes: list[Node], survey: Survey) -> _Rows:
    largest = sorted((n for n in nodes if n.parent >= 0), key=lambda n: -n.size)[:_ROWS]
    return _Rows(sorted(largest, key=lambda n: n.prefix), len(survey.prefixes) - len(largest))


def _slots(slots: Slots) -> dict[str, Any]:
    used = sum(1 for keys in slots.keys if keys)
    total = sum(slots.sizes)
    step = len(slots.sizes) // _SLOT_BARS
    bars = [sum(slots.sizes[i : i + step]) for i in range(0, len(slots.sizes), step)]
    top = max(bars, default=0) or 1
    heaviest = sorted(range(len(slots.sizes)), key=lambda s: (-slots.sizes[s], s))[:_HEAVIEST]
    return {
        "used": used,
        "count": len(slots.keys),
        "mean": total // used if used else 0,
        "total": total,
        "step": step,
        "bars": [(i, round(60 * bar / top, 2)) for i, bar in enumerate(bars)],
        "heaviest": [(s, slots.keys[s], slots.sizes[s], slots.instances[s]) for s in heaviest if slots.keys[s]],
        "shared": slots.shared,
    }


def _data(survey: Survey, difference: Difference | None, nodes: list[Node]) -> dict[str, Any]:
    """What the page's script reads and exports: keys in Base64, so that programs get every byte."""
    data: dict[str, Any] = {
        "cluster": survey.batch.cluster,
        "batch": survey.batch.rfc3339,
        "keys": survey.keys,
        "size": survey.size,
        "flame": [[n.depth, n.parent, n.keys, n.size, words.short(n.prefix)] for n in nodes],
        "types": [[g.name, g.keys, g.size, g.members] for g in survey.by("type")],
        "encodings": [[g.name, g.keys, g.size, g.members] for g in survey.by("type", "encoding")],
        "dbs": [[g.name, g.keys, g.size, g.members] for g in survey.by("db")],
        "instances": [[g.name, g.keys, g.size, g.members] for g in survey.by("instance")],
        "expiry": [[g.name, g.keys, g.size] for g in survey.expiry],
        "prefixes": [[words.in_base64(p.prefix), words.short(p.prefix), p.keys, p.size] for p in survey.prefixes],
        "top_keys": [
            [
                words.in_base64(k.key), words.short(k.key, k.length), k.length, k.size, k.members, k.type, k.encoding,
                k.instance, k.db, None if k.expire_at_ms is None else str(k.expire_at_ms),
            ]
            for k in survey.top
        ],
    }  # fmt: skip
    if difference is not None:
        data["changes"] = [
            [
                change, words.in_base64(k.key), words.short(k.key, k.length), k.length, k.before, k.after, k.type,
                k.instance, k.db,
            ]
            for change in CHANGES
            for k in difference.top.get(change, ())
        ]  # fmt: skip
    return data
