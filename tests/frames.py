"""Frames of our own making, one of each shape that the exchange sends, and the oracle for what becomes of a frame.

The oracle restates the contract (section 3) on nothing but the standard library: it splits text where
`json` says that a value ends, and compares numbers by their digits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from src.events import Decoded, Event

RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "binance" / "frames"
RECEIVED_MS = 1_800_000_000_000
"""Later than every event time in the frames here and in the recordings."""


class Shape(NamedTuple):
    """One shape of frame, and what the contract makes of each event in it."""

    name: str
    frame: str
    event_type: str | None
    """None for a control message."""
    topic: str = "raw"
    keys: tuple[str | None, ...] = ()
    times: tuple[int, ...] = ()
    stream: str | None = None
    """The added `stream` field, where there is one."""


def _combined(stream: str, payload: str) -> str:
    return f'{{"stream":"{stream}","data":{payload}}}'


_BOOK = '{"u":90071,"s":"SOLUSDT","b":"101.50000000","B":"7.00000000","a":"101.51000000","A":"0.50000000"}'
_PARTIAL = (
    '{"lastUpdateId":4711,"bids":[["0.10000000","12.00000000"],["0.09900000","3.10"]],'
    '"asks":[["0.10100000","1.0"]]}'
)
_DEPTH = (
    '{"e":"depthUpdate","E":1750000000101,"s":"SOLUSDT","U":501,"u":507,'
    '"b":[["101.50000000","0.00000000"],["101.40","3.5"]],"a":[]}'
)
_TRADE = (
    '{"e":"trade","E":1750000000202,"s":"SOLUSDT","t":88001,"p":"101.5","q":"0.10","T":1750000000201,'
    '"m":false,"M":true}'
)
_OLD_TRADE = (
    '{"e":"trade","E":1590000000202,"s":"LTCBTC","t":42,"p":"0.00500000","q":"1.000","b":71,"a":72,'
    '"T":1590000000199,"m":true,"M":true}'
)
_AGGREGATE = (
    '{"e":"aggTrade","E":1750000000303,"s":"SOLUSDT","a":1200,"p":"101.50000000","q":"4.2","f":88001,"l":88003,'
    '"T":1750000000300,"m":true,"M":true}'
)
_AVERAGE = '{"e":"avgPrice","E":1750000000404,"s":"SOLUSDT","i":"5m","w":"101.49876543","T":1750000000399}'
_REFERENCE = '{"e":"referencePrice","s":"SOLUSDT","r":null,"t":1750000000505}'
_MINI = (
    '{"e":"24hrMiniTicker","E":1750000000606,"s":"SOLUSDT","c":"101.5","o":"99.0","h":"103.10","l":"98.70000000",'
    '"v":"123456.00000000","q":"12500000.0"}'
)


def _ticker(symbol: str, event_time: int) -> str:
    return (
        f'{{"e":"24hrTicker","E":{event_time},"s":"{symbol}","p":"-2.50000000","P":"-2.404","w":"102.0","x":"104.0",'
        '"c":"101.5","Q":"0.3","b":"101.49","B":"8.0","a":"101.51","A":"2.0","o":"104.0","h":"106.00","l":"100.1",'
        '"v":"5000.0","q":"510000.00000000","O":1749913600707,"C":1750000000707,"F":1,"L":9000,"n":9000}'
    )


def _hour_ticker(symbol: str, event_time: int) -> str:
    return (
        f'{{"e":"1hTicker","E":{event_time},"s":"{symbol}","p":"0.5","P":"0.495","w":"101.2","o":"101.0","h":"102.0",'
        '"l":"100.9","c":"101.5","v":"12.5","q":"1265.0","O":1749996420000,"C":1750000000808,"F":10,"L":19,"n":10}'
    )


def kline(symbol: str, event_time: int, *, closed: bool, trades: int) -> str:
    """Return a kline payload; with no trades the first and last ids are -1, as the exchange writes it."""
    first, last = (700, 699 + trades) if trades else (-1, -1)
    return (
        f'{{"e":"kline","E":{event_time},"s":"{symbol}","k":{{"t":1749999960000,"T":1750000019999,"s":"{symbol}",'
        f'"i":"1m","f":{first},"L":{last},"o":"101.0","c":"101.5","h":"101.50","l":"100.9","v":"{trades}.00",'
        f'"n":{trades},"x":{str(closed).lower()},"q":"0.0","V":"0.00000000","Q":"0.0","B":"0"}}}}'
    )


_LIST = '{"result":["solusdt@trade","SOLUSDT@trade"],"id":7}'
_ERROR = '{"error":{"code":2,"msg":"Invalid request: unknown variant `HELLO`"},"id":8}'


def _shape(
    name: str,
    stream: str | None,
    payload: str,
    route: tuple[str | None, str],
    *events: tuple[str | None, int],
    named: bool = False,
) -> Shape:
    frame = _combined(stream, payload) if stream else payload
    keys, times = tuple(key for key, _ in events), tuple(time for _, time in events)
    return Shape(name, frame, *route, keys, times, stream if named else None)


_SOL = "SOLUSDT"
_BARS = (
    ("kline", kline(_SOL, 1750000000901, closed=False, trades=12), 1750000000901),
    ("kline:closed", kline(_SOL, 1750000020012, closed=True, trades=40), 1750000020012),
    ("kline:closed:empty", kline(_SOL, 1750000020044, closed=True, trades=0), 1750000020044),
    ("kline:empty", kline(_SOL, 1750000001001, closed=False, trades=0), 1750000001001),
)
_BAR = _BARS[0][1]
_HOUR = _hour_ticker(_SOL, 1750000000808)
_DAY = _ticker(_SOL, 1750000000707)
_DAYS = f"[{_DAY},{_ticker('LTCBTC', 1750000000708)}]"
_MINIS = f"[{_MINI},{_MINI.replace(_SOL, 'LTCBTC')},{_MINI.replace(_SOL, 'DOTUSDT')}]"
_ACK = '{"result":null,"id":9}'

_AT_101, _AT_202, _AT_303, _AT_404, _AT_606, _AT_707, _AT_808, _AT_901 = (
    (_SOL, 1750000000000 + part) for part in (101, 202, 303, 404, 606, 707, 808, 901)
)
_WHEN_RECEIVED = (_SOL, RECEIVED_MS)
_AGGREGATES, _TRADES, _DEPTHS = ("aggregate_trade", "trades"), ("trade", "trades"), ("depth_update", "depth")
_KLINES, _TICKERS, _MINI_TICKERS = ("kline", "raw"), ("ticker", "raw"), ("mini_ticker", "raw")
_ROLLING, _AVERAGES, _REFERENCES = ("rolling_ticker", "raw"), ("average_price", "raw"), ("reference_price", "raw")
_BOOKS, _PARTIALS, _UNKNOWN = ("book_ticker", "raw"), ("partial_depth", "raw"), ("unknown", "raw")
_CONTROL = (None, "raw")

SHAPES = (
    _shape("1hTicker", "solusdt@ticker_1h", _HOUR, _ROLLING, _AT_808),
    _shape("24hrMiniTicker", "solusdt@miniTicker", _MINI, _MINI_TICKERS, _AT_606),
    _shape("24hrTicker", "solusdt@ticker", _DAY, _TICKERS, _AT_707),
    _shape("aggTrade", "solusdt@aggTrade", _AGGREGATE, _AGGREGATES, _AT_303),
    _shape("array:24hrTicker", "!ticker@arr", _DAYS, _TICKERS, _AT_707, ("LTCBTC", 1750000000708)),
    _shape("avgPrice", "solusdt@avgPrice", _AVERAGE, _AVERAGES, _AT_404),
    _shape("bookTicker", "solusdt@bookTicker", _BOOK, _BOOKS, _WHEN_RECEIVED, named=True),
    _shape("depthUpdate", "solusdt@depth@100ms", _DEPTH, _DEPTHS, _AT_101),
    *(_shape(name, "solusdt@kline_1m", bar, _KLINES, (_SOL, time)) for name, bar, time in _BARS),
    _shape("partialDepth", "solusdt@depth20", _PARTIAL, _PARTIALS, _WHEN_RECEIVED, named=True),
    _shape("referencePrice", "solusdt@referencePrice", _REFERENCE, _REFERENCES, _WHEN_RECEIVED),
    _shape("trade", "solusdt@trade", _TRADE, _TRADES, _AT_202),
    _shape("trade:with order ids", "ltcbtc@trade", _OLD_TRADE, _TRADES, ("LTCBTC", 1590000000202)),
    _shape("raw 1hTicker", None, _HOUR, _ROLLING, _AT_808),
    _shape("raw 24hrMiniTicker", None, _MINI, _MINI_TICKERS, _AT_606),
    _shape("raw 24hrTicker", None, _DAY, _TICKERS, _AT_707),
    _shape("raw ack:list", None, _LIST, _CONTROL),
    _shape("raw ack:null", None, _ACK, _CONTROL),
    _shape("raw aggTrade", None, _AGGREGATE, _AGGREGATES, _AT_303),
    _shape("raw array:1hTicker", None, f"[{_HOUR}]", _ROLLING, _AT_808),
    _shape(
        "raw array:24hrMiniTicker",
        None,
        _MINIS,
        _MINI_TICKERS,
        _AT_606,
        ("LTCBTC", _AT_606[1]),
        ("DOTUSDT", _AT_606[1]),
    ),
    _shape("raw array:24hrTicker", None, _DAYS, _TICKERS, _AT_707, ("LTCBTC", 1750000000708)),
    _shape("raw avgPrice", None, _AVERAGE, _AVERAGES, _AT_404),
    _shape("raw bookTicker", None, _BOOK, _BOOKS, _WHEN_RECEIVED),
    _shape("raw depthUpdate", None, _DEPTH, _DEPTHS, _AT_101),
    _shape("raw error", None, _ERROR, _CONTROL),
    _shape("raw kline", None, _BAR, _KLINES, _AT_901),
    _shape("raw partialDepth", None, _PARTIAL, _PARTIALS, (None, RECEIVED_MS)),
    _shape("raw trade", None, _TRADE, _TRADES, _AT_202),
)
"""In the order of the recording `one_of_each_spot_shape.jsonl`."""

_LATER_TYPES = (
    ("4hTicker", "solusdt@ticker_4h", '{"e":"4hTicker","E":5,"s":"SOLUSDT"}', _ROLLING),
    ("1dTicker", "solusdt@ticker_1d", '{"e":"1dTicker","E":5,"s":"SOLUSDT"}', _ROLLING),
    ("blockTrade", "solusdt@blockTrade", '{"e":"blockTrade","E":5,"s":"SOLUSDT","t":1}', ("block_trade", "raw")),
    ("a type of tomorrow", "solusdt@newType", '{"e":"someNewType","E":5,"s":"solUsdt"}', ("some_new_type", "raw")),
)
_SHUTDOWN, _SHUTDOWNS = '{"e":"serverShutdown","E":7}', ("server_shutdown", "raw")
_CHINESE = "这是测试币456"

LATER_SHAPES = (
    *(_shape(*later, (_SOL, 5)) for later in _LATER_TYPES),
    _shape("kline of another time zone", "solusdt@kline_1d@+08:00", _BAR, _KLINES, _AT_901, named=True),
    _shape("serverShutdown", "!serverShutdown", _SHUTDOWN, _SHUTDOWNS, (None, 7)),
    _shape("raw serverShutdown", None, _SHUTDOWN, _SHUTDOWNS, (None, 7)),
    _shape("not ASCII", f"{_CHINESE}@trade", f'{{"e":"trade","E":8,"s":"{_CHINESE}"}}', _TRADES, (_CHINESE, 8)),
    _shape("no name", "solusdt@later", '{"s":"SOLUSDT"}', _UNKNOWN, _WHEN_RECEIVED, named=True),
    _shape("nothing", "solusdt@later", "{}", _UNKNOWN, _WHEN_RECEIVED, named=True),
    _shape("raw nothing", None, "{}", _UNKNOWN, (None, RECEIVED_MS)),
)
"""What the recording does not hold and the documentation, or tomorrow, may."""


# The oracle


class Object(tuple[Any, ...]):  # noqa: SLOT001 - only to tell an object from a list
    """The members of a JSON object as pairs, in order, duplicates kept."""


def strict(text: str) -> Any:
    """Parse JSON with numbers by their digits; raise ValueError where the text is not JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    def number(digits: str) -> tuple[str, str]:
        return ("number", digits)

    return json.loads(text, parse_int=number, parse_float=number, parse_constant=refuse, object_pairs_hook=Object)


class Expected(NamedTuple):
    """What one event has to be."""

    payload: str
    topic: str
    key: bytes | None
    timestamp_ms: int
    added: Object


_KNOWN = {
    "aggTrade": ("aggregate_trade", "trades"),
    "trade": ("trade", "trades"),
    "depthUpdate": ("depth_update", "depth"),
    "kline": ("kline", "raw"),
    "24hrTicker": ("ticker", "raw"),
    "24hrMiniTicker": ("mini_ticker", "raw"),
    "1hTicker": ("rolling_ticker", "raw"),
    "4hTicker": ("rolling_ticker", "raw"),
    "1dTicker": ("rolling_ticker", "raw"),
    "avgPrice": ("average_price", "raw"),
}


def expected_events(frame: str, received_ms: int = RECEIVED_MS) -> list[Expected] | None:
    """Say which events a well-formed frame holds, None for a control message; only objects are events."""
    strict(frame)
    text, stream = frame.strip(), None
    if text.startswith("{"):
        members = dict(_members(text))
        stream_text = members.get("stream", "")
        if stream_text.startswith('"') and "data" in members:
            stream, text = json.loads(stream_text), members["data"]
        elif json.loads(members.get("e", "null")) is None and _answers(members):
            return None
    elements = list(_array(text)) if text.startswith("[") else [text]
    return [_expected(element, stream, received_ms) for element in elements if element.startswith("{")]


def _answers(members: dict[str, str]) -> bool:
    has_error = members.get("error", "null") != "null"
    return has_error or "result" in members or ("code" in members and "msg" in members)


def _expected(payload: str, stream: str | None, received_ms: int) -> Expected:
    fields = json.loads(payload, parse_float=str, parse_int=lambda digits: int(digits[:400]))
    name, symbol, time = fields.get("e"), fields.get("s"), fields.get("E")
    if name:
        event_type, topic = _KNOWN.get(name) or (_snake(name), "raw")
    elif fields.get("lastUpdateId") is not None:
        event_type, topic = "partial_depth", "raw"
    else:
        event_type, topic = ("unknown" if fields.get("u") is None else "book_ticker"), "raw"
    added: list[tuple[str, Any]] = [
        ("ingestion_timestamp", ("number", str(received_ms))),
        ("source", "binance_websocket"),
        ("event_type", event_type),
        ("pipeline_version", "1.0.0"),
    ]
    ambiguous = event_type in ("book_ticker", "partial_depth", "unknown")
    if stream is not None and (ambiguous or (event_type == "kline" and stream.count("@") > 1)):
        added.append(("stream", stream))
    if not symbol and stream and not stream.startswith("!") and "@" in stream:
        symbol = stream[: stream.index("@")]
    if isinstance(time, int) and time >= 10**14:
        time //= 1000
    usable = isinstance(time, int) and 0 <= time <= received_ms + 600_000
    key = symbol.upper().encode() if symbol else None
    return Expected(payload, topic, key, time if usable else received_ms, Object(added))


def _snake(name: str) -> str:
    words = ""
    for before, letter in zip(" " + name, name, strict=False):
        starts = "A" <= letter <= "Z" and ("a" <= before <= "z" or "0" <= before <= "9")
        words += "_" + letter if starts else letter
    return words.lower()


_SCAN = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
_BLANKS = " \t\n\r"


def _past_blanks(text: str, at: int) -> int:
    while text[at] in _BLANKS:
        at += 1
    return at


def _members(text: str) -> Iterator[tuple[str, str]]:
    at = _past_blanks(text, 1)
    while text[at] != "}":
        key, at = _SCAN(text, at)
        start = _past_blanks(text, _past_blanks(text, at) + 1)
        _, end = _SCAN(text, start)
        yield key, text[start:end]
        at = _past_blanks(text, end)
        at = _past_blanks(text, at + 1) if text[at] == "," else at


def _array(text: str) -> Iterator[str]:
    at = _past_blanks(text, 1)
    while text[at] != "]":
        _, end = _SCAN(text, at)
        yield text[at:end]
        at = _past_blanks(text, end)
        at = _past_blanks(text, at + 1) if text[at] == "," else at


def assert_enriched(event: Event, expected: Expected) -> None:
    """Compare an event with what it has to be: fields, order, digits, bytes, route, time."""
    value = event.value.decode()
    assert value.startswith(expected.payload[:-1].rstrip(_BLANKS)), "the payload's own bytes are kept"
    assert strict(value) == Object(strict(expected.payload) + expected.added)
    assert (event.route.topic, event.route.key) == (expected.topic, expected.key)
    assert event.route.event_type == dict(expected.added)["event_type"]
    assert event.timestamp_ms == expected.timestamp_ms


def assert_decoded(decoded: Decoded, frame: str, received_ms: int = RECEIVED_MS) -> None:
    """Compare what a decoder made of one well-formed frame with what the contract says."""
    expected = expected_events(frame, received_ms)
    assert decoded.unenriched == []
    if expected is None:
        assert decoded.events == []
        assert decoded.skipped == []
        assert len(decoded.replies) == 1
        return
    assert decoded.replies == []
    assert len(decoded.events) == len(expected)
    for event, wanted in zip(decoded.events, expected, strict=True):
        assert_enriched(event, wanted)
