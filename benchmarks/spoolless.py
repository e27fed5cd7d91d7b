"""The service without its spool, to measure what the spool costs: `python -m benchmarks.spool_cost` runs it.

`python -m benchmarks.spoolless` is `python main.py` with the stage between buffer and producer replaced by one
that hands everything to the sink and counts the acknowledgements. What Kafka does not take is lost.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from src import signals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from src.deadline import Deadline
    from src.events import Event
    from src.kafka_fates import Fate
    from src.kafka_producer import KafkaSink
    from src.lost import Lost
    from src.spool import Spool
    from src.telemetry import Telemetry
    from src.worker import Worker

_ROOM_SECONDS = 0.001


class Straight:
    """Has the verbs of `Delivery`, and no disk; waits while the bound on what is in flight is reached."""

    spooling = False
    alive = True
    most_sent_from_disk = 0

    def __init__(  # noqa: PLR0913, PLR0917 - those of `Delivery`
        self,
        sink: KafkaSink,
        spool: Spool,
        refetchable: str,  # noqa: ARG002
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],  # noqa: ARG002
        lost: Lost,  # noqa: ARG002
    ) -> None:
        self._sink = sink
        self._spool = spool
        self._telemetry = telemetry
        self._closing = threading.Event()
        self.first_seq = spool.last_seq + 1
        self._handed_over_up_to: int = spool.last_seq
        self._settled_up_to: int = self._handed_over_up_to
        sink.settle_with(self._settled)

    def start(self) -> None:
        """Open the producer."""
        self._sink.start()

    def accept(self, events: list[Event]) -> None:
        """Hand a batch to the sink."""
        self._telemetry.flushed(events)
        self._telemetry.offered(len(events))
        taken = self._sink.send(events)
        while taken < len(events) and not self._closing.wait(_ROOM_SECONDS):
            taken += self._sink.send(events[taken:])
        self._telemetry.handed_over(taken, len(events) - taken)
        self._handed_over_up_to += taken

    def hold(self) -> None:
        """Do nothing: there is no disk to send from."""

    def release(self) -> None:
        """Do nothing."""

    def was_left(self, events: Sequence[Event]) -> None:
        """Do nothing."""

    def settled_up_to(self) -> int:
        """Return the number of events that were handed over when last nothing was in flight."""
        up_to = self._handed_over_up_to  # first: more may follow
        if not self._sink.in_flight.records:
            self._settled_up_to = up_to
        return self._settled_up_to

    def close_seconds(self, deadline: Deadline) -> float:  # noqa: ARG002 - as the one with a spool
        """Return what is kept for `close` of the shutdown's time."""
        return self._sink.FORCE_SECONDS

    def finish(self, deadline: Deadline) -> None:
        """Wait for what is in flight."""
        self._sink.hurry()
        while deadline.remaining() > self._sink.FORCE_SECONDS and self._sink.in_flight.records:
            self._closing.wait(_ROOM_SECONDS)

    def close(self, deadline: Deadline) -> None:
        """Close everything."""
        self._closing.set()
        self._sink.close(deadline)
        self._spool.close()

    def _settled(self, events: list[Event], error: BaseException | None, fate: Fate) -> None:  # noqa: ARG002
        size = sum(len(event.value) for event in events)
        if error is None:
            self._telemetry.acknowledged(events, size)
        self._sink.in_flight.settle(len(events), size)


def main() -> int:
    """Do as main.py does, without the spool."""
    signals.block()
    from src import service  # noqa: PLC0415 - as in main.py

    vars(service)["Delivery"] = Straight
    return service.serve()


if __name__ == "__main__":
    sys.exit(main())
