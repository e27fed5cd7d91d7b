"""What becomes of events that were handed to a producer, and what a way into a producer promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from kafka import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka.structs import TopicPartition

    from src.events import Event


class Fate(NamedTuple):
    """What is to be made of events that Kafka did not acknowledge."""

    poison: bool = False
    """Kafka will never take them."""
    maybe_written: bool = False
    """They were on their way when the answer failed to come: sent again, they may be there twice."""


Settle: TypeAlias = Callable[[list["Event"], BaseException | None, Fate], None]
"""Called once for every event with its fate: acknowledged, or the error. Runs on the producer's I/O thread."""


class Appender(Protocol):
    """How events get into the producer."""

    def append(self, partition: TopicPartition, events: list[Event]) -> None:
        """Queue events for one partition, in order; their fate is told to `settle`."""

    def append_all(self, events: Mapping[TopicPartition, list[Event]]) -> None:
        """Do the same for several partitions."""

    def hurry(self) -> None:
        """Send what lingers now."""

    def unsettled(self, before: float = math.inf) -> list[Event]:
        """Return the events that wait for their fate since before then (monotonic clock), in no order.

        From any thread.
        """

    def late(self, before: float, *, again: bool) -> list[Event]:
        """Return those of them that no earlier call returned, or all `again`, in no order; for one thread."""

    def break_off(self) -> None:
        """Let the producer send nothing more; does not wait."""

    def stop(self, timeout: float) -> None:
        """End the producer within `timeout` seconds; the fate of everything has been told on return."""


class ProducerEnded(Exception):  # noqa: N818 - named after the fact
    """The producer was ended before the event was acknowledged."""


POISON = frozenset(
    {
        errors.InvalidRecordError,
        errors.InvalidTimestampError,
        errors.InvalidTopicError,
        errors.MessageSizeTooLargeError,
        errors.PolicyViolationError,
        errors.RecordListTooLargeError,
    }
)
"""Answers to a record that no broker will ever take as it is."""
REFUSALS = POISON | {errors.TopicAuthorizationFailedError, errors.UnsupportedCompressionTypeError}
"""Answers of a broker that has written nothing of the batch."""


def tell_fates(
    settle: Settle, events: list[Event], error_of: Callable[[int], BaseException] | None, *, maybe_written: bool
) -> None:
    """Tell the fate of events: those that are poison apart from those that deserve another try."""
    if error_of is None:
        settle(events, None, Fate())
        return
    errors_by_event = [error_of(index) for index in range(len(events))]
    poison = [event for event, error in zip(events, errors_by_event, strict=True) if type(error) in POISON]
    if poison:
        error = next(error for error in errors_by_event if type(error) in POISON)
        settle(poison, error, Fate(poison=True))
    others = [event for event, error in zip(events, errors_by_event, strict=True) if type(error) not in POISON]
    if others:
        error = next(error for error in errors_by_event if type(error) not in POISON)
        refused = poison or type(error) in REFUSALS
        settle(others, error, Fate(maybe_written=maybe_written and not refused))
