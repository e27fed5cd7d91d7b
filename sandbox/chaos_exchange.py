"""`python -m sandbox.chaos_exchange --rounds N --seed S`: the exchange fails in a seeded random sequence.

The simulated exchange keeps its market running meanwhile and sends 2,000 messages a second. Each fault of
`sandbox/chaos_faults.py` happens three times a round: alone, with the service stopped by SIGTERM while it lasts
and started again, and with SIGKILL instead; in one case of three that happens once more while it starts. After
each, what Kafka holds has to be what the exchange's own record says: each id once, in order, with what belongs to
it, also what was traded while nobody was connected; the order book has to be the exchange's; and a service that
was stopped has to end with the right exit code. With `--kafka` the broker fails at the same time. Exit code: 0,
or 1 when anything is not so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from config.kafka import KafkaConfig
from sandbox.brokers import BROKERS, EmbeddedBroker
from sandbox.chaos import Chaos, ChaosError, Service
from sandbox.chaos_faults import FAULTS, STREAM_TYPES, WRONG_BY, over
from sandbox.gapless import Happened, Kept, unlike
from src.kafka_ledger import LedgerUnreadable, read_ledger
from src.sequences import BAR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka import TopicPartition

    from src.holes import Interval

ALONE, STOPPED, KILLED = "", "SIGTERM", "SIGKILL"
COMBINATIONS = [(fault, end) for fault in FAULTS for end in (ALONE, STOPPED, KILLED)]
HEAD = (
    f"{'fault':<16} {'service':<8} {'Kafka':<10} {'s':>4} {'ids':>8} {'fetched':>8} {'snaps':>5} {'gaps':>4}"
    f" {'twice':>5}  verdict"
)
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
_COUNTED = ("trade", "aggTrade")
_LEVELS = 20
_BAR_MS = 1_000
_LATE_SECONDS = 10.0
"""What waits at the end, a snapshot or a record of the ledger, is waited for so long."""
_RESTING_SECONDS = 5.0
_ONCE_MORE = 1 / 3
_SETTLING_SECONDS = 0.3
"""The market goes on for so long after everything is well, so that each stream speaks again."""


class Verdict(NamedTuple):
    """One line of the table; the numbers are of this fault alone, the gaps of the service's last run."""

    fault: str
    end: str
    kafka: str
    seconds: float
    ids: int
    fetched: int
    snapshots: int
    gaps: int
    twice: int
    faults: list[str]

    def __str__(self) -> str:
        numbers = f"{self.ids:>8} {self.fetched:>8} {self.snapshots:>5} {self.gaps:>4} {self.twice:>5}"
        said = "; ".join(self.faults) or "ok"
        return f"{self.fault:<16} {self.end:<8} {self.kafka:<10} {self.seconds:>4.1f} {numbers}  {said}"


class ExchangeChaos(Chaos):
    """The same stack; what fails is the exchange, and the service, and with `kafka_too` Kafka meanwhile."""

    def __init__(self, *arguments: Any, kafka_too: bool = False) -> None:  # noqa: ANN401 - as Chaos takes them
        super().__init__(*arguments)
        left_out = {"service stopped"}
        if isinstance(self._broker, EmbeddedBroker):
            left_out.add("killed")  # the more it holds the longer it may lose what it has acknowledged
        self._kafka_faults = [each for each in self.faults if each[0] not in left_out] if kafka_too else []
        self._happened: Counter[tuple[str, str]] = Counter()
        self._kept = Kept()
        self._read: dict[TopicPartition, int] = {}
        self._known: set[str] = set()
        """Faults that were named in an earlier verdict."""
        self._stopped = False
        """Whether the service was ever stopped by SIGTERM."""
        self._numbers = (0, 0, 0, 0, 0)

    @property
    def rounds(self) -> int:
        """How often every combination has happened at least."""
        return min(self._happened[each] for each in COMBINATIONS)

    def next(self) -> Verdict:  # type: ignore[override]
        """Let one fault happen that is due in this round, and judge."""
        due = [each for each in COMBINATIONS if self._happened[each] == self.rounds]
        return self.judged(*self._chance.choice(due))

    def judged(self, fault: str, end: str) -> Verdict:
        """Let this fault happen, the service end in it or not, and judge."""
        self._happened[fault, end] += 1
        seconds = self._chance.uniform(*FAULTS[fault].seconds)
        kafka, beside = self._kafka_fault(seconds)
        beside.start()
        FAULTS[fault].begin(self._exchange, self._chance)
        if end:
            time.sleep(self._chance.choice((0.0, self._chance.uniform(0.0, 0.6 * seconds))))
            self._end_and_start(end, kafka)
            if self._chance.random() < _ONCE_MORE:
                time.sleep(self._chance.uniform(0.0, 0.5))
                self._end_and_start(end, kafka)
        time.sleep(seconds)
        beside.join()
        over(self._exchange)
        said = f"{fault} {end} {kafka}".strip()
        self._until(self._comes_to_rest, f"connected, filled, delivered after: {said}")
        faults = self._faults()
        self._exchange.rate(self._exchange.settings.rate)
        return Verdict(fault, end, kafka, seconds, *self._since_then(), faults)

    # What happens

    def _kafka_fault(self, seconds: float) -> tuple[str, threading.Thread]:
        if not self._kafka_faults:
            return "", threading.Thread(target=lambda: None)
        name, fault = self._chance.choice(self._kafka_faults)
        return name, threading.Thread(target=fault, args=(seconds,), name="kafka-fault", daemon=True)

    def _end_and_start(self, end: str, kafka: str) -> None:
        if end == STOPPED:
            self._stopped = True
            self._stop(kafka_well=not kafka)
        else:
            self._possible += self._service.metrics().get("possible_duplicates", 0)
            self._service.end()
        time.sleep(self._chance.uniform(0.0, 0.5))
        self._service = self._started()
        self._until(lambda: bool(self._service.metrics()), f"started after: {end}")

    def _started(self) -> Service:
        rest = {"BINANCE_REST_BASE_URL": self._exchange.rest_url}
        return Service(self._folder, self._exchange.ws_url, self._proxy.bootstrap_servers, _SETTINGS | rest)

    # What is awaited

    def _comes_to_rest(self) -> bool:
        """Stop the market once all is well; let it go on when the connection was lost in this very moment."""
        self._exchange.rate(self._exchange.settings.rate)
        if not self._whole():
            return False
        time.sleep(_SETTLING_SECONDS)
        self._exchange.rate(0)
        deadline = time.monotonic() + _RESTING_SECONDS
        while not (rests := self._whole() and self._nothing_happens() and self._at_rest()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return rests

    def _whole(self) -> bool:
        """Whether a connection brings all streams, and nothing is being filled or waits."""
        metrics = self._service.metrics()
        waiting = ("gaps_open", "messages_held", "messages_spooled")
        return bool(metrics) and not any(metrics[name] for name in waiting) and self._connected

    @property
    def _connected(self) -> bool:
        streams = len(self._exchange.settings.symbols) * len(STREAM_TYPES.split(","))
        return any(
            each["state"] == "open" and len(each["subscriptions"]) == streams
            for each in self._exchange.connections()
        )

    def _nothing_happens(self) -> bool:
        """Whether the changes of the books, which are gathered for a while, are sent too."""
        sent = self._exchange.sent()["streams"]
        return all(
            sent[f"{symbol.lower()}@depth@100ms"]["last_id"] == ids["depth"]
            for symbol, ids in self._exchange.command("market").items()
        )

    # What is judged

    def _faults(self) -> list[str]:
        """Name what is not as promised and was not named before; what may be late is waited for a little."""
        deadline = time.monotonic() + _LATE_SECONDS
        while (found := set(self._not_as_promised()) - self._known) and time.monotonic() < deadline:
            time.sleep(0.2)
        self._known |= found
        ends, self._ends = self._ends, []
        return sorted(found) + ends

    def _not_as_promised(self) -> list[str]:
        kept = self._kept
        kept.take(self._records(self._read))
        market, sent = self._exchange.command("market"), self._exchange.sent()["streams"]
        record, wrong = {}, self._wrong_ids()
        for symbol in self._exchange.settings.symbols:
            for kind in _COUNTED:
                stream = f"{symbol.lower()}@{kind}"
                record[stream] = Happened(sent[stream]["first_id"], market[symbol][kind])
                if fresh := kept.accounts[stream].fresh:
                    kept.compare(stream, self._exchange.command("history", symbol, kind, min(fresh))["events"])
        # While Kafka is well nothing is sent twice at all, after a kill neither.
        possible = self._possible + self._service.metrics()["possible_duplicates"] if self._kafka_faults else 0
        given_up = self._order_given_up()
        faults = kept.faults(record, twice_allowed=possible, order_given_up=given_up, may_differ=wrong)
        return faults + self._books_unlike()

    def _wrong_ids(self) -> dict[str, set[int]]:
        """Return, by stream, the ids that the exchange itself has given to other events.

        A service that is stopped before the next event of the stream gives it the lie passes such a one on.
        """
        wrong: dict[str, set[int]] = defaultdict(set)
        if self._stopped:
            for each in self._exchange.connections():
                for tampered in each["tampered"]:
                    if tampered["mode"] == "wrong":
                        wrong[tampered["stream"]] |= {number + WRONG_BY for number in tampered["ids"]}
        return wrong

    def _books_unlike(self) -> list[str]:
        books = {
            symbol: unlike(self._kept.books[symbol.lower()], self._exchange.command("book", symbol, _LEVELS))
            for symbol in self._exchange.settings.symbols
        }
        return [f"{symbol}: the book is {difference}" for symbol, difference in books.items() if difference]

    def _order_given_up(self) -> dict[str, Sequence[Interval]]:
        """Read in the ledger, by stream, which ids may stand behind later ones."""
        given_up: dict[str, list[Interval]] = defaultdict(list)
        try:
            for each in read_ledger(KafkaConfig(bootstrap_servers=(self._broker.bootstrap_servers,))):
                if each["type"] == "order_given_up":
                    unit = _BAR_MS if each["event_type"] == BAR else 1
                    given_up[each["stream"]].append((each["first"] // unit, each["last"] // unit))
        except LedgerUnreadable as error:
            raise ChaosError(str(error)) from error
        return dict(given_up)

    def _since_then(self) -> tuple[int, int, int, int, int]:
        accounts = list(self._kept.accounts.values())
        numbers = (
            sum(each.events for each in accounts),
            sum(each.backfilled for each in accounts),
            sum(book.snapshots for book in self._kept.books.values()),
            0,
            self._kept.twice,
        )
        since = [now - before for now, before in zip(numbers, self._numbers, strict=True)]
        self._numbers = numbers
        since[3] = self._service.metrics()["gaps_opened"]
        return since[0], since[1], since[2], since[3], since[4]


def main() -> int:
    """Run the sequence and print the table; return the exit code."""
    asked = _command_line()
    print(HEAD, flush=True)  # noqa: T201
    good = True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        try:
            chaos = ExchangeChaos(stack, folder, asked.broker, asked.rate, asked.seed, kafka_too=asked.kafka)
            until = time.monotonic() + asked.seconds
            while time.monotonic() < until and chaos.rounds < asked.rounds:
                verdict = chaos.next()
                print(verdict, flush=True)  # noqa: T201
                good &= not verdict.faults
        except ChaosError as error:
            print(error)  # noqa: T201
            good = False
    return 0 if good else 1


def _command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.chaos_exchange", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="no fault begins after this (default: 1800)")
    parser.add_argument(
        "--rounds", type=int, default=1, help=f"each has the {len(COMBINATIONS)} combinations once (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rate", type=float, default=2000.0, help="messages a second (default: 2000)")
    parser.add_argument("--broker", choices=BROKERS, default="embedded")
    parser.add_argument("--kafka", action="store_true", help="let Kafka fail at the same time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
