"""The terminal view: what it draws, and the command as a process, in a pipe and in a terminal of its own."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

import monitoring
from src.flow import BOUNDS_MS
from src.telemetry import Telemetry
from src.terminal_history import WINDOW_SECONDS, History, UnreachableError, fetch
from src.terminal_parts import duration, quantile, symbol_table
from src.terminal_view import Screen
from tests.exchange_fixtures import eventually
from tests.test_endpoints import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
ESCAPE = "\x1b"
PATIENCE_S = 15.0


def reading(received: int = 0, **more: Any) -> dict[str, Any]:
    """Make a `/status` in balance: all that was received is produced unless said otherwise."""
    status = Telemetry().status() | {"version": "1.0.0", "streams": 20, "kafka_connected": True}
    status |= {"ready": True, "unready_reasons": [], "connected": True}
    status |= {"started_at": "2026-01-01T00:00:00.000Z", "time": "2026-01-01T01:02:03.000Z"}
    return status | {"messages_received": received, "kafka_produced": received} | more


def history_of(*readings: dict[str, Any] | None) -> History:
    """Make the history of one reading a second; None is one that failed."""
    history = History()
    for at, status in enumerate(readings):
        if status is None:
            history.missed("connection refused", at)
        else:
            history.read(status, at)
    return history


def drawn(
    history: History, width: int = 80, height: int = 24, at: float = 10.0, *, ascii_only: bool = False
) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(Screen(history, "http://127.0.0.1:8000", at, ascii_only=ascii_only).draw(width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line(history: History) -> str:
    return Screen(history, "http://127.0.0.1:8000", 10.0).line()


def test_a_rate_is_what_was_counted_between_two_readings() -> None:
    text = drawn(history_of(reading(1000), reading(1500, bytes_sent=2_345_000)))
    assert re.search(r"received\s+500/s", text)
    assert re.search(r"bytes\s+2\.3 MB/s", text)


def test_the_first_reading_has_totals_and_no_rate_yet() -> None:
    text = drawn(history_of(reading(1234)))
    assert re.search(r"received\s+-", text)
    assert re.search(r"in all\s+1,234 received", text)


def test_a_kafka_that_is_connected_and_says_nothing_is_not_shown_as_well() -> None:
    assert "exchange up  Kafka SILENT 10.0 s" in drawn(
        history_of(reading(1, kafka_stalled_seconds=10.0)), width=40
    )
    assert "exchange up  Kafka up" in drawn(history_of(reading(1, kafka_stalled_seconds=1.0)))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_totals_of_a_month_are_not_cut_off(width: int) -> None:
    month = {"kafka_produced": 12_345_678_901, "bytes_sent": 3_456_789_012_345}
    text = drawn(history_of(reading(12_345_678_901, **month)), width=width)
    assert re.search(r"in all\s+12,345,678,901 received", text)
    assert re.search(r"12,345,678,901 produced, 3\.5 TB", text)


def test_a_single_line_for_symbols_shows_the_busiest() -> None:
    table = symbol_table(history_of(flowing(3)), datetime(2026, 1, 1, 1, 2, 3, tzinfo=UTC), 1, ascii_only=False)
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    assert "BTCUSDT" in console.file.getvalue() or "ETHUSDT" in console.file.getvalue()
    assert "more symbols" not in console.file.getvalue()


def test_a_restart_is_said_and_gives_no_negative_rate() -> None:
    text = drawn(history_of(reading(5000), reading(20), reading(50)))
    assert "restarts seen: 1" in text
    assert re.search(r"received\s+30/s", text)
    assert "-4" not in text


def test_a_restart_is_seen_also_when_the_new_service_has_counted_more() -> None:
    history = history_of(reading(10), reading(900, started_at="2026-01-01T01:00:00.000Z"))
    assert history.restarts == 1
    assert history.latest("received") is None


def test_a_service_that_went_away_is_said_with_the_time_and_what_was_last_read() -> None:
    text = drawn(history_of(reading(100), reading(200), None, None), at=14.0)
    assert "NOT REACHABLE for 12 s: connection refused; trying again" in text
    assert "the last reading" in text
    assert re.search(r"in all\s+200 received", text)
    assert re.search(r"received\s+-", text)
    assert "READY" not in text


def test_a_service_that_came_back_leaves_a_hole_in_the_sparkline() -> None:
    history = history_of(reading(0), reading(5), None, None, None, reading(20), reading(25))
    assert history.buckets("received", 180, 7.0)[-8:] == [5.0, 5.0, None, None, None, 5.0, 5.0, None]


def test_a_sparkline_covers_the_window_whatever_its_width() -> None:
    history = history_of(*(reading(100 * at) for at in range(400)))
    for width in (8, 20, 150):
        assert history.buckets("received", width, 399.0)[1:] == [100.0] * (width - 1)


def test_readings_older_than_the_window_are_forgotten() -> None:
    history = history_of(*(reading(at) for at in range(1000)))
    assert len(history._samples["received"]) <= WINDOW_SECONDS + 2


@pytest.mark.parametrize(
    ("levels", "trend"),
    [
        ([0] * 5, ""),
        ([50, 90, 10, 0] * 5, "flat"),
        (range(0, 20_000, 500), "up"),
        (range(20_000, 0, -500), "down"),
        ([*range(0, 20_000, 500), *[0] * 5], "down"),
    ],
)
def test_the_trend_of_the_buffer_is_judged_by_its_last_readings(levels: list[int], trend: str) -> None:
    history = history_of(*(reading(messages_buffered=level) for level in levels))
    assert history.trend("buffered") == trend


def flowing(events: int, price: str = "100.50000000", **more: Any) -> dict[str, Any]:
    """Make a reading with two symbols, two types and a latency, after so many events of the first symbol."""
    last = "2026-01-01T01:02:01.500Z"
    counts = [0] * 18
    counts[6] = events
    return reading(
        events,
        symbols={
            "BTCUSDT": {"last_event_time": last, "price": price, "events": events},
            "ETHUSDT": {"last_event_time": "2026-01-01T00:59:03.000Z", "price": None, "events": 3},
        },
        kinds=[
            {"event_type": "kline", "topic": "raw", "received": 2, "produced": 1},
            {"event_type": "trade", "topic": "trades", "received": events, "produced": events // 2},
        ],
        latency={"bounds_ms": BOUNDS_MS, "legs": {"exchange_to_ack": {"counts": counts, "sum_ms": 0}}},
        **more,
    )


def test_each_symbol_has_its_price_with_its_direction_its_age_and_its_rate() -> None:
    text = drawn(history_of(flowing(10), flowing(40, price="101.25")), height=40)
    assert re.search(r"BTCUSDT +101\.25 ▲ +1\.5 s +30\.0/s", text)
    assert re.search(r"ETHUSDT +- +3\.0 min +0\.0/s", text)
    fell = drawn(history_of(flowing(10), flowing(40, price="99.00")), ascii_only=True)
    assert re.search(r"BTCUSDT +99 - +1\.5 s", fell)


def test_each_type_has_its_rates_the_busiest_first() -> None:
    text = drawn(history_of(flowing(10), flowing(40)))
    assert re.search(r"type +received +produced", text)
    assert re.search(r"trade +30\.0/s +15\.0/s", text)
    assert text.index("trade ") < text.index("kline ")


def test_the_lag_is_that_of_the_last_readings_and_not_of_the_whole_life() -> None:
    slow = flowing(1000)
    slow["latency"]["legs"]["exchange_to_ack"]["counts"][13] = 10_000
    quick = flowing(1100)
    quick["latency"]["legs"]["exchange_to_ack"]["counts"][13] = 10_000
    assert re.search(r"lag +75 ms median, 99 % 100 ms", drawn(history_of(slow, quick)))
    assert re.search(r"in all +75 ms +100 ms", drawn(history_of(slow, quick), width=120, height=40))


def test_the_lag_of_each_leg_is_whole_on_eighty_columns() -> None:
    status = flowing(1000)
    histogram = status["latency"]["legs"]["exchange_to_ack"]
    status["latency"]["legs"] |= dict.fromkeys(("exchange_to_read", "read_to_flush", "flush_to_ack"), histogram)
    assert re.search(r"99 % \S+ m?s; read \S+ ms, flush \S+ ms, ack \S+ ms", drawn(history_of(flowing(0), status)))


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 5.0),
        ([10, 10, 0], 0.75, 15.0),
        ([0, 0, 7], 0.5, 20.0),
        ([1, 0, 1], 0.5, 10.0),
    ],
)
def test_a_quantile_is_interpolated_within_its_bucket(
    counts: list[int], share: float, expected: float | None
) -> None:
    assert quantile([10, 20], counts, share) == expected


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.0, "0 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (90, "1.5 min"), (7200, "2.0 h"), (200_000, "2 d")],
)
def test_a_duration_is_written_in_few_letters(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(("width", "height"), [(40, 20), (80, 24), (80, 40), (120, 30), (160, 50)])
def test_more_symbols_than_there_is_room_for_are_counted(width: int, height: int) -> None:
    status = flowing(50)
    one = status["symbols"]["BTCUSDT"]
    status["symbols"] = {f"COIN{number}USDT": one for number in range(500)}
    lines = drawn(history_of(status, status), width, height).splitlines()
    assert len(lines) < height
    shown = sum(bool(re.search(r"COIN\d+USDT", line)) for line in lines)
    assert shown > 0
    assert any(f"and {500 - shown} more symbols" in line for line in lines)


def test_a_service_that_goes_by_way_of_the_disk_says_so() -> None:
    status = reading(100, kafka_produced=20, messages_spooled=80, spool_bytes=23_000, spool_bytes_limit=10**6)
    text = drawn(history_of(status | {"spooling": True}), 40, 20)
    assert "by disk" in text
    assert re.search(r"on disk +80", text)
    assert re.search(r"spool +23\.0 kB of 1\.0 MB", text)


def test_losses_stand_with_their_reasons() -> None:
    status = reading(
        1000,
        kafka_produced=900,
        messages_skipped=30,
        messages_skipped_by_reason={"malformed_json": 28, "not_an_object": 2},
        messages_dropped=70,
        messages_dropped_by_reason={"spool_full": 70},
    )
    text = drawn(history_of(status))
    assert re.search(r"skipped\s+30 malformed_json 28, not_an_object 2", text)
    assert re.search(r"dropped\s+70 spool_full 70", text)
    assert re.search(r"missing\s+0 equation holds", text)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (80, 24), (120, 32)])
def test_gaps_stand_with_what_became_of_them(width: int, height: int) -> None:
    assert re.search(r"gaps +0 open( |$)", drawn(history_of(reading(1000)), width, height), re.MULTILINE)
    status = reading(1000, gaps_open=2, gaps_filled=3, messages_held=70, messages_buffered=70, kafka_produced=930)
    assert re.search(r"gaps +2 open, 70 wait", drawn(history_of(status), width, height))
    text = drawn(history_of(status | {"gaps_unfillable": 1, "depth_gaps": 4}), 120, 32)
    assert re.search(r"gaps +2 open, 1 unfillable, 70 wait", text)


def test_what_was_fetched_and_what_was_there_twice_is_counted() -> None:
    assert "backfilled" not in drawn(history_of(reading(1000)))
    status = reading(1000, messages_backfilled=1234, messages_duplicate=34, kafka_produced=2200, gaps_open=1)
    for width in (80, 120):
        text = drawn(history_of(status), width)
        assert re.search(r"1,234 backfilled, 34 duplicates", text)
        assert "equation holds" in text
    assert "gaps_open=1 unfillable=0 held=0 backfilled=1234 duplicates=34" in line(history_of(status))


def test_an_equation_that_does_not_hold_is_shouted() -> None:
    history = history_of(reading(1000, kafka_produced=990))
    assert re.search(r"missing\s+10 EQUATION BROKEN", drawn(history))
    assert line(history).endswith(" UNBALANCED")


def test_what_lies_on_disk_is_shown_and_what_an_earlier_run_left_there_counts_as_come() -> None:
    status = reading(1000, messages_recovered=500, kafka_produced=1100, messages_spooled=390)
    text = drawn(history_of(status | {"messages_dead_lettered": 10}))
    assert re.search(r"on disk\s+390", text)
    assert "equation holds" in text


def test_the_equation_counts_the_terms_of_capabilities_to_come() -> None:
    status = reading(1000, kafka_produced=960, messages_spooled=30, messages_duplicate=20, messages_backfilled=10)
    assert "equation holds" in drawn(history_of(status))


def test_reasons_for_not_being_ready_are_shown() -> None:
    reasons = ["not connected to the exchange", "not connected to Kafka"]
    status = reading(ready=False, unready_reasons=reasons, connected=False, kafka_connected=False)
    text = drawn(history_of(status))
    assert "NOT READY: not connected to the exchange; not connected to Kafka" in text
    assert "exchange DOWN  Kafka DOWN" in text
    assert "NOT READY (not connected to the exchange; not connected to Kafka)" in line(history_of(status))


def test_the_age_of_the_last_event_is_by_the_clock_of_the_service() -> None:
    assert re.search(
        r"last event\s+2\.5 s ago", drawn(history_of(reading(last_message_time="2026-01-01T01:02:00.500Z")))
    )
    assert re.search(r"last event\s+never 20 streams", drawn(history_of(reading())))
    assert "READY  up 1:02:03" in drawn(history_of(reading()))


@pytest.mark.parametrize(
    ("width", "height"), [(40, 20), (20, 10), (80, 24), (99, 24), (100, 24), (160, 50), (400, 100)]
)
def test_no_line_is_wider_than_the_terminal_and_all_lines_fit(width: int, height: int) -> None:
    busy = reading(10**12, bytes_sent=10**15, messages_skipped=10**9, kafka_produced=10**12 - 10**9)
    busy["messages_skipped_by_reason"] = {f"reason_{number}": 10**6 for number in range(40)}
    text = drawn(history_of(reading(), *[busy] * 30, None), width, height, at=31.0)
    assert max(map(len, text.splitlines())) <= width
    if height >= 20:
        assert len(text.splitlines()) <= height
        assert "missing" in text


def test_a_terminal_without_unicode_gets_ascii_bars() -> None:
    text = drawn(history_of(*(reading(at * at) for at in range(20))), at=19.0, ascii_only=True)
    assert text.isascii()
    assert "#" in text


def test_control_characters_of_whatever_answers_do_not_reach_the_terminal() -> None:
    evil = f"{ESCAPE}[2J\a"
    status = reading(version=evil, ready=False, unready_reasons=[evil], messages_skipped_by_reason={evil: 1})
    assert ESCAPE not in drawn(history_of(status)) + line(history_of(status))


def test_once_and_json_print_one_reading_and_their_exit_code_is_the_readiness(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving() as served:
        url = f"http://127.0.0.1:{served.port}"
        for reasons, code in (([], 0), (["not connected to Kafka"], 1)):
            served.reasons = reasons
            assert monitoring.main(["--url", url, "--once"]) == code
            printed = capsys.readouterr().out
            assert printed.count("\n") == 1
            assert ESCAPE not in printed
            assert monitoring.main(["--url", f"{url}/status", "--json"]) == code
            assert json.loads(capsys.readouterr().out)["unready_reasons"] == reasons


def test_once_and_json_end_with_1_and_say_so_when_nothing_answers(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--once", "--json"):
        assert monitoring.main(["--url", "http://127.0.0.1:1", option]) == 1
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", "unreachable http://127.0.0.1:1: connection refused\n")


def test_the_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        monitoring.main(["--help"])
    assert "Exit codes: 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [["--url", "ftp://host"], ["--url", "http://h:0"], ["--interval", "nan"], ["--x"]]
)
def test_a_wrong_command_line_ends_with_2(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        monitoring.main(option)
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--since", "24h"], "--since: only with --completeness"),
        (["--since", "24h", "--json"], "--since: only with --completeness"),
        (["--completeness", "--url", "http://h:1"], "--url: not with --completeness"),
        (["--completeness", "--interval", "2", "--once"], "--interval, --once: not with --completeness"),
    ],
)
def test_what_cannot_be_asked_for_together_is_refused(
    options: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        monitoring.main(options)
    assert capsys.readouterr().err.endswith(f"error: {fault}\n")


def test_a_wrong_configuration_is_one_line_a_fault_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where no .env of the user is
    monkeypatch.setenv("MONITORING_PORT", "many")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    assert monitoring.main([]) == 2
    faults = capsys.readouterr().err.splitlines()
    assert [fault.partition("=")[0] for fault in faults] == ["LOG_LEVEL", "MONITORING_PORT"]
    monkeypatch.setenv("LOG_LEVEL", "INFO")
    monkeypatch.setenv("MONITORING_PORT", "0")
    assert monitoring.main([]) == 2
    assert "MONITORING_PORT='0'" in capsys.readouterr().err


@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_the_address_comes_from_the_settings_of_the_service(
    listens: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(host=listens) as served:
        monkeypatch.setenv("MONITORING_HOST", listens)
        monkeypatch.setenv("MONITORING_PORT", str(served.port))
        assert monitoring.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """Serve these bytes to every request; None never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def serve() -> None:
            try:
                while True:
                    client, _ = listener.accept()
                    held.append(client)
                    if answer is not None:
                        client.recv(10_000)
                        client.sendall(answer)
                        client.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)
            for client in held:
                client.close()


OK = b"HTTP/1.0 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "status 404"),
        (b"", "closed connection"),
        (b"SSH-2.0-OpenSSH\r\n", "not the service"),
        (OK + b"<html>", "not the service"),
        (OK + b"[1]", "not the service"),
        (OK + b'{"messages_received": "many"}', "not the service"),
        (OK + b"\xff\xfe", "not the service"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n{}", "not the service"),
        (None, "no answer in time"),
    ],
)
def test_what_answers_but_is_not_the_service_is_unreachable(answer: bytes | None, said: str) -> None:
    with answering(answer) as url, pytest.raises(UnreachableError, match=said):
        fetch(url, timeout=0.3)


@contextmanager
def command(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run `monitoring.py`; whatever it is doing afterwards, it is ended."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(REPOSITORY / "monitoring.py"), *arguments],
        cwd=REPOSITORY / "tests",  # where no .env of the user is
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_without_a_terminal_it_prints_plain_lines_and_follows_a_service_that_goes_and_comes() -> None:
    with serving() as first:
        port = first.port
        url = f"http://127.0.0.1:{port}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with command("--url", url, "--interval", "0.1", **pipes) as process:
            assert process.stdout is not None
            lines = [next(one for one in process.stdout if " ready " in one)]
            first.endpoints.stop()
            lines.append(next(one for one in process.stdout if " unreachable " in one))
            with serving(port=port):
                lines.append(next(one for one in process.stdout if " ready " in one))
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0
    assert errors == ""
    assert ESCAPE not in "".join(lines)
    assert "connection refused; trying again" in lines[1]


def test_a_reader_that_hangs_up_ends_it_quietly() -> None:
    with serving() as served:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with command("--url", f"http://127.0.0.1:{served.port}", "--interval", "0.1", **pipes) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr.read() == ""


class Terminal:
    """A pseudo terminal of a given size; keeps what the program writes."""

    def __init__(self, columns: int, rows: int) -> None:
        self.controller, self.program = pty.openpty()
        self.resize(columns, rows)
        self.text = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.program, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, expected: str) -> None:
        """Read until `expected` was written; what came before it is forgotten."""
        end = time.monotonic() + PATIENCE_S
        while expected not in self.text:
            assert select.select([self.controller], [], [], max(0.0, end - time.monotonic()))[0], self.text
            self.text += os.read(self.controller, 65_536).decode("utf-8", "replace")
        self.text = self.text.partition(expected)[2]

    def close(self) -> None:
        os.close(self.controller)
        os.close(self.program)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal(40, 20)
    yield made
    made.close()


def on(terminal: Terminal) -> dict[str, Any]:
    environment = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    for variable in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(variable, None)
    return dict.fromkeys(("stdin", "stdout", "stderr"), terminal.program) | {"env": environment}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_it_draws_redraws_on_a_new_size_and_leaves_the_terminal_as_it_was(
    terminal: Terminal, number: signal.Signals
) -> None:
    with (
        serving() as served,
        command("--url", f"http://127.0.0.1:{served.port}", "--interval", "60", **on(terminal)) as process,
    ):
        terminal.wait_for(f"{ESCAPE}[?1049h")
        terminal.wait_for("READY")
        terminal.wait_for("received")
        assert "losses" not in terminal.text
        terminal.resize(160, 50)
        process.send_signal(signal.SIGWINCH)
        terminal.wait_for("losses")
        process.send_signal(number)
        terminal.wait_for(f"{ESCAPE}[?1049l")
        assert process.wait(PATIENCE_S) == 0


def test_a_stop_while_the_service_hangs_is_obeyed_at_once(terminal: Terminal) -> None:
    with answering(None) as url, command("--url", url, **on(terminal)) as process:
        terminal.wait_for("connecting")
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(PATIENCE_S) == 0
        assert time.monotonic() - began < 1.9  # what it asks the service for may take 2 s
        terminal.wait_for(f"{ESCAPE}[?25h")


def test_once_on_a_terminal_draws_and_leaves_what_it_drew(terminal: Terminal) -> None:
    with (
        serving() as served,
        command("--url", f"http://127.0.0.1:{served.port}", "--once", **on(terminal)) as process,
    ):
        assert process.wait(PATIENCE_S) == 0
        terminal.wait_for("equation holds")
        assert f"{ESCAPE}[?1049h" not in terminal.text


def catches_interrupts(process: subprocess.Popen[str]) -> bool:
    """Whether the process has a handler for SIGINT at this moment."""
    caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGINT - 1) & 1)


def stopped_while_it_starts(process: subprocess.Popen[str]) -> bool:
    """Stop it between its first line and its `main`; return False when that was too late."""
    loaded = Path(f"/proc/{process.pid}/maps")
    eventually(lambda: "/_json." in loaded.read_text())  # imported right behind what is said about the signal
    process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{process.pid}/stat")
    eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
    return not catches_interrupts(process)


def test_an_interrupt_while_it_starts_ends_it_without_a_word() -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for _ in range(20):
        with command("--url", "http://127.0.0.1:1", **pipes) as process:
            if not stopped_while_it_starts(process):
                continue
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)
            _, errors = process.communicate(timeout=PATIENCE_S)
            break
    else:
        pytest.fail("the signal came too late each time")
    assert errors == ""
    assert process.returncode == -signal.SIGINT
