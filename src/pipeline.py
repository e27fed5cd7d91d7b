"""The diagram as code: frames -> events -> buffer -> producer.

lines --chunks--> decoder --events--> continuity --> buffer --batches--> delivery --records--> Kafka
                                                                           |    ^
                                                                           v    |
                                                                           spool: what Kafka does not take yet
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from src.binance_client import GOODBYE_SECONDS
from src.deadline import Deadline
from src.lines import Keeper
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from src.backfill import Backfill
    from src.buffer import Buffer
    from src.checkpoints import CheckpointWriter
    from src.continuity import Continuity
    from src.delivery import Delivery
    from src.ledger import Hours
    from src.line import Slot
    from src.lines import Changed, Lines
    from src.outbox import Outbox
    from src.resume import Resume
    from src.telemetry import Telemetry

_OUTBOX_SECONDS = 2.0
"""At the stop, for the last records of the ledger; what is not sent by then is on disk."""


class Pipeline:
    """Moves events from the lines to the delivery: reading threads, one that keeps them going, one that publishes.

    `open_lines` is given what each reading thread does; `on_exit` is called on the thread of each worker that
    ended, whatever the cause.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the stages
        self,
        open_lines: Callable[[Callable[[Slot], None]], Lines],
        continuity: Continuity,
        backfill: Backfill,
        buffer: Buffer,
        delivery: Delivery,
        resume: Resume,
        checkpoints: CheckpointWriter,
        hours: Hours,
        outbox: Outbox,
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],
    ) -> None:
        self._continuity = continuity
        self._backfill = backfill
        self._buffer = buffer
        self._delivery = delivery
        self._resume = resume
        self._checkpoints = checkpoints
        self._hours = hours
        self._outbox = outbox
        self._telemetry = telemetry
        self.lines = open_lines(self._ingest)
        self._keeper = Keeper(self.lines, self, on_exit)
        self._publisher = Worker("kafka-publisher", self._publish, on_exit)
        self._reading = False

    def start(self) -> None:
        """Start from the end of the flow backwards, all but the lines."""
        self._resume.start()
        self._delivery.start()
        self._outbox.start()
        self._publisher.start()
        self._backfill.start()
        self._checkpoints.start()

    def open_lines(self) -> None:
        """Start to read: the streams go on where they stand in Kafka, if that is known by now."""
        if not self._resume.done:
            self._telemetry.resuming_later()
        self.lines.start()
        self._keeper.start()
        self._reading = True

    @property
    def may_open_lines(self) -> bool:
        """Whether the streams' positions are known, or waited for long enough."""
        return self._resume.may_go_on

    def change(self, streams: Sequence[str]) -> Changed:
        """Read exactly these streams from here on."""
        self._continuity.will_read(streams)
        changed = self.lines.change(streams)
        self._continuity.left(changed.removed)
        return changed

    def stop(self, deadline: Deadline) -> None:
        """Stop in the direction of flow: stop reading, flush the buffer, deliver; all by the deadline."""
        self._buffer.let_all_in()  # whoever waits for a publisher that is dead or stuck holds locks
        self._keeper.stop(deadline.remaining(at_most=1.0))
        self.lines.close()
        self.lines.join(Deadline(min(GOODBYE_SECONDS + 1.0, deadline.remaining() / 2)))
        self._backfill.finish(deadline)
        self._continuity.close()
        self._hours.finish()
        self._buffer.close()
        by_force = self._delivery.close_seconds(deadline)
        self._publisher.join(max(0.0, deadline.remaining() - by_force))
        self._resume.close(deadline.remaining(at_most=0.5))
        self._delivery.finish(deadline)
        spare = Deadline(max(0.0, deadline.remaining() - by_force))
        self._checkpoints.close(spare)
        self._outbox.close(Deadline(spare.remaining(at_most=_OUTBOX_SECONDS)))
        self._delivery.close(deadline)
        self._telemetry.left_behind()

    def state(self) -> dict[str, int | float | bool]:
        """Return what `/status` shows of the parts themselves, by the names of the catalogue."""
        return self.lines.state() | {
            "buffer_capacity": self._buffer.capacity,
            "messages_held": self._continuity.held,
            "spooling": self._delivery.spooling,
        }

    @property
    def alive(self) -> bool:
        """Whether every thread that moves events runs."""
        workers = (self._delivery, self._outbox, self._backfill, self._publisher, self._resume, self._checkpoints)
        readers = (self.lines, self._keeper) if self._reading else ()
        return all(worker.alive for worker in (*workers, *readers))

    def traffic(self) -> dict[str, int]:
        """Return the events received so far, by stream."""
        return self._continuity.traffic()

    def tick(self) -> None:
        """Do what is due by the clock; called about five times a second."""
        self._continuity.tick()
        if not self._delivery.spooling:  # else what is fetched might be lost again
            self._continuity.fetch_lost()
        self._hours.tick(time.time_ns() // 1_000_000)

    def _ingest(self, slot: Slot) -> None:
        for chunk in slot.chunks():
            decoded = slot.decode(chunk)
            self._telemetry.received(decoded, chunk.received_ms)
            if decoded.events and not self._continuity.put(decoded.events, slot.source, slot.opened):
                self._telemetry.dropped(decoded.events, "read_after_shutdown")

    def _publish(self) -> None:
        for batch in self._buffer.batches():
            self._delivery.accept(batch)
