"""Appending events to the producer's batches a chunk at a time: the one file that leans on its insides.

`KafkaProducer.send` makes a future, callbacks and a metadata look-up for each record: 20 to 60 us. Here
a partition's lock is taken once a chunk, records are encoded straight into the newest open batch, and each
batch has one callback: 2 us a record. Batching, compression, idempotence, retries and requests stay the
library's. `can_append_batches` tells whether the insides still look as expected (kafka-python 3.0.12);
when not, `PublicAppender` does the same through `send`. `Producer` takes traps out of the idempotent one.

Record layout: Kafka protocol, message format v2 (KIP-98).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from kafka import KafkaProducer, errors
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.transaction_manager import InitProducerIdHandler, TransactionManager, TransactionState
from kafka.record.memory_records import MemoryRecordsBuilder

from src.kafka_fates import REFUSALS, Fate, ProducerEnded, tell_fates
from src.kafka_public import PublicAppender

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kafka.structs import TopicPartition

    from src.events import Event
    from src.kafka_fates import Appender, Settle


def appender_for(producer: KafkaProducer, settle: Settle) -> Appender:
    """Return the fast way into this producer, or the public one when its insides have changed."""
    return BatchAppender(producer, settle) if can_append_batches(producer) else PublicAppender(producer, settle)


def can_append_batches(producer: KafkaProducer) -> bool:
    """Whether the producer has the insides that `BatchAppender` works on."""
    try:
        return all(hasattr(part, name) for part, names in _insides(producer) for name in names)
    except (AttributeError, TypeError, AssertionError):  # a part is gone, or is made in another way
        return False


def _insides(producer: KafkaProducer) -> list[tuple[object, tuple[str, ...]]]:
    accumulator = producer._accumulator
    config = accumulator.config
    probe = MemoryRecordsBuilder(
        config.get("message_version"), config.get("compression_attrs"), config.get("batch_size")
    )
    batch = ProducerBatch(None, probe, now=0.0)
    return [
        (accumulator, ("_tp_lock", "_batches", "_closed", "begin_flush")),
        (accumulator._appends_in_progress, ("increment", "decrement")),
        (accumulator._incomplete, ("add",)),
        (producer._metadata, ("partitions_for_topic",)),
        (producer._sender, ("wakeup", "force_close", "join")),
        (probe, ("_next_offset", "_closed", "is_full", "compression_rate", "size_in_bytes")),
        (
            probe._builder,  # that of message format v2 only
            ("_buffer", "_batch_size", "_first_timestamp", "_max_timestamp", "_num_records", "_last_offset"),
        ),
        (batch, ("_record_futures", "records", "last_append")),
        (batch.produce_future, ("add_callback",)),
    ]


def partition_count(producer: KafkaProducer, topic: str) -> int | None:
    """Return how many partitions the producer knows of; None when it knows nothing. Never waits."""
    try:
        return len(producer._metadata.partitions_for_topic(topic) or ()) or None
    except AttributeError:
        return None


class Producer(KafkaProducer):  # type: ignore[misc]  # no types
    """A producer that outlives a refused batch, a delivery timeout and a slow broker (see `_Sequences`)."""

    _state: TransactionManager | None = None

    def __init__(self, **configs: Any) -> None:  # noqa: ANN401 - the library's
        super().__init__(**configs)
        with contextlib.suppress(
            AttributeError
        ):  # 3.0.12 does not pass it on, so brokers made topics of their own
            self._metadata.config["allow_auto_create_topics"] = self.config["allow_auto_create_topics"]

    @property
    def _transaction_manager(self) -> TransactionManager | None:
        return self._state

    @_transaction_manager.setter
    def _transaction_manager(self, state: TransactionManager | None) -> None:
        """Mend it when the library sets it, before it starts the thread that uses it."""
        if type(state) is TransactionManager:
            state.__class__ = _Sequences
        self._state = state

    def __del__(self) -> None:
        """Do nothing: the library's version silences kafka.producer's logger for the whole process."""


class _Sequences(TransactionManager):  # type: ignore[misc]  # no types
    """The state of an idempotent producer, without three traps of kafka-python 3.0.12."""

    def classify_batch_error(self, error: Any, batch: ProducerBatch, log_start_offset: int = -1) -> Any:  # noqa: ANN401
        """Tell what a failed batch means; the library ends the whole producer over one record too large."""
        kind = super().classify_batch_error(error, batch, log_start_offset=log_start_offset)
        if kind != self.ERROR_CLASS_FATAL or type(error) in self._FATAL_ERRORS:
            return kind
        if type(error) in REFUSALS and not batch.in_retry() and self.producer_id_and_epoch.match(batch):
            # Nothing of it was written, and no other batch of the partition is under way (the library mutes
            # it): the next one takes its sequence numbers. Otherwise it would be refused as out of sequence.
            self.set_sequence_number(batch.topic_partition, batch.base_sequence)
        else:  # unknown how much was written: a used number would pass for a duplicate, and be lost
            self.reset_producer_id()
        return self.ERROR_CLASS_RETRIABLE

    def reset_producer_id(self) -> None:
        """Forget the producer id and ask for a new one; the library only forgets, and then waits forever."""
        with self._lock:
            super().reset_producer_id()
            if self._current_state == TransactionState.READY:  # type: ignore[has-type]  # no types
                self._current_state = TransactionState.UNINITIALIZED

    def _enqueue_request(self, handler: Any) -> None:  # noqa: ANN401
        if type(handler) is InitProducerIdHandler:
            handler.__class__ = _PatientInit
        super()._enqueue_request(handler)


class _PatientInit(InitProducerIdHandler):  # type: ignore[misc]  # no types
    """Asks for a producer id until a broker answers; the library ends the producer when one is too slow."""

    def on_complete(self, correlation_id: int, answer: object) -> None:
        if isinstance(answer, errors.RetriableError):
            answer = errors.KafkaConnectionError(str(answer))  # the one error after which it is asked again
        super().on_complete(correlation_id, answer)


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
_ONE_BYTE_EACH = 2  # attributes in front, the number of headers behind: both 0
_PARTS = 8  # of which a record is joined
_BESIDE_THE_VALUE = 40  # bytes of a record: key, lengths, offset, time
_MOST_TO_FILL = 131_072
"""Bytes of records that a smaller KAFKA_BATCH_SIZE may grow to before compression."""


class _Batch:
    """The events of one producer batch, until Kafka has answered.

    Stands in as the batch's list of record futures, of which the library asks only when it splits a batch
    that the broker found too large; each event then follows its new batch.
    """

    __slots__ = ("_owner", "batch", "events", "since", "told_late")

    def __init__(self, owner: BatchAppender, batch: ProducerBatch) -> None:
        self.events: list[Event] = []
        self.batch = batch
        self.since = batch.created
        self.told_late = 0  # so many of the events; more may join while the batch waits
        self._owner = owner

    def __call__(self, result: _Result) -> None:
        written = self.batch is not None and self.batch.drained is not None
        if written and self.batch.records._closed:
            self._owner.learn(self.batch)
        self.batch = None  # it refers to us
        self._owner.tell(self, result[2], maybe_written=written)

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: int) -> _Moved:
        self.batch = None
        return self._owner.moved(self, index)


class _Moved:
    """An event whose batch was split."""

    __slots__ = ("_owner", "events", "since", "told_late")

    def __init__(self, owner: BatchAppender, split: _Batch, index: int) -> None:
        self.events = [split.events[index]]
        self.since = split.since
        self.told_late = int(index < split.told_late)
        self._owner = owner

    def rebind(self, produce_future: Any, index: int) -> None:  # noqa: ANN401 - FutureProduceResult
        def told(result: _Result) -> None:
            error_of = result[2]
            error = None if error_of is None else (lambda _: error_of(index))
            self._owner.tell(self, error, maybe_written=True)

        produce_future.add_callback(told)


_Result: TypeAlias = tuple[int, int, Callable[[int], BaseException] | None]
"""Base offset, timestamp, and the error of each record by its index, None when there is none."""


class BatchAppender:
    """Writes encoded records into the accumulator's batches."""

    def __init__(self, producer: KafkaProducer, settle: Settle) -> None:
        self._producer = producer
        self._settle = settle
        self._accumulator = producer._accumulator
        self._sender = producer._sender
        self._keys: dict[bytes | None, bytes] = {None: _NULL}
        self._unsettled: set[_Batch | _Moved] = set()  # set operations are atomic
        self._lingering = self._accumulator.config["linger_ms"] / 1000
        self._appended_at = time.monotonic()
        self._alone = False
        """Whether nothing was appended for as long as a batch lingers, before what is appended now."""
        self._shrinks_to: dict[str, float] = {}
        """By topic: the share of its size that is left of a batch when it is compressed, as seen lately."""

    def append(self, partition: TopicPartition, events: list[Event]) -> None:
        """Queue events for one partition, in order; they come back when the producer has been ended."""
        self.append_all({partition: events})

    def append_all(self, events: Mapping[TopicPartition, list[Event]]) -> None:
        """Queue events by partition, and wake the producer's thread once, at the end.

        Lingering is for what may come meanwhile. When nothing has come for as long as that, it is left out, and a
        batch may grow to twice its size rather than leave a remainder behind: a flush of the buffer a few times a
        second costs one request then instead of two or three, and none of it waits for an answer to the rest.
        """
        now = time.monotonic()
        self._alone = 0 < self._lingering <= now - self._appended_at
        self._appended_at = now
        to_send = [self._queued(partition, group) for partition, group in events.items()]
        if any(to_send):
            self._sender.wakeup()

    def _queued(self, partition: TopicPartition, events: list[Event]) -> bool:
        """Queue events for one partition; return whether there is something new for the producer's thread."""
        accumulator = self._accumulator
        # The producer counts appends so that a forced close does not miss a batch.
        accumulator._appends_in_progress.increment()
        try:
            with accumulator._tp_lock(partition):
                closed = accumulator._closed
                to_send = not closed and self._append_locked(accumulator._batches[partition], partition, events)
        finally:
            accumulator._appends_in_progress.decrement()
        if closed:
            self._settle(events, ProducerEnded("the producer has been ended"), Fate())
        return to_send

    def _append_locked(self, queue: Any, partition: TopicPartition, events: list[Event]) -> bool:  # noqa: ANN401
        now = time.monotonic()
        done = self._extend(queue[-1], events, 0, now) if queue and _is_open(queue[-1]) else 0
        started = done < len(events)
        while done < len(events):
            batch = self._new_batch(partition, events[done:], now)
            done = self._extend(batch, events, done, now)
            queue.append(batch)
            self._accumulator._incomplete.add(batch)
        return started or queue[-1].records.is_full()

    def _new_batch(self, partition: TopicPartition, events: Iterable[Event], now: float) -> ProducerBatch:
        config = self._accumulator.config
        size = self._size_to_fill(partition.topic, config["batch_size"])
        if self._alone and size < sum(len(event.value) + _BESIDE_THE_VALUE for event in events) <= 2 * size:
            size *= 2
        records = MemoryRecordsBuilder(config["message_version"], config["compression_attrs"], size)
        batch = ProducerBatch(partition, records, now=now)
        if self._alone:
            batch.last_attempt = now - self._lingering  # from then on its lingering counts
        batch._record_futures = _Batch(self, batch)
        batch.produce_future.add_callback(batch._record_futures)
        self._unsettled.add(batch._record_futures)
        return batch

    def _size_to_fill(self, topic: str, batch_size: int) -> int:
        """Return how many bytes of records make a batch of `batch_size` bytes when it is compressed.

        So Java's producer understands its `batch.size`; kafka-python counts the bytes before. A partition has one
        batch under way at a time, so with small batches the round trips to the broker bound the rate.
        """
        expected = int(batch_size / self._shrinks_to.get(topic, 1.0))
        return max(batch_size, min(expected, _MOST_TO_FILL))

    def learn(self, batch: ProducerBatch) -> None:
        """Take note of how well a batch that was sent could be compressed; on the producer's I/O thread."""
        records, topic = batch.records, batch.topic_partition.topic
        share = records.compression_rate()
        if records.size_in_bytes() / share >= self._accumulator.config["batch_size"] / 2:  # small ones tell little
            before = self._shrinks_to.get(topic, 1.0)
            self._shrinks_to[topic] = max(share, before + 0.1 * (share - before))

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
        for event in islice(events, start, None):
            value, timestamp = event.value, event.timestamp_ms
            key = keys.get(event.route.key) or self._encoded_key(event.route.key)
            delta = timestamp - first_timestamp
            since = varints[delta] if 0 <= delta < len(varints) else _varint(delta)  # often beyond, of a backlog
            try:
                number, size = varints[offset], varints[len(value)]
            except IndexError:
                number, size = _varint(offset), _varint(len(value))
            length = len(since) + len(number) + len(key) + len(size) + len(value) + _ONE_BYTE_EACH
            whole = varints[length] if length < len(varints) else _varint(length)
            room -= len(whole) + length
            if room < 0 and offset:
                break
            encoded += (whole, b"\0", since, number, key, size, value, b"\0")
            if timestamp > max_timestamp:  # noqa: PLR1730 - a call costs more
                max_timestamp = timestamp
            offset += 1
        builder._buffer += b"".join(encoded)
        builder._max_timestamp = max_timestamp
        builder._num_records = offset
        builder._last_offset = max(offset - 1, 0)
        records._next_offset = offset
        batch.last_append = now
        done = start + len(encoded) // _PARTS
        batch._record_futures.events += events[start:done]
        return done

    def _encoded_key(self, key: bytes | None) -> bytes:
        if len(self._keys) > 100_000:  # noqa: PLR2004 - keys come from the input; the cache must end
            self._keys = {None: _NULL}
        encoded = self._keys[key] = _NULL if key is None else _varint(len(key)) + key
        return encoded

    def hurry(self) -> None:
        """Send what lingers now; for the end, it cannot be taken back."""
        self._accumulator.begin_flush()
        self._sender.wakeup()

    def tell(
        self, part: _Batch | _Moved, error_of: Callable[[int], BaseException] | None, *, maybe_written: bool
    ) -> None:
        """Settle a part, once."""
        try:
            self._unsettled.remove(part)
        except KeyError:
            return  # given up before
        tell_fates(self._settle, part.events, error_of, maybe_written=maybe_written)

    def unsettled(self, before: float = math.inf) -> list[Event]:
        """Return the events that wait for their fate since before then (monotonic clock), in no order.

        From any thread.
        """
        return [event for part in self._unsettled.copy() if part.since < before for event in list(part.events)]

    def late(self, before: float, *, again: bool) -> list[Event]:
        """Return those of them that no earlier call returned, or all `again`, in no order; for one thread."""
        events: list[Event] = []
        for part in self._unsettled.copy():
            if part.since < before:
                new = part.events[0 if again else part.told_late :]
                part.told_late = len(new) if again else part.told_late + len(new)
                events += new
        return events

    def moved(self, split: _Batch, index: int) -> _Moved:
        """Follow an event of a batch that is being split."""
        part = _Moved(self, split, index)
        self._unsettled.add(part)
        self._unsettled.discard(split)
        return part

    def break_off(self) -> None:
        """Let the producer's thread end before it sends anything more; does not wait for it."""
        self._sender.force_close()

    def stop(self, timeout: float) -> None:
        """End the producer by force: its orderly end spins and logs while it has no producer id."""
        self._sender.force_close()
        self._sender.join(timeout)
        with contextlib.suppress(errors.KafkaError):  # otherwise its exit handler waits, and complains
            self._producer.close(timeout=0)
        ended = ProducerEnded("the producer was ended by force")
        for part in self._unsettled.copy():  # its thread may wait for a broker a while longer
            self.tell(part, lambda _: ended, maybe_written=True)


def _is_open(batch: ProducerBatch) -> bool:
    """Whether more of our events may join: not sealed by the sender, not the half of a split batch."""
    return not batch.records._closed and type(batch._record_futures) is _Batch
