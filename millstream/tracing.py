"""Traces with OpenTelemetry, off by default (MILLSTREAM_TRACES): then nothing of it is imported or done.

The span of a chunk begins when its plan is on record and ends with its commit; sink calls are its children. It is
linked to the spans that its records tell of (`traceparent`, W3C Trace Context), and its own output records tell of it.
A commit is linked to the chunks that it commits. Where spans go is told by OpenTelemetry's own variables
(OTEL_EXPORTER_OTLP_…).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from millstream.errors import ConfigError
from millstream.settings import Settings

Attributes = Mapping[str, str | int]
MAX_LINKS = 32
"""Of one span. A chunk may hold 50,000 records."""
_HEADER = "traceparent"


@dataclass(slots=True)
class _State:
    provider: Any = None
    tracer: Any = None


_on = _State()


def start(settings: Settings, service: str) -> None:
    """Begin, if the settings ask for it. Raises ConfigError if OpenTelemetry is not installed."""
    if settings.traces == "off" or _on.tracer is not None:
        return
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

        exporter: SpanExporter
        if settings.traces == "otlp":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        else:
            exporter = ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n")
    except ImportError as exc:
        raise ConfigError(
            f"MILLSTREAM_TRACES={settings.traces} needs OpenTelemetry ({exc}): pip install 'millstream[otel]'"
        ) from exc
    begin_with(BatchSpanProcessor(exporter), settings, service)


def begin_with(processor: Any, settings: Settings, service: str) -> None:
    """Begin with a span processor of your own."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    about = {"service.name": f"{settings.group_id}.{service}", "service.instance.id": settings.worker_slot}
    _on.provider = TracerProvider(resource=Resource.create(about))
    _on.provider.add_span_processor(processor)
    _on.tracer = _on.provider.get_tracer("millstream", version("millstream"))


def stop() -> None:
    """Send what is left, blocking, and end."""
    if _on.provider is not None:
        _on.provider.shutdown()
    _on.provider = _on.tracer = None


@contextmanager
def on(settings: Settings, service: str) -> Iterator[None]:
    """As long as a command runs. Raises ConfigError as `start` does."""
    start(settings, service)
    try:
        yield
    finally:
        stop()


def begin(name: str, links: Iterable[Any] = (), attributes: Attributes | None = None) -> Any:
    """A span that `end` ends; None while off."""
    if _on.tracer is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import Link

    return _on.tracer.start_span(name, context=Context(), links=[Link(c) for c in links], attributes=attributes)


def end(span: Any, error: str = "") -> None:
    """End a span of `begin`, once. `error`: why what it stands for did not come to its end."""
    if span is None or not span.is_recording():
        return
    if error:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR, error))
    span.end()


def enter(span: Any) -> None:
    """From here on, spans of this task and of those that it starts are children of this one (None: of none)."""
    if _on.tracer is None:
        return
    from opentelemetry import context, trace

    context.attach(context.Context() if span is None else trace.set_span_in_context(span, context.Context()))


@contextmanager
def span(name: str, links: Iterable[Any] = (), attributes: Attributes | None = None) -> Iterator[None]:
    """What is done inside, a child of the span that the task is in. An exception is its error."""
    if _on.tracer is None:
        yield
        return
    from opentelemetry.trace import Link

    with _on.tracer.start_as_current_span(name, links=[Link(c) for c in links], attributes=attributes):
        yield


def contexts_of(spans: Iterable[Any]) -> list[Any]:
    """What another span is linked with, MAX_LINKS at most."""
    return [s.get_span_context() for s in spans if s is not None][:MAX_LINKS]


def told_by(records: Iterable[Any]) -> list[Any]:
    """The span contexts that records tell of in their headers, each once, the first MAX_LINKS."""
    if _on.tracer is None:
        return []
    found: dict[bytes, Any] = {}
    for record in records:
        for key, value in record.headers:
            if key == _HEADER and value and value not in found:
                found[value] = _parsed(value)
        if len(found) >= MAX_LINKS:
            break
    return [c for c in found.values() if c is not None]


def added(to: list[tuple[str, bytes]], span: Any = None) -> list[tuple[str, bytes]]:
    """A record's headers. They tell of the span, the current one if none is given, unless they tell of one already."""
    if _on.tracer is None or any(key == _HEADER for key, _ in to):
        return to
    from opentelemetry import trace

    told = (trace.get_current_span() if span is None else span).get_span_context()
    if not told.is_valid:
        return to
    return [*to, (_HEADER, f"00-{told.trace_id:032x}-{told.span_id:016x}-{told.trace_flags:02x}".encode())]


def _parsed(value: bytes) -> Any:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    read = TraceContextTextMapPropagator().extract({_HEADER: value.decode("ascii", "replace")})
    found = trace.get_current_span(read).get_span_context()
    return found if found.is_valid else None
