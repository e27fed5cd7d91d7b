"""What may come next on a stream, by its ids; pure, one `Stream` for each stream and symbol.

- Trade `t`, aggregate trade `a`: the last plus 1. An id not above the last is a repeat.
- Depth `U`..`u`: `U` is the last `u` plus 1. A `u` not above the last is a repeat.
- Bar `t`..`T`: the same bar until it is closed, then one that opens right behind it. A repeat is what comes of a
  closed bar, and from another connection what is not newer than the last. Of a stream that has not told of any bar
  that it is closed, none is expected to be, as long as one connection brings it.
- Counted by nothing (tickers, by `E`; book ticker, by `u`; partial depth, by `lastUpdateId`): anything may come. A
  repeat is only what comes from another connection and is not newer than the last, while that one speaks. So
  nothing is dropped that came on one connection, and where two carry a stream (a rotation, a standby) the first to
  bring a state wins.
"""

from __future__ import annotations

import time
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from src.events import NO_ID
from src.holes import Position, holds

if TYPE_CHECKING:
    from src.events import Event
    from src.holes import Interval
    from src.lanes import Lane, PlacedHole

DEPTH, BAR = "depth_update", "kline"
SNAPSHOT_PATIENCE = 2.0
_SPEAKS_SECONDS = 60.0
"""A connection that has brought nothing of a stream for so long has no say in what is new."""
_RENUMBERED_AFTER = 8
"""So many newer events in a row, consecutive among themselves but below the last id, are a new numbering."""
_ANOTHER_TIME_MS = 3_600_000
"""The exchange is never so late: such an event is of another time, which somebody plays again."""
_DOUBT_SECONDS = 2.0
"""How long an id that was never there is doubted while nothing of its stream follows."""


class Verdict(Enum):
    """What an event is to its stream."""

    NEXT = auto()
    """What may come next, or the first of all."""
    JUMP = auto()
    """Something is missing before it."""
    LATE = auto()
    """Its id has passed: it is missing from an earlier gap, or a repeat."""
    REPEAT = auto()
    """It has been there."""


class Tally(NamedTuple):
    """What one stream brought in a time."""

    stream: str
    symbol: str
    event_type: str
    first: int
    last: int
    """Ids at the beginning and the end of that time."""
    received: int
    backfilled: int
    duplicates: int
    missing: int
    """Ids of this time that are missing still."""


def missing_since(position: Position, event: Event) -> Interval:
    """Return what is missing between the end of an earlier run and this event; empty when the end is below."""
    after = position.last + 1
    if not position.final:  # its last bar was open still; the bars of a stream are equally long, months nearly
        after -= event.last_id - event.first_id + 1
    return after, event.first_id - 1


class Stream:
    """Where one stream of a symbol stands. Not locked; its owner is."""

    def __init__(self, name: str, symbol: str, event_type: str, lane: Lane) -> None:
        self.name = name
        self.symbol = symbol
        self.event_type = event_type
        self.lane = lane
        """What waits of this symbol and topic, of this stream and of others."""
        self.next: int | None = None
        """The id that the next event begins with if it is to pass without a look; None: look at each."""
        self.latest: Event | None = None
        self.first_seen: Event | None = None
        """The first counted event of this run."""
        self.begins_at = NO_ID
        """The first id of this run, in the numbering that holds."""
        self.holes: list[PlacedHole] = []
        """Gaps that are being filled."""
        self.given_up: list[Interval] = []
        """Ids that are waited for no more, and may come all the same; not of depth."""
        self.wants_snapshot = False
        self.snapshot_patience = SNAPSHOT_PATIENCE
        """Seconds that updates wait for a snapshot at most: less while none comes, more where it comes late."""
        self.snapshot_at = time.monotonic()
        self.continues = False
        """Whether an earlier run has brought some of it."""
        self.heard_on = (NO_ID, 0)
        """The connection of the last event that had to be looked at, and how often it had been opened."""
        self.received = 0
        self.backfilled = 0
        self.duplicates = 0
        self._newest_ms = 0
        """Of the events before the latest one, when that is older: its id was wrong."""
        self.source = NO_ID
        """The connection of the last event that was looked at."""
        self._closes = False
        self.taken_at = 0.0
        """When that was, monotonic seconds; of what is not counted, when the last one came."""
        self._suspects: list[Event] = []
        self._suspected_at = 0
        self._suspected_since = 0.0
        self._let_go = 0
        """How many of the suspects have been let go already."""
        self._told: tuple[int | None, int, int, int] = (None, 0, 0, 0)

    def judge(self, event: Event, source: int) -> Verdict:
        """Say what an event from this connection is, before `take`."""
        if event.first_id == NO_ID:
            return self._uncounted(event, source)
        if self.latest is None or self.first_seen is None:
            return Verdict.NEXT
        if self.event_type == BAR:
            return self._of_bar(event, source, self.latest)
        if event.first_id > self.after:
            return Verdict.JUMP
        return Verdict.NEXT if event.last_id >= self.after else Verdict.LATE

    @property
    def after(self) -> int:
        """The id behind the last one."""
        return self.latest.last_id + 1 if self.latest is not None else 0

    def take(self, event: Event, source: int) -> None:
        """Go on from this event."""
        self.source = source
        self.taken_at = time.monotonic()
        self._closes = self._closes or event.final
        if self.first_seen is None and event.first_id != NO_ID:
            self.first_seen = event
            self.begins_at = event.first_id
        self.go_on_from(event)

    def go_on_from(self, event: Event) -> None:
        """Expect what follows this event."""
        if self.latest is not None and event.timestamp_ms < self.latest.timestamp_ms:
            self._newest_ms = max(self._newest_ms, self.latest.timestamp_ms)
        self.latest = event
        if event.first_id != NO_ID and self.event_type != BAR:
            self.next = event.last_id + 1

    def never_closes(self, event: Event) -> bool:
        """Whether this is the next bar of a stream that has not told of any bar that it is closed."""
        return self.event_type == BAR and not self._closes and event.first_id == self.after

    def missing_before(self, event: Event) -> Interval:
        """Return what is missing when this event is a jump; a bar that was not seen closed is."""
        after = self.after
        if self.latest is not None and not self.latest.final:
            after = self.latest.first_id
        return after, event.first_id - 1

    def gave_up(self, event: Event) -> bool:
        """Whether its ids were given up before, so that it is neither a repeat nor of a new numbering.

        One that is newer than the latest may be of a new numbering all the same, unless it begins what was given
        up: had the id that opened that gap been wrong, it would have been this one.
        """
        if not event.final or not holds(self.given_up, event):
            return False
        newer = self.latest is not None and event.timestamp_ms > self.latest.timestamp_ms
        return not newer or any(first == event.first_id for first, _ in self.given_up)

    def was_never_there(self, event: Event) -> bool:
        """Whether its id is below all that this run has brought."""
        return event.last_id < self.begins_at

    def hours_apart(self, event: Event) -> int:
        """Return 1 for an event so much newer that it is of another time, -1 for one so much older, else 0."""
        apart = event.timestamp_ms - self.latest.timestamp_ms if self.latest is not None else 0
        return 0 if abs(apart) <= _ANOTHER_TIME_MS else 1 if apart > 0 else -1

    def repeats_by(self, event: Event) -> list[Event]:
        """Take note of an event whose id has passed and is not missing; return those that are repeats for sure.

        A repeat is not newer than what was there. Newer ones, consecutive from somewhere below, are the exchange's
        having counted anew (its test network does so each month): see `renumbered`.
        """
        if self.latest is not None and event.timestamp_ms <= max(self._newest_ms, self.latest.timestamp_ms):
            return [event]
        repeats: list[Event] = []
        goes_on = self._suspects and self._suspected_at + 1 == self.received
        if not goes_on or event.first_id != self._suspects[-1].last_id + 1:
            repeats = self.suspects()
        self._suspects.append(event)
        self._suspected_at = self.received
        self._suspected_since = time.monotonic()
        return repeats

    def renumbered(self) -> list[Event]:
        """Return the events of a new numbering once it is sure that there is one."""
        return self.suspects() if len(self._suspects) >= _RENUMBERED_AFTER else []

    def let_go(self, now: float) -> list[Event]:
        """Return the suspects that nothing has refuted for a while and that are repeats of nothing."""
        waiting = self._suspects[self._let_go :]
        if self.continues or now < self._suspected_since + _DOUBT_SECONDS:
            return []
        if not all(self.was_never_there(event) for event in waiting):
            return []
        self._let_go = len(self._suspects)
        return waiting

    @property
    def in_doubt(self) -> bool:
        """Whether there are events that may be repeats or of a new numbering."""
        return bool(self._suspects)

    def refuted(self) -> list[Event]:
        """Return, as repeats, the events of what is no new numbering, since the old one went on."""
        return self.suspects() if self.received > self._suspected_at else []

    def suspects(self) -> list[Event]:
        """Give up the events of what may have been a new numbering, but for those that were let go."""
        suspects, self._suspects, self._let_go = self._suspects[self._let_go :], [], 0
        return suspects

    def position(self) -> Position:
        """Return where the stream stands, with what went into the buffer."""
        missing = tuple(sorted(interval for hole in self.holes for interval in hole.missing))
        waits_from = self.lane.first_id(self.name)
        at_ms = self.latest.timestamp_ms if self.latest is not None else 0
        if waits_from is not None:  # so its last one was sent no later
            before = tuple(each for each in missing if each[1] < waits_from)
            return Position(self.name, waits_from - 1, before, at_ms=at_ms)
        final = self.latest is None or self.latest.final
        return Position(self.name, self.after - 1, missing, final, at_ms)

    def tally(self) -> Tally:
        """Return what came since this was last asked."""
        first, received, backfilled, duplicates = self._told
        if first is None:
            first = self.first_seen.first_id if self.first_seen is not None else 0
        after = self.after
        missing = sum(
            max(0, min(end, after) - max(start, first) + 1) for hole in self.holes for start, end in hole.missing
        )
        counts = (self.received - received, self.backfilled - backfilled, self.duplicates - duplicates)
        self._told = (after, self.received, self.backfilled, self.duplicates)
        return Tally(self.name, self.symbol, self.event_type, first, after - 1, *counts, missing)

    def _uncounted(self, event: Event, source: int) -> Verdict:
        if source == self.source or self.latest is None or time.monotonic() - self.taken_at > _SPEAKS_SECONDS:
            return Verdict.NEXT
        if event.last_id >= 0:
            return Verdict.NEXT if event.last_id > self.latest.last_id else Verdict.REPEAT
        return Verdict.NEXT if event.timestamp_ms > self.latest.timestamp_ms else Verdict.REPEAT

    def _of_bar(self, event: Event, source: int, latest: Event) -> Verdict:
        if event.first_id < latest.first_id:
            return Verdict.LATE
        if event.first_id == latest.first_id:
            stale = latest.final or (source != self.source and event.timestamp_ms <= latest.timestamp_ms)
            return Verdict.REPEAT if stale else Verdict.NEXT
        return Verdict.JUMP if not latest.final or event.first_id > latest.last_id + 1 else Verdict.NEXT
