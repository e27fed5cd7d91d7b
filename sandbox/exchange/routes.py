"""Routes: from what happens in the market to the frames of one stream, encoded once for all who listen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sandbox.exchange import payloads
from sandbox.exchange.frames import text_frame
from sandbox.exchange.record import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange.listing import DepthEvent, Listing
    from sandbox.exchange.market import Event
    from sandbox.exchange.streams import Stream


class Listener(Protocol):
    """A connection as a route sees it."""

    combined: bool

    def sink(self, stream: str) -> Callable[[bytes], None]:
        """Where the frames of a stream go for this connection."""

    def count(self, stream: str, tally: Tally) -> None:
        """Count what the connection has just been handed."""


class Route:
    """One stream that somebody listens to."""

    def __init__(self, stream: Stream, dirty: list[Route]) -> None:
        self.stream = stream
        self.members: dict[Listener, None] = {}
        self._dirty = dirty
        self._prefix = b'{"stream":"' + stream.name.encode() + b'","data":'
        self._raw: list[Callable[[bytes], None]] = []
        self._combined: list[Callable[[bytes], None]] = []
        self._tally = Tally()

    def add(self, member: Listener) -> None:
        """Let a connection listen from now on."""
        self.members[member] = None
        self.rewire()

    def remove(self, member: Listener) -> None:
        """Let a connection listen no more."""
        self.members.pop(member, None)
        self.rewire()

    def rewire(self) -> None:
        """Ask every member again for its shape and where its frames go."""
        name = self.stream.name
        self._raw = [member.sink(name) for member in self.members if not member.combined]
        self._combined = [member.sink(name) for member in self.members if member.combined]

    def carry(self, payload: bytes, first_id: int, last_id: int, events: int = 1) -> None:
        """Give one payload to all members and note it for `settle`."""
        if self._raw:
            frame = text_frame(payload)
            for sink in self._raw:
                sink(frame)
        if self._combined:
            frame = text_frame(self._prefix + payload + b"}")
            for sink in self._combined:
                sink(frame)
        tally = self._tally
        if not tally.frames:
            self._dirty.append(self)
            tally.first_id = first_id
        tally.frames += 1
        tally.events += events
        tally.bytes += len(payload)
        tally.last_id = last_id

    def settle(self) -> None:
        """Let the members who were handed the frames count them."""
        tally, self._tally = self._tally, Tally()
        for member in self.members:
            member.count(self.stream.name, tally)


class EventRoute(Route):
    """A stream with one payload for each event of the market."""

    def __init__(
        self,
        stream: Stream,
        dirty: list[Route],
        listing: Listing,
        encode: Callable[[Listing, Event], str],
    ) -> None:
        super().__init__(stream, dirty)
        self._listing = listing
        self._encode = encode

    def emit(self, event: Event) -> None:
        """Encode and carry one event."""
        number = event[1]
        self.carry(self._encode(self._listing, event).encode(), number, number)


class DepthRoute(Route):
    """`@depth` and `@depth@100ms`: a payload spans the ids from its first to its last change."""

    def __init__(self, stream: Stream, dirty: list[Route], listing: Listing) -> None:
        super().__init__(stream, dirty)
        self._listing = listing

    def emit(self, event: DepthEvent) -> None:
        """Encode and carry one set of changes."""
        self.carry(payloads.depth_update(self._listing, event).encode(), event.first, event.id)


class PartialDepthRoute(Route):
    """`@depth5|10|20`: the top of the book at each set of changes, under the same update id."""

    def __init__(self, stream: Stream, dirty: list[Route], listing: Listing) -> None:
        super().__init__(stream, dirty)
        self._listing = listing

    def emit(self, event: DepthEvent) -> None:
        """Encode and carry the top of the book as it stands."""
        text = payloads.partial_depth(self._listing, event.id, self.stream.levels)
        self.carry(text.encode(), event.id, event.id)


class ClockRoute(Route):
    """A stream that is pushed once a second, whenever `produce` has something to say."""

    def __init__(
        self,
        stream: Stream,
        dirty: list[Route],
        produce: Callable[[int], tuple[str, int] | None],
    ) -> None:
        super().__init__(stream, dirty)
        self._produce = produce

    def push(self, now_ms: int) -> None:
        """Carry what is to be said at `now_ms`; the record's ids are event times."""
        produced = self._produce(now_ms)
        if produced is not None:
            text, events = produced
            self.carry(text.encode(), now_ms, now_ms, events)


class KlineRoute(Route):
    """A kline stream: every second for `1s`, every two for the others, and one closed frame a bar."""

    def __init__(self, stream: Stream, dirty: list[Route], listing: Listing) -> None:
        super().__init__(stream, dirty)
        self._listing = listing
        self._series = listing.bars.series(stream.interval, stream.offset_ms)
        self._closed_seen = self._series.closed_count
        self._pause_ms = 1000 if stream.interval == "1s" else 2000
        self._next_push_ms = 0
        self._pushed: tuple[int, int] | None = None

    def push(self, now_ms: int) -> None:
        """Carry the bars that closed since the last push, then the open one when it is due and changed."""
        series = self._series
        missed = min(series.closed_count - self._closed_seen, len(series.closed))
        self._closed_seen = series.closed_count
        for number in range(-missed, 0):
            bar = series.closed[number]
            text = payloads.kline(self._listing, series, bar, now_ms, closed=True)
            self.carry(text.encode(), bar.opening, bar.opening)
        if now_ms < self._next_push_ms:
            return
        bar = self._listing.bars.running(series)
        if (bar.opening, bar.count) != self._pushed:
            self._next_push_ms = now_ms // 1000 * 1000 + self._pause_ms
            self._pushed = (bar.opening, bar.count)
            text = payloads.kline(self._listing, series, bar, now_ms, closed=False)
            self.carry(text.encode(), bar.opening, bar.opening)
