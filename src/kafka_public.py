"""The way into a producer without private parts of kafka-python: `send`, one record at a time."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

from kafka import errors

from src.kafka_fates import ProducerEnded, tell_fates
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import KafkaProducer
    from kafka.structs import TopicPartition

    from src.events import Event
    from src.kafka_fates import Settle


class PublicAppender:
    """The same through `KafkaProducer.send`, one record at a time: the way without private parts.

    When the metadata of a topic vanishes, its records fail: `send` would wait for the topic to come back.
    After `break_off` what the library still holds may go out: the order holds per producer only.
    """

    def __init__(self, producer: KafkaProducer, settle: Settle) -> None:
        self._producer = producer
        self._settle = settle
        self._unsettled: dict[int, tuple[float, Event]] = {}  # since when; by identity; its operations are atomic
        self._told_late = float("-inf")
        self._ended = False
        producer.config["max_block_ms"] = 0  # every topic is known by now

    def append(self, partition: TopicPartition, events: list[Event]) -> None:
        """Queue events for one partition, in order; they come back when the producer has been ended."""
        for event in events:
            self._unsettled[id(event)] = (time.monotonic(), event)
            if self._ended:
                self._tell(event, ProducerEnded("the producer has been ended"), maybe_written=False)
                continue
            try:
                future = self._producer.send(
                    partition.topic,
                    event.value,
                    key=event.route.key,
                    partition=partition.partition,
                    timestamp_ms=event.timestamp_ms,
                )
            except (errors.KafkaError, ValueError) as error:  # too large, topic or partition gone
                self._tell(event, error, maybe_written=False)
            else:
                future.add_callback(lambda _, event=event: self._tell(event, None))
                future.add_errback(lambda error, event=event: self._tell(event, error))

    def append_all(self, events: Mapping[TopicPartition, list[Event]]) -> None:
        """Do the same for several partitions."""
        for partition, group in events.items():
            self.append(partition, group)

    def _tell(self, event: Event, error: BaseException | None, *, maybe_written: bool = True) -> None:
        if self._unsettled.pop(id(event), None) is not None:
            error_of = None if error is None else (lambda _: error)
            tell_fates(self._settle, [event], error_of, maybe_written=maybe_written)

    def unsettled(self, before: float = math.inf) -> list[Event]:
        """Return the events that wait for their fate since before then (monotonic clock), in no order.

        From any thread.
        """
        return [event for since, event in self._unsettled.copy().values() if since < before]

    def late(self, before: float, *, again: bool) -> list[Event]:
        """Return those of them that no earlier call returned, or all `again`, in no order; for one thread."""
        told, self._told_late = float("-inf") if again else self._told_late, max(before, self._told_late)
        return [event for since, event in self._unsettled.copy().values() if told <= since < before]

    def hurry(self) -> None:
        """Send what lingers now; the public flush blocks, so it gets a thread that nobody waits for."""
        Worker("kafka-flush", self._producer.flush, lambda _: None).start()

    def break_off(self) -> None:
        """Take no more."""
        self._ended = True

    def stop(self, timeout: float) -> None:  # noqa: ARG002 - it never waits
        """End the producer; it stays open, on a daemon thread, while something is unacknowledged."""
        self._ended = True
        with contextlib.suppress(errors.KafkaError):
            self._producer.close(timeout=0)
        for event in self.unsettled():
            self._tell(event, ProducerEnded("the producer was ended by force"))
