"""The exchange's own record: what it put on each connection, so that a test can prove completeness.

A data frame counts when its bytes were handed to the transport of an open connection, never later than the
server's close frame. Frames injected as faults, acks, pings and closes are counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KEPT_CLOSED = 2_000


@dataclass
class Tally:
    """Frames of one stream: how many, how many events after array splitting, the ids they began and ended with."""

    frames: int = 0
    events: int = 0
    bytes: int = 0
    first_id: int | None = None
    last_id: int | None = None

    def add(self, other: Tally) -> None:
        """Add frames that followed."""
        self.frames += other.frames
        self.events += other.events
        self.bytes += other.bytes
        if self.first_id is None:
            self.first_id = other.first_id
        if other.last_id is not None:
            self.last_id = other.last_id

    def as_json(self) -> dict[str, Any]:
        """Write the tally as the control endpoint answers it."""
        return {
            "count": self.frames,
            "events": self.events,
            "bytes": self.bytes,
            "first_id": self.first_id,
            "last_id": self.last_id,
        }


@dataclass
class ConnectionRecord:
    """What happened on one connection."""

    id: int
    path: str
    peer: str
    opened_ms: int
    open: bool = True
    state: str = "open"
    combined: bool = False
    closed_ms: int | None = None
    close_sent: int | None = None
    close_received: int | None = None
    ended_by: str | None = None
    subscriptions: list[str] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    bytes_written: int = 0
    bytes_unsent: int = 0
    control_frames: int = 0
    pings: int = 0
    malformed_frames: int = 0
    client_frames: int = 0
    client_pongs: int = 0
    tampered: list[dict[str, Any]] = field(default_factory=list)

    def count(self, stream: str, tally: Tally) -> None:
        """Count data frames of one stream as written."""
        known = self.tallies.get(stream)
        if known is None:
            self.tallies[stream] = known = Tally()
        known.add(tally)

    def total(self) -> Tally:
        """All streams together, without ids."""
        whole = Tally()
        for tally in self.tallies.values():
            whole.add(Tally(tally.frames, tally.events, tally.bytes))
        return whole

    def as_json(self) -> dict[str, Any]:
        """Write the record as `GET /control/connections` answers it."""
        whole = self.total()
        return {
            "id": self.id,
            "open": self.open,
            "state": self.state,
            "path": self.path,
            "peer": self.peer,
            "combined": self.combined,
            "opened_ms": self.opened_ms,
            "closed_ms": self.closed_ms,
            "close_sent": self.close_sent,
            "close_received": self.close_received,
            "ended_by": self.ended_by,
            "subscriptions": list(self.subscriptions),
            "data_frames": whole.frames,
            "events": whole.events,
            "data_bytes": whole.bytes,
            "bytes_written": self.bytes_written,
            "bytes_unsent": self.bytes_unsent,
            "control_frames": self.control_frames,
            "pings": self.pings,
            "malformed_frames": self.malformed_frames,
            "client_frames": self.client_frames,
            "client_pongs": self.client_pongs,
            "tampered": list(self.tampered),
        }


def stream_label(name: str) -> str:
    """Name the kind of a stream: what stands behind the symbol, the whole name for arrays of the market."""
    return name if name.startswith("!") else name.partition("@")[2]


class Ledger:
    """The records of all connections; the oldest closed ones are forgotten beyond a bound."""

    def __init__(self) -> None:
        self._records: dict[int, ConnectionRecord] = {}
        self._forgotten: dict[str, Tally] = {}
        self.opened = 0

    def open(self, path: str, peer: str, now_ms: int) -> ConnectionRecord:
        """Begin the record of a new connection; ids count from 1."""
        self.opened += 1
        self._forget_oldest()
        record = ConnectionRecord(self.opened, path, peer, now_ms)
        self._records[record.id] = record
        return record

    def connections(self) -> list[ConnectionRecord]:
        """All known connections, in the order in which they opened."""
        return list(self._records.values())

    def sent(self, connection: int | None = None) -> dict[str, Tally]:
        """Totals per stream, of one connection or of all."""
        totals: dict[str, Tally] = {}
        if connection is None:
            _add_all(totals, self._forgotten)
        for record in self._records.values():
            if connection in (None, record.id):
                _add_all(totals, record.tallies)
        return totals

    def _forget_oldest(self) -> None:
        if len(self._records) < KEPT_CLOSED:
            return
        closed = next((record for record in self._records.values() if not record.open), None)
        if closed is not None:
            _add_all(self._forgotten, self._records.pop(closed.id).tallies)


def by_kind(totals: dict[str, Tally]) -> dict[str, Tally]:
    """Sum tallies of streams into tallies of kinds; ids of different symbols do not compare and are left out."""
    kinds: dict[str, Tally] = {}
    for name, tally in totals.items():
        kinds.setdefault(stream_label(name), Tally()).add(Tally(tally.frames, tally.events, tally.bytes))
    return kinds


def _add_all(totals: dict[str, Tally], tallies: dict[str, Tally]) -> None:
    for name, tally in tallies.items():
        totals.setdefault(name, Tally()).add(tally)
