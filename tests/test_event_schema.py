"""The schema of events: whatever the exchange sends, and its documented shapes field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from src.decoder import EventDecoder
from src.events import Topics
from tests.frames import LATER_SHAPES, RECEIVED_MS, SHAPES, Shape

SCHEMA = json.loads((Path(__file__).parents[1] / "docs/schemas/events.schema.json").read_text())
FULL = [shape for shape in SHAPES if shape.event_type is not None]
UNLIKE_THE_EXCHANGE = "not ASCII"  # a trade of three fields, for its name alone


def events_of(shape: Shape) -> list[dict[str, Any]]:
    decoder = EventDecoder(Topics("trades", "depth", "raw"))
    decoded = decoder.decode([shape.frame.encode()], RECEIVED_MS)
    return [json.loads(event.value) for event in decoded.events]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "shape",
    [*FULL, *(each for each in LATER_SHAPES if each.name != UNLIKE_THE_EXCHANGE)],
    ids=lambda shape: shape.name,
)
def test_every_shape_is_as_the_schema_says(shape: Shape) -> None:
    events = events_of(shape)
    assert events
    for event in events:
        assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(event)] == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("trade", {"t": "88001"}),
        ("trade", {"p": 101.5}),
        ("aggTrade", {"source": "binance_rest_snapshot"}),
        ("depthUpdate", {"b": [["1"]]}),
        ("depthUpdate", {"source": "binance_rest_backfill"}),
        ("bookTicker", {"ingestion_timestamp": None}),
    ],
)
def test_what_is_not_so_is_refused(name: str, wrong: dict[str, Any]) -> None:
    (event,) = next(events_of(shape) for shape in FULL if shape.name == name)
    assert Draft202012Validator(SCHEMA).is_valid(event)
    assert not Draft202012Validator(SCHEMA).is_valid(event | wrong)
