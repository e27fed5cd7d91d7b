"""The terminal view: draws what is known of a service for a terminal of any size."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from src.terminal_history import GAPS, LEVELS, LOSSES, RATES, missing
from src.terminal_parts import (
    ASCII_BARS,
    BARS,
    clean,
    duration,
    grid,
    kind_table,
    lag_table,
    lags,
    size,
    sparkline,
    symbol_table,
)

if TYPE_CHECKING:
    from src.terminal_history import History

_WIDE = 100
_SIDE_BY_SIDE = 72
_TALL = 24
_FRAME = 2  # lines or columns that a panel adds
_HEAD = 1  # line of a table's column names
_SILENT_SECONDS = 5.0  # without an acknowledgement; `/ready` answers 503 from then on


class Screen:
    """Draws a history for a terminal of a given size: what matters most first, the rest where there is room."""

    def __init__(self, history: History, url: str, at: float, *, ascii_only: bool = False) -> None:
        self._history = history
        self._status = history.status
        self._url = url
        self._at = at
        self._ascii_only = ascii_only
        self._bars = ASCII_BARS if ascii_only else BARS

    def draw(self, width: int, height: int) -> RenderableType:
        """Return everything that the terminal has room for."""
        head = self._head()
        if not self._status:
            return head
        if width >= _WIDE:
            return self._panels(head, width, height)
        return self._stacked(head, width, height)

    def line(self) -> str:
        """Return one line without any control sequence."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        if self._history.fault or not self._status:
            return f"{now} unreachable {self._url}: {self._history.fault}; trying again"
        rates = [f"{name}={self._status[key]} ({self._rate(name)})" for name, key in RATES.items()]
        counts = [f"{name.replace(' ', '_')}={self._status[key]}" for name, key in (LEVELS | LOSSES).items()]
        counts += [f"{name.replace(' ', '_')}={self._status.get(key, 0)}" for name, key in GAPS.items()]
        rest = f"reconnects={self._status.get('reconnect_count', 0)} last_message={self._age().replace(' ', '')}"
        ready = "ready" if self._status.get("ready") else f"NOT READY ({'; '.join(self._reasons())})"
        line = [now, ready, *rates, *counts, rest, "UNBALANCED" if missing(self._status) else "balanced"]
        return " ".join(line)

    # Layouts

    def _panels(self, head: RenderableType, width: int, height: int) -> RenderableType:
        """Two columns of panels; the tables that can be long share what is left of the height."""
        left: list[tuple[str, RenderableType]] = [
            (f"last {self._history.window:.0f} s", self._rates(width // 2 - 8)),
            ("losses", self._losses()),
            ("lag", lag_table(self._history)),
        ]
        room = height - _lines(head, width) - 1
        used = sum(_lines(table, width // 2 - _FRAME) + _FRAME for _, table in left)
        kinds = min(len(self._status.get("kinds", [])), room - used - _FRAME - _HEAD)
        if kinds > 0:
            left.append(("types", kind_table(self._history, kinds)))
        right: list[tuple[str, RenderableType]] = [("connections", self._connections())]
        symbols = room - sum(_lines(table, width // 2) + _FRAME for _, table in right) - _FRAME - _HEAD
        right.append(("symbols", self._symbols(max(1, symbols))))
        both = Table.grid(expand=True)
        both.add_column(ratio=1)
        both.add_column(ratio=1)
        both.add_row(*(Group(*(Panel(table, title=title) for title, table in column)) for column in (left, right)))
        return Group(head, both)

    def _stacked(self, head: RenderableType, width: int, height: int) -> RenderableType:
        sections = [head, self._rates(width), self._losses(), self._connections(brief=height < _TALL, lag=True)]
        left = height - 1 - sum(_lines(section, width) for section in sections)
        details = self._details(width, left)
        if details is not None:
            sections.append(details)
            left -= _lines(details, width)
        if left >= len(sections):
            sections = [part for section in sections for part in (section, Text(""))][:-1]
        return Group(*sections)

    def _details(self, width: int, left: int) -> RenderableType | None:
        """Return symbols, and beside or below them types, in so many lines; None where not even one has room."""
        rows = left - _HEAD
        if rows < 1:
            return None
        if width >= _SIDE_BY_SIDE:
            both = Table.grid(expand=True, padding=(0, 2, 0, 0))
            both.add_column(ratio=1)
            both.add_column(ratio=1)
            both.add_row(self._symbols(rows), kind_table(self._history, rows))
            return both
        return self._symbols(rows)

    def _symbols(self, rows: int) -> Table:
        return symbol_table(self._history, self._now(), rows, ascii_only=self._ascii_only)

    # Sections

    def _head(self) -> RenderableType:
        service = f"{self._url}  binance-ingestion {clean(self._status.get('version', ''))}"
        lines = [Text(service, style="bold", no_wrap=True, overflow="crop"), self._state()]
        if self._status:
            lines.append(self._peers())
        if self._history.restarts:
            lines.append(Text(f"restarts seen: {self._history.restarts}", style="yellow"))
        return Group(*lines)

    def _state(self) -> Text:
        history = self._history
        if history.away_since is not None:
            seconds = self._at - history.away_since
            text = f"NOT REACHABLE for {seconds:.0f} s: {clean(history.fault)}; trying again"
            return Text(text, style="bold red")
        if not self._status:
            return Text("connecting", style="dim")
        if self._status.get("ready"):
            return Text(f"READY{self._uptime()}", style="bold green")
        return Text(f"NOT READY: {'; '.join(self._reasons())}", style="bold red")

    def _uptime(self) -> str:
        if not self._status.get("started_at"):
            return ""
        started = datetime.fromisoformat(self._status["started_at"])
        return f"  up {timedelta(seconds=int((self._now() - started).total_seconds()))}"

    def _now(self) -> datetime:
        """Return the time of the reading by the service's own clock."""
        read = self._status.get("time")
        return datetime.fromisoformat(read) if read else datetime.now(UTC)

    def _peers(self) -> Text:
        if self._history.fault:
            return Text("what follows is the last reading", style="dim")
        text = Text()
        for name, key in {"exchange": "connected", "Kafka": "kafka_connected"}.items():
            up = bool(self._status.get(key))
            silent = self._status.get("kafka_stalled_seconds", 0) if name == "Kafka" else 0
            if up and silent > _SILENT_SECONDS:
                text.append(f"{name} SILENT {duration(silent)}  ", style="bold red")
                continue
            text.append(f"{name} {'up' if up else 'DOWN'}  ", style="green" if up else "bold red")
        if self._status.get("spooling"):
            text.append("by disk", style="bold yellow")
        return text

    def _rates(self, width: int) -> Table:
        table = grid()
        room = max(8, width - 23)
        for name in RATES:
            table.add_row(name, self._rate(name), Text(self._sparkline(name, room), style="cyan"))
        for name, key in LEVELS.items():
            trend = self._history.trend(name)
            line = Text(self._sparkline(name, room - 5), style="magenta")
            line.append(f" {trend}", style="yellow" if trend == "up" else "dim")
            table.add_row(name, self._total(key), line)
        return table

    def _losses(self) -> Table:
        table = grid()
        lost = {name: key for name, key in LOSSES.items() if self._status[key]}
        for name, key in lost.items():
            reasons = self._status.get(f"{key}_by_reason") or {}
            text = clean(", ".join(f"{reason} {count:,}" for reason, count in reasons.items()))
            table.add_row(name, Text(self._total(key), style="bold red"), Text(text))
        if not lost:
            table.add_row("lost", Text("0", style="green"), "nothing skipped, dropped or failed")
        gone = missing(self._status)
        verdict = Text(f"{gone:,}", style="bold red") if gone else Text("0", style="green")
        table.add_row("missing", verdict, "EQUATION BROKEN" if gone else "equation holds")
        table.add_row("gaps", *self._gaps())
        return table

    def _gaps(self) -> tuple[Text, Text]:
        """Return how many gaps are open, how many events wait behind them, and what became of the others."""
        left = bool(self._status.get("gaps_open"))
        told = Text("open")
        for name, key, style in (
            ("unfillable", "gaps_unfillable", "bold red"),
            ("wait", "messages_held", ""),
            ("filled", "gaps_filled", ""),
            ("of depth", "depth_gaps", ""),
        ):
            if self._status.get(key):
                told.append(", ").append(f"{self._total(key)} {name}", style)
        return Text(self._total("gaps_open"), style="yellow" if left else "green"), told

    def _connections(self, *, brief: bool = False, lag: bool = False) -> Table:
        table = grid()
        tried = f"{self._total('connection_attempts')} tried, {self._total('connection_failures')} failed"
        table.add_row("reconnects", self._total("reconnect_count"), tried)
        age = self._age()
        ago = "" if age in {"-", "never"} else "ago, "
        table.add_row("last event", age, f"{ago}{self._total('streams')} streams")
        if lag and (legs := lags(self._history)):
            median, most = legs.pop("in all", ("-", "-"))
            parts = ", ".join(f"{leg.removeprefix('to ')} {shown}" for leg, (shown, _) in legs.items())
            table.add_row("lag", median, f"median, 99 % {most}; {parts}")
        spooled, limit = self._status.get("spool_bytes", 0), self._status.get("spool_bytes_limit", 0)
        if spooled or not brief:
            table.add_row("spool", size(spooled), f"of {size(limit)}")
        if not brief:
            table.add_row("in all", self._total("messages_received"), "received")
            table.add_row("", self._total("kafka_produced"), f"produced, {size(self._status['bytes_sent'])}")
            if self._status.get("messages_backfilled") or self._status.get("messages_duplicate"):
                duplicates = f"backfilled, {self._total('messages_duplicate')} duplicates"
                table.add_row("", self._total("messages_backfilled"), duplicates)
        return table

    # Values

    def _rate(self, name: str) -> str:
        rate = self._history.latest(name)
        if rate is None:
            return "-"
        return f"{size(rate)}/s" if name == "bytes" else f"{rate:,.0f}/s"

    def _total(self, key: str) -> str:
        return f"{self._status.get(key, 0):,}"

    def _age(self) -> str:
        if self._history.fault:
            return "-"
        if not self._status.get("last_message_time"):
            return "never"
        last = datetime.fromisoformat(self._status["last_message_time"])
        return duration(max(0.0, (self._now() - last).total_seconds()))

    def _reasons(self) -> list[str]:
        return [clean(reason) for reason in self._status.get("unready_reasons", [])]

    def _sparkline(self, name: str, width: int) -> str:
        return sparkline(self._history.buckets(name, max(1, width), self._at), self._bars)


def _lines(part: RenderableType, width: int) -> int:
    """Return how many lines a part takes at this width."""
    console = Console(file=io.StringIO(), width=max(1, width), height=1000)
    return len(console.render_lines(part, console.options, pad=False))
