"""The rows of the spool's tables: what is written for an event, and what is made of it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from src.events import Event, Route

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

ROW_OVERHEAD = 80  # bytes of a row beside its value: key, topic, type, SQLite's own
_AT_ONCE = 500  # parameters of one statement
COLUMNS = "seq, topic, CAST(key AS BLOB), event_type, timestamp_ms, CAST(value AS BLOB)"
"""Bytes even where a bit has flipped that says so."""
COUNTED = f"COUNT(*), COALESCE(SUM(LENGTH(value) + {ROW_OVERHEAD}), 0)"


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


class Totals(NamedTuple):
    """What the file keeps beside its rows, so that a start need not read all of them."""

    events: int
    size: int
    dead_size: int
    sent_up_to: int
    """Events up to this number may have been sent."""


class Rows:
    """Makes events of rows; a route is made once."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, bytes | None, str], Route] = {}

    def event(  # noqa: PLR0913, PLR0917 - the columns
        self, seq: int, topic: str, key: bytes | None, event_type: str, timestamp_ms: int, value: bytes
    ) -> Event:
        """Return what was written as these columns."""
        route = self._routes.get((topic, key, event_type))
        if route is None:
            if len(self._routes) > 100_000:  # noqa: PLR2004
                self._routes.clear()
            route = self._routes[topic, key, event_type] = Route(event_type, topic, key, b"", 0, b"")
        return Event(route, value, timestamp_ms, seq)


def size_of(event: Event) -> int:
    """Return what it counts towards the bound."""
    return len(event.value) + ROW_OVERHEAD


def row_of(event: Event) -> tuple[object, ...]:
    """Return what stands in the table of events."""
    route = event.route
    return (
        event.seq,
        route.topic,
        route.key,
        route.event_type,
        event.timestamp_ms,
        event.value,
        checksum_of(event),
    )


def checksum_of(event: Event) -> int:
    """Return the CRC-32 of key and value."""
    return crc32(event.value, crc32(event.route.key or b""))


def deleted(database: sqlite3.Connection, numbers: Sequence[int]) -> list[int]:
    """Delete rows; return the size of each, as it counts."""
    sizes: list[int] = []
    for start in range(0, len(numbers), _AT_ONCE):
        part = numbers[start : start + _AT_ONCE]
        marks = ",".join("?" * len(part))
        statement = f"DELETE FROM events WHERE seq IN ({marks}) RETURNING LENGTH(value)"  # noqa: S608
        sizes += [length + ROW_OVERHEAD for (length,) in database.execute(statement, part)]
    return sizes
