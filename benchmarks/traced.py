"""The real service with a clock at three places, for the latency of each leg; never used to measure throughput.

`python -m benchmarks.traced` is `python main.py` with three methods wrapped: the read of a chunk of frames from
the socket, the put of its events into the buffer, and the fate of events whose batch Kafka has answered. Of every
TRACE_EVERY-th event the three times are kept (monotonic clock, which all processes of a machine share) and
written to TRACE_FILE at the end. A wrapped call costs about a microsecond; a fate costs 0.05 us an event more.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from src import signals

if TYPE_CHECKING:
    from src.events import Event

PROBED = {
    "read": ("src.websocket_wire", "FrameReader", "read"),
    "put": ("src.buffer", "Buffer", "put"),
    "settled": ("src.kafka_producer", "KafkaSink", "_told"),
}
"""Module, class and method of each place; a test says so when one of them is gone."""


class Trace:
    """The times of sampled events, handed over from the reading thread to the producer's entry by entry."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._offset = 0
        self._read_ns = 0
        self._pending: dict[int, tuple[Event, int, int]] = {}
        self._done: list[tuple[Event, int, int, int]] = []

    def read(self) -> None:
        """Note that the socket has just been read; on the reading thread, as `sampled` and `buffered` are."""
        self._read_ns = time.monotonic_ns()

    def sampled(self, events: list[Event]) -> list[Event]:
        """Return every n-th event, counted over all chunks."""
        chosen = events[self._offset :: self._every]
        self._offset = (self._offset - len(events)) % self._every
        for event in chosen:  # before the put: its fate could be known before this thread goes on
            self._pending[id(event)] = (event, self._read_ns, 0)
        return chosen

    def buffered(self, chosen: list[Event]) -> None:
        """Note that these events are in the buffer."""
        now = time.monotonic_ns()
        for event in chosen:
            self._pending[id(event)] = (event, self._read_ns, now)

    def settled(self, events: list[Event]) -> None:
        """Note that the fate of these events is known; on the producer's I/O thread."""
        now = time.monotonic_ns()
        pending = self._pending
        for event in events:
            if id(event) in pending:
                self._done.append((*pending.pop(id(event)), now))

    def write(self, path: Path) -> None:
        """Write the record value and the times of reading, buffering and acknowledgement, in ns."""
        path.write_text(json.dumps([(event.value.decode(), *times) for event, *times in self._done]))


def install(trace: Trace) -> None:
    """Put the clock in place."""
    read, put, settled = (_method(place) for place in ("read", "put", "settled"))

    def timed_read(self, wait_until):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - passes all on
        result = read(self, wait_until)
        trace.read()
        return result

    def timed_put(self, events):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        chosen = trace.sampled(events)
        result = put(self, events)
        trace.buffered(chosen)
        return result

    def timed_settled(self, events, error, fate):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        trace.settled(events)
        return settled(self, events, error, fate)

    for place, timed in (("read", timed_read), ("put", timed_put), ("settled", timed_settled)):
        module, owner, name = PROBED[place]
        setattr(getattr(sys.modules[module], owner), name, timed)


def _method(place: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    module, owner, name = PROBED[place]
    return getattr(getattr(__import__(module, fromlist=[owner]), owner), name)


def main() -> int:
    """Do as main.py does, traced."""
    signals.block()
    from src.service import serve  # noqa: PLC0415 - as in main.py

    trace = Trace(int(os.environ["TRACE_EVERY"]))
    install(trace)
    atexit.register(trace.write, Path(os.environ["TRACE_FILE"]))
    return serve()


if __name__ == "__main__":
    sys.exit(main())
