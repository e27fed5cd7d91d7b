"""What the gap ledger says in sum: of each stream what came and what is missing, of each connection how it fared.

Pure: records in, a report out. Ids are counted as intervals, so that neither a record that is there twice nor two
runs that tell of the same ids count double.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from src.holes import joined, without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from src.holes import Interval

    Told = dict[str, Any]

DEPTH = "depth_update"
BAR = "kline"
_ONE_ID_EACH = ("trade", "aggregate_trade")
_RECENT = 20_000
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
    filled: bool = False
    events: int = 0

    @property
    def came(self) -> list[Interval]:
        """What is known to have come."""
        came = [self.ids] if self.filled else []
        for first, last in (ids for some in self.given_up.values() for ids in some):
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
    dropped: dict[str, list[Interval]] = field(default_factory=dict)
    """Ids that came and were lost before Kafka had them, by reason."""
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
        gone = [ids for hole in self.holes.values() for some in hole.given_up.values() for ids in some]
        gone += [ids for some in self.dropped.values() for ids in some]
        gone = joined(gone)
        for first, last in (ids for hole in self.holes.values() for ids in hole.came):
            gone = without(gone, first, last)
        return gone

    @property
    def reasons(self) -> dict[str, int]:
        """How many ids, or bars, were given up or dropped, by reason."""
        counted: Counter[str] = Counter()
        for given_up in (*(hole.given_up for hole in self.holes.values()), self.dropped):
            for reason, ids in given_up.items():
                counted[reason] += self.count(ids)
        return dict(counted)

    @property
    def unexplained(self) -> int:
        """Ids that neither came nor are in a gap, by arithmetic; 0 where that does not apply."""
        if self.event_type not in _ONE_ID_EACH or self.renumbered or not self.told:
            return 0
        gaps = joined(hole.ids for hole in self.holes.values())
        return max(0, size(self.ids) - (self.received - self.duplicates) - size(gaps))

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
        lost = sum(map(len, self.dropped.values()))
        return lost + sum(hole.given_up_ms > latest for hole in self.holes.values() if hole.given_up)

    def count(self, ids: Iterable[Interval]) -> int:
        """Return how many ids these are; of bars how many bars."""
        return sum(-(-(last - first + 1) // self._step) for first, last in ids)

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
    """Takes the ledger's records in their order; everything else may be asked at any time."""

    def __init__(self) -> None:
        self.streams: dict[str, StreamReport] = {}
        self.connections: dict[tuple[str, int], ConnectionReport] = {}
        self.records = 0
        self.unreadable = 0
        """Records that are none of the ledger's."""
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        self._recent: dict[str, None] = {}
        """The ids of the last records; what is there twice is close together."""
        self._takes: dict[str, Callable[[Told], None]] = {
            "opened": self._opened,
            "filled": self._filled,
            "unfillable": self._unfillable,
            "order_given_up": self._order_given_up,
            "dropped": self._dropped,
            "renumbered": self._renumbered,
            "snapshot_taken": self._snapshot_taken,
            "connection_opened": self._connection_opened,
            "connection_closed": self._connection_closed,
            "connection_rotated": self._connection_rotated,
            "streams_changed": lambda _: None,
            "hour": self._hour,
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
        self.last_ms = at_ms

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

    def _filled(self, told: Told) -> None:
        hole = self._hole_of(told)
        hole.left, hole.filled = [], True
        hole.events += told["events"]

    def _unfillable(self, told: Told) -> None:
        hole = self._hole_of(told)
        missing = [(first, last) for first, last in told["missing"]]
        for first, last in missing:
            hole.left = without(hole.left, first, last)
        hole.given_up.setdefault(told["reason"], []).extend(missing)
        hole.given_up_ms = told["at_ms"]

    def _order_given_up(self, told: Told) -> None:
        self._hole_of(told)
        self._stream(told).order_given_up += 1

    def _dropped(self, told: Told) -> None:
        missing = [(first, last) for first, last in told["missing"]]
        self._stream(told).dropped.setdefault(told["reason"], []).extend(missing)

    def _renumbered(self, told: Told) -> None:
        if (stream := self.streams.get(told["stream"])) is not None:
            stream.renumbered += 1

    def _snapshot_taken(self, told: Told) -> None:
        self._stream(told | {"event_type": DEPTH}).snapshots_ms.append(told["at_ms"])

    def _hour(self, told: Told) -> None:
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

    def _hole_of(self, told: Told) -> Hole:
        return self._stream(told).holes.setdefault(told["gap"], _hole(told))

    # Connections

    def _connection_opened(self, told: Told) -> None:
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


def size(ids: Iterable[Interval]) -> int:
    """Return how many numbers these are."""
    return sum(last - first + 1 for first, last in ids)
