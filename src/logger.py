"""Structured logging: one JSON object (or one text line) a log event, on stdout, for the whole process.

Library loggers, warnings and uncaught exceptions of any thread leave through the same door.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import structlog

if TYPE_CHECKING:
    from types import TracebackType

    from structlog.typing import EventDict, Processor, WrappedLogger

Logger = structlog.stdlib.BoundLogger


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
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
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
        logging.getLogger(library).setLevel("DEBUG" if level == "DEBUG" else "WARNING")
    logging.raiseExceptions = False  # a closed stdout must not become a stream of tracebacks
    logging.captureWarnings(capture=True)
    _catch_uncaught()


def _renderers(log_format: str) -> list[Processor]:
    if log_format == "json":
        return [
            structlog.processors.format_exc_info,
            structlog.processors.UnicodeDecoder(),
            _headed,
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ]
    return [structlog.processors.format_exc_info, _one_line, structlog.dev.ConsoleRenderer(colors=False)]


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
        name = args.thread.name if args.thread else None
        error = args.exc_value or args.exc_type()
        logger.critical("uncaught_exception", thread=name, exc_info=(args.exc_type, error, args.exc_traceback))

    def in_finalizer(args: Any) -> None:  # noqa: ANN401 - sys.UnraisableHookArgs exists for type checkers only
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logger.error("unraisable_exception", where=repr(args.object), exc_info=error)

    sys.excepthook = in_main
    threading.excepthook = in_thread
    sys.unraisablehook = in_finalizer


class _RepeatFilter(logging.Filter):
    """Lets each line of a library pass once a minute; the next that passes says how many did not.

    Libraries log every retry of a connection; ours log each occurrence once and count the rest.
    Records of structlog carry a dict and always pass. Handlers call filters outside their lock.
    """

    def __init__(self, interval: float = 60.0) -> None:
        super().__init__()
        self._interval = interval
        self._lock = threading.Lock()  # guards _seen
        self._seen: dict[tuple[str, object], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, dict) or record.levelno < logging.INFO:
            return True
        now = time.monotonic()
        with self._lock:
            if len(self._seen) > 1000:  # noqa: PLR2004 - a bound for templates built at run time
                self._seen.clear()
            passed_at, held_back = self._seen.get((record.name, record.msg), (-self._interval, 0))
            if now - passed_at < self._interval:
                self._seen[record.name, record.msg] = (passed_at, held_back + 1)
                return False
            self._seen[record.name, record.msg] = (now, 0)
        if held_back:
            record.msg, record.args = f"{record.getMessage()} ({held_back} more like it since)", ()
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
