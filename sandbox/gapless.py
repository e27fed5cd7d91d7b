"""Judges from Kafka alone whether a market is there without a gap: each id once and in order, each book whole.

The simulated exchange counts on while nobody is connected, so what is between the first and the last id happened,
and is either there or missing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.order_book import SNAPSHOT, UPDATE, OrderBook, State

if TYPE_CHECKING:
    from collections.abc import Iterable

_IDS = {"trade": "t", "aggregate_trade": "a"}


@dataclass
class Account:
    """One stream of one symbol, as Kafka has it."""

    first: int = -1
    last: int = -1
    events: int = 0
    backfilled: int = 0
    twice: int = 0
    missing: int = 0
    disordered: int = 0


class Kept:
    """What Kafka holds, by stream: `<symbol>@trade`, `<symbol>@aggregate_trade`."""

    def __init__(self, values: Iterable[tuple[bytes | None, bytes]]) -> None:
        ids: dict[str, list[tuple[int, bool]]] = defaultdict(list)
        self.books: dict[str, OrderBook] = defaultdict(OrderBook)
        for key, value in values:
            event = json.loads(value)
            kind, symbol = event["event_type"], (key or b"").decode().lower()
            if kind in _IDS:
                ids[f"{symbol}@{kind}"].append((event[_IDS[kind]], event["source"] == "binance_rest_backfill"))
            elif kind in (SNAPSHOT, UPDATE):
                self.books[symbol].take(event)
        self.accounts = {stream: _account(numbers) for stream, numbers in ids.items()}

    def faults(self, *, twice_allowed: int = 0, order_given_up: bool = False) -> list[str]:
        """Name everything that is not as promised."""
        faults = []
        for stream, account in sorted(self.accounts.items()):
            if account.missing:
                faults.append(f"{stream}: {account.missing} missing")
            if account.disordered and not order_given_up:
                faults.append(f"{stream}: {account.disordered} behind later ones")
        twice = sum(account.twice for account in self.accounts.values())
        if twice > twice_allowed:
            faults.append(f"{twice} twice, {twice_allowed} possible")
        for symbol, book in sorted(self.books.items()):
            if book.state is State.BROKEN:
                faults.append(f"{symbol}: a break in the book without a snapshot")
            if book.crossed:
                faults.append(f"{symbol}: the book is crossed")
        return faults


def _account(numbers: list[tuple[int, bool]]) -> Account:
    seen: set[int] = set()
    account = Account(events=len(numbers), backfilled=sum(fetched for _, fetched in numbers))
    highest = -1
    for number, _ in numbers:
        if number in seen:
            account.twice += 1
        elif number < highest:
            account.disordered += 1
        seen.add(number)
        highest = max(highest, number)
    account.first, account.last = min(seen), highest
    account.missing = highest - account.first + 1 - len(seen)
    return account
