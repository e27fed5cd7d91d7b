"""Appending events to the producer's batches a chunk at a time: the one file that leans on its insides.

`KafkaProducer.send` makes a future, callbacks and a metadata look-up for each record: 20 to 60 us. Here
a partition's lock is taken once a chunk, records are encoded straight into the newest open batch, and each
batch has one callback: 2 us a record. Batching, compression, idempotence, retries and requests stay the
library's. `can_append_batches` tells whether the insides still look as expected (kafka-python 3.0.12);
when not, `PublicAppender` does the same through `send`.

Record layout: Kafka protocol, message format v2 (KIP-98).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder

if TYPE_CHECKING:
    from kafka import KafkaProducer
    from kafka.structs import TopicPartition

    from src.events import Event

Settle: TypeAlias = Callable[[list["Event"], BaseException | None], None]
"""Called once for every event with its fate: acknowledged, or the error. Runs on the producer's I/O thread."""


class Appender(Protocol):
    """How events get into the producer."""

    def append(self, partition: TopicPartition, events: list[Event]) -> None:
        """Queue events for one partition, in order; their fate is told to `settle`."""

    def hurry(self) -> None:
        """Send what lingers now."""

    def stop(self, timeout: float) -> None:
        """End the producer; what is not acknowledged within `timeout` seconds fails."""


def can_append_batches(producer: KafkaProducer) -> bool:
    """Whether the producer has the insides that `BatchAppender` works on."""
    accumulator = getattr(producer, "_accumulator", None)
    probe = MemoryRecordsBuilder(2, 0, 1024)
    builder = getattr(probe, "_builder", None)
    batch = ProducerBatch(None, probe)
    expected: list[tuple[object, tuple[str, ...]]] = [
        (accumulator, ("_tp_lock", "_batches", "_incomplete", "_appends_in_progress", "_closed", "config")),
        (accumulator, ("begin_flush",)),
        (getattr(producer, "_metadata", None), ("partitions_for_topic",)),
        (getattr(producer, "_sender", None), ("wakeup", "initiate_close", "force_close", "join")),
        (probe, ("_next_offset", "_closed")),
        (
            builder,
            ("_buffer", "_batch_size", "_first_timestamp", "_max_timestamp", "_num_records", "_last_offset"),
        ),
        (batch, ("produce_future", "_record_futures", "records", "last_append", "max_record_size")),
    ]
    found = all(hasattr(part, name) for part, names in expected for name in names)
    return found and accumulator.config["message_version"] == 2  # type: ignore[union-attr]  # noqa: PLR2004


def partition_count(producer: KafkaProducer, topic: str) -> int | None:
    """Return how many partitions the producer knows of; None when it knows nothing. Never waits."""
    return len(producer._metadata.partitions_for_topic(topic) or ()) or None


def _varint(number: int) -> bytes:
    """Encode a signed number: zigzag, then 7 bits a byte, lowest first."""
    rest = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while rest > 0x7F:  # noqa: PLR2004 - seven bits
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


_VARINTS = tuple(_varint(number) for number in range(16_384))
_NULL = _varint(-1)


class _Fate:
    """The events of one producer batch, until Kafka has answered.

    Stands in as the batch's list of record futures, of which the library asks only when it splits a batch
    that the broker found too large; each event then follows its new batch.
    """

    __slots__ = ("_settle", "events")

    def __init__(self, settle: Settle) -> None:
        self.events: list[Event] = []
        self._settle = settle

    def __call__(self, result: tuple[int, int, Callable[[int], BaseException] | None]) -> None:
        error_of = result[2]
        self._settle(self.events, None if error_of is None else error_of(0))

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: int) -> _Moved:
        return _Moved(self.events[index], self._settle)


class _Moved:
    """An event whose batch was split."""

    __slots__ = ("_event", "_settle")

    def __init__(self, event: Event, settle: Settle) -> None:
        self._event = event
        self._settle = settle

    def rebind(self, produce_future: Any, index: int) -> None:  # noqa: ANN401 - FutureProduceResult
        def told(result: tuple[int, int, Callable[[int], BaseException] | None]) -> None:
            self._settle([self._event], None if result[2] is None else result[2](index))

        produce_future.add_callback(told)


class BatchAppender:
    """Writes encoded records into the accumulator's batches."""

    def __init__(self, producer: KafkaProducer, settle: Settle) -> None:
        self._producer = producer
        self._settle = settle
        self._accumulator = producer._accumulator
        self._sender = producer._sender
        self._keys: dict[bytes | None, bytes] = {None: _NULL}

    def append(self, partition: TopicPartition, events: list[Event]) -> None:
        """Queue events for one partition, in order."""
        accumulator = self._accumulator
        # The producer counts appends so that a forced close does not miss a batch.
        accumulator._appends_in_progress.increment()
        try:
            with accumulator._tp_lock(partition):
                if accumulator._closed:
                    raise RuntimeError("the producer is closed")
                started = self._append_locked(accumulator._batches[partition], partition, events)
        finally:
            accumulator._appends_in_progress.decrement()
        if started:
            self._sender.wakeup()

    def _append_locked(self, queue: Any, partition: TopicPartition, events: list[Event]) -> bool:  # noqa: ANN401
        now = time.monotonic()
        done = self._extend(queue[-1], events, 0, now) if queue and _is_open(queue[-1]) else 0
        started = done < len(events)
        while done < len(events):
            batch = self._new_batch(partition, now)
            done = self._extend(batch, events, done, now)
            queue.append(batch)
        return started

    def _new_batch(self, partition: TopicPartition, now: float) -> ProducerBatch:
        config = self._accumulator.config
        records = MemoryRecordsBuilder(
            config["message_version"], config["compression_attrs"], config["batch_size"]
        )
        batch = ProducerBatch(partition, records, now=now)
        batch._record_futures = _Fate(self._settle)
        batch.produce_future.add_callback(batch._record_futures)
        self._accumulator._incomplete.add(batch)
        return batch

    def _extend(self, batch: ProducerBatch, events: list[Event], start: int, now: float) -> int:
        """Encode events from `start` on into the batch until it is full; return where it ended.

        The first record of a batch is taken whatever its size, as the library does.
        """
        records = batch.records
        builder = records._builder
        offset = records._next_offset
        room = builder._batch_size - len(builder._buffer)
        if offset == 0:
            builder._first_timestamp = builder._max_timestamp = events[start].timestamp_ms
        first_timestamp, max_timestamp = builder._first_timestamp, builder._max_timestamp
        keys, varints = self._keys, _VARINTS
        encoded: list[bytes] = []
        at = start
        for at in range(start, len(events)):
            event = events[at]
            value, timestamp = event.value, event.timestamp_ms
            key = keys.get(event.route.key) or self._encoded_key(event.route.key)
            size, delta = len(value), timestamp - first_timestamp
            body = b"".join(
                (
                    b"\0",  # attributes
                    varints[delta] if 0 <= delta < 16_384 else _varint(delta),  # noqa: PLR2004
                    varints[offset] if offset < 16_384 else _varint(offset),  # noqa: PLR2004
                    key,
                    varints[size] if size < 16_384 else _varint(size),  # noqa: PLR2004
                    value,
                    b"\0",  # no headers
                )
            )
            size = len(body)
            length = varints[size] if size < 16_384 else _varint(size)  # noqa: PLR2004
            room -= size + len(length)
            if room < 0 and offset:
                break
            encoded += (length, body)
            max_timestamp = max(timestamp, max_timestamp)
            offset += 1
        else:
            at = len(events)
        builder._buffer += b"".join(encoded)
        builder._max_timestamp = max_timestamp
        builder._num_records = offset
        builder._last_offset = max(offset - 1, 0)
        records._next_offset = offset
        batch.last_append = now
        batch._record_futures.events += events[start:at]
        return at

    def _encoded_key(self, key: bytes | None) -> bytes:
        if len(self._keys) > 100_000:  # noqa: PLR2004 - keys come from the input; the cache must end
            self._keys = {None: _NULL}
        encoded = self._keys[key] = _NULL if key is None else _varint(len(key)) + key
        return encoded

    def hurry(self) -> None:
        """Send what lingers now; for the end, it cannot be taken back."""
        self._accumulator.begin_flush()
        self._sender.wakeup()

    def stop(self, timeout: float) -> None:
        """End the producer; what is not acknowledged within `timeout` seconds fails."""
        self._sender.initiate_close()
        self._sender.join(timeout)
        if self._sender.is_alive():
            self._sender.force_close()
            self._sender.join(1.0)
        self._producer.close(timeout=0)


def _is_open(batch: ProducerBatch) -> bool:
    """Whether more of our events may join: not sealed by the sender, not the half of a split batch."""
    return not batch.records._closed and type(batch._record_futures) is _Fate


class PublicAppender:
    """The same through `KafkaProducer.send`, one record at a time: the way without private parts."""

    def __init__(self, producer: KafkaProducer, settle: Settle) -> None:
        self._producer = producer
        self._settle = settle

    def append(self, partition: TopicPartition, events: list[Event]) -> None:
        """Queue events for one partition, in order."""
        for event in events:
            future = self._producer.send(
                partition.topic,
                event.value,
                key=event.route.key,
                partition=partition.partition,
                timestamp_ms=event.timestamp_ms,
            )
            future.add_callback(self._acknowledged, event)
            future.add_errback(self._failed, event)

    def _acknowledged(self, event: Event, _metadata: object) -> None:
        self._settle([event], None)

    def _failed(self, event: Event, error: BaseException) -> None:
        self._settle([event], error)

    def hurry(self) -> None:
        """Leave it to `stop`: the public flush would block."""

    def stop(self, timeout: float) -> None:
        """End the producer, waiting up to `timeout` seconds for what is not acknowledged."""
        from kafka.errors import KafkaTimeoutError  # noqa: PLC0415

        try:
            self._producer.close(timeout=timeout)
        except KafkaTimeoutError:
            return  # it stays open when its flush times out; the caller counts what is left
