"""An order book rebuilt from what the depth topic holds of one symbol. Pure: records in, levels out.

The exchange's rule (web-socket-streams.md, "How to manage a local order book correctly"): the first update behind
a snapshot has `U <= lastUpdateId + 1 <= u`, each later one goes on from the one before, `u` at most `lastUpdateId`
is old. Quantities are absolute, 0 removes a level, and the removal of a level that is not known is normal. A hole
between two updates makes the book unknown until the next snapshot.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

SNAPSHOT, UPDATE = "depth_snapshot", "depth_update"
_RENUMBERED_AFTER = 8
"""So many newer updates in a row, consecutive among themselves but below the last id, are a new numbering."""
_MOST_REMEMBERED = 20_000
_SMALLEST_LIMIT = 100
"""The service asks for at least so many levels a side; where fewer came, there were no more."""


class State(Enum):
    """What is known of the book."""

    WAITING = "waiting for a snapshot"
    LIVE = "live"
    BROKEN = "broken since a gap"


class Level(NamedTuple):
    """One price with what stands there, in the exchange's own digits."""

    price: str
    quantity: str
    certain: bool
    """Within the range of the snapshot. Beyond it, levels that have not changed since are not known."""


class NotDepth(ValueError):  # noqa: N818 - a fact about the record
    """A record without the fields of its type."""


class _Change(NamedTuple):
    price: Decimal
    text: str
    quantity: str
    """Empty for 0."""


class _Snapshot(NamedTuple):
    last: int
    time_ms: int
    bids: list[_Change]
    asks: list[_Change]


class _Update(NamedTuple):
    first: int
    last: int
    time_ms: int
    bids: list[_Change]
    asks: list[_Change]


class _Side:
    """One side: what stands at each price, prices in order. `sign` is 1 where the highest price is the best."""

    def __init__(self, sign: int, changes: list[_Change]) -> None:
        self._sign = sign
        self._levels = {each.price: (each.text, each.quantity) for each in changes if each.quantity}
        self._prices = sorted(self._levels)
        limited = self._prices and len(changes) >= _SMALLEST_LIMIT
        self._edge = self._prices[0 if sign > 0 else -1] if limited else None

    def __len__(self) -> int:
        return len(self._prices)

    def change(self, changes: list[_Change]) -> None:
        levels, prices = self._levels, self._prices
        for price, text, quantity in changes:
            if not quantity:
                if levels.pop(price, None) is not None:
                    del prices[bisect_left(prices, price)]
                continue
            if price not in levels:
                insort(prices, price)
            levels[price] = text, quantity

    @property
    def best(self) -> Decimal | None:
        if not self._prices:
            return None
        return self._prices[-1 if self._sign > 0 else 0]

    def top(self, count: int | None) -> list[Level]:
        ordered = self._prices[::-1] if self._sign > 0 else self._prices
        return [Level(*self._levels[price], self._certain(price)) for price in ordered[:count]]

    def _certain(self, price: Decimal) -> bool:
        return self._edge is None or self._sign * (price - self._edge) >= 0


class OrderBook:
    """The book of one symbol as far as it is known. Trusts nothing but the records, in the order of the topic."""

    def __init__(self) -> None:
        self.state = State.WAITING
        self.update_id = -1
        """The last id that the book holds, or held before it broke."""
        self.time_ms = 0
        """When that was, by the exchange's clock; a snapshot has no such time: when the service read it."""
        self.updates = 0
        """Updates that changed the book."""
        self.snapshots = 0
        self.breaks = 0
        """Times that the book became unknown."""
        self.crossed = 0
        """Records after which the best bid was not below the best ask. Not to happen."""
        self.missing: tuple[int, int] | None = None
        """What made the book unknown; None where the exchange counted anew."""
        self._tail: deque[_Update] = deque(maxlen=_MOST_REMEMBERED)
        """While the book is unknown: the updates since the last hole, for a snapshot that is older than they."""
        self._below: list[_Update] = []
        """While it is known: newer updates with lower ids, perhaps of a new numbering."""
        self._older: _Snapshot | None = None
        self._updated_ms: int | None = None
        """The exchange's time of the last update; None of a snapshot, whose time is by another clock."""
        self._forget()

    def take(self, event: Mapping[str, Any]) -> None:
        """Take a snapshot or an update, nothing else. Raises `NotDepth` and leaves the book as it was."""
        kind = event.get("event_type")
        if kind == SNAPSHOT:
            self._take_snapshot(_snapshot(event))
        elif kind == UPDATE:
            self._take_update(_update(event))

    def bids(self, count: int | None = None) -> list[Level]:
        """Return the best levels, best first; all without a count; none while the book is not known."""
        return self._bids.top(count)

    def asks(self, count: int | None = None) -> list[Level]:
        """Return the same of the other side."""
        return self._asks.top(count)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many bids and asks are known."""
        return len(self._bids), len(self._asks)

    @property
    def best(self) -> tuple[Decimal, Decimal] | None:
        """The best bid and the best ask; None while one of them is not known."""
        bid, ask = self._bids.best, self._asks.best
        return None if bid is None or ask is None else (bid, ask)

    def _take_snapshot(self, snapshot: _Snapshot) -> None:
        self.snapshots += 1
        if self.state is State.LIVE and snapshot.last < self.update_id:
            self._older = snapshot  # tells nothing new, unless the exchange counts anew
        else:
            self._start(snapshot)

    def _start(self, snapshot: _Snapshot) -> None:
        """Begin with a snapshot, unless it ends before what came already begins."""
        later = [update for update in self._tail if update.last > snapshot.last]
        if later and later[0].first > snapshot.last + 1:
            return
        self._bids, self._asks = _Side(1, snapshot.bids), _Side(-1, snapshot.asks)
        self.state, self.missing = State.LIVE, None
        self._stand(snapshot.last, snapshot.time_ms)
        self._updated_ms = None
        self._tail.clear()
        for update in later:
            self._apply(update)

    def _take_update(self, update: _Update) -> None:
        if self.state is not State.LIVE:
            self._remember(update)
        elif update.first > self.update_id + 1:
            self._break((self.update_id + 1, update.first - 1), [update])
        elif update.last > self.update_id:
            self._apply(update)
        elif update.last < self.update_id and self._updated_ms is not None and update.time_ms > self._updated_ms:
            self._suspect(update)

    def _apply(self, update: _Update) -> None:
        self._bids.change(update.bids)
        self._asks.change(update.asks)
        self.updates += 1
        self._stand(update.last, update.time_ms)
        self._updated_ms = update.time_ms

    def _stand(self, update_id: int, time_ms: int) -> None:
        self.update_id, self.time_ms = update_id, time_ms
        self._below.clear()
        self._older = None
        if (best := self.best) is not None and best[0] >= best[1]:
            self.crossed += 1

    def _remember(self, update: _Update) -> None:
        """Keep an update for the snapshot to come: from the last hole on, or where the exchange counts anew."""
        if self._tail:
            before = self._tail[-1]
            if update.last <= before.last and update.time_ms <= before.time_ms:
                return
            if not update.first <= before.last + 1 <= update.last:
                self._tail.clear()
        self._tail.append(update)

    def _suspect(self, update: _Update) -> None:
        """Note a newer update with ids that have passed; enough of them are a new numbering."""
        if self._below and update.first != self._below[-1].last + 1:
            self._below.clear()
        self._below.append(update)
        if len(self._below) >= _RENUMBERED_AFTER:
            snapshot = self._older
            self._break(None, self._below)
            if snapshot is not None:
                self._start(snapshot)

    def _break(self, missing: tuple[int, int] | None, tail: list[_Update]) -> None:
        self.breaks += 1
        self.state, self.missing = State.BROKEN, missing
        self._tail.extend(tail)
        self._below, self._older = [], None
        self._forget()

    def _forget(self) -> None:
        self._bids, self._asks = _Side(1, []), _Side(-1, [])


def _snapshot(event: Mapping[str, Any]) -> _Snapshot:
    last = _whole(event, "lastUpdateId")
    return _Snapshot(last, _time_ms(event), _changes(event, "bids"), _changes(event, "asks"))


def _update(event: Mapping[str, Any]) -> _Update:
    first, last = _whole(event, "U"), _whole(event, "u")
    return _Update(first, last, _time_ms(event), _changes(event, "b"), _changes(event, "a"))


def _whole(event: Mapping[str, Any], name: str) -> int:
    number = event.get(name)
    if not isinstance(number, int):
        raise NotDepth(f"{name} is {number!r}")
    return number


def _time_ms(event: Mapping[str, Any]) -> int:
    at = event.get("E", event.get("ingestion_timestamp"))
    return at if isinstance(at, int) else 0


def _changes(event: Mapping[str, Any], name: str) -> list[_Change]:
    try:
        changes = [
            _Change(Decimal(price), price, quantity if quantity.strip("0.") else "")
            for price, quantity in event[name]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise NotDepth(f"{name} is no list of levels") from error
    if not all(change.price.is_finite() for change in changes):
        raise NotDepth(f"{name} has a price that is no number")
    return changes
