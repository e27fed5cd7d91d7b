"""What becomes of a frame: every shape, every kind of bad frame, any bytes. The core is pure: no fixtures."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple, replace

from src.decoder import EventDecoder
from src.events import MAX_AHEAD_MS, Decoded, Topics
from tests.frames import (
    LATER_SHAPES,
    RECEIVED_MS,
    SHAPES,
    Shape,
    assert_decoded,
    assert_enriched,
    expected_events,
    strict,
)

TOPICS = Topics("trades", "depth", "raw")
TRADE = next(shape.frame for shape in SHAPES if shape.name == "trade")
KLINE = next(shape.frame for shape in SHAPES if shape.name == "kline")
BOOK = next(shape.frame for shape in SHAPES if shape.name == "bookTicker")
by_name = pytest.mark.parametrize("shape", [*SHAPES, *LATER_SHAPES], ids=lambda shape: shape.name)


def decode(*frames: str | bytes, received_ms: int = RECEIVED_MS) -> Decoded:
    """Decode frames with a decoder that has met them before: the one-pass case is taken where it applies."""
    chunk = [frame.encode() if isinstance(frame, str) else frame for frame in frames]
    decoder = EventDecoder(TOPICS)
    first = decoder.decode(chunk, received_ms)
    second = decoder.decode(chunk, received_ms)
    assert _contents(first) == _contents(second), "the cache of routes changes nothing"
    return second


def _contents(decoded: Decoded) -> tuple[object, ...]:
    events = [
        (event.value, event.timestamp_ms, event.route.topic, event.route.key, event.route.event_type)
        for event in decoded.events
    ]
    return events, decoded.skipped, decoded.replies, decoded.unenriched


def on_stream(payload: str, stream: str = "btcusdt@trade") -> str:
    return f'{{"stream":"{stream}","data":{payload}}}'


def added_fields(value: bytes) -> list[str]:
    names = list(json.loads(value))
    return names[names.index("ingestion_timestamp") :]


def test_where_no_wrapper_names_a_stream_it_is_the_one_that_is_subscribed() -> None:
    streams = ["btcusdt@depth@100ms", "ethusdt@depth@100ms", "ethusdt@depth", "btcusdt@kline_1m@+08:00"]
    streams += ["!miniTicker@arr", "ethusdt@miniTicker", "!ticker_1h@arr", "btcusdt@ticker", "btcusdt@bookTicker"]
    decoder = EventDecoder(TOPICS).expecting(streams)
    bar = {"e": "kline", "s": "BTCUSDT", "k": {"t": 1, "T": 2, "i": "1m", "x": True}}
    expected: list[tuple[dict[str, Any], str]] = [
        ({"e": "depthUpdate", "s": "BTCUSDT", "U": 1, "u": 2}, "btcusdt@depth@100ms"),
        ({"e": "depthUpdate", "s": "ETHUSDT", "U": 1, "u": 2}, "ethusdt@depth"),
        ({"e": "depthUpdate", "s": "BNBUSDT", "U": 1, "u": 2}, "bnbusdt@depth"),
        ({"e": "24hrMiniTicker", "s": "BTCUSDT"}, "!miniTicker@arr"),
        ({"e": "24hrMiniTicker", "s": "ETHUSDT"}, "ethusdt@miniTicker"),
        ({"e": "1hTicker", "s": "BTCUSDT"}, "!ticker_1h@arr"),
        ({"e": "24hrTicker", "s": "BTCUSDT"}, "btcusdt@ticker"),
        ({"u": 7, "s": "BTCUSDT", "b": "1"}, "btcusdt@bookTicker"),
        (bar, "btcusdt@kline_1m@+08:00"),
    ]
    decoded = decoder.decode([json.dumps(payload).encode() for payload, _ in expected], 1)
    assert [event.route.stream for event in decoded.events] == [stream for _, stream in expected]
    assert decoder.seen() == {stream for _, stream in expected}
    told = [json.loads(event.value).get("stream") for event in decoded.events]
    assert told == [None] * 7 + ["btcusdt@bookTicker", "btcusdt@kline_1m@+08:00"]


def test_a_changed_choice_of_streams_changes_what_a_payload_means_and_forgets_nothing_else() -> None:
    before = EventDecoder(TOPICS).expecting(["btcusdt@depth"])
    depth = b'{"e":"depthUpdate","s":"BTCUSDT","U":1,"u":2}'
    wrapped = b'{"stream":"btcusdt@trade","data":{"e":"trade","s":"BTCUSDT","t":1}}'
    before.decode([depth, wrapped], 1)
    after = before.expecting(["btcusdt@depth@100ms"])
    assert after.seen() == {"btcusdt@trade"}
    assert after.decode([depth], 1).events[0].route.stream == "btcusdt@depth@100ms"


# Every shape


def test_our_frames_have_the_32_shapes() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) == 32


@by_name
def test_each_shape_becomes_what_the_contract_says(shape: Shape) -> None:
    decoded = decode(shape.frame)
    assert_decoded(decoded, shape.frame)
    assert [event.route.event_type for event in decoded.events] == [shape.event_type] * len(shape.keys)
    assert [event.route.topic for event in decoded.events] == [shape.topic] * len(shape.keys)
    assert [event.route.key for event in decoded.events] == [key.encode() if key else None for key in shape.keys]
    assert [event.timestamp_ms for event in decoded.events] == list(shape.times)
    assert [json.loads(event.value).get("stream") for event in decoded.events] == [shape.stream] * len(shape.keys)
    assert len(decoded.replies) == (shape.event_type is None)


@by_name
def test_added_fields_stand_last_in_a_fixed_order(shape: Shape) -> None:
    expected = ["ingestion_timestamp", "source", "event_type", "pipeline_version"]
    expected += ["stream"] if shape.stream else []
    assert all(added_fields(event.value) == expected for event in decode(shape.frame).events)


@by_name
def test_white_space_anywhere_changes_nothing_but_itself(shape: Shape) -> None:
    roomy = json.dumps(json.loads(shape.frame), indent=1, ensure_ascii=False)
    for frame in (roomy, f" \r\n\t{roomy}\n", roomy.replace("\n", "\r\n"), f"{shape.frame} "):
        assert_decoded(decode(frame), frame)


def test_topics_are_the_ones_given() -> None:
    decoder = EventDecoder(Topics("t", "d", "r"))
    frames = [shape.frame.encode() for shape in SHAPES]
    topics = {(event.route.event_type, event.route.topic) for event in decoder.decode(frames, RECEIVED_MS).events}
    assert ("trade", "t") in topics
    assert ("depth_update", "d") in topics
    assert ("kline", "r") in topics


def test_events_of_one_kind_and_symbol_share_one_route() -> None:
    first, second = decode(TRADE, TRADE).events
    assert first.route is second.route


def test_the_cache_of_routes_ends_somewhere() -> None:
    decoder = EventDecoder(TOPICS)
    frames = [on_stream(f'{{"e":"trade","s":"S{number}"}}').encode() for number in range(66_000)]
    assert len(decoder.decode(frames, RECEIVED_MS).events) == len(frames)
    assert len(decoder._routes) <= 65_536
    assert_decoded(decoder.decode([TRADE.encode()], RECEIVED_MS), TRADE)


def test_a_megabyte_is_no_limit() -> None:
    levels = ",".join(f'["{number}.50","0.00"]' for number in range(60_000))
    payload = f'{{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":2,"b":[{levels}],"a":[]}}'
    assert len(payload) > 1_000_000
    for frame in (payload, on_stream(payload, "btcusdt@depth")):
        assert_decoded(decode(frame), frame)


# The wrapper

_PAYLOAD = '{"e":"trade","E":5,"s":"BTCUSDT","p":"0.10"}'
WRAPPERS = {
    "extra member after": f'{{"stream":"btcusdt@trade","data":{_PAYLOAD},"n":{{}}}}',
    "extra member before": f'{{"n":{{}},"stream":"btcusdt@trade","data":{_PAYLOAD}}}',
    "extra member between": f'{{"stream":"btcusdt@trade","n":1,"data":{_PAYLOAD}}}',
    "reordered": f'{{"data":{_PAYLOAD},"stream":"btcusdt@trade"}}',
    "data twice": f'{{"stream":"btcusdt@trade","data":{{"e":"trade","s":"ETHUSDT"}},"data":{_PAYLOAD}}}',
    "data twice, a blank before the colon": f'{{"stream":"btcusdt@trade","data":{_PAYLOAD},"data" :{_PAYLOAD}}}',
    "data twice, escaped": f'{{"stream":"btcusdt@trade","data":{_PAYLOAD},"d\\u0061ta":{_PAYLOAD}}}',
    "data twice, on a new line": f'{{"stream":"btcusdt@trade","data":{_PAYLOAD}\n,\n"data":{_PAYLOAD}}}',
    "stream twice": f'{{"stream":"x@y","stream":"btcusdt@trade","data":{_PAYLOAD}}}',
    "stream again at the end": f'{{"stream":"x@y","data":{_PAYLOAD},"stream":"btcusdt@trade"}}',
    "escaped stream name": f'{{"stream":"btcusdt\\u0040trade","data":{_PAYLOAD}}}',
    "escaped member names": f'{{"str\\u0065am":"btcusdt@trade","\\u0064ata":{_PAYLOAD}}}',
    "braces in a string": on_stream('{"e":"trade","s":"BTCUSDT","x":"}}"}'),
    "brackets in a string": on_stream('{"e":"trade","s":"BTCUSDT","x":"{[\\"]}"}'),
    "a wrapper in a wrapper": on_stream(on_stream(_PAYLOAD)),
    "nested objects": on_stream('{"e":"trade","s":"BTCUSDT","x":{"y":{"z":{}}},"w":1}'),
    "the payload's own stream and data": on_stream('{"e":"trade","s":"BTCUSDT","stream":"a","data":{"b":1}}'),
    "upper-case members": f'{{"Stream":"btcusdt@trade","Data":{_PAYLOAD}}}',
    "stream that is no string": f'{{"stream":7,"data":{_PAYLOAD}}}',
    "no data": '{"stream":"btcusdt@trade"}',
    "no stream": f'{{"data":{_PAYLOAD}}}',
    "empty stream name": on_stream(_PAYLOAD, ""),
    "only a symbol as stream name": on_stream('{"e":"trade"}', "btcusdt"),
    "a blank before the payload": f'{{"stream":"btcusdt@trade","data": {_PAYLOAD}}}',
    "a blank after the payload": f'{{"stream":"btcusdt@trade","data":{_PAYLOAD} }}',
    "a quote in the stream name": '{"stream":"a\\"b@trade","data":{"e":"trade"}}',
}


def test_bars_without_a_wrapper_are_told_apart_by_their_interval() -> None:
    minute, five = (
        f'{{"e":"kline","E":5,"s":"BTCUSDT","k":{{"t":0,"T":9,"i":"{each}"}}}}' for each in ("1m", "5m")
    )
    first, second, again = decode(minute, five, minute).events
    assert [first.route.stream, second.route.stream] == ["btcusdt@kline_1m", "btcusdt@kline_5m"]
    assert first.route is again.route
    assert "stream" not in added_fields(first.value)


@pytest.mark.parametrize("frame", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_is_taken_off_however_it_is_written(frame: str) -> None:
    chunk = [on_stream(_PAYLOAD).encode(), frame.encode()]  # the usual frame first: its route is known then
    decoder = EventDecoder(TOPICS)
    for _ in range(2):
        decoded = decoder.decode(chunk, RECEIVED_MS)
        assert_decoded(replace(decoded, events=decoded.events[1:]), frame)


@pytest.mark.parametrize("payload", ["1", '"text"', "null", "true"])
def test_a_wrapper_around_something_else_than_an_object_is_skipped(payload: str) -> None:
    assert [part.reason for part in decode(on_stream(payload)).skipped] == ["not_an_object"]
    assert decode(on_stream(payload)).events == []


# Arrays


def test_an_array_becomes_one_event_per_element_in_order() -> None:
    elements = [f'{{"e":"24hrMiniTicker","E":{number},"s":"S{number}"}}' for number in range(1000)]
    for frame in (f"[{','.join(elements)}]", on_stream(f"[{','.join(elements)}]", "!miniTicker@arr")):
        assert_decoded(decode(frame), frame)
        assert [event.timestamp_ms for event in decode(frame).events] == list(range(1000))


def test_an_empty_array_holds_no_event() -> None:
    for frame in ("[]", "[ ]", on_stream("[]", "!miniTicker@arr")):
        assert _contents(decode(frame)) == ([], [], [], [])


def test_elements_that_are_no_object_are_skipped_one_by_one() -> None:
    frame = '[{"e":"trade","s":"A"},1,null,"x",[{"e":"trade"}],true,[],{"e":"trade","s":"B"}]'
    for written in (frame, frame.replace(",", " ,\n ")):
        decoded = decode(written)
        assert [event.route.key for event in decoded.events] == [b"A", b"B"]
        assert [part.reason for part in decoded.skipped] == ["not_an_object"] * 6
        assert decoded.skipped[3].sample.startswith(b"[")


def test_replies_inside_an_array_are_events() -> None:
    decoded = decode('[{"result":null,"id":1}]')
    assert decoded.replies == []
    assert len(decoded.events) == 1


# Fields that decide the route


@pytest.mark.parametrize(
    ("event_time", "timestamp"),
    [
        ("0", 0),
        ("1617566591315", 1617566591315),
        (str(RECEIVED_MS + MAX_AHEAD_MS), RECEIVED_MS + MAX_AHEAD_MS),
        (str(RECEIVED_MS + MAX_AHEAD_MS + 1), RECEIVED_MS),
        ("1617566591315999", 1617566591315),
        (str((RECEIVED_MS + MAX_AHEAD_MS + 1) * 1000), RECEIVED_MS),
        ("99999999999999", RECEIVED_MS),
        ("-1", RECEIVED_MS),
        ("-1617566591315000", RECEIVED_MS),
        (str(2**63), RECEIVED_MS),
        (str(-(2**63) - 1), RECEIVED_MS),
        ("9" * 300, RECEIVED_MS),
        ("null", RECEIVED_MS),
    ],
)
def test_the_kafka_timestamp_is_the_event_time_where_kafka_can_take_it(event_time: str, timestamp: int) -> None:
    payload = f'{{"e":"trade","E":{event_time},"s":"BTCUSDT"}}'
    for frame in (payload, on_stream(payload)):
        assert_decoded(decode(frame), frame)
        assert [event.timestamp_ms for event in decode(frame).events] == [timestamp]


@pytest.mark.parametrize(
    "fields",
    [
        '"e":5',
        '"e":["trade"]',
        '"e":true',
        '"e":"trade","E":"1617566591315"',
        '"e":"trade","E":1.5',
        '"e":"trade","s":7',
        '"e":"trade","E":true',
        '"e":"trade","s":{}',
        '"e":"trade","E":1e12',
        f'"e":"trade","E":{"9" * 5000}',
    ],
)
def test_a_field_of_the_wrong_type_sends_the_payload_to_the_raw_topic_as_it_came(fields: str) -> None:
    payload = f'{{{fields},"p":"0.10"}}'
    for frame in (payload, on_stream(payload)):
        decoded = decode(frame, TRADE)
        assert (decoded.events[0].value, decoded.events[0].route.topic) == (payload.encode(), "raw")
        assert len(decoded.unenriched) == 1
        assert_enriched(decoded.events[1], (expected_events(TRADE) or [])[0])
    assert decoded.events[0].timestamp_ms == RECEIVED_MS
    assert decoded.events[0].route.key == b"BTCUSDT", "the stream still names the symbol"


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ('"e":"trade","E":"1617566591315","s":"BTCUSDT"', b"BTCUSDT"),
        ('"e":5,"s":"btcusdt"', b"BTCUSDT"),
        ('"e":"trade","s":7', None),
        ('"e":"trade","E":1.5', None),
        ('"e":"trade","s":"BTCUSDT","x":"\\ud800"', None),
    ],
)
def test_what_is_kept_as_it_came_has_the_key_of_its_symbol_where_it_can_be_read(
    fields: str, key: bytes | None
) -> None:
    assert [event.route.key for event in decode(f"{{{fields}}}").events] == [key]


def test_a_fault_of_ours_sends_the_payload_to_the_raw_topic_as_it_came() -> None:
    class Broken:
        raw = "raw"

        @property
        def trades(self) -> str:
            raise ZeroDivisionError("a bug")

    decoded = EventDecoder(Broken()).decode([TRADE.encode(), KLINE.encode()], RECEIVED_MS)  # type: ignore[arg-type]
    assert decoded.unenriched == ["ZeroDivisionError: a bug"]
    assert [event.route.topic for event in decoded.events] == ["raw", "raw"]
    assert on_stream(decoded.events[0].value.decode(), "solusdt@trade") == TRADE
    assert_enriched(decoded.events[1], (expected_events(KLINE) or [])[0])


LONE_SURROGATES = (
    '{"e":"trade","s":"BTCUSDT","x":"\\ud800"}',
    '{"e":"trade","s":"BTCUSDT","x":"\\udfff\\ud800"}',
    '{"e":"\\ud83d"}',
    '{"\\ud83dx":1}',
    on_stream('{"e":"trade","s":"BTCUSDT","x":"\\ud800"}'),
    on_stream('{"e":"trade","s":"\\ud800"}'),
    on_stream('{"e":"trade"}', "\\ud800@trade"),
    '[{"e":"trade","s":"BTCUSDT"},{"x":"\\ud800"}]',
)


@pytest.mark.parametrize("frame", LONE_SURROGATES)
def test_a_lone_surrogate_is_json_and_is_kept_as_it_came(frame: str) -> None:
    decoded = decode(frame)
    assert [(event.value.decode(), event.route.topic) for event in decoded.events] == [(frame, "raw")]
    assert len(decoded.unenriched) == 1


def test_a_pair_of_surrogates_is_a_character() -> None:
    frame = on_stream('{"e":"trade","s":"\\ud83d\\ude00"}')
    assert_decoded(decode(frame), frame)
    assert decode(frame).events[0].route.key == "😀".encode()


def test_keys_that_differ_only_by_case_are_distinct() -> None:
    frame = on_stream('{"E":5,"e":"trade","S":"NO","s":"yes","U":1,"T":2,"t":3,"LASTUPDATEID":4}')
    assert_decoded(decode(frame), frame)
    event = decode(frame).events[0]
    assert (event.route.event_type, event.route.key, event.timestamp_ms) == ("trade", b"YES", 5)
    upper = on_stream('{"LASTUPDATEID":4,"U":5}')
    assert decode(upper).events[0].route.event_type == "unknown"


def test_duplicate_members_are_kept_and_the_last_one_counts() -> None:
    frame = on_stream('{"e":"kline","e":"trade","E":1,"E":2,"s":"A","s":"B","p":"0.10","p":"0.100"}')
    assert_decoded(decode(frame), frame)


def test_a_payload_that_has_our_field_names_already_keeps_them_and_ours_come_last() -> None:
    frame = on_stream('{"e":"trade","s":"A","source":"theirs","event_type":1}')
    assert_decoded(decode(frame), frame)
    assert json.loads(decode(frame).events[0].value)["source"] == "binance_websocket"


@pytest.mark.parametrize("number", ["1e400", "-0", "0.10000000000000000000001", "1E-999", "9" * 5000, "-0.0e+00"])
def test_any_number_keeps_its_digits(number: str) -> None:
    for payload in (f'{{"e":"trade","s":"A","x":{number}}}', f'{{"e":"trade","x":[{{"y":{number}}}]}}'):
        for frame in (payload, on_stream(payload)):
            assert_decoded(decode(frame), frame)


def test_deep_nesting_is_an_event_or_skipped_as_such_and_never_raises() -> None:
    for depth in (10, 400, *range(490, 500), *range(980, 1000), 5_000, 100_000):
        for opening, inner, closing in (("[", "", "]"), ('{"a":', "1", "}"), ('[{"a":', "1", "}]")):
            nested = opening * depth + inner + closing * depth
            payload = f'{{"e":"trade","x":{nested}}}'
            error = f'{{"error":{nested}}}'
            decoded = decode(payload, on_stream(payload), error, f"[{payload}]", on_stream(f"[{payload}]"), TRADE)
            assert len(decoded.events) + len(decoded.skipped) + len(decoded.replies) == 6
            assert {part.reason for part in decoded.skipped} <= {"nested_too_deep"}
            assert_enriched(decoded.events[-1], (expected_events(TRADE) or [])[0])
            assert len(decoded.skipped) == 5 or depth < 5_000
            if depth <= 400:  # the third kind is twice as deep
                assert decoded.skipped == []


# What is no JSON

MALFORMED = {
    "empty": b"",
    "blank": b" \r\n\t",
    "text": b"hello",
    "opened": b"{",
    "opened array": b"[",
    "closed": b"}",
    "truncated": TRADE.encode()[:-1],
    "truncated in a string": TRADE.encode()[:20],
    "truncated payload": TRADE.encode()[:-2],
    "trailing text": TRADE.encode() + b"x",
    "trailing brace": TRADE.encode() + b"}",
    "trailing zero byte": TRADE.encode() + b"\0",
    "two frames in one": TRADE.encode() * 2,
    "two frames on two lines": TRADE.encode() + b"\n" + TRADE.encode(),
    "trailing comma": b'{"e":"trade",}',
    "trailing comma in an array": b'[{"e":"trade"},]',
    "missing comma": b'{"e":"trade" "s":"A"}',
    "missing colon": b'{"e" "trade"}',
    "single quotes": b"{'e':'trade'}",
    "unquoted key": b'{e:"trade"}',
    "key that is a number": b'{1:"trade"}',
    "NaN": b'{"e":"trade","p":NaN}',
    "Infinity": b'{"e":"trade","p":-Infinity}',
    "NaN in an array": b'[{"e":"trade","p":NaN}]',
    "NaN alone": b"NaN",
    "undefined": b'{"e":undefined}',
    "upper-case true": b'{"e":"trade","m":True}',
    "leading zero": b'{"e":"trade","E":01}',
    "plus sign": b'{"e":"trade","E":+1}',
    "bare point": b'{"e":"trade","p":1.}',
    "leading point": b'{"e":"trade","p":.5}',
    "bare exponent": b'{"e":"trade","p":1e}',
    "hexadecimal": b'{"e":"trade","p":0x10}',
    "comment": b'{"e":"trade"/* no */}',
    "bad escape": b'{"e":"trade","p":"\\q"}',
    "short escape": b'{"e":"trade","p":"\\u12"}',
    "line break in a string": b'{"e":"trade","p":"a\nb"}',
    "zero byte in a string": b'{"e":"trade","p":"a\0b"}',
    "unclosed string": b'{"e":"trade}',
    "mismatched brackets": b'{"e":["trade"}]',
    "byte order mark": b"\xef\xbb\xbf" + TRADE.encode(),
    "vertical tab as white space": b'\x0b{"e":"trade"}',
    "no-break space as white space": '\u00a0{"e":"trade"}'.encode(),
}
INVALID_UTF8 = {
    "in a skipped string": b'{"e":"trade","s":"A","p":"\xff"}',
    "in the symbol": b'{"e":"trade","s":"\xff"}',
    "in the type": b'{"e":"\xc3("}',
    "in a key": b'{"e":"trade","\xfe":1}',
    "overlong": b'{"e":"trade","p":"\xc0\xaf"}',
    "an encoded surrogate": b'{"e":"trade","p":"\xed\xa0\x80"}',
    "beyond Unicode": b'{"e":"trade","p":"\xf5\x80\x80\x80"}',
    "cut off": b'{"e":"trade","p":"\xe4\xb8"}',
    "UTF-16": '{"e":"trade","p":"é"}'.encode("utf-16"),
    "outside of everything": TRADE.encode() + b"\xff",
}


def _skipped_alone(frame: bytes, reason: str) -> None:
    """Show that one bad frame is skipped for that reason and that its neighbours are unharmed."""
    around = [TRADE, KLINE, BOOK]
    decoded = decode(*around, frame, *around)
    assert [(part.reason, part.sample) for part in decoded.skipped] == [(reason, frame[:200])]
    assert (decoded.replies, decoded.unenriched) == ([], [])
    assert len(decoded.events) == 6
    for good, event in zip(around * 2, decoded.events, strict=True):
        assert_enriched(event, (expected_events(good) or [])[0])


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_a_frame_that_is_no_json_is_skipped(frame: bytes) -> None:
    _skipped_alone(frame, "malformed_json")


@pytest.mark.parametrize("payload", MALFORMED.values(), ids=MALFORMED)
def test_a_payload_that_is_no_json_is_skipped(payload: bytes) -> None:
    _skipped_alone(b'{"stream":"solusdt@trade","data":%b}' % payload, "malformed_json")


@pytest.mark.parametrize("frame", INVALID_UTF8.values(), ids=INVALID_UTF8)
def test_a_frame_that_is_no_utf8_is_skipped(frame: bytes) -> None:
    _skipped_alone(frame, "invalid_utf8")


@pytest.mark.parametrize("payload", INVALID_UTF8.values(), ids=INVALID_UTF8)
def test_a_payload_that_is_no_utf8_is_skipped(payload: bytes) -> None:
    _skipped_alone(b'{"stream":"solusdt@trade","data":%b}' % payload, "invalid_utf8")
    _skipped_alone(b'{"stream":"\xff","data":{"e":"trade","s":"SOLUSDT"}}', "invalid_utf8")


def test_invalid_utf8_is_noticed_in_the_usual_frame_of_a_known_route() -> None:
    for good, text in ((TRADE, "101.5"), (KLINE, "101.0"), (BOOK, "7.00000000")):
        _skipped_alone(good.encode().replace(text.encode(), b"\xff", 1), "invalid_utf8")


def test_text_that_is_not_ascii_is_written_as_it_is() -> None:
    event = decode(on_stream('{"lastUpdateId":1}', "这是@depth5")).events[0]
    assert event.value.endswith(',"stream":"这是@depth5"}'.encode())


@pytest.mark.parametrize("frame", [b"1", b'"text"', b"null", b"true", b"-0.5e3", b' "{" '])
def test_a_scalar_is_skipped(frame: bytes) -> None:
    assert [part.reason for part in decode(frame).skipped] == ["not_an_object"]


# Control messages

REPLIES = {
    '{"result":null,"id":1}': (1, None, None),
    '{"id":1,"result":null}': (1, None, None),
    '{"result":["btcusdt@trade"],"id":3}': (3, None, ["btcusdt@trade"]),
    '{"result":true,"id":2}': (2, None, True),
    '{"result":null,"id":"a-b"}': ("a-b", None, None),
    '{"result":null,"id":null}': (None, None, None),
    '{"result":null}': (None, None, None),
    '{"result":null,"id":1.5}': (None, None, None),
    '{"result":null,"id":[1]}': (None, None, None),
    '{"result":null,"error":null,"id":1}': (1, None, None),
    ' { "result" : null , "id" : 1 } ': (1, None, None),
    '{"error":{"code":2,"msg":"no"},"id":20}': (20, '{"code":2,"msg":"no"}', None),
    '{"error":{"code":2,"msg":"no"},"id":null}': (None, '{"code":2,"msg":"no"}', None),
    '{"error":{"code":2,"msg":"no"}}': (None, '{"code":2,"msg":"no"}', None),
    '{"error":"text","id":4}': (4, '"text"', None),
    '{"error":{"code":1e400},"id":4}': (4, '{"code":1e400}', None),
    '{"code":0,"msg":"Unknown property","id":5}': (5, '{"code":0,"msg":"Unknown property"}', None),
    '{"code":1,"msg":"Invalid value type: expected Boolean"}': (
        None,
        '{"code":1,"msg":"Invalid value type: expected Boolean"}',
        None,
    ),
    '{"code":2,"msg":"币","id":6}': (6, '{"code":2,"msg":"币"}', None),
}


@pytest.mark.parametrize("frame", REPLIES)
def test_answers_of_the_exchange_are_replies_and_never_events(frame: str) -> None:
    decoded = decode(TRADE, frame, TRADE)
    assert len(decoded.events) == 2
    assert (decoded.skipped, decoded.unenriched) == ([], [])
    assert [(reply.id, reply.error, reply.result) for reply in decoded.replies] == [REPLIES[frame]]


@pytest.mark.parametrize("payload", [frame.strip() for frame in REPLIES])
def test_what_looks_like_an_answer_inside_a_stream_is_an_event(payload: str) -> None:
    frame = on_stream(payload)
    assert_decoded(decode(frame), frame)
    assert decode(frame).replies == []
    assert decode(frame).events[0].route.event_type == "unknown"


@pytest.mark.parametrize(
    "payload", ['{"e":"trade","result":null,"id":1}', '{"code":1,"id":2}', '{"msg":"x"}', '{"id":1}']
)
def test_what_has_a_type_or_no_answer_is_an_event(payload: str) -> None:
    assert_decoded(decode(payload), payload)
    assert decode(payload).replies == []


# Anything at all

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=10,
)
_KEYS = (
    st.sampled_from(["u", "lastUpdateId", "stream", "data", "result", "error", "code", "msg", "id", "k", "b"])
    | _TEXT
)
_TYPED = st.fixed_dictionaries(
    {},
    optional={
        "e": st.sampled_from(["trade", "kline", "depthUpdate", "24hrTicker", "!bookTicker?"]) | _TEXT | st.none(),
        "E": st.integers() | st.integers(0, 2 * RECEIVED_MS) | st.none(),
        "s": _TEXT | st.none(),
    },
)


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    """Any JSON object whose `e`, `E` and `s` are of the documented types, in any order."""
    members = draw(st.dictionaries(_KEYS.filter(lambda key: key not in ("e", "E", "s")), _JSON, max_size=6))
    pairs = draw(st.permutations([*members.items(), *draw(_TYPED).items()]))
    return dict(pairs)


@st.composite
def written(draw: st.DrawFn, value: object) -> str:
    """Any way to write a value down."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]))
    return json.dumps(value, ensure_ascii=draw(st.booleans()), separators=separators)


@settings(max_examples=200)
@given(st.data())
def test_any_object_comes_out_as_it_was_with_our_fields_added(data: st.DataObject) -> None:
    payload = data.draw(objects())
    stream = data.draw(st.sampled_from(["btcusdt@trade", "a@kline_1m@+08:00", "!miniTicker@arr"]) | _TEXT)
    for value in (
        payload,
        {"stream": stream, "data": payload},
        [payload, payload],
        {"stream": stream, "data": [payload]},
    ):
        frame = data.draw(written(value))
        assert_decoded(replace(decode(TRADE, frame), events=decode(frame).events), frame)


def _judged(frame: bytes) -> str | None:
    """Say what the standard library finds wrong with a frame."""
    try:
        strict(frame.decode())
    except UnicodeDecodeError:
        return "invalid_utf8"
    except ValueError:
        return "malformed_json"
    return None


def _assert_accounted(frame: bytes) -> None:
    decoded = decode(frame)
    parts = len(decoded.events) + len(decoded.skipped) + len(decoded.replies)
    if fault := _judged(frame):
        assert [part.reason for part in decoded.skipped] == [fault]
        assert parts == 1
        return
    for event in decoded.events:
        strict(event.value.decode())
    assert {part.reason for part in decoded.skipped} <= {"not_an_object"}
    assert parts or b"[" in frame, "only an empty array holds nothing"


@settings(max_examples=300)
@given(st.binary(max_size=40) | st.text('{}[]",:\\u0123e stream.data-+tfn', max_size=40).map(str.encode))
def test_any_bytes_are_accounted_and_never_raise(frame: bytes) -> None:
    _assert_accounted(frame)


_GOOD = [shape.frame.encode() for shape in (*SHAPES, *LATER_SHAPES)]


@settings(max_examples=500)
@given(st.sampled_from(_GOOD), st.data())
def test_a_frame_that_was_tampered_with_is_judged_like_the_standard_library_does(
    frame: bytes, data: st.DataObject
) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(frame)))
        until = min(len(frame), at + data.draw(st.sampled_from([0, 0, 1, 2, 30])))
        piece = data.draw(st.sampled_from([b"", *_PIECES]) | st.binary(max_size=2))
        frame = frame[:at] + piece + frame[until:]
    _assert_accounted(frame)


_PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"\\u",
    b"0",
    b"-",
    b".",
    b"e",
    b"null",
    b"NaN",
    b" ",
    b"\n",
]
_PIECES += [
    b"\0",
    b"\xff",
    b"\xc3\xa9",
    b'"data":',
    b'"e":1',
    b"\\ud800",
    b"{}",
    b"[]",
    b'},"data":{',
    b'"x":1e400,',
]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(_GOOD) | st.binary(max_size=20), max_size=30))
def test_a_chunk_is_the_sum_of_its_frames(frames: list[bytes]) -> None:
    together = EventDecoder(TOPICS).decode(frames, RECEIVED_MS)
    apart = [EventDecoder(TOPICS).decode([frame], RECEIVED_MS) for frame in frames]
    parts = zip(*map(astuple, apart), strict=True) if apart else ()
    summed = Decoded(*(list(chain.from_iterable(each)) for each in parts))
    assert _contents(together) == _contents(summed)
