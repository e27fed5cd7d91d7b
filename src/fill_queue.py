"""What is to be fetched, in its order: what live events wait for first, then fair between symbols."""

from __future__ import annotations

import heapq
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter

    from src.holes import Gap, Interval


class _Step:
    """Something to be fetched for a symbol, in several steps."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.requested_at = time.monotonic()
        self.failures = 0
        """Steps in a row that brought nothing."""

    @property
    def rank(self) -> int:
        """Its place: lower ones first."""
        return 0


class Fill(_Step):
    """A gap, and how far its filling has come."""

    def __init__(self, gap: Gap, tries: Counter[Interval]) -> None:
        super().__init__(gap.symbol)
        self.gap = gap
        self.awaited = True
        """Whether live events wait for it, as far as is known here."""
        self.admitted = False
        """Whether it was seen whether it can be filled in time."""
        self.promised = 0
        """The weight of what it is still to ask for, as it looked at the beginning."""
        self.lagging_since: float | None = None
        self.tries = tries
        """By ids that the exchange seems to have skipped: how often they were asked for."""
        self.refused = False
        """Whether it came when there were too many."""

    @property
    def rank(self) -> int:
        """Those not looked at yet first: they may be given up at once."""
        return (1 if self.awaited else 2) if self.admitted else 0


class Snapshot(_Step):
    """An order book that is wanted."""

    def __init__(self, stream: str, symbol: str) -> None:
        super().__init__(symbol)
        self.stream = stream

    @property
    def rank(self) -> int:
        """As urgent as what live events wait for."""
        return 1


Task = Fill | Snapshot


class FillQueue:
    """Hands tasks to any number of threads; a task comes back after each step until it is done.

    Of equal rank the symbol comes next that has had the fewest steps. The bound is the caller's: see `fills`.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards everything below
        self._ready: list[tuple[int, int, int, Task]] = []
        self._later: list[tuple[float, int, Task]] = []
        self._steps: dict[str, int] = {}
        """By symbol: the number of its last step in a count that all symbols share."""
        self._at = 0
        """Where that count stands."""
        self._number = 0
        self._under_way: set[Task] = set()
        self._wanted: set[str] = set()
        """Streams with a snapshot queued: a further one would bring nothing."""
        self._closed = False
        self.fills = 0
        """Gaps queued or under way."""

    def put(self, task: Task) -> None:
        """Queue a new task; never waits. Of one stream one snapshot at most is queued."""
        with self._changed:
            self.fills += isinstance(task, Fill)
            self._enqueue(task, 0.0)

    def take(self) -> Task | None:
        """Wait for the next task and return it; None once closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    self._make_ready(heapq.heappop(self._later)[2])
                if self._ready:
                    _, step, _, task = heapq.heappop(self._ready)
                    self._at = max(self._at, step)
                    self._under_way.add(task)
                    if isinstance(task, Snapshot):
                        self._wanted.discard(task.stream)
                    return task
                self._changed.wait(self._later[0][0] - now if self._later else None)
            return None

    def put_back(self, task: Task, delay: float) -> None:
        """Queue a task again, for its next step in so many seconds."""
        with self._changed:
            self._under_way.discard(task)
            self._enqueue(task, delay)

    def done(self, task: Task) -> None:
        """Forget a task that was taken."""
        with self._changed:
            self._under_way.discard(task)
            self.fills -= isinstance(task, Fill)
            if not (self._ready or self._later or self._under_way):
                self._steps.clear()
            self._changed.notify_all()

    def awaited(self) -> list[Fill]:
        """Return the gaps that live events wait for."""
        with self._changed:
            return [task for task in self._tasks() if isinstance(task, Fill) and task.awaited]

    def settle(self, seconds: float) -> None:
        """Wait until nothing is queued or under way that live events wait for, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not any(map(_awaited, self._tasks())), seconds)

    def close(self) -> None:
        """Hand out nothing any more; wake all who wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _tasks(self) -> list[Task]:
        queued = [entry[3] for entry in self._ready] + [entry[2] for entry in self._later]
        return [*queued, *self._under_way]

    def _enqueue(self, task: Task, delay: float) -> None:
        if isinstance(task, Snapshot):
            if task.stream in self._wanted:
                return
            self._wanted.add(task.stream)
        if delay > 0:
            self._number += 1
            heapq.heappush(self._later, (time.monotonic() + delay, self._number, task))
        else:
            self._make_ready(task)
        self._changed.notify_all()

    def _make_ready(self, task: Task) -> None:
        step = max(self._at, self._steps.get(task.symbol, 0)) + 1
        self._steps[task.symbol] = step
        self._number += 1
        heapq.heappush(self._ready, (task.rank, step, self._number, task))


def _awaited(task: Task) -> bool:
    return isinstance(task, Fill) and task.awaited
