"""What readers elsewhere rely on stays: fields are added, never removed, renumbered or retyped (RO-30)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from schemas.events import video_pb2
from tests.unit.events.contract import baseline, breaking, contract_of, current

ROOT = Path(__file__).parents[3]


def test_the_contract_on_record_holds_and_is_complete() -> None:  # RO-30
    assert breaking(baseline(), current()) == []
    assert current() == baseline(), "something was added: `make proto` puts it on record"


def test_the_generated_code_is_that_of_the_proto_file(tmp_path: Path) -> None:  # RO-31
    out = tmp_path / "set.bin"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={out}"]
    subprocess.run([*command, "schemas/events/video.proto"], cwd=ROOT, check=True, timeout=60)
    file = FileDescriptorProto()
    video_pb2.DESCRIPTOR.CopyToProto(file)
    parsed = FileDescriptorSet.FromString(out.read_bytes()).file[0]
    parsed.ClearField("source_code_info")
    for message in parsed.message_type:
        for field in message.field:
            field.ClearField("json_name")
    assert contract_of(parsed) == contract_of(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("field { name: 'title' number: 5 type: TYPE_BYTES }", "number 5"),
        ("field { name: 'name' number: 5 type: TYPE_STRING }", "number 5"),
        ("field { name: 'title' number: 6 type: TYPE_STRING }", "number 5"),
        ("field { name: 'title' number: 5 type: TYPE_STRING label: LABEL_REPEATED }", "number 5"),
        ("", "number 5"),
    ],
)
def test_a_field_that_is_retyped_renamed_renumbered_or_removed_is_refused(change: str, told: str) -> None:
    from google.protobuf import text_format

    def parse(field: str) -> FileDescriptorProto:
        return text_format.Parse(f"package: 'x' message_type {{ name: 'M' {field} }}", FileDescriptorProto())

    old = contract_of(parse("field { name: 'title' number: 5 type: TYPE_STRING }"))
    assert breaking(old, old) == []
    assert any(told in problem for problem in breaking(old, contract_of(parse(change))))
    added = "field { name: 'title' number: 5 type: TYPE_STRING } field { name: 'more' number: 9 type: TYPE_INT64 }"
    assert breaking(old, contract_of(parse(added))) == []
    assert breaking(old, {}) == ["x.M was removed"]
