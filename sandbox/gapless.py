"""Judges what Kafka holds of a market: each id once and in order, none missing, each book whole.

The simulated exchange counts on while nobody is connected, so what is between the first and the last id happened,
and is either there or missing. Its own record says where both ends are and what each trade was like.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from src.holes import without
from src.order_book import SNAPSHOT, UPDATE, OrderBook, State
from src.sequences import BAR

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from src.holes import Interval

_IDS = {"trade": ("trade", "t"), "aggregate_trade": ("aggTrade", "a")}
_NOT_OF_THE_MARKET = ("E", "ingestion_timestamp", "source", "event_type", "pipeline_version")
"""Fields that say how an event came: of what is fetched nobody knows when it would have been sent."""
_NAMED = 3
"""Ids that a verdict names."""


class Happened(NamedTuple):
    """One stream by the exchange's own record: its first id on any connection, the last one of the market."""

    first: int
    last: int


@dataclass
class Account:
    """One stream of one symbol, as Kafka has it."""

    highest: int = -1
    events: int = 0
    backfilled: int = 0
    there: list[Interval] = field(default_factory=list)
    twice: Counter[int] = field(default_factory=Counter)
    behind: set[int] = field(default_factory=set)
    """Ids that came behind later ones."""
    fresh: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """What was not compared yet."""
    unlike: list[int] = field(default_factory=list)
    """Ids whose events are not what the exchange says."""

    def take(self, number: int, event: Mapping[str, Any]) -> None:
        """Take note of one event, in the order of the offsets."""
        self.events += 1
        self.backfilled += event["source"] == "binance_rest_backfill"
        if any(first <= number <= last for first, last in reversed(self.there)):
            self.twice[number] += 1
        elif number < self.highest:
            self.behind.add(number)
        self._add(number)
        self.highest = max(self.highest, number)
        self.fresh[number] = event

    def missing(self, happened: Happened | None) -> list[Interval]:
        """Return what is not there: between its ends, or those that the exchange names."""
        first, last = happened or Happened(self.there[0][0], self.highest)
        left = [(first, last)]
        for interval in self.there:
            left = without(left, *interval)
        return left

    def never_happened(self, happened: Happened | None) -> bool:
        """Whether there are ids before the first or behind the last one."""
        return happened is not None and not happened.first <= self.there[0][0] <= self.highest <= happened.last

    def compare(self, rows: Iterable[Mapping[str, Any]], name: str) -> None:
        """Compare what is new with what the exchange says of the same ids."""
        for row in rows:
            event = self.fresh.pop(row[name], None)
            if event is not None and _of_the_market(event) != _of_the_market(row):
                self.unlike.append(row[name])

    def _add(self, number: int) -> None:
        if self.there and self.there[-1][1] == number - 1:
            self.there[-1] = (self.there[-1][0], number)
            return
        at = len(self.there)
        while at and self.there[at - 1][0] > number:
            at -= 1
        if at and self.there[at - 1][1] >= number:
            return
        self.there.insert(at, (number, number))
        if at + 1 < len(self.there) and self.there[at + 1][0] == number + 1:
            self.there[at : at + 2] = [(number, self.there[at + 1][1])]
        if at and self.there[at - 1][1] == number - 1:
            self.there[at - 1 : at + 1] = [(self.there[at - 1][0], self.there[at][1])]


class Kept:
    """What Kafka holds, by stream: trades, aggregate trades, closed bars, which are numbered; by symbol: books."""

    def __init__(self, values: Iterable[tuple[bytes | None, bytes]] = ()) -> None:
        self.accounts: dict[str, Account] = defaultdict(Account)
        self.books: dict[str, OrderBook] = defaultdict(OrderBook)
        self.take(values)

    def take(self, values: Iterable[tuple[bytes | None, bytes]]) -> None:
        """Take note of further records, key and value of each, in the order of their partitions."""
        for key, value in values:
            event = json.loads(value)
            kind, symbol = event["event_type"], (key or b"").decode().lower()
            if kind in _IDS:
                stream, name = _IDS[kind]
                self.accounts[f"{symbol}@{stream}"].take(event[name], event)
            elif kind == BAR:
                self._take_bar(symbol, event)
            elif kind in (SNAPSHOT, UPDATE):
                self.books[symbol].take(event)

    def _take_bar(self, symbol: str, event: Mapping[str, Any]) -> None:
        """Take note of a bar if it is closed; of open ones nothing is promised."""
        bar = event["k"]
        if bar["x"]:
            account = self.accounts[f"{symbol}@kline_{bar['i']}"]
            account.take(bar["t"] // (bar["T"] + 1 - bar["t"]), event)
            account.fresh.clear()

    def compare(self, stream: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Compare what is new of a stream with what the exchange would send of these ids."""
        self.accounts[stream].compare(rows, "t" if stream.endswith("@trade") else "a")

    @property
    def twice(self) -> int:
        """How many events are there a second time."""
        return sum(account.twice.total() for account in self.accounts.values())

    def faults(
        self,
        record: Mapping[str, Happened] | None = None,
        *,
        twice_allowed: int = 0,
        order_given_up: Mapping[str, Sequence[Interval]] | None = None,
        may_differ: Mapping[str, Container[int]] | None = None,
    ) -> list[str]:
        """Name everything that is not as promised.

        By stream: `record` says where it begins and ends by the exchange's own record, `order_given_up` which ids
        may stand behind later ones, `may_differ` which may be other events than the exchange says.
        """
        faults = []
        for stream in sorted({*self.accounts, *(record or ())}):
            account, happened = self.accounts[stream], (record or {}).get(stream)
            if not account.events:
                faults.append(f"{stream}: nothing there")
                continue
            if missing := account.missing(happened):
                faults.append(f"{stream}: {_numbers(missing)} missing")
            if account.never_happened(happened):
                faults.append(f"{stream}: {account.there[0][0]}-{account.highest}, the market had {happened}")
            given_up = (order_given_up or {}).get(stream, ())
            disordered = [
                each for each in account.behind if not any(first <= each <= last for first, last in given_up)
            ]
            if disordered:
                faults.append(f"{stream}: {_numbers([(each, each) for each in disordered])} behind later ones")
            differing = (may_differ or {}).get(stream, ())
            if differ := [each for each in account.unlike if each not in differing]:
                faults.append(f"{stream}: {differ[:_NAMED]} not as the exchange has them")
        if self.twice > twice_allowed:
            faults.append(f"{self.twice} twice, {twice_allowed} possible")
        return faults + self._faults_of_books()

    def _faults_of_books(self) -> list[str]:
        faults = []
        for symbol, book in sorted(self.books.items()):
            if book.state is State.BROKEN:
                faults.append(f"{symbol}: a break in the book without a snapshot")
            if book.crossed:
                faults.append(f"{symbol}: the book is crossed")
        return faults


def unlike(book: OrderBook, answer: Mapping[str, Any]) -> str:
    """Say in what a book differs from the exchange's own, an answer of `depth`; empty when in nothing."""
    if book.state is not State.LIVE:
        return str(book.state.value)
    if book.update_id != answer["lastUpdateId"]:
        return f"at {book.update_id}, the exchange at {answer['lastUpdateId']}"
    count = len(answer["bids"])
    levels = {"bids": book.bids(count), "asks": book.asks(count)}
    sides = [
        side
        for side, known in levels.items()
        if [[each.price, each.quantity] for each in known] != answer[side] and all(each.certain for each in known)
    ]
    return f"other {' and '.join(sides)} than the exchange" if sides else ""


def _of_the_market(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in _NOT_OF_THE_MARKET}


def _numbers(intervals: Sequence[Interval]) -> str:
    count = sum(last - first + 1 for first, last in intervals)
    return f"{count} ({', '.join(f'{first}-{last}' for first, last in sorted(intervals)[:_NAMED])})"
