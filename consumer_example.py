"""Read the service's events from Kafka and show them as they come: an example of a consumer, and a tool.

Joins a consumer group, commits what it has shown, and prints statistics when it ends: by Ctrl+C, SIGTERM,
`--max-messages` or `--seconds`. Exit codes: 0 ended as asked, 1 Kafka was not reached or refused,
2 the configuration or the command line is wrong.
"""
# ruff: noqa: T201 - a command speaks to its user

from __future__ import annotations

import argparse
import io
import math
import os
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec
from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka.errors import KafkaError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.settings import KafkaConfig, SettingsError, load_settings
from src.kafka_causes import NotConnectedError, causes_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_POLL_MS = 200
_BATCH = 500
_ANSWER_MS = 3_000
_CLOSE_MS = 1_000
_NEW_TOPICS_SEEN_AFTER_MS = 5_000
_PLAIN_WIDTH = 120
_BUSIEST = 15
_LONGEST_SECONDS = 365 * 86_400
_SHORTEST_FOR_A_RATE = 0.1


class Event(NamedTuple):
    """One record of Kafka, decoded; times in ms since the epoch."""

    type: str
    symbol: str
    fields: dict[str, Any]
    value: bytes
    received: float

    @property
    def exchange_ms(self) -> float | None:
        """The age of the event by the exchange's clock (`E`), None where the exchange names no time."""
        return self._age("E")

    @property
    def ingestion_ms(self) -> float | None:
        """The time from the service's socket to here."""
        return self._age("ingestion_timestamp")

    def _age(self, name: str) -> float | None:
        at = self.fields.get(name)
        return self.received - at if isinstance(at, int) else None


def decode(key: bytes | None, value: bytes | None, received: float) -> Event | None:
    """Decode one record; None when its value is not a JSON object."""
    try:
        fields = msgspec.json.decode(value or b"")
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    symbol = (key or b"").decode(errors="replace") or str(fields.get("s", "-"))
    return Event(str(fields.get("event_type", "unknown")), symbol.upper(), fields, value or b"", received)


# What is shown of an event, by its type. Field names: Binance web-socket-streams.md.


def _trade(event: dict[str, Any]) -> str:
    side = "SELL" if event["m"] else "BUY"  # `m`: the buyer was the maker, so the seller took the price
    return f"{side:<4} {event['p']} x {event['q']}  #{event.get('t', event.get('a'))}"


def _aggregate_trade(event: dict[str, Any]) -> str:
    return f"{_trade(event)} ({event['l'] - event['f'] + 1} trades)"


def _depth(event: dict[str, Any]) -> str:
    return f"{_book(event['b'], event['a'])}  {event['U']}..{event['u']}"


def _partial_depth(event: dict[str, Any]) -> str:
    return f"{_book(event['bids'], event['asks'])}  #{event['lastUpdateId']}"


def _book(bids: list[list[str]], asks: list[list[str]]) -> str:
    kept = [[level for level in side if float(level[1])] for side in (bids, asks)]  # quantity 0: level removed
    best_bid = max(kept[0], key=lambda level: float(level[0]), default=["-", "-"])
    best_ask = min(kept[1], key=lambda level: float(level[0]), default=["-", "-"])
    best = f"bid {best_bid[0]} x {best_bid[1]}  ask {best_ask[0]} x {best_ask[1]}"
    return f"{best}  {len(bids)}+{len(asks)} levels"


def _kline(event: dict[str, Any]) -> str:
    bar = event["k"]
    state = "closed" if bar["x"] else "open"
    return f"{bar['i']} {state}  O {bar['o']} H {bar['h']} L {bar['l']} C {bar['c']}  volume {bar['v']}"


def _ticker(event: dict[str, Any]) -> str:
    change = f" {event['P']} %" if "P" in event else ""
    return f"last {event['c']}{change}  H {event['h']} L {event['l']}  volume {event['v']}"


def _book_ticker(event: dict[str, Any]) -> str:
    return f"bid {event['b']} x {event['B']}  ask {event['a']} x {event['A']}"


def _average_price(event: dict[str, Any]) -> str:
    return f"{event['w']} over {event['i']}"


_SHOWN: dict[str, Callable[[dict[str, Any]], str]] = {
    "trade": _trade,
    "aggregate_trade": _aggregate_trade,
    "depth_update": _depth,
    "partial_depth": _partial_depth,
    "kline": _kline,
    "ticker": _ticker,
    "mini_ticker": _ticker,
    "rolling_ticker": _ticker,
    "book_ticker": _book_ticker,
    "average_price": _average_price,
}


def describe(event: Event) -> str:
    """Return what matters of an event in one line; its JSON when its type or its fields are not known."""
    try:
        return _SHOWN[event.type](event.fields)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return event.value.decode(errors="replace")


def line_of(event: Event) -> str:
    """Return the whole line: time of the event (UTC), symbol, type, what it says, latencies; printable only."""
    ages = f"({readable_ms(event.exchange_ms)}, {readable_ms(event.ingestion_ms)})"
    line = f"{_clock(event)} {event.symbol:<9} {event.type:<15} {describe(event)}  {ages}"
    return line if line.isprintable() else "".join(one if one.isprintable() else "?" for one in line)


def _clock(event: Event) -> str:
    at: Any = event.fields.get("E", event.fields.get("ingestion_timestamp"))
    try:
        return datetime.fromtimestamp(at / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    except (TypeError, ValueError, OverflowError, OSError):
        return f"{'-':<12}"


def readable_ms(duration: float | None) -> str:
    """Return a duration in ms with a unit that keeps it short, `-` for None."""
    if duration is None:
        return "-"
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if abs(duration) >= 2 * size:
            return f"{duration / size:.1f} {unit}"
    return f"{duration:.0f} ms"


@dataclass
class Ids:
    """The ids of one stream in the order of arrival: the first, the last, and what is not in order."""

    first: int
    last: int
    missing: int = 0
    not_rising: int = 0

    def add(self, first: int, last: int) -> None:
        """Count an event that covers the ids `first` to `last`."""
        if first <= self.last:
            self.not_rising += 1
        self.missing += max(0, first - self.last - 1)
        self.last = max(self.last, last)

    @property
    def verdict(self) -> str:
        """Whether each id followed the one before it."""
        faults = {"missing": self.missing, "repeated or out of order": self.not_rising}
        return ", ".join(f"{count} {name}" for name, count in faults.items() if count) or "contiguous"


def ids_of(event: Event) -> tuple[int, int] | None:
    """Return the first and last id that an event covers; None for events that have none, and malformed ones."""
    names = {"trade": ("t", "t"), "aggregate_trade": ("a", "a"), "depth_update": ("U", "u")}.get(event.type)
    if names is None:
        return None
    first, last = (event.fields.get(name) for name in names)
    return (first, last) if isinstance(first, int) and isinstance(last, int) else None


@dataclass
class Latencies:
    """A distribution of durations in ms, kept to three digits, so that its size stays bounded."""

    counts: Counter[float] = field(default_factory=Counter)

    def add(self, duration: float | None) -> None:
        """Count one duration; None is no measurement."""
        if duration is not None:
            self.counts[float(f"{duration:.3g}")] += 1

    def percentiles(self, *wanted: float) -> Iterator[float | None]:
        """Return the durations below which the given shares (0 to 1) lie; None where nothing was measured."""
        ordered, total = sorted(self.counts.items()), self.counts.total()
        for share in wanted:
            seen, found = 0, None
            for duration, count in ordered:
                found = duration
                seen += count
                if seen >= share * total:
                    break
            yield found


@dataclass
class Statistics:
    """What was seen in this run."""

    by_type: Counter[str] = field(default_factory=Counter)
    by_symbol: Counter[str] = field(default_factory=Counter)
    ids: dict[tuple[str, str], Ids] = field(default_factory=dict)
    exchange: Latencies = field(default_factory=Latencies)
    ingestion: Latencies = field(default_factory=Latencies)
    malformed: int = 0
    other_symbols: int = 0
    first_at: float | None = None
    last_at: float = 0.0

    @property
    def shown(self) -> int:
        """The number of events that were shown."""
        return self.by_type.total()

    @property
    def records(self) -> int:
        """The number of records that were read, shown or not."""
        return self.shown + self.malformed + self.other_symbols

    def add(self, event: Event) -> None:
        """Count one event that is shown."""
        self.by_type[event.type] += 1
        self.by_symbol[event.symbol] += 1
        self.exchange.add(event.exchange_ms)
        self.ingestion.add(event.ingestion_ms)
        self.last_at = time.monotonic()
        self.first_at = self.last_at if self.first_at is None else self.first_at
        if covered := ids_of(event):
            stream = (event.symbol, event.type)
            if stream in self.ids:
                self.ids[stream].add(*covered)
            else:
                self.ids[stream] = Ids(*covered)

    def print_to(self, console: Console) -> None:
        """Print everything as plain tables."""
        seconds = self.last_at - self.first_at if self.first_at is not None else 0.0
        rate = f", {self.shown / seconds:,.1f} a second" if seconds >= _SHORTEST_FOR_A_RATE else ""
        console.print(
            f"\n{self.shown} events in {seconds:.1f} s{rate}; "
            f"{self.malformed} malformed, {self.other_symbols} of other symbols",
            markup=False,
            highlight=False,
        )
        if not self.shown:
            return
        console.print(_counts("type", self.by_type), _counts("symbol", self.by_symbol), self._latency_table())
        if self.ids:
            console.print(self._id_table())

    def _latency_table(self) -> Table:
        table = _table("latency", "p50", "p90", "p99", "max")
        for name, latencies in (("exchange to here", self.exchange), ("ingestion to here", self.ingestion)):
            table.add_row(name, *map(readable_ms, latencies.percentiles(0.5, 0.9, 0.99, 1.0)))
        return table

    def _id_table(self) -> Table:
        table = _table("ids of", "first", "last", "verdict")
        for (symbol, event_type), ids in sorted(self.ids.items()):
            table.add_row(Text(f"{symbol} {event_type}"), str(ids.first), str(ids.last), ids.verdict)
        return table


def _counts(name: str, counts: Counter[str]) -> Table:
    table = _table(name, "events")
    busiest = counts.most_common(_BUSIEST)
    for label, count in busiest:
        table.add_row(Text(label), str(count))
    if more := len(counts) - len(busiest):
        table.add_row(f"{more} more", str(counts.total() - sum(count for _, count in busiest)))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or column == "verdict" else "right")
    return table


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # rich would end the process here, with exit code 1 and nothing committed


class Screen:
    """Where events go: lines in the terminal's width and colours, whole plain lines in a pipe, or JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._events = _console(sys.stdout)
        self._remarks = _console(sys.stderr)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a symbol may not exist in the terminal's encoding

    def event(self, event: Event) -> None:
        """Print one event."""
        if self._as_json:
            sys.stdout.buffer.write(event.value.replace(b"\n", b" ") + b"\n")
        elif self._events.is_terminal:
            line = Text(line_of(event), style=_style(event))
            self._events.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            sys.stdout.write(f"{line_of(event)}\n")

    def malformed(self, where: str, value: bytes | None) -> None:
        """Print that a record's value is no JSON object."""
        self.remark(f"malformed value at {where}: {(value or b'')[:60]!r}")

    def remark(self, line: str) -> None:
        """Print something about the run itself, apart from the events (stderr)."""
        self._remarks.print(line, markup=False, highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """Hand over what is printed, before it is committed as shown."""
        sys.stdout.flush()

    def statistics(self, statistics: Statistics) -> None:
        """Print the statistics: after the events, or beside them when those are JSON."""
        statistics.print_to(self._remarks if self._as_json else self._events)
        self.flush()


def _style(event: Event) -> str:
    if event.type not in ("trade", "aggregate_trade"):
        return ""
    return "red" if event.fields.get("m") else "green"


def _console(stream: Any) -> Console:  # noqa: ANN401 - a text stream
    terminal = stream.isatty()
    return _Console(file=stream, force_terminal=terminal, width=None if terminal else _PLAIN_WIDTH)


class Stop:
    """Takes SIGINT and SIGTERM: interrupts the connecting, which blocks, and asks the reading to end."""

    def __init__(self) -> None:
        self.asked = False
        self.interrupts = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.asked = True
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt


class _FromBeginning(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Goes to the beginning of each partition when it is assigned for the first time."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._begun: set[Any] = set()

    def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ANN401
        pass

    def on_partitions_assigned(self, assigned: Any) -> None:  # noqa: ANN401
        if new := set(assigned) - self._begun:
            self._consumer.seek_to_beginning(*new)
            self._begun |= new


class NotCommittedError(Exception):
    """The broker did not take the last offsets: the group gets what was shown since the one before again."""


@dataclass
class Reader:
    """Reads until it is asked to stop, or has shown or waited enough."""

    consumer: KafkaConsumer
    screen: Screen
    stop: Stop
    symbols: frozenset[str]
    max_messages: int | None
    seconds: float | None
    statistics: Statistics = field(default_factory=Statistics)
    _announced: bool = False

    def run(self) -> None:
        """Show events; raises `KafkaError` when the broker refuses, `BrokenPipeError` when nobody reads."""
        ends = time.monotonic() + self.seconds if self.seconds is not None else float("inf")
        while not self.stop.asked and self._wanted and time.monotonic() < ends:
            # Never more than is still wanted: what was polled is committed as shown.
            polled = self.consumer.poll(timeout_ms=_POLL_MS, max_records=self._wanted)
            for record in (record for records in polled.values() for record in records):
                self._take(record)
            self.screen.flush()
            self._announce()

    def commit(self) -> None:
        """Commit what was shown; raises `NotCommittedError` when the broker does not take it within 3 s."""
        if not self.statistics.records:
            return
        try:
            self.consumer.commit(timeout_ms=_ANSWER_MS)
        except KafkaError as error:
            raise NotCommittedError(f"what was shown last is not committed: {_one_line(error)}") from error

    @property
    def _wanted(self) -> int:
        return _BATCH if self.max_messages is None else min(_BATCH, self.max_messages - self.statistics.shown)

    def _take(self, record: Any) -> None:  # noqa: ANN401 - kafka-python's ConsumerRecord
        event = decode(record.key, record.value, time.time() * 1000)
        if event is None:
            self.statistics.malformed += 1
            self.screen.malformed(f"{record.topic}[{record.partition}] offset {record.offset}", record.value)
        elif self.symbols and event.symbol not in self.symbols:
            self.statistics.other_symbols += 1
        else:
            self.statistics.add(event)
            self.screen.event(event)

    def _announce(self) -> None:
        assigned = self.consumer.assignment()
        if assigned and not self._announced:
            for part in assigned:
                self.consumer.position(part, timeout_ms=_ANSWER_MS)  # from here on nothing new is missed
            self._announced = True
            self.screen.remark(
                f"reading {len(assigned)} partitions of {', '.join(sorted({p.topic for p in assigned}))}"
            )


def topic_names(config: KafkaConfig, chosen: Sequence[str]) -> list[str]:
    """Return topic names: `trades`, `depth` and `raw` as configured, others stand for themselves."""
    known = {"trades": config.topic_trades, "depth": config.topic_depth, "raw": config.topic_raw_events}
    return list(dict.fromkeys(known.get(name, name) for name in chosen))


def connect(
    config: KafkaConfig, topics: Sequence[str], group: str, *, from_beginning: bool, wait: float
) -> KafkaConsumer:
    """Return a consumer that has joined nothing yet; raises `NotConnectedError` after `wait` s."""
    with causes_named():
        consumer = KafkaConsumer(
            **config.client_options(),
            group_id=group,
            auto_offset_reset="earliest" if from_beginning else "latest",
            bootstrap_timeout_ms=math.ceil(wait * 1000),
            reconnect_backoff_max_ms=1_000,
            metadata_max_age_ms=_NEW_TOPICS_SEEN_AFTER_MS,
        )
    # By pattern: kafka-python asks for named topics in a way that makes brokers create missing ones, with their
    # own defaults, whatever allow_auto_create_topics says (3.0.12).
    pattern = f"^({'|'.join(map(re.escape, topics))})$"
    consumer.subscribe(pattern=pattern, listener=_FromBeginning(consumer) if from_beginning else None)
    return consumer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    asked = _command_line(arguments)
    try:
        config = load_settings().kafka
    except SettingsError as error:
        print(*error.faults, sep="\n", file=sys.stderr)
        return 2
    topics = topic_names(config, asked.topics)
    servers = ",".join(config.bootstrap_servers)
    try:
        stop = Stop()
        consumer = connect(config, topics, asked.group, from_beginning=asked.from_beginning, wait=asked.wait)
        stop.interrupts = False
    except KeyboardInterrupt:
        return 0
    except NotConnectedError as error:
        return _fail(f"no connection to Kafka at {servers}: {error}; check {error.check}")
    except (KafkaError, OSError, ValueError) as error:
        return _fail(f"cannot connect to Kafka at {servers}: {_one_line(error)}")
    screen = Screen(as_json=asked.json)
    reader = Reader(consumer, screen, stop, asked.symbols, asked.max_messages, asked.seconds)
    return _read(reader, topics)


def _read(reader: Reader, topics: Sequence[str]) -> int:
    exit_code = 0
    try:
        if missing := ", ".join(sorted(set(topics) - reader.consumer.topics())):
            reader.screen.remark(f"not there yet: {missing} (setup_kafka.py creates topics); waiting")
        reader.run()
        reader.commit()
    except BrokenPipeError:  # what nobody has seen is not committed
        _forget_stdout()
    except (KafkaError, NotCommittedError) as error:
        exit_code = _fail(_one_line(error))
    reader.consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
    try:
        reader.screen.statistics(reader.statistics)
    except BrokenPipeError:
        _forget_stdout()
    return exit_code


def _forget_stdout() -> None:
    # Its reader has gone, as after `| head`. Python flushes stdout once more at exit and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(line: str) -> int:
    print(f"consumer_example: {line}", file=sys.stderr)
    return 1


def _command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Show the events that the service writes to Kafka, as they come.",
        epilog="Each line: time of the event (UTC), symbol, type, what it says, and in brackets the time since "
        "the exchange sent it and since the service read it. The KAFKA_* settings name the brokers and topics.",
    )
    parser.add_argument(
        "--group", default="binance-consumer-example", help="consumer group (default: %(default)s)"
    )
    parser.add_argument(
        "--topics",
        type=_names,
        default=["trades", "depth", "raw"],
        help="comma-separated: trades, depth, raw (default: all three), or names of topics",
    )
    parser.add_argument(
        "--symbols",
        type=lambda text: frozenset(name.upper() for name in _names(text)),
        default=frozenset(),
        help="comma-separated, any case (default: all)",
    )
    parser.add_argument("--wait", type=_seconds, default=10.0, metavar="N", help="for the broker (default: 10 s)")
    parser.add_argument("--from-beginning", action="store_true", help="start with the oldest events")
    parser.add_argument("--max-messages", type=_positive, metavar="N", help="end after N events")
    parser.add_argument("--seconds", type=_seconds, metavar="N", help="end after N seconds")
    parser.add_argument("--json", action="store_true", help="print the events as JSON lines, statistics to stderr")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("one name or several, comma-separated")
    return names


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise argparse.ArgumentTypeError("seconds above 0, a year at most")
    return seconds


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a number from 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
