"""Checkpoints: where each stream stands and from which offset on Kafka tells the rest.

The topic is compacted and has one partition. A record by stream name holds that stream's position; one record by
shard holds an offset of each partition of the data topics. What they promise together: every event behind the
positions lies at or behind these offsets, and everything before them is in Kafka. So the offsets are asked for,
then the positions are taken, and they are written once everything up to them is acknowledged, the offsets last.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from queue import Empty, Queue
from typing import TYPE_CHECKING, Protocol

import msgspec
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from src.deadline import Deadline
from src.holes import Interval, Position
from src.kafka_producer import topic_names
from src.kafka_reader import KafkaReader
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from config.kafka import KafkaConfig
    from src.delivery import Delivery
    from src.kafka_producer import KafkaSink
    from src.lost import Lost
    from src.telemetry import Telemetry

VERSION = 1
"""Of the layout; records of another one are passed over."""
_PREFIX = "positions "
_POLL_SECONDS = 0.1
_FINAL_SECONDS = 3.0
_ANSWER_SECONDS = 10.0


class Standing(Protocol):
    """Who knows where the streams stand; see `Continuity`."""

    def positions(self) -> tuple[int, dict[str, Position]]:
        """Return how many events were put into the buffer so far, and where each stream stands after them."""

    def resume(self, positions: dict[str, Position], until_ms: int = 0) -> None:
        """Go on from where the streams stand in Kafka and on disk; nothing there is newer than `until_ms`."""


class _StreamRecord(msgspec.Struct):
    stream: str
    last: int
    missing: list[Interval]
    final: bool
    at_ms: int
    shard: str
    version: int
    event_ms: int = 0
    mixed: bool = False


class _OffsetsRecord(msgspec.Struct):
    offsets: dict[str, dict[int, int]]
    at_ms: int
    version: int


class Checkpoint(msgspec.Struct):
    """What the topic says; without `offsets` nothing is known of where in the data topics it was."""

    positions: dict[str, Position]
    offsets: dict[TopicPartition, int] | None
    at_ms: int = 0
    """When the last of its records was written."""


_decode_stream = msgspec.json.Decoder(_StreamRecord).decode
_decode_offsets = msgspec.json.Decoder(_OffsetsRecord).decode


def every_stream(_: str) -> bool:
    """Say of a stream that it is ours: of one shard all are."""
    return True


def read_checkpoint(
    records: Iterable[tuple[bytes | None, bytes | None]], ours: Callable[[str], bool] = every_stream
) -> Checkpoint:
    """Return the last word of the topic's records, given in order as keys and values, about our own streams.

    Each stream stands where the offsets of the shard begin that wrote it down, so of several, as after their
    number has changed, the lowest offset counts; what other shards read does not.
    """
    latest = dict(records)
    positions: dict[str, Position] = {}
    shards: set[str] = set()
    at_ms = 0
    for key, value in latest.items():
        if key is None or value is None or key.startswith(_PREFIX.encode()):
            continue
        try:
            record = _decode_stream(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if record.version == VERSION and ours(record.stream):
            missing = tuple(record.missing)
            positions[record.stream] = Position(
                record.stream, record.last, missing, record.final, record.event_ms, record.mixed
            )
            shards.add(record.shard)
            at_ms = max(at_ms, record.at_ms)
    offsets = _lowest_offsets([latest.get(f"{_PREFIX}{shard}".encode()) for shard in shards])
    return Checkpoint(positions, offsets, at_ms)


def _lowest_offsets(values: list[bytes | None]) -> dict[TopicPartition, int] | None:
    lowest: dict[TopicPartition, int] = {}
    for value in values:
        try:
            record = _decode_offsets(value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if record.version != VERSION:
            return None
        for topic, offsets in record.offsets.items():
            for number, offset in offsets.items():
                partition = TopicPartition(topic, number)
                lowest[partition] = min(offset, lowest.get(partition, offset))
    return lowest if values else None


class CheckpointWriter:
    """Writes a checkpoint every `interval` seconds and a last one at the end.

    Nothing is written before `resumed` says so: positions that do not know the past
    would take the place of those that do. A checkpoint waits until everything up to it is acknowledged, so while
    Kafka is away none is written.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - its neighbours
        self,
        kafka: KafkaConfig,
        interval: float,
        sink: KafkaSink,
        delivery: Delivery,
        standing: Standing,
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],
        resumed: Callable[[], bool],
        lost: Lost,
        shard: str = "0/1",
    ) -> None:
        self._kafka = kafka
        self._lost = lost
        self._shard = shard
        self._interval = interval
        self._sink = sink
        self._delivery = delivery
        self._standing = standing
        self._telemetry = telemetry
        self._resumed = resumed
        self._reader: KafkaReader | None = None
        self._written: dict[str, Position] = {}
        self._closing = threading.Event()
        self._worker = Worker("checkpoint-writer", self._keep_writing, on_exit)

    def start(self) -> None:
        """Begin; the first checkpoint comes after one interval."""
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._worker.alive

    def close(self, deadline: Deadline) -> None:
        """Write a last checkpoint; for the time after everything was delivered and before the sink is closed."""
        self._closing.set()
        self._worker.join(deadline.remaining(at_most=_FINAL_SECONDS))

    def _keep_writing(self) -> None:
        try:
            while not self._closing.wait(self._interval):
                self._write(lambda: self._closing.wait(_POLL_SECONDS))
            last, never = Deadline(_FINAL_SECONDS), threading.Event()
            self._write(lambda: never.wait(_POLL_SECONDS / 5) or last.expired)
        finally:
            if self._reader is not None:
                self._reader.close()

    def _write(self, pause: Callable[[], bool]) -> None:
        """Write one checkpoint; `pause` waits a moment and says whether to give up."""
        if not self._resumed() or not self._sink.ready:
            return
        try:
            offsets = self._ends()
        except (KafkaError, OSError) as error:
            self._telemetry.checkpoint_failed(error)
            self._drop_reader()
            return
        count, positions = self._standing.positions()
        while self._delivery.settled_up_to() < self._delivery.first_seq + count - 1:
            if pause():
                return
        for stream, ids in self._lost.since().items():  # settled, but not in Kafka
            if stream in positions:
                positions[stream] = positions[stream].lacking(ids)
        self._send(positions, offsets)

    def _ends(self) -> dict[TopicPartition, int]:
        if self._reader is None:
            self._reader = KafkaReader(self._kafka)
        return self._reader.ends(self._reader.partitions(topic_names(self._kafka)))

    def _send(self, positions: dict[str, Position], offsets: dict[TopicPartition, int]) -> None:
        now = time.time_ns() // 1_000_000
        changed = {stream: each for stream, each in positions.items() if self._written.get(stream) != each}
        streams = {
            stream.encode(): _StreamRecord(
                stream,
                each.last,
                list(each.missing),
                each.final,
                now,
                self._shard,
                VERSION,
                each.at_ms,
                each.mixed,
            )
            for stream, each in changed.items()
        }
        by_topic: dict[str, dict[int, int]] = defaultdict(dict)
        for partition, offset in offsets.items():
            by_topic[partition.topic][partition.partition] = offset
        own = {f"{_PREFIX}{self._shard}".encode(): _OffsetsRecord(by_topic, now, VERSION)}
        if self._taken(streams) and self._taken(own):
            self._written |= changed
            self._telemetry.checkpoint_written(len(changed))

    def _taken(self, records: Mapping[bytes, msgspec.Struct]) -> bool:
        """Send records and wait until Kafka has answered for all; return whether it took them."""
        answers: Queue[bool] = Queue()
        topic = self._kafka.topic_checkpoints
        for key, record in records.items():
            if not self._sink.send_aside(topic, key, msgspec.json.encode(record), answered=answers.put):
                return False
        until = Deadline(_ANSWER_SECONDS)
        try:
            return all([answers.get(timeout=until.remaining()) for _ in records])  # noqa: C419 - every answer
        except Empty:  # the producer was replaced meanwhile
            return False

    def _drop_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
