"""Going on where Kafka ends: what an earlier run has left in Kafka and on disk, told to `Continuity`.

The checkpoint says where each stream stood and from which offsets on the data topics tell the rest; these tails
are read to the end, of each record only the ids. Events on disk that a killed run had sent, and Kafka has, leave
the disk before they are sent again: the same bytes, so the same event.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from kafka.errors import KafkaError

from src.checkpoints import Checkpoint, every_stream, read_checkpoint
from src.coverage import Coverage, event_type, place, sent_at
from src.events import topic_for
from src.kafka_reader import KafkaReader
from src.left_behind import LeftBehind
from src.spool import SpoolFailed
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka.structs import TopicPartition

    from config.kafka import KafkaConfig
    from src.checkpoints import Standing
    from src.delivery import Delivery
    from src.events import Event, Topics
    from src.spool import Spool
    from src.telemetry import Telemetry

    Offsets = dict[TopicPartition, int]

TAIL_RECORDS = 20_000
"""Read of each partition when no checkpoint tells where to begin."""
_PATIENCE_SECONDS = 2.0
"""How long the start waits for a broker."""
_RETRY_SECONDS = 1.0
_HOPELESS_FAILURES = 3
_CREATE_TIME = 0
"""Kafka's type of a timestamp that whoever sent the record has given it."""


class Resume:
    """Finds the positions on a thread of its own, and tries again until it has them or is closed.

    The service opens its connections when `may_go_on`; without a broker that is after 2 s, and the positions
    come later. Until they are there, or reading fails three times although Kafka is there, nothing that an
    earlier run has left on disk is sent: it may be in Kafka. After that all of it is sent, and what topics and
    disk tell is good for the positions alone: what is in both may have been sent by this run.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - its neighbours
        self,
        kafka: KafkaConfig,
        topics: Topics,
        timeout: float,
        spool: Spool,
        delivery: Delivery,
        standing: Standing,
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],
        kafka_ready: Callable[[], bool],
        ours: Callable[[str], bool] = every_stream,
    ) -> None:
        self._kafka = kafka
        self._topics = topics
        self._timeout = timeout
        self._spool = spool
        self._delivery = delivery
        self._standing = standing
        self._telemetry = telemetry
        self._kafka_ready = kafka_ready
        self._ours = ours
        self._spooled_up_to = spool.last_seq
        self._started_at = 0.0
        self._reading = False
        self._records = 0
        self._newest_ms = 0
        """Of the events in Kafka that were read."""
        self._failures = 0
        self._given_up = False
        """Whether the delivery was released before it was known what Kafka has."""
        self._done = threading.Event()
        self._closing = threading.Event()
        self._worker = Worker("kafka-resume", self._run, on_exit)

    def start(self) -> None:
        """Begin; before the delivery sends anything."""
        self._started_at = time.monotonic()
        if self._spool.count:
            self._delivery.hold()
        self._worker.start()

    @property
    def done(self) -> bool:
        """Whether the positions were found and told."""
        return self._done.is_set()

    @property
    def may_go_on(self) -> bool:
        """Whether the start need not wait: done, no broker within 2 s, or not done in the time that is allowed."""
        waited = time.monotonic() - self._started_at
        return self.done or waited > (self._timeout if self._reading else _PATIENCE_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether it has come to its end well, or still works."""
        return self.done or self._worker.alive

    def close(self, timeout: float) -> None:
        """End within `timeout` seconds, done or not."""
        self._closing.set()
        self._worker.join(timeout)

    def _run(self) -> None:
        while not self._closing.is_set():
            if not self._kafka_ready():  # its topics may be missing, or a broker only coming back
                self._closing.wait(0.02)
                continue
            self._reading = True
            try:
                self._find()
            except (KafkaError, OSError, SpoolFailed) as error:
                self._failed(error)
                self._closing.wait(_RETRY_SECONDS)
            else:
                return

    def _failed(self, error: BaseException) -> None:
        self._telemetry.resume_failed(error)
        self._failures += 1
        if self._failures == _HOPELESS_FAILURES:
            self._reading = False
            self._give_up()

    def _give_up(self) -> None:
        """Let everything on disk be sent; from then on nobody can tell what of it an earlier run has left."""
        with contextlib.suppress(SpoolFailed):  # who sends it will find out as well
            left_behind = LeftBehind(self._spool, self._spooled_up_to, 0)
            left_behind.cover(Coverage({}), self._delivery.was_left, self._closing.is_set)
        self._given_up = True
        self._delivery.release()

    def _find(self) -> None:
        begun_at = time.monotonic()
        self._records = 0
        maybe_sent = 0 if self._given_up else self._delivery.most_sent_from_disk
        left_behind = LeftBehind(self._spool, self._spooled_up_to, maybe_sent)
        reader = KafkaReader(self._kafka)
        try:
            checkpoint = self._checkpoint(reader)
            coverage = Coverage(checkpoint.positions)
            ends = self._read_tail(reader, checkpoint.offsets, coverage, left_behind)
            if self._given_up:
                left_behind.cover(coverage, _known_already, self._closing.is_set)
                self._read_tail(reader, ends, coverage, left_behind)  # what was sent from disk between the two
            else:
                left_behind.cover(coverage, self._delivery.was_left, self._closing.is_set)
        finally:
            reader.close()
        if self._closing.is_set():
            return
        if not self._given_up:
            self._telemetry.already_delivered(left_behind.remove())
            self._delivery.release()
        # A later checkpoint with those of another shard would take the place of what that one has written since.
        positions = {name: each for name, each in coverage.positions().items() if self._ours(name)}
        now_ms = time.time_ns() // 1_000_000
        self._standing.resume(positions, min(max(checkpoint.at_ms, self._newest_ms), now_ms))
        self._done.set()
        self._telemetry.positions_found(
            streams=len(positions),
            missing=sum(last - first + 1 for each in positions.values() for first, last in each.missing),
            records=self._records,
            seconds=round(time.monotonic() - begun_at, 3),
        )

    def _checkpoint(self, reader: KafkaReader) -> Checkpoint:
        partitions = reader.partitions([self._kafka.topic_checkpoints])
        records = reader.records(reader.begins(partitions), reader.ends(partitions), self._closing.is_set)
        checkpoint = read_checkpoint(
            ((each.key, each.value) for _, batch in records for each in batch), self._ours
        )
        topics = {partition.topic for partition in checkpoint.offsets or ()}
        if topics and not topics.issuperset(self._topics):
            return Checkpoint({}, None)  # it speaks of other topics
        return checkpoint

    def _read_tail(
        self, reader: KafkaReader, offsets: Offsets | None, coverage: Coverage, left_behind: LeftBehind
    ) -> Offsets:
        """Read on from these offsets, if they are known, and return how far."""
        partitions = reader.partitions(self._topics)
        begins, ends = reader.begins(partitions), reader.ends(partitions)
        starts = {
            partition: _start(partition, begins[partition], ends[partition], offsets) for partition in partitions
        }
        belongs = _Belonging(self._topics)
        for partition, batch in reader.records(starts, ends, self._closing.is_set):
            self._records += len(batch)
            self._newest_ms = max(self._newest_ms, *(record.timestamp for record in batch), 0)
            topic = partition.topic
            for record in batch:
                value = record.value or b""
                kind = event_type(value)
                if not belongs[topic, kind]:  # a copy of KAFKA_MIRROR_RAW_EVENTS
                    continue
                if (seen := place(value, kind)) is not None:
                    # Where the broker's own time stands instead, what came late would look new.
                    sent_ms = record.timestamp if record.timestamp_type == _CREATE_TIME else 0
                    coverage.saw(seen, sent_at(value, kind, sent_ms))
                left_behind.in_kafka(value)
        return ends


def _known_already(_: list[Event]) -> None:
    """Stand in for `was_left`."""


def _start(partition: TopicPartition, begin: int, end: int, offsets: Offsets | None) -> int:
    """Return the offset from which a partition has to be read.

    Reading more than is needed does no harm: what is known already is seen once more.
    """
    if offsets is None or all(partition.topic != known.topic for known in offsets):
        return max(begin, end - TAIL_RECORDS)
    offset = offsets.get(partition, begin)  # one that came later holds nothing older
    return begin if offset > end else max(begin, offset)  # beyond the end: the topic was made anew


class _Belonging(dict[tuple[str, bytes], bool]):
    """Whether an event of this type stands in its own topic there."""

    def __init__(self, topics: Topics) -> None:
        super().__init__()
        self._topics = topics

    def __missing__(self, key: tuple[str, bytes]) -> bool:
        topic, kind = key
        belongs = topic_for(kind.decode("utf-8", "replace"), self._topics) == topic
        if len(self) < 1000:  # noqa: PLR2004 - types come from the input
            self[key] = belongs
        return belongs
