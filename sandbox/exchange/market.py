"""The market: pure and seeded. Time arrives as data, what happens leaves through one callable.

With the same seed, symbols, mix, rate and number of ticks the ids, prices and quantities are the same.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from sandbox.exchange.listing import (
    AggregateEvent,
    DepthEvent,
    Listing,
    QuoteEvent,
    TradeEvent,
)
from sandbox.exchange.symbols import symbol_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange.settings import Mix, Settings

    Event = TradeEvent | AggregateEvent | QuoteEvent | DepthEvent
    Emit = Callable[[Event], None]

TRADE, AGGREGATE, QUOTE, DEPTH_FAST, DEPTH_SLOW, BLOCK_TRADE = range(6)
KINDS = 6

_TABLE = 4096
_MOST_FILLS = 12
_SECOND_MS = 1000


class Market:
    """All listings and the plan by which they trade."""

    def __init__(self, settings: Settings, start_ms: int) -> None:
        self._random = Random(settings.seed)
        self.started_ms = start_ms
        self.now_ms = start_ms
        self.listings = [
            Listing(symbol_spec(name), self._random, start_ms, settings.history) for name in settings.symbols
        ]
        self.by_name = {listing.spec.name: listing for listing in self.listings}
        self._numbers = self._popularity(len(self.listings))
        self._depth_levels = settings.depth_levels
        self._tick_s = settings.tick_ms / 1000
        self._ticks_a_second = max(1, round(_SECOND_MS / settings.tick_ms))
        self._next_second = start_ms // _SECOND_MS * _SECOND_MS + _SECOND_MS
        self._block_trades_ms = int(settings.block_trade_interval_s * 1000)
        self._next_block_ms = start_ms + self._block_trades_ms
        self._next_depth = 0
        self._messages_due = self._depths_due = 0.0
        self.ticks = 0
        self.plan(settings.rate, settings.mix)

    def plan(self, rate: float, mix: Mix) -> None:
        """Trade at `rate` messages a second from the next tick on, shared out by `mix`."""
        self.rate, self.mix = rate, mix
        total = mix.trade + mix.aggTrade + mix.depth + mix.bookTicker
        self._depth_share = mix.depth / total
        self._depth_rate = rate * self._depth_share
        self._message_rate = rate - self._depth_rate
        self._counts_trades = mix.trade > 0
        self._counts_aggregates = mix.aggTrade > 0
        orders = mix.aggTrade or mix.trade
        self._order_chance = orders / (orders + mix.bookTicker) if orders else 0.0
        fills = max(mix.trade / mix.aggTrade, 1.0) if mix.aggTrade else 1.0
        self._fills = self._fill_table(fills)

    def tick(self, until_ms: int, emit: Emit, extra: int = 0) -> None:
        """Trade up to `until_ms`: what one tick is due, and `extra` messages at once."""
        self.ticks += 1
        self._messages_due += self._message_rate * self._tick_s
        self._depths_due += self._depth_rate * self._tick_s
        if extra:
            self._messages_due += extra * (1 - self._depth_share)
            self._depths_due += extra * self._depth_share
        self._trade(until_ms, emit)
        self.now_ms = until_ms
        if not self.ticks % self._ticks_a_second:
            for listing in self.listings:
                listing.trim()
        if until_ms >= self._next_second:
            self._end_second(until_ms, emit)

    def burst(self, name: str, count: int, emit: Emit) -> None:
        """Let one symbol have `count` taker orders of one fill each, now."""
        number = self.listings.index(self.by_name[name])
        for _ in range(count):
            self._order(number, 1, self.now_ms, emit)

    def flush_depth(self, number: int, emit: Emit) -> None:
        """Put what changed in a book on its 100 ms streams."""
        taken = self.listings[number].book.take_fast()
        if taken is None:
            return
        first, last, bids, asks = taken
        key = DEPTH_FAST * len(self.listings) + number
        emit(DepthEvent(key, last, first, self.now_ms, bids, asks))

    def _trade(self, until_ms: int, emit: Emit) -> None:
        start, span = self.now_ms, max(until_ms - self.now_ms, 1)
        planned = max(int(self._messages_due), 1)
        depths = int(self._depths_due)
        self._depths_due -= depths
        done = flushed = 0
        draw, numbers, fills = self._random.random, self._numbers, self._fills
        while self._messages_due >= 1:
            time = start + min(done * span // planned, span - 1)
            number = numbers[int(draw() * _TABLE)]
            if draw() < self._order_chance:
                cost = self._order(number, fills[int(draw() * _TABLE)], time, emit)
            else:
                cost = self._quote(number, emit)
            self._messages_due -= cost
            done += cost
            if flushed < depths and done * depths >= flushed * planned:
                flushed += 1
                self._depth(time, emit)
        for _ in range(flushed, depths):
            self._depth(until_ms - 1, emit)

    def _order(self, number: int, fills: int, time: int, emit: Emit) -> int:
        listing = self.listings[number]
        first = listing.tape.next_trade
        aggregate = listing.tape.next_aggregate
        maker, price, quantities = listing.order(fills, time)
        trade = first
        for quantity in quantities:
            emit(TradeEvent(number, trade, price, quantity, time, maker))
            trade += 1
        key = AGGREGATE * len(self.listings) + number
        emit(AggregateEvent(key, aggregate, price, sum(quantities), first, trade - 1, time, maker))
        return ((trade - first) if self._counts_trades else 0) + self._counts_aggregates

    def _quote(self, number: int, emit: Emit) -> int:
        listing = self.listings[number]
        listing.touch_quote()
        emit(QuoteEvent(QUOTE * len(self.listings) + number, listing.book.update_id))
        return 1

    def _depth(self, time: int, emit: Emit) -> None:
        number = self._next_depth
        self._next_depth = (number + 1) % len(self.listings)
        listing = self.listings[number]
        for _ in range(self._depth_levels):
            listing.change_level()
        self.now_ms = time
        self.flush_depth(number, emit)

    def _end_second(self, now_ms: int, emit: Emit) -> None:
        self._next_second = now_ms // _SECOND_MS * _SECOND_MS + _SECOND_MS
        for number, listing in enumerate(self.listings):
            listing.bars.roll(now_ms)
            if not self._depth_rate:
                self.flush_depth(number, emit)
            taken = listing.book.take_slow()
            if taken is not None:
                first, last, bids, asks = taken
                key = DEPTH_SLOW * len(self.listings) + number
                emit(DepthEvent(key, last, first, now_ms, bids, asks))
        if self.rate and self._block_trades_ms and now_ms >= self._next_block_ms:
            self._next_block_ms = now_ms + self._block_trades_ms
            self._block_trades(now_ms, emit)

    def _block_trades(self, now_ms: int, emit: Emit) -> None:
        for number, listing in enumerate(self.listings):
            trade, price, quantity, maker = listing.block_trade(now_ms - 1)
            key = BLOCK_TRADE * len(self.listings) + number
            emit(TradeEvent(key, trade, price, quantity, now_ms - 1, maker))

    def _fill_table(self, mean: float) -> list[int]:
        table = []
        due = 0.0
        for _ in range(_TABLE):
            due += mean
            fills = min(self._geometric(1 / mean), _MOST_FILLS, max(int(due), 1))
            table.append(fills)
            due -= fills
        for index in range(int(due)):
            table[index % _TABLE] += 1
        return table

    def _geometric(self, chance: float) -> int:
        count = 1
        while self._random.random() > chance and count < _MOST_FILLS:
            count += 1
        return count

    @staticmethod
    def _popularity(count: int) -> list[int]:
        """Make a table of listing numbers, the first listings more often than the later ones."""
        weights = [1 / (rank + 1) ** 0.7 for rank in range(count)]
        scale = max(_TABLE - count, 0) / sum(weights)
        table = [number for number, weight in enumerate(weights) for _ in range(1 + int(weight * scale))]
        return (table * (_TABLE // len(table) + 1))[:_TABLE] if len(table) < _TABLE else table
