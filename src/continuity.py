"""Between decoder and buffer: no event twice, none missing unnoticed, and per symbol in order.

Every stream that the exchange counts (trades, aggregate trades, depth updates, bars) is followed by its ids
(`src/sequences.py` has the rules). A repeat is dropped and counted; a jump opens a gap. While a gap is filled,
what comes for the same symbol and topic waits behind it in a `Lane`, in the order of coming, so that the order per
symbol holds; bounds in time and number end the waiting, and the ledger says that the order was given up. Depth
cannot be fetched again: there the lane keeps the place for a snapshot of the order book.

One lock orders what is live, what waited and what was fetched; whatever goes into the buffer goes there under it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from config.streams import stream_symbol
from src.events import NO_ID
from src.holes import Gap, include, joined, without
from src.lanes import Lane, PlacedHole, SnapshotPlace
from src.lost import Lost
from src.sequences import BAR, DEPTH, SNAPSHOT_PATIENCE, Stream, Verdict, missing_since

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from config.settings import BackfillConfig
    from src.buffer import Buffer
    from src.events import Event, Route
    from src.holes import Interval, Position
    from src.lanes import WaitedFor
    from src.sequences import Tally
    from src.telemetry import Telemetry

_MOST_HOLES = 1_000
"""Of one stream, being filled at a time; a numbering that jumps more often is not worth following."""
_ROUTES_KEPT = 100_000
SKEW_SECONDS = 0.3
"""So long may one of two connections be behind the other (3 to 57 ms were seen)."""
_LEAST_PATIENCE = 0.5
_RENEWAL_SECONDS = 10.0
"""Between two looks for books whose last snapshot is old."""
_RECORDING_MS = 3_600_000


class Filling(Protocol):
    """Who fetches what is missing; neither method waits, nor calls back on the same thread."""

    def request(self, gap: Gap) -> None:
        """Fetch what a gap misses."""

    def request_snapshot(self, stream: str, symbol: str) -> None:
        """Fetch the order book of a symbol, for this depth stream."""


class Ledger(Protocol):
    """Who writes down what is missing; no method waits."""

    def gap_opened(self, gap: Gap) -> None: ...  # noqa: D102
    def gap_filled(self, gap: Gap, count: int) -> None: ...  # noqa: D102
    def gap_unfillable(self, gap: Gap, missing: Sequence[Interval], reason: str) -> None: ...  # noqa: D102
    def order_given_up(self, gap: Gap, reason: str) -> None: ...  # noqa: D102
    def renumbered(self, stream: str, symbol: str, expected: int, got: int) -> None: ...  # noqa: D102
    def snapshot_taken(self, stream: str, symbol: str, last_update_id: int) -> None: ...  # noqa: D102


class Continuity:
    """Puts into the buffer what is next, keeps waiting what must wait, asks for what is missing.

    Any thread may call; no method waits for the exchange or for Kafka (`put` may wait for CPU of this process, as
    the buffer does when it is full). At most `max_held_events` wait, and none longer than `max_wait_seconds`.
    """

    def __init__(  # noqa: PLR0913 - a stage has neighbours
        self,
        buffer: Buffer,
        filling: Filling,
        ledger: Ledger,
        telemetry: Telemetry,
        settings: BackfillConfig,
        *,
        standby: bool = False,
        skew_seconds: float = SKEW_SECONDS,
        lost: Lost | None = None,
    ) -> None:
        self._buffer = buffer
        self._lost = lost or Lost()
        self._filling = filling
        self._ledger = ledger
        self._telemetry = telemetry
        self._settings = settings
        self._skew_seconds = skew_seconds
        self._lock = threading.Lock()  # guards everything below, and the order of what goes into the buffer
        self._routes: dict[Route, Stream] = {}
        self._streams: dict[tuple[str, str], Stream] = {}
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._holes: dict[str, PlacedHole] = {}
        self._resumed: dict[str, Position] = {}
        """Where an earlier run ended, of streams that were not met yet."""
        self._resumed_until_ms = 0
        self._knows_past = False
        self._compared: dict[tuple[Stream, int], int] | None = {} if standby else None
        """With a standby: the next id of each stream on each of its two connections."""
        self._opened: dict[int, int] = {}
        self._heard: dict[int, float] = {}
        """When each connection has brought something last, monotonic seconds."""
        self._unasked: list[PlacedHole] = []
        """Gaps that another connection may fill."""
        self._doubted: set[Stream] = set()
        """Streams with events that are repeats or a new numbering."""
        self._renew_at = 0.0
        self._late_ids: dict[Stream, list[Interval]] = {}
        """What came in the chunk at hand after it had been given up."""
        self._unread: set[str] = set()
        """Streams that were read and are not any more."""
        self._held = 0
        self._put = 0
        self._closed = False

    def put(self, events: list[Event], source: int, opened: int = 0) -> bool:
        """Pass on what came on one of the connections; return False, taking none, once closed.

        `source` is even or odd, and the next one is that of the other connection that may bring the same streams.
        `opened` counts how often this one was opened, so that what is missing since is known for what it is. Each
        event is an object of its own.
        """
        routes = self._routes
        out = events  # as long as nothing is left out or waits
        now = time.monotonic()
        with self._lock:
            if self._closed:
                return False
            self._opened[source] = opened
            self._heard[source] = now
            for event in events:
                stream = routes.get(event.route)
                if stream is None or stream.lane.queue:
                    out = self._judged(event, source, events, out)
                    continue
                if event.first_id == stream.next:
                    stream.next = event.last_id + 1
                elif event.first_id == NO_ID and stream.source == source:  # only another one would double it
                    stream.taken_at = now
                else:
                    out = self._judged(event, source, events, out)
                    continue
                stream.latest = event
                stream.received += 1
                if out is not events:
                    out.append(event)
            if self._compared is not None:
                self._compare(events, source)
            if self._late_ids:
                self._tell_late()
            if out and not self._buffer.put(out):  # as in _pass_on, without the call
                return False
            self._put += len(out)
            return True

    # Whoever fills

    def remaining(self, gap: Gap) -> list[Interval]:
        """Return what of a gap is still missing."""
        with self._lock:
            hole = self._holes.get(gap.id)
            return list(hole.missing) if hole is not None and not self._closed else []

    def offer(self, gap: Gap, events: Iterable[Event]) -> None:
        """Take fetched events of a gap; what came meanwhile on another way is left out."""
        with self._lock:
            hole = self._holes.get(gap.id)
            if hole is None or self._closed:
                return
            taken = sum(hole.offer(event) for event in events)
            self._stream_of(gap).backfilled += taken
            self._telemetry.backfilled(taken)
            self._pass_on(self._came(hole, taken))

    def abandon(self, gap: Gap, reason: str, only: Sequence[Interval] | None = None) -> None:
        """Fetch what remains of a gap, or `only` these ids of it, no more: the exchange does not give them."""
        with self._lock:
            hole = self._holes.get(gap.id)
            if hole is None or self._closed:
                return
            self._give_up(hole, list(hole.missing) if only is None else only, reason)
            self._pass_on(self._came(hole, 0))

    def give_up_order(self, gap: Gap, reason: str) -> None:
        """Let what waits behind a gap pass; the gap itself is filled later, out of order."""
        with self._lock:
            hole = self._holes.get(gap.id)
            lane = self._stream_of(gap).lane if hole is not None else None
            if hole is not None and lane is not None and hole in lane.queue and not self._closed:
                self._pass_on(self._stop_waiting(lane, hole, reason))

    def expect_snapshot(self, stream: str) -> bool:
        """Keep a place for a snapshot that is about to be fetched; return False when none is wanted any more."""
        with self._lock:
            found = self._depth(stream)
            if found is not None and found.lane.place_of(found.name) is None:
                found.lane.queue.append(SnapshotPlace(found.name, time.monotonic()))
            return found is not None

    def offer_snapshot(self, stream: str, snapshot: Event) -> bool:
        """Take a snapshot; return False when it is older than what follows it, so that the two do not meet.

        What follows must begin at most one behind it: `U <= lastUpdateId + 1 <= u`.
        """
        with self._lock:
            found = self._depth(stream)
            if found is None:
                return True
            place = found.lane.place_of(found.name)
            if place is None:  # it took too long, and what came has passed: the next one will meet what comes
                found.snapshot_patience = self._settings.max_wait_seconds
                return False
            later = (each for each in found.lane.behind(place) if each.last_id > snapshot.last_id)
            follows = next(later, None)  # not always the first: there may be a gap among those that wait
            if snapshot.last_id + 1 < (follows.first_id if follows is not None else found.after):
                found.snapshot_patience = max(found.snapshot_patience, SNAPSHOT_PATIENCE)
                return False
            found.wants_snapshot = False
            found.snapshot_patience = SNAPSHOT_PATIENCE
            found.snapshot_at = time.monotonic()
            found.lane.put_snapshot(place, snapshot)
            self._held += 1
            self._telemetry.backfilled(1)
            self._ledger.snapshot_taken(found.name, found.symbol, snapshot.last_id)
            self._pass_on(self._advance(found.lane))
            return True

    def abandon_snapshot(self, stream: str, reason: str, *, for_good: bool = False) -> None:
        """Let what waits for a snapshot pass; it is wanted all the same, and may be offered later.

        `for_good`: it will not come, and is not waited for before it is due anew, or behind a further gap.
        """
        with self._lock:
            found = self._depth(stream)
            if found is not None and (place := found.lane.place_of(found.name)) is not None:
                self._pass_on(self._stop_waiting(found.lane, place, reason))
            if found is not None and for_good:
                found.wants_snapshot = False
                found.snapshot_at = time.monotonic()

    # Whoever keeps the time, resumes, reports

    def tick(self) -> None:
        """Ask for what no other connection has brought, let pass what has waited too long; often."""
        now = time.monotonic()
        with self._lock:
            while self._unasked and self._unasked[0].since < now - self._skew_seconds:
                hole = self._unasked.pop(0)
                if hole.missing:
                    self._pass_on(self._ask(self._stream_of(hole.gap), hole))
            self._renew_snapshots(now)
            self._settle_doubts(now)
            for lane in [lane for lane in self._lanes.values() if lane.queue]:
                while (first := lane.waited_for()) is not None and first.since < now - self._patience(first):
                    self._pass_on(self._stop_waiting(lane, first, "waited_too_long"))

    def resume(self, positions: dict[str, Position], until_ms: int = 0) -> None:
        """Say where Kafka ends, by stream: what is missing since is filled. Also after the first events.

        Nothing in Kafka is newer than `until_ms`: what is not either, and has an id that Kafka has, is a repeat.
        """
        with self._lock:
            self._resumed |= positions
            self._resumed_until_ms = until_ms
            self._knows_past = True
            self._leave_to_the_resume(positions)
            for stream in self._counted():
                if self._name_before(stream) in self._resumed:
                    self._continue_late(stream)

    def fetch_lost(self) -> None:
        """Have fetched again what came and was lost since, while what comes is delivered; often.

        Updates of a book are not given again; a snapshot takes their place.
        """
        with self._lock:
            if not self._knows_past or self._closed or not self._settings.enabled:
                return
            for which, ids in self._lost.take(_MOST_HOLES - len(self._holes)):
                stream = self._stream(which.stream, which.symbol, which.event_type, which.topic)
                self._fill_behind(stream, ids, "dropped", "dropped")
            books = self._lost.take_books()
            for stream in self._counted():
                if stream.event_type == DEPTH and stream.symbol in books:
                    self._want_snapshot(stream)

    def will_read(self, streams: Iterable[str]) -> None:
        """Take note that these are read from here on, if they were not; before their first events."""
        with self._lock:
            self._unread.difference_update(streams)

    def left(self, streams: Iterable[str]) -> None:
        """Take note that these are not read any more: no book of theirs is kept up to date."""
        with self._lock:
            self._unread.update(streams)

    def positions(self) -> tuple[int, dict[str, Position]]:
        """Return how many events went into the buffer so far, and where each counted stream stands with these."""
        with self._lock:
            standing = {stream.name: stream.position() for stream in self._counted()}
            positions = self._resumed | standing  # what is quiet since the earlier run stands where it stood
            for name, ids in (*self._lost.begin().items(), *self._of_the_unmet()):
                if name in positions:
                    positions[name] = positions[name].lacking(ids)
            return self._put, positions

    def traffic(self) -> dict[str, int]:
        """Return, by stream, how many events came."""
        with self._lock:
            traffic: Counter[str] = Counter()
            for stream in self._streams.values():
                traffic[stream.name] += stream.received
            return dict(traffic)

    def tallies(self) -> list[Tally]:
        """Return what each counted stream brought since this was last asked; of one not read any more, if any."""
        with self._lock:
            tallies = [(stream.name in self._unread, stream.tally()) for stream in self._counted()]
        return [tally for unread, tally in tallies if not unread or tally.received or tally.backfilled]

    @property
    def held(self) -> int:
        """How many events wait behind a gap."""
        return self._held

    def close(self) -> None:
        """Let pass all that waits; what is missing now stays so. For the stop, when nothing comes any more."""
        with self._lock:
            for lane in self._lanes.values():
                while (first := lane.waited_for()) is not None:
                    self._pass_on(self._stop_waiting(lane, first, "stopped"))
            for stream in self._streams.values():
                self._repeated(stream, stream.suspects())
            self._closed = True

    # One event

    def _judged(self, event: Event, source: int, events: list[Event], out: list[Event]) -> list[Event]:
        """Judge an event that does not simply come next; return what passes, from here on a list of its own."""
        if out is events:
            out = events[: events.index(event)]
        self._judge(event, source, out)
        return out

    def _judge(self, event: Event, source: int, out: list[Event]) -> None:
        """Decide about one event that is not simply the next one."""
        stream = self._routes.get(event.route)
        if stream is None:
            stream = self._meet(event.route)
        stream.received += 1
        verdict = stream.judge(event, source)
        if verdict is Verdict.REPEAT or self._of_the_run_before(stream, event):
            self._repeated(stream, [event])
        elif verdict is Verdict.LATE:
            self._late(stream, event, source, out)
        else:
            if verdict is Verdict.JUMP:
                cause = self._cause(stream, source)
                if cause != "jump" or not stream.never_closes(event):
                    out += self._jumped(stream, event, stream.missing_before(event), cause, source)
            elif stream.first_seen is None and event.first_id != NO_ID:
                out += self._begin(stream, event, source)
            stream.take(event, source)
            stream.heard_on = source, self._opened.get(source, 0)
            self._follow(stream, event, out)

    def _of_the_run_before(self, stream: Stream, event: Event) -> bool:
        """Whether this comes before the first event of a stream and is of what an earlier run has gone beyond.

        Kafka has it, or it is missing there and fetched as soon as the stream goes on. What is older than an hour
        is no such repeat: somebody plays a recording again, and wants it.
        """
        if stream.first_seen is not None or event.first_id == NO_ID:
            return False
        position = self._resumed.get(self._name_before(stream))
        if position is None or position.mixed:
            return False
        if not _now_ms() - _RECORDING_MS < event.timestamp_ms <= (position.at_ms or self._resumed_until_ms):
            return False
        return event.last_id < position.last or (event.last_id == position.last and position.final and event.final)

    def _name_before(self, stream: Stream) -> str:
        """Return the name that the stream has among those of an earlier run: no event of depth tells its speed."""
        if stream.event_type != DEPTH or stream.name in self._resumed:
            return stream.name
        return f"{stream.symbol.lower()}@depth"

    def _cause(self, stream: Stream, source: int) -> str:
        return "jump" if stream.heard_on == (source, self._opened.get(source, 0)) else "reconnect"

    def _follow(self, stream: Stream, event: Event, out: list[Event]) -> None:
        """Let an event go, or wait its turn in its lane."""
        lane = stream.lane
        if not lane.queue:
            out.append(event)
            return
        lane.queue.append(event)
        self._held += 1
        while self._held > self._settings.max_held_events and (first := lane.waited_for()) is not None:
            out += self._stop_waiting(lane, first, "too_many_waiting")

    def _begin(self, stream: Stream, event: Event, source: int) -> list[Event]:
        """Meet the first event of a stream: where an earlier run ended, it goes on."""
        if stream.event_type == DEPTH:
            self._want_snapshot(stream)
        position = self._resumed.pop(self._name_before(stream), None)
        if position is None:
            return []
        stream.continues = True
        first, last = missing_since(position, event)
        if first > event.first_id:
            # Depth that goes on from amid what Kafka has is of another speed than the last that is there.
            if not position.mixed and (stream.event_type != DEPTH or event.last_id <= position.last):
                self._counted_anew(stream, position, first, event)
            return []
        self._fill_behind(stream, position.missing)
        return self._jumped(stream, event, (first, last), "resume", source) if first <= last else []

    def _counted_anew(self, stream: Stream, position: Position, expected: int, event: Event) -> None:
        """Go on with a new numbering where an earlier run ended; its ids mean nothing any more."""
        self._ledger.renumbered(stream.name, stream.symbol, expected, event.first_id)
        for first, last in position.missing:
            gap = Gap(stream.name, stream.event_type, stream.symbol, first, last, "resume", _now_ms())
            self._ledger.gap_opened(gap)
            self._ledger.gap_unfillable(gap, [(first, last)], "renumbered")

    def _late(self, stream: Stream, event: Event, source: int, out: list[Event]) -> None:
        """Take an event whose id has passed: it is missing, or a repeat, or of a new numbering."""
        hole = next((hole for hole in stream.holes if event.final and hole.lacks(event)), None)
        if hole is None:
            self._passed_by(stream, event, source, out)
            return
        misnumbered = stream.event_type != BAR and hole.opened_by_a_wrong_id(event)
        hole.offer(event)
        if misnumbered:
            self._misnumbered(stream, hole, event)
        out += self._came(hole, 1)
        if misnumbered:
            out += self._close_beyond(stream)

    def _passed_by(self, stream: Stream, event: Event, source: int, out: list[Event]) -> None:
        """Take an event whose id has passed: a repeat, given up before, of a new numbering, or of another time."""
        if stream.gave_up(event):
            self._came_after_all(stream, event, out)
            return
        apart = stream.hours_apart(event) if stream.was_never_there(event) else 0
        if apart < 0:
            self._follow(stream, event, out)
            return
        self._repeated(stream, stream.repeats_by(event))
        self._doubted.add(stream)
        self._renumber(stream, stream.suspects() if apart else stream.renumbered(), source, out)

    def _came_after_all(self, stream: Stream, event: Event, out: list[Event]) -> None:
        """Let an event pass that was given up before, out of order, and take it off what is missing."""
        stream.given_up = without(stream.given_up, event.first_id, event.last_id)
        self._late_ids.setdefault(stream, []).append((event.first_id, event.last_id))
        out.append(event)

    def _tell_late(self) -> None:
        """Write down what came in this chunk after it had been given up, consecutive ids as one gap."""
        for stream, ids in self._late_ids.items():
            for first, last in joined(ids):
                gap = Gap(stream.name, stream.event_type, stream.symbol, first, last, "late", _now_ms())
                self._ledger.gap_opened(gap)
                self._ledger.order_given_up(gap, "late")
                self._ledger.gap_filled(gap, sum(first <= each <= last for each, _ in ids))
        self._late_ids.clear()

    def _misnumbered(self, stream: Stream, hole: PlacedHole, event: Event) -> None:
        """Go on from an event inside a gap that is newer than the one which opened it: that one's id was wrong.

        What came with the wrong ids and waits still is left out; its true ids are missing now.
        """
        wrong = stream.lane.take_out_behind(hole)
        self._held -= len(wrong)
        self._telemetry.misnumbered(len(wrong))
        hole.opener = None  # or an older one that comes later on another connection would be gone on from as well
        hole.give_up([(event.last_id + 1, hole.gap.last)])
        stream.go_on_from(event)

    def _close_beyond(self, stream: Stream) -> list[Event]:
        """Close the gaps beyond where a stream stands: other wrong ids have opened them."""
        out = []
        for hole in [hole for hole in stream.holes if hole.opener is not None and hole.gap.first >= stream.after]:
            hole.give_up(list(hole.missing))
            if not hole.filled:
                self._ledger.gap_filled(hole.gap, 0)
            out += self._came(hole, 0)
        return out

    def _renumber(self, stream: Stream, events: list[Event], source: int, out: list[Event]) -> None:
        """Go on with a new numbering; what was missing of the old one stays missing."""
        if not events:
            return
        self._ledger.renumbered(stream.name, stream.symbol, stream.after, events[0].first_id)
        self._lost.forget(stream.name, sys.maxsize)
        if stream.event_type == DEPTH:
            self._want_snapshot(stream)
        for hole in list(stream.holes):
            self._ledger.gap_unfillable(hole.gap, hole.give_up(hole.missing), "renumbered")
            out += self._came(hole, 0)
        stream.given_up.clear()
        stream.begins_at = events[0].first_id
        for event in events:
            stream.take(event, source)
            self._follow(stream, event, out)

    def _settle_doubts(self, now: float) -> None:
        for stream in list(self._doubted):
            self._repeated(stream, stream.refuted())
            out: list[Event] = []
            for event in stream.let_go(now):
                self._follow(stream, event, out)
            self._pass_on(out)
            if not stream.in_doubt:
                self._doubted.discard(stream)

    def _repeated(self, stream: Stream, events: list[Event]) -> None:
        if events:
            stream.duplicates += len(events)
            self._telemetry.duplicates(len(events))

    # Gaps

    def _jumped(self, stream: Stream, event: Event, missing: Interval, cause: str, source: int) -> list[Event]:
        """Open a gap before an event and let the lane wait for it; return what need not wait after all."""
        gap = Gap(stream.name, stream.event_type, stream.symbol, *missing, cause, _now_ms())
        hole = self._open(stream, gap, event)
        if hole is None:
            return []
        stream.lane.queue.append(hole)
        if self._other_speaks(source):  # it may bring what is missing any moment
            self._unasked.append(hole)
            return []
        return self._ask(stream, hole)

    def _open(self, stream: Stream, gap: Gap, opener: Event | None) -> PlacedHole | None:
        """Write a gap down and begin to follow it; return None when there are too many of them."""
        self._ledger.gap_opened(gap)
        if len(stream.holes) >= _MOST_HOLES:
            self._ledger.gap_unfillable(gap, [(gap.first, gap.last)], "too_many_gaps")
            return None
        hole = self._holes[gap.id] = PlacedHole(gap, opener, time.monotonic())
        stream.holes.append(hole)
        return hole

    def _ask(self, stream: Stream, hole: PlacedHole) -> list[Event]:
        """Have a gap filled, or give it up; return what need not wait any more."""
        if stream.event_type != DEPTH and self._settings.enabled:
            self._filling.request(hole.gap)
            return []
        reason = "not_kept_by_the_exchange" if stream.event_type == DEPTH else "backfill_disabled"
        self._give_up(hole, list(hole.missing), reason)
        wants = stream.event_type == DEPTH and self._want_snapshot(stream)
        if wants and hole in stream.lane.queue:  # or what waited has passed, and the snapshot finds its own place
            stream.lane.put_behind(hole, SnapshotPlace(stream.name, time.monotonic()))
        return self._came(hole, 0)

    def _give_up(self, hole: PlacedHole, ids: Iterable[Interval], reason: str) -> None:
        """Wait for these ids no more; one that comes all the same is no repeat."""
        given_up = hole.give_up(ids)
        if not given_up:
            return
        self._ledger.gap_unfillable(hole.gap, given_up, reason)
        stream = self._stream_of(hole.gap)
        if stream.event_type != DEPTH:  # there the snapshot holds it
            for interval in given_up:
                include(stream.given_up, interval, may_grow=len(stream.given_up) < _MOST_HOLES)

    def _other_speaks(self, source: int) -> bool:
        """Whether the other connection for the same streams has brought something just now."""
        return self._heard.get(source ^ 1, float("-inf")) > time.monotonic() - self._skew_seconds

    def _renew_snapshots(self, now: float) -> None:
        """Ask for a snapshot of each book now and then: what is older than the topic's retention is gone."""
        if now < self._renew_at:
            return
        self._renew_at = now + min(_RENEWAL_SECONDS, self._settings.snapshot_interval_seconds)
        for stream in self._counted():
            if stream.event_type == DEPTH and now - stream.snapshot_at > self._settings.snapshot_interval_seconds:
                self._want_snapshot(stream)

    def _want_snapshot(self, stream: Stream) -> bool:
        """Ask for a snapshot; return whether there will be one."""
        if self._settings.enabled and not stream.wants_snapshot and stream.name not in self._unread:
            stream.wants_snapshot = True
            self._filling.request_snapshot(stream.name, stream.symbol)
        return stream.wants_snapshot and stream.lane.place_of(stream.name) is None

    def _came(self, hole: PlacedHole, events: int) -> list[Event]:
        """Give out what is due now that so many events came for a hole, or ids of it were given up."""
        stream = self._stream_of(hole.gap)
        if not hole.missing and self._holes.pop(hole.gap.id, None) is not None:
            stream.holes.remove(hole)
            if hole.filled:
                self._ledger.gap_filled(hole.gap, hole.filled)
        if hole not in stream.lane.queue:
            return hole.everything()
        self._held += events
        return self._advance(stream.lane)

    def _stop_waiting(self, lane: Lane, waited_for: WaitedFor, reason: str) -> list[Event]:
        """Give out what waits for this and for nothing else."""
        lane.give_up(waited_for)
        if isinstance(waited_for, PlacedHole):
            self._ledger.order_given_up(waited_for.gap, reason)
        else:
            self._telemetry.snapshot_delayed(waited_for.stream, reason)
            if (stream := self._depth(waited_for.stream)) is not None:
                stream.snapshot_patience = max(_LEAST_PATIENCE, stream.snapshot_patience / 2)
        return self._advance(lane)

    def _patience(self, waited_for: WaitedFor) -> float:
        """Return how long this may be waited for."""
        longest = self._settings.max_wait_seconds
        if isinstance(waited_for, PlacedHole) or (stream := self._depth(waited_for.stream)) is None:
            return longest
        return min(longest, stream.snapshot_patience)

    def _advance(self, lane: Lane) -> list[Event]:
        due = lane.due()
        self._held -= len(due)
        return due

    def _continue_late(self, stream: Stream) -> None:
        """Go on from where an earlier run ended, now that the first events of this one have passed."""
        position = self._resumed.pop(self._name_before(stream))
        stream.continues = True
        missing = list(position.missing)
        begun = stream.first_seen
        if (
            begun is not None
            and not position.mixed
            and begun.last_id <= position.last
            and begun.timestamp_ms > position.at_ms > 0
        ):
            self._counted_anew(stream, position, position.last + 1, begun)
            return
        if stream.first_seen is not None:
            first, last = missing_since(position, stream.first_seen)
            missing += [(first, last)] if first <= last else []
            # What this run has sent meanwhile is in Kafka too; its own holes are known here.
            missing = [(start, min(end, stream.first_seen.first_id - 1)) for start, end in missing]
        self._fill_behind(stream, [(start, end) for start, end in missing if start <= end])

    def _leave_to_the_resume(self, positions: dict[str, Position]) -> None:
        """Forget what this run took off the disk of the one before: the positions tell what Kafka lacks."""
        met = {stream.name: stream.first_seen.first_id for stream in self._counted() if stream.first_seen}
        for name in positions:
            self._lost.forget(name, met.get(name, sys.maxsize))

    def _of_the_unmet(self) -> list[tuple[str, list[Interval]]]:
        """Return what is fetched again of streams that only an earlier run has met."""
        unmet = [stream for stream in self._streams.values() if stream.first_seen is None and stream.holes]
        return [(stream.name, [ids for hole in stream.holes for ids in hole.missing]) for stream in unmet]

    def _fill_behind(
        self, stream: Stream, missing: Iterable[Interval], cause: str = "resume", reason: str = "resumed"
    ) -> None:
        """Fill what an earlier run has left open, or this one has lost; what comes live does not wait for it."""
        for first, last in missing:
            gap = Gap(stream.name, stream.event_type, stream.symbol, first, last, cause, _now_ms())
            if stream.event_type == DEPTH:
                self._ledger.gap_opened(gap)
                self._ledger.gap_unfillable(gap, [(first, last)], "not_kept_by_the_exchange")
            elif (hole := self._open(stream, gap, None)) is not None:
                self._ledger.order_given_up(gap, reason)
                self._ask(stream, hole)

    # Streams

    def _meet(self, route: Route) -> Stream:
        """Find the stream of a route that was not seen yet: each connection has routes of its own."""
        symbol = (route.key or b"").decode()
        stream = self._stream(route.stream, symbol, route.event_type, route.topic)
        if len(self._routes) >= _ROUTES_KEPT:
            self._routes.clear()
        self._routes[route] = stream
        return stream

    def _stream(self, name: str, symbol: str, event_type: str, topic: str) -> Stream:
        stream = self._streams.get((name, symbol))
        if stream is None:
            lane = self._lanes.setdefault((topic, symbol), Lane())
            stream = self._streams[name, symbol] = Stream(name, symbol, event_type, lane)
        return stream

    def _stream_of(self, gap: Gap) -> Stream:
        return self._streams[gap.stream, gap.symbol]

    def _depth(self, name: str) -> Stream | None:
        """Return a depth stream as long as it wants a snapshot."""
        stream = self._streams.get((name, stream_symbol(name) or ""))
        return stream if stream is not None and stream.wants_snapshot and not self._closed else None

    def _counted(self) -> list[Stream]:
        return [stream for stream in self._streams.values() if stream.first_seen is not None]

    def _compare(self, events: list[Event], source: int) -> None:
        """Count what only the other of two connections brought: the jumps on this one that were no gaps."""
        assert self._compared is not None  # noqa: S101 - asked before
        saved = 0
        for event in events:
            stream = self._routes.get(event.route)
            if stream is None or event.first_id == NO_ID or stream.event_type == BAR:
                continue
            expected = self._compared.get((stream, source), event.first_id)
            self._compared[stream, source] = max(expected, event.last_id + 1)
            if event.first_id > expected:
                missing = (interval for hole in stream.holes for interval in hole.missing)
                lost = sum(
                    max(0, min(end, event.first_id - 1) - max(first, expected) + 1) for first, end in missing
                )
                jumped = event.first_id - expected - lost
                saved += jumped if stream.event_type != DEPTH else min(jumped, 1)
        if saved:
            self._telemetry.saved_by_standby(saved)

    def _pass_on(self, events: list[Event]) -> bool:
        """Put events into the buffer; return False once it is closed."""
        if events and not self._buffer.put(events):
            return False
        self._put += len(events)
        return True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
