"""Where a consumer shows its events."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.text import Text

from src.consumer_events import line_of

if TYPE_CHECKING:
    from src.consumer_events import Event
    from src.consumer_statistics import Statistics

_PLAIN_WIDTH = 120


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # rich would end the process here, with exit code 1 and nothing committed


class Screen:
    """Where events go: lines in the terminal's width and colours, whole plain lines in a pipe, or JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._events = console_on(sys.stdout)
        self._remarks = console_on(sys.stderr)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a symbol may not exist in the terminal's encoding

    def event(self, event: Event) -> None:
        """Print one event."""
        if self._as_json:
            sys.stdout.buffer.write(event.value.replace(b"\n", b" ") + b"\n")
        elif self._events.is_terminal:
            line = Text(line_of(event), style=_style(event))
            self._events.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            sys.stdout.write(f"{line_of(event)}\n")

    def malformed(self, where: str, value: bytes | None) -> None:
        """Print that a record's value is no JSON object."""
        self.remark(f"malformed value at {where}: {(value or b'')[:60]!r}")

    def remark(self, line: str) -> None:
        """Print something about the run itself, apart from the events (stderr)."""
        self._remarks.print(line, markup=False, highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """Hand over what is printed, before it is committed as shown."""
        sys.stdout.flush()

    def end(self, statistics: Statistics) -> None:
        """Print the statistics: after the events, or beside them when those are JSON."""
        statistics.print_to(self._remarks if self._as_json else self._events)
        self.flush()


def _style(event: Event) -> str:
    if event.type not in ("trade", "aggregate_trade"):
        return ""
    return "red" if event.fields.get("m") else "green"


def console_on(stream: Any) -> Console:  # noqa: ANN401 - a text stream
    """Make a console that fits a stream, and raises `BrokenPipeError` when nobody reads it."""
    terminal = stream.isatty()
    return _Console(file=stream, force_terminal=terminal, width=None if terminal else _PLAIN_WIDTH)
