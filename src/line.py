"""A line: one group of streams, and the one or two connections that bring it without a gap."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from src.binance_client import GOODBYE_SECONDS, BinanceConnection
from src.rotation import AGE, SHUTDOWN, WINDOW, Overlap, bound_of, due
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from config.settings import ConnectionConfig
    from src.binance_client import Chunk, End
    from src.deadline import Deadline
    from src.decoder import EventDecoder
    from src.events import Decoded
    from src.telemetry import Telemetry


class Ledger(Protocol):
    """Who writes down what becomes of the connections; no method waits."""

    def connection_opened(self, connection: int, streams: int) -> None: ...  # noqa: D102
    def connection_closed(self, connection: int, code: int | None, reason: str, cause: str) -> None: ...  # noqa: D102
    def connection_rotated(self, old: int, new: int, cause: str) -> None: ...  # noqa: D102


class Parts(NamedTuple):
    """What all lines share."""

    url: str
    base_url: str | None
    """Where to go when there is nothing under `url`."""
    settings: ConnectionConfig
    decoder: EventDecoder
    telemetry: Telemetry
    ledger: Ledger
    read: Callable[[Slot], None]
    """What each reading thread does."""
    on_exit: Callable[[Worker], None]


class Slot:
    """One of a line's two places for a connection, with the thread that reads it."""

    def __init__(self, line: Line, number: int, parts: Parts, *, wanted: bool) -> None:
        self.number = number
        self.source = 2 * line.number + number
        """Where events come from, for whoever tells connections apart."""
        self.opened = 0
        """How often its connection was opened."""
        self.shutdown_announced = False
        self._decoder = parts.decoder.expecting(line.streams)
        self.connection = BinanceConnection(
            line.number,
            parts.url,
            line.streams,
            parts.settings,
            parts.telemetry,
            base_url=parts.base_url,
            slot=number,
            owner=line,
            wanted=wanted,
        )
        name = f"binance-reader-{line.number}{'ab'[number]}"
        self.worker = Worker(name, lambda: parts.read(self), parts.on_exit)

    def chunks(self) -> Iterator[Chunk]:
        """Yield what the connection brings; see `BinanceConnection.chunks`."""
        return self.connection.chunks()

    def decode(self, chunk: Chunk) -> Decoded:
        """Decode a chunk, and take note of what the exchange says in it about the connection."""
        decoded = self._decoder.decode(chunk.frames, chunk.received_ms)
        for reply in decoded.replies:
            self.connection.replied(reply)
        if decoded.shutdowns:
            self.shutdown_announced = True
        return decoded

    def seen(self) -> set[str]:
        """Return the streams that have brought something on this connection, or since `forget`."""
        return self._decoder.seen()

    def expect(self, streams: Iterable[str]) -> None:
        """Take frames that do not tell their stream for these from here on."""
        self._decoder = self._decoder.expecting(streams)

    def forget(self) -> None:
        """Begin a new account of what is seen."""
        self._decoder = self._decoder.renewed()


class _Rotation:
    """A new connection on its way to take over from another one."""

    def __init__(self, cause: str, fresh: Slot, kept: Slot, now: float) -> None:
        self.cause, self.fresh, self.kept, self.began = cause, fresh, kept, now
        self.overlap: Overlap | None = None

    @property
    def fresh_is_open(self) -> bool:
        """Whether the new connection is open, not the one that the slot had before."""
        opened_at = self.fresh.connection.opened_at
        return opened_at is not None and opened_at >= self.began


class Line:
    """At most 1024 streams on two slots: one open, the other for its successor; or, as a standby, both open.

    A connection is replaced before the exchange ends it: the new one is opened and subscribed, and only when
    it brings what the old one brought (see `Overlap`) does the old one say goodbye. While the new one fails
    the old one stays. Whoever calls holds the lock of `Lines`; the reading threads only call `opened`, `ended`
    and `may_give_up`.
    """

    def __init__(self, number: int, streams: Iterable[str], parts: Parts, now: float) -> None:
        self.number = number
        self.streams = dict.fromkeys(streams)
        self._parts = parts
        self._settings = parts.settings
        self._slots = (Slot(self, 0, parts, wanted=True), Slot(self, 1, parts, wanted=False))
        self._rotation: _Rotation | None = None
        self._wishes: dict[int, str] = {}  # by slot: the cause of a rotation that is to come
        self._standby_at = now + parts.settings.reconnect_interval

    def start(self) -> None:
        """Start both reading threads; the second one waits until it is wanted."""
        for slot in self._slots:
            slot.worker.start()

    def close(self) -> None:
        """Ask both connections to say goodbye."""
        for slot in self._slots:
            slot.connection.close()

    def join(self, deadline: Deadline) -> bool:
        """Wait for both reading threads; return whether they have ended."""
        ended = [slot.worker.join(deadline.remaining(at_most=GOODBYE_SECONDS + 1.0)) for slot in self._slots]
        return all(ended)

    def change(self, add: Sequence[str], remove: Sequence[str]) -> None:
        """Read other streams from here on."""
        for stream in remove:
            del self.streams[stream]
        self.streams.update(dict.fromkeys(add))
        for slot in self._slots:
            slot.expect(self.streams)
            slot.connection.change(add, remove)

    def renew(self, streams: Sequence[str]) -> None:
        """Subscribe anew to streams that bring nothing any more."""
        for slot in self._slots:
            if slot.connection.open:
                slot.connection.renew(streams)

    def wish(self, cause: str) -> None:
        """Replace the connections as soon as that can be done without a gap."""
        for slot in self._slots:
            if slot.connection.open and slot is not self._fresh:
                self._wishes.setdefault(slot.number, cause)

    @property
    def alive(self) -> bool:
        """Whether both reading threads run."""
        return all(slot.worker.alive for slot in self._slots)

    @property
    def steady(self) -> bool:
        """Whether every connection that is wanted is open, and none is being replaced."""
        wanted = [slot.connection for slot in self._slots if slot.connection.wanted]
        return self._rotation is None and all(connection.open for connection in wanted)

    @property
    def failures_in_a_row(self) -> int:
        """How often connecting has failed in a row, of the slot that has it best: the line ends with that one."""
        wanted = [slot.connection for slot in self._slots if slot.connection.wanted]
        return min((connection.failures_in_a_row for connection in wanted), default=0)

    @property
    def age(self) -> float:
        """Seconds since the older of its connections was opened."""
        opened = [at for slot in self._slots if (at := slot.connection.opened_at) is not None]
        return time.monotonic() - min(opened) if opened else 0.0

    # Called on the reading threads

    def opened(self, slot: int) -> None:
        """Take note of a new connection."""
        self._slots[slot].opened += 1
        self._slots[slot].shutdown_announced = False
        self._slots[slot].forget()
        self._parts.ledger.connection_opened(self._slots[slot].source, len(self.streams))

    def ended(self, slot: int, end: End) -> None:
        """Take note of the end of a connection."""
        self._parts.ledger.connection_closed(self._slots[slot].source, *end)

    def may_give_up(self, slot: int) -> bool:
        """Say whether the other connection is not wanted, or has failed as often."""
        other = self._slots[1 - slot].connection
        return not other.wanted or other.exhausted

    # Called by the keeper

    def tick(self, now: float, second_of_day: float, *, may_rotate: bool) -> bool:
        """Do what is due; return whether a connection began to be replaced because of its age."""
        if self._settings.standby and now >= self._standby_at:
            self._slots[1].connection.activate()
        if self._rotation is not None:
            self._go_on(self._rotation, now)
            return False
        for slot in self._slots:
            cause = self._cause_to_rotate(slot, now, second_of_day, may_rotate=may_rotate)
            if cause and self._begin(slot, cause, now):
                return cause in {AGE, WINDOW}
        return False

    def _cause_to_rotate(self, slot: Slot, now: float, second_of_day: float, *, may_rotate: bool) -> str | None:
        opened_at = slot.connection.opened_at
        if opened_at is None or not slot.connection.wanted:
            self._wishes.pop(slot.number, None)  # the connection that comes instead is a new one
            return None
        if slot.shutdown_announced:
            return SHUTDOWN
        if wish := self._wishes.get(slot.number):
            return wish
        settings = self._settings
        if not may_rotate:
            return None
        return due(now - opened_at, settings.rotate_after_seconds, settings.window, second_of_day)

    def _begin(self, slot: Slot, cause: str, now: float) -> bool:
        other = self._slots[1 - slot.number]
        if self._settings.standby:
            if not other.connection.subscribed:
                return False
            slot.connection.retire()
            self._rotation = _Rotation(cause, fresh=slot, kept=other, now=now)
        else:
            self._rotation = _Rotation(cause, fresh=other, kept=slot, now=now)
        self._wishes.pop(slot.number, None)
        self._rotation.fresh.connection.activate()
        self._parts.telemetry.rotation_started(self.number, cause)
        return True

    def _go_on(self, rotation: _Rotation, now: float) -> None:
        fresh, kept = rotation.fresh, rotation.kept
        if not kept.connection.open and not self._settings.standby:
            self._old_one_is_lost(rotation, now)
        elif not (rotation.fresh_is_open and fresh.connection.subscribed):
            rotation.overlap = None
        elif not kept.connection.open:
            self._complete(rotation, set(), now)
        elif rotation.overlap is None:
            bound = bound_of(rotation.cause, self._settings.rotate_overlap_seconds)
            rotation.overlap = Overlap(now, kept.seen() & self.streams.keys(), bound)
            kept.forget()
        else:
            on_old, on_new = kept.seen() & self.streams.keys(), fresh.seen()
            if rotation.overlap.over(on_old, on_new, now):
                self._complete(rotation, rotation.overlap.missing(on_old, on_new), now)

    def _old_one_is_lost(self, rotation: _Rotation, now: float) -> None:
        """Go on with the new connection; if it is not open either, the slot that had worked tries again."""
        if rotation.fresh_is_open:
            self._complete(rotation, set(), now)
            return
        rotation.fresh.connection.retire()
        self._rotation = None
        self._parts.telemetry.rotation_cancelled(self.number, rotation.cause)

    def _complete(self, rotation: _Rotation, missing: set[str], now: float) -> None:
        if not self._settings.standby:
            rotation.kept.connection.retire()
        self._rotation = None
        slot, seconds = rotation.fresh.number, now - rotation.began
        self._parts.telemetry.rotated(self.number, rotation.cause, seconds, sorted(missing), slot)
        old = rotation.fresh if self._settings.standby else rotation.kept
        self._parts.ledger.connection_rotated(old.source, rotation.fresh.source, rotation.cause)

    @property
    def _fresh(self) -> Slot | None:
        return self._rotation.fresh if self._rotation else None
