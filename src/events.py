"""What the service speaks of: events and their routes, topics, and what else a frame may hold. Pure nouns.

Event types and added fields: the service's contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = "binance_websocket"
PIPELINE_VERSION = "1.0.0"

_TRADES, _DEPTH, RAW = "trades", "depth", "raw"  # the fields of Topics
EVENT_TYPES = {
    "aggTrade": ("aggregate_trade", _TRADES),
    "trade": ("trade", _TRADES),
    "depthUpdate": ("depth_update", _DEPTH),
    "kline": ("kline", RAW),
    "24hrTicker": ("ticker", RAW),
    "24hrMiniTicker": ("mini_ticker", RAW),
    "1hTicker": ("rolling_ticker", RAW),
    "4hTicker": ("rolling_ticker", RAW),
    "1dTicker": ("rolling_ticker", RAW),
    "avgPrice": ("average_price", RAW),
    # Payloads without an `e`, under a name of ours; see untyped() in src/payloads.py.
    "!bookTicker": ("book_ticker", RAW),
    "!partialDepth": ("partial_depth", RAW),
    "!depthSnapshot": ("depth_snapshot", _DEPTH),  # of REST, see src/rest_events.py
    "": ("unknown", RAW),
}

# A broker refuses a whole batch with a timestamp more than an hour ahead of its own clock
# (Kafka's message.timestamp.after.max.ms), so an absurd E must not reach it.
MAX_AHEAD_MS = 10 * 60 * 1000

NO_ID = -1
Ids = tuple[int, int, bool]
"""An event's `first_id`, `last_id`, `final`."""
NO_IDS: Ids = (NO_ID, NO_ID - 1, True)


class Topics(NamedTuple):
    """Topic names by kind of event."""

    trades: str
    depth: str
    raw: str


def topic_for(event_type: str, topics: Topics) -> str:
    """Return the topic that events of this type go to."""
    kind = next((kind for known, kind in EVENT_TYPES.values() if known == event_type), RAW)
    return str(getattr(topics, kind))


class Route(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What all events of one kind and symbol share; made once, compared by identity."""

    event_type: str
    topic: str
    key: bytes | None
    """The symbol in upper case, UTF-8; None where neither payload nor stream name one."""
    tail: bytes
    """The added fields after the time of ingestion, with the closing brace."""
    head_length: int
    """Length of the combined wrapper before the payload, `{"stream":"…","data":`."""
    head: bytes
    """That wrapper, and the payload's opening brace."""
    stream: str = ""
    """The stream's name as subscribed; for a frame without the wrapper see `told_names`."""
    ids: Callable[[Any], Ids] | None = None
    """Where the ids of a `Payload` (src/payloads.py) stand; None where the exchange counts nothing."""


class Event(msgspec.Struct, eq=False, gc=False):
    """One enriched event, ready to be a Kafka record."""

    route: Route
    value: bytes
    timestamp_ms: int
    seq: int = 0
    """Its place in the order in which events were taken from the buffer; given there."""
    first_id: int = NO_ID
    """Of a trade or an aggregate its id, of depth `U`, of a bar its open time; NO_ID where nothing is counted."""
    last_id: int = NO_ID - 1
    """The same, of depth `u`, of a bar its close time. The stream's next event should begin one behind."""
    final: bool = True
    """Of a bar: whether it is closed."""


class Reply(NamedTuple):
    """A control message of the exchange: the answer to a request, or an error; never an event."""

    id: int | str | None
    error: str | None
    result: Any = None


class Skipped(NamedTuple):
    """Something that is no event: why (a short word), and the start of it."""

    reason: str
    sample: bytes


class Decoded(msgspec.Struct, gc=False):
    """What a chunk of frames held: each event counts once after array splitting, so does each skipped part."""

    events: list[Event] = []
    skipped: list[Skipped] = []
    replies: list[Reply] = []
    unenriched: list[str] = []
    """One error message for each event that is among `events` just as the exchange sent it."""
    shutdowns: list[str] = []
    """One for each announcement of the exchange that it will end the connection; it is among `events` too."""
