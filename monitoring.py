"""Show a running service live in the terminal: state, rates, backlog, losses.

Exit codes: 0 stopped on request, or ready with --once and --json; 1 with these two when the service is not
ready or not reachable; 2 the configuration or the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from config.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WINDOW_SECONDS = 180
_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 1_000_000
_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_WIDE = 100
_TALL_ENOUGH = 24
_RECENT, _BEFORE = 5, 25  # readings that a trend compares
_NOISE = 100  # events: a buffer that fills and empties by the batch is no trend
_RATES = {"received": "messages_received", "produced": "kafka_produced", "bytes": "bytes_sent"}
_LEVELS = {"buffered": "messages_buffered", "in flight": "messages_in_flight", "on disk": "messages_spooled"}
_LOSSES = {"skipped": "messages_skipped", "dropped": "messages_dropped", "failed": "kafka_failed"}
_ESSENTIAL = (*_RATES.values(), *_LEVELS.values(), *_LOSSES.values())
_CAME = ("messages_received", "messages_recovered", "messages_backfilled")
_ACCOUNTED = (
    *_LOSSES.values(),
    *_LEVELS.values(),
    "kafka_produced",
    "messages_dead_lettered",
    "messages_duplicate",
)


class UnreachableError(Exception):
    """The service did not answer, or what answered is not the service."""


class Sample(NamedTuple):
    """A value that held, or a rate that was the mean, between two moments of the monotonic clock."""

    start: float
    end: float
    value: float


class History:
    """The last readings of one service: their rates and levels over the window, restarts, absence."""

    def __init__(self, window: float = WINDOW_SECONDS) -> None:
        self._window = window
        self.status: dict[str, Any] = {}
        self.fault: str | None = None
        self.away_since: float | None = None
        self.restarts = 0
        self._read_at: float | None = None
        self._samples: dict[str, deque[Sample]] = {name: deque() for name in (*_RATES, *_LEVELS)}

    def read(self, status: dict[str, Any], at: float) -> None:
        """Add a reading; a counter that went back means a service that started anew, so no rate."""
        before, before_at = self.status, self._read_at
        restarted = bool(before) and (
            status.get("started_at") != before.get("started_at")
            or any(status[key] < before[key] for key in _RATES.values())
        )
        self.restarts += restarted
        if before_at is not None and before_at < at and not restarted and self.fault is None:
            for name, key in _RATES.items():
                rate = (status[key] - before[key]) / (at - before_at)
                self._samples[name].append(Sample(before_at, at, rate))
            for name, key in _LEVELS.items():
                self._samples[name].append(Sample(before_at, at, status[key]))
        self.status, self._read_at = status, at
        self.fault = self.away_since = None
        for samples in self._samples.values():
            while samples and samples[0].end < at - self._window:
                samples.popleft()

    def missed(self, fault: str, at: float) -> None:
        """Note a reading that failed; what was read before stays."""
        self.fault = fault
        self.away_since = at if self.away_since is None else self.away_since

    def latest(self, name: str) -> float | None:
        """Return the last rate, or None when there is none of this moment."""
        samples = self._samples[name]
        current = samples and samples[-1].end == self._read_at and self.fault is None
        return samples[-1].value if current else None

    def buckets(self, name: str, count: int, at: float) -> list[float | None]:
        """Return means over `count` equal parts of the window, oldest first; None where nothing was read.

        The parts lie on multiples of their length, so that a line moves instead of trembling.
        """
        length = self._window / count
        first = int(at // length) - count + 1
        found: list[list[float]] = [[] for _ in range(count)]
        for start, end, value in self._samples[name]:
            for index in range(int(start // length), int(end // length) + 1):
                if 0 <= index - first < count:
                    found[index - first].append(value)
        return [sum(values) / len(values) if values else None for values in found]

    def trend(self, name: str) -> str:
        """Compare the last readings with those before them: up, down, flat, or nothing with too few."""
        values = [sample.value for sample in self._samples[name]][-_BEFORE - _RECENT :]
        recent, earlier = values[-_RECENT:], values[:-_RECENT]
        if not earlier:
            return ""
        now, then = sum(recent) / len(recent), sum(earlier) / len(earlier)
        margin = 0.2 * then + _NOISE
        return "up" if now > then + margin else "down" if now < then - margin else "flat"


def fetch(url: str, timeout: float = _TIMEOUT_SECONDS) -> dict[str, Any]:
    """Read `/status` of the service at `url`; raises `UnreachableError`."""
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"{url}/status", timeout=timeout) as response:
            status = json.loads(response.read(_MOST_BYTES))
    except HTTPError as error:
        error.close()
        raise UnreachableError(f"answered with status {error.code}") from error
    except (OSError, ValueError, HTTPException) as error:
        raise UnreachableError(_why(error)) from error
    if not isinstance(status, dict) or not all(isinstance(status.get(key), int) for key in _ESSENTIAL):
        raise UnreachableError("something answered that is not the service")
    return status


def _why(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, (ValueError, HTTPException)) and not isinstance(cause, OSError):
        return "something answered that is not the service"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return str(text)[:1].lower() + str(text)[1:]


class Screen:
    """Draws a history for a terminal of a given size; narrow ones get one column, low ones no blank lines."""

    def __init__(self, history: History, url: str, at: float, *, ascii_only: bool = False) -> None:
        self._history = history
        self._status = history.status
        self._url = url
        self._at = at
        self._bars = "_.-=+*%#" if ascii_only else "▁▂▃▄▅▆▇█"

    def draw(self, width: int, height: int) -> RenderableType:
        """Return everything; what matters most stands first, for a terminal that cuts the end off."""
        head = self._head()
        if not self._status:
            return head
        if width >= _WIDE:
            left = Group(
                Panel(self._rates(width // 2 - 8), title="last 3 minutes"), Panel(self._totals(), title="totals")
            )
            right = Group(Panel(self._losses(), title="losses"), Panel(self._connection(), title="connection"))
            columns = Table.grid(expand=True)
            columns.add_column(ratio=1)
            columns.add_column(ratio=1)
            columns.add_row(left, right)
            return Group(head, columns)
        sections = [head, self._rates(width), self._losses(), self._connection(), self._totals()]
        if height < _TALL_ENOUGH:
            return Group(*sections)
        return Group(*(part for section in sections for part in (section, Text(""))))

    def line(self) -> str:
        """Return one line without any control sequence."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        if self._history.fault or not self._status:
            return f"{now} unreachable {self._url}: {self._history.fault}; trying again"
        rates = [f"{name}={self._status[key]} ({self._rate(name)})" for name, key in _RATES.items()]
        counts = [f"{name.replace(' ', '_')}={self._status[key]}" for name, key in (_LEVELS | _LOSSES).items()]
        rest = f"reconnects={self._status.get('reconnect_count', 0)} last_message={self._age().replace(' ', '')}"
        ready = "ready" if self._status.get("ready") else f"NOT READY ({'; '.join(self._reasons())})"
        line = [now, ready, *rates, *counts, rest, "balanced" if self._missing() == 0 else "UNBALANCED"]
        return " ".join(line)

    def _head(self) -> RenderableType:
        service = f"{self._url}  binance-ingestion {_clean(self._status.get('version', ''))}"
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
            text = f"NOT REACHABLE for {seconds:.0f} s: {_clean(history.fault)}; trying again"
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
            text.append(f"{name} {'connected' if up else 'DOWN'}  ", style="green" if up else "bold red")
        return text

    def _rates(self, width: int) -> Table:
        table = _grid()
        room = max(8, width - 23)
        for name in _RATES:
            table.add_row(name, self._rate(name), Text(self._sparkline(name, room), style="cyan"))
        for name, key in _LEVELS.items():
            trend = self._history.trend(name)
            line = Text(self._sparkline(name, room - 5), style="magenta")
            line.append(f" {trend}", style="yellow" if trend == "up" else "dim")
            table.add_row(name, self._total(key), line)
        return table

    def _losses(self) -> Table:
        table = _grid()
        for name, key in _LOSSES.items():
            reasons = self._status.get(f"{key}_by_reason") or {}
            text = _clean(", ".join(f"{reason} {count:,}" for reason, count in reasons.items()))
            style = "bold red" if self._status[key] else "green"
            table.add_row(name, Text(self._total(key), style=style), Text(text))
        missing = self._missing()
        verdict = Text(f"{missing:,}", style="bold red") if missing else Text("0", style="green")
        table.add_row("missing", verdict, "equation holds" if not missing else "EQUATION BROKEN")
        return table

    def _connection(self) -> Table:
        table = _grid()
        tried = f"{self._total('connection_attempts')} tried, {self._total('connection_failures')} failed"
        table.add_row("reconnects", self._total("reconnect_count"), tried)
        age = self._age()
        ago = "ago, " if age.endswith(" s") else ""
        table.add_row("last event", age, f"{ago}{self._total('streams')} streams")
        return table

    def _totals(self) -> Table:
        table = _grid()
        for name, key in _RATES.items():
            total = _size(self._status[key]) if name == "bytes" else self._total(key)
            table.add_row(name, total, "in all")
        return table

    def _rate(self, name: str) -> str:
        rate = self._history.latest(name)
        if rate is None:
            return "-"
        return f"{_size(rate)}/s" if name == "bytes" else f"{rate:,.0f}/s"

    def _total(self, key: str) -> str:
        return f"{self._status.get(key, 0):,}"

    def _age(self) -> str:
        if self._history.fault:
            return "-"
        if not self._status.get("last_message_time"):
            return "never"
        last = datetime.fromisoformat(self._status["last_message_time"])
        return f"{max(0.0, (self._now() - last).total_seconds()):.1f} s"

    def _reasons(self) -> list[str]:
        return [_clean(reason) for reason in self._status.get("unready_reasons", [])]

    def _missing(self) -> int:
        came = sum(int(self._status.get(key, 0)) for key in _CAME)
        return came - sum(int(self._status.get(key, 0)) for key in _ACCOUNTED)

    def _sparkline(self, name: str, width: int) -> str:
        values = self._history.buckets(name, max(1, width), self._at)
        step = max((value for value in values if value is not None), default=0.0) / (len(self._bars) - 1)
        return "".join(
            " " if value is None else self._bars[round(value / step) if step else 0] for value in values
        )


def _grid() -> Table:
    """Make a table of labels, numbers, and what stands beside them and gives way to them."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=10, style="dim", no_wrap=True)
    table.add_column(min_width=10, justify="right", no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="crop")
    return table


def _clean(text: object) -> str:
    return "".join(character if character.isprintable() else "?" for character in str(text))


def _size(count: float) -> str:
    if count < 1000:  # noqa: PLR2004
        return f"{count:,.0f} B"
    power = min(4, (len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:,.1f} {' kMGT'[power]}B"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    asked = _command_line(arguments)
    try:
        url = asked.url or _configured_url()
    except SettingsError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
        return 2
    try:
        if asked.json or asked.once:
            return _once(url, as_json=asked.json)
        return _watch(url, asked.interval)
    except KeyboardInterrupt:
        return 1 if asked.json or asked.once else 0
    except BrokenPipeError:  # the reader of our output has gone; nothing is left to say, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _once(url: str, *, as_json: bool) -> int:
    try:
        status = fetch(url)
    except UnreachableError as error:
        sys.stderr.write(f"unreachable {url}: {_clean(error)}\n")
        return 1
    if as_json:
        sys.stdout.write(json.dumps(status) + "\n")
    else:
        history, console = History(), Console()
        history.read(status, time.monotonic())
        _show(Screen(history, url, time.monotonic(), ascii_only=console.options.ascii_only), console)
    sys.stdout.flush()
    return 0 if status.get("ready") else 1


def _show(screen: Screen, console: Console) -> None:
    if _drawable(console):
        console.print(screen.draw(console.width, console.height))
    else:
        sys.stdout.write(f"{screen.line()}\n")
        sys.stdout.flush()


def _drawable(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _watch(url: str, interval: float) -> int:
    """Show a reading every `interval` seconds until SIGINT or SIGTERM."""
    console, history = Console(), History()

    def screen() -> Screen:
        return Screen(history, url, time.monotonic(), ascii_only=console.options.ascii_only)

    live = Live(console=console, screen=True, auto_refresh=False) if _drawable(console) else None
    with _stop_signals(), live or nullcontext():
        if live:
            live.update(screen().draw(console.width, console.height), refresh=True)
        for due in _readings(interval):
            if due:
                _read(history, url)
            if live:
                live.update(screen().draw(console.width, console.height), refresh=True)
            elif due:
                _show(screen(), console)
    return 0


def _read(history: History, url: str) -> None:
    try:
        with _interruptible():
            status = fetch(url)
    except UnreachableError as error:
        history.missed(str(error), time.monotonic())
    else:
        history.read(status, time.monotonic())


def _readings(interval: float) -> Iterator[bool]:
    """Yield True when a reading is due and False when the terminal changed its size; end at a stop signal."""
    due_at = time.monotonic()
    while True:
        left = due_at - time.monotonic()
        received = signal.sigtimedwait(_SIGNALS | {signal.SIGWINCH}, max(0.0, left))
        if received is None:
            due_at = max(due_at + interval, time.monotonic())
            yield True
        elif received.si_signo == signal.SIGWINCH:
            yield False
        else:
            return


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Keep the signals pending but where `_interruptible` lets them raise, so that no drawing is cut short."""
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS | {signal.SIGWINCH})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _interruptible() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _configured_url() -> str:
    monitoring = load_settings().monitoring
    if not monitoring.port:
        raise SettingsError(["MONITORING_PORT='0': the service has no endpoints to read; give --url"])
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(monitoring.host, monitoring.host)
    return f"http://[{host}]:{monitoring.port}" if ":" in host else f"http://{host}:{monitoring.port}"


def _command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Show a running service live in the terminal; on anything else, one line a reading.",
        epilog="Exit codes: 0 stopped by Ctrl+C or SIGTERM; with --once and --json 0 when the service is ready, "
        "1 when it is not ready or not reachable; 2 when the configuration or the command line is wrong.",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="print one snapshot and exit (0 ready, 1 not)")
    how.add_argument("--json", action="store_true", help="print /status once, as JSON, and exit (0 ready, 1 not)")
    parser.add_argument(
        "--url", type=_url, help="of the service (default: from MONITORING_HOST and MONITORING_PORT)"
    )
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="SECONDS", help="between two readings (default: 1)"
    )
    return parser.parse_args(arguments)


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or parts.query:
        raise argparse.ArgumentTypeError("a URL like http://127.0.0.1:8000")
    return text.rstrip("/").removesuffix("/status")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:  # noqa: PLR2004 - infinity and NaN are out as well
        raise argparse.ArgumentTypeError("seconds between 0.1 and 3600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
