"""What the exchange's streams carry: names, shapes, field orders, and that they agree with each other."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from sandbox.exchange import Mix
from sandbox.exchange.streams import INTERVAL_MS, parse_stream
from sandbox.exchange.symbols import NON_ASCII_SYMBOL
from tests.exchange_fixtures import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from tests.exchange_fixtures import Client

RECORDED = Path(__file__).resolve().parents[2] / "shared/binance/frames/one_of_each_spot_shape.jsonl"
BUSY = {"rate": 2_000.0, "symbols": ("BTCUSDT", "ETHUSDT")}
TICKER = "e E s p P w x c Q b B a A o h l v q O C F L n"
ROLLING = "e E s p P w o h l c v q O C F L n"
FIELDS = {
    "btcusdt@aggTrade": "e E s a p q f l T m M",
    "btcusdt@trade": "e E s t p q T m M",
    "btcusdt@blockTrade": "e E s t p q T m",
    "btcusdt@kline_1m": "e E s k",
    "btcusdt@kline_1s": "e E s k",
    "btcusdt@kline_1m@+08:00": "e E s k",
    "btcusdt@miniTicker": "e E s c o h l v q",
    "btcusdt@ticker": TICKER,
    "btcusdt@ticker_1h": ROLLING,
    "btcusdt@ticker_4h": ROLLING,
    "btcusdt@ticker_1d": ROLLING,
    "btcusdt@bookTicker": "u s b B a A",
    "btcusdt@avgPrice": "e E s i w T",
    "btcusdt@referencePrice": "e s r t",
    "btcusdt@depth5": "lastUpdateId bids asks",
    "btcusdt@depth10@100ms": "lastUpdateId bids asks",
    "btcusdt@depth20": "lastUpdateId bids asks",
    "btcusdt@depth": "e E s U u b a",
    "btcusdt@depth@100ms": "e E s U u b a",
}
KLINE = "t T s i f L o c h l v n x q V Q B"
EVENT_NAMES = {
    "btcusdt@ticker": "24hrTicker",
    "btcusdt@ticker_4h": "4hTicker",
    "btcusdt@ticker_1d": "1dTicker",
    "btcusdt@miniTicker": "24hrMiniTicker",
}
ARRAYS = ("!miniTicker@arr", "!ticker_1h@arr", "!ticker_4h@arr", "!ticker_1d@arr")


def kind_of(value: Any) -> str:
    if isinstance(value, list):
        return "list"
    return type(value).__name__


def test_every_stream_has_the_documented_fields_in_order(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(**BUSY, block_trade_interval_s=0.2)
    client = connect(exchange.stream_url)
    client.subscribe(*FIELDS)
    seen: dict[str, dict[str, Any]] = {}
    while seen.keys() != FIELDS.keys():
        message = client.message()
        assert list(message) == ["stream", "data"]
        seen.setdefault(message["stream"], message["data"])
    for stream, fields in FIELDS.items():
        assert list(seen[stream]) == fields.split(), stream
        for field, value in seen[stream].items():
            assert kind_of(value) == expected_type(stream, field, value), (stream, field)
    assert list(seen["btcusdt@kline_1m"]["k"]) == KLINE.split()
    assert {stream: seen[stream]["e"] for stream in EVENT_NAMES} == EVENT_NAMES
    assert len(seen["btcusdt@depth10@100ms"]["bids"]) == 10


def expected_type(stream: str, field: str, value: Any) -> str:
    texts = {"e", "s", "p", "P", "q", "Q", "w", "x", "c", "o", "h", "l", "v", "i", "B", "A", "r"}
    if field in {"bids", "asks"} or (stream.startswith("btcusdt@depth") and field in {"a", "b"}):
        assert all(isinstance(text, str) and text[-9] == "." for pair in value for text in pair)
        return "list"
    if field in {"m", "M"}:
        return "bool"
    if field == "k":
        return "dict"
    if stream.endswith(("bookTicker", "@ticker")) and field in {"a", "b"}:
        return "str"
    if stream.endswith("aggTrade") and field == "l":
        return "int"
    return "str" if field in texts else "int"


@pytest.mark.skipif(not RECORDED.is_file(), reason="no recordings beside the repository")
def test_payloads_look_like_the_recorded_ones(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    recorded = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    shapes = {
        frame["stream"].partition("@")[2]: frame["data"]
        for frame in recorded
        if isinstance(frame, dict) and "stream" in frame and isinstance(frame["data"], dict)
    }
    shapes.pop("trade")  # the last recorded one still has the order ids that went in 2024
    exchange = exchange_factory(**BUSY)
    client = connect(exchange.stream_url)
    client.subscribe(*(f"btcusdt@{label}" for label in shapes))
    missing = set(shapes)
    while missing:
        message = client.message()
        label = message["stream"].partition("@")[2]
        missing.discard(label)
        assert skeleton(message["data"]) == skeleton(shapes[label])


def skeleton(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, skeleton(each)) for key, each in value.items()]
    if isinstance(value, list):
        return "list"
    return "int" if isinstance(value, int) and not isinstance(value, bool) else type(value).__name__


def test_array_streams_hold_only_symbols_that_changed(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(symbols=("BTCUSDT", "ETHUSDT", NON_ASCII_SYMBOL))
    client = connect(exchange.stream_url)
    client.subscribe(*ARRAYS)
    exchange.burst(3, "ETHUSDT")
    exchange.burst(3, NON_ASCII_SYMBOL)
    exchange.rate(0.0001)
    seen: dict[str, Any] = {}
    while seen.keys() != set(ARRAYS):
        message = client.message()
        seen[message["stream"]] = message["data"]
    for array in seen.values():
        assert [element["s"] for element in array] == ["ETHUSDT", NON_ASCII_SYMBOL]
    assert exchange.sent(stream="!miniTicker@arr")["total"]["events"] == 2


@pytest.mark.parametrize(
    "path", ["/ws/btcusdt@trade/ethusdt@trade", "/stream?streams=btcusdt@trade/ethusdt@trade"]
)
def test_streams_of_the_url_are_subscribed(
    path: str, exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(**BUSY)
    client = connect(exchange.ws_url.removesuffix("/ws") + path)
    message = client.message()
    assert ("data" in message) == path.startswith("/stream")
    assert client.ask("LIST_SUBSCRIPTIONS")["result"] == ["btcusdt@trade", "ethusdt@trade"]


@pytest.mark.parametrize("spelt", [quote("btcusdt@kline_1m@+08:00", safe=""), "btcusdt@kline_1m@+08:00"])
@pytest.mark.parametrize("base", ["/ws/", "/stream?streams="])
def test_urls_may_be_encoded(spelt: str, base: str, exchange: Exchange, connect: Callable[[str], Client]) -> None:
    client = connect(exchange.ws_url.removesuffix("/ws") + base + spelt)
    assert client.ask("LIST_SUBSCRIPTIONS")["result"] == ["btcusdt@kline_1m@+08:00"]


def test_a_symbol_need_not_be_ascii(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(symbols=(NON_ASCII_SYMBOL,))
    client = connect(f"{exchange.ws_url}/{quote(NON_ASCII_SYMBOL)}@trade")
    exchange.burst(1, NON_ASCII_SYMBOL)
    text = client.text()
    assert f'"s":"{NON_ASCII_SYMBOL}"' in text


def test_an_aggregate_and_its_trades_agree_on_the_wire(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(**BUSY)
    client = connect(f"{exchange.ws_url}/btcusdt@trade/btcusdt@aggTrade")
    trades: dict[int, dict[str, Any]] = {}
    aggregates: list[dict[str, Any]] = []
    while len(aggregates) < 300:
        message = client.message()
        if message["e"] == "trade":
            trades[message["t"]] = message
        else:
            aggregates.append(message)
    ids = sorted(trades)
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert [each["a"] for each in aggregates] == list(range(aggregates[0]["a"], aggregates[0]["a"] + 300))
    for aggregate in aggregates:
        fills = [trades[number] for number in range(aggregate["f"], aggregate["l"] + 1)]
        assert {(fill["p"], fill["T"], fill["m"]) for fill in fills} == {
            (aggregate["p"], aggregate["T"], aggregate["m"])
        }


def test_book_tickers_rise_and_partial_depth_shares_the_ids_of_the_diffs(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(**BUSY)
    client = connect(exchange.stream_url)
    client.subscribe("btcusdt@bookTicker", "btcusdt@depth5@100ms", "btcusdt@depth@100ms")
    quotes, partial, final = [], [], []
    while len(partial) < 20:
        message = client.message()
        field = {"bookTicker": "u", "depth5@100ms": "lastUpdateId", "depth@100ms": "u"}
        label = message["stream"].partition("@")[2]
        {"bookTicker": quotes, "depth5@100ms": partial, "depth@100ms": final}[label].append(
            message["data"][field[label]]
        )
    assert quotes == sorted(set(quotes))
    assert set(partial[:-1]) <= set(final)


def test_a_kline_closes_once_and_goes_on_with_the_next_trade_id(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=200.0, symbols=("BTCUSDT",), start_ms=1_723_161_255_800)
    client = connect(f"{exchange.ws_url}/btcusdt@kline_1s/btcusdt@trade")
    trades, closed = [], []
    while len(closed) < 3:
        message = client.message()
        if message["e"] == "trade":
            trades.append(message)
        elif message["k"]["x"]:
            closed.append(message)
            assert message["E"] > message["k"]["T"]
    for earlier, later in pairwise(closed[1:]):
        assert later["k"]["t"] == earlier["k"]["t"] + 1000
        assert later["k"]["f"] == earlier["k"]["L"] + 1
        inside = [trade for trade in trades if later["k"]["t"] <= trade["T"] <= later["k"]["T"]]
        assert later["k"]["n"] == len(inside)
        assert (later["k"]["o"], later["k"]["c"]) == (inside[0]["p"], inside[-1]["p"])


def test_klines_come_in_every_interval_with_and_without_offset(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=100.0, symbols=("BTCUSDT",), start_ms=1_723_161_255_800)
    client = connect(exchange.stream_url)
    wanted = {f"btcusdt@kline_{each}{offset}": each for each in INTERVAL_MS for offset in ("", "@+08:00")}
    client.subscribe(*wanted)
    seen: dict[str, Any] = {}
    while seen.keys() != wanted.keys():
        message = client.message()
        seen[message["stream"]] = message["data"]["k"]
    assert {stream: bar["i"] for stream, bar in seen.items()} == wanted
    assert seen["btcusdt@kline_1d"]["t"] != seen["btcusdt@kline_1d@+08:00"]["t"]
    assert all(bar["t"] <= seen["btcusdt@kline_1s"]["T"] <= bar["T"] for bar in seen.values())


def test_an_interval_without_trades_is_still_pushed(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=0.0001, symbols=("BTCUSDT",))
    bar = connect(f"{exchange.ws_url}/btcusdt@kline_1m").message()["k"]
    assert (bar["n"], bar["f"], bar["L"], bar["v"]) == (0, -1, -1, "0.00000000")
    assert bar["o"] == bar["c"] == bar["h"] == bar["l"]


def test_the_grammar_knows_every_interval_and_nothing_else() -> None:
    for interval in INTERVAL_MS:
        for offset in ("", "@+08:00"):
            assert parse_stream(f"btcusdt@kline_{interval}{offset}") is not None
    wrong = (
        "btcusdt", "BTCUSDT@trade", "btcusdt@trades", "btcusdt@kline_1D", "btcusdt@kline_7m", "btcusdt@depth30",
        "btcusdt@depth@50ms", "btcusdt@depth@0ms", "btcusdt@kline_1m@+09:00", "btcusdt@ticker_2h", "!ticker@arr",
        "!bookTicker", "btcusdt@aggtrade", "btcusdt@markPrice", "@trade", "",
    )  # fmt: skip
    assert [name for name in wrong if parse_stream(name) is not None] == []


def test_the_rate_is_what_a_client_of_all_mixed_streams_receives(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    mix = Mix.parse("trade=50,aggTrade=40,depth=10")
    exchange = exchange_factory(rate=400.0, symbols=("BTCUSDT", "ETHUSDT"), mix=mix)
    client = connect(exchange.ws_url)
    client.subscribe(*(f"{s}@{k}" for s in ("btcusdt", "ethusdt") for k in ("trade", "aggTrade", "depth@100ms")))

    def rate() -> float:
        first, before = client.message(), exchange.sent()["total"]["count"]
        while (last := client.message()).get("E", 0) < first["E"] + 1_500:
            pass
        count = exchange.sent()["total"]["count"] - before
        return float(count / (last["E"] - first["E"]) * 1000)

    eventually(lambda: rate() == pytest.approx(400, abs=27))  # not where the machine stood still
