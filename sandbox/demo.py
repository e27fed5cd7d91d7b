"""`make demo` and `make run`: everything on this machine, in one terminal, ended by Ctrl+C.

The demo starts the embedded broker, the simulated exchange (`--live`: the live one takes its place), the topics,
the service as `python main.py`, and `consumer_example.py` as the view of what arrives in Kafka. Ctrl+C or SIGTERM
ends them in the direction of flow and says what was delivered. Children have sessions of their own, so that
Ctrl+C reaches only this program. Exit code: the service's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0.12, imported on 3.11
    from kafka.admin import KafkaAdminClient
    from kafka.errors import KafkaError

from config.faults import SettingsError
from config.settings import load_settings
from sandbox.brokers import BrokerError, EmbeddedBroker, free_port
from sandbox.near import ask
from src import topics
from src.commands import one_line

if TYPE_CHECKING:
    from config.binance import BinanceConfig
    from config.kafka import KafkaConfig

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "data" / "demo"
KEPT_MINUTES = 5
"""The embedded broker holds all records in memory and writes them to one file, so it keeps few."""
_ANSWER_MS = 5_000
_START_SECONDS = 20.0
_READY_SECONDS = 10.0
_STOP_SECONDS = 40.0
_OF_THE_DEMO = {
    "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",  # with it no login, certificate or key of a `.env` is used
    "KAFKA_REPLICATION_FACTOR": "1",
    "SHARD_COUNT": "1",
    "SHARD_INDEX": "0",
    "MONITORING_HOST": "127.0.0.1",
    "LOG_FORMAT": "json",  # the last lines are read from it
    "LOG_LEVEL": "INFO",
}
"""What the demo decides, whatever the user's `.env` says of a Kafka of his own."""
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DemoError(Exception):
    """Something did not start; the message says what and where its log is."""


class Part:
    """One program of the demo, as a child process."""

    def __init__(
        self, name: str, arguments: list[str], environment: dict[str, str], output: IO[bytes] | None
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=output or subprocess.PIPE,
            start_new_session=True,
        )

    def first_line(self) -> dict[str, Any]:
        """Return the JSON line that it prints when it is ready."""
        line = self.process.stdout.readline() if self.process.stdout else b""
        if not line:
            raise DemoError(f"{self.name} did not start")
        parsed: dict[str, Any] = json.loads(line)
        return parsed

    def stop(self) -> int:
        """Ask it to end and wait; return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            if self.process.stdout:
                self.process.stdout.close()


def main() -> int:
    """Read the arguments, run the demo, return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--live", action="store_true", help="read the live exchange instead of the simulated one")
    parser.add_argument("--rate", type=float, default=200, help="messages a second of the simulated exchange")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for the log and the broker's data")
    arguments = parser.parse_args()
    for number in _STOP_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        with ExitStack() as stack:
            return _demo(stack, arguments)
    except (DemoError, BrokerError, SettingsError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 0  # before the service ran


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _demo(stack: ExitStack, arguments: argparse.Namespace) -> int:
    os.environ.update(_OF_THE_DEMO)  # for the settings here as for those of the parts
    settings = load_settings()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    _say("starting the embedded broker")
    broker = stack.enter_context(EmbeddedBroker(folder / f"broker-{os.getpid()}"))
    stack.callback(shutil.rmtree, broker.folder, ignore_errors=True)
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "MONITORING_PORT": str(free_port()),
        "SPOOL_PATH": str(broker.folder / "spool"),
    }
    _create_topics(settings.kafka.model_copy(update={"bootstrap_servers": (broker.bootstrap_servers,)}))
    exchange = None if arguments.live else _start_exchange(stack, arguments.rate, settings.binance, environment)
    log = folder / "service.log"
    _say("starting the service")
    service = Part("the service", [str(ROOT / "main.py")], environment, stack.enter_context(log.open("wb")))
    stack.callback(service.stop)
    view = None
    try:
        _await_service(service, environment, log)
        _introduce(broker, environment, log)
        command = [str(ROOT / "consumer_example.py"), "--from-beginning"]
        view = Part("the consumer", command, environment, sys.stdout.buffer)
        stack.callback(view.stop)
        _watch([service, view], arguments.seconds, f"{_monitoring(environment)}/ready")
    except KeyboardInterrupt:
        pass
    for number in _STOP_SIGNALS:  # the rest must run to its end
        signal.signal(number, signal.SIG_IGN)
    return _end(service, view, exchange, log)


def _introduce(broker: EmbeddedBroker, environment: dict[str, str], log: Path) -> None:
    _say(f"broker    {broker.bootstrap_servers} (keeps the last {KEPT_MINUTES} minutes)")
    _say(f"exchange  {environment.get('BINANCE_WS_BASE_URL', 'live')}")
    _say(f"service   log in {log}, metrics on {_monitoring(environment)}/metrics")
    _say(f"          live: .venv/bin/python monitoring.py --url {_monitoring(environment)} in another terminal")
    _say("what arrives in Kafka follows; Ctrl+C ends all of it\n")


def _create_topics(config: KafkaConfig) -> None:
    retention = {"retention.ms": str(KEPT_MINUTES * 60_000)}
    wanted = [replace(topic, configs={**topic.configs, **retention}) for topic in topics.wanted_topics(config)]
    try:
        with KafkaAdminClient(**config.client_options(), bootstrap_timeout_ms=_ANSWER_MS) as admin:
            topics.create_topics(admin, wanted)
    except (KafkaError, topics.TopicError) as error:
        raise DemoError(f"the topics were not created: {one_line(error)}") from error


def _start_exchange(stack: ExitStack, rate: float, wanted: BinanceConfig, environment: dict[str, str]) -> str:
    """Start the simulated exchange, point the service at it, and return the address of its record."""
    _say("starting the simulated exchange")
    command = ["-m", "sandbox.exchange", "--port", "0", "--rate", str(rate), *_symbols(wanted)]
    exchange = Part("the exchange", command, {}, None)
    stack.callback(exchange.stop)
    started = exchange.first_line()
    environment |= {"BINANCE_WS_BASE_URL": started["ws"], "BINANCE_REST_BASE_URL": started["rest"]}
    return str(started["control"])


def _symbols(wanted: BinanceConfig) -> list[str]:
    """Return the option for the symbols that the service reads; empty where the exchange's own will do."""
    streams = () if wanted.needs_listing else wanted.named_streams()
    symbols = dict.fromkeys(stream.split("@")[0].upper() for stream in streams if not stream.startswith("!"))
    return ["--symbols", ",".join(symbols)] if symbols else []


def _await_service(service: Part, environment: dict[str, str], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(f"{_monitoring(environment)}/health"):
        if service.process.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"the service did not start; see {log}")
        time.sleep(0.1)


def _watch(parts: list[Part], seconds: float | None, ready_url: str) -> None:
    """Wait for the end of a part, or the end of the time; say once when nothing will be seen."""
    deadline = time.monotonic() + seconds if seconds else float("inf")
    look_at = time.monotonic() + _READY_SECONDS
    while all(part.process.poll() is None for part in parts) and time.monotonic() < deadline:
        time.sleep(0.2)
        if time.monotonic() > look_at:
            look_at = float("inf")
            if not _answers(ready_url):
                _say(f"the service is not ready yet; {ready_url} and its log say why")


def _end(service: Part, view: Part | None, exchange: str | None, log: Path) -> int:
    exit_code = service.stop()
    if exit_code == -signal.SIGTERM:  # before it had begun: nothing was read
        exit_code = 0
    if view is not None:
        time.sleep(1.0)  # it reads what came last
        view.stop()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    metrics: dict[str, Any] = next((line for line in reversed(lines) if line.get("final")), {})
    sent = _sent(exchange) if exchange else None
    _say("")
    if sent is not None:
        _say(f"the exchange sent           {sent:>9} events")
    for name, meaning in _SUMMARY.items():
        _say(f"the service {meaning:16}{metrics.get(name, 0):>9}")
    verdict = _last_error(lines) if exit_code else "everything delivered"
    _say(f"the service's exit code     {exit_code:>9}  ({verdict})")
    return exit_code


_SUMMARY = {
    "messages_received": "received",
    "messages_backfilled": "fetched by REST",
    "kafka_produced": "delivered",
    "messages_skipped": "skipped",
    "messages_dropped": "dropped",
    "kafka_failed": "failed",
}


def _last_error(lines: list[dict[str, Any]]) -> str:
    told = (line for line in reversed(lines) if line["level"] in {"error", "critical"})
    last = next(told, {"event": "see its log"})
    return ": ".join(str(last[key]) for key in ("event", "error") if key in last)


def _sent(exchange: str) -> int:
    return int(json.loads(ask(f"{exchange}/control/sent", timeout=5))["total"]["events"])


def _answers(url: str) -> bool:
    try:
        ask(url, timeout=1)
    except OSError:
        return False
    return True


def _monitoring(environment: dict[str, str]) -> str:
    return f"http://127.0.0.1:{environment['MONITORING_PORT']}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
