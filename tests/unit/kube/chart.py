"""The chart's files, and the part of values.schema.json that is made from the settings class.

`python -m tests.unit.docs.settings_table` writes that part anew; `python -m tests.unit.kube.chart` does nothing else.
"""

from __future__ import annotations

import hashlib
import json
import typing
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import annotated_types
import yaml
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from millstream.operator.spec import RESERVED
from millstream.settings import Settings

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
CHART = DEPLOY / "helm" / "millstream"
MANIFESTS = DEPLOY / "manifests"
SCHEMA = CHART / "values.schema.json"
CI = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
RENDERED = ("archive", "changefeeds")
"""Values files whose manifests are committed."""


def load(path: Path) -> Any:
    """A YAML document."""
    return yaml.safe_load(path.read_text("utf-8"))


def defaults() -> dict[str, Any]:
    """values.yaml."""
    return dict(load(CHART / "values.yaml"))


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `values`, as Helm does it: mappings are merged, all else is replaced."""
    result = dict(values)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def documents(path: Path) -> list[dict[str, Any]]:
    """All documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def manifests(name: str) -> list[dict[str, Any]]:
    """The objects of a committed manifest."""
    return documents(MANIFESTS / f"{name}.yaml")


def digest(name: str) -> str:
    """Of all that a manifest is rendered from. The schema and the alert rules do not go into manifests."""
    files = [CHART / "Chart.yaml", CHART / "values.yaml", CI[name], *sorted((CHART / "templates").rglob("*.*"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def secrets() -> list[str]:
    """Settings that hold passwords."""
    return [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]


def generated() -> dict[str, Any]:
    """The definitions `settings` and `secrets` of values.schema.json."""
    given = {
        name: _property(field)
        for name, field in Settings.model_fields.items()
        if name not in RESERVED and name not in secrets()
    }
    return {
        "settings": {
            "type": "object",
            "additionalProperties": False,
            "required": ["bootstrap_servers"],
            "properties": given,
        },
        "secrets": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"existingSecret": {"type": "string"}}
            | {name: {"type": "string", "description": Settings.model_fields[name].description} for name in secrets()},
        },
    }


def _property(field: FieldInfo) -> dict[str, Any]:
    union = typing.get_origin(field.annotation) in (typing.Union, UnionType)
    kinds = typing.get_args(field.annotation) if union else (field.annotation,)
    (kind,) = (kind for kind in kinds if kind is not type(None))
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    allowed = _allowed(kind, field)
    if len(kinds) > 1 and kind is not str:
        allowed = {"anyOf": [allowed, {"const": "none"}]}
    return {"description": field.description, **allowed}


def _allowed(kind: Any, field: FieldInfo) -> dict[str, Any]:
    if typing.get_origin(kind) is Literal:
        return {"enum": list(typing.get_args(kind))}
    if typing.get_origin(kind) is list:
        return {"type": ["array", "string"], "items": {"type": "string"}}
    if typing.get_origin(kind) is dict:
        return {"type": ["object", "string"], "additionalProperties": {"type": "string"}}
    if kind is bool:
        return {"type": "boolean"}
    if kind is int:
        return {"type": "integer", **_bounds(field)}
    if kind is float:
        return {"type": "number", "minimum": 0}
    if kind is ByteSize:
        return {"type": ["integer", "string"]}
    assert kind in (str, Path), f"say in {__file__} how a value of {kind} is written"
    return {"type": "string"}


def _bounds(field: FieldInfo) -> dict[str, Any]:
    least = next((m.ge for m in field.metadata if isinstance(m, annotated_types.Ge)), None)
    most = next((m.le for m in field.metadata if isinstance(m, annotated_types.Le)), None)
    return {k: v for k, v in (("minimum", least), ("maximum", most)) if v is not None}


def write() -> None:
    """values.schema.json with these definitions in it."""
    schema = json.loads(SCHEMA.read_text("utf-8"))
    schema["$defs"] = schema["$defs"] | generated()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    write()
