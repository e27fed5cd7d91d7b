"""The diagram as code: frames -> events -> buffer -> producer.

connection --chunks--> decoder --events--> buffer --batches--> delivery --records--> Kafka
                                                                |    ^
                                                                v    |
                                                                spool: what Kafka does not take yet, on disk
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from src.binance_client import GOODBYE_SECONDS
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from src.binance_client import BinanceConnection
    from src.buffer import Buffer
    from src.deadline import Deadline
    from src.delivery import Delivery
    from src.events import EventDecoder
    from src.telemetry import Telemetry


class Pipeline:
    """Moves events from the connections to the delivery: one reading thread a connection, one publishing thread.

    `on_exit` is called on the thread of each worker that ended, whatever the cause.
    """

    def __init__(
        self,
        sources: Sequence[tuple[BinanceConnection, EventDecoder]],
        buffer: Buffer,
        delivery: Delivery,
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],
    ) -> None:
        self._connections = [connection for connection, _ in sources]
        self._buffer = buffer
        self._delivery = delivery
        self._telemetry = telemetry
        self._readers = [
            Worker(f"binance-reader-{number}", partial(self._ingest, *source), on_exit)
            for number, source in enumerate(sources)
        ]
        self._publisher = Worker("kafka-publisher", self._publish, on_exit)

    def start(self) -> None:
        """Start from the end of the flow backwards."""
        self._delivery.start()
        self._publisher.start()
        for reader in self._readers:
            reader.start()

    def stop(self, deadline: Deadline) -> None:
        """Stop in the direction of flow: stop reading, flush the buffer, deliver; all by the deadline."""
        for connection in self._connections:
            connection.close()
        for reader in self._readers:
            reader.join(deadline.remaining(at_most=GOODBYE_SECONDS + 1.0))
        self._buffer.close()
        self._publisher.join(deadline.remaining())
        self._delivery.close(deadline)
        self._telemetry.left_behind()

    def state(self) -> dict[str, int | bool]:
        """Return what `/status` shows of the parts themselves, by the names of the catalogue."""
        return {
            "connections": len(self._connections),
            "connection_failures_in_a_row": max(each.failures_in_a_row for each in self._connections),
            "buffer_capacity": self._buffer.capacity,
            "spooling": self._delivery.spooling,
        }

    @property
    def alive(self) -> bool:
        """Whether every thread that moves events runs."""
        return self._delivery.alive and all(worker.alive for worker in (*self._readers, self._publisher))

    def _ingest(self, connection: BinanceConnection, decoder: EventDecoder) -> None:
        for chunk in connection.chunks():
            decoded = decoder.decode(chunk.frames, chunk.received_ms)
            self._telemetry.received(decoded, chunk.received_ms)
            for reply in decoded.replies:
                connection.replied(reply)
            if decoded.events and not self._buffer.put(decoded.events):
                self._telemetry.dropped(decoded.events, "read_after_shutdown")

    def _publish(self) -> None:
        for batch in self._buffer.batches():
            self._delivery.accept(batch)
