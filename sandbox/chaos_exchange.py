"""`python -m sandbox.chaos_exchange --seconds N --seed S`: the exchange fails in a seeded random sequence.

The simulated exchange keeps its market running meanwhile and sends 2,000 messages a second. Connections are cut,
muted, refused, shut down; ids are wrong, missing, repeated; REST is slow, refuses, bans; the service is stopped
and killed. After each fault everything missing has to be filled, and Kafka alone has to show each id between the
first and the last once and in order, and a whole order book. With `--kafka` the broker fails as well. Exit code:
0, or 1 when something is missing, twice, or in disorder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.brokers import BROKERS
from sandbox.chaos import Chaos, ChaosError, Service
from sandbox.gapless import Kept

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM_TYPES = "trade,aggTrade,depth@100ms"
_SETTINGS = {
    "BACKFILL_ENABLED": "true",
    "BINANCE_STREAM_TYPES": STREAM_TYPES,
    "BACKFILL_WEIGHT_PER_MINUTE": "6000",
    "CHECKPOINT_INTERVAL_SECONDS": "1",
    "CONNECTION_BATCH_TIMEOUT_SECONDS": "0.5",
    "CONNECTION_MAX_RETRIES": "0",
    "CONNECTION_MAX_RECONNECT_INTERVAL": "1",
    "CONNECTION_SILENCE_TIMEOUT_SECONDS": "2",
    "CONNECTION_TIMEOUT_SECONDS": "2",
}


class ExchangeChaos(Chaos):
    """The same stack; what fails is the exchange, and the service."""

    def __init__(self, *arguments: Any, kafka_too: bool) -> None:  # noqa: ANN401 - as Chaos takes them
        super().__init__(*arguments)
        kafka_faults = self.faults if kafka_too else []
        exchange = self._exchange
        self.faults: list[tuple[str, Callable[[float], object]]] = [
            ("cut", lambda _: exchange.cut()),
            ("cuts", self._cuts),
            ("closed", lambda _: exchange.close(code=self._chance.choice((1000, 1001, 1008, 1011)))),
            ("mute", lambda seconds: exchange.mute(seconds=seconds)),
            ("half open", lambda seconds: exchange.half_open(seconds=seconds)),
            ("refused", self._refused),
            ("handshake", self._handshake),
            ("shutdown", lambda seconds: exchange.shutdown(cut_after_s=seconds)),
            ("shutdown, cut", self._cut_while_rotating),
            ("cut subscribing", self._cut_while_subscribing),
            ("cut filling", self._cut_while_filling),
            ("wrong ids", self._tampered("wrong")),
            ("repeated ids", self._tampered("repeated")),
            ("missing ids", self._tampered("missing")),
            ("disordered ids", self._tampered("out_of_order")),
            ("REST slow", self._rest(delay_s=0.5)),
            ("REST 500", self._rest(status=500)),
            ("REST 429", self._rest(status=429, retry_after_s=2)),
            ("REST 418", self._rest(status=418, retry_after_s=2)),
            ("REST behind", self._rest(lag_s=1.0)),
            ("stopped", self._service_stopped),
            ("killed", self._service_killed),
            ("killed filling", self._killed_while_filling),
            *kafka_faults,
        ]
        self.happened: Counter[str] = Counter()

    def judged(self) -> tuple[str, bool]:
        """Let one fault happen; return the line of the table, and whether all is as promised."""
        due = [each for each in self.faults if self.happened[each[0]] == self.rounds]
        name, fault = self._chance.choice(due)
        self.happened[name] += 1
        seconds = self._chance.uniform(1.0, 3.0)
        fault(seconds)
        self._until(self._whole, f"connected and filled after: {name}")
        self._exchange.command("rate", 0)
        self._until(self._at_rest, f"at rest after: {name}")
        self._until(self._whole, f"filled after: {name}")
        kept = Kept(self._records())
        metrics = self._service.metrics()
        possible = self._possible + metrics["possible_duplicates"] + metrics["messages_recovered"]
        faults = kept.faults(
            twice_allowed=possible, order_given_up=bool(metrics["order_given_up"] or self._gave_up)
        )
        self._exchange.command("rate", self._exchange.settings.rate)
        accounts = kept.accounts.values()
        numbers = (sum(each.events for each in accounts), sum(each.backfilled for each in accounts))
        snapshots = sum(book.snapshots for book in kept.books.values())
        verdict = "; ".join(faults) or "ok"
        counted = f"{numbers[0]:>9} {numbers[1]:>9} {snapshots:>9} {metrics['gaps_opened']:>7}"
        return f"{name:<16} {seconds:>5.1f} {counted}  {verdict}", not faults

    @property
    def rounds(self) -> int:
        """How often every fault has happened at least."""
        return min(self.happened[name] for name, _ in self.faults)

    # Faults

    def _cuts(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._exchange.cut()
            time.sleep(self._chance.uniform(0.1, 0.8))

    def _refused(self, seconds: float) -> None:
        self._exchange.refuse(seconds)
        self._exchange.cut()
        time.sleep(seconds)

    def _handshake(self, _: float) -> None:
        self._exchange.handshake_status(503, connections=2)
        self._exchange.stall_handshake(1)
        self._exchange.cut()

    def _cut_while_rotating(self, seconds: float) -> None:
        self._exchange.shutdown(cut_after_s=seconds)
        time.sleep(self._chance.uniform(0.0, 0.5))
        self._exchange.cut()

    def _cut_while_subscribing(self, _: float) -> None:
        self._exchange.after(0, "cut", "next")
        self._exchange.cut()

    def _cut_while_filling(self, seconds: float) -> None:
        self._exchange.rest(delay_s=0.3, count=20)
        self._exchange.cut()
        time.sleep(seconds)
        self._exchange.cut()

    def _tampered(self, mode: str) -> Callable[[float], None]:
        def fault(_: float) -> None:
            symbol = self._chance.choice(("btcusdt", "ethusdt", "bnbusdt"))
            stream = self._chance.choice(("trade", "aggTrade"))
            self._exchange.tamper(f"{symbol}@{stream}", mode, count=self._chance.choice((1, 3)))

        return fault

    def _rest(self, **fault: Any) -> Callable[[float], None]:  # noqa: ANN401 - as the command takes it
        def failing(seconds: float) -> None:
            self._exchange.rest(count=10, **fault)
            self._exchange.cut()
            time.sleep(seconds)
            self._exchange.rest()

        return failing

    def _service_stopped(self, _: float) -> None:
        metrics = self._service.stop()
        self._possible += metrics["possible_duplicates"]
        self._gave_up = self._gave_up or bool(metrics["order_given_up"])
        time.sleep(self._chance.uniform(0.0, 1.0))
        self._service = self._started()

    def _service_killed(self, _: float) -> None:
        metrics = self._service.metrics()
        self._possible += metrics["possible_duplicates"]
        self._gave_up = self._gave_up or bool(metrics["order_given_up"])
        self._service.end()
        time.sleep(self._chance.uniform(0.0, 1.0))
        self._service = self._started()

    def _killed_while_filling(self, seconds: float) -> None:
        self._exchange.rest(delay_s=0.5, count=10)
        self._exchange.cut()
        time.sleep(self._chance.uniform(0.3, seconds))
        self._service_killed(seconds)

    # What is awaited

    _gave_up = False

    def _started(self) -> Service:
        rest = {"BINANCE_REST_BASE_URL": self._exchange.rest_url}
        return Service(self._folder, self._exchange.ws_url, self._proxy.bootstrap_servers, _SETTINGS | rest)

    def _whole(self) -> bool:
        """Whether events arrive on open connections, and nothing is being filled or waits."""
        metrics = self._service.metrics()
        return (
            bool(metrics)
            and metrics["connected"]
            and metrics["kafka_produced"] > 0
            and not any(metrics[name] for name in ("gaps_open", "messages_held", "messages_spooled"))
        )


def main() -> int:
    """Run the sequence and print the table; return the exit code."""
    asked = _command_line()
    head = f"{'fault':<16} {'s':>5} {'ids':>9} {'fetched':>9} {'snapshots':>9} {'gaps':>7}  verdict"
    print(head)  # noqa: T201
    good = True
    until = time.monotonic() + asked.seconds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        try:
            chaos = ExchangeChaos(stack, folder, asked.broker, asked.rate, asked.seed, kafka_too=asked.kafka)
            while time.monotonic() < until and chaos.rounds < asked.rounds:
                line, well = chaos.judged()
                print(line, flush=True)  # noqa: T201
                good &= well
        except ChaosError as error:
            print(error)  # noqa: T201
            good = False
    return 0 if good else 1


def _command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.chaos_exchange", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="no fault begins after this (default: 60)")
    parser.add_argument("--rounds", type=int, default=1000, help="end when each fault has happened so often")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rate", type=float, default=2000.0, help="messages a second (default: 2000)")
    parser.add_argument("--broker", choices=BROKERS, default="embedded")
    parser.add_argument("--kafka", action="store_true", help="let Kafka fail as well")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
