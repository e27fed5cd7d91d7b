"""Payloads as the exchange writes them: field order, eight-decimal strings, integer ids and times.

Orders of fields follow protocol section 4; the rolling-window tickers follow the wire (p, P, w, o, h, l, c),
not the documentation's table, as recorded frames do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.exchange.bars import MINUTE_MS, next_open
from sandbox.exchange.streams import WINDOWS_MS
from sandbox.exchange.symbols import decimal_text

if TYPE_CHECKING:
    from sandbox.exchange.bars import Bar, Series
    from sandbox.exchange.book import Level
    from sandbox.exchange.listing import AggregateEvent, DepthEvent, Listing, QuoteEvent, TradeEvent

_FLAG = ("false", "true")
_DAY_MS = 86_400_000
_AVERAGE_MS = 300_000


def trade(listing: Listing, event: TradeEvent) -> str:
    """`<symbol>@trade`."""
    _, number, price, quantity, time, maker = event
    return (
        f'{{"e":"trade","E":{time + 1},"s":"{listing.spec.name}","t":{number},'
        f'"p":"{listing.price_text[price]}","q":"{listing.lot_text[quantity]}",'
        f'"T":{time},"m":{_FLAG[maker]},"M":true}}'
    )


def block_trade(listing: Listing, event: TradeEvent) -> str:
    """`<symbol>@blockTrade`: ids of its own and no `M`."""
    _, number, price, quantity, time, maker = event
    return (
        f'{{"e":"blockTrade","E":{time + 1},"s":"{listing.spec.name}","t":{number},'
        f'"p":"{listing.price_text[price]}","q":"{listing.lot_text[quantity]}",'
        f'"T":{time},"m":{_FLAG[maker]}}}'
    )


def agg_trade(listing: Listing, event: AggregateEvent) -> str:
    """`<symbol>@aggTrade`."""
    _, number, price, quantity, first, last, time, maker = event
    return (
        f'{{"e":"aggTrade","E":{time + 1},"s":"{listing.spec.name}","a":{number},'
        f'"p":"{listing.price_text[price]}","q":"{listing.lot_text[quantity]}",'
        f'"f":{first},"l":{last},"T":{time},"m":{_FLAG[maker]},"M":true}}'
    )


def book_ticker(listing: Listing, event: QuoteEvent) -> str:
    """`<symbol>@bookTicker`: no event type and no time."""
    bids, asks = listing.book.bids, listing.book.asks
    price, lots = listing.price_text, listing.lot_text
    return (
        f'{{"u":{event.id},"s":"{listing.spec.name}",'
        f'"b":"{price[bids.best]}","B":"{lots[bids.levels[bids.best]]}",'
        f'"a":"{price[asks.best]}","A":"{lots[asks.levels[asks.best]]}"}}'
    )


def depth_update(listing: Listing, event: DepthEvent) -> str:
    """`<symbol>@depth[@100ms]`."""
    _, last, first, time, bids, asks = event
    return (
        f'{{"e":"depthUpdate","E":{time},"s":"{listing.spec.name}","U":{first},"u":{last},'
        f'"b":[{levels(listing, bids)}],"a":[{levels(listing, asks)}]}}'
    )


def partial_depth(listing: Listing, update_id: int, limit: int) -> str:
    """`<symbol>@depth5|10|20`, and the answer of `GET /api/v3/depth`."""
    book = listing.book
    return (
        f'{{"lastUpdateId":{update_id},"bids":[{levels(listing, book.bids.top(limit))}],'
        f'"asks":[{levels(listing, book.asks.top(limit))}]}}'
    )


def levels(listing: Listing, chosen: list[Level]) -> str:
    """Write the inside of a JSON list of `["price","quantity"]` pairs."""
    price_text, lot_text = listing.price_text, listing.lot_text
    return ",".join([f'["{price_text[price]}","{lot_text[lots]}"]' for price, lots in chosen])


def kline(listing: Listing, series: Series, bar: Bar, now_ms: int, *, closed: bool) -> str:
    """`<symbol>@kline_<interval>`, with and without UTC offset: the payload does not tell which."""
    price, lots, quote = listing.price_text, listing.lot_text, listing.quote_decimals
    end = next_open(bar.opening, series.interval, series.offset) - 1
    name = listing.spec.name
    return (
        f'{{"e":"kline","E":{now_ms},"s":"{name}","k":{{"t":{bar.opening},"T":{end},"s":"{name}",'
        f'"i":"{series.interval}","f":{bar.first},"L":{bar.last},"o":"{price[bar.open]}",'
        f'"c":"{price[bar.close]}","h":"{price[bar.high]}","l":"{price[bar.low]}",'
        f'"v":"{lots[bar.volume]}","n":{bar.count},"x":{_FLAG[closed]},'
        f'"q":"{decimal_text(bar.quote, quote)}","V":"{lots[bar.taker_volume]}",'
        f'"Q":"{decimal_text(bar.taker_quote, quote)}","B":"0"}}}}'
    )


def mini_ticker(listing: Listing, now_ms: int) -> str:
    """`<symbol>@miniTicker`, and an element of `!miniTicker@arr`."""
    bar = listing.bars.window(now_ms - _DAY_MS)
    price = listing.price_text
    return (
        f'{{"e":"24hrMiniTicker","E":{now_ms},"s":"{listing.spec.name}","c":"{price[listing.last_price]}",'
        f'"o":"{price[bar.open]}","h":"{price[bar.high]}","l":"{price[bar.low]}",'
        f'"v":"{listing.lot_text[bar.volume]}","q":"{decimal_text(bar.quote, listing.quote_decimals)}"}}'
    )


def ticker(listing: Listing, now_ms: int) -> str:
    """`<symbol>@ticker`: 24 hours, with the best quote and the last quantity."""
    bar = listing.bars.window(now_ms - _DAY_MS)
    price, lots = listing.price_text, listing.lot_text
    bids, asks = listing.book.bids, listing.book.asks
    return (
        f'{{"e":"24hrTicker","E":{now_ms},"s":"{listing.spec.name}",{_change(listing, bar)},'
        f'"x":"{price[bar.open]}","c":"{price[listing.last_price]}","Q":"{lots[listing.last_quantity]}",'
        f'"b":"{price[bids.best]}","B":"{lots[bids.levels[bids.best]]}",'
        f'"a":"{price[asks.best]}","A":"{lots[asks.levels[asks.best]]}",'
        f'"o":"{price[bar.open]}","h":"{price[bar.high]}","l":"{price[bar.low]}",'
        f'"v":"{lots[bar.volume]}","q":"{decimal_text(bar.quote, listing.quote_decimals)}",'
        f'"O":{now_ms - _DAY_MS},"C":{now_ms},"F":{bar.first},"L":{bar.last},"n":{bar.count}}}'
    )


def rolling_ticker(listing: Listing, window: str, now_ms: int) -> str:
    """`<symbol>@ticker_<window>`; `O` snaps to a minute, so the window is up to 59,999 ms wider."""
    opening = (now_ms - WINDOWS_MS[window]) // MINUTE_MS * MINUTE_MS
    bar = listing.bars.window(opening)
    price = listing.price_text
    return (
        f'{{"e":"{window}Ticker","E":{now_ms},"s":"{listing.spec.name}",{_change(listing, bar)},'
        f'"o":"{price[bar.open]}","h":"{price[bar.high]}","l":"{price[bar.low]}",'
        f'"c":"{price[bar.close]}","v":"{listing.lot_text[bar.volume]}",'
        f'"q":"{decimal_text(bar.quote, listing.quote_decimals)}",'
        f'"O":{opening},"C":{now_ms},"F":{bar.first},"L":{bar.last},"n":{bar.count}}}'
    )


def average_price(listing: Listing, now_ms: int) -> str:
    """`<symbol>@avgPrice` over five minutes; `T` is the time of the last trade."""
    bar = listing.bars.window(now_ms - _AVERAGE_MS)
    return (
        f'{{"e":"avgPrice","E":{now_ms},"s":"{listing.spec.name}","i":"5m",'
        f'"w":"{_average(listing, bar)}","T":{listing.last_time}}}'
    )


def reference_price(listing: Listing, now_ms: int) -> str:
    """`<symbol>@referencePrice`: null while nothing has traded; `t` is the engine's time."""
    traded = listing.last_quantity > 0
    text = f'"{listing.price_text[listing.last_price]}"' if traded else "null"
    return f'{{"e":"referencePrice","s":"{listing.spec.name}","r":{text},"t":{now_ms}}}'


def _average(listing: Listing, bar: Bar) -> str:
    if not bar.volume:
        return listing.price_text[bar.close]
    return decimal_text(bar.quote * 10**4 // bar.volume, listing.spec.price_decimals + 4)


def _change(listing: Listing, bar: Bar) -> str:
    change = bar.close - bar.open
    percent = decimal_text(change * 100_000 // bar.open, 3, places=3)
    text = decimal_text(change, listing.spec.price_decimals)
    return f'"p":"{text}","P":"{percent}","w":"{_average(listing, bar)}"'
