"""What the gap ledger says in sum: of each stream what came and what is missing, of each connection how it fared.

Pure: records in, a report out. Ids are counted as intervals, so that neither a record that is there twice nor two
runs that tell of the same ids count double.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from src.holes import include, joined, without
from src.lost import DEAD_LETTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from src.holes import Interval

    Told = dict[str, Any]

DEPTH = "depth_update"
BAR = "kline"
_ONE_ID_EACH = ("trade", "aggregate_trade")
_RECENT = 20_000
_SILENT_MS = 65 * 60_000
"""A service writes every hour, whatever comes; the rest is for the way to Kafka."""
_BAR_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}


@dataclass
class Hole:
    """A gap as the records about it tell it."""

    gap: str
    ids: Interval
    cause: str
    opened_ms: int
    left: list[Interval]
    """What neither came nor was given up."""
    given_up: dict[str, list[Interval]] = field(default_factory=dict)
    """By reason."""
    given_up_ms: int = 0
    dropped: list[Interval] = field(default_factory=list)
    """What was dropped while this was being filled: as far as it came for this, it is missing again."""
    filled: bool = False
    events: int = 0

    @property
    def came(self) -> list[Interval]:
        """What is known to have come."""
        came = [self.ids] if self.filled else []
        for first, last in (*self.dropped, *(ids for some in self.given_up.values() for ids in some)):
            came = without(came, first, last)
        return came


@dataclass
class StreamReport:
    """What the ledger tells of one stream."""

    stream: str
    symbol: str
    event_type: str
    holes: dict[str, Hole] = field(default_factory=dict)
    told: list[Interval] = field(default_factory=list)
    """The ids that hour records tell of."""
    received: int = 0
    duplicates: int = 0
    hours_backfilled: int = 0
    order_given_up: int = 0
    renumbered: int = 0
    gone: dict[str, list[Interval]] = field(default_factory=dict)
    """Ids that were given up or dropped, by reason, and neither came since nor are looked for again."""
    lost: list[Interval] = field(default_factory=list)
    """Ids that came and were dropped before Kafka had them, and did not come since."""
    drops_ms: list[int] = field(default_factory=list)
    """When each hole that was dropped was."""
    never_came: list[Interval] = field(default_factory=list)
    """Ids of gaps that the stream left out; what was dropped and looked for again had come."""
    snapshots_ms: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[Interval]:
        """All that the records tell of, hours and gaps."""
        return joined([*self.told, *(hole.ids for hole in self.holes.values())])

    @property
    def backfilled(self) -> int:
        """Events that came for gaps: an hour record may be lacking, and so may the end of a gap."""
        return max(self.hours_backfilled, sum(hole.events for hole in self.holes.values()))

    @property
    def open_holes(self) -> list[Hole]:
        """Gaps of which something is still to come."""
        return [hole for hole in self.holes.values() if hole.left]

    @property
    def missing(self) -> list[Interval]:
        """Ids that were given up or dropped, and did not come later all the same."""
        return joined(ids for reason, some in self.gone.items() if reason != DEAD_LETTER for ids in some)

    @property
    def dead_letters(self) -> list[Interval]:
        """Ids that Kafka has refused, and did not get later all the same: whoever wants them can have them."""
        return self.gone.get(DEAD_LETTER, [])

    @property
    def reasons(self) -> dict[str, int]:
        """How many of the missing ids, or bars, were given up or dropped, by reason."""
        return {reason: self.count(ids) for reason, ids in self.gone.items() if ids and reason != DEAD_LETTER}

    @property
    def unexplained(self) -> int:
        """Ids that neither came nor are in a gap, by arithmetic; 0 where that does not apply."""
        if self.event_type not in _ONE_ID_EACH or self.renumbered or not self.told:
            return 0
        of_hours = size(joined([*self.told, *self.never_came])) - size(self.never_came)
        return max(0, of_hours - (self.received - self.duplicates))

    @property
    def untold(self) -> int:
        """Ids between the first and the last that no record tells of: an hour that a killed run did not end."""
        ids = self.ids
        return 0 if self.renumbered or not ids else self.count([(ids[0][0], ids[-1][1])]) - self.count(ids)

    @property
    def unbridged(self) -> int:
        """Holes in depth that no snapshot has followed."""
        if self.event_type != DEPTH:
            return 0
        latest = max(self.snapshots_ms, default=-1)
        given_up_ms = [hole.given_up_ms for hole in self.holes.values() if hole.given_up]
        return sum(at_ms > latest for at_ms in (*self.drops_ms, *given_up_ms))

    def count(self, ids: Iterable[Interval]) -> int:
        """Return how many ids these are; of bars how many bars."""
        return sum(-(-(last - first + 1) // self._step) for first, last in ids)

    def looked_for(self, ids: Interval) -> None:
        """Take note of a gap that is opened: a record about it is to tell how it ends."""
        for interval in _outside([ids], self.lost):
            include(self.never_came, interval)
        self._not_gone([ids])

    def came(self, ids: Sequence[Interval]) -> None:
        """Take note of ids that came for a gap."""
        self.lost = _outside(self.lost, ids)
        self._not_gone(ids)

    def went(self, ids: Sequence[Interval], reason: str) -> None:
        """Take note of ids that were given up or dropped."""
        gone = self.gone.setdefault(reason, [])
        for interval in ids:
            include(gone, interval)

    def _not_gone(self, ids: Sequence[Interval]) -> None:
        self.gone = {reason: _outside(some, ids) for reason, some in self.gone.items()}

    @property
    def _step(self) -> int:
        found = re.search(r"@kline_(\d+)([smhdw])", self.stream) if self.event_type == BAR else None
        return int(found[1]) * _BAR_MS[found[2]] if found else 1


@dataclass
class ConnectionReport:
    """What the ledger tells of one connection of one instance."""

    instance: str
    connection: int
    opened: int = 0
    closed: Counter[tuple[int | None, str, str]] = field(default_factory=Counter)
    """By code, cause and reason."""
    seconds: list[float] = field(default_factory=list)
    rotated: Counter[str] = field(default_factory=Counter)


class CompletenessReport:
    """Takes the ledger's records in their order; everything else may be asked at any time.

    `now_ms` is the time that it reaches to; without it, the age of the newest record is not looked at.
    """

    def __init__(self, now_ms: int | None = None) -> None:
        self._now_ms = now_ms
        self.stopped = False
        """Whether the last that was heard of a service is that it stopped in order."""
        self.streams: dict[str, StreamReport] = {}
        self.connections: dict[tuple[str, int], ConnectionReport] = {}
        self.records = 0
        self.unreadable = 0
        """Records that are none of the ledger's."""
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        self._alive_ms: int | None = None
        """When a service last wrote; `dead_letters.py` writes, too."""
        self._sent_again: dict[tuple[str, str], list[tuple[int, Interval]]] = {}
        """By symbol and event type: when which dead letters were sent again, as may be told before they died."""
        self._recent: dict[str, None] = {}
        """The ids of the last records; what is there twice is close together."""
        self._takes: dict[str, Callable[[Told], None]] = {
            "opened": self._opened,
            "filled": self._filled,
            "unfillable": self._unfillable,
            "order_given_up": self._order_given_up,
            "dropped": self._dropped,
            "resent": self._resent,
            "renumbered": self._renumbered,
            "snapshot_taken": self._snapshot_taken,
            "connection_opened": self._connection_opened,
            "connection_closed": self._connection_closed,
            "connection_rotated": self._connection_rotated,
            "streams_changed": lambda _: None,
            "hour": self._hour,
            "quiet": self._quiet,
        }

    def add(self, record: Told) -> None:
        """Take the next record; one that was there already, or is none of ours, changes nothing."""
        try:
            if self._known(record["id"]):
                return
            self._takes[record["type"]](record)
            at_ms = int(record["at_ms"])
        except (KeyError, TypeError, ValueError, AttributeError):
            self.unreadable += 1
            return
        self.records += 1
        self.first_ms = at_ms if self.first_ms is None else self.first_ms
        self.last_ms = at_ms if self.last_ms is None else max(self.last_ms, at_ms)
        if record["type"] != "resent":
            self._alive_ms = at_ms if self._alive_ms is None else max(self._alive_ms, at_ms)

    @property
    def silent_since_ms(self) -> int | None:
        """When a service last wrote, if that is longer ago than it can be while one runs; of several any counts.

        Where none has written at all, when the first record was written.
        """
        if self._now_ms is None or (self._alive_ms is not None and self._now_ms - self._alive_ms <= _SILENT_MS):
            return None
        return self.first_ms if self._alive_ms is None else self._alive_ms

    def _known(self, number: str) -> bool:
        if number in self._recent:
            return True
        self._recent[number] = None
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        return False

    # Gaps

    def _opened(self, told: Told) -> None:
        stream, ids = self._stream(told), (told["first"], told["last"])
        if told["cause"] == "resume":  # what an earlier run has left open goes on in this one
            for hole in stream.open_holes:
                if hole.ids[0] <= ids[1] and ids[0] <= hole.ids[1]:
                    hole.left = []
        stream.holes[told["gap"]] = _hole(told)
        stream.looked_for(ids)

    def _filled(self, told: Told) -> None:
        hole = self._hole_of(told)
        hole.left, hole.filled = [], True
        hole.events += told["events"]
        self._stream(told).came(hole.came)

    def _unfillable(self, told: Told) -> None:
        hole = self._hole_of(told)
        missing = [(first, last) for first, last in told["missing"]]
        for first, last in missing:
            hole.left = without(hole.left, first, last)
        hole.given_up.setdefault(told["reason"], []).extend(missing)
        hole.given_up_ms = told["at_ms"]
        self._stream(told).went(missing, told["reason"])

    def _order_given_up(self, told: Told) -> None:
        self._hole_of(told)
        self._stream(told).order_given_up += 1

    def _dropped(self, told: Told) -> None:
        missing = [(first, last) for first, last in told["missing"]]
        if told["reason"] == DEAD_LETTER:
            for at_ms, (first, last) in self._sent_again.get((told["symbol"], told["event_type"]), ()):
                missing = without(missing, first, last) if at_ms >= told["at_ms"] else missing
        stream = self._book(told) or self._stream(told)
        stream.went(missing, told["reason"])
        for hole in stream.open_holes:  # what came for it has not come
            first, last = hole.ids
            hole.dropped += [interval for interval in missing if first <= interval[1] and interval[0] <= last]
        stream.drops_ms += [told["at_ms"]] * len(missing)
        for interval in missing:
            include(stream.lost, interval)

    def _resent(self, told: Told) -> None:
        ids = [(first, last) for first, last in told["ids"]]
        again = self._sent_again.setdefault((told["symbol"], told["event_type"]), [])
        again += [(told["at_ms"], interval) for interval in ids]
        if (stream := self._book(told) or self.streams.get(told["stream"])) is not None:
            stream.came(ids)

    def _renumbered(self, told: Told) -> None:
        if (stream := self.streams.get(told["stream"])) is not None:
            stream.renumbered += 1

    def _snapshot_taken(self, told: Told) -> None:
        self._stream(told | {"event_type": DEPTH}).snapshots_ms.append(told["at_ms"])

    def _quiet(self, told: Told) -> None:
        self.stopped = told["partial"]

    def _hour(self, told: Told) -> None:
        self.stopped = told["partial"]
        stream = self._stream(told)
        stream.received += told["received"]
        stream.duplicates += told["duplicates"]
        stream.hours_backfilled += told["backfilled"]
        if told["first_id"] is not None:
            stream.told = joined([*stream.told, (told["first_id"], told["last_id"])])

    def _stream(self, told: Told) -> StreamReport:
        name = told["stream"]
        if name not in self.streams:
            self.streams[name] = StreamReport(name, told["symbol"], told["event_type"])
        return self.streams[name]

    def _book(self, told: Told) -> StreamReport | None:
        """Return the depth stream of a symbol, whose name lacks its speed where it was read from disk."""
        if told["event_type"] != DEPTH or told["stream"] in self.streams:
            return None
        books = (each for each in self.streams.values() if each.event_type == DEPTH)
        return next((each for each in books if each.symbol == told["symbol"]), None)

    def _hole_of(self, told: Told) -> Hole:
        stream = self._stream(told)
        if told["gap"] not in stream.holes:  # its beginning is not among the records
            stream.holes[told["gap"]] = _hole(told)
            stream.looked_for((told["first"], told["last"]))
        return stream.holes[told["gap"]]

    # Connections

    def _connection_opened(self, told: Told) -> None:
        self.stopped = False
        self._connection(told).opened += 1

    def _connection_closed(self, told: Told) -> None:
        connection = self._connection(told)
        connection.closed[told["code"], told["cause"], told["reason"]] += 1
        if told["seconds"] is not None:
            connection.seconds.append(told["seconds"])

    def _connection_rotated(self, told: Told) -> None:
        self._connection(told | {"connection": told["from"]}).rotated[told["cause"]] += 1

    def _connection(self, told: Told) -> ConnectionReport:
        key = (told["instance"], told["connection"])
        return self.connections.setdefault(key, ConnectionReport(*key))


def _hole(told: Told) -> Hole:
    ids = (told["first"], told["last"])
    return Hole(told["gap"], ids, told["cause"], told["opened_ms"], [ids])


def _outside(ids: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Return what is left of sorted intervals without others."""
    left = list(ids)
    for first, last in others:
        left = without(left, first, last)
    return left


def size(ids: Iterable[Interval]) -> int:
    """Return how many numbers these are."""
    return sum(last - first + 1 for first, last in ids)
