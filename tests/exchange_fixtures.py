"""Fixtures of the simulated exchange: in this process, several of them, and as a process of its own."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import websocket

from sandbox.exchange import Exchange, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
_PATIENCE_S = 30


class Client:
    """A websocket-client connection with the few verbs that tests need; control frames are its own business."""

    def __init__(self, url: str) -> None:
        self.socket = websocket.create_connection(url, timeout=_PATIENCE_S)

    def frame(self) -> tuple[int, bytes]:
        """Read the next frame of any kind: opcode and payload."""
        opcode, frame = self.socket.recv_data_frame(control_frame=True)
        return opcode, frame.data

    def text(self) -> str:
        """Read the next data frame; pings are answered by the library on the way."""
        _, data = self.socket.recv_data()
        return data.decode()

    def message(self) -> Any:
        """Read the next data frame as JSON."""
        return json.loads(self.text())

    def ask(self, method: str, params: list[Any] | None = None, number: Any = 1) -> Any:
        """Send a control message and read up to its answer."""
        body = {"method": method, "id": number} | ({} if params is None else {"params": params})
        self.socket.send(json.dumps(body))
        return self.answer()

    def answer(self) -> Any:
        """Read up to the next answer to a control message."""
        while True:
            message = self.message()
            if isinstance(message, dict) and ("result" in message or "error" in message):
                return message

    def subscribe(self, *streams: str) -> None:
        """Subscribe and wait for the ack."""
        assert self.ask("SUBSCRIBE", list(streams)) == {"result": None, "id": 1}

    def close_code(self) -> tuple[int, str]:
        """Read on until the exchange's close frame: its code and reason."""
        while True:
            opcode, data = self.frame()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return int.from_bytes(data[:2], "big"), data[2:].decode()


def eventually(condition: Callable[[], Any], within: float = _PATIENCE_S) -> Any:
    """Poll until the condition holds and give what it said; fail after the deadline."""
    deadline = time.monotonic() + within
    while not (said := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)
    return said


@dataclass
class ExchangeProcess:
    """The exchange as `python -m sandbox.exchange`, with what it printed when it accepted."""

    process: subprocess.Popen[str]
    started: dict[str, Any]

    def stop(self) -> int:
        """Ask it to end and give its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_PATIENCE_S)


@pytest.fixture
def exchange(request: pytest.FixtureRequest) -> Iterator[Exchange]:
    """One exchange; rate 0 unless parametrised indirectly with a dict of settings."""
    settings = Settings(**getattr(request, "param", {}))
    with Exchange(settings) as running:
        yield running


@pytest.fixture
def connect() -> Iterator[Callable[[str], Client]]:
    """Open connections that are dropped at the end of the test."""
    with ExitStack() as stack:

        def opened(url: str) -> Client:
            client = Client(url)
            stack.callback(client.socket.shutdown)
            return client

        yield opened


@pytest.fixture
def exchange_factory() -> Iterator[Callable[..., Exchange]]:
    """Start any number of exchanges: `exchange_factory(rate=500, symbols=("BTCUSDT",))`."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Exchange(Settings(**settings)))


@pytest.fixture
def exchange_process() -> Iterator[Callable[..., ExchangeProcess]]:
    """Start `python -m sandbox.exchange` on free ports: `exchange_process("--rate", "500")`."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(_process(arguments))


@contextmanager
def _process(arguments: tuple[str, ...]) -> Iterator[ExchangeProcess]:
    command = [sys.executable, "-m", "sandbox.exchange", "--port", "0", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
        assert ready, "the exchange did not start in time"
        yield ExchangeProcess(process, json.loads(process.stdout.readline()))
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(_PATIENCE_S)
        process.stdout.close()
