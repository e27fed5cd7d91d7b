"""Structured logging: one JSON object (or one text line) a log event, on stdout, for the whole process.

Library loggers, warnings and uncaught exceptions of any thread leave through the same door.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import structlog

if TYPE_CHECKING:
    from types import TracebackType

    from structlog.typing import EventDict, Processor, WrappedLogger

Logger = structlog.stdlib.BoundLogger

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def get_logger(name: str) -> Logger:
    """Return a logger; its methods take an event name in snake_case and key-value context."""
    logger: Logger = structlog.stdlib.get_logger(name)
    return logger


def configure_logging(level: str = "INFO", log_format: str = "json") -> None:
    """Send every log line of the process to stdout, from `level` upwards, as `json` or `text`."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 must not swallow a line
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        _OneLineFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(log_format),
            ],
        )
    )
    handler.addFilter(_RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for library in ("kafka", "websocket"):  # they tell each step of each connection at INFO
        logging.getLogger(library).setLevel(_lowest(library) if level == "DEBUG" else "WARNING")
    logging.getLogger("asyncio").setLevel("ERROR")  # what hostile clients do to the endpoints is no news
    logging.raiseExceptions = False  # a closed stdout must not become a stream of tracebacks
    logging.captureWarnings(capture=True)
    _catch_uncaught()


def end_logging() -> None:
    """Write out what is left; with a stdout that nobody reads, Python would try again and exit with 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lowest(library: str) -> str:
    # kafka-python's DEBUG lines are its whole configuration and every byte it sends, the passwords among them.
    return "INFO" if library == "kafka" else "DEBUG"


def _renderers(log_format: str) -> list[Processor]:
    if log_format == "json":
        return [
            structlog.processors.format_exc_info,
            structlog.processors.UnicodeDecoder(),
            _headed,
            structlog.processors.JSONRenderer(serializer=_dump_json),
        ]
    return [structlog.processors.format_exc_info, _one_line, structlog.dev.ConsoleRenderer(colors=False)]


def _dump_json(event: EventDict, **_options: object) -> str:
    """Write JSON that every parser takes and every terminal shows: no NaN, ASCII only."""
    try:
        return json.dumps(event, default=str, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return json.dumps({str(key): _dumpable(value) for key, value in event.items()})


def _dumpable(value: object) -> object:
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return repr(value)
    return value


def _headed(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    head = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**head, **event}


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if "exception" in event:
        event["traceback"] = event.pop("exception").replace("\n", " | ")
    return event


def _catch_uncaught() -> None:
    logger = get_logger("uncaught")

    def in_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logger.critical("uncaught_exception", thread="MainThread", exc_info=(kind, error, trace))

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is SystemExit:  # how a thread may end itself
            return
        name = args.thread.name if args.thread else None
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logger.critical("uncaught_exception", thread=name, exc_info=error)

    def in_finalizer(args: Any) -> None:  # noqa: ANN401 - sys.UnraisableHookArgs exists for type checkers only
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logger.error("unraisable_exception", where=repr(args.object), exc_info=error)

    sys.excepthook = in_main
    threading.excepthook = in_thread
    sys.unraisablehook = in_finalizer


class _OneLineFormatter(structlog.stdlib.ProcessorFormatter):
    """Renders each record as one line; one that cannot be rendered is named, it does not vanish."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            line = super().format(record)
        except Exception as error:  # noqa: BLE001 - whatever a library hands over; logging would swallow it
            told = f"unloggable_line: {_template(record)} ({type(error).__name__})"
            line = super().format(logging.LogRecord(record.name, record.levelno, "", 0, told, (), None))
        return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def _template(record: logging.LogRecord) -> str:
    """Return a record's message before formatting, which need not be a string."""
    message = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
    try:
        return str(message)
    except Exception:  # noqa: BLE001 - any class of any library
        return type(message).__name__


class _RepeatFilter(logging.Filter):
    """Lets each line of a library pass once a minute; the next that passes says how many did not.

    Libraries log every retry of a connection; ours log each occurrence once and count the rest.
    Records of structlog carry a dict and always pass. Handlers call filters outside their lock.
    """

    def __init__(self, interval: float = 60.0) -> None:
        super().__init__()
        self._interval = interval
        self._lock = threading.Lock()  # guards _seen
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, dict) or record.levelno < logging.INFO:
            return True
        now = time.monotonic()
        template = _template(record)
        kind = (record.name, template)
        with self._lock:
            if len(self._seen) > 1000:  # noqa: PLR2004 - a bound for templates built at run time
                self._seen.clear()
            passed_at, held_back = self._seen.get(kind, (-self._interval, 0))
            if now - passed_at < self._interval:
                self._seen[kind] = (passed_at, held_back + 1)
                return False
            self._seen[kind] = (now, 0)
        if held_back:
            record.msg = f"{template} ({held_back} more like it since)"
        return True


class LogContext:
    """Logs the entry of a block, its exit with the duration in seconds, and its failure; lets errors pass.

    >>> with LogContext("create_topics", topics=3):
    ...     create()
    """

    def __init__(self, operation: str, logger: Logger | None = None, **context: object) -> None:
        self._logger = (logger or get_logger("context")).bind(operation=operation, **context)
        self._started = 0.0

    def __enter__(self) -> Self:
        """Log `operation_started`."""
        self._started = time.monotonic()
        self._logger.info("operation_started")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Log `operation_finished`, or `operation_failed` with the traceback."""
        duration = round(time.monotonic() - self._started, 6)
        if error is None:
            self._logger.info("operation_finished", duration_seconds=duration)
        else:
            self._logger.error("operation_failed", duration_seconds=duration, exc_info=error)
