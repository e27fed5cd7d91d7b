"""The service's own records on their way to Kafka: in order, by way of a file, holding up nothing."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from src.spool_file import check, set_aside
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from src.deadline import Deadline
    from src.telemetry import Telemetry

FILE = "notes.sqlite3"
MOST_IN_MEMORY = 10_000
MOST_ON_DISK = 200_000
_AT_ONCE = 200
_STEP_SECONDS = 0.5  # between looks for a producer, and between two tries to write
_REFUSED_SECONDS = 5.0  # before what the topic did not take is offered again
_JOIN_SECONDS = 2.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS notes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB, value BLOB, timestamp_ms INTEGER);
"""


class Note(NamedTuple):
    """A record to be; `timestamp_ms` becomes its time in Kafka."""

    key: bytes
    value: bytes
    timestamp_ms: int


class Sender(Protocol):
    """What the outbox needs of the sink."""

    def aside_producer(self, topic: str) -> object | None:
        """Return what sends to this topic now; when it changes, answers of the one before may never come."""

    def send_aside(
        self, topic: str, key: bytes | None, value: bytes, *, timestamp_ms: int, answered: Callable[[bool], None]
    ) -> bool:
        """Send without waiting; return whether an answer will come."""

    def hurry(self) -> None:
        """Send what lingers now."""


class NoteFile:
    """Notes on disk by number, lowest first: SQLite in WAL mode; every method may raise `sqlite3.Error`.

    A file that SQLite finds damaged is set aside under another name: `damaged` names it.
    """

    def __init__(self, path: Path) -> None:
        self.damaged: Path | None = None
        try:
            self._database = _connected(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # the disk, not the contents
                raise
            self.damaged = set_aside(path)
            self._database = _connected(path)
        self.count: int = self._database.execute("SELECT COUNT(*) FROM notes").fetchone()[0]

    def append(self, notes: Iterable[Note]) -> int:
        """Write notes for good; return how many of the oldest had to make room."""
        rows = list(notes)
        with self._database as database:
            database.executemany("INSERT INTO notes VALUES (NULL, ?, ?, ?)", rows)
            beyond = max(0, self.count + len(rows) - MOST_ON_DISK)
            oldest = "DELETE FROM notes WHERE id IN (SELECT id FROM notes ORDER BY id LIMIT ?)"
            database.execute(oldest, (beyond,))
        self.count += len(rows) - beyond
        return beyond

    def first(self, limit: int) -> dict[int, Note]:
        """Return the oldest notes by number."""
        query = "SELECT id, key, value, timestamp_ms FROM notes ORDER BY id LIMIT ?"
        return {number: Note(*row) for number, *row in self._database.execute(query, (limit,))}

    def remove(self, numbers: Iterable[int]) -> None:
        """Delete notes; numbers that are not there do no harm."""
        with self._database as database:
            gone = database.executemany(
                "DELETE FROM notes WHERE id = ?", [(number,) for number in numbers]
            ).rowcount
        self.count -= gone

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class Outbox:
    """Posts notes to one topic, each once it is on disk, and deletes it there when Kafka has acknowledged it.

    `post` never waits: it puts a note into memory (10,000 at most; beyond that the oldest are lost, counted and
    logged) and wakes the thread that does the rest. What is on disk survives `kill -9` and is sent by the next
    run, a second time when only its answer was lost. The file holds 200,000; beyond that the oldest are lost. When
    the disk fails, notes stay in memory and go to Kafka from there. The folder is the spool's, which is locked.
    """

    def __init__(
        self, folder: Path, topic: str, sender: Sender, telemetry: Telemetry, on_exit: Callable[[Worker], None]
    ) -> None:
        self._path = folder / FILE
        self._topic = topic
        self._sender = sender
        self._telemetry = telemetry
        self._lock = (
            threading.Lock()
        )  # guards _posted, _lost and what is added to _fresh; the rest is the worker's
        self._posted: deque[Note] = deque()
        self._lost = 0
        self._fresh: dict[int, Note] = {}
        """By numbers below 0: taken from _posted, not on disk."""
        self._numbered = 0
        self._file: NoteFile | None = None
        self._under_way: set[int] = set()
        self._attempt = 0
        """Counts producers and files: an answer to an earlier attempt is too late to count."""
        self._answers: deque[tuple[int, int, bool]] = deque()
        self._done: set[int] = set()
        """What Kafka has and the disk still holds."""
        self._producer: object | None = None
        self._not_before = 0.0
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._worker = Worker("ledger-writer", self._run, on_exit)

    def start(self) -> None:
        """Begin with what an earlier run has left."""
        self._worker.start()

    def post(self, note: Note) -> None:
        """Take a note; from any thread, without waiting."""
        with self._lock:
            self._posted.append(note)
            if len(self._posted) > MOST_IN_MEMORY:
                self._posted.popleft()
                self._lost += 1
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many notes Kafka has not acknowledged."""
        with self._lock:
            return len(self._posted) + len(self._fresh) + self._left_on_disk

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._worker.alive

    def close(self, deadline: Deadline) -> None:
        """Send what Kafka takes by the deadline, leave the rest on disk; what is posted later is lost.

        While the sink is open; it is told to hurry.
        """
        self._sender.hurry()
        while self.waiting and self._producer is not None and self._worker.alive and not deadline.expired:
            self._closing.wait(0.01)
        self._closing.set()
        self._wake.set()
        self._worker.join(_JOIN_SECONDS)

    # The worker

    def _run(self) -> None:
        while not self._closing.is_set():
            self._step()
            self._wake.wait(_STEP_SECONDS)
            self._wake.clear()
        self._step()
        if left := len(self._fresh) + len(self._posted):
            self._telemetry.ledger_records_lost(left, "disk")
        if self._file is not None:
            with contextlib.suppress(sqlite3.Error):
                self._file.close()

    def _step(self) -> None:
        self._take_answers()
        self._take_posted()
        try:
            self._write()
        except (sqlite3.Error, OSError) as error:
            self._telemetry.ledger_disk_failing(str(error))
            self._close_if_damaged(error)
        self._offer()
        self._telemetry.ledger_backlog(self.waiting)

    def _take_answers(self) -> None:
        refused = False
        while self._answers:
            attempt, number, taken = self._answers.popleft()
            if attempt != self._attempt:
                continue
            self._under_way.discard(number)
            refused = refused or not taken
            if taken:
                self._telemetry.ledger_record_written()
                if self._fresh.pop(number, None) is None:
                    self._done.add(number)
        if refused:
            self._not_before = time.monotonic() + _REFUSED_SECONDS
        if (producer := self._sender.aside_producer(self._topic)) is not self._producer:
            self._producer = producer
            self._not_before = 0.0
            self._start_anew()

    def _start_anew(self) -> None:
        """Wait for no answer any more."""
        self._attempt += 1
        self._under_way.clear()

    def _take_posted(self) -> None:
        with self._lock:
            for note in self._posted:
                self._numbered -= 1
                self._fresh[self._numbered] = note
            self._posted.clear()
            lost, self._lost = self._lost, 0
        surplus = [number for number in self._fresh if number not in self._under_way][:-MOST_IN_MEMORY]
        for number in surplus:
            del self._fresh[number]
        if lost + len(surplus):
            self._telemetry.ledger_records_lost(lost + len(surplus), "memory")

    def _write(self) -> None:
        if self._file is None:
            self._file = NoteFile(self._path)
            if self._file.damaged is not None:
                self._telemetry.ledger_damaged(str(self._file.damaged))
        if self._done:
            self._file.remove(self._done)
            self._done.clear()
        if self._fresh and not any(number < 0 for number in self._under_way):
            if lost := self._file.append(self._fresh.values()):
                self._telemetry.ledger_records_lost(lost, "disk_full")
            self._fresh.clear()

    def _close_if_damaged(self, error: Exception) -> None:
        """Let the file be opened anew, which sets it aside, when it was damaged under way."""
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if damaged and self._file is not None:
            with contextlib.suppress(sqlite3.Error):
                self._file.close()
            self._file = None
            self._done.clear()
            self._start_anew()

    def _offer(self) -> None:
        """Offer the next ones when none is under way."""
        if self._under_way or self._producer is None or time.monotonic() < self._not_before:
            return
        for number, note in self._next():
            self._under_way.add(number)
            answered = partial(self._answered, self._attempt, number)
            if not self._sender.send_aside(
                self._topic, note.key, note.value, timestamp_ms=note.timestamp_ms, answered=answered
            ):
                self._under_way.discard(number)
                self._not_before = time.monotonic() + _STEP_SECONDS
                return

    def _next(self) -> Sequence[tuple[int, Note]]:
        on_disk: dict[int, Note] = {}
        if self._file is not None and self._left_on_disk:
            try:
                on_disk = self._file.first(_AT_ONCE + len(self._done))
            except sqlite3.Error as error:
                self._telemetry.ledger_disk_failing(str(error))
                return ()
        left = [(number, note) for number, note in on_disk.items() if number not in self._done]
        return left[:_AT_ONCE] or list(self._fresh.items())[:_AT_ONCE]

    @property
    def _left_on_disk(self) -> int:
        return self._file.count - len(self._done) if self._file is not None else 0

    def _answered(self, attempt: int, number: int, taken: bool) -> None:  # noqa: FBT001 - the answer
        """Note an answer; on the producer's I/O thread."""
        self._answers.append((attempt, number, taken))
        self._wake.set()


def _connected(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=1.0)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = normal")
        database.executescript(_SCHEMA)
        check(database)
    except BaseException:
        database.close()
        raise
    return database
