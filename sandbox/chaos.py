"""`python -m sandbox.chaos --seconds N --seed S`: Kafka fails in a seeded random sequence, with verdicts.

The simulated exchange sends 5,000 messages a second to the service as `python main.py`; between it and the broker
stands a TCP proxy. Each fault lasts a few seconds, then everything has to drain, and what is in Kafka is compared
with the exchange's own record. Exit code: 0, or 1 when something is missing, in disorder, or there more often
than was counted as possible.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0.12, imported on 3.11
    from kafka import KafkaConsumer, TopicPartition

from sandbox.brokers import BROKERS, Broker, EmbeddedBroker, free_port
from sandbox.completeness import STREAM_TYPES, Findings, Lines
from sandbox.exchange import Exchange, Limits, Settings
from sandbox.near import ask
from sandbox.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_ROOT = Path(__file__).parent.parent
_SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT")
_TOPICS = ("binance-raw-events", "binance-trades", "binance-depth")
_PATIENCE_SECONDS = 90.0
_LIMITS = Limits(ping_interval_s=1.0)  # so that a connection is not taken for silent while the market rests
_SHUTDOWN_SECONDS = 5
_SLACK_SECONDS = 1.0
_UNDELIVERED = (
    *("messages_buffered", "messages_in_flight", "messages_spooled"),
    *("kafka_failed", "messages_dead_lettered", "messages_dropped"),
)


class ChaosError(Exception):
    """Something did not come about in time; the message says what."""


@dataclass
class Verdict:
    """One line of the table."""

    fault: str
    seconds: float
    sent: int
    delivered: int
    possible: int
    twice: int
    faults: list[str]
    memory_mb: float = 0.0
    """The most that any run of the service had resident so far."""

    def __str__(self) -> str:
        order = "broken" if any(" after " in fault for fault in self.faults) else "kept"
        verdict = "; ".join(self.faults) or ("too many twice" if self.twice > self.possible else "ok")
        numbers = f"{self.sent:>9} {self.delivered:>9} {self.possible:>8} {self.twice:>6} {self.memory_mb:>7.0f}"
        return f"{self.fault:<16} {self.seconds:>6.1f} {numbers}  {order:<6}  {verdict}"

    @property
    def good(self) -> bool:
        """Whether everything is as promised."""
        return not self.faults and self.twice <= self.possible


class Ended(NamedTuple):
    """How a run of the service ended that was asked to."""

    code: int
    seconds: float
    """From its taking note of the signal to its last line."""
    metrics: dict[str, Any]
    """Its last ones."""

    def fault(self, *, kafka_well: bool) -> str:
        """Say what is not as promised of an end by SIGTERM, empty when all is.

        What Kafka did not take has to lie on disk, and is counted there; nothing else makes the exit code 1.
        """
        if self.seconds > _SHUTDOWN_SECONDS + _SLACK_SECONDS:
            return f"{self.seconds:.1f} s to stop"
        left = {name: self.metrics[name] for name in _UNDELIVERED if self.metrics[name]}
        expected = 1 if left else 0
        wrong = self.code != expected or (left and (kafka_well or left.keys() != {"messages_spooled"}))
        return f"exit code {self.code}, undelivered {left or 'nothing'}" if wrong else ""


class Service:
    """The service as a process; its metrics over HTTP."""

    def __init__(
        self, folder: Path, url: str, bootstrap_servers: str, variables: Mapping[str, str] | None = None
    ) -> None:
        self._port = free_port()
        self._log = (folder / "service.log").open("ab")
        environment = {
            "BINANCE_WS_BASE_URL": url,
            "BINANCE_SYMBOLS": ",".join(_SYMBOLS),
            "BINANCE_STREAM_TYPES": STREAM_TYPES,
            "CONNECTION_RECONNECT_INTERVAL": "0.2",
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "MONITORING_PORT": str(self._port),
            "SPOOL_PATH": str(folder / "spool"),
            "SPOOL_MIN_FREE_BYTES": "0",
            "SHUTDOWN_TIMEOUT_SECONDS": str(_SHUTDOWN_SECONDS),
            "BACKFILL_ENABLED": "false",  # Kafka is compared with what the streams brought
            **(variables or {}),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(_ROOT / "main.py")], cwd=folder, env=os.environ | environment, stdout=self._log
        )

    def metrics(self) -> dict[str, Any]:
        """Return /status, nothing while it does not answer."""
        try:
            return dict(json.loads(ask(f"http://127.0.0.1:{self._port}/status", timeout=5)))
        except OSError:
            return {}

    def memory_mb(self) -> float:
        """Return the most that it had resident; 0 where the system does not tell."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return 0.0
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def stop(self) -> Ended:
        """Stop it in an orderly way."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ChaosError(f"not ended {_PATIENCE_SECONDS:.0f} s after SIGTERM") from error
        self._log.close()
        lines = Path(self._log.name).read_text().splitlines()[::-1]

        def last(event: str) -> dict[str, Any]:
            return next(dict(json.loads(line)) for line in lines if f'"event": "{event}"' in line)

        stopping, stopped = (
            datetime.fromisoformat(last(event)["timestamp"]) for event in ("service_stopping", "service_stopped")
        )
        return Ended(code, (stopped - stopping).total_seconds(), last("service_metrics"))

    def end(self) -> None:
        """Make sure that it is gone."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Chaos:
    """A broker, a proxy, an exchange, a service, and what has been counted so far."""

    def __init__(self, stack: ExitStack, folder: Path, broker: str, rate: float, seed: int) -> None:
        self._chance = random.Random(seed)
        self._folder = folder
        self._broker: Broker = stack.enter_context(BROKERS[broker](folder / "broker"))
        self._proxy = stack.enter_context(Proxy(self._broker.port))
        settings = Settings(rate=rate, seed=seed, symbols=_SYMBOLS, limits=_LIMITS)
        self._exchange = stack.enter_context(Exchange(settings))
        self._possible = 0
        """Possible duplicates of the runs of the service that have ended."""
        self._memory_mb = 0.0
        self._ends: list[str] = []
        """What was not as promised of the service's ends since the last verdict."""
        self._service = self._started()
        stack.callback(lambda: self._service.end())  # noqa: PLW0108 - of the last run, not of this one
        self._until(lambda: self._service.metrics().get("kafka_produced", 0) > 0, "the first event in Kafka")
        self.faults: list[tuple[str, Callable[[float], object]]] = [
            ("frozen", self._frozen),
            ("killed", self._killed),
            ("held back", self._between(self._proxy.hold)),
            ("swallowed", self._between(self._proxy.swallow)),
            ("refused", self._between(self._proxy.refuse)),
            ("delayed", self._between(lambda: self._proxy.delay(0.2))),
            ("resets", self._resets),
            ("service stopped", self._service_stopped),
        ]

    def next(self) -> Verdict:
        """Let one fault happen and judge."""
        name, fault = self._chance.choice(self.faults)
        seconds = self._chance.uniform(1.5, 5.0)
        fault(seconds)
        self._until(lambda: self._service.metrics().get("messages_spooled") == 0, f"drained after: {name}")
        self._exchange.command("rate", 0)
        findings = self._compared(name)
        possible = self._possible + self._service.metrics()["possible_duplicates"]
        self._exchange.command("rate", self._exchange.settings.rate)
        ends, self._ends = self._ends, []
        return Verdict(
            name,
            seconds,
            findings.sent,
            findings.delivered,
            possible,
            findings.duplicates,
            findings.faults + ends,
            self._peak(),
        )

    def _compared(self, name: str) -> Findings:
        """Compare Kafka with what was sent, if nothing was meanwhile: depth is gathered for 100 ms."""
        while True:
            before = self._exchange.command("sent")["streams"]
            self._until(self._at_rest, f"at rest after: {name}")
            lines = self._lines()
            if self._exchange.command("sent")["streams"] == before:
                return lines.compared(before)

    def _peak(self) -> float:
        self._memory_mb = max(self._memory_mb, self._service.memory_mb())
        return self._memory_mb

    # Faults

    def _frozen(self, seconds: float) -> None:
        self._broker.freeze()
        time.sleep(seconds)
        self._broker.thaw()

    def _killed(self, seconds: float) -> None:
        if isinstance(self._broker, EmbeddedBroker):  # or it would lose what it acknowledged last
            self._proxy.refuse()
            self._broker.wait_until_durable()
        self._broker.kill()
        time.sleep(seconds)
        self._broker.start()
        self._proxy.flow()

    def _between(self, command: Callable[[], None]) -> Callable[[float], None]:
        def fault(seconds: float) -> None:
            command()
            time.sleep(seconds)
            self._proxy.flow()

        return fault

    def _resets(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        pauses = random.Random(seconds)  # of its own: other faults may be drawn meanwhile
        while time.monotonic() < until:
            self._proxy.reset()
            time.sleep(pauses.uniform(0.05, 0.5))

    def _service_stopped(self, seconds: float) -> None:
        self._proxy.refuse()
        time.sleep(seconds)
        self._peak()
        self._stop(kafka_well=False)
        self._proxy.flow()
        self._service = self._started()

    def _stop(self, *, kafka_well: bool) -> None:
        """Stop the service by SIGTERM, and judge its end."""
        ended = self._service.stop()
        self._possible += ended.metrics["possible_duplicates"]
        if fault := ended.fault(kafka_well=kafka_well):
            self._ends.append(fault)

    # What is awaited and asked

    def _started(self) -> Service:
        return Service(self._folder, self._exchange.ws_url, self._proxy.bootstrap_servers)

    def _at_rest(self) -> bool:
        before = self._exchange.command("sent")["total"]["events"]
        time.sleep(0.3)
        metrics = self._service.metrics()
        waiting = ("messages_buffered", "messages_in_flight", "messages_spooled")
        same = self._exchange.command("sent")["total"]["events"] == before
        return same and bool(metrics) and not any(metrics[name] for name in waiting)

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not holds():
            if (code := self._service.exit_code) is not None:
                raise ChaosError(f"the service has ended with exit code {code}: {what}")
            if time.monotonic() > deadline:
                raise ChaosError(f"not within {_PATIENCE_SECONDS:.0f} s: {what}; {self._service.metrics()}")
            time.sleep(0.05)

    def _lines(self) -> Lines:
        return Lines(value for _, value in self._records())

    def _records(self, read: dict[TopicPartition, int] | None = None) -> Iterator[tuple[bytes | None, bytes]]:
        """Yield key and value of every record, in the order of each partition.

        `read` says up to where that has been done before, and is kept.
        """
        read = {} if read is None else read
        consumer = KafkaConsumer(bootstrap_servers=self._broker.bootstrap_servers, enable_auto_commit=False)
        try:
            parts = [
                TopicPartition(topic, number)
                for topic in _TOPICS
                for number in consumer.partitions_for_topic(topic) or ()
            ]
            consumer.assign(parts)
            begins, ends = consumer.beginning_offsets(parts), consumer.end_offsets(parts)
            for part in parts:
                consumer.seek(part, read.get(part, begins[part]))
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while any(consumer.position(part) < ends[part] for part in parts):
                if time.monotonic() > deadline:
                    raise ChaosError("not all records could be read")
                for batch in consumer.poll(200).values():
                    yield from ((one.key, one.value) for one in batch)
            read |= {part: consumer.position(part) for part in parts}
        finally:
            consumer.close(autocommit=False)


def main() -> int:
    """Run the sequence and print the table; return the exit code."""
    asked = _command_line()
    columns = f"{'sent':>9} {'delivered':>9} {'possible':>8} {'twice':>6} {'peak MB':>7}"
    print(f"{'fault':<16} {'s':>6} {columns}  order   verdict")  # noqa: T201
    good = True
    until = time.monotonic() + asked.seconds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        try:
            chaos = Chaos(stack, folder, asked.broker, asked.rate, asked.seed)
            while time.monotonic() < until:
                verdict = chaos.next()
                print(verdict, flush=True)  # noqa: T201
                good &= verdict.good
        except ChaosError as error:
            print(error)  # noqa: T201
            good = False
    return 0 if good else 1


def _command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="no fault begins after this (default: 60)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rate", type=float, default=5000.0, help="messages a second (default: 5000)")
    parser.add_argument("--broker", choices=BROKERS, default="embedded")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
