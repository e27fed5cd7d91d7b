"""The SQLite file under the spool: claimed for one process, checked, set aside when damaged, shrunk when empty."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

FILE = "events.sqlite3"
CHECK_SECONDS = 5.0
"""What is checked of a file at the start; a larger one shows its damage when it is read."""
_CLAIM_SECONDS = 3.0  # for a predecessor that is just stopping
_SMALL_BYTES = 8 * 1024 * 1024
_CHECKED_BYTES = 512 * 1024**2
"""Up to this size a file is checked in full. SQLite's check goes through it backwards, which a disk gives a page
at a time unless it was just read: 170 s a gigabyte were seen. A larger file is only read through, row by row."""
_FIX_SHARED = "stop it, or give each service its own SPOOL_PATH"
_STEPS = 100_000  # of SQLite's machine between two looks whether to stop: some milliseconds
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, topic TEXT, key BLOB, event_type TEXT, timestamp_ms INTEGER, value BLOB,
    checksum INTEGER);
CREATE TABLE IF NOT EXISTS dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, died_ms INTEGER, reason TEXT, error TEXT,
    topic TEXT, key BLOB, event_type TEXT, timestamp_ms INTEGER, value BLOB);
CREATE TABLE IF NOT EXISTS totals (
    id INTEGER PRIMARY KEY CHECK (id = 1), events INTEGER, size INTEGER, dead_size INTEGER, sent_up_to INTEGER,
    topics TEXT);
"""


class SpoolFailed(Exception):  # noqa: N818 - named after the fact
    """The disk did not take or give something; the message is SQLite's."""


class SpoolDamaged(SpoolFailed):
    """The file is not what SQLite wrote; it can only be set aside."""


class SpoolUnusable(Exception):  # noqa: N818 - named after the fact
    """The folder cannot be used: not writable, or another process works on it; the message says which.

    `fix` says what to do about it.
    """

    def __init__(self, cause: str, fix: str = "") -> None:
        super().__init__(cause)
        self.fix = fix or f"must be a folder that user {os.getuid()} may write to"


class SpoolFile:
    """One connection to the file in a folder that this process has for itself; its owner guards it with a lock.

    A file that is damaged is set aside under another name, never deleted: `damaged` names the last one.
    """

    def __init__(self, folder: Path, fsync: str) -> None:
        self._path = folder / FILE
        self._fsync = fsync
        self._claim = _claimed(folder)
        self.damaged: Path | None = None
        self.checked = False
        """Whether the whole file was looked at for damage, and not only as much as time and size allowed."""
        self.unused_bytes = 0
        """What the file holds of empty pages; SQLite fills these before the file grows."""
        self._begun = True
        """Whether the file in its place may hold something; else it is one that `replace` could not begin."""
        self._open: sqlite3.Connection | None = None
        try:
            self._open = self._opened()
        except (sqlite3.Error, OSError) as error:
            os.close(self._claim)
            raise SpoolUnusable(f"{self._path}: {error}") from error

    @property
    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            raise SpoolDamaged(f"{self._path}: damaged, and a new file could not be begun")
        return self._open

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows."""
        with translated():
            return self._database.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what happens inside, or undo all of it."""
        with translated():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                unused_bytes = _unused_bytes(self._database)
                self._database.execute("COMMIT")
                self.unused_bytes = unused_bytes
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                with contextlib.suppress(sqlite3.Error):  # a log that a full disk keeps from growing starts anew
                    self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                raise

    def replace(self, begin: Callable[[], None]) -> None:
        """Set the file aside, open a new one and `begin` to use it.

        When that fails there is no file: what needs one raises `SpoolDamaged` until a later call has succeeded.
        """
        self._leave()
        with translated():
            if self._begun:
                self.damaged = set_aside(self._path)
                self._begun = False
            self._open = self._opened()
        try:
            begin()
        except SpoolFailed:
            self._leave()
            raise
        self._begun = True

    def _leave(self) -> None:
        if self._open is not None:
            with contextlib.suppress(sqlite3.Error):
                self._open.close()
            self._open = None
            self.unused_bytes = 0

    @contextlib.contextmanager
    def interrupted_by(self, stop_wanted: Callable[[], bool]) -> Iterator[None]:
        """Let what runs inside the block end, and change nothing, with `SpoolFailed` as soon as this says so."""
        self._database.set_progress_handler(stop_wanted, _STEPS)
        try:
            yield
        finally:
            self._database.set_progress_handler(None, 0)

    def shrink(self) -> None:
        """Give the disk back what an outage needed, unless more than half of it is in use."""
        with translated():
            if self._size() > _SMALL_BYTES and self._mostly_free():
                self._database.execute("VACUUM")
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self.unused_bytes = _unused_bytes(self._database)

    def close(self) -> None:
        """Close the file and let others have it."""
        if self._open is not None:
            self._open.close()
        os.close(self._claim)

    def _mostly_free(self) -> bool:
        ((free,),), ((pages,),) = self.query("PRAGMA freelist_count"), self.query("PRAGMA page_count")
        return bool(free > pages / 2)

    def _size(self) -> int:
        both = (self._path, self._path.with_name(f"{FILE}-wal"))
        return sum(path.stat().st_size for path in both if path.exists())

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # the disk, not the contents
                raise
        self.damaged = set_aside(self._path)
        return self._connected()

    def _connected(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=1.0)
        database.text_factory = _text
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(f"PRAGMA synchronous = {self._fsync}")
            database.executescript(_SCHEMA)
            if "checksum" not in [row[1] for row in database.execute("PRAGMA table_info(events)")]:
                database.execute("ALTER TABLE events ADD COLUMN checksum INTEGER")  # of an earlier version
            self.checked = _checked(database, in_full=self._size() <= _CHECKED_BYTES)
            self.unused_bytes = _unused_bytes(database)
        except BaseException:
            database.close()
            raise
        return database


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn errors of SQLite and of the disk into `SpoolFailed`."""
    try:
        yield
    except sqlite3.Error as error:
        damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
        raise (SpoolDamaged if damaged else SpoolFailed)(str(error)) from error
    except OSError as error:
        raise SpoolFailed(str(error)) from error


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")  # where bits have flipped the reader has to say so, not SQLite


def check(database: sqlite3.Connection) -> None:
    """Raise `sqlite3.DatabaseError` when the file is damaged."""
    ((verdict,),) = database.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _checked(database: sqlite3.Connection, *, in_full: bool) -> bool:
    """Raise `DatabaseError` for damage that is found in time; return whether everything was looked at.

    Reads through the rows first: that goes forward, as a disk likes it.
    """
    too_long = threading.Timer(CHECK_SECONDS, database.interrupt)
    too_long.start()
    try:
        database.execute("SELECT SUM(LENGTH(value)) FROM events").fetchall()
        if in_full:
            check(database)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return False
    finally:
        too_long.cancel()
        too_long.join()  # it must not interrupt what comes next
    return in_full


def _unused_bytes(database: sqlite3.Connection) -> int:
    (pages,) = database.execute("PRAGMA freelist_count").fetchone()
    (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    return int(pages * page_bytes)


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
                raise SpoolUnusable(f"{folder}: another process works on this spool", _FIX_SHARED) from None
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
