"""`python -m sandbox.exchange`, and the exchange inside a test process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from sandbox.exchange import Exchange, Mix, Settings, SettingsError
from sandbox.exchange.__main__ import main
from sandbox.exchange.counter import CountingClient
from tests.exchange_fixtures import REPOSITORY, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.exchange_fixtures import Client, ExchangeProcess

COMMAND = [sys.executable, "-m", "sandbox.exchange"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_with_clients_connected(
    number: signal.Signals, exchange_process: Callable[..., ExchangeProcess]
) -> None:
    process = exchange_process("--rate", "2000")
    started = process.started
    assert started["event"] == "exchange_started"
    client = CountingClient(f"{started['ws']}/btcusdt@trade")
    assert client.read()
    with urllib.request.urlopen(f"{started['rest']}/api/v3/ping", timeout=5) as answer:  # noqa: S310 - our own
        assert json.load(answer) == {}
    began = time.monotonic()
    process.process.send_signal(number)
    assert process.process.wait(10) == 0
    assert time.monotonic() - began < 8.0
    client.close()


def test_the_named_port_and_symbols_are_used(
    exchange_process: Callable[..., ExchangeProcess], connect: Callable[[str], Client]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = exchange_process("--port", str(port), "--symbols", "500", "--rate", "500", "--seed", "3")
    assert process.started["ws"] == f"ws://127.0.0.1:{port}/ws"
    assert process.started["symbols"] == 500
    client = connect(f"{process.started['ws']}/!miniTicker@arr")
    while len(client.message()) <= 50:
        pass


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["--rate", "fast"], "argument --rate: invalid float value: 'fast'"),
        (["--rate", "-1"], "rate: must not be negative"),
        (["--mix", "trade=1,aggTrade=2"], "mix: an aggregate has at least one trade"),
        (["--mix", "trades=1"], "mix: 'trades' is none of trade, aggTrade, depth, bookTicker"),
        (["--status", "ASLEEP"], "status: 'ASLEEP' is none of TRADING"),
        (["--symbols", ""], "symbols: at least one"),
        (["--replay", "/nowhere.jsonl"], "/nowhere.jsonl"),
    ],
)
def test_a_wrong_setting_is_named_and_ends_it_with_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = None
    try:
        code = main(["--port", "0", *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert complaint in capsys.readouterr().err


def test_a_wrong_setting_shows_no_traceback() -> None:
    ended = subprocess.run(
        [*COMMAND, "--rate", "-1"], cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_named(
    exchange_factory: Callable[..., Exchange], capsys: pytest.CaptureFixture[str]
) -> None:
    port = exchange_factory().port
    assert main(["--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_help_explains_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for flag in ("--seed", "--rate", "--mix", "--ping-interval", "--lifetime", "--replay", "--slow-client"):
        assert flag in shown


def test_several_run_beside_each_other_and_stop_twice_without_complaint(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    first, second = exchange_factory(seed=1), exchange_factory(seed=2)
    one, other = connect(f"{first.ws_url}/btcusdt@trade"), connect(f"{second.ws_url}/btcusdt@trade")
    first.burst(1, "BTCUSDT")
    second.burst(2, "BTCUSDT")
    assert one.message()["t"] != other.message()["t"]
    assert [each.sent()["total"]["count"] for each in (first, second)] == [1, 2]
    first.stop()
    first.stop()


def test_the_same_settings_give_the_same_frames(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    told = []
    for _ in range(2):
        exchange = exchange_factory(seed=11, symbols=("BTCUSDT", "ETHUSDT"))
        client = connect(f"{exchange.ws_url}/btcusdt@trade/ethusdt@bookTicker/btcusdt@depth@100ms")
        exchange.burst(400)
        count = exchange.sent()["total"]["count"]
        messages = [client.message() for _ in range(count)]
        told.append([{key: each[key] for key in each if key not in "ET"} for each in messages])
    assert told[0] == told[1]


def test_a_port_that_is_taken_is_an_error_in_process_too(exchange_factory: Callable[..., Exchange]) -> None:
    port = exchange_factory().port
    other = Exchange(Settings(port=port))
    with pytest.raises(OSError, match="address already in use"):
        other.start()


def test_an_exchange_that_failed_says_so(exchange_factory: Callable[..., Exchange]) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    exchange = exchange_factory()
    exchange._loop.call_soon_threadsafe(lambda: exchange.core.spawn(fail()))
    eventually(lambda: exchange.core.failure)
    with pytest.raises(RuntimeError, match="the exchange has failed"):
        exchange.connections()


def test_settings_refuse_what_cannot_be() -> None:
    for wrong in ({"rate": -1}, {"symbols": ()}, {"symbols": ("A", "A")}, {"tick_ms": 0}, {"status": "?"}):
        with pytest.raises(SettingsError):
            Settings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingsError):
        Mix(0, 0, 0, 0)
