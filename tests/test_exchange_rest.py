"""REST answers for what was missed: the same trades, bars and books that the streams carried."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.exchange import RestRules
from sandbox.exchange.symbols import NON_ASCII_SYMBOL
from tests.exchange_fixtures import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from tests.exchange_fixtures import Client

START_MS = 1_723_161_255_800


def get(exchange: Exchange, path: str, **query: Any) -> tuple[int, Any, Any]:
    url = f"{exchange.rest_url}/api/v3/{path}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers


def rows(exchange: Exchange, path: str, **query: Any) -> Any:
    status, body, _ = get(exchange, path, symbol="BTCUSDT", **query)
    assert status == 200, body
    return body


def carried(exchange: Exchange, connect: Callable[[str], Client]) -> dict[str, list[dict[str, Any]]]:
    client = connect(f"{exchange.ws_url}/btcusdt@trade/btcusdt@aggTrade/btcusdt@kline_1s")
    seen: dict[str, list[dict[str, Any]]] = {"trade": [], "aggTrade": [], "kline": []}
    while len(seen["trade"]) < 1_500 or sum(bar["k"]["x"] for bar in seen["kline"]) < 2:
        message = client.message()
        seen[message["e"]].append(message)
    return seen


def test_history_is_exactly_what_the_streams_carried(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=2_000.0, symbols=("BTCUSDT",), start_ms=START_MS)
    seen = carried(exchange, connect)
    trades, aggregates = seen["trade"][:1000], seen["aggTrade"][:1000]
    fields = ("id", "price", "qty", "time", "isBuyerMaker")
    answered = rows(exchange, "historicalTrades", fromId=trades[0]["t"], limit=len(trades))
    assert [[row[each] for each in fields] for row in answered] == [
        [trade[each] for each in ("t", "p", "q", "T", "m")] for trade in trades
    ]
    assert list(answered[0]) == ["id", "price", "qty", "quoteQty", "time", "isBuyerMaker", "isBestMatch"]
    answered = rows(exchange, "aggTrades", fromId=aggregates[0]["a"], limit=len(aggregates))
    assert answered == [{each: one[each] for each in "apqflTmM"} for one in aggregates]
    start, end = aggregates[100]["T"], aggregates[200]["T"]
    answered = rows(exchange, "aggTrades", startTime=start, endTime=end, limit=1000)
    assert [row["a"] for row in answered] == [one["a"] for one in seen["aggTrade"] if start <= one["T"] <= end]
    closed = [bar["k"] for bar in seen["kline"] if bar["k"]["x"]]
    answered = rows(exchange, "klines", interval="1s", startTime=closed[1]["t"], limit=len(closed) - 1)
    order = ("t", "o", "h", "l", "c", "v", "T", "q", "n", "V", "Q", "B")
    assert answered == [[bar[each] for each in order] for bar in closed[1:]]


def test_the_market_goes_on_while_nobody_is_connected(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=2_000.0, symbols=("BTCUSDT",))
    first = connect(f"{exchange.ws_url}/btcusdt@trade/btcusdt@aggTrade")
    before = {message["e"]: message for message in (first.message() for _ in range(50))}
    first.socket.shutdown()
    eventually(lambda: not exchange.connections()[0]["open"])
    last = rows(exchange, "trades", limit=1)[0]["id"]
    eventually(lambda: rows(exchange, "trades", limit=1)[0]["id"] > last + 200)
    second = connect(f"{exchange.ws_url}/btcusdt@trade/btcusdt@aggTrade")
    after: dict[str, Any] = {}
    while len(after) < 2:
        message = second.message()
        after.setdefault(message["e"], message)
    missed = rows(exchange, "historicalTrades", fromId=before["trade"]["t"] + 1, limit=1000)
    ids = [row["id"] for row in missed]
    assert ids == list(range(before["trade"]["t"] + 1, before["trade"]["t"] + 1 + len(ids)))
    assert after["trade"]["t"] in ids
    agg_ids = [row["a"] for row in rows(exchange, "aggTrades", fromId=before["aggTrade"]["a"] + 1, limit=1000)]
    assert after["aggTrade"]["a"] in agg_ids


def test_depth_diffs_bring_a_snapshot_to_the_next_one(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=3_000.0, symbols=("BTCUSDT",))
    client = connect(f"{exchange.ws_url}/btcusdt@depth@100ms")
    client.message()
    snapshot = rows(exchange, "depth", limit=5000)
    book = {side: dict(snapshot[side]) for side in ("bids", "asks")}
    known = snapshot["lastUpdateId"]
    eventually(lambda: rows(exchange, "depth", limit=5)["lastUpdateId"] > known + 500)
    exchange.rate(0)
    final = rows(exchange, "depth", limit=5000)
    diffs = []
    while not diffs or diffs[-1]["u"] < final["lastUpdateId"]:
        diffs.append(client.message())
    applied = [diff for diff in diffs if diff["u"] > known]
    assert applied[0]["U"] <= known + 1 <= applied[0]["u"]
    for diff in applied:
        assert diff["U"] <= known + 1
        known = diff["u"]
        for side, changes in (("bids", diff["b"]), ("asks", diff["a"])):
            for price, quantity in changes:
                book[side][price] = quantity
                if float(quantity) == 0:
                    book[side].pop(price, None)
        assert max(map(float, book["bids"])) < min(map(float, book["asks"]))
    assert book == {side: dict(final[side]) for side in ("bids", "asks")}


def test_klines_know_every_interval_and_time_zone(
    exchange_factory: Callable[..., Exchange],
) -> None:
    exchange = exchange_factory(start_ms=START_MS)
    exchange.burst(10, "BTCUSDT")
    for interval in ("1s", "1m", "3m", "1h", "12h", "1d", "3d", "1w", "1M"):
        (bar,) = rows(exchange, "klines", interval=interval, limit=1)
        assert len(bar) == 12
        assert bar[6] > bar[0]
    (utc,) = rows(exchange, "klines", interval="1d")
    (east,) = rows(exchange, "klines", interval="1d", timeZone="+08:00")
    assert (utc[0], east[0]) == (1_723_075_200_000, 1_723_132_800_000)
    assert utc[8] == east[8] == 10


def test_time_ping_and_exchange_info(exchange_factory: Callable[..., Exchange]) -> None:
    exchange = exchange_factory(symbols=("BTCUSDT", NON_ASCII_SYMBOL), start_ms=START_MS)
    assert get(exchange, "ping")[1] == {}
    assert START_MS <= get(exchange, "time")[1]["serverTime"] < START_MS + 60_000
    info = get(exchange, "exchangeInfo")[1]
    assert [(each["symbol"], each["status"]) for each in info["symbols"]] == [
        ("BTCUSDT", "TRADING"),
        (NON_ASCII_SYMBOL, "TRADING"),
    ]
    assert info["rateLimits"][0]["limit"] == 6000
    exchange.status("HALT")
    chosen = get(exchange, "exchangeInfo", symbols='["BTCUSDT"]')[1]["symbols"]
    assert [(each["symbol"], each["status"]) for each in chosen] == [("BTCUSDT", "HALT")]


@pytest.mark.parametrize(
    ("path", "query", "code", "message"),
    [
        ("aggTrades", {"symbol": "NOPE"}, -1121, "Invalid symbol."),
        ("aggTrades", {"symbol": "btcusdt"}, -1100, "Illegal characters"),
        ("aggTrades", {}, -1102, "Mandatory parameter 'symbol' was not sent"),
        ("aggTrades", {"symbol": "BTCUSDT", "fromId": 1, "startTime": 1}, -1128, "Combination of optional"),
        ("aggTrades", {"symbol": "BTCUSDT", "limit": "x"}, -1100, "Illegal characters found in parameter 'limit'"),
        ("trades", {"symbol": "BTCUSDT", "limit": 0}, -1130, "Data sent for parameter 'limit'"),
        ("trades", {"symbol": "BTCUSDT", "colour": 1}, -1104, "Not all sent parameters were read"),
        ("klines", {"symbol": "BTCUSDT", "interval": "7m"}, -1120, "Invalid interval."),
        ("klines", {"symbol": "BTCUSDT"}, -1102, "Mandatory parameter 'interval'"),
        ("klines", {"symbol": "BTCUSDT", "interval": "1d", "timeZone": "+15:00"}, -1130, "Data sent for"),
    ],
)
def test_wrong_requests_get_the_exchanges_words(
    path: str, query: dict[str, Any], code: int, message: str, exchange: Exchange
) -> None:
    status, body, _ = get(exchange, path, **query)
    assert (status, body["code"]) == (400, code)
    assert body["msg"].startswith(message)


@pytest.mark.parametrize(
    ("path", "query", "weight"),
    [
        ("ping", {}, 1),
        ("time", {}, 1),
        ("exchangeInfo", {}, 20),
        ("aggTrades", {"symbol": "BTCUSDT"}, 4),
        ("historicalTrades", {"symbol": "BTCUSDT"}, 25),
        ("trades", {"symbol": "BTCUSDT"}, 25),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m"}, 2),
        ("depth", {"symbol": "BTCUSDT"}, 5),
        ("depth", {"symbol": "BTCUSDT", "limit": 500}, 25),
        ("depth", {"symbol": "BTCUSDT", "limit": 1000}, 50),
        ("depth", {"symbol": "BTCUSDT", "limit": 5000}, 250),
    ],
)
def test_every_request_has_its_weight(
    path: str, query: dict[str, Any], weight: int, exchange_factory: Callable[..., Exchange]
) -> None:
    exchange = exchange_factory(start_ms=START_MS)
    assert get(exchange, path, **query)[2]["X-MBX-USED-WEIGHT-1M"] == str(weight)
    assert get(exchange, "ping")[2]["X-MBX-USED-WEIGHT-1M"] == str(weight + 1)


def test_too_much_weight_is_429_and_insisting_is_418(exchange_factory: Callable[..., Exchange]) -> None:
    rules = RestRules(weight_per_minute=50, refusals_before_ban=2, ban_s=120)
    exchange = exchange_factory(rest=rules, start_ms=START_MS)
    assert [get(exchange, "trades", symbol="BTCUSDT")[0] for _ in range(2)] == [200, 200]
    for _ in range(2):
        status, body, headers = get(exchange, "ping")
        assert (status, body["code"]) == (429, -1003)
        assert body["msg"].startswith("Too much request weight used; current limit is 50 request weight")
        assert 1 <= int(headers["Retry-After"]) <= 60
    status, body, headers = get(exchange, "ping")
    assert (status, body["code"]) == (418, -1003)
    assert body["msg"].startswith("Way too much request weight used; IP banned until 17231")
    assert 118 <= int(headers["Retry-After"]) <= 120
    exchange.rest(forgive=True)
    assert get(exchange, "ping")[0] == 200


def test_rest_can_fail_and_lag_on_command(exchange: Exchange) -> None:
    exchange.rest(503, count=2)
    assert [get(exchange, "ping")[0] for _ in range(3)] == [503, 503, 200]
    exchange.burst(5, "BTCUSDT")
    exchange.rest(lag_s=60)
    assert rows(exchange, "historicalTrades") == rows(exchange, "aggTrades") == []
    assert len(rows(exchange, "trades")) == 5
    exchange.rest(lag_s=0)
    assert len(rows(exchange, "historicalTrades")) == len(rows(exchange, "aggTrades")) == 5
