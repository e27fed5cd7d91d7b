"""The payloads of the exchange: the few fields that decide an event's route, its ids, and the name that it tells.

Shapes and names: Binance web-socket-streams.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from src.events import NO_ID, NO_IDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from src.events import Ids

_ABSENT = msgspec.Raw(b"")


class Payload(msgspec.Struct, gc=False):
    """What is parsed of a payload, whatever it is of; each field is there or not."""

    e: str | None = None
    E: int | None = None
    s: str | None = None
    t: Any = None
    a: msgspec.Raw = _ABSENT
    U: Any = None
    u: Any = None
    k: Any = None
    last_update_id: Any = msgspec.field(default=None, name="lastUpdateId")


class Combined(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A frame in the combined wrapper that holds these two members and no other."""

    stream: str
    data: Payload


class CombinedRaw(msgspec.Struct, gc=False):
    """Any frame in that wrapper, the payload as it came."""

    stream: str
    data: msgspec.Raw


class Control(msgspec.Struct, gc=False):
    """What tells the answer to a request, or an error, from a payload."""

    e: Any = None
    id: Any = None
    result: Any = msgspec.UNSET
    error: msgspec.Raw = _ABSENT
    code: msgspec.Raw = _ABSENT
    msg: msgspec.Raw = _ABSENT


class Named(msgspec.Struct, gc=False):
    """The symbol alone, for a payload in which something else is not as it should be."""

    s: Any = None


def _trade_ids(payload: Payload) -> Ids:
    """Return the trade's id, twice: trades are counted one by one."""
    number = payload.t
    return (number, number, True) if type(number) is int else NO_IDS


def _aggregate_ids(payload: Payload) -> Ids:
    try:
        number = int(payload.a)  # not decoded with the rest: it is a list in a depth update
    except ValueError:
        return NO_IDS
    return number, number, True


def _depth_ids(payload: Payload) -> Ids:
    first, last = payload.U, payload.u
    return (first, last, True) if type(first) is int and type(last) is int else NO_IDS


def _bar_ids(payload: Payload) -> Ids:
    """Return the bar's open and close time, and whether it is closed."""
    bar = payload.k if type(payload.k) is dict else {}
    opened, closed = bar.get("t"), bar.get("T")
    if type(opened) is not int or type(closed) is not int:
        return NO_IDS
    return opened, closed, bar.get("x") is True


def _only_last(number: Any) -> Ids:  # noqa: ANN401 - of a payload that may be anything
    """Of a state that is not counted one by one, return what tells a newer from an older."""
    return (NO_ID, number, True) if type(number) is int and number >= 0 else NO_IDS


IDS: dict[str, Callable[[Payload], Ids]] = {
    "!bookTicker": lambda payload: _only_last(payload.u),
    "!partialDepth": lambda payload: _only_last(payload.last_update_id),
    "referencePrice": lambda payload: _only_last(payload.t),
    "trade": _trade_ids,
    "aggTrade": _aggregate_ids,
    "depthUpdate": _depth_ids,
    "kline": _bar_ids,
}
SUFFIXES = {
    "depthUpdate": "depth",
    "24hrTicker": "ticker",
    "24hrMiniTicker": "miniTicker",
    "1hTicker": "ticker_1h",
    "4hTicker": "ticker_4h",
    "1dTicker": "ticker_1d",
    "!bookTicker": "bookTicker",
}
"""What the names of streams end with, where that is not the `e` of their payloads."""


def untyped(payload: Payload) -> str:
    """Name a payload that carries no `e` by the ids that only it has."""
    if payload.last_update_id is not None:
        return "!partialDepth"
    return "!bookTicker" if payload.u is not None else ""


def bar_interval(stream: str | None, payload: Payload) -> str:
    """Return what the name of a bar's stream ends with, where no wrapper names it: `_1m`."""
    bar = payload.k
    if stream is not None or payload.e != "kline" or type(bar) is not dict or type(bar.get("i")) is not str:
        return ""
    return f"_{bar['i']}"


def told_names(streams: Iterable[str]) -> dict[str, str]:
    """Return the names of streams by those that their payloads tell where no wrapper does.

    No payload tells the speed of depth or a bar's offset from UTC, nor that an element was part of an array. Of
    two that tell the same name the one is taken whose name it is, else the first.
    """
    streams = list(streams)
    names: dict[str, str] = {}
    for stream in streams:
        symbol, _, kind = stream.partition("@")
        told = f"@{symbol[1:]}" if symbol.startswith("!") else f"{symbol}@{kind.partition('@')[0]}"
        names.setdefault(told, stream)
    return names | {stream: stream for stream in streams}
