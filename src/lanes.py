"""What waits of one symbol and topic: in the order of coming, behind the gaps that are being filled.

A lane is empty nearly always; then events go past it.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING

from src.events import Event
from src.holes import Hole

if TYPE_CHECKING:
    from src.holes import Gap


class PlacedHole(Hole):
    """A hole behind which its stream's lane waits since `since`, monotonic seconds."""

    def __init__(self, gap: Gap, opener: Event | None, since: float) -> None:
        super().__init__(gap)
        self.stream = gap.stream
        self.opener = opener
        """The event whose id told that something is missing before it."""
        self.since = since

    def opened_by_a_wrong_id(self, event: Event) -> bool:
        """Whether an event inside, before it is offered, tells that the id which opened this was wrong.

        It is newer than that one. The first id of the gap tells nothing: had the opener been wrong, that would be
        its own, and nobody else's.
        """
        if self.opener is None:
            return False
        return event.timestamp_ms > self.opener.timestamp_ms and event.first_id > self.gap.first


class SnapshotPlace:
    """Where the snapshot of an order book belongs among the updates of its stream, kept since `since`."""

    def __init__(self, stream: str, since: float) -> None:
        self.stream = stream
        self.since = since


WaitedFor = PlacedHole | SnapshotPlace


class Lane:
    """Events, holes and places of snapshots in order, of several streams by name. Not locked; its owner is."""

    def __init__(self) -> None:
        self.queue: deque[Event | WaitedFor] = deque()

    def due(self) -> list[Event]:
        """Give out, in order, everything before which nothing is waited for."""
        due: list[Event] = []
        queue = self.queue
        while queue:
            head = queue[0]
            if isinstance(head, Event):
                due.append(head)
            elif isinstance(head, PlacedHole):
                due += head.due()
                if not head.closed:
                    break
            else:
                break
            queue.popleft()
        return due

    def waited_for(self) -> WaitedFor | None:
        """Return what the lane waits for first."""
        return next((each for each in self.queue if not isinstance(each, Event)), None)

    def place_of(self, stream: str) -> SnapshotPlace | None:
        """Return the place that is kept for a snapshot of this stream."""
        places = (each for each in self.queue if isinstance(each, SnapshotPlace))
        return next((place for place in places if place.stream == stream), None)

    def behind(self, place: SnapshotPlace) -> list[Event]:
        """Return the events of its stream that wait behind a place, as far as nothing else is waited for."""
        queue = list(self.queue)
        waiting = itertools.takewhile(_holds_nothing_up, queue[queue.index(place) + 1 :])
        return [each for each in waiting if isinstance(each, Event) and each.route.stream == place.stream]

    def put_snapshot(self, place: SnapshotPlace, snapshot: Event) -> None:
        """Put a snapshot behind the updates that it holds already, so that what follows it begins at it."""
        older = [event for event in self.behind(place) if event.last_id <= snapshot.last_id]
        after: Event | WaitedFor = older[-1] if older else place
        self.queue.insert(self._index(after) + 1, snapshot)
        self.queue.remove(place)

    def give_up(self, waited_for: WaitedFor) -> None:
        """Wait for this no more; what has come for a hole takes its place."""
        at = self.queue.index(waited_for)
        self.queue.remove(waited_for)
        if isinstance(waited_for, PlacedHole):
            for event in reversed(waited_for.everything()):
                self.queue.insert(at, event)

    def take_out_behind(self, hole: PlacedHole) -> list[Event]:
        """Take out the events of a hole's stream that wait behind it."""
        queue = list(self.queue)
        at = queue.index(hole) if hole in queue else len(queue)
        taken = [each for each in queue[at:] if isinstance(each, Event) and each.route.stream == hole.stream]
        gone = set(map(id, taken))
        self.queue = deque(each for each in queue if id(each) not in gone)
        return taken

    def first_id(self, stream: str) -> int | None:
        """Return the first id of this stream that waits or is waited for here."""
        for each in self.queue:
            if isinstance(each, PlacedHole) and each.stream == stream and not each.closed:
                return each.first
            if isinstance(each, Event) and each.route.stream == stream:
                return each.first_id
        return None

    def put_behind(self, waited_for: WaitedFor, place: SnapshotPlace) -> None:
        """Keep a place for a snapshot right behind something else that is waited for."""
        self.queue.insert(self._index(waited_for) + 1, place)

    def _index(self, sought: Event | WaitedFor) -> int:
        return next(at for at, each in enumerate(self.queue) if each is sought)


def _holds_nothing_up(each: Event | WaitedFor) -> bool:
    """Whether nothing is waited for here: a gap that was given up stays in its place until it is its turn."""
    return isinstance(each, Event) or (isinstance(each, PlacedHole) and each.closed)
