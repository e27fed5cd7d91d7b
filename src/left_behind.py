"""What an earlier run has left on disk, and which of it Kafka has already."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, islice
from typing import TYPE_CHECKING

from src.coverage import place_of, sent_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from src.coverage import Coverage
    from src.events import Event
    from src.spool import Spool

_READ_AT_ONCE = 2_000


class LeftBehind:
    """The events on disk up to the number `up_to`, of which a killed run may have sent the first `most`.

    An event in Kafka is known by its bytes, which hold the millisecond of its reading beside all that the
    exchange sent; two such hashes (64 bits) meet by chance once in 10^8 starts.
    """

    def __init__(self, spool: Spool, up_to: int, most: int) -> None:
        self._spool = spool
        self._up_to = up_to
        self._maybe_sent: dict[int, list[int]] = defaultdict(list)
        self._sent: list[int] = []
        for event in islice(chain.from_iterable(self._batches()), most):
            self._maybe_sent[hash(event.value)].append(event.seq)

    def in_kafka(self, value: bytes) -> None:
        """Take note of an event that is in Kafka."""
        if self._maybe_sent and (numbers := self._maybe_sent.get(hash(value))):
            self._sent.append(numbers.pop())

    def remove(self) -> int:
        """Take off the disk what is in Kafka and return how many events that were."""
        return self._spool.remove(self._sent)

    def cover(self, coverage: Coverage, left: Callable[[list[Event]], None], stopped: Callable[[], bool]) -> None:
        """Let `coverage` see all events, and `left` those that Kafka lacks; ends early when `stopped` says so."""
        sent = set(self._sent)
        for events in self._batches():
            if stopped():
                return
            for event in events:
                if (seen := place_of(event)) is not None:
                    kind = event.route.event_type.encode()
                    coverage.saw(seen, sent_at(event.value, kind, event.timestamp_ms))
            left([event for event in events if event.seq not in sent])

    def _batches(self) -> Iterator[list[Event]]:
        after = 0
        while events := self._spool.read(after, _READ_AT_ONCE):
            if ours := [event for event in events if event.seq <= self._up_to]:
                yield ours
            if len(ours) < len(events):
                return
            after = events[-1].seq
