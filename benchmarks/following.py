"""`python -m benchmarks.following`: what it costs a message that streams are followed by their ids.

The product's own code on the frames of both loads, in one process: the decoder with ids against the same decoder
that neither parses nor takes them, and `Continuity.put` into a buffer against `Buffer.put` alone; CPU time of the
thread, in chunks as they come at full rate and frame by frame, in pairs whose order turns. Each part is the real
one: the books' snapshots come over REST before it begins, and every event has to come out of both buffers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from benchmarks.loads import Encoder
from benchmarks.rest import LIVE, RestServer
from config.settings import BackfillConfig
from src import decoder
from src.backfill import Backfill
from src.binance_rest import BinanceRest
from src.buffer import Buffer
from src.continuity import Continuity
from src.deadline import Deadline
from src.decoder import EventDecoder
from src.events import Topics
from src.ledger import Ledger
from src.logger import configure_logging
from src.payloads import Payload
from src.telemetry import Telemetry
from src.weight_budget import WeightBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from src.events import Event
    from src.outbox import Note

MEASURED = ("trades", "realistic")
CHUNKS = (500, 1)
"""Frames of one read from the socket: at full rate, and when they come one by one."""
BLOCK = 5_000
"""Frames of one measurement: no more than a buffer takes without waiting."""
_WARMING = 2_000
_SETTLE_SECONDS = 10.0
_BATCH = 100
_TOPICS = Topics("trades", "depth", "raw")
_ONLY_IDS = {"t", "a", "U", "k"}
"""Fields of a payload that are parsed for nothing else; `u` and `lastUpdateId` also tell what has no name."""


class Pair(NamedTuple):
    """CPU time of one block with and without, in microseconds a message."""

    decoding: float
    decoding_plain: float
    putting: float
    putting_plain: float

    @property
    def cost(self) -> float:
        """What following the ids added."""
        return self.decoding - self.decoding_plain + self.putting - self.putting_plain


class IncompleteError(Exception):
    """Not every event came out, or not in order."""


class Stage:
    """`Continuity` with its neighbours as the service composes them, the books in place; the ledger is kept."""

    def __init__(self, rest_url: str) -> None:
        telemetry = Telemetry()
        self.notes: list[Note] = []
        self.buffer = Buffer(_BATCH, 0.001)
        rest = BinanceRest(rest_url, WeightBudget(3_000), telemetry)
        self._backfill = Backfill(BackfillConfig(), rest, _TOPICS, telemetry, lambda _: None)
        ledger = Ledger(self.notes.append, telemetry)
        self.continuity = Continuity(self.buffer, self._backfill, ledger, telemetry, BackfillConfig())
        self._backfill.attach(self.continuity)
        self._backfill.start()

    def settle(self, first: list[Event]) -> None:
        """Let the first events through: they meet their streams, and wait for the snapshots of the books."""
        self.continuity.put(first, 0)
        books = len({event.route for event in first if event.route.event_type == "depth_update"})
        came: list[Event] = []
        until = time.monotonic() + _SETTLE_SECONDS
        while len(came) < len(first) + books and time.monotonic() < until:
            self.continuity.tick()
            time.sleep(0.01)
            came += drained(self.buffer)
        if len(came) != len(first) + books:
            raise IncompleteError(f"{len(came)} events came out of {len(first)} and {books} books")

    def close(self) -> None:
        """End the threads."""
        self._backfill.finish(Deadline(2.0))


def drained(buffer: Buffer) -> list[Event]:
    """Take everything out of a buffer."""
    return next(buffer.batches()) if len(buffer) else []


@contextmanager
def ids_not_parsed() -> Iterator[None]:
    """Let the decoder parse frames as if it wanted no ids of them."""
    parse = decoder._decode_combined  # noqa: SLF001 - the parser is nobody else's affair
    fields = [
        (field.name, field.type, msgspec.field(default=field.default, name=field.encode_name))
        for field in msgspec.structs.fields(Payload)
        if field.name not in _ONLY_IDS
    ]
    payload = msgspec.defstruct("Payload", fields, gc=False)
    combined = msgspec.defstruct(
        "Combined", [("stream", str), ("data", payload)], gc=False, forbid_unknown_fields=True
    )
    vars(decoder)["_decode_combined"] = msgspec.json.Decoder(combined).decode
    try:
        yield
    finally:
        vars(decoder)["_decode_combined"] = parse


class Measurement:
    """Measures block after block of a load; the ids go on from one to the next."""

    def __init__(self, load: str, rest_url: str) -> None:
        self._encoder = Encoder(load)
        made: dict[Any, Any] = {}
        self._decoder = EventDecoder(_TOPICS, made)
        first = self._decoder.decode(list(self._encoder.payloads(_WARMING)), time.time_ns() // 1_000_000).events
        without = {key: msgspec.structs.replace(route, ids=None) for key, route in made.items()}
        self._plain_decoder = EventDecoder(_TOPICS, without)
        self._plain_buffer = Buffer(_BATCH, 0.001)
        self._stage = Stage(rest_url)
        self._stage.settle(first)

    def pair(self, chunk: int, *, plain_first: bool) -> Pair:
        """Measure one block in chunks of so many frames."""
        frames = list(self._encoder.payloads(BLOCK))
        chunks = [frames[start : start + chunk] for start in range(0, BLOCK, chunk)]
        turns = (True, False) if plain_first else (False, True)
        now_ms = time.time_ns() // 1_000_000
        decoding = {plain: self._decoding(chunks, now_ms, plain=plain) for plain in turns}
        decoded = decoding[False][1]
        if [event.value for each in decoded for event in each] != [
            event.value for each in decoding[True][1] for event in each
        ]:
            raise IncompleteError("the decoder gave other events without ids")
        putting = {plain: self._putting(decoded, plain=plain) for plain in turns}
        return Pair(decoding[False][0], decoding[True][0], putting[False], putting[True])

    def _decoding(
        self, chunks: Sequence[list[bytes]], now_ms: int, *, plain: bool
    ) -> tuple[float, list[list[Event]]]:
        if not plain:
            return self._decode(self._decoder.decode, chunks, now_ms)
        with ids_not_parsed():
            return self._decode(self._plain_decoder.decode, chunks, now_ms)

    @staticmethod
    def _decode(
        decode: Callable[[list[bytes], int], Any], chunks: Sequence[list[bytes]], now_ms: int
    ) -> tuple[float, list[list[Event]]]:
        before = time.thread_time()
        decoded = [decode(chunk, now_ms).events for chunk in chunks]
        return (time.thread_time() - before) / BLOCK * 1e6, decoded

    def _putting(self, chunks: Sequence[list[Event]], *, plain: bool) -> float:
        buffer = self._plain_buffer if plain else self._stage.buffer
        copies = [list(chunk) for chunk in chunks]  # a chunk belongs to who takes it
        before = time.thread_time()
        if plain:
            put_plain = buffer.put
            for chunk in copies:
                put_plain(chunk)
        else:
            put = self._stage.continuity.put
            for chunk in copies:
                put(chunk, 0, 0)
        seconds = time.thread_time() - before
        came = drained(buffer)
        if [id(event) for event in came] != [id(event) for chunk in chunks for event in chunk]:
            raise IncompleteError(f"{len(came)} events came out, {BLOCK} went in, or in another order")
        return seconds / BLOCK * 1e6

    def close(self) -> None:
        """End what it started; IncompleteError when a gap was seen, for there was none."""
        self._stage.close()
        if told := [note for note in self._stage.notes if b'"gap_' in note.value]:
            raise IncompleteError(f"the ledger has {told[0].value.decode()}")


def measured(pairs: int) -> list[dict[str, Any]]:
    """Return a row for each load and size of chunk: medians over pairs, µs of CPU a message."""
    rows = []
    with RestServer() as rest:
        for load in MEASURED:
            measurement = Measurement(load, f"{rest.url}{LIVE}")
            for chunk in CHUNKS:
                found = [measurement.pair(chunk, plain_first=bool(number % 2)) for number in range(pairs)]
                rows.append({"load": load, "chunk": chunk} | _row(found))
            measurement.close()
    return rows


def _row(pairs: Sequence[Pair]) -> dict[str, Any]:
    costs = sorted(pair.cost for pair in pairs)
    medians = {name: statistics.median(getattr(pair, name) for pair in pairs) for name in Pair._fields}
    return {
        "ids": statistics.median(pair.decoding - pair.decoding_plain for pair in pairs),
        "stage": statistics.median(pair.putting - pair.putting_plain for pair in pairs),
        "cost": statistics.median(costs),
        "least": costs[0],
        "most": costs[-1],
        "pairs": len(pairs),
        "messages": len(pairs) * BLOCK,
    } | medians


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table."""
    lines = [
        f"{'Following ids, us of CPU a message':40}{'ids':>8}{'stage':>8}{'both':>8}{'pairs from':>12}{'to':>7}"
    ]
    lines += [
        f"{title(row):40}{row['ids']:8.2f}{row['stage']:8.2f}{row['cost']:8.2f}{row['least']:12.2f}{row['most']:7.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def title(row: dict[str, Any]) -> str:
    """Name a row."""
    return f"{row['load']}, " + (f"chunks of {row['chunk']}" if row["chunk"] > 1 else "frame by frame")


def main() -> int:
    """Measure and print a table, or a line of JSON for the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--json", action="store_true", help="a line of JSON instead of a table")
    arguments = parser.parse_args()
    configure_logging("ERROR")
    rows = measured(arguments.pairs)
    print(json.dumps({"following": rows}) if arguments.json else text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
