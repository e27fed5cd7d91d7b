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
from src.lost import OnDisk, ids_of
from src.second_copies import SecondCopies
from src.spool import SPOILED, SpoolDamaged, SpoolFailed, SpoolFull
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from src.events import Event
    from src.kafka_fates import Fate
    from src.kafka_producer import KafkaSink
    from src.lost import Lost
    from src.spool import Spool
    from src.telemetry import Telemetry

_READ_AT_ONCE = 2_000
_DRAIN_IN_FLIGHT = 20_000  # short queues are fast queues
_TICK_SECONDS = 0.2
_STALLED_SECONDS = 1.0
_PROBE = 100
_PROBE_SECONDS = 1.0
"""So many events are sent so often while nothing is acknowledged: what stalls may be one partition alone."""
_TELLING_SECONDS = 1.0
"""For the fates that the producer's thread is telling of: it takes no lock, and far less."""
_DISK_SECONDS = 3.0
"""At the stop, for what goes to disk last, also when all other time is used up."""
_MOST_FOR_CLOSING = 0.25
"""Of all the time of a stop, for what happens by force at its end."""
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
    again by id (`Lost` remembers them), depth last.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - its neighbours
        self,
        sink: KafkaSink,
        spool: Spool,
        refetchable: str,
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],
        lost: Lost,
    ) -> None:
        self._sink = sink
        self._spool = spool
        self._lost = lost
        self._refetchable = refetchable
        self._telemetry = telemetry
        # guards _next, _direct, _sent_up_to, _not_to_go, _files_damaged, _resuming and _on_disk
        self._lock = threading.Lock()
        self._next = spool.last_seq + 1
        self.first_seq = self._next
        """The number of the first event of this run."""
        self._settled_up_to = spool.last_seq if not spool.count else 0
        self._asked = threading.Event()
        self._held = False
        self._direct = not spool.count
        self._sent_up_to = 0 if spool.count else spool.last_seq
        """Of what is on disk, everything up to this number is in flight or acknowledged."""
        self._not_to_go: set[int] = set()
        """When some of what was in flight has come back: the rest, which may follow, and what Kafka has by now."""
        self._recording = not self._direct
        """Whether acknowledged events may be on disk, so that they have to be deleted there."""
        self._maybe_sent_before = bool(spool.count)
        """Whether a killed run may have sent some of what is on disk, and that is not counted yet."""
        self._copies = SecondCopies(sink, spool, telemetry)
        self._probe_at = 0.0
        self._files_damaged = 0
        self._resuming: list[Event] = []
        """What was read and is on its way to the sink, counted as in flight by now."""
        self._on_disk = OnDisk()
        self._acknowledged: deque[list[Event]] = deque()
        self._to_remove: list[int] = []
        self._returned: deque[_Returned] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._drainer = Worker("spool-drainer", self._drain, on_exit)
        self._closer = Worker("spool-closer", self._leave_on_disk, on_exit)
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

    def close_seconds(self, deadline: Deadline) -> float:
        """Return what is kept for `close` of the shutdown's time; of a short one a part."""
        return min(self._sink.FORCE_SECONDS, deadline.seconds * _MOST_FOR_CLOSING)

    def accept(self, events: list[Event]) -> None:
        """Take a batch: hand it to the sink, or write it to disk."""
        with self._lock:
            for number, event in enumerate(events, self._next):
                event.seq = number
            self._next += len(events)
            self._telemetry.flushed(events)
            # Nothing overtakes what has come back, even when the next producer is open already.
            taken = self._hand_over(events) if self._direct and not self._returned else 0
            if taken == len(events):
                return
            if self._direct:
                self._go_by_way_of_the_disk(events[taken].seq - 1)
            self._store(events[taken:], "buffered")

    def _hand_over(self, events: list[Event]) -> int:
        """Hand events of the buffer to the sink; return how many it took."""
        self._telemetry.offered(len(events))
        taken = self._sink.send(events)
        self._telemetry.handed_over(taken, len(events) - taken)
        return taken

    def hold(self) -> None:
        """Send nothing from disk until `release`: it may be in Kafka; before `start`."""
        self._held = True

    def release(self) -> None:
        """Send from disk from here on."""
        self._held = False
        self._wake.set()

    def was_left(self, events: Sequence[Event]) -> None:
        """Take note of what an earlier run has left on disk, and Kafka does not have."""
        with self._lock:
            self._on_disk.add(events)

    @property
    def most_sent_from_disk(self) -> int:
        """How many of the first events on disk a killed run may have sent, at most."""
        return 2 * self._sink.in_flight.max_records + _DRAIN_IN_FLIGHT

    def settled_up_to(self) -> int:
        """Return a number up to which every event is in Kafka, or is known never to be there.

        It is found out by the drainer after somebody asked, so it may lag; it never goes back.
        """
        self._asked.set()
        self._wake.set()
        return self._settled_up_to

    def finish(self, deadline: Deadline) -> None:
        """Deliver by the deadline what Kafka takes, when nothing is accepted any more."""
        self._sink.hurry()
        connecting = Deadline(_CONNECTING_SECONDS)
        while deadline.remaining() > self.close_seconds(deadline) and self._has_hope(connecting):
            self._closing.wait(0.02)

    def close(self, deadline: Deadline) -> None:
        """Leave on disk what is not delivered, close everything; a disk that does not answer is not waited for."""
        self._closing.set()
        self._wake.set()
        self._drainer.join(deadline.remaining())
        self._sink.close(deadline)
        self._closer.start()
        if not self._closer.join(max(deadline.remaining(), _DISK_SECONDS)):
            self._telemetry.spool_failing("it does not answer")

    def _leave_on_disk(self) -> None:
        self._drainer.join(threading.TIMEOUT_MAX)  # two would tell of the same events
        try:
            self._last_step()
            if not self._maybe_sent_before:
                self._spool.nothing_sent()  # whatever may be there twice is counted by now
        except SpoolFailed as error:
            self._telemetry.spool_failing(str(error))
        self._spool.close()

    def _last_step(self) -> None:
        try:
            self._step(final=True)
        except SpoolDamaged:
            self._mend()
            self._step(final=True)

    def _has_hope(self, connecting: Deadline) -> bool:
        on_their_way = self._sink.in_flight.records + self._sink.copies_in_flight.records
        # In the direct mode all that is on disk was sent: a full disk may only refuse to let go of it.
        left = on_their_way or (self._spool.count and not self._direct and not self._held)
        absent = not self._sink.ready and connecting.expired
        return bool(left) and not absent and self._drainer.alive

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
            try:
                self._spool.append(events)
            except SpoolDamaged:
                self._begin_anew()
                self._spool.append(events)
        except (SpoolFull, SpoolFailed) as error:
            reason = "spool_full" if isinstance(error, SpoolFull) else "spool_failed"
            return self._store_what_matters_most(events, was, reason, str(error))
        self._on_disk.add(events)
        if was == "buffered":
            self._telemetry.spooled(len(events))
        return len(events)

    def _store_what_matters_most(self, events: Sequence[Event], was: str, reason: str, error: str) -> int:
        """Let trades go first: those that come, then those on disk that were not sent yet."""
        trades = [event for event in events if self._refetches(event)]
        others = [event for event in events if not self._refetches(event)]
        self._drop(trades, reason, was, error)
        if not others:
            return 0
        try:
            room = sum(len(event.value) + 200 for event in others)
            evicted = self._spool.evict(self._refetchable, room, self._sent_up_to, self._not_to_go)
            self._drop(evicted, reason, "spooled", error)
            self._spool.append(others)
        except (SpoolFull, SpoolFailed) as again:
            self._drop(others, reason, was, str(again))
            return 0
        self._on_disk.add(others)
        if was == "buffered":
            self._telemetry.spooled(len(others))
        return len(others)

    def _refetches(self, event: Event) -> bool:
        return event.route.topic == self._refetchable

    def _drop(self, events: Sequence[Event], reason: str, was: str, error: str = "") -> None:
        """Count events that are lost, under the lock, and remember those that can be fetched again."""
        self._telemetry.dropped(events, reason, was=was, error=error)
        self._on_disk.gone(events)
        self._lost.note(ids_of(events))

    def _begin_anew(self) -> None:
        """Set a damaged file aside, under the lock; what waits in it is lost, what is in flight is not."""
        self._sent_up_to = max(self._sent_up_to, self._spool.last_seq)
        self._files_damaged += 1
        self._on_disk.gone(self._on_their_way())
        self._note_acknowledged()  # what was being told of meanwhile too
        self._to_remove.clear()
        named = self._spool.damaged
        try:
            self._spool.replace()
        finally:  # a disk that takes no new file either gives nothing back: it is tried again
            if self._spool.damaged != named:
                self._telemetry.spool_damaged(str(self._spool.damaged))
            lost = self._on_disk.clear()
            self._telemetry.lost_on_disk(lost)
            self._lost.note(lost)
        self._copies.write_again()

    def _on_their_way(self) -> list[Event]:
        """Return what need not be read from disk any more: in flight, come back, or just read.

        What is in none of these lists is being told about at this moment, which takes no lock of ours.
        """
        patience = Deadline(_TELLING_SECONDS)
        while True:
            in_flight = self._sink.unacknowledged()
            returned = [event for each in tuple(self._returned) for event in each.events]
            if len(in_flight) + len(returned) == self._sink.in_flight.records or patience.expired:
                return [*in_flight, *returned, *self._resuming]
            self._closing.wait(_TELLING_SECONDS / 100)

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
            except SpoolDamaged:
                self._mend()
            except SpoolFailed as error:
                self._telemetry.spool_failing(str(error))
                self._closing.wait(_TICK_SECONDS)

    def _mend(self) -> None:
        try:
            with self._lock:
                self._begin_anew()
        except SpoolFailed as error:
            self._telemetry.spool_failing(str(error))
            self._go_on_without_a_disk()
            self._closing.wait(_TICK_SECONDS)

    def _go_on_without_a_disk(self) -> None:
        """Hand over directly what Kafka takes: nothing that it could overtake is on disk, or gets there."""
        with self._lock:
            if self._sink.ready and not (self._direct or self._held or self._returned):
                self._direct = True
                self._telemetry.spooling_ended()

    def _step(self, *, final: bool = False) -> None:
        ready = self._sink.ready and not final  # asked first: what an ended producer returned is there by then
        while self._returned:
            self._take_back(self._returned[0])
            self._returned.popleft()  # not before: `accept` looks whether there are any
        try:
            self._forget_acknowledged()
        except SpoolDamaged:
            raise
        except SpoolFailed as error:  # a full disk may refuse even this; the rest is sent all the same
            self._telemetry.spool_failing(str(error))
        else:
            if self._not_to_go and (ready or not self._sink.in_flight.records):
                with self._lock:
                    self._not_to_go = set()
        stalled = self._sink.in_flight.stalled_seconds > _STALLED_SECONDS
        if stalled and self._direct:
            self._copies.look_at_once()
            self._probe_at = time.monotonic() + _PROBE_SECONDS
            with self._lock:
                self._go_by_way_of_the_disk(self._next - 1)
        if self._copies.wanted(stalled=stalled):
            self._recording = True  # first: what is acknowledged from here on has to be deleted on disk
            self._copies.write()
        if ready and not self._direct and not self._held:
            self._count_sent_before()
            self._send_from_disk(stalled=stalled)
        if self._asked.is_set():
            self._asked.clear()
            self._look_what_is_settled()
        self._dead_letters.forward()

    def _look_what_is_settled(self) -> None:
        """Find the lowest number in flight or on disk; nothing can be handed to the sink meanwhile.

        What left the list of the unacknowledged and has not been told about yet still counts as in flight, so
        when there are as many in the list as are counted, nothing is on its way from one place to another.
        """
        with self._lock:
            counted = self._sink.in_flight.records
            in_flight = self._sink.unacknowledged()
            if len(in_flight) == counted and not self._returned:
                lowest = min((event.seq for event in in_flight), default=self._next)
                self._settled_up_to = max(self._settled_up_to, min(lowest, self._spool.first_seq or lowest) - 1)

    def _take_back(self, returned: _Returned) -> None:
        events = returned.events
        if returned.fate.poison:
            self._bury(returned)
            with self._lock:
                self._on_disk.gone(events)
        else:
            self._store_again(events, maybe_written=returned.fate.maybe_written)
        self._sink.in_flight.settle(len(events), sum(len(event.value) for event in events))

    def _store_again(self, events: list[Event], *, maybe_written: bool) -> None:
        """See to it that events are on disk and are sent again, in their order."""
        with self._lock:
            if self._direct:
                self._go_by_way_of_the_disk(self._next - 1)
            if not self._not_to_go:
                self._not_to_go = {event.seq for event in self._on_their_way()}
                self._note_acknowledged()
                self._not_to_go.update(self._to_remove)
            self._not_to_go.difference_update(event.seq for event in events)
            self._on_disk.add(events)
            absent, files_damaged = self._spool.absent(events), self._files_damaged
            stored = self._store(absent, "in_flight")
            if files_damaged != self._files_damaged:  # what was there is there no more
                told = {event.seq for event in absent}
                stored += self._store([event for event in events if event.seq not in told], "in_flight")
                absent = events
            kept = len(events) - len(absent) + stored
            fetched = sum(self._refetches(event) for event in absent) if stored < len(absent) else 0
            self._sent_up_to = min(self._sent_up_to, *(event.seq - 1 for event in events))
            self._telemetry.returned(kept, possible_duplicates=(kept + fetched) * maybe_written)

    def _bury(self, returned: _Returned) -> None:
        reason, error = type(returned.error).__name__, str(returned.error)
        try:
            try:
                self._spool.bury(returned.events, reason, error)
            except SpoolDamaged:
                with self._lock:
                    self._begin_anew()
                self._spool.bury(returned.events, reason, error)
            self._telemetry.dead_lettered(returned.events, reason, error)
        except SpoolFull as failure:
            self._telemetry.dropped(returned.events, "spool_full", was="in_flight", error=str(failure))
        except SpoolFailed as failure:
            self._telemetry.dropped(returned.events, "spool_failed", was="in_flight", error=str(failure))

    def _forget_acknowledged(self) -> None:
        with self._lock:
            self._note_acknowledged()
        if self._to_remove:
            self._spool.remove(self._to_remove)
            self._to_remove.clear()
        with self._lock:
            is_over = self._recording and self._direct and not self._spool.count
            if is_over:
                self._recording = False
                self._on_disk.clear()
        if is_over:
            self._spool.shrink()

    def _note_acknowledged(self) -> None:
        while self._acknowledged:
            on_disk_up_to = self._spool.last_seq
            events = [event for event in self._acknowledged.popleft() if event.seq <= on_disk_up_to]
            self._to_remove += [event.seq for event in events]
            self._on_disk.gone(events)

    def _send_from_disk(self, *, stalled: bool) -> None:
        """Send what comes next on disk; return to the direct mode when there is nothing."""
        now = time.monotonic()
        waiting = self._sink.in_flight.records - self._copies.late
        if waiting >= _DRAIN_IN_FLIGHT or (stalled and now < self._probe_at):
            return
        self._probe_at = now + _PROBE_SECONDS
        with self._lock:  # `accept` cannot come between, nor evict what is about to be sent
            before, files_damaged = self._sent_up_to, self._files_damaged
            events = self._spool.read(before, _PROBE if stalled else _READ_AT_ONCE)
            self._bury_spoiled()
            if not events and not stalled:
                self._direct = True
                self._telemetry.spooling_ended()
            if not events:
                return
            self._sent_up_to = events[-1].seq
            if self._to_remove:  # the disk has refused to
                in_kafka = set(self._to_remove)
                events = [event for event in events if event.seq not in in_kafka]
            self._resuming = events
            self._telemetry.offered(len(events), "spooled")
        if not events:
            return
        self._note_sending(events[-1].seq)
        # What came back meanwhile is not yet subtracted from _sent_up_to, and a next producer may be open soon.
        taken = 0 if self._returned else self._sink.send(events)
        with self._lock:
            self._resuming = []
            self._telemetry.handed_over(taken, len(events) - taken, "spooled")
            if files_damaged != self._files_damaged:
                self._drop(events[taken:], "spool_damaged", "spooled")
            elif taken < len(events):
                self._sent_up_to = events[taken - 1].seq if taken else before
        if taken == len(events):
            self._wake.set()  # for the next ones

    def _count_sent_before(self) -> None:
        """Count what a killed run may have sent, without what was found in Kafka, before it is sent again."""
        if self._maybe_sent_before:
            self._telemetry.sent_before(self._spool.count_sent())
            self._maybe_sent_before = False

    def _note_sending(self, up_to: int) -> None:
        """Keep on disk what may be in Kafka from here on; a full disk is no reason not to send it."""
        try:
            self._spool.sending(up_to)
        except SpoolFailed as error:
            self._telemetry.spool_failing(str(error))

    def _bury_spoiled(self) -> None:
        for event in self._spool.take_spoiled():
            self._spool.bury([event], *SPOILED)
            self._telemetry.dead_lettered([event], *SPOILED, was="spooled")
