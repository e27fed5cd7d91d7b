"""Fetches over REST what the streams did not bring, while live events wait for it or in the background.

Continuity says what is missing and puts what comes where it belongs; here is decided what is asked for when, how
often, and when it is given up. Nothing here is called with a lock held that Continuity needs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from src.binance_rest import Closed, Foreign, Limited, Refused, RestError, Unreachable, depth_weight
from src.fill_queue import Fill, FillQueue, Snapshot
from src.outage import Outage, Pace
from src.refetch import WEIGHTS, Refetch, answers_needed, refetchable
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.settings import BackfillConfig
    from src.binance_rest import BinanceRest
    from src.deadline import Deadline
    from src.events import Event, Topics
    from src.fill_queue import Task
    from src.holes import Gap, Interval
    from src.telemetry import Telemetry

WORKERS = 4
MAX_GAPS = 10_000
_BACKGROUND_SHARE = 0.75
"""Of the budget: the rest is kept for gaps that live events wait for."""
_DEPTH = "depth_snapshot"
_FINISH_SECONDS = 3.0
_JOIN_SECONDS = 1.0
_USUAL_ANSWER_SECONDS = 0.1


class Continuity(Protocol):
    """What knows which ids are missing; see `src/continuity.py`."""

    def remaining(self, gap: Gap) -> list[Interval]:
        """Return what is still missing."""

    def offer(self, gap: Gap, events: list[Event]) -> None:
        """Take events of the gap."""

    def abandon(self, gap: Gap, reason: str, only: Sequence[Interval] | None = None) -> None:
        """Wait no more for what is missing, or only for these ids."""

    def give_up_order(self, gap: Gap, reason: str) -> None:
        """Let live events pass."""

    def expect_snapshot(self, stream: str) -> bool:
        """Hold depth from here on; False when no snapshot is wanted any more."""

    def offer_snapshot(self, stream: str, event: Event) -> bool:
        """Take a snapshot; False when it is too old."""

    def abandon_snapshot(self, stream: str, reason: str, *, for_good: bool = False) -> None:
        """Hold depth no more; `for_good`: no snapshot will be offered."""


class Backfill:
    """Fills gaps and takes snapshots on four threads; `request` and `request_snapshot` only note what is wanted.

    Holds at most `MAX_GAPS` gaps; more are abandoned as `too_many_gaps`.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with; the last one is for tests
        self,
        settings: BackfillConfig,
        rest: BinanceRest,
        topics: Topics,
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],
        pace: Pace = Pace(),  # noqa: B008 - immutable
    ) -> None:
        self._settings = settings
        self._rest = rest
        self._telemetry = telemetry
        self._pace = pace
        self._queue = FillQueue()
        self._refetch = Refetch(rest, topics, telemetry)
        self._outage = Outage(pace)
        self._absent = {kind: Outage(pace) for kind in (*WEIGHTS, _DEPTH)}
        """How long each endpoint is left alone where somebody else answers, by what it is asked for."""
        self._answer_seconds = _USUAL_ANSWER_SECONDS
        self._lock = threading.Lock()  # guards what is promised, and who is awaited
        self._promised = 0
        self._continuity: Continuity
        self._workers = [Worker(f"backfill-{number}", self._work, on_exit) for number in range(WORKERS)]

    def attach(self, continuity: Continuity) -> None:
        """Say who is to get what is fetched; before `start`."""
        self._continuity = continuity

    def start(self) -> None:
        """Start fetching."""
        for worker in self._workers:
            worker.start()

    def request(self, gap: Gap) -> None:
        """Note a gap to be filled; never waits and never calls back."""
        fill = Fill(gap, Counter())
        fill.refused = self._queue.fills >= MAX_GAPS
        self._queue.put(fill)

    def request_snapshot(self, stream: str, symbol: str) -> None:
        """Note a snapshot to be taken; never waits and never calls back."""
        self._queue.put(Snapshot(stream, symbol))

    @property
    def open_gaps(self) -> int:
        """How many gaps are being filled."""
        return self._queue.fills

    @property
    def alive(self) -> bool:
        """Whether every thread runs."""
        return all(worker.alive for worker in self._workers)

    def finish(self, deadline: Deadline) -> None:
        """Wait a little for what live events wait for, then close; what is open then stays unfilled."""
        if self.alive:
            self._queue.settle(min(_FINISH_SECONDS, deadline.remaining() / 5))
        self.close()
        for worker in self._workers:
            worker.join(deadline.remaining(_JOIN_SECONDS))

    def close(self) -> None:
        """End every wait at once, and with it the REST client; returns without waiting for the threads."""
        self._queue.close()
        self._rest.close()

    def _work(self) -> None:
        while (task := self._queue.take()) is not None:
            delay = self._fill(task) if isinstance(task, Fill) else self._take_snapshot(task)
            if delay is None:
                if isinstance(task, Fill):
                    self._let_go(task)
                self._queue.done(task)
            else:
                self._queue.put_back(task, delay)

    # Gaps

    def _fill(self, fill: Fill) -> float | None:
        """Do one step for a gap; return the seconds until the next one, None when there is none."""
        gap = fill.gap
        missing = self._continuity.remaining(gap)
        if not missing:
            return None
        if (reason := self._unfillable(fill)) is not None:
            self._continuity.abandon(gap, reason)
            return None
        if not fill.admitted:
            self._admit(fill, missing)
        weight = WEIGHTS[gap.event_type]
        if (wait := self._must_wait(fill, weight)) > 0:
            return wait
        started = time.monotonic()
        try:
            events = self._refetch.page(gap, missing[0])
        except RestError as error:
            return self._failed(fill, error)
        self._worked(gap.event_type, time.monotonic() - started)
        return self._took(fill, missing[0], events)

    def _unfillable(self, fill: Fill) -> str | None:
        if not refetchable(fill.gap):
            return "not_refetchable"
        if not self._settings.enabled:
            return "backfill_disabled"
        return "too_many_gaps" if fill.refused else None

    def _admit(self, fill: Fill, missing: list[Interval]) -> None:
        """Let live events pass at once when what they wait for cannot be there in time."""
        fill.admitted = True
        answers = answers_needed(fill.gap, missing)
        promised = self._promise(fill, answers * WEIGHTS[fill.gap.event_type])
        seconds = max(answers * self._answer_seconds, self._rest.budget.wait_for(promised))
        if self._away(fill.gap.event_type) > 0:
            self._give_up_order(fill, Unreachable.reason)
        elif seconds > self._settings.max_wait_seconds >= self._rest.budget.wait_for(WEIGHTS[fill.gap.event_type]):
            self._give_up_order(fill, "too_large")

    def _must_wait(self, fill: Fill, weight: int) -> float:
        """Reserve the weight of one answer, or return how long to wait; live events pass if that is long."""
        if self._time_left(fill) <= 0:
            self._let_go(fill)  # Continuity has let them pass
        if (wait := self._away(fill.gap.event_type)) > 0:
            self._give_up_order(fill, Unreachable.reason)
            return wait
        wait = self._rest.budget.reserve(weight, 1.0 if fill.awaited else _BACKGROUND_SHARE)
        if not wait:
            self._promise(fill, -weight)
        elif wait > self._time_left(fill):
            self._give_up_order(fill, Limited.reason)
        return wait

    def _time_left(self, task: Task) -> float:
        return task.requested_at + self._settings.max_wait_seconds - time.monotonic()

    def _give_up_order(self, fill: Fill, reason: str) -> None:
        if self._let_go(fill):
            self._continuity.give_up_order(fill.gap, f"rest_{reason}" if reason != "too_large" else reason)

    def _let_go(self, fill: Fill) -> bool:
        """Note that live events do not wait for a gap; return whether they did. Any worker may find out."""
        with self._lock:
            was_awaited, fill.awaited = fill.awaited, False
            self._promised -= fill.promised
            fill.promised = 0
            return was_awaited

    def _promise(self, fill: Fill, weight: int) -> int:
        """Set weight aside for a gap that live events wait for, or take it; return the sum for all."""
        with self._lock:
            change = max(weight, -fill.promised) if fill.awaited else 0
            fill.promised += change
            self._promised += change
            return self._promised

    def _away(self, kind: str) -> float:
        """Return the seconds for which this is not to be asked for, as the exchange was not there."""
        return max(self._outage.remaining(), self._absent[kind].remaining())

    def _went_away(self, error: Unreachable, kind: str) -> None:
        (self._absent[kind] if isinstance(error, Foreign) else self._outage).began()
        self._let_pass(error, kind)

    def _came_back(self, kind: str) -> None:
        self._outage.over()
        self._absent[kind].over()

    def _worked(self, kind: str, seconds: float) -> None:
        self._came_back(kind)
        self._answer_seconds = 0.8 * self._answer_seconds + 0.2 * seconds

    def _took(self, fill: Fill, asked: Interval, events: list[Event]) -> float | None:
        """Hand on what came; find out what of it the exchange skips and what it does not have yet."""
        gap, (first, last) = fill.gap, asked
        fitting = [event for event in events if first <= event.first_id and event.last_id <= last]
        if fitting:
            self._continuity.offer(gap, fitting)
        missing = self._continuity.remaining(gap)
        if not missing:
            return None
        if asked not in missing:  # something of it has come
            fill.failures, fill.lagging_since = 0, None
            return 0.0
        newest = max((event.last_id for event in events), default=first - 1)
        return self._skipped(fill, (first, min(last, newest))) if newest >= first else self._lagging(fill)

    def _skipped(self, fill: Fill, ids: Interval) -> float:
        """Ask again for ids that the answer leaves out although it has later ones; then give up just these."""
        fill.lagging_since = None
        fill.tries[ids] += 1
        if fill.tries[ids] < self._pace.tries:
            return self._next_delay(fill, self._pace.longest_delay)
        del fill.tries[ids]
        fill.failures = 0
        self._continuity.abandon(fill.gap, "skipped_by_exchange", only=[ids])
        return 0.0

    def _lagging(self, fill: Fill) -> float | None:
        """Ask again for what REST does not have yet: it may be behind the streams (rest-api.md)."""
        now = time.monotonic()
        fill.lagging_since = now if fill.lagging_since is None else fill.lagging_since
        if now - fill.lagging_since >= self._pace.not_served_after:
            self._continuity.abandon(fill.gap, "not_served")
            return None
        return self._next_delay(fill, self._pace.longest_delay)

    def _failed(self, fill: Fill, error: RestError) -> float | None:
        if isinstance(error, Closed):
            return 0.0
        fill.lagging_since = None
        if (reason := self._for_good(fill, error)) is not None:
            self._continuity.abandon(fill.gap, reason)
            return None
        if isinstance(error, Limited):
            self._let_pass(error, fill.gap.event_type)
            return error.retry_after
        if isinstance(error, Unreachable):
            self._went_away(error, fill.gap.event_type)
            return self._away(fill.gap.event_type)
        return self._next_delay(fill, self._pace.longest_delay if fill.awaited else self._pace.longest_retry)

    def _for_good(self, fill: Fill, error: RestError) -> str | None:
        """Say why asking again is of no use, None when it is."""
        if isinstance(error, Refused) and not error.passing:
            if error.invalid_symbol:
                return "invalid_symbol"
            return "refused" if fill.failures + 1 >= self._pace.tries else None
        old = time.monotonic() - fill.requested_at >= self._pace.failing_after
        absent = isinstance(error, Limited | Unreachable) and not isinstance(error, Foreign)
        return "rest_failing" if old and not absent else None

    def _let_pass(self, error: Limited | Unreachable, kind: str) -> None:
        """Give up the order of every gap that cannot be filled in time now."""
        for fill in self._queue.awaited():
            if isinstance(error, Foreign) and fill.gap.event_type != kind:
                continue
            if isinstance(error, Unreachable) or error.retry_after > self._time_left(fill):
                self._give_up_order(fill, error.reason)

    def _next_delay(self, task: Task, longest: float) -> float:
        task.failures += 1
        return float(min(self._pace.first_delay * 2 ** min(task.failures - 1, 30), longest))

    # Snapshots

    def _take_snapshot(self, task: Snapshot) -> float | None:
        """Try once; depth is not held for longer than it takes to ask."""
        stream, levels = task.stream, self._settings.snapshot_levels
        if not self._settings.enabled:
            self._continuity.abandon_snapshot(stream, "backfill_disabled", for_good=True)
            return None
        if (wait := self._snapshot_must_wait(task, depth_weight(levels))) > 0:
            return wait
        if not self._continuity.expect_snapshot(stream):
            self._rest.budget.release(depth_weight(levels))
            return None
        try:
            event = self._refetch.snapshot(stream, task.symbol, levels)
        except RestError as error:
            return self._no_snapshot(task, error)
        self._came_back(_DEPTH)
        if not self._continuity.offer_snapshot(stream, event):
            return self._next_delay(task, self._pace.longest_retry)
        self._telemetry.snapshot_taken(stream, event.last_id)
        return None

    def _snapshot_must_wait(self, task: Snapshot, weight: int) -> float:
        """Reserve the weight, or return how long to wait; depth passes meanwhile if that is long."""
        if (wait := self._away(_DEPTH)) > 0:
            self._continuity.abandon_snapshot(task.stream, f"rest_{Unreachable.reason}")
            return wait
        wait = self._rest.budget.reserve(weight)
        if wait > self._time_left(task):
            self._continuity.abandon_snapshot(task.stream, f"rest_{Limited.reason}")
        return wait

    def _no_snapshot(self, task: Snapshot, error: RestError) -> float | None:
        if isinstance(error, Closed):
            return 0.0
        if isinstance(error, Unreachable):
            self._went_away(error, _DEPTH)
        elif isinstance(error, Limited):
            self._let_pass(error, _DEPTH)
        permanent = isinstance(error, Refused) and not error.passing
        named = isinstance(error, Refused) and error.invalid_symbol
        for_good = permanent and (named or task.failures + 1 >= self._pace.tries)
        reason = "invalid_symbol" if named else f"rest_{error.reason}"
        self._continuity.abandon_snapshot(task.stream, reason, for_good=for_good)
        if for_good:
            return None
        delay = self._next_delay(task, self._pace.longest_retry)
        return error.retry_after if isinstance(error, Limited) else max(delay, self._away(_DEPTH))
