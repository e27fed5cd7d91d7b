"""The event core on frames that were recorded from the exchange, as they came and in the other form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from src.decoder import EventDecoder
from src.events import Topics
from tests.frames import RECEIVED_MS, RECORDINGS, SHAPES, assert_decoded, assert_enriched, expected_events

if TYPE_CHECKING:
    from collections.abc import Iterator

TOPICS = Topics("trades", "depth", "raw")
ONE_OF_EACH = "one_of_each_spot_shape.jsonl"
FILES = {
    ONE_OF_EACH: 32,
    "spot_20210404_btc_eth_dot.jsonl": 4_716,
    "spot_btc_eth_20240808_interleaved_12k.jsonl": 12_000,
}
SUFFIXES = {
    "aggTrade": "@aggTrade",
    "trade": "@trade",
    "depthUpdate": "@depth@100ms",
    "kline": "@kline_1m",
    "24hrMiniTicker": "@miniTicker",
    "24hrTicker": "@ticker",
    "1hTicker": "@ticker_1h",
    "avgPrice": "@avgPrice",
    None: "@bookTicker",
}
"""A stream that a raw payload may have come from, by its `e`."""

pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings are not here")
each_file = pytest.mark.parametrize("name", FILES)


def recorded(name: str) -> list[str]:
    """Return the frames of a recording, one a line."""
    return (RECORDINGS / name).read_text(encoding="utf-8").splitlines()


def other_form(frame: str) -> str | None:
    """Take the wrapper off, or put one around; None for a control message, which never has one."""
    if frame.startswith('{"stream":"'):
        return frame[frame.index('"data":') + len('"data":') : -1]
    parsed = json.loads(frame)
    if isinstance(parsed, list):
        return f'{{"stream":"!{"" if "Mini" in frame else "ticker_1h"}@arr","data":{frame}}}'
    if "result" in parsed or "error" in parsed:
        return None
    suffix = "@depth5" if "lastUpdateId" in parsed else SUFFIXES[parsed.get("e")]
    return f'{{"stream":"{parsed.get("s", "btcusdt").lower()}{suffix}","data":{frame}}}'


def both_forms(name: str) -> Iterator[str]:
    for frame in recorded(name):
        yield frame
        if (other := other_form(frame)) is not None:
            yield other


@each_file
def test_every_recorded_frame_is_enriched_right_in_both_forms(name: str) -> None:
    decoder = EventDecoder(TOPICS)
    for frame in both_forms(name):
        assert_decoded(decoder.decode([frame.encode()], RECEIVED_MS), frame)


@each_file
def test_recorded_frames_are_decoded_in_chunks_in_their_order(name: str) -> None:
    frames = recorded(name)
    assert len(frames) == FILES[name]
    decoder = EventDecoder(TOPICS)
    events = []
    for start in range(0, len(frames), 64):
        chunk = [frame.encode() for frame in frames[start : start + 64]]
        decoded = decoder.decode(chunk, RECEIVED_MS)
        assert (decoded.skipped, decoded.unenriched) == ([], [])
        events += decoded.events
    expected = [event for frame in frames for event in expected_events(frame) or []]
    assert len(events) == len(expected)
    for event, wanted in zip(events, expected, strict=True):
        assert_enriched(event, wanted)


def test_each_recorded_shape_has_the_type_and_route_of_our_own_frame_of_that_shape() -> None:
    decoder = EventDecoder(TOPICS)
    for frame, shape in zip(recorded(ONE_OF_EACH), SHAPES, strict=True):
        decoded = decoder.decode([frame.encode()], RECEIVED_MS)
        assert len(decoded.replies) == (shape.event_type is None)
        assert {event.route.event_type for event in decoded.events} == {shape.event_type} - {None}
        assert {event.route.topic for event in decoded.events} <= {shape.topic}
        assert all(("stream" in json.loads(event.value)) == (shape.stream is not None) for event in decoded.events)


def test_our_own_frames_have_the_fields_of_the_recorded_ones_in_their_order_but_other_values() -> None:
    for frame, shape in zip(recorded(ONE_OF_EACH), SHAPES, strict=True):
        theirs, ours = _first(frame), _first(shape.frame)
        assert list(theirs) == list(ours), shape.name
        assert frame != shape.frame


def _first(frame: str) -> dict[str, object]:
    parsed = json.loads(frame)
    payload = parsed["data"] if "data" in parsed else parsed  # noqa: SIM401 - a list has no get()
    first: dict[str, object] = payload[0] if isinstance(payload, list) else payload
    return first
