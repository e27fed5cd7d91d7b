"""One symbol's market: its book, its tape, its bars, and the few things that can happen to them."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from sandbox.exchange.bars import BarHistory
from sandbox.exchange.book import Book, Level, Side
from sandbox.exchange.symbols import DecimalText, SymbolSpec
from sandbox.exchange.tape import Tape

_TABLE = 1024
_OPENING_LEVELS = 250
_FEWEST_LEVELS = 40
_MOST_LEVELS = 1500
_KEEP_SECONDS = 7_200
_KEEP_MINUTES = 10_080


class TradeEvent(NamedTuple):
    """A fill as the stream carries it; `key` says which listing and kind."""

    key: int
    id: int
    price: int
    quantity: int
    time: int
    maker: bool


class AggregateEvent(NamedTuple):
    """A taker order's fills at one price."""

    key: int
    id: int
    price: int
    quantity: int
    first: int
    last: int
    time: int
    maker: bool


class QuoteEvent(NamedTuple):
    """The best bid or ask changed; `id` is the update id, the quote is read from the book."""

    key: int
    id: int


class DepthEvent(NamedTuple):
    """Levels that changed: `id` is the final update id, `first` the first one."""

    key: int
    id: int
    first: int
    time: int
    bids: list[Level]
    asks: list[Level]


class Listing:
    """The state of one symbol. All randomness comes from the market's one seeded source.

    But for block trades, which follow the clock: what they draw must not change what else trades.
    """

    def __init__(self, spec: SymbolSpec, random: Random, start_ms: int, history: int) -> None:
        self.spec = spec
        self.price_text = DecimalText(spec.price_decimals)
        self.lot_text = DecimalText(spec.lot_decimals)
        self.quote_decimals = spec.price_decimals + spec.lot_decimals
        self.tape = Tape(random.randrange(10**8, 4 * 10**9), random.randrange(10**7, 10**9), history)
        self.next_block_trade = random.randrange(1, 10**5)
        self.book = Book(spec.first_price, random.randrange(10**9, 6 * 10**10))
        self.bars = BarHistory(start_ms, spec.first_price, _KEEP_SECONDS, _KEEP_MINUTES)
        self.last_price = spec.first_price
        self.last_quantity = 0
        self.last_time = start_ms
        self.started_ms = start_ms
        self._random = random
        self._random_of_blocks = Random(self.next_block_trade)
        self._sizes = [1 + int(random.paretovariate(1.1) * spec.typical_lots / 20) for _ in range(_TABLE)]
        self._depths = [1 + min(int(random.paretovariate(0.7)), 400) for _ in range(_TABLE)]
        self._pull = 40 / spec.first_price
        self._open_book()

    def order(self, fills: int, time: int) -> tuple[bool, int, list[int]]:
        """Let one taker order trade at the best price: whether the buyer was the maker, price, quantities."""
        draw = self._random.random
        book = self.book
        maker = draw() < 0.5 + (self.last_price - self.spec.first_price) * self._pull
        side = book.bids if maker else book.asks
        price = side.best
        available = side.levels[price]
        taken = max(self._sizes[int(draw() * _TABLE)] // 2, fills)
        if taken >= available:
            taken = available
            if len(side.levels) <= _FEWEST_LEVELS:
                self._refill(side)
        book.set(side, price, available - taken)
        quantities = self._split(taken, fills)
        self.tape.append(price, time, quantities, maker=maker)
        self._note(price, taken, time, quantities, maker=maker)
        return maker, price, quantities

    def change_level(self) -> None:
        """Let one level of the book be placed, changed or cancelled; the book never crosses."""
        draw = self._random.random
        book = self.book
        chance = draw()
        side = book.bids if chance < 0.5 else book.asks  # noqa: PLR2004 - either side alike
        size = self._sizes[int(draw() * _TABLE)] * 3
        if book.asks.best - book.bids.best > 1 and draw() < 0.5:  # noqa: PLR2004 - closes the gap
            book.set(side, side.best - side.step, size)
            return
        price = side.best + side.step * (self._depths[int(draw() * _TABLE)] - 1)
        if price <= 0:
            return
        present = side.levels.get(price, 0)
        if not present:
            book.set(side, price, size)
        elif draw() < 0.6 and len(side.levels) > _FEWEST_LEVELS:  # noqa: PLR2004 - real depth is mostly removals
            book.set(side, price, 0)
        else:
            book.set(side, price, size if size != present else size + 1)

    def touch_quote(self) -> None:
        """Give the best bid or ask another quantity."""
        draw = self._random.random
        side = self.book.bids if draw() < 0.5 else self.book.asks  # noqa: PLR2004 - either side alike
        size = self._sizes[int(draw() * _TABLE)] * 3
        present = side.levels[side.best]
        self.book.set(side, side.best, size if size != present else size + 1)

    def trim(self) -> None:
        """Cancel the worst levels of a book that grew too deep, as changes like any other."""
        for side in (self.book.bids, self.book.asks):
            for price in side.worst(_MOST_LEVELS):
                self.book.set(side, price, 0)

    def block_trade(self, time: int) -> tuple[int, int, int, bool]:
        """Trade outside the book, with an id space of its own: id, price, quantity, maker."""
        number = self.next_block_trade
        self.next_block_trade += 1
        self.last_time = max(self.last_time, time)
        return number, self.last_price, self.spec.typical_lots * 50, self._random_of_blocks.random() < 0.5  # noqa: PLR2004

    def _note(self, price: int, taken: int, time: int, quantities: list[int], *, maker: bool) -> None:
        bars = self.bars
        if time >= bars.second_end:
            bars.roll(time)
        bar = bars.second
        fills = len(quantities)
        last = self.tape.next_trade - 1
        if not bar.count:
            bar.open = bar.high = bar.low = price
            bar.first = last + 1 - fills
        elif price > bar.high:
            bar.high = price
        elif price < bar.low:
            bar.low = price
        bar.close = price
        bar.last = last
        bar.count += fills
        bar.volume += taken
        bar.quote += price * taken
        if not maker:
            bar.taker_volume += taken
            bar.taker_quote += price * taken
        self.last_price, self.last_quantity, self.last_time = price, quantities[-1], time

    def _split(self, taken: int, fills: int) -> list[int]:
        if fills == 1 or taken < fills:
            return [taken]
        share, rest = divmod(taken, fills)
        return [share] * (fills - 1) + [share + rest]

    def _refill(self, side: Side) -> None:
        for distance in range(1, _FEWEST_LEVELS):
            price = side.best + side.step * distance
            if price > 0 and price not in side.levels:
                self.book.set(side, price, self._sizes[distance] * 3)

    def _open_book(self) -> None:
        book = self.book
        for number in range(_OPENING_LEVELS):
            distance = number if number < _FEWEST_LEVELS else number + (number - _FEWEST_LEVELS) * 3
            for side, start in ((book.bids, self.spec.first_price), (book.asks, self.spec.first_price + 1)):
                price = start + side.step * distance
                if price > 0:
                    book.set(side, price, self._sizes[(number * 7) % _TABLE] * 3)
        book.settle()
