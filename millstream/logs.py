"""Logging for the whole process: structlog, and through it every stdlib logger (faust, aiokafka, confluent).

A line begins with its `operation` and ends with its `description` (RU-56):

    log = get_logger(__name__)
    log.info("parquet_writer_open", description="writing parts", path=str(path), instance=run.instance)

Retry warnings are named `*_retry` (RU-58). An exception given as `exc_info=` adds the field `error_chain` (RU-59); the
traceback itself is shown from level error on. Secrets are taken out of the finished line (T42).
"""

from __future__ import annotations

import logging
import logging.config
import sys
import threading
import traceback
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.stdlib import BoundLogger
from structlog.typing import Processor

from millstream.secrets import scrub
from millstream.settings import Settings

_QUIET = {"faust": "WARNING", "mode": "WARNING", "aiokafka": "WARNING", "asyncio": "WARNING", "chdb": "WARNING"}
"""Libraries that tell at INFO what is of use to their own developers only; at log level debug they speak up."""

_LEVEL_COLOUR = {
    "debug": "\x1b[2m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
}
_DIM, _BOLD, _CYAN, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[36m", "\x1b[0m"


def get_logger(name: str | None = None) -> BoundLogger:
    """A logger whose first argument is the operation."""
    logger: BoundLogger = structlog.stdlib.get_logger(name or "millstream")
    return logger


def error_chain(error: BaseException) -> list[str]:
    """`Type: text` of the error and of what caused it, outermost first, without secrets."""
    chain: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        text = scrub(str(link))
        chain.append(f"{type(link).__name__}: {text}" if text else type(link).__name__)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain


def _add_error_chain(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`exc_info` becomes `error_chain`, and `exception` (the traceback) where the level calls for it."""
    info = event.pop("exc_info", None)
    error = info if isinstance(info, BaseException) else (info or (None, None))[1] if isinstance(info, tuple) else None
    if info is True:
        error = sys.exc_info()[1]
    if error is not None:
        event.setdefault("error_chain", error_chain(error))
        if event.get("level") in ("error", "critical"):
            event["exception"] = "".join(traceback.format_exception(error)).rstrip()
    return event


def _foreign_operation(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A line of another library: its logger's name is the operation, its text the description."""
    record: logging.LogRecord = event["_record"]
    event["description"] = event["event"]
    event["event"] = record.name
    return event


def _in_order(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`operation` first, `description` last; a traceback stands before it as a field of its own."""
    rest = {k: v for k, v in event.items() if k not in ("event", "description")}
    ordered = {"operation": event["event"], **rest}
    if "description" in event:
        ordered["description"] = event["description"]
    return ordered


class _Console:
    """`08:30:00.123 info operation=… key=value … the description`, then the traceback if there is one."""

    def __init__(self, colours: bool) -> None:
        self._colours = colours

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colours else text

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
        level = str(event.pop("level", "info"))
        time = str(event.pop("timestamp", ""))[11:23]
        trace = event.pop("exception", None)
        description = event.pop("description", None)
        words = [self._paint(_DIM, time), self._paint(_LEVEL_COLOUR.get(level, ""), f"{level:<7}")]
        for key, value in event.items():
            name = self._paint(_BOLD if key == "operation" else _CYAN, key)
            words.append(f"{name}={_plain(value)}")
        if description is not None:
            words.append(str(description))
        return " ".join(words) + (f"\n{trace}" if trace else "")


def _plain(value: Any) -> str:
    """A value on one line, in quotes only where it could not be told from its neighbours."""
    text = value if isinstance(value, str) else repr(value)
    alone = bool(text) and text.isprintable() and not set(text) & set(' "=')
    return text if alone or not isinstance(value, str) else repr(text)


class _Scrubbing(structlog.stdlib.ProcessorFormatter):
    """The last step before a line leaves the process."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is now: test runners and progress bars exchange it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _value: TextIO) -> None:
        raise AttributeError("the stream is sys.stderr, always")


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _formatter(settings: Settings) -> logging.Formatter:
    json = settings.log_format == "json"
    return _Scrubbing(
        foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder(), _foreign_operation],
        processors=[
            _add_error_chain,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _in_order,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
            if json
            else _Console(colours=sys.stderr.isatty()),
        ],
    )


def logging_config(settings: Settings) -> dict[str, Any]:
    """The stdlib set-up as a `dictConfig`: `configure` applies it, and Faust's worker takes it as `logging_config=`."""
    level = settings.log_level.upper()
    speak_up = settings.log_level == "debug"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"structlog": {"()": _formatter, "settings": settings}},
        "handlers": {"stderr": {"()": _Stderr, "formatter": "structlog"}},
        "loggers": {
            name: {"level": "NOTSET" if speak_up else max(level, least, key=_number)} for name, least in _QUIET.items()
        },
        "root": {"level": level, "handlers": ["stderr"]},
    }


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]


def configure(settings: Settings) -> None:
    """Set up structlog, the stdlib loggers and the hooks for uncaught exceptions. May be called again."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    logging.config.dictConfig(logging_config(settings))
    sys.excepthook = _excepthook
    threading.excepthook = _thread_excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(scrub("".join(traceback.format_exception(kind, error, trace))))


def _thread_excepthook(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        fields: Mapping[str, Any] = {"thread": args.thread.name if args.thread else "?"}
        get_logger().error(
            "thread_failed", description="a thread ended with an error", exc_info=args.exc_value, **fields
        )
