"""Grafana's dashboard JSON, as much of it as our dashboards need. Field names are those of @grafana/schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]
COLUMNS = 24
SCHEMA_VERSION = 42
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RED, ORANGE, GREEN, BLUE = "red", "orange", "green", "blue"


@dataclass(frozen=True)
class Query:
    """One PromQL expression, and how its series are named."""

    expr: str
    legend: str = ""
    instant: bool = False
    table: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel. `bad` is the value from which it turns red (or, with `bad_below`, under which)."""

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    bad: float | None = None
    warn: float | None = None
    bad_below: bool = False
    stacked: bool = False
    empty: str = ""
    """What a stat shows instead of nothing."""
    columns: tuple[str, ...] = ()
    """Of a table: the labels that are shown, in this order."""
    decimals: int | None = None


@dataclass(frozen=True)
class Row:
    """A heading with panels below it; folded rows are for looking closer."""

    title: str
    panels: tuple[Panel, ...]
    folded: bool = False


@dataclass(frozen=True)
class Variable:
    """A choice at the top: the values of a label."""

    name: str
    label: str
    metric: str
    of: str
    matching: str = ""


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `uid` is also its file name."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...]
    links: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, ...] = field(default=("millstream",))

    def json(self) -> JSON:
        """The whole dashboard."""
        return {
            "annotations": {"list": []},
            "description": self.description,
            "editable": True,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "links": [_link(title, uid) for title, uid in self.links],
            "panels": list(_placed(self.rows)),
            "preload": False,
            "refresh": "10s",
            "schemaVersion": SCHEMA_VERSION,
            "tags": list(self.tags),
            "templating": {"list": [_datasource(), *map(_variable, self.variables)]},
            "time": {"from": "now-30m", "to": "now"},
            "timepicker": {},
            "timezone": "browser",
            "title": self.title,
            "uid": self.uid,
            "version": 1,
        }


def _link(title: str, uid: str) -> JSON:
    return {
        "asDropdown": False,
        "icon": "external link",
        "includeVars": False,
        "keepTime": True,
        "tags": [],
        "targetBlank": False,
        "title": title,
        "tooltip": "",
        "type": "link",
        "url": f"/d/{uid}",
    }


def _datasource() -> JSON:
    return {
        "current": {"text": "default", "value": "default"},
        "hide": 0,
        "includeAll": False,
        "label": "Prometheus",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
        "type": "datasource",
    }


def _variable(v: Variable) -> JSON:
    query = f"label_values({v.metric}{{{v.matching}}}, {v.of})"
    return {
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "datasource": DATASOURCE,
        "hide": 0,
        "includeAll": True,
        "label": v.label,
        "multi": True,
        "name": v.name,
        "options": [],
        "query": {"query": query, "refId": "variable"},
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }


def _placed(rows: Sequence[Row]) -> Iterator[JSON]:
    """Panels from left to right, from top to bottom, numbered."""
    y, number = 0, 0
    for row in rows:
        number += 1
        heading = {
            "collapsed": row.folded,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "id": number,
            "panels": [],
            "title": row.title,
            "type": "row",
        }
        y, x, line, inside = y + 1, 0, 0, []
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, line = y + line, 0, 0
            number += 1
            at = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            inside.append({"gridPos": at, "id": number, **_panel(panel)})
            x, line = x + panel.width, max(line, panel.height)
        y += line
        yield heading | ({"panels": inside} if row.folded else {})
        if not row.folded:
            yield from inside


def _panel(p: Panel) -> JSON:
    return {
        "datasource": DATASOURCE,
        "description": p.description,
        "fieldConfig": {"defaults": _defaults(p), "overrides": []},
        "options": _options(p),
        "targets": [_target(q, chr(ord("A") + n)) for n, q in enumerate(p.queries)],
        "title": p.title,
        "type": p.kind,
    } | ({"transformations": _columns(p)} if p.kind == "table" else {})


def _target(q: Query, ref: str) -> JSON:
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": q.expr,
        "format": "table" if q.table else "time_series",
        "instant": q.instant,
        "legendFormat": q.legend or "__auto",
        "range": not q.instant,
        "refId": ref,
    }


def _defaults(p: Panel) -> JSON:
    found: JSON = {"mappings": [], "thresholds": _thresholds(p), "unit": p.unit}
    if p.decimals is not None:
        found["decimals"] = p.decimals
    if p.kind == "timeseries":
        found |= {"color": {"mode": "palette-classic"}, "custom": _lines(p), "min": 0}
    else:
        found["color"] = {"mode": "thresholds"}
    if p.empty:
        found["noValue"] = p.empty
    return found


def _thresholds(p: Panel) -> JSON:
    steps: list[JSON]
    if p.bad is None:
        steps = [{"color": GREEN if p.kind == "timeseries" else BLUE, "value": None}]
    elif p.bad_below:
        steps = [{"color": RED, "value": None}, {"color": GREEN, "value": p.bad}]
    else:
        steps = [{"color": GREEN, "value": None}]
        if p.warn is not None:
            steps.append({"color": ORANGE, "value": p.warn})
        steps.append({"color": RED, "value": p.bad})
    return {"mode": "absolute", "steps": steps}


def _lines(p: Panel) -> JSON:
    return {
        "axisPlacement": "auto",
        "drawStyle": "line",
        "fillOpacity": 30 if p.stacked else 10,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if p.stacked else "none"},
        "thresholdsStyle": {"mode": "off" if p.bad is None else "dashed"},
    }


def _options(p: Panel) -> JSON:
    if p.kind == "stat":
        return {
            "colorMode": "value" if p.bad is None else "background",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showPercentChange": False,
            "textMode": "auto",
            "wideLayout": True,
        }
    if p.kind == "table":
        return {"cellHeight": "sm", "frameIndex": 0, "showHeader": True}
    return {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _columns(p: Panel) -> list[JSON]:
    shown = {name: n for n, name in enumerate(p.columns)}
    return [{"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": shown, "renameByName": {}}},
            {"id": "filterFieldsByName", "options": {"include": {"names": list(p.columns)}}}]  # fmt: skip
