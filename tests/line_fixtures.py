"""Lines with their reading threads and their keeper, against the simulated exchange; what they hand on is kept."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from structlog.testing import capture_logs

from config.settings import ConnectionConfig
from src.deadline import Deadline
from src.decoder import EventDecoder
from src.events import Topics
from src.line import Parts
from src.lines import Keeper, Lines
from src.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from src.line import Slot
    from src.worker import Worker

    OpenLines = Callable[..., "Reading"]

PATIENCE = 15.0
QUICK = {"reconnect_interval": 0.05, "max_reconnect_interval": 0.2, "timeout_seconds": 2.0}


class Handed(NamedTuple):
    """One event as it was handed on."""

    source: int
    stream: str
    first: int
    last: int


class Notes:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.written: list[tuple[Any, ...]] = []

    def connection_opened(self, connection: int, streams: int) -> None:
        self.written.append(("opened", connection, streams))

    def connection_closed(self, connection: int, code: int | None, reason: str, cause: str) -> None:
        self.written.append(("closed", connection, code, reason, cause))

    def connection_rotated(self, old: int, new: int, cause: str) -> None:
        self.written.append(("rotated", old, new, cause))

    def streams_changed(self, added: Sequence[str], removed: Sequence[str]) -> None:
        self.written.append(("streams_changed", tuple(added), tuple(removed)))


class Reading:
    """Lines as the pipeline has them; events are kept instead of being put into a buffer."""

    def __init__(self, url: str, streams: Sequence[str], at_most: int = 1024, **settings: Any) -> None:
        self.telemetry = Telemetry(connections=0)
        self.ledger = Notes()
        self.handed: list[Handed] = []
        self.ended: list[Worker] = []
        self._received: Counter[str] = Counter()
        self._lock = threading.Lock()
        config = ConnectionConfig(**(QUICK | settings))
        decoder = EventDecoder(Topics("trades", "depth", "raw"))
        parts = Parts(url, url, config, decoder, self.telemetry, self.ledger, self._read, self.ended.append)
        self.lines = Lines(tuple(streams), parts, at_most)
        self._keeper = Keeper(self.lines, self, self.ended.append)

    def start(self) -> Reading:
        self.lines.start()
        self._keeper.start()
        return self

    def stop(self) -> None:
        """End everything; what the exchange sent before its goodbye has been handed on then."""
        self._keeper.stop(PATIENCE)
        self.lines.close()
        self.lines.join(Deadline(PATIENCE))

    def count(self, name: str) -> int:
        return int(self.telemetry.snapshot()[name])

    def ids(self, stream: str) -> dict[int, list[int]]:
        """Return the last ids that came of a stream, by source, in order."""
        found: dict[int, list[int]] = {}
        for event in list(self.handed):
            if event.stream == stream:
                found.setdefault(event.source, []).append(event.last)
        return found

    def tick(self) -> None:
        """Do nothing: who follows ids would."""

    def traffic(self) -> dict[str, int]:
        with self._lock:
            return dict(self._received)

    def _read(self, slot: Slot) -> None:
        for chunk in slot.chunks():
            decoded = slot.decode(chunk)
            self.telemetry.received(decoded, chunk.received_ms)
            with self._lock:
                for event in decoded.events:
                    self._received[event.route.stream] += 1
                    self.handed.append(
                        Handed(slot.source, event.route.stream, event.first_id, event.last_id),
                    )


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """Catch every log line."""
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def open_lines() -> Iterator[OpenLines]:
    """Start `open_lines(url, streams, at_most, **settings)`; whatever a test leaves open is closed at its end."""
    with ExitStack() as stack:

        def opened(url: str, streams: Sequence[str], at_most: int = 1024, **settings: Any) -> Reading:
            reading = Reading(url, streams, at_most, **settings).start()
            stack.callback(reading.stop)
            return reading

        yield opened
