"""The simulated market is pure: no socket, no clock, one seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.exchange.bars import next_open, open_time
from sandbox.exchange.feed import Feed
from sandbox.exchange.listing import AggregateEvent, DepthEvent, TradeEvent
from sandbox.exchange.market import AGGREGATE, BLOCK_TRADE, DEPTH_FAST, DEPTH_SLOW, TRADE, Market
from sandbox.exchange.settings import Mix, Settings
from sandbox.exchange.symbols import NON_ASCII_SYMBOL, decimal_text, symbol_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange.record import Tally

START_MS = 1_723_161_255_000
SYMBOLS = ("BTCUSDT", "ETHUSDT", "XRPUSDT")


def run(ticks: int, **changes: Any) -> tuple[Market, list[Any]]:
    settings = Settings(**{"rate": 20_000, "symbols": SYMBOLS, "tick_ms": 5} | changes)
    market = Market(settings, START_MS)
    events: list[Any] = []
    for number in range(1, ticks + 1):
        market.tick(START_MS + number * 5, events.append)
    return market, events


def of_kind(events: list[Any], kind: int, number: int, count: int = len(SYMBOLS)) -> list[Any]:
    return [event for event in events if event.key == kind * count + number]


def test_the_same_seed_and_ticks_give_the_same_market() -> None:
    assert run(300)[1] == run(300)[1]
    assert run(300, seed=8)[1] != run(300)[1]


def test_times_are_data_and_do_not_change_what_trades(monkeypatch: pytest.MonkeyPatch) -> None:
    """For more than a minute, so that block trades come between and books grow too deep."""
    monkeypatch.setattr("sandbox.exchange.listing._MOST_LEVELS", 60)
    settings = Settings(rate=1_000, symbols=SYMBOLS)
    told: list[list[Any]] = []
    for start in (START_MS, START_MS + 86_400_123):
        market, events = Market(settings, start), []
        for number in range(1, 13_000):
            market.tick(start + number * 5, events.append)
        of_blocks = range(BLOCK_TRADE * len(SYMBOLS), (BLOCK_TRADE + 1) * len(SYMBOLS))
        trades = [event for event in events if isinstance(event, TradeEvent)]
        assert sum(event.key in of_blocks for event in trades) >= 2 * len(SYMBOLS)
        told.append([event[:4] for event in trades if event.key not in of_blocks])
    assert told[0] == told[1]


def test_trade_ids_step_by_one_and_aggregates_join_without_a_hole() -> None:
    _, events = run(400)
    for number in range(len(SYMBOLS)):
        trades = of_kind(events, TRADE, number)
        aggregates = of_kind(events, AGGREGATE, number)
        assert len(trades) > 100
        assert all(later.id == earlier.id + 1 for earlier, later in pairwise(trades))
        pairs = list(pairwise(aggregates))
        assert all(later.id == earlier.id + 1 and later.first == earlier.last + 1 for earlier, later in pairs)
        by_id = {trade.id: trade for trade in trades}
        for aggregate in aggregates:
            fills = [by_id[one] for one in range(aggregate.first, aggregate.last + 1)]
            assert sum(fill.quantity for fill in fills) == aggregate.quantity
            assert {(fill.price, fill.time, fill.maker) for fill in fills} == {
                (aggregate.price, aggregate.time, aggregate.maker)
            }


def test_some_aggregates_have_several_trades() -> None:
    _, events = run(200)
    spans = {event.last - event.first for event in events if isinstance(event, AggregateEvent)}
    assert len(spans) > 1


@pytest.mark.parametrize("kind", [DEPTH_FAST, DEPTH_SLOW])
def test_depth_diffs_chain_and_reproduce_the_book(kind: int) -> None:
    settings = Settings(rate=20_000, symbols=SYMBOLS, tick_ms=5)
    market = Market(settings, START_MS)
    books = [(dict(each.book.bids.levels), dict(each.book.asks.levels)) for each in market.listings]
    events: list[Any] = []
    for number in range(1, 801):
        market.tick(START_MS + number * 5, events.append)
    for number, (bids, asks) in enumerate(books):
        diffs = of_kind(events, kind, number)
        assert len(diffs) >= 3
        assert all(later.first == earlier.id + 1 for earlier, later in pairwise(diffs))
        for diff in diffs:
            assert isinstance(diff, DepthEvent)
            assert diff.bids or diff.asks
            for side, changes in ((bids, diff.bids), (asks, diff.asks)):
                side.update(changes)
                for price in [price for price, quantity in changes if not quantity]:
                    side.pop(price, None)
            assert max(bids) < min(asks)
    listing = market.listings[0]
    if kind == DEPTH_SLOW:
        assert books[0] == (listing.book.bids.levels, listing.book.asks.levels)


def test_the_book_is_never_crossed_nor_empty_over_a_long_run() -> None:
    settings = Settings(rate=50_000, symbols=("BTCUSDT",), tick_ms=5)
    market = Market(settings, START_MS)
    book = market.listings[0].book
    for number in range(1, 1_001):
        market.tick(START_MS + number * 5, lambda _: None)
        assert book.bids.best < book.asks.best
        if number % 10 == 0:
            assert book.bids.best == max(book.bids.levels)
            assert book.asks.best == min(book.asks.levels)
        assert len(book.bids.levels) < 5_000
    listing = market.listings[0]
    assert abs(listing.last_price / listing.spec.first_price - 1) < 0.2


def test_times_of_trades_never_go_back_and_lie_within_their_tick() -> None:
    market, events = run(300)
    for number in range(len(SYMBOLS)):
        times = [event.time for event in of_kind(events, TRADE, number)]
        assert times == sorted(times)
        assert START_MS <= times[0] < times[-1] < market.now_ms


class Listening:
    """A connection that keeps the frames it is handed, and what it is told to have been handed."""

    combined = True

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.told: Counter[str] = Counter()

    def sink(self, stream: str) -> Callable[[bytes], None]:  # noqa: ARG002 - as a route asks
        return self.frames.append

    def count(self, stream: str, tally: Tally) -> None:
        self.told[stream] += tally.frames


@pytest.mark.parametrize(("rate", "seconds"), [(1, 60), (1_000, 2), (100_000, 1)])
def test_from_1_to_100000_messages_a_second_of_market_time_reach_who_listens(rate: int, seconds: int) -> None:
    market = Market(Settings(rate=rate, symbols=SYMBOLS), START_MS)
    feed, listening = Feed(market), Listening()
    for symbol in SYMBOLS:
        for kind in ("trade", "aggTrade", "depth@100ms", "bookTicker"):
            feed.listen(listening, f"{symbol.lower()}@{kind}")
    for number in range(1, seconds * 200 + 1):
        market.tick(START_MS + number * 5, feed.emit)
        feed.settle()
    assert market.now_ms == START_MS + seconds * 1_000
    assert abs(len(listening.frames) - rate * seconds) <= 13  # the last order may have several fills
    assert sum(listening.told.values()) == len(listening.frames)
    assert len(set(listening.frames)) == len(listening.frames)
    assert len(listening.told) == 12 or rate == 1


@pytest.mark.parametrize("rate", [1, 7, 500, 30_000])
def test_the_rate_is_kept_exactly_over_ticks(rate: int) -> None:
    _, events = run(1_000, rate=rate)
    counted = [event for event in events if event.key // len(SYMBOLS) not in (DEPTH_SLOW, BLOCK_TRADE)]
    assert abs(len(counted) - rate * 5) <= 13


def test_the_mix_is_kept() -> None:
    mix = Mix.parse("trade=50,aggTrade=40,depth=10")
    _, events = run(500, rate=20_000, mix=mix)
    counts = {kind: sum(event.key // len(SYMBOLS) == kind for event in events) for kind in range(4)}
    assert counts[TRADE] == pytest.approx(25_000, rel=0.05)
    assert counts[AGGREGATE] == pytest.approx(20_000, rel=0.05)
    assert counts[DEPTH_FAST] == pytest.approx(5_000, rel=0.02)


def test_klines_are_the_trades_of_their_interval() -> None:
    market, events = run(2_000, rate=2_000)
    for number, listing in enumerate(market.listings):
        trades = of_kind(events, TRADE, number)
        series = listing.bars.klines("1s", 0)
        assert len(series) >= 10
        for bar in series:
            inside = [trade for trade in trades if bar.opening <= trade.time < bar.opening + 1000]
            assert bar.count == len(inside)
            assert bar.volume == sum(trade.quantity for trade in inside)
            assert bar.quote == sum(trade.quantity * trade.price for trade in inside)
            assert bar.taker_volume == sum(trade.quantity for trade in inside if not trade.maker)
            if inside:
                assert (bar.first, bar.last) == (inside[0].id, inside[-1].id)
                assert (bar.open, bar.close) == (inside[0].price, inside[-1].price)
                assert bar.high == max(trade.price for trade in inside)
                assert bar.low == min(trade.price for trade in inside)


def test_every_interval_is_the_sum_of_the_seconds() -> None:
    market, events = run(2_000, rate=500)
    trades = len(of_kind(events, TRADE, 0))
    for interval in ("1s", "1m", "15m", "1h", "4h", "1d", "3d", "1w", "1M"):
        for offset in (0, 8 * 3_600_000):
            assert sum(bar.count for bar in market.listings[0].bars.klines(interval, offset)) == trades


@pytest.mark.parametrize(
    ("interval", "offset_hours", "opening"),
    [
        ("1m", 0, 1_723_161_240_000),
        ("1h", 0, 1_723_158_000_000),
        ("1d", 0, 1_723_075_200_000),
        ("1d", 8, 1_723_132_800_000),
        ("1w", 0, 1_722_816_000_000),
        ("1M", 0, 1_722_470_400_000),
    ],
)
def test_bars_open_where_the_exchange_opens_them(interval: str, offset_hours: int, opening: int) -> None:
    offset = offset_hours * 3_600_000
    assert open_time(START_MS, interval, offset) == opening
    assert open_time(next_open(opening, interval, offset) - 1, interval, offset) == opening
    assert open_time(next_open(opening, interval, offset), interval, offset) > opening


def test_history_is_bounded_and_keeps_the_newest() -> None:
    market, events = run(1_000, rate=10_000, history=1_000)
    trades = of_kind(events, TRADE, 0)
    tape = market.listings[0].tape
    kept = tape.trades(0, 10_000, 2**62)
    assert 1_000 <= len(kept) <= 1_300
    assert [row.id for row in kept] == [trade.id for trade in trades[-len(kept) :]]
    assert tape.aggregates(0, 1, 2**62)[0].first == kept[0].id


def test_symbols_can_be_named_or_counted() -> None:
    assert symbol_names("btcusdt, ETHUSDT") == ("BTCUSDT", "ETHUSDT")
    many = symbol_names("500")
    assert len(set(many)) == 500
    assert many[:2] == ("BTCUSDT", "ETHUSDT")
    assert symbol_names(NON_ASCII_SYMBOL) == (NON_ASCII_SYMBOL,)


def test_decimals_are_written_as_the_exchange_does() -> None:
    assert decimal_text(6_183_763, 2) == "61837.63000000"
    assert decimal_text(1, 5) == "0.00001000"
    assert decimal_text(-99, 3, places=3) == "-0.099"
    assert decimal_text(123_456_789_012, 10) == "12.34567890"
    assert decimal_text(7, 0) == "7.00000000"
