"""Events on disk, in the order in which they were read: SQLite in WAL mode.

The file survives a killed process; what a power failure may take depends on `SPOOL_FSYNC` (SQLite's
`synchronous`: `normal` can lose the last moments, `full` nothing that `append` returned from).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING

from src.events import Event, topic_for
from src.spool_file import FILE, SpoolDamaged, SpoolFailed, SpoolFile, SpoolUnusable, translated
from src.spool_rows import (
    COLUMNS,
    COUNTED,
    ROW_OVERHEAD,
    DeadLetter,
    Rows,
    Totals,
    checksum_of,
    deleted,
    row_of,
    size_of,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Container, Sequence
    from pathlib import Path

    from config.settings import SpoolConfig
    from src.events import Topics

__all__ = ["FILE", "DeadLetter", "Spool", "SpoolDamaged", "SpoolFailed", "SpoolFull", "SpoolUnusable"]

_FREE_CHECK_SECONDS = 1.0
_REFUSING_SECONDS = 30.0
_PAGES = 2  # bytes of pages that a byte of rows takes at most: one row of half a page and more fills it
_FIX_DISK = f"see to it that the disk is well, has room, and that user {os.getuid()} may write to it"
SPOILED = ("ChecksumMismatch", "the disk gave back other bytes than were written")
"""Reason and error of dead letters that `take_spoiled` has named."""


class SpoolFull(Exception):  # noqa: N818 - named after the fact
    """The spool's own limit, or the floor of free disk space, is reached; nothing was written."""


class Spool:
    """Events by sequence number; any thread may use it, one after the other.

    Bounded by bytes (`SPOOL_MAX_BYTES`, dead letters included) and by the floor of free disk space
    (`SPOOL_MIN_FREE_BYTES`): `append` raises `SpoolFull` beyond. A file that SQLite finds damaged is set aside
    under another name, never deleted: `damaged` names it; after the start any verb may find it so and raise
    `SpoolDamaged`, and `replace` begins anew. Each value has a checksum, which is looked at when it is read.
    Raises `SpoolUnusable` when the folder cannot be worked with.
    """

    def __init__(self, config: SpoolConfig) -> None:
        self._config = config
        self._folder: Path = config.path
        self._lock = threading.Lock()  # guards all that follows, the file too
        self._rows = Rows()
        self._free_checked_at = -_FREE_CHECK_SECONDS
        self._evicted: dict[str, tuple[int, int]] = {}
        """By topic: between these numbers nothing of it is left that `evict` has not taken."""
        self._topics: frozenset[str] = frozenset()
        self._spoiled: dict[int, Event] = {}
        self._refused_at = float("-inf")
        self._file = SpoolFile(self._folder, config.fsync)
        try:
            try:
                self._begin()
            except SpoolDamaged:
                self._replace()
        except SpoolFailed as error:
            self._file.close()
            raise SpoolUnusable(f"{self._folder / FILE}: {error}") from error

    def _begin(self) -> None:
        self._totals = self._read_totals()
        ((self.last_seq,),) = self._file.query("SELECT COALESCE(MAX(seq), 0) FROM events")
        with contextlib.suppress(SpoolFailed):  # both need a little room themselves
            if self._totals.sent_up_to > self.last_seq:  # numbers above that are given out anew
                self._note_sent(self.last_seq)
            if not self.count and self._above_floor():
                self._file.shrink()

    @property
    def count(self) -> int:
        """How many events are there."""
        return self._totals.events

    @property
    def bytes(self) -> int:
        """How much they count towards the bound."""
        return self._totals.size

    @property
    def max_bytes(self) -> int:
        """The bound on `bytes` and what the dead letters take."""
        return self._config.max_bytes

    @property
    def room(self) -> int:
        """Bytes that it still takes: to its own limit, or what the disk has above the floor, if that is less."""
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError:
            return 0
        on_disk = max(0, free - self._config.min_free_bytes) + self._file.unused_bytes
        return max(0, min(self._config.max_bytes - self._totals.size - self._totals.dead_size, on_disk))

    @property
    def damaged(self) -> Path | None:
        """Where the last file that was found damaged is now."""
        return self._file.damaged

    @property
    def refusing(self) -> bool:
        """Whether something could not be written within the last half minute."""
        return time.monotonic() - self._refused_at < _REFUSING_SECONDS

    # Events

    def append(self, events: Sequence[Event], *, sent: bool = False) -> None:
        """Write events for good; those that are there already stay as they are. `sent`: they are in flight.

        Raises `SpoolFull` or `SpoolFailed`; then none of them was written.
        """
        if not events:
            return
        try:
            self._append(events, sent=sent)
        except (SpoolFull, SpoolFailed):
            self._refused_at = time.monotonic()
            raise

    def _append(self, events: Sequence[Event], *, sent: bool) -> None:
        with self._lock:
            new = self._not_there(events)
            if not new:
                return
            size = sum(size_of(event) for event in new)
            self._check_room(size)
            rows = [row_of(event) for event in new]
            with self._file.transaction() as database:
                database.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                totals = self._noted(database, len(new), size, sent_up_to=new[-1].seq if sent else 0)
                if not self._topics:  # `redirect` has to look at them
                    database.execute("UPDATE totals SET topics = NULL")
            self._totals = totals
            self.last_seq = max(self.last_seq, new[-1].seq)
            for topic, (_, up_to) in tuple(self._evicted.items()):
                if new[0].seq <= up_to:  # it has come back, and may go as well
                    del self._evicted[topic]

    def redirect(self, topics: Topics, stop_wanted: Callable[[], bool] = lambda: False) -> int:
        """Let events of topics that are not in the settings any more go to those that took their place.

        Returns how many. Before anything is read. Looks through all events only when the settings have changed.
        Ends with nothing changed when `stop_wanted` says so; then nothing may be read. Raises `SpoolUnusable` when
        the disk does not take the change.
        """
        self._topics = frozenset(topics)
        try:
            with self._file.interrupted_by(stop_wanted):
                try:
                    return self._redirect(topics)
                except SpoolDamaged:
                    self.replace()
                    return self._redirect(topics)
        except SpoolFailed as error:
            if not stop_wanted():
                raise SpoolUnusable(f"{self._folder / FILE}: {error}", _FIX_DISK) from error
            return 0

    def _redirect(self, topics: Topics) -> int:
        query, names = "SELECT DISTINCT topic, event_type FROM events", " ".join(topics)
        with self._lock, self._file.transaction() as database:
            if database.execute("SELECT topics FROM totals").fetchone() == (names,):
                return 0
            database.execute("UPDATE totals SET topics = ?", (names,))
            found = [row for row in database.execute(query).fetchall() if row[0] not in topics]
            return sum(
                database.execute(
                    "UPDATE events SET topic = ? WHERE topic = ? AND event_type = ?",
                    (topic_for(event_type, topics), topic, event_type),
                ).rowcount
                for topic, event_type in found
            )

    def absent(self, events: Sequence[Event]) -> list[Event]:
        """Return those events that are not on disk, by ascending sequence number."""
        with self._lock:
            return self._not_there(events)

    def read(self, after: int, limit: int) -> list[Event]:
        """Return up to `limit` events with sequence numbers above `after`, lowest first; none at the end only.

        What is not as it was written is left out, and kept for `take_spoiled`.
        """
        query = f"SELECT {COLUMNS}, checksum FROM events WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
        good: list[Event] = []
        with self._lock:
            while not good and (rows := self._file.query(query, (after, limit))):
                for *columns, checksum in rows:
                    event = self._rows.event(*columns)
                    if self._is_whole(event, checksum):
                        good.append(event)
                    else:
                        self._spoiled[event.seq] = event
                after = rows[-1][0]
        return good

    def _is_whole(self, event: Event, checksum: int | None) -> bool:
        known = not self._topics or event.route.topic in self._topics
        return known and (checksum is None or checksum == checksum_of(event))

    def take_spoiled(self) -> list[Event]:
        """Return, once, what was read and is not as it was written; it is still on disk."""
        with self._lock:
            if not self._spoiled:
                return []
            spoiled, self._spoiled = self._spoiled, {}
            gone = {event.seq for event in self._not_there(tuple(spoiled.values()))}
            return [event for event in spoiled.values() if event.seq not in gone]

    @property
    def first_seq(self) -> int | None:
        """The lowest number on disk, None when there is none."""
        with self._lock:
            ((lowest,),) = self._file.query("SELECT MIN(seq) FROM events")
        return None if lowest is None else int(lowest)

    def remove(self, numbers: Sequence[int]) -> int:
        """Delete events by sequence number and return how many; numbers that are not there do no harm."""
        with self._lock:
            with self._file.transaction() as database:
                gone = deleted(database, numbers)
                totals = self._noted(database, -len(gone), -sum(gone))
            self._totals = totals
        return len(gone)

    def evict(self, topic: str, size: int, not_before: int, but: Container[int] = ()) -> list[Event]:
        """Delete the oldest events of a topic after `not_before`, of at least `size` bytes; return them.

        Those with the numbers `but` stay.
        """
        query = f"SELECT {COLUMNS} FROM events WHERE topic = ? AND seq > ? ORDER BY seq"  # noqa: S608
        victims: list[Event] = []
        spared = 0
        with self._lock:
            begin, up_to = self._evicted.get(topic, (not_before, not_before))
            if not begin <= not_before <= up_to:
                begin = up_to = not_before
            with self._file.transaction() as database:
                for row in database.execute(query, (topic, up_to)):
                    if row[0] in but:
                        spared = spared or row[0]
                        continue
                    victims.append(self._rows.event(*row))
                    size -= size_of(victims[-1])
                    if size <= 0:
                        break
                gone = deleted(database, [event.seq for event in victims])
                totals = self._noted(database, -len(gone), -sum(gone))
            self._totals = totals
            up_to = victims[-1].seq if size <= 0 and victims else max(up_to, self.last_seq)
            self._evicted[topic] = (begin, min(up_to, spared - 1) if spared else up_to)
        return victims

    # What may have been sent

    def sending(self, up_to: int) -> None:
        """Keep in mind that events up to this number may be in Kafka from here on."""
        with self._lock:
            if up_to > self._totals.sent_up_to:
                self._note_sent(up_to)

    @property
    def sent_up_to(self) -> int:
        """The number up to which events may be in Kafka."""
        return self._totals.sent_up_to

    def nothing_sent(self) -> None:
        """Forget that: whatever may be there twice is counted."""
        with self._lock:
            if self._totals.sent_up_to:
                self._note_sent(0)

    def _note_sent(self, up_to: int) -> None:
        totals = self._totals._replace(sent_up_to=up_to)
        with self._file.transaction() as database:
            database.execute("UPDATE totals SET sent_up_to = ?", (up_to,))
        self._totals = totals

    def count_sent(self) -> int:
        """Return how many of the events here may be in Kafka already."""
        with self._lock:
            ((count,),) = self._file.query(
                "SELECT COUNT(*) FROM events WHERE seq <= ?", (self._totals.sent_up_to,)
            )
            return int(count)

    # What Kafka will never take

    def bury(self, events: Sequence[Event], reason: str, error: str) -> None:
        """Move events to the dead letters; raises `SpoolFull` when there is no room for one that is not here."""
        now = time.time_ns() // 1_000_000
        rows = [
            (now, reason, error, (at := one.route).topic, at.key, at.event_type, one.timestamp_ms, one.value)
            for one in events
        ]
        size = sum(size_of(event) for event in events)
        with self._lock:
            with self._file.transaction() as database:
                gone = deleted(database, [event.seq for event in events])
                if size > sum(gone):
                    self._check_room(size - sum(gone))
                database.executemany("INSERT INTO dead_letters VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
                totals = self._noted(database, -len(gone), -sum(gone), dead_size=size)
            self._totals = totals

    @property
    def has_dead_letters(self) -> bool:
        """Whether there are any; costs nothing."""
        return self._totals.dead_size > 0

    def dead_letters(self, after: int = 0, limit: int = 1000) -> list[DeadLetter]:
        """Return dead letters with ids above `after`, oldest first."""
        query = "SELECT * FROM dead_letters WHERE id > ? ORDER BY id LIMIT ?"
        with self._lock:
            return [DeadLetter(*row) for row in self._file.query(query, (after, limit))]

    def discard_dead_letter(self, number: int) -> None:
        """Delete a dead letter that has a place elsewhere."""
        with self._lock:
            with self._file.transaction() as database:
                statement = "DELETE FROM dead_letters WHERE id = ? RETURNING LENGTH(value)"
                sizes = [length + ROW_OVERHEAD for (length,) in database.execute(statement, (number,))]
                totals = self._noted(database, 0, 0, dead_size=-sum(sizes))
            self._totals = totals

    # The file

    def shrink(self) -> None:
        """Give the disk back what is not needed when no event is here.

        Not below the floor of free disk space: the room within the file would be lost to the next events.
        """
        with self._lock:
            if not self.count and self._above_floor():
                self._file.shrink()

    def replace(self) -> None:
        """Set the file aside, with everything in it, and go on with an empty one.

        When that fails nothing is here, and what needs the file raises `SpoolDamaged` until a later call succeeds.
        """
        with self._lock:
            self._replace()

    def _replace(self) -> None:
        self._totals, self.last_seq = Totals(0, 0, 0, 0), 0
        self._evicted.clear()
        self._spoiled.clear()
        self._file.replace(self._begin)

    def close(self) -> None:
        """Close the file and let others have it."""
        with self._lock:
            self._file.close()

    def _read_totals(self) -> Totals:
        kept = self._file.query("SELECT events, size, dead_size, sent_up_to FROM totals")
        if kept:
            return Totals(*kept[0])
        ((events, size),) = self._file.query(f"SELECT {COUNTED} FROM events")  # noqa: S608
        ((_, dead_size),) = self._file.query(f"SELECT {COUNTED} FROM dead_letters")  # noqa: S608
        totals = Totals(events, size, dead_size, 0)
        with self._file.transaction() as database:
            database.execute("INSERT INTO totals VALUES (1, ?, ?, ?, ?, NULL)", totals)
        return totals

    def _noted(
        self, database: sqlite3.Connection, events: int, size: int, *, dead_size: int = 0, sent_up_to: int = 0
    ) -> Totals:
        """Write changed totals within a transaction; they hold when it is committed."""
        was = self._totals
        totals = Totals(
            was.events + events,
            was.size + size,
            was.dead_size + dead_size,
            max(was.sent_up_to, sent_up_to),
        )
        database.execute("UPDATE totals SET events = ?, size = ?, dead_size = ?, sent_up_to = ?", totals)
        return totals

    def _not_there(self, events: Sequence[Event]) -> list[Event]:
        by_number = {event.seq: event for event in events}
        first, last = min(by_number), max(by_number)
        if first <= self.last_seq:
            for (number,) in self._file.query("SELECT seq FROM events WHERE seq BETWEEN ? AND ?", (first, last)):
                by_number.pop(number, None)
        return [by_number[number] for number in sorted(by_number)]

    def _check_room(self, size: int) -> None:
        if self._totals.size + self._totals.dead_size + size > self._config.max_bytes:
            raise SpoolFull(f"SPOOL_MAX_BYTES ({self._config.max_bytes}) is reached")
        now = time.monotonic()
        if now - self._free_checked_at < _FREE_CHECK_SECONDS or _PAGES * size < self._file.unused_bytes:
            return  # with room within the file it need not grow
        if not self._above_floor():
            raise SpoolFull(f"less than SPOOL_MIN_FREE_BYTES ({self._config.min_free_bytes}) is free")
        self._free_checked_at = now

    def _above_floor(self) -> bool:
        with translated():
            return shutil.disk_usage(self._folder).free >= self._config.min_free_bytes
