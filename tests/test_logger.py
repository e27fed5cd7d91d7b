"""Logging: whatever is logged, by whomever, leaves as exactly one line that can be read."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest

from src.logger import LogContext, _RepeatFilter, configure_logging, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
JsonLines = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Put the process's logging back as it was."""
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    logging.captureWarnings(capture=False)
    yield
    logging.captureWarnings(capture=False)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising
    for library in ("kafka", "websocket"):
        logging.getLogger(library).setLevel(logging.NOTSET)
    structlog.reset_defaults()


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capsys.readouterr().out.splitlines()  # noqa: PLW0108 - evaluated anew in each phase


@pytest.fixture
def logged() -> Callable[[], JsonLines]:
    """Configure JSON logging and return what reads the lines back."""
    configure_logging("INFO", "json")
    stream = io.StringIO()  # pytest exchanges sys.stdout between fixture and test
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return lambda: [json.loads(line, parse_constant=refuse) for line in stream.getvalue().split("\n")[:-1]]


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


# JSON


def test_a_line_starts_with_time_level_and_event_and_carries_its_context(logged: Callable[[], JsonLines]) -> None:
    get_logger("x").warning("frame_skipped", reason="malformed_json", count=3, last=None)
    (line,) = logged()
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["timestamp"].endswith("Z")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line["timestamp"])).total_seconds()) < 60
    expected = {"level": "warning", "event": "frame_skipped", "reason": "malformed_json", "count": 3, "last": None}
    assert {key: line[key] for key in expected} == expected


def test_any_value_leaves_as_json(logged: Callable[[], JsonLines]) -> None:
    circular: list[object] = []
    circular.append(circular)
    values = {
        "text": 'ü 💰 "quoted" a\nb\u2028c',
        "lone": "\ud800",
        "nan": float("nan"),
        "infinite": [float("inf")],
        "raw": b"\xff",
        "an_object": object(),
        "an_error": ValueError("x\ny"),
        "odd_keys": {(1, 2): 3},
        "circular": circular,
        "nested": {"a": [1, {"b": None}]},
    }
    get_logger("x").info("odd_values", **values)
    for key, value in values.items():
        get_logger("x").info("odd_value", **{key: value})
    together, *alone = logged()
    assert together["text"] == values["text"]
    assert together["nested"] == values["nested"]
    assert values.keys() <= together.keys()
    assert len(alone) == len(values)


def test_a_line_that_cannot_be_rendered_is_named(logged: Callable[[], JsonLines]) -> None:
    get_logger("x").info("badly_held", thing=Unprintable())
    logging.getLogger("lib").warning("%d records", "many")
    logging.getLogger("lib").warning(Unprintable())
    assert [line["event"] for line in logged()] == [
        "unloggable_line: badly_held (ValueError)",
        "unloggable_line: %d records (TypeError)",
        "unloggable_line: Unprintable (ValueError)",
    ]


def test_levels_below_the_chosen_one_are_left_out(lines: Callable[[], list[str]]) -> None:
    configure_logging("WARNING", "json")
    get_logger("x").info("no")
    logging.getLogger("lib").info("no")
    get_logger("x").warning("yes")
    assert len(lines()) == 1
    configure_logging("DEBUG", "json")
    get_logger("x").debug("yes")
    logging.getLogger("websocket").debug("yes")
    assert len(lines()) == 2


def test_what_kafka_python_says_at_debug_is_left_out_since_it_holds_passwords(
    lines: Callable[[], list[str]],
) -> None:
    configure_logging("DEBUG", "json")
    parser = KafkaProtocol(client_id="x", api_version=(3, 0))
    parser.send_request(SaslAuthenticateRequest(b"\0me\0tell-nobody", version=0))
    parser.send_bytes()
    logging.getLogger("kafka.client").info("yes")
    (line,) = lines()
    assert "tell-nobody" not in line


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_does_not_show_what_variables_hold(log_format: str, lines: Callable[[], list[str]]) -> None:
    configure_logging("DEBUG", log_format)
    hidden = "tell-nobody"
    try:
        int({"password": hidden}["other"])
    except KeyError:
        get_logger("x").exception("failed")
    (line,) = lines()
    assert "KeyError" in line
    assert hidden not in line


def test_libraries_log_through_the_same_door(logged: Callable[[], JsonLines]) -> None:
    logging.getLogger("some.library").warning("lost %s\nof %d", "one", 2, extra={"more": 1})
    logging.getLogger("some.library").error(["no", "text"])
    logging.getLogger("some.library").error({"no": "text"})
    logging.getLogger("kafka.client").info("chatter")
    logging.getLogger("kafka.client").warning("trouble")
    found = logged()
    assert [line["event"] for line in found] == ["lost one\nof 2", "['no', 'text']", "{'no': 'text'}", "trouble"]
    assert found[0]["level"] == "warning"
    assert found[0]["logger"] == "some.library"


def test_warnings_are_log_lines(logged: Callable[[], JsonLines]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("take\ncare", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    first, second = logged()
    assert "UserWarning: take\ncare" in first["event"]
    assert "something else" in second["event"]
    assert (first["level"], first["logger"]) == ("warning", "py.warnings")


def test_an_exception_is_a_traceback_in_the_line(logged: Callable[[], JsonLines]) -> None:
    try:
        raise ValueError("cause") from KeyError("root")  # noqa: TRY301
    except ValueError as error:
        get_logger("x").exception("ours_failed")
        get_logger("x").error("ours_failed", exc_info=error)
        logging.getLogger("lib").exception("theirs failed")
    found = logged()
    assert len(found) == 3
    for line in found:
        assert "Traceback (most recent call last):\n" in line["exception"]
        assert "KeyError: 'root'" in line["exception"]
        assert line["exception"].endswith("ValueError: cause")


def test_an_uncaught_exception_of_a_thread_is_a_log_line(logged: Callable[[], JsonLines]) -> None:
    def fail() -> None:
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "boom")

    for target in (fail, sys.exit):  # sys.exit is how a thread may end itself
        thread = threading.Thread(target=target, name="reader-7")
        thread.start()
        thread.join()
    (line,) = logged()
    assert (line["level"], line["event"], line["thread"]) == ("critical", "uncaught_exception", "reader-7")
    assert line["exception"].endswith("boom")


def test_an_exception_without_its_value_is_a_log_line(logged: Callable[[], JsonLines]) -> None:
    threading.excepthook(threading.ExceptHookArgs((UnicodeDecodeError, None, None, None)))
    (line,) = logged()
    assert line["event"] == "uncaught_exception"


def test_an_exception_in_a_finalizer_is_a_log_line(logged: Callable[[], JsonLines]) -> None:
    class Fragile:
        def __del__(self) -> None:
            raise ValueError("in the end")

    Fragile()
    (line,) = logged()
    assert (line["level"], line["event"]) == ("error", "unraisable_exception")
    assert line["exception"].endswith("ValueError: in the end")


MAIN_FAILS = """
import threading
from src.logger import configure_logging, get_logger
configure_logging("INFO", {log_format!r})
get_logger("x").info("started", symbol="\\u5e01\\ud83d\\ude00", nothing="\\ud800")
thread = threading.Thread(target=lambda: 1 / 0, name="t")
thread.start()
thread.join()
raise RuntimeError("first\\nsecond")
"""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_whole_process_says_all_on_stdout_whatever_its_encoding(log_format: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", MAIN_FAILS.format(log_format=log_format)],
        cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, b"")
    found = ended.stdout.decode("ascii").splitlines()
    assert len(found) == 3
    assert all(event in line for event, line in zip(["started", *["uncaught_exception"] * 2], found, strict=True))
    if log_format == "json":
        started, thread, main = (json.loads(line) for line in found)
        assert (started["symbol"], started["nothing"]) == ("币😀", "\ud800")
        assert (thread["thread"], main["thread"]) == ("t", "MainThread")
        assert main["exception"].endswith("RuntimeError: first\nsecond")


def test_a_closed_stdout_harms_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        configure_logging()
    get_logger("x").info("into_the_void")
    logging.getLogger("lib").warning("into the void")


def test_a_service_whose_log_is_read_no_more_keeps_its_exit_code(tmp_path: Path) -> None:
    nobody = {
        "BINANCE_WS_BASE_URL": "ws://127.0.0.1:9",
        "BINANCE_REST_BASE_URL": "http://127.0.0.1:9",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
    }
    service = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py")],
        cwd=tmp_path,
        env=nobody | {"MONITORING_PORT": "0", "SPOOL_PATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with service as process:
        assert process.stdout
        assert process.stderr
        assert b"service_started" in process.stdout.readline()
        process.stdout.close()
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


# Text


def test_a_text_line_is_one_line_an_event(lines: Callable[[], list[str]]) -> None:
    configure_logging("INFO", "text")
    log = get_logger("x")
    log.info("two\nlines", value="a\r\nb", separator="x\u2028y", escape="\x1b[31m", lone="\ud800")
    logging.getLogger("lib").warning("also\n%s", "two\x0blines")
    try:
        raise ValueError("x\ny")  # noqa: TRY301
    except ValueError:
        log.exception("failed")
        logging.getLogger("lib").exception("failed too")
    found = lines()
    assert len(found) == 4
    assert "two\\nlines" in found[0]
    assert "\x1b" not in found[0]
    assert "also\\ntwo\\x0blines" in found[1]
    assert all("ValueError: x" in line and "Traceback" in line for line in found[2:])


# LogContext


def test_log_context_tells_entry_and_exit_with_the_duration(logged: Callable[[], JsonLines]) -> None:
    with LogContext("create_topics", topics=3) as context:
        assert isinstance(context, LogContext)
    entry, end = logged()
    assert (entry["event"], end["event"]) == ("operation_started", "operation_finished")
    assert entry["operation"] == end["operation"] == "create_topics"
    assert entry["topics"] == end["topics"] == 3
    assert 0 <= end["duration_seconds"] < 5
    assert "duration_seconds" not in entry


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_log_context_tells_a_failure_and_lets_it_pass(
    error: BaseException, logged: Callable[[], JsonLines]
) -> None:
    with pytest.raises(type(error)) as caught, LogContext("op", get_logger("mine"), n=1):
        raise error
    assert caught.value is error
    _, end = logged()
    assert (end["event"], end["level"], end["logger"], end["n"]) == ("operation_failed", "error", "mine", 1)
    assert end["duration_seconds"] >= 0
    assert type(error).__name__ in end["exception"]


def test_log_contexts_nest(logged: Callable[[], JsonLines]) -> None:
    with LogContext("outer"), LogContext("inner"):
        pass
    order = [(line["operation"], line["event"]) for line in logged()]
    assert order == [
        ("outer", "operation_started"),
        ("inner", "operation_started"),
        ("inner", "operation_finished"),
        ("outer", "operation_finished"),
    ]


# The repeat filter


def record(message: object, *args: object, name: str = "lib", level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, message, args, None)


def test_a_line_of_a_library_passes_once_and_others_pass_beside_it() -> None:
    repeats = _RepeatFilter(interval=600)
    assert repeats.filter(record("retry %d", 1))
    assert not repeats.filter(record("retry %d", 2))
    assert repeats.filter(record("another"))
    assert repeats.filter(record("retry %d", 3, name="other.lib"))
    assert not repeats.filter(record("another"))


def test_the_next_line_that_passes_says_how_many_did_not() -> None:
    repeats = _RepeatFilter(interval=600)
    assert [repeats.filter(record("retry %d of 100%%", number)) for number in range(4)] == [
        True,
        False,
        False,
        False,
    ]
    repeats._interval = 0
    late = record("retry %d of 100%%", 4)
    assert repeats.filter(late)
    assert late.getMessage() == "retry 4 of 100% (3 more like it since)"
    after = record("retry %d of 100%%", 5)
    assert repeats.filter(after)
    assert after.getMessage() == "retry 5 of 100%"


@pytest.mark.parametrize("message", [["a", "list"], OSError("an error"), Unprintable(), "%d badly", None])
def test_no_message_makes_the_filter_raise_in_the_librarys_thread(message: object) -> None:
    repeats = _RepeatFilter(interval=600)
    assert repeats.filter(record(message, "x"))
    assert not repeats.filter(record(message, "x"))
    repeats._interval = 0
    assert repeats.filter(record(message, "x"))


def test_two_errors_that_say_the_same_are_the_same_line() -> None:
    repeats = _RepeatFilter(interval=600)
    assert [repeats.filter(record(OSError(text))) for text in ("a", "a", "b")] == [True, False, True]


def test_our_own_lines_and_debug_lines_always_pass() -> None:
    repeats = _RepeatFilter(interval=600)
    for _ in range(3):
        assert repeats.filter(record({"event": "ours"}))
        assert repeats.filter(record("debug", level=logging.DEBUG))


def test_the_memory_of_the_filter_is_bounded() -> None:
    repeats = _RepeatFilter(interval=600)
    assert all(repeats.filter(record(f"line {number}")) for number in range(5000))
    assert len(repeats._seen) <= 1001


def test_many_threads_let_one_line_pass() -> None:
    repeats = _RepeatFilter(interval=600)
    passed: list[bool] = []
    threads = [
        threading.Thread(target=lambda: passed.extend(repeats.filter(record("same")) for _ in range(100)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed.count(True) == 1
    assert len(passed) == 800
