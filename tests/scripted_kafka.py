"""A sink in memory that works: it writes per key in order, and stalls, fails or loses answers on command."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Self

from src.in_flight import InFlight
from src.kafka_fates import Fate, ProducerEnded

if TYPE_CHECKING:
    from src.deadline import Deadline
    from src.events import Event
    from src.kafka_fates import Settle

Line = tuple[str, bytes | None]
"""What keeps its order: topic and key."""


class Refused(Exception):  # noqa: N818 - named after the fact
    """What this Kafka says to a record."""


class Stallable(InFlight):
    """Tells a stall when the test says so, or by the clock."""

    stalled: float | None = None

    @property
    def stalled_seconds(self) -> float:
        return super().stalled_seconds if self.stalled is None else self.stalled * bool(self.records)


class ScriptedKafka:
    """Stands in for `KafkaSink`; every verb below `The script` is the test's.

    What is sent queues by topic and key, as in a producer's accumulator; `answer` is what its I/O thread does
    with the oldest batch of a line. A failure breaks the producer off; `end` gives back what it held, `reopen`
    is the next producer. With `run` all of that happens on threads of its own.
    """

    FORCE_SECONDS = 0.5
    dead_letter_producer = None  # theirs stay in the table

    def __init__(self, records: int = 200_000, size: int = 100_000_000, *, is_open: bool = True) -> None:
        self.in_flight = Stallable(records, size)
        self.copies_in_flight = Stallable(records, size)
        self.written: list[Event] = []
        self._known: set[bytes] = set()
        self._failed: set[Line] = set()
        self._lock = threading.Lock()
        self._answering = threading.RLock()  # what only a producer's I/O thread does, one thing at a time
        self._queues: dict[Line, deque[list[Event]]] = defaultdict(deque)
        self._unsettled: dict[int, tuple[float, list[Event]]] = {}
        self._told_late: set[int] = set()
        self.aged = 0.0
        """Everything that waits is taken for so many seconds older."""
        self._open = is_open
        self._broken = False
        self._closed = False
        self._settle: Settle

    # What `Delivery` uses

    def settle_with(self, settle: Settle) -> None:
        self._settle = settle

    def start(self) -> None:
        pass

    @property
    def ready(self) -> bool:
        return self._open and not self._broken

    def send(self, events: list[Event]) -> int:
        with self._lock:
            if not self.ready:
                return 0
            admitted = self.in_flight.admit(events)
            groups: dict[Line, list[Event]] = defaultdict(list)
            for event in events[:admitted]:
                groups[event.route.topic, event.route.key].append(event)
            for line, group in groups.items():
                self._unsettled[id(group)] = (time.monotonic(), group)
                self._queues[line].append(group)
            return admitted

    def unacknowledged(self) -> list[Event]:
        return [event for _, group in self._unsettled.copy().values() for event in group]

    def count_late(self, before: float) -> int:
        return len(self._waiting(before))

    def late(self, before: float, *, again: bool = False) -> list[Event]:
        new = [event for event in self._waiting(before) if again or event.seq not in self._told_late]
        self._told_late |= {event.seq for event in new}
        return new

    def _waiting(self, before: float) -> list[Event]:
        groups = self._unsettled.copy().values()
        return [event for since, group in groups if since - self.aged < before for event in group]

    def break_off(self, error: BaseException) -> None:  # noqa: ARG002
        self._broken = True

    def hurry(self) -> None:
        pass

    def close(self, deadline: Deadline) -> None:  # noqa: ARG002
        self._closed = True
        self._broken = True
        self.end()

    # The script

    @property
    def broken(self) -> bool:
        return self._broken

    def lines(self) -> list[Line]:
        """Where something waits for an answer."""
        return [line for line, queue in list(self._queues.items()) if queue]

    def answer(self, line: Line, verdict: str = "ack") -> None:
        """Give the oldest batch of a line its fate: ack, fail, poison, or lost (written, but nobody knows)."""
        with self._answering:
            self._answer(line, verdict)

    def _answer(self, line: Line, verdict: str) -> None:
        if self._broken or not self._open or not self._queues[line]:
            return
        group = self._queues[line].popleft()
        if verdict == "poison" and any(event.value in self._known for event in group):
            verdict = "ack"  # it has taken it once already
        if verdict in ("ack", "lost"):
            self._write(group)
        if verdict not in ("ack", "poison"):
            self._failed.add(line)
        del self._unsettled[id(group)]
        if verdict == "ack":
            self._settle(group, None, Fate())
        elif verdict == "poison":
            self._settle(group, Refused("too large"), Fate(poison=True))
        else:
            self._settle(group, Refused(verdict), Fate(maybe_written=verdict == "lost"))

    def lose_the_producer(self) -> None:
        """Break it off without an answer to anything."""
        self._broken = True

    def end(self, chance: random.Random | None = None) -> None:
        """End a broken producer: what it held comes back; the first batch of a line may have been written."""
        with self._answering:
            self._end(chance)

    def _end(self, chance: random.Random | None) -> None:
        with self._lock:
            queues, self._queues = self._queues, defaultdict(deque)
        for line, queue in queues.items():
            for number, group in enumerate(queue):
                if self._unsettled.pop(id(group), None) is None:
                    continue
                # A producer sends one batch of a partition at a time, and none behind one that failed.
                may_be_sent = number == 0 and line not in self._failed
                sent = may_be_sent and chance is not None and chance.random() < 0.5
                if sent:
                    self._write(group)
                self._settle(group, ProducerEnded("ended"), Fate(maybe_written=sent))

    def _write(self, group: list[Event]) -> None:
        self.written += group
        self._known.update(event.value for event in group)

    def reopen(self) -> None:
        """Open the next producer."""
        with self._lock:
            assert not any(self._queues.values()) or not self._broken
            if not self._closed:
                self._failed.clear()
                self._broken = False
                self._open = True


class Clockwork:
    """Runs a `ScriptedKafka` on threads of its own: answers flow, and `verdicts` come among them."""

    def __init__(self, kafka: ScriptedKafka, seed: int = 7, pace: float = 0.0005) -> None:
        self._kafka = kafka
        self._chance = random.Random(seed)
        self._pace = pace
        self.verdicts: deque[str] = deque()
        self.flowing = threading.Event()
        self.flowing.set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted-kafka", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._end.wait(self._pace):
            if self._kafka.broken:
                self._kafka.end(self._chance)
                self._end.wait(self._chance.choice((0.01, 0.02, 0.1)))  # the real one waits a second
                self._kafka.reopen()
            elif self.flowing.is_set() and (lines := self._kafka.lines()):
                verdict = self.verdicts.popleft() if self.verdicts else "ack"
                for line in lines if verdict == "ack" else [self._chance.choice(lines)]:
                    self._kafka.answer(line, verdict)
