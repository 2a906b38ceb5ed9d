"""The tables of docs/configuration.md, made from the settings class.

`python -m tests.unit.docs.settings_table` writes them anew between the marks, and the settings that the Helm chart
takes into its values.schema.json.
"""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import annotated_types
from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo

from millstream.settings import MIB, PREFIX, Settings
from tests.unit.kube import chart

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def groups() -> dict[str, list[str]]:
    """Heading of settings.py -> names of the fields below it, in the order of the class."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in inspect.getsource(Settings).splitlines():
        if heading := re.fullmatch(r"    # --- ([^.]*?)(\. .*)?", line):
            names = found.setdefault(heading[1], [])
        elif (field := re.match(r"    (\w+): ", line)) and field[1] in Settings.model_fields:
            names.append(field[1])
    return found


def table() -> str:
    """All settings, one table per group."""
    parts = []
    for heading, names in groups().items():
        rows = [_row(name, Settings.model_fields[name]) for name in names]
        parts += [
            f"### {heading}\n",
            "| variable | default | allowed | meaning |",
            "|---|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    return "\n".join(parts)


def _row(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    meaning = (field.description or "").replace("|", "\\|")
    return f"`{PREFIX}{name.upper()}`", _default(name, field), _allowed(field), meaning


def _types(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _default(name: str, field: FieldInfo) -> str:
    if name == "worker_slot":
        return "the host name"
    value = field.default
    if value is None:
        return "unset"
    if isinstance(value, ByteSize):
        return f"`{int(value) // MIB}MiB`" if int(value) % MIB == 0 else f"`{int(value)}`"
    if isinstance(value, list):
        value = ",".join(value)
    if isinstance(value, dict):
        value = ",".join(f"{key}={given}" for key, given in value.items())
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float):
        return f"{value:g} s"
    return f"`{value}`" if str(value) else "empty"


def _allowed(field: FieldInfo) -> str:
    (kind,) = (t for t in _types(field.annotation) if t is not type(None))
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{v}`" for v in typing.get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    if kind is float:
        return "seconds, above 0"
    if kind in (int, ByteSize):
        least = next((m.ge for m in field.metadata if isinstance(m, annotated_types.Ge)), None)
        most = next((m.le for m in field.metadata if isinstance(m, annotated_types.Le)), None)
        if kind is ByteSize:
            upper = f" to {int(most) // MIB} MiB" if most is not None else " or more"  # type: ignore[call-overload]
            return f"bytes, {least}{upper}"
        return f"{least} to {most}" if most is not None else f"{least} or more"
    return {Path: "a path", SecretStr: "text (secret)"}.get(kind, "text")


def written() -> str:
    """What stands between the marks now."""
    return DOCUMENT.read_text("utf-8").partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    text = DOCUMENT.read_text("utf-8")
    head, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n{table()}\n{END}{rest.partition(END)[2]}", "utf-8")
    chart.write()
