"""The contract of the events: what readers elsewhere rely on, put down in `contract.json`, and what would break it.

`python -m tests.unit.events.contract` (a part of `make proto`) adds to the file what is new, and refuses the rest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

from schemas.events import video_pb2

BASELINE = Path(__file__).with_name("contract.json")
Contract = dict[str, dict[str, str]]
"""Message or enum -> number -> what stands there."""


def contract_of(file: FileDescriptorProto) -> Contract:
    """All fields and enum values of a file, nested ones included."""
    found: Contract = {}

    def message(prefix: str, m: DescriptorProto) -> None:
        name = f"{prefix}.{m.name}"
        found[name] = {str(f.number): _field(m, f) for f in m.field}
        for nested in m.nested_type:
            message(name, nested)
        for enum in m.enum_type:
            found[f"{name}.{enum.name}"] = {str(v.number): v.name for v in enum.value}

    for m in file.message_type:
        message(file.package, m)
    for enum in file.enum_type:
        found[f"{file.package}.{enum.name}"] = {str(v.number): v.name for v in enum.value}
    return found


def breaking(old: Contract, new: Contract) -> list[str]:
    """What readers and writers of `old` would trip over: things removed, renumbered, renamed, retyped."""
    wrong = []
    for name, entries in old.items():
        if name not in new:
            wrong.append(f"{name} was removed")
            continue
        for number, entry in entries.items():
            now = new[name].get(number)
            if now != entry:
                wrong.append(f"{name}, number {number}: was {entry!r}, is {now!r}")
    return wrong


def current() -> Contract:
    """The contract of the generated code."""
    file = FileDescriptorProto()
    video_pb2.DESCRIPTOR.CopyToProto(file)
    return contract_of(file)


def baseline() -> Contract:
    """The contract on record."""
    found: Contract = json.loads(BASELINE.read_text())
    return found


def _field(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    kind = field.type_name.lstrip(".") or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
    if field.proto3_optional:
        label = "explicit"
    elif field.HasField("oneof_index"):
        label = f"oneof {message.oneof_decl[field.oneof_index].name}"
    return f"{label} {kind} {field.name}"


if __name__ == "__main__":
    if BASELINE.exists() and (problems := breaking(baseline(), current())):
        sys.exit("The change breaks readers or writers; make a new package (v2) instead:\n" + "\n".join(problems))
    BASELINE.write_text(json.dumps(current(), indent=1) + "\n")
