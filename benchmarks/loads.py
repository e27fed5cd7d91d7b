"""The loads: which frames are sent, in which order, encoded for the wire; and how a record is told again.

Every frame has an id that counts up by one from 1 for its kind and symbol, where the exchange has one too, so
reading the topics back proves in one comparison that nothing is missing, doubled or out of order. The sizes are
those of frames recorded from the exchange (August 2024, BTCUSDT and ETHUSDT; depth 1.2 KB on average).
"""

from __future__ import annotations

import random
import time
from array import array
from collections import Counter, defaultdict
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from sandbox.exchange.frames import text_frame

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "ADAUSDT", "XRPUSDT")
LEVELS = (4, 5, 6, 8, 9, 11, 13, 16, 18, 21, 25, 31, 40, 50, 67, 85, 140)
"""Changed levels of a recorded depth update, one for each seventeenth of them."""
UPDATES = 4
"""How many update ids one depth event spans."""
LOADS = {
    "trades": {"aggTrade": 100},
    "realistic": {"depth": 60, "aggTrade": 15, "trade": 15, "kline": 4, "bookTicker": 3, "ticker": 3},
    # The same for the peer, which knows neither trade nor ticker streams.
    "peer": {"depth": 60, "aggTrade": 30, "kline": 5, "bookTicker": 5},
}
"""Frames of each kind, in percent."""
SUFFIXES = {"depth": "depth@100ms", "kline": "kline_1m"}
_CYCLE = 1000
_VARIANTS = 997
"""How many different prices, quantities and sets of levels there are; a prime, so that none keep step."""
_STARTED_MS = int(time.time() * 1000)  # Kafka's retention goes by event time: an old one is deleted at once

Line = tuple[str, str]
"""Kind and symbol: what has ids of its own and keeps its order."""


class Encoded(NamedTuple):
    """Frames in one block: the n-th ends where `ends[n]` says."""

    block: bytes
    ends: array[int]


def stream(line: Line) -> str:
    """Return the name of the stream that carries this kind and symbol."""
    kind, symbol = line
    return f"{symbol.lower()}@{SUFFIXES.get(kind, kind)}"


def streams(load: str) -> str:
    """Return the load's stream names as BINANCE_STREAMS takes them."""
    return ",".join(stream((kind, symbol)) for kind in LOADS[load] for symbol in SYMBOLS)


def cycle(load: str, subscribed: Collection[str] | None = None) -> list[Line]:
    """Return kind and symbol of a thousand frames, shuffled, always the same; or only those of some streams."""
    mix = LOADS[load]
    kinds = [kind for kind, percent in mix.items() for _ in range(percent * _CYCLE // 100)]
    chooser = random.Random(7)
    chooser.shuffle(kinds)
    lines = [(kind, chooser.choice(SYMBOLS)) for kind in kinds]
    return [line for line in lines if subscribed is None or stream(line) in subscribed]


def plan(load: str, count: int, subscribed: Collection[str] | None = None) -> list[Line]:
    """Return kind and symbol of each frame."""
    lines = cycle(load, subscribed)
    return [lines[number % len(lines)] for number in range(count)]


def counts(load: str, count: int, subscribed: Collection[str] | None = None) -> dict[Line, int]:
    """Return how many of the load's first `count` frames there are of each kind and symbol."""
    lines = cycle(load, subscribed)
    cycles, rest = divmod(count, len(lines))
    whole, started = Counter(lines), Counter(lines[:rest])
    found = {line: whole[line] * cycles + started[line] for line in whole}
    return {line: number for line, number in found.items() if number}


def numbers(load: str, count: int) -> dict[Line, array[int]]:
    """Return, for each kind and symbol, which frame (counted from 0) has id 1, 2, 3, ..."""
    found: dict[Line, array[int]] = defaultdict(lambda: array("q"))
    for number, line in enumerate(plan(load, count)):
        found[line].append(number)
    return dict(found)


class Encoder:
    """Encodes a load's frames one stretch after the other."""

    def __init__(self, load: str, subscribed: Collection[str] | None = None) -> None:
        self._cycle = cycle(load, subscribed)
        self._number = 0
        self._ids: Counter[Line] = Counter()

    def encode(self, count: int) -> Encoded:
        """Encode the next `count` frames."""
        block, ends = bytearray(), array("q")
        for each in self.payloads(count):
            block += text_frame(each)
            ends.append(len(block))
        return Encoded(bytes(block), ends)

    def payloads(self, count: int) -> Iterator[bytes]:
        """Yield what the next `count` frames carry."""
        ids = self._ids
        for number in range(self._number, self._number + count):
            line = self._cycle[number % len(self._cycle)]
            ids[line] += 1
            yield payload(*line, ids[line], _STARTED_MS + number // 100)
        self._number += count


def payload(kind: str, symbol: str, number: int, now_ms: int) -> bytes:
    """Return one event of the combined endpoint; `number` is its id within kind and symbol."""
    lower, upper = symbol.lower().encode(), symbol.encode()
    head = b'{"stream":"%b@%b","data":{' % (lower, SUFFIXES.get(kind, kind).encode())
    if kind != "bookTicker":
        head += b'"e":"%b","E":%d,' % (_EVENT_NAMES.get(kind, kind).encode(), now_ms)
    return head + _BODIES[kind](upper, number, now_ms) + b"}}"


def _aggregate_trade(symbol: bytes, number: int, now_ms: int) -> bytes:
    fields = (symbol, number, *_deal(number % _VARIANTS), number, number, now_ms)
    return b'"s":"%b","a":%d,"p":"%b","q":"%b","f":%d,"l":%d,"T":%d,"m":true,"M":true' % fields


def _trade(symbol: bytes, number: int, now_ms: int) -> bytes:
    fields = (symbol, number, *_deal(number % _VARIANTS), now_ms)
    return b'"s":"%b","t":%d,"p":"%b","q":"%b","T":%d,"m":true,"M":true' % fields


def _depth(symbol: bytes, number: int, _now_ms: int) -> bytes:
    levels = LEVELS[number % len(LEVELS)]
    last = number * UPDATES
    variant = number % _VARIANTS
    bids, asks = _levels(61_700, levels - levels // 2 - 1, variant), _levels(61_838, levels // 2, variant)
    # The first quantity repeats the id, as the bookTicker's price does: the peer writes no update ids.
    fields = (symbol, last - UPDATES + 1, last, number, bids, asks)
    return b'"s":"%b","U":%d,"u":%d,"b":[["61699.99000000","%d.00000000"],%b],"a":[%b]' % fields


@cache
def _levels(price: int, count: int, variant: int) -> bytes:
    """Return price levels as varied as real ones, so that compression finds no more than it would there."""
    chooser = random.Random(1000 * price + 100 * count + variant)
    digits = ((price, 138), (0, 100), (0, 8), (0, 100_000))
    return b",".join(
        b'["%d.%02d000000","%d.%05d000"]' % tuple(start + chooser.randrange(stop) for start, stop in digits)
        for _ in range(count)
    )


@cache
def _deal(variant: int) -> tuple[bytes, bytes]:
    chooser = random.Random(variant)
    return (
        b"%d.%02d000000" % (chooser.randrange(61_700, 61_976), chooser.randrange(100)),
        b"0.%05d000" % chooser.randrange(100_000),
    )


def _kline(symbol: bytes, number: int, now_ms: int) -> bytes:
    start = now_ms // 60_000 * 60_000
    return (
        b'"s":"%b","k":{"t":%d,"T":%d,"s":"%b","i":"1m","f":346711017,"L":346711087,"o":"2063.88000000",'
        b'"c":"2064.73000000","h":"2065.00000000","l":"2063.88000000","v":"70.86425000","n":%d,"x":false,'
        b'"q":"146321.71560700","V":"46.98201000","Q":"97009.77617410","B":"0"}'
        % (symbol, start, start + 59_999, symbol, number)
    )


def _book_ticker(symbol: bytes, number: int, _now_ms: int) -> bytes:
    # The price repeats the id: what the peer writes of a bookTicker has no other field that could tell it.
    fields = (number, symbol, number)
    return b'"u":%d,"s":"%b","b":"%d.00000000","B":"3.78826000","a":"61837.64000000","A":"1.54698000"' % fields


def _ticker(symbol: bytes, number: int, now_ms: int) -> bytes:
    return (
        b'"s":"%b","p":"-65.00000000","P":"-0.693","w":"9343.29777965","x":"9383.27000000","c":"9318.48000000",'
        b'"Q":"0.00250000","b":"9318.18000000","B":"0.32000000","a":"9318.47000000","A":"0.35414300",'
        b'"o":"9383.48000000","h":"9438.30000000","l":"9215.79000000","v":"48745.36667100",'
        b'"q":"455442476.18534620","O":%d,"C":%d,"F":343178738,"L":343729077,"n":%d'
        % (symbol, now_ms - 86_400_000, now_ms, number)
    )


_EVENT_NAMES = {"depth": "depthUpdate", "ticker": "24hrTicker"}
_BODIES = {
    "aggTrade": _aggregate_trade,
    "trade": _trade,
    "depth": _depth,
    "kline": _kline,
    "bookTicker": _book_ticker,
    "ticker": _ticker,
}
