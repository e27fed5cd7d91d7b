"""Show a running service live in the terminal, or with --completeness what its gap ledger in Kafka says.

Exit codes: 0 stopped on request, or ready with --once and --json; 1 with these two when the service is not
ready or not reachable; with --completeness 0 when nothing is missing, 1 when something is, when no service has
written to the ledger for an hour, or Kafka does not answer; 2 the configuration or the command line is wrong, or
the live view is not to be had on this system.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until `main` has the signals, Ctrl+C ends this as it ends any program: without a word
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import json
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console
from rich.live import Live

from config.faults import SettingsError
from config.settings import load_settings
from src.commands import forget_stdout, refuse, seconds
from src.completeness_report import CompletenessReport
from src.completeness_verdict import as_json, drawn, verdict
from src.terminal_history import History, UnreachableError, fetch
from src.terminal_parts import clean
from src.terminal_view import Screen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_WIDE = 200
_NOT_HERE = (
    "monitoring: the live view runs on Linux; on macOS and Windows take --once or --json, or run it in the "
    "container, in WSL 2 or in a Linux machine\n"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = _command_line(arguments)
    if asked.completeness:
        return _completeness(asked)
    try:
        url = asked.url or _configured_url()
    except SettingsError as error:
        return refuse(error)
    try:
        if asked.json or asked.once:
            return _once(url, as_json=asked.json)
        return _watch(url, asked.interval)
    except KeyboardInterrupt:
        return 1 if asked.json or asked.once else 0
    except BrokenPipeError:  # the reader of our output has gone; nothing is left to say, at exit neither
        forget_stdout()
        return 0


def _once(url: str, *, as_json: bool) -> int:
    try:
        status = fetch(url)
    except UnreachableError as error:
        sys.stderr.write(f"unreachable {url}: {clean(error)}\n")
        return 1
    if as_json:
        sys.stdout.write(json.dumps(status) + "\n")
    else:
        history, console = History(), Console()
        history.read(status, time.monotonic())
        _show(Screen(history, url, time.monotonic(), ascii_only=console.options.ascii_only), console)
    sys.stdout.flush()
    return 0 if status.get("ready") else 1


def _completeness(asked: argparse.Namespace) -> int:
    """Report what the gap ledger says, from Kafka alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0.12 warns when imported on 3.11
        from src.kafka_ledger import LedgerUnreadable, read_ledger  # noqa: PLC0415 - only here
    now_ms = int(time.time() * 1000)
    report = CompletenessReport(now_ms)
    since_ms = None if asked.since is None else now_ms - int(asked.since * 1000)
    try:
        for record in read_ledger(load_settings().kafka, since_ms):
            report.add(record)
    except SettingsError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
        return 2
    except LedgerUnreadable as error:
        sys.stderr.write(f"monitoring: {clean(error)}\n")
        return 1
    except KeyboardInterrupt:
        return 1
    if asked.json:
        sys.stdout.write(json.dumps(as_json(report)) + "\n")
    else:
        console = Console()
        if not console.is_terminal:  # a file or a pipe has room
            console.width = max(console.width, _WIDE)
        console.print(drawn(report), soft_wrap=not console.is_terminal)
    return 0 if verdict(report).complete else 1


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
    if not hasattr(signal, "sigtimedwait"):
        sys.stderr.write(_NOT_HERE)
        return 2
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
        "1 when it is not ready or not reachable; with --completeness 0 when nothing is missing, else 1; 2 when "
        "the configuration or the command line is wrong.",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="print one snapshot and exit (0 ready, 1 not)")
    how.add_argument("--json", action="store_true", help="print /status once, as JSON, and exit (0 ready, 1 not)")
    parser.add_argument(
        "--completeness",
        action="store_true",
        help="report what is missing from the topics, by the gap ledger in Kafka alone (0 nothing, 1 something)",
    )
    parser.add_argument(
        "--since",
        type=_age,
        metavar="AGE",
        help="with --completeness: only what the ledger says since then, such as 24h, 30m, 7d",
    )
    parser.add_argument(
        "--url", type=_url, help="of the service (default: from MONITORING_HOST and MONITORING_PORT)"
    )
    parser.add_argument(
        "--interval",
        type=seconds(0.1, 3600.0),
        default=1.0,
        metavar="SECONDS",
        help="between two readings (default: 1)",
    )
    asked = parser.parse_args(arguments)
    if fault := _contradiction(asked, parser):
        parser.error(fault)
    return asked


def _contradiction(asked: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return what cannot be asked for together, empty when all can."""
    if not asked.completeness:
        return "--since: only with --completeness" if asked.since is not None else ""
    others = [name for name in ("url", "interval", "once") if getattr(asked, name) != parser.get_default(name)]
    return f"{', '.join(f'--{name}' for name in others)}: not with --completeness" if others else ""


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or parts.query:
        raise argparse.ArgumentTypeError("a URL like http://127.0.0.1:8000")
    return text.rstrip("/").removesuffix("/status")


def _age(text: str) -> float:
    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(text[-1:])
    if unit is None or not number.isdecimal() or not 0 < int(number) * unit <= 10 * 366 * 86_400:
        raise argparse.ArgumentTypeError("a whole number with s, m, h or d, such as 24h")
    return float(int(number) * unit)


if __name__ == "__main__":
    sys.exit(main())
