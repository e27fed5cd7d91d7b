"""A bounded history of trades, kept once and read both as trades and as aggregates."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Trade(NamedTuple):
    """One trade: id, price in ticks, quantity in lots, time in ms, whether the buyer was the maker."""

    id: int
    price: int
    quantity: int
    time: int
    maker: bool


class Aggregate(NamedTuple):
    """The trades of one taker order at one price."""

    id: int
    price: int
    quantity: int
    first: int
    last: int
    time: int
    maker: bool


class Tape:
    """What traded, newest last; beyond `limit` trades the oldest go. Ids step by 1, as the exchange's do.

    An aggregate is a price (negative where the buyer was the maker), the id of its first trade and a time;
    a trade is a quantity: some 20 bytes a trade.
    """

    def __init__(self, first_trade: int, first_aggregate: int, limit: int) -> None:
        self._limit = limit
        self._oldest_trade = self.next_trade = first_trade
        self._oldest_aggregate = self.next_aggregate = first_aggregate
        self._prices = array("q")
        self._firsts = array("q")
        self._times = array("q")
        self._quantities = array("q")

    def append(self, price: int, time: int, quantities: list[int], *, maker: bool) -> None:
        """Note one taker order, its fills in order of their trade ids."""
        self._prices.append(-price if maker else price)
        self._firsts.append(self.next_trade)
        self._times.append(time)
        self._quantities.extend(quantities)
        self.next_aggregate += 1
        self.next_trade += len(quantities)
        if len(self._quantities) > self._limit * 5 // 4:
            self._trim()

    @property
    def oldest_trade(self) -> int:
        """The id of the oldest trade still known."""
        return self._oldest_trade

    @property
    def oldest_aggregate(self) -> int:
        """The id of the oldest aggregate still known."""
        return self._oldest_aggregate

    def trades(self, first: int, limit: int, until: int) -> list[Trade]:
        """Up to `limit` trades from id `first` on, none later than time `until`."""
        found: list[Trade] = []
        first = max(first, self._oldest_trade)
        if first >= self.next_trade:
            return found
        position = bisect_right(self._firsts, first) - 1
        for aggregate in range(position, len(self._prices)):
            if len(found) >= limit or self._times[aggregate] > until:
                break
            found += [trade for trade in self._fills(aggregate) if trade.id >= first]
        return found[:limit]

    def aggregates(self, first: int, limit: int, until: int) -> list[Aggregate]:
        """Up to `limit` aggregates from id `first` on, none later than time `until`."""
        position = max(first - self._oldest_aggregate, 0)
        end = min(position + limit, bisect_right(self._times, until))
        return [self._aggregate(index) for index in range(position, end)]

    def aggregate_at(self, time: int) -> int:
        """Find the id of the first aggregate not before `time`."""
        return self._oldest_aggregate + bisect_left(self._times, time)

    def trades_known_until(self, time: int) -> int:
        """Find the id of the first trade later than `time`, or of the next one to come."""
        position = bisect_right(self._times, time)
        return self._firsts[position] if position < len(self._firsts) else self.next_trade

    def _aggregate(self, index: int) -> Aggregate:
        first, end = self._firsts[index], self._end(index)
        quantity = sum(self._quantities[first - self._oldest_trade : end - self._oldest_trade])
        price = self._prices[index]
        number = self._oldest_aggregate + index
        return Aggregate(number, abs(price), quantity, first, end - 1, self._times[index], price < 0)

    def _fills(self, index: int) -> Iterator[Trade]:
        price, time = self._prices[index], self._times[index]
        for number in range(self._firsts[index], self._end(index)):
            quantity = self._quantities[number - self._oldest_trade]
            yield Trade(number, abs(price), quantity, time, price < 0)

    def _end(self, index: int) -> int:
        return self._firsts[index + 1] if index + 1 < len(self._firsts) else self.next_trade

    def _trim(self) -> None:
        dropped = bisect_left(self._firsts, self.next_trade - self._limit)
        first_kept = self._firsts[dropped]
        del self._quantities[: first_kept - self._oldest_trade]
        for column in (self._prices, self._firsts, self._times):
            del column[:dropped]
        self._oldest_trade = first_kept
        self._oldest_aggregate += dropped
