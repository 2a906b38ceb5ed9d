"""Spans and what records tell of them, with OpenTelemetry's own exporter in memory."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from millstream import tracing
from millstream.errors import ConfigError
from millstream.settings import Settings

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TOLD = f"00-{TRACE}-{SPAN}-01".encode()


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.begin_with(SimpleSpanProcessor(exporter), Settings(), "test")
    yield exporter
    tracing.stop()


def record(*values: bytes) -> Any:
    return SimpleNamespace(headers=[("other", b"x"), *(("traceparent", v) for v in values)])


def test_while_it_is_off_nothing_is_imported_and_nothing_is_told() -> None:
    code = (
        "from millstream import tracing; from millstream.settings import Settings; import sys\n"
        "tracing.start(Settings(), 'worker'); span = tracing.begin('chunk'); tracing.enter(span)\n"
        "with tracing.span('commit'): assert tracing.added([('a', b'1')]) == [('a', b'1')]\n"
        "tracing.end(span); tracing.stop(); assert span is None\n"
        "assert not any(m.startswith('opentelemetry') for m in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_done_for_a_chunk_is_a_child_of_its_span_and_its_records_tell_of_it(
    spans: InMemorySpanExporter,
) -> None:
    chunk = tracing.begin("chunk", tracing.told_by([record(TOLD)]), {"messaging.kafka.offset": 7})
    tracing.enter(chunk)
    with tracing.span("files write_chunk"):
        pass
    tracing.enter(None)
    with tracing.span("commit", tracing.contexts_of([chunk, None])):
        pass
    (key, told), *_ = tracing.added([], chunk)
    tracing.end(chunk)
    tracing.end(chunk, "a second end is none")
    write, commit, ended = spans.get_finished_spans()
    assert write.parent is not None
    assert write.parent.span_id == ended.context.span_id
    assert commit.parent is None
    assert [link.context.span_id for link in commit.links] == [ended.context.span_id]
    assert [f"{link.context.trace_id:032x}" for link in ended.links] == [TRACE]
    assert dict(ended.attributes or {}) == {"messaging.kafka.offset": 7}
    assert ended.status.is_ok or ended.status.is_unset
    assert key == "traceparent"
    assert told.startswith(f"00-{ended.context.trace_id:032x}-{ended.context.span_id:016x}-".encode())


def test_a_chunk_that_did_not_come_to_its_end_says_why(spans: InMemorySpanExporter) -> None:
    tracing.end(tracing.begin("chunk"), "the partition was taken away")
    assert spans.get_finished_spans()[0].status.description == "the partition was taken away"


def test_an_error_inside_is_the_spans_and_goes_on(spans: InMemorySpanExporter) -> None:
    with pytest.raises(OSError, match="full"), tracing.span("files write_chunk"):
        raise OSError("full")
    assert not spans.get_finished_spans()[0].status.is_ok


@pytest.mark.parametrize("value", [b"", b"\xff\x00", b"00-0-0-00", f"00-{'0' * 32}-{SPAN}-01".encode()])
def test_a_header_that_tells_of_no_span_is_passed_over(spans: InMemorySpanExporter, value: bytes) -> None:
    assert tracing.told_by([record(value), record(TOLD), record(TOLD)])[0].trace_id == int(TRACE, 16)
    assert len(tracing.told_by([record(value), record(TOLD), record(TOLD)])) == 1


def test_links_are_bounded_and_a_record_that_tells_of_a_span_is_left_alone(spans: InMemorySpanExporter) -> None:
    many = [record(f"00-{n:032x}-{SPAN}-01".encode()) for n in range(1, 1000)]
    assert len(tracing.told_by(many)) == tracing.MAX_LINKS
    with tracing.span("feed"):
        assert tracing.added([("traceparent", TOLD)]) == [("traceparent", TOLD)]
        assert len(tracing.added([])) == 1
    assert tracing.added([]) == []


def test_without_opentelemetry_the_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"MILLSTREAM_TRACES=console needs OpenTelemetry.*millstream\[otel\]"):
        tracing.start(Settings(traces="console"), "worker")
