"""Between buffer and producer: straight through while Kafka acknowledges, by way of the disk while it does not.

Events get a sequence number on the way in. In the direct mode they go to the sink and no further. As soon
as the sink does not take one (no producer, bound reached), loses one, or acknowledges nothing for a second, the
mode is spooled: what is in flight is written to disk as well, what comes is written behind it, and the drainer
sends from the disk, in order, whatever Kafka takes, until the disk is empty. In either mode a record that waits
for its own partition while others are acknowledged is written to disk as well, and the others flow on. A record
leaves the disk only when it was acknowledged. Per key the order in Kafka is the order of the sequence numbers:
there is one sender at a time, and when a record fails the producer is broken off before a later one of its
partition can be sent; everything unacknowledged is then sent again from the disk.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from src.dead_letters import DeadLetterMail
from src.deadline import Deadline
from src.spool import SpoolFailed, SpoolFull
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from src.events import Event
    from src.kafka_batches import Fate
    from src.kafka_producer import KafkaSink
    from src.spool import Spool
    from src.telemetry import Telemetry

_READ_AT_ONCE = 2_000
_WRITE_AT_ONCE = 2_000
_DRAIN_IN_FLIGHT = 20_000  # short queues are fast queues
_TICK_SECONDS = 0.2
_STALLED_SECONDS = 1.0
_LATE_SECONDS = 2.0
"""What is unacknowledged for so long, beyond its lingering, is written to disk as well."""
_LATEST_SECONDS = 5.0
"""However long it may linger."""
_AGAIN_SECONDS = 5.0
"""After so long a disk is asked again that did not take what is in flight."""
_PROBE = 100
_PROBE_SECONDS = 1.0
"""So many events are sent so often while nothing is acknowledged: what stalls may be one partition alone."""
_HOPELESS_SECONDS = 5.0
"""At the stop: how long Kafka may acknowledge nothing before the rest is left on disk."""
_CONNECTING_SECONDS = 3.0
"""At the stop: how long a producer that is only being opened is waited for."""


class _Returned(NamedTuple):
    """Events that came back from the producer, with the reason."""

    events: list[Event]
    error: BaseException
    fate: Fate


class Delivery:
    """Takes batches and sees to it that each event is acknowledged, on disk, or counted by reason.

    `accept` is for the publishing thread; it waits for the disk, never for Kafka. The drainer is a thread of its
    own. What the disk does not take is lost: trades and aggregate trades first, which the exchange gives
    again by id, depth last.
    """

    def __init__(
        self,
        sink: KafkaSink,
        spool: Spool,
        refetchable: str,
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],
    ) -> None:
        self._sink = sink
        self._spool = spool
        self._refetchable = refetchable
        self._telemetry = telemetry
        self._lock = threading.Lock()  # guards _direct, _sent_up_to and _next
        self._next = spool.last_seq + 1
        self._direct = not spool.count
        self._sent_up_to = 0 if spool.count else spool.last_seq
        """Of what is on disk, everything up to this number is in flight or acknowledged."""
        self._recording = not self._direct
        """Whether acknowledged events may be on disk, so that they have to be deleted there."""
        self._late = 0
        """Records in flight that waited for their partitions when they were last looked for."""
        self._look_at = self._probe_at = 0.0
        self._again_at: float | None = None
        self._acknowledged: deque[list[Event]] = deque()
        self._to_remove: list[int] = []
        self._returned: deque[_Returned] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._drainer = Worker("spool-drainer", self._drain, on_exit)
        self._dead_letters = DeadLetterMail(sink, spool)
        sink.settle_with(self._settled)

    def start(self) -> None:
        """Open the producer; send what an earlier run has left on disk."""
        if self._spool.damaged:
            self._telemetry.spool_damaged(str(self._spool.damaged))
        if self._spool.count:
            self._telemetry.recovered(self._spool.count)
        self._sink.start()
        self._drainer.start()

    @property
    def spooling(self) -> bool:
        """Whether events go by way of the disk."""
        return not self._direct

    @property
    def alive(self) -> bool:
        """Whether the drainer runs."""
        return self._drainer.alive

    def accept(self, events: list[Event]) -> None:
        """Take a batch: hand it to the sink, or write it to disk."""
        with self._lock:
            for number, event in enumerate(events, self._next):
                event.seq = number
            self._next += len(events)
            self._telemetry.flushed(events)
            # Nothing overtakes what has come back, even when the next producer is open already.
            taken = self._sink.send(events) if self._direct and not self._returned else 0
            self._telemetry.handed_over(taken)
            if taken == len(events):
                return
            if self._direct:
                self._go_by_way_of_the_disk(events[taken].seq - 1)
            self._store(events[taken:], "buffered")

    def close(self, deadline: Deadline) -> None:
        """Deliver by the deadline what Kafka takes, leave the rest on disk, close everything."""
        self._sink.hurry()
        connecting = Deadline(_CONNECTING_SECONDS)
        while deadline.remaining() > self._sink.FORCE_SECONDS and self._has_hope(connecting):
            self._closing.wait(0.02)
        self._closing.set()
        self._wake.set()
        self._drainer.join(deadline.remaining())
        self._sink.close(deadline)
        try:
            self._step(final=True)
        except SpoolFailed as error:
            self._telemetry.spool_failing(str(error))
        self._spool.close()

    def _has_hope(self, connecting: Deadline) -> bool:
        left = self._sink.in_flight.records or self._spool.count
        absent = not self._sink.ready and connecting.expired
        stuck = absent or self._sink.in_flight.stalled_seconds > _HOPELESS_SECONDS
        return bool(left) and not stuck and self._drainer.alive

    def _go_by_way_of_the_disk(self, sent_up_to: int) -> None:
        self._recording = True
        self._direct = False
        self._sent_up_to = sent_up_to
        self._telemetry.spooling_started()
        self._wake.set()

    # To the disk

    def _store(self, events: Sequence[Event], was: str) -> int:
        """Write events to disk, what matters most when it does not take all; return how many it took."""
        try:
            self._spool.append(events)
        except (SpoolFull, SpoolFailed) as error:
            reason = "spool_full" if isinstance(error, SpoolFull) else "spool_failed"
            return self._store_what_matters_most(events, was, reason, str(error))
        if was == "buffered":
            self._telemetry.spooled(len(events))
        return len(events)

    def _store_what_matters_most(self, events: Sequence[Event], was: str, reason: str, error: str) -> int:
        """Let trades go first: those that come, then those on disk that were not sent yet."""
        trades = [event for event in events if event.route.topic == self._refetchable]
        others = [event for event in events if event.route.topic != self._refetchable]
        self._telemetry.dropped(trades, reason, was=was, error=error)
        if not others:
            return 0
        try:
            room = sum(len(event.value) + 200 for event in others)
            evicted = self._spool.evict(self._refetchable, room, self._sent_up_to)
            self._telemetry.dropped(evicted, reason, was="spooled", error=error)
            self._spool.append(others)
        except (SpoolFull, SpoolFailed) as again:
            self._telemetry.dropped(others, reason, was=was, error=str(again))
            return 0
        if was == "buffered":
            self._telemetry.spooled(len(others))
        return len(others)

    # Fates

    def _settled(self, events: list[Event], error: BaseException | None, fate: Fate) -> None:
        """Take note of the fate of records; runs on the producer's I/O thread, so it only notes and wakes."""
        if error is None:
            if self._recording:
                self._acknowledged.append(events)
                self._wake.set()
            size = sum(len(event.value) for event in events)
            self._telemetry.acknowledged(events, size)
            self._sink.in_flight.settle(len(events), size)
            return
        if not fate.poison:
            self._sink.break_off(error)  # first: the drainer must not send through this producer what came back
        self._returned.append(_Returned(events, error, fate))
        self._wake.set()

    # The drainer

    def _drain(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()
            try:
                self._step()
            except SpoolFailed as error:
                self._telemetry.spool_failing(str(error))
                self._closing.wait(_TICK_SECONDS)

    def _step(self, *, final: bool = False) -> None:
        ready = self._sink.ready and not final  # asked first: what an ended producer returned is there by then
        while self._returned:
            self._take_back(self._returned[0])
            self._returned.popleft()  # not before: `accept` looks whether there are any
        try:
            self._forget_acknowledged()
        except SpoolFailed as error:  # a full disk may refuse even this; the rest is sent all the same
            self._telemetry.spool_failing(str(error))
        stalled = self._sink.in_flight.stalled_seconds > _STALLED_SECONDS
        self._secure(stalled=stalled)
        if ready and not self._direct:
            self._send_from_disk(stalled=stalled)
        self._dead_letters.forward()

    def _take_back(self, returned: _Returned) -> None:
        events = returned.events
        if returned.fate.poison:
            self._bury(returned)
        else:
            self._store_again(events, maybe_written=returned.fate.maybe_written)
        self._sink.in_flight.settle(len(events), sum(len(event.value) for event in events))

    def _store_again(self, events: list[Event], *, maybe_written: bool) -> None:
        """See to it that events are on disk and are sent again, in their order."""
        with self._lock:
            if self._direct:
                self._go_by_way_of_the_disk(self._next - 1)
            self._sent_up_to = min(self._sent_up_to, *(event.seq - 1 for event in events))
            absent = self._spool.absent(events)
            kept = len(events) - len(absent) + self._store(absent, "in_flight")
            self._telemetry.returned(kept, possible_duplicates=kept * maybe_written)

    def _bury(self, returned: _Returned) -> None:
        reason, error = type(returned.error).__name__, str(returned.error)
        try:
            self._spool.bury(returned.events, reason, error)
            self._telemetry.dead_lettered(returned.events, reason, error)
        except SpoolFailed as failure:
            self._telemetry.dropped(returned.events, "spool_failed", was="in_flight", error=str(failure))

    def _forget_acknowledged(self) -> None:
        while self._acknowledged:
            on_disk_up_to = self._spool.last_seq
            self._to_remove += [event.seq for event in self._acknowledged.popleft() if event.seq <= on_disk_up_to]
        if self._to_remove:
            self._spool.remove(self._to_remove)
            self._to_remove.clear()
        with self._lock:
            if self._direct and not self._spool.count:
                self._recording = False

    def _secure(self, *, stalled: bool) -> None:
        """See to it that what waits, and in a stall all that is in flight, is on disk as well."""
        now = time.monotonic()
        if stalled and self._direct:
            self._probe_at = now + _PROBE_SECONDS
            with self._lock:
                self._go_by_way_of_the_disk(self._next - 1)
        elif now < self._look_at:
            return
        self._look_at = now + _TICK_SECONDS
        patience = min(_LATE_SECONDS + self._sink.in_flight.lingering_seconds, _LATEST_SECONDS)
        self._late = self._sink.count_late(now - patience)
        if stalled or self._late:
            self._write_late(now if stalled else now - patience)

    def _write_late(self, before: float) -> None:
        """Write what is in flight since before then; it is not sent from the disk unless it comes back."""
        self._recording = True  # first: what is acknowledged from here on has to be deleted on disk
        again = self._again_at is not None and time.monotonic() >= self._again_at
        if again:
            self._again_at = None
        events = sorted(self._sink.late(before, again=again), key=_seq)
        for start in range(0, len(events), _WRITE_AT_ONCE):
            try:
                self._spool.append(events[start : start + _WRITE_AT_ONCE])
            except (SpoolFull, SpoolFailed) as error:
                self._telemetry.not_secured(len(events) - start, str(error))
                self._again_at = time.monotonic() + _AGAIN_SECONDS
                return

    def _send_from_disk(self, *, stalled: bool) -> None:
        """Send what comes next on disk; return to the direct mode when there is nothing."""
        now = time.monotonic()
        if self._sink.in_flight.records - self._late >= _DRAIN_IN_FLIGHT or (stalled and now < self._probe_at):
            return
        self._probe_at = now + _PROBE_SECONDS
        with self._lock:  # `accept` cannot come between, nor evict what is about to be sent
            before = self._sent_up_to
            events = self._spool.read(before, _PROBE if stalled else _READ_AT_ONCE)
            if not events and stalled:
                return
            if not events:
                self._direct = True
                self._telemetry.spooling_ended()
                return
            self._sent_up_to = events[-1].seq
        # What came back meanwhile is not yet subtracted from _sent_up_to, and a next producer may be open soon.
        taken = 0 if self._returned else self._sink.send(events)
        self._telemetry.resumed(taken)
        if taken == len(events):
            self._wake.set()  # for the next ones
            return
        with self._lock:
            self._sent_up_to = events[taken - 1].seq if taken else before


def _seq(event: Event) -> int:
    return event.seq
