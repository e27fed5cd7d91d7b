"""Stream names: what the exchange has is accepted, what it would acknowledge and stay silent on is refused."""

from __future__ import annotations

import pytest

from config.streams import (
    MARKET_STREAMS,
    STREAM_TYPES,
    fault_in_stream,
    fault_in_stream_type,
    fault_in_symbol,
    stream_symbol,
)

INTERVALS = ("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M")
DOCUMENTED = [
    *("aggTrade", "trade", "blockTrade", "miniTicker", "ticker", "ticker_1h", "ticker_4h", "ticker_1d"),
    *("bookTicker", "avgPrice", "referencePrice", "depth", "depth@100ms", "depth5", "depth10", "depth20"),
    *("depth5@100ms", "depth10@100ms", "depth20@100ms"),
    *(f"kline_{interval}" for interval in INTERVALS),
    *(f"kline_{interval}@+08:00" for interval in INTERVALS),
]
"""Binance web-socket-streams.md, as in protocol section 4."""


def test_there_is_no_type_that_is_not_documented() -> None:
    assert sorted(STREAM_TYPES) == sorted(DOCUMENTED)


@pytest.mark.parametrize("stream_type", DOCUMENTED)
def test_each_documented_type_is_accepted_alone_and_in_a_name(stream_type: str) -> None:
    assert fault_in_stream_type(stream_type) is None
    assert fault_in_stream(f"btcusdt@{stream_type}") is None
    assert fault_in_stream(f"这是测试币456@{stream_type}") is None


@pytest.mark.parametrize("stream", ["!miniTicker@arr", "!ticker_1h@arr", "!ticker_4h@arr", "!ticker_1d@arr"])
def test_each_stream_of_all_symbols_is_accepted(stream: str) -> None:
    assert fault_in_stream(stream) is None
    assert stream in MARKET_STREAMS
    assert stream_symbol(stream) is None


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("aggtrade", "aggTrade"),
        ("AGGTRADE", "aggTrade"),
        ("aggTrades", "aggTrade"),
        ("bookticker", "bookTicker"),
        ("mini_ticker", "miniTicker"),
        ("avgprice", "avgPrice"),
        ("depth@50ms", "depth@100ms"),
        ("depth@1000ms", "depth@100ms"),
        ("depth@100MS", "depth@100ms"),
        ("depth30", "depth20"),
        ("depth5@250ms", "depth5@100ms"),
        ("kline_1H", "kline_1h"),
        ("kline_1min", "kline_1m"),
        ("kline1m", "kline_1m"),
        ("kline_1d@+8:00", "kline_1d@+08:00"),
        ("kline_1d@+07:00", "kline_1d@+08:00"),
        ("ticker_2h", "ticker_4h"),
        ("trade@100ms", "trade"),
    ],
)
def test_a_near_miss_is_refused_with_what_was_meant(wrong: str, meant: str) -> None:
    assert fault_in_stream_type(wrong) is not None
    fault = fault_in_stream(f"btcusdt@{wrong}")
    assert fault is not None
    assert wrong in fault
    assert "did you mean" in fault
    assert meant in fault


@pytest.mark.parametrize("wrong", ["", "@", "markPrice", "depth@100ms@100ms", " trade", "trade ", "arr", "kline_"])
def test_a_type_that_does_not_exist_is_refused(wrong: str) -> None:
    assert fault_in_stream_type(wrong) is not None
    assert fault_in_stream(f"btcusdt@{wrong}") is not None


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("BTCUSDT@trade", "did you mean 'btcusdt@trade'?"),
        ("BtcUsdt@depth@100ms", "did you mean 'btcusdt@depth@100ms'?"),
        ("btc/usdt@trade", "did you mean 'btcusdt'?"),
        ("btc_usdt@trade", "did you mean 'btcusdt'?"),
        ("!ticker@arr", "retired by the exchange on 2026-03-26"),
        ("!bookTicker", "retired by the exchange on 2022-12-07"),
        ("!miniticker@arr", "did you mean '!miniTicker@arr'?"),
        ("!ticker_2h@arr", "did you mean '!ticker_4h@arr'?"),
        ("!serverShutdown", "not a stream name"),
        ("btcusdt", "not a stream name"),
        ("aggTrade", "not a stream name"),
        ("@trade", "not a symbol"),
        ("", "not a stream name"),
        ("btcusdt@trade/ethusdt@trade", "not a stream type"),
        ("btcusdt @trade", "not a symbol"),
    ],
)
def test_a_wrong_stream_name_is_refused_with_a_hint(wrong: str, hint: str) -> None:
    fault = fault_in_stream(wrong)
    assert fault is not None
    assert any(repr(part) in fault for part in (wrong, wrong.partition("@")[0], wrong.partition("@")[2]))
    assert hint in fault


@pytest.mark.parametrize("symbol", ["BTCUSDT", "btcusdt", "1000SATSUSDT", "这是测试币456", "A" * 50])
def test_a_symbol_is_letters_and_digits_of_any_script_and_case(symbol: str) -> None:
    assert fault_in_symbol(symbol) is None


@pytest.mark.parametrize(
    "symbol", ["BTC/USDT", "BTC-USDT", "BTC_USDT", "BTC USDT", "BTC.USDT", "btcusdt@trade", "💰"]
)
def test_a_symbol_as_other_exchanges_write_it_is_refused(symbol: str) -> None:
    fault = fault_in_symbol(symbol)
    assert fault is not None
    assert symbol in fault
    assert ("did you mean" in fault) == (symbol != "💰")


def test_a_symbol_has_an_end() -> None:
    assert fault_in_symbol("A" * 51) is not None
    assert fault_in_symbol("") is not None


@pytest.mark.parametrize(
    ("stream", "symbol"),
    [
        ("btcusdt@trade", "BTCUSDT"),
        ("btcusdt@kline_1m@+08:00", "BTCUSDT"),
        ("这是测试币456@trade", "这是测试币456"),
        ("!serverShutdown", None),
        ("btcusdt", None),
        ("@trade", None),
        ("", None),
    ],
)
def test_the_symbol_of_a_stream_is_the_part_before_the_first_at_sign(stream: str, symbol: str | None) -> None:
    assert stream_symbol(stream) == symbol
