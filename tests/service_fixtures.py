"""The real service as a process: started with an environment, its log read line by line, stopped by signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.brokers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.broker_fixtures import Topics

    StartService = Callable[..., "ServiceProcess"]

REPOSITORY = Path(__file__).resolve().parent.parent
PATIENCE = 60.0
"""Seconds that only guard against hanging: on a busy machine the start alone was seen to take 20."""
RIGHT = (
    *("messages_skipped", "messages_buffered", "messages_in_flight", "messages_spooled", "kafka_produced"),
    *("kafka_failed", "messages_dead_lettered", "messages_dropped", "messages_duplicate"),
    "messages_already_delivered",
)


class ServiceProcess:
    """One run of `main.py` (or of another command), with every line that it logs."""

    def __init__(self, folder: Path, environment: dict[str, str], command: list[str], cwd: Path) -> None:
        self.port = free_port()
        self.lines: list[dict[str, Any]] = []
        self.not_json: list[str] = []
        self._errors = (folder / f"stderr-{self.port}").open("w+")
        plain = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._child = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=plain
            | {
                "PYTHONPATH": str(REPOSITORY),
                "MONITORING_PORT": str(self.port),
                "METRICS_INTERVAL_SECONDS": "0.5",
                "SPOOL_PATH": str(folder / f"spool-{self.port}"),
                "SPOOL_MIN_FREE_BYTES": "0",
                "BACKFILL_ENABLED": "false",  # most tests compare Kafka with what the streams brought
            }
            | environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="service-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of one event so far."""
        return [line for line in list(self.lines) if line["event"] == name]

    def logged(self, name: str, within: float = PATIENCE, count: int = 1) -> dict[str, Any]:
        """Wait for the `count`-th line of an event and return it."""
        self.wait_for(lambda: len(self.events(name)) >= count, f"{name} logged {count} times", within)
        return self.events(name)[count - 1]

    def wait_for(self, condition: Callable[[], Any], what: str, within: float = PATIENCE) -> Any:
        """Poll until the condition holds and return what it said."""
        deadline = time.monotonic() + within
        while not (said := condition()):
            assert time.monotonic() < deadline, (
                f"not {what} within {within} s; last: {self.lines[-3:]} {self.errors}"
            )
            time.sleep(0.03)  # most conditions ask the service, which costs both of us
        return said

    def get(self, path: str) -> tuple[int, bytes]:
        """Ask one of the HTTP endpoints."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=15) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def status(self) -> dict[str, Any]:
        """Return /status."""
        return json.loads(self.get("/status")[1])

    def ready(self, within: float = PATIENCE) -> None:
        """Wait until the service says that it is ready."""
        self.logged("service_started", within)
        self.wait_for(self._says_that_it_is_ready, "ready", within)

    def _says_that_it_is_ready(self) -> bool:
        try:
            return self.get("/ready")[0] == 200
        except OSError:  # on a machine that stood still the endpoint gives up a request, as any client may see
            return False

    def send(self, number: int = signal.SIGTERM) -> None:
        self._child.send_signal(number)

    def wait(self, within: float = PATIENCE) -> int:
        """Wait for the end and the last line; return the exit code."""
        try:
            code = self._child.wait(within)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            raise AssertionError(
                f"still running after {within} s; last: {self.lines[-5:]} {self.errors}"
            ) from None
        self._reader.join(5)
        return code

    def stop(self, number: int = signal.SIGTERM, within: float = PATIENCE) -> int:
        """Send a signal and wait for the end."""
        self.send(number)
        return self.wait(within)

    @property
    def final(self) -> dict[str, Any]:
        """The last metrics; checks that they and `service_stopped` are the last two lines."""
        assert [line["event"] for line in self.lines[-2:]] == ["service_metrics", "service_stopped"], self.errors
        assert self.lines[-2]["final"] is True
        return self.lines[-2]

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        self._errors.flush()
        return Path(self._errors.name).read_text()

    def end(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        self._reader.join(5)
        if self._child.stdout:
            self._child.stdout.close()
        self._errors.close()

    def _read(self) -> None:
        assert self._child.stdout
        for line in self._child.stdout:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.not_json.append(line)


def balanced(metrics: dict[str, Any]) -> bool:
    """Whether the contract's equation holds in these metrics."""
    left = ("messages_received", "messages_recovered", "messages_backfilled")
    return sum(metrics[name] for name in left) == sum(metrics[name] for name in RIGHT)


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Start `start_service(exchange.ws_url, topics, **variables)`; whatever still runs afterwards is killed.

    In a folder of the test, where no `.env` of the user is.
    """
    started: list[ServiceProcess] = []

    def start(
        ws_url: str | None = None,
        topics: Topics | None = None,
        /,
        command: tuple[str, ...] = (str(REPOSITORY / "main.py"),),
        cwd: Path | None = None,
        **variables: object,
    ) -> ServiceProcess:
        environment = dict(topics.environment) if topics else {}
        if ws_url:
            environment["BINANCE_WS_BASE_URL"] = ws_url
            environment["BINANCE_REST_BASE_URL"] = ws_url.replace("ws://", "http://", 1).removesuffix("/ws")
        environment |= {name: str(value) for name, value in variables.items()}
        started.append(ServiceProcess(tmp_path, environment, list(command), cwd or tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.end()
