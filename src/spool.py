"""Events on disk, in the order in which they were read: SQLite in WAL mode.

The file survives a killed process; what a power failure may take depends on `SPOOL_FSYNC` (SQLite's
`synchronous`: `normal` can lose the last moments, `full` nothing that `append` returned from).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from src.events import Event, Route, topic_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from config.settings import SpoolConfig
    from src.events import Topics

FILE = "events.sqlite3"
_ROW_OVERHEAD = 80  # bytes of a row beside its value: key, topic, type, SQLite's own
_FREE_CHECK_SECONDS = 1.0
_CLAIM_SECONDS = 3.0  # for a predecessor that is just stopping
_REFUSING_SECONDS = 30.0
_AT_ONCE = 500  # parameters of one statement
_PAGES = 2  # bytes of pages that a byte of rows takes at most: one row of half a page and more fills it
_CHECKED_BYTES = 512 * 1024**2
"""Up to this size a file is checked in full. SQLite's check goes through it backwards, which a disk gives a page
at a time unless it was just read: 170 s a gigabyte were seen. A larger file is only read through, row by row."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, topic TEXT, key BLOB, event_type TEXT, timestamp_ms INTEGER, value BLOB);
CREATE TABLE IF NOT EXISTS dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, died_ms INTEGER, reason TEXT, error TEXT,
    topic TEXT, key BLOB, event_type TEXT, timestamp_ms INTEGER, value BLOB);
"""
_COLUMNS = "seq, topic, key, event_type, timestamp_ms, value"


class SpoolFull(Exception):  # noqa: N818 - named after the fact
    """The spool's own limit, or the floor of free disk space, is reached; nothing was written."""


class SpoolFailed(Exception):  # noqa: N818 - named after the fact
    """The disk did not take or give something; the message is SQLite's."""


class SpoolUnusable(Exception):  # noqa: N818 - named after the fact
    """The folder cannot be used: not writable, or another process works on it; the message says which."""


class DeadLetter(NamedTuple):
    """An event that Kafka will never take, with the reason; `died_ms` is ms since the epoch."""

    id: int
    died_ms: int
    reason: str
    error: str
    topic: str
    key: bytes | None
    event_type: str
    timestamp_ms: int
    value: bytes


class Spool:
    """Events by sequence number; any thread may use it, one after the other.

    Bounded by bytes (`SPOOL_MAX_BYTES`) and by the floor of free disk space (`SPOOL_MIN_FREE_BYTES`): `append`
    raises `SpoolFull` beyond. A file that SQLite finds damaged is set aside under another name, never deleted:
    `damaged` names it. Raises `SpoolUnusable` when the folder cannot be worked with.
    """

    def __init__(self, config: SpoolConfig) -> None:
        self._config = config
        self._folder: Path = config.path
        self._lock = threading.Lock()  # guards the connection, the counts, what is unused, routes and _evicted
        self._routes: dict[tuple[str, bytes | None, str], Route] = {}
        self._free_checked_at = -_FREE_CHECK_SECONDS
        self._unused_bytes = 0  # of the file: what was deleted leaves room in it, which the disk does not see
        self._evicted: dict[str, tuple[int, int]] = {}
        """By topic: between these numbers nothing of it is left that `evict` has not taken."""
        self.damaged: Path | None = None
        self._refused_at = float("-inf")
        self._claim = _claimed(self._folder)
        self.count = self.bytes = self.last_seq = 0
        try:
            self._database = self._opened()
        except sqlite3.Error as error:
            os.close(self._claim)
            raise SpoolUnusable(f"{self._folder / FILE}: {error}") from error

    # Events

    def append(self, events: Sequence[Event]) -> None:
        """Write events for good; those that are there already stay as they are.

        Raises `SpoolFull` or `SpoolFailed`; then none of them was written.
        """
        if not events:
            return
        try:
            self._append(events)
        except (SpoolFull, SpoolFailed):
            self._refused_at = time.monotonic()
            raise

    def redirect(self, topics: Topics) -> int:
        """Let events of topics that are not in the settings any more go to those that took their place.

        Returns how many. Before anything is read.
        """
        query = "SELECT DISTINCT topic, event_type FROM events"
        with self._lock, self._transaction() as database:
            found = [row for row in database.execute(query).fetchall() if row[0] not in topics]
            return sum(
                database.execute(
                    "UPDATE events SET topic = ? WHERE topic = ? AND event_type = ?",
                    (topic_for(event_type, topics), topic, event_type),
                ).rowcount
                for topic, event_type in found
            )

    @property
    def max_bytes(self) -> int:
        """The bound on `bytes`."""
        return self._config.max_bytes

    @property
    def room(self) -> int:
        """Bytes that it still takes: to its own limit, or what the disk has above the floor, if that is less."""
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError:
            return 0
        on_disk = max(0, free - self._config.min_free_bytes) + self._unused_bytes
        return max(0, min(self._config.max_bytes - self.bytes, on_disk))

    @property
    def refusing(self) -> bool:
        """Whether something could not be written within the last half minute."""
        return time.monotonic() - self._refused_at < _REFUSING_SECONDS

    def _append(self, events: Sequence[Event]) -> None:
        with self._lock:
            new = self._not_there(events)
            if not new:
                return
            size = sum(_size(event) for event in new)
            if self.bytes + size > self._config.max_bytes:
                raise SpoolFull(f"SPOOL_MAX_BYTES ({self._config.max_bytes}) is reached")
            self._check_free_space(size)
            rows = [
                (each.seq, each.route.topic, each.route.key, each.route.event_type, each.timestamp_ms, each.value)
                for each in new
            ]
            with self._transaction() as database:
                database.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
            self.count += len(new)
            self.bytes += size
            self.last_seq = max(self.last_seq, new[-1].seq)
            for topic, (_, up_to) in tuple(self._evicted.items()):
                if new[0].seq <= up_to:  # it has come back, and may go as well
                    del self._evicted[topic]

    def absent(self, events: Sequence[Event]) -> list[Event]:
        """Return those events that are not on disk, by ascending sequence number."""
        with self._lock:
            return self._not_there(events)

    def read(self, after: int, limit: int) -> list[Event]:
        """Return up to `limit` events with sequence numbers above `after`, lowest first."""
        query = f"SELECT {_COLUMNS} FROM events WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
        with self._lock, _translated():
            return [self._event(*row) for row in self._database.execute(query, (after, limit))]

    @property
    def first_seq(self) -> int | None:
        """The lowest number on disk, None when there is none."""
        with self._lock, _translated():
            ((lowest,),) = self._database.execute("SELECT MIN(seq) FROM events").fetchall()
        return None if lowest is None else int(lowest)

    def remove(self, numbers: Sequence[int]) -> int:
        """Delete events by sequence number and return how many; numbers that are not there do no harm."""
        with self._lock:
            with self._transaction() as database:
                deleted = _delete(database, numbers)
            self._forget(deleted)
        return len(deleted)

    def evict(self, topic: str, size: int, not_before: int) -> list[Event]:
        """Delete the oldest events of a topic after `not_before`, of at least `size` bytes; return them."""
        query = f"SELECT {_COLUMNS} FROM events WHERE topic = ? AND seq > ? ORDER BY seq"  # noqa: S608
        victims: list[Event] = []
        with self._lock:
            begin, up_to = self._evicted.get(topic, (not_before, not_before))
            if not begin <= not_before <= up_to:
                begin = up_to = not_before
            with self._transaction() as database:
                for row in database.execute(query, (topic, up_to)):
                    victims.append(self._event(*row))
                    size -= _size(victims[-1])
                    if size <= 0:
                        break
                deleted = _delete(database, [event.seq for event in victims])
            self._forget(deleted)
            self._evicted[topic] = (begin, victims[-1].seq if size <= 0 and victims else max(up_to, self.last_seq))
        return victims

    # What Kafka will never take

    def bury(self, events: Sequence[Event], reason: str, error: str) -> None:
        """Move events to the dead letters."""
        now = time.time_ns() // 1_000_000
        rows = [
            (
                now,
                reason,
                error,
                each.route.topic,
                each.route.key,
                each.route.event_type,
                each.timestamp_ms,
                each.value,
            )
            for each in events
        ]
        with self._lock:
            with self._transaction() as database:
                database.executemany("INSERT INTO dead_letters VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
                deleted = _delete(database, [event.seq for event in events])
            self._forget(deleted)

    def dead_letters(self, after: int = 0, limit: int = 1000) -> list[DeadLetter]:
        """Return dead letters with ids above `after`, oldest first."""
        query = "SELECT * FROM dead_letters WHERE id > ? ORDER BY id LIMIT ?"
        with self._lock, _translated():
            return [DeadLetter(*row) for row in self._database.execute(query, (after, limit))]

    def discard_dead_letter(self, number: int) -> None:
        """Delete a dead letter that has a place elsewhere."""
        with self._lock, self._transaction() as database:
            database.execute("DELETE FROM dead_letters WHERE id = ?", (number,))

    def close(self) -> None:
        """Close the file and let others have it."""
        with self._lock:
            self._database.close()
            os.close(self._claim)

    # The file

    def _opened(self) -> sqlite3.Connection:
        path = self._folder / FILE
        try:
            return self._connected(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # the disk, not the contents
                raise
        self.damaged = set_aside(path)
        return self._connected(path)

    def _connected(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(f"PRAGMA synchronous = {self._config.fsync}")
            database.executescript(_SCHEMA)
            self.count, self.bytes, self.last_seq = database.execute(
                f"SELECT COUNT(*), COALESCE(SUM(LENGTH(value) + {_ROW_OVERHEAD}), 0), COALESCE(MAX(seq), 0)"  # noqa: S608
                " FROM events"
            ).fetchone()
            if path.stat().st_size <= _CHECKED_BYTES:
                check(database)
            self._unused_bytes = _unused_bytes(database)
        except BaseException:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _translated():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                unused_bytes = _unused_bytes(self._database)
                self._database.execute("COMMIT")
                self._unused_bytes = unused_bytes
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                with contextlib.suppress(
                    sqlite3.Error
                ):  # a log that a full disk keeps from growing must start anew
                    self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                raise

    def _not_there(self, events: Sequence[Event]) -> list[Event]:
        by_number = {event.seq: event for event in events}
        first, last = min(by_number), max(by_number)
        if first <= self.last_seq:
            query = "SELECT seq FROM events WHERE seq BETWEEN ? AND ?"
            with _translated():
                for (number,) in self._database.execute(query, (first, last)):
                    by_number.pop(number, None)
        return [by_number[number] for number in sorted(by_number)]

    def _forget(self, deleted: list[int]) -> None:
        self.count -= len(deleted)
        self.bytes -= sum(deleted)

    def _check_free_space(self, size: int) -> None:
        """Raise `SpoolFull` below the floor, unless there is room within the file: it then need not grow."""
        now = time.monotonic()
        if now - self._free_checked_at < _FREE_CHECK_SECONDS or _PAGES * size < self._unused_bytes:
            return
        with _translated():
            free = shutil.disk_usage(self._folder).free
        if free < self._config.min_free_bytes:
            raise SpoolFull(f"less than SPOOL_MIN_FREE_BYTES ({self._config.min_free_bytes}) is free: {free}")
        self._free_checked_at = now

    def _event(  # noqa: PLR0913, PLR0917 - the columns of a row
        self, seq: int, topic: str, key: bytes | None, event_type: str, timestamp_ms: int, value: bytes
    ) -> Event:
        route = self._routes.get((topic, key, event_type))
        if route is None:
            if len(self._routes) > 100_000:  # noqa: PLR2004
                self._routes.clear()
            route = self._routes[topic, key, event_type] = Route(event_type, topic, key, b"", 0, b"")
        return Event(route, value, timestamp_ms, seq)


def check(database: sqlite3.Connection) -> None:
    """Raise `sqlite3.DatabaseError` when the file is damaged."""
    ((verdict,),) = database.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _unused_bytes(database: sqlite3.Connection) -> int:
    """Return what the file holds of empty pages; SQLite fills these before the file grows."""
    (pages,) = database.execute("PRAGMA freelist_count").fetchone()
    (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    return int(pages * page_bytes)


def _size(event: Event) -> int:
    return len(event.value) + _ROW_OVERHEAD


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise SpoolFailed(str(error)) from error


def _delete(database: sqlite3.Connection, numbers: Sequence[int]) -> list[int]:
    """Delete rows; return the size of each, as it counts."""
    sizes: list[int] = []
    for start in range(0, len(numbers), _AT_ONCE):
        part = numbers[start : start + _AT_ONCE]
        marks = ",".join("?" * len(part))
        statement = f"DELETE FROM events WHERE seq IN ({marks}) RETURNING LENGTH(value)"  # noqa: S608
        sizes += [length + _ROW_OVERHEAD for (length,) in database.execute(statement, part)]
    return sizes


def _claimed(folder: Path) -> int:
    """Lock the folder for this process; the lock ends with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SpoolUnusable(f"{folder}: {error.strerror}") from error
    deadline = time.monotonic() + _CLAIM_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise SpoolUnusable(f"{folder}: another process works on this spool") from None
            time.sleep(0.1)
        else:
            return descriptor


def set_aside(path: Path) -> Path:
    """Rename a damaged file and what belongs to it; return the new name."""
    name = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    aside = next(new for number in itertools.count(1) if not (new := path.with_name(f"{name}-{number}")).exists())
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside
