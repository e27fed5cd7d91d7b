"""`/api/v3`: what was missed, answered from the same tape and book that the streams come from."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sandbox.exchange import payloads
from sandbox.exchange.bars import next_open
from sandbox.exchange.budget import Budget
from sandbox.exchange.query import ApiError, Query
from sandbox.exchange.symbols import decimal_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange.bars import Bar
    from sandbox.exchange.core import Core
    from sandbox.exchange.listing import Listing
    from sandbox.exchange.tape import Aggregate, Trade

_ROWS, _MOST_ROWS = 500, 1000
_DEPTH_WEIGHTS = ((100, 5), (500, 25), (1000, 50), (5000, 250))
_MOST_LEVELS = 5000
_DEFAULT_LEVELS = 100
_QUOTES = ("USDT", "BTC", "ETH", "EUR")
_WEIGHTS = {
    "ping": 1,
    "time": 1,
    "exchangeInfo": 20,
    "aggTrades": 4,
    "historicalTrades": 25,
    "trades": 25,
    "klines": 2,
}


@dataclass(frozen=True)
class Forced:
    """An answer that was commanded; without a body that of an unknown error."""

    status: int
    body: str | None = None
    retry_after_s: int | None = None


class Rest:
    """The REST side: weights, refusals, faults, answers. Historical answers lag by `lag_s`, as a database may."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.budget = Budget(core.settings.rest)
        self.lag_s = core.settings.rest.lag_s
        self.delay_s = 0.0
        self.forced: list[Forced] = []

    def routes(self) -> list[web.RouteDef]:
        """Every endpoint as a route."""
        answers: dict[str, Callable[[Query], str]] = {
            "ping": lambda _: "{}",
            "time": lambda _: json.dumps({"serverTime": self._now_ms()}, separators=(",", ":")),
            "exchangeInfo": self._exchange_info,
            "aggTrades": self._agg_trades,
            "historicalTrades": self._historical_trades,
            "trades": self._recent_trades,
            "klines": self._klines,
            "depth": self._depth,
        }
        return [web.get(f"/api/v3/{name}", partial(self._serve, name, answer)) for name, answer in answers.items()]

    async def _serve(self, name: str, answer: Callable[[Query], str], request: web.Request) -> web.Response:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.forced:
            return self._forced(self.forced.pop(0))
        query = Query(request.query, self._core.market.by_name)
        refusal = self.budget.charge(self._weight(name, query), self._now_ms())
        if refusal is not None:
            return self._error(refusal.status, -1003, refusal.message, refusal.retry_after_s)
        try:
            text = answer(query)
        except ApiError as error:
            return self._error(400, error.code, str(error))
        return web.Response(text=text, content_type="application/json", headers=self._headers())

    def _forced(self, forced: Forced) -> web.Response:
        if forced.body is None:
            message = "An unknown error occurred while processing the request."
            return self._error(forced.status, -1000, message, forced.retry_after_s)
        return web.Response(status=forced.status, text=forced.body, headers=self._headers())

    def _weight(self, name: str, query: Query) -> int:
        if name != "depth":
            return _WEIGHTS[name]
        try:
            limit = query.limit(_DEFAULT_LEVELS, _MOST_LEVELS)
        except ApiError:
            limit = _DEFAULT_LEVELS
        return next(weight for most, weight in _DEPTH_WEIGHTS if limit <= most)

    def _headers(self) -> dict[str, str]:
        used = str(self.budget.used)
        return {"X-MBX-USED-WEIGHT": used, "X-MBX-USED-WEIGHT-1M": used}

    def _error(self, status: int, code: int, message: str, retry_after_s: int | None = None) -> web.Response:
        headers = self._headers()
        if retry_after_s is not None:
            headers["Retry-After"] = str(retry_after_s)
        text = json.dumps({"code": code, "msg": message}, separators=(",", ":"))
        return web.Response(status=status, text=text, content_type="application/json", headers=headers)

    def _now_ms(self) -> int:
        return self._core.pump.now_ms()

    def _known_until(self) -> int:
        return self._now_ms() - int(self.lag_s * 1000)

    def _agg_trades(self, query: Query) -> str:
        query.only("symbol", "fromId", "startTime", "endTime", "limit")
        tape = query.listing().tape
        first, start, end = query.number("fromId"), query.time("startTime"), query.time("endTime")
        limit = query.limit(_ROWS, _MOST_ROWS)
        if first is not None and (start is not None or end is not None):
            raise ApiError(-1128, "Combination of optional parameters invalid.")
        until = min(self._known_until(), end if end is not None else self._known_until())
        if first is None and start is not None:
            first = tape.aggregate_at(start)
        if first is None:
            first = tape.aggregate_at(until + 1) - limit
        rows = tape.aggregates(first, limit, until)
        return _joined(_aggregate(query.listing(), row) for row in rows)

    def _historical_trades(self, query: Query) -> str:
        query.only("symbol", "fromId", "limit")
        listing = query.listing()
        limit, until = query.limit(_ROWS, _MOST_ROWS), self._known_until()
        first = query.number("fromId")
        if first is None:
            first = listing.tape.trades_known_until(until) - limit
        return _joined(_trade(listing, row) for row in listing.tape.trades(first, limit, until))

    def _recent_trades(self, query: Query) -> str:
        query.only("symbol", "limit")
        listing = query.listing()
        limit = query.limit(_ROWS, _MOST_ROWS)
        rows = listing.tape.trades(listing.tape.next_trade - limit, limit, self._now_ms())
        return _joined(_trade(listing, row) for row in rows)

    def _klines(self, query: Query) -> str:
        query.only("symbol", "interval", "startTime", "endTime", "timeZone", "limit")
        listing = query.listing()
        interval, offset, limit = query.interval(), query.zone_ms(), query.limit(_ROWS, _MOST_ROWS)
        start, end = query.time("startTime"), query.time("endTime")
        until = min(self._known_until(), end if end is not None else self._known_until())
        bars = [
            bar
            for bar in listing.bars.klines(interval, offset)
            if bar.opening <= until and (start is None or bar.opening >= start)
        ]
        chosen = bars[:limit] if start is not None else bars[-limit:]
        return _joined(_kline(listing, bar, next_open(bar.opening, interval, offset) - 1) for bar in chosen)

    def _depth(self, query: Query) -> str:
        query.only("symbol", "limit", "symbolStatus")
        listing = query.listing()
        limit = query.limit(_DEFAULT_LEVELS, _MOST_LEVELS)
        return payloads.partial_depth(listing, listing.book.update_id, limit)

    def _exchange_info(self, query: Query) -> str:
        query.only("symbol", "symbols", "permissions", "symbolStatus", "showPermissionSets")
        listings = self._core.market.by_name
        names = [name for name in listings if name not in self._core.unlisted]
        if "symbols" in query:
            names = _names(query.mandatory("symbols"))
        elif "symbol" in query:
            names = [query.listing().spec.name]
        if any(name not in listings for name in names):
            raise ApiError(-1121, "Invalid symbol.")
        if query.text("symbolStatus") not in (None, self._core.status):
            names = []
        statuses = self._core.statuses
        minute = {"interval": "MINUTE", "intervalNum": 1, "limit": self._core.settings.rest.weight_per_minute}
        info = {
            "timezone": "UTC",
            "serverTime": self._now_ms(),
            "rateLimits": [
                {"rateLimitType": "REQUEST_WEIGHT", **minute},
                {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 300_000},
            ],
            "exchangeFilters": [],
            "symbols": [_symbol(listings[name], statuses.get(name, self._core.status)) for name in names],
        }
        return json.dumps(info, separators=(",", ":"), ensure_ascii=False)


def _joined(rows: Any) -> str:  # noqa: ANN401 - any iterable of JSON texts
    return f"[{','.join(rows)}]"


def _names(text: str) -> list[str]:
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise ApiError(-1100, "Illegal characters found in parameter 'symbols'.")
    return [str(name) for name in names]


def _aggregate(listing: Listing, row: Aggregate) -> str:
    return (
        f'{{"a":{row.id},"p":"{listing.price_text[row.price]}","q":"{listing.lot_text[row.quantity]}",'
        f'"f":{row.first},"l":{row.last},"T":{row.time},"m":{_flag(row.maker)},"M":true}}'
    )


def _trade(listing: Listing, row: Trade) -> str:
    quote = decimal_text(row.price * row.quantity, listing.quote_decimals)
    return (
        f'{{"id":{row.id},"price":"{listing.price_text[row.price]}","qty":"{listing.lot_text[row.quantity]}",'
        f'"quoteQty":"{quote}","time":{row.time},"isBuyerMaker":{_flag(row.maker)},"isBestMatch":true}}'
    )


def _kline(listing: Listing, bar: Bar, end: int) -> str:
    price, lots, quote = listing.price_text, listing.lot_text, listing.quote_decimals
    return (
        f'[{bar.opening},"{price[bar.open]}","{price[bar.high]}","{price[bar.low]}","{price[bar.close]}",'
        f'"{lots[bar.volume]}",{end},"{decimal_text(bar.quote, quote)}",{bar.count},'
        f'"{lots[bar.taker_volume]}","{decimal_text(bar.taker_quote, quote)}","0"]'
    )


def _flag(value: bool) -> str:  # noqa: FBT001 - the value itself
    return "true" if value else "false"


def _symbol(listing: Listing, status: str) -> dict[str, Any]:
    spec = listing.spec
    quote = next((each for each in _QUOTES if spec.name.endswith(each)), "USDT")
    return {
        "symbol": spec.name,
        "status": status,
        "baseAsset": spec.name.removesuffix(quote),
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
        "isSpotTradingAllowed": True,
        "filters": [
            {"filterType": "PRICE_FILTER", "tickSize": decimal_text(1, spec.price_decimals)},
            {"filterType": "LOT_SIZE", "stepSize": decimal_text(1, spec.lot_decimals)},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }
