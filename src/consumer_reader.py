"""A member of a consumer group that reads the service's topics, shows what comes and commits what it has shown."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka.errors import KafkaError

from src.commands import one_line
from src.consumer_events import decode
from src.consumer_statistics import Statistics
from src.kafka_causes import causes_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.kafka import KafkaConfig
    from src.consumer_events import Event

_POLL_MS = 200
_BATCH = 500
_ANSWER_MS = 3_000
_NEW_TOPICS_SEEN_AFTER_MS = 5_000


class _FromBeginning(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Goes to the beginning of each partition when it is assigned for the first time."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._begun: set[Any] = set()

    def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ANN401
        pass

    def on_partitions_assigned(self, assigned: Any) -> None:  # noqa: ANN401
        if new := set(assigned) - self._begun:
            self._consumer.seek_to_beginning(*new)
            self._begun |= new


class View(Protocol):
    """Where a reader shows what it reads."""

    def event(self, event: Event) -> None:
        """Show an event."""

    def malformed(self, where: str, value: bytes | None) -> None:
        """Tell of a record whose value is no JSON object."""

    def remark(self, line: str) -> None:
        """Tell something about the run itself."""

    def flush(self) -> None:
        """Hand over what was shown; raises `BrokenPipeError` when nobody reads it."""

    def end(self, statistics: Statistics) -> None:
        """Show what is to be said at the end."""


class Ending(Protocol):
    """What asks a reader to end."""

    @property
    def asked(self) -> bool:
        """Whether it is to end now."""


class NotCommittedError(Exception):
    """The broker did not take the last offsets: the group gets what was shown since the one before again."""


@dataclass
class Reader:
    """Reads until it is asked to end, or has shown or waited enough."""

    consumer: KafkaConsumer
    view: View
    stop: Ending
    symbols: frozenset[str]
    max_messages: int | None
    seconds: float | None
    statistics: Statistics = field(default_factory=Statistics)
    _announced: bool = False

    def run(self) -> None:
        """Show events; raises `KafkaError` when the broker refuses, `BrokenPipeError` when nobody reads."""
        ends = time.monotonic() + self.seconds if self.seconds is not None else float("inf")
        while not self.stop.asked and self._wanted and time.monotonic() < ends:
            # Never more than is still wanted: what was polled is committed as shown.
            polled = self.consumer.poll(timeout_ms=_POLL_MS, max_records=self._wanted)
            for record in (record for records in polled.values() for record in records):
                self._take(record)
            self.view.flush()
            self._announce()

    def commit(self) -> None:
        """Commit what was shown; raises `NotCommittedError` when the broker does not take it within 3 s.

        A reader without a group has nothing to commit.
        """
        if not self.statistics.records or self.consumer.config["group_id"] is None:
            return
        try:
            self.consumer.commit(timeout_ms=_ANSWER_MS)
        except KafkaError as error:
            raise NotCommittedError(f"what was shown last is not committed: {one_line(error)}") from error

    @property
    def _wanted(self) -> int:
        return _BATCH if self.max_messages is None else min(_BATCH, self.max_messages - self.statistics.shown)

    def _take(self, record: Any) -> None:  # noqa: ANN401 - kafka-python's ConsumerRecord
        if self.symbols and record.key and record.key.decode(errors="replace").upper() not in self.symbols:
            self.statistics.other_symbols += 1
            return
        event = decode(record.key, record.value, time.time() * 1000)
        if event is None:
            self.statistics.malformed += 1
            self.view.malformed(f"{record.topic}[{record.partition}] offset {record.offset}", record.value)
        elif self.symbols and event.symbol not in self.symbols:
            self.statistics.other_symbols += 1
        else:
            self.statistics.add(event)
            self.view.event(event)

    def _announce(self) -> None:
        assigned = self.consumer.assignment()
        if assigned and not self._announced:
            for part in assigned:
                self.consumer.position(part, timeout_ms=_ANSWER_MS)  # from here on nothing new is missed
            self._announced = True
            partitions = "1 partition" if len(assigned) == 1 else f"{len(assigned)} partitions"
            self.view.remark(f"reading {partitions} of {', '.join(sorted({part.topic for part in assigned}))}")


def topic_names(config: KafkaConfig, chosen: Sequence[str]) -> list[str]:
    """Return topic names: `trades`, `depth` and `raw` as configured, others stand for themselves."""
    known = {"trades": config.topic_trades, "depth": config.topic_depth, "raw": config.topic_raw_events}
    return list(dict.fromkeys(known.get(name, name) for name in chosen))


def connect(
    config: KafkaConfig, topics: Sequence[str], group: str, *, from_beginning: bool, wait: float
) -> KafkaConsumer:
    """Return a consumer that has joined nothing yet; raises `NotConnectedError` after `wait` s."""
    with causes_named():
        consumer = KafkaConsumer(
            **config.client_options(),
            group_id=group,
            auto_offset_reset="earliest" if from_beginning else "latest",
            bootstrap_timeout_ms=math.ceil(wait * 1000),
            reconnect_backoff_max_ms=1_000,
            metadata_max_age_ms=_NEW_TOPICS_SEEN_AFTER_MS,
        )
    # By pattern: kafka-python asks for named topics in a way that makes brokers create missing ones, with their
    # own defaults, whatever allow_auto_create_topics says (3.0.12).
    pattern = f"^({'|'.join(map(re.escape, topics))})$"
    consumer.subscribe(pattern=pattern, listener=_FromBeginning(consumer) if from_beginning else None)
    return consumer
