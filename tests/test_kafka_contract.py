"""What the service takes for granted of kafka-python's insides; a version that fails here is not usable yet."""

from __future__ import annotations

import inspect
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from kafka import TopicPartition, errors
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.partitioner.default import DefaultPartitioner
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.producer.transaction_manager import (
    InitProducerIdHandler,
    ProducerIdAndEpoch,
    TransactionManager,
    TransactionState,
)
from kafka.record.memory_records import MemoryRecordsBuilder

from src import kafka_batches, kafka_causes
from src.events import Event, Route
from src.kafka_batches import BatchAppender, appender_for, can_append_batches
from src.kafka_producer import _Partitions
from src.kafka_public import PublicAppender

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka.producer.producer_batch import ProducerBatch

    from src.kafka_fates import Fate

PARTITION = TopicPartition("topic", 0)
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
KEYS = [b"BTCUSDT", b"", None, "比特币USDT".encode(), "ÄÖÜ".encode(), b"K" * 200, b"ETHUSDT"]
NOW = 1_700_000_000_000


def accumulator(**config: int) -> RecordAccumulator:
    return RecordAccumulator(**{"batch_size": 16_384, "compression_attrs": 0} | config)


def producer_like(batches: RecordAccumulator) -> SimpleNamespace:
    """Everything of a producer that `BatchAppender` touches, without a network."""
    return SimpleNamespace(
        config={},
        _accumulator=batches,
        _metadata=SimpleNamespace(partitions_for_topic=lambda _: {0}),
        _sender=SimpleNamespace(wakeup=lambda: None, force_close=lambda: None, join=lambda _: None),
        _transaction_manager=None,
    )


def ignored(_events: list[Event], _error: BaseException | None, _fate: Fate) -> None:
    pass


def appended_by_us(events: list[Event], chunks: list[int], **config: int) -> list[ProducerBatch]:
    batches = accumulator(**config)
    appender = BatchAppender(producer_like(batches), ignored)
    rest = iter(events)
    for size in chunks:
        appender.append(PARTITION, [next(rest) for _ in range(size)])
    assert next(rest, None) is None
    return list(batches._batches[PARTITION])


def appended_by_the_library(events: list[Event], **config: int) -> list[ProducerBatch]:
    batches = accumulator(**config)
    for event in events:
        batches.append(PARTITION, event.timestamp_ms, event.route.key, event.value, [])
    return list(batches._batches[PARTITION])


def encoded(batch: ProducerBatch) -> bytes:
    batch.records.set_producer_state(7, 1, 42, is_transactional=False)
    batch.records.close()
    return bytes(batch.records.buffer())


def assert_same_batches(events: list[Event], chunks: list[int], **config: int) -> None:
    ours, theirs = appended_by_us(events, chunks, **config), appended_by_the_library(events, **config)
    assert [batch.record_count for batch in ours] == [batch.record_count for batch in theirs]
    assert [len(batch._record_futures) for batch in ours] == [len(batch._record_futures) for batch in theirs]
    assert [batch.records.is_full() for batch in ours] == [batch.records.is_full() for batch in theirs]
    assert [encoded(batch) for batch in ours] == [encoded(batch) for batch in theirs]


DELTAS = (0, 1, -1, 63, 64, -64, -65, 8_191, 8_192, 16_384, -20_000, 2**33, -(2**40), -NOW)


def some_events(seed: int, count: int, sizes: tuple[int, ...]) -> list[Event]:
    chance = random.Random(seed)
    routes = [Route("trade", "topic", key, b"", 0, b"") for key in KEYS]
    return [
        Event(
            chance.choice(routes),
            chance.randbytes(chance.choice(sizes)),
            NOW + chance.choice(DELTAS),
        )
        for _ in range(count)
    ]


def some_chunks(seed: int, count: int) -> list[int]:
    chance = random.Random(seed)
    chunks = []
    while count:
        chunks.append(chance.randint(1, min(count, 60)))
        count -= chunks[-1]
    return chunks


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("batch_size", [1, 100, 1_000, 16_384, 131_072, 1_000_000])
def test_batches_are_byte_for_byte_those_of_the_library(
    codec: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)  # gzip writes the time into its header
    events = some_events(batch_size, 400, (1, 2, 57, 58, 63, 64, 120, 250, 1_200, 8_191, 8_192, 16_383, 16_400))
    assert_same_batches(events, some_chunks(1, 400), batch_size=batch_size, compression_attrs=CODECS[codec])


@pytest.mark.parametrize("seed", range(20))
def test_batches_fill_up_exactly_as_far_as_those_of_the_library(seed: int) -> None:
    size = random.Random(seed).randint(61, 900)
    assert_same_batches(some_events(seed, 300, (1, 2, 3, 5, 8, 13, 21)), some_chunks(seed, 300), batch_size=size)


def test_more_records_than_the_table_of_numbers_has_fit_into_one_batch() -> None:
    events = [Event(Route("t", "topic", None, b"", 0, b""), b"x", NOW + number) for number in range(20_000)]
    (only,) = appended_by_us(events, [20_000], batch_size=1_000_000)
    assert only.record_count == 20_000
    assert_same_batches(events, [20_000], batch_size=1_000_000)


def test_a_value_larger_than_the_batch_gets_a_batch_of_its_own() -> None:
    events = [
        Event(Route("t", "topic", b"K", b"", 0, b""), b"x" * size, NOW) for size in (10, 300_000, 10, 300_000)
    ]
    assert [batch.record_count for batch in appended_by_us(events, [4])] == [1, 1, 1, 1]
    assert_same_batches(events, [4])


def test_a_cache_of_keys_that_was_cleared_within_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []

    class Forgetful(BatchAppender):
        def _encoded_key(self, key: bytes | None) -> bytes:
            self._keys = {None: kafka_batches._NULL}
            cleared.append(key)
            return super()._encoded_key(key)

    monkeypatch.setattr(f"{__name__}.BatchAppender", Forgetful)
    assert_same_batches(some_events(3, 200, (10,)), [200])
    assert cleared


def test_the_sender_is_woken_for_a_new_batch_and_for_a_full_one() -> None:
    woken: list[bool] = []
    producer = producer_like(accumulator(batch_size=61 + 2 * 20))
    producer._sender.wakeup = lambda: woken.append(True)
    appender = BatchAppender(producer, ignored)
    event = Event(Route("t", "topic", None, b"", 0, b""), b"x" * 13, NOW)  # 20 bytes as a record
    appender.append(PARTITION, [event])
    assert len(woken) == 1
    appender.append(PARTITION, [event])
    assert len(woken) == 2
    (batch,) = producer._accumulator._batches[PARTITION]
    assert batch.records.is_full()


def test_events_follow_the_halves_of_a_batch_that_was_split_and_no_others_join_them() -> None:
    settled: list[tuple[bytes, str | None]] = []

    def note(events: list[Event], error: BaseException | None, _fate: Fate) -> None:
        settled.extend((event.value, error and str(error)) for event in events)

    producer = producer_like(accumulator())
    appender, queue = BatchAppender(producer, note), producer._accumulator._batches[PARTITION]
    events = [Event(Route("t", "topic", None, b"", 0, b""), b"%d" % number, NOW) for number in range(5)]
    appender.append(PARTITION, events[:4])
    whole = queue.popleft()
    whole.records.close()
    producer._accumulator.split_and_reenqueue(whole)
    appender.append(PARTITION, events[4:])
    first, second, last = queue
    assert [batch.record_count for batch in queue] == [2, 2, 1]
    first.complete(0, -1)
    second.complete_exceptionally(ValueError(), lambda index: ValueError(f"record {index}"))
    last.complete(2, -1)
    assert settled == [(b"0", None), (b"1", None), (b"2", "record 0"), (b"3", "record 1"), (b"4", None)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 12])
def test_a_key_goes_to_the_partition_that_the_library_would_choose(count: int) -> None:
    def cluster(numbers: set[int]) -> SimpleNamespace:
        return SimpleNamespace(
            topics=lambda: {"topic"},
            partitions_for_topic=lambda _: numbers,
            available_partitions_for_topic=lambda _: numbers,
        )

    chance = random.Random(count)
    keys = [b"BTCUSDT", "比特币".encode(), b"", *(chance.randbytes(chance.randint(1, 20)) for _ in range(200))]
    metadata = cluster(set(range(count)))
    chosen = _Partitions(SimpleNamespace(_metadata=metadata), {"topic": count}).current()
    for key in keys:
        expected = DefaultPartitioner().partition("topic", None, key, None, None, metadata)
        assert chosen[Route("t", "topic", key, b"", 0, b"")] == TopicPartition("topic", expected)
    assert chosen[Route("t", "topic", None, b"", 0, b"")].partition in range(count)


class Without:
    """An object that lacks one attribute."""

    def __init__(self, whole: object, name: str) -> None:
        self._whole, self._name = whole, name

    def __getattr__(self, name: str) -> object:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._whole, name)


def test_the_pinned_library_takes_batches() -> None:
    assert can_append_batches(producer_like(accumulator()))
    assert isinstance(appender_for(producer_like(accumulator()), ignored), BatchAppender)


@pytest.mark.parametrize("part", ["_accumulator", "_metadata", "_sender"])
def test_a_producer_without_a_part_gets_its_records_one_by_one(part: str) -> None:
    producer = Without(producer_like(accumulator()), part)
    assert not can_append_batches(producer)
    assert isinstance(appender_for(producer, ignored), PublicAppender)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("_accumulator", name) for name in ("_tp_lock", "_batches", "_incomplete", "_appends_in_progress")),
        *(("_accumulator", name) for name in ("_closed", "config", "begin_flush")),
        ("_metadata", "partitions_for_topic"),
        *(("_sender", name) for name in ("wakeup", "force_close", "join")),
    ],
)
def test_a_part_that_lost_something_is_noticed(part: str, name: str) -> None:
    producer = producer_like(accumulator())
    setattr(producer, part, Without(getattr(producer, part), name))
    assert not can_append_batches(producer)


@pytest.mark.parametrize(
    ("maker", "name"),
    [
        *(("MemoryRecordsBuilder", name) for name in ("_next_offset", "_closed", "_builder", "is_full")),
        *(("ProducerBatch", name) for name in ("_record_futures", "records", "last_append", "produce_future")),
    ],
)
def test_a_batch_that_lost_something_is_noticed(maker: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make: Callable[..., object] = getattr(kafka_batches, maker)
    monkeypatch.setattr(kafka_batches, maker, lambda *args, **more: Without(make(*args, **more), name))
    assert not can_append_batches(producer_like(accumulator()))


def test_a_batch_that_is_made_in_another_way_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_batches, "ProducerBatch", lambda _partition: None)
    assert not can_append_batches(producer_like(accumulator()))


def test_an_older_message_format_is_written_one_by_one() -> None:
    assert not can_append_batches(producer_like(accumulator(message_version=1)))


def test_the_builder_knows_no_batch_while_it_is_empty() -> None:
    assert MemoryRecordsBuilder(2, 0, 1_000)._builder._num_records == 0


# What is overridden or mended without asking whether it is there: it would just not happen any more


@pytest.mark.parametrize(
    ("where", "name", "takes"),
    [
        (TransactionManager, "classify_batch_error", ["self", "error", "batch", "log_start_offset"]),
        (TransactionManager, "reset_producer_id", ["self"]),
        (TransactionManager, "set_sequence_number", ["self", "tp", "sequence"]),
        (TransactionManager, "_enqueue_request", ["self", "request_handler"]),
        (InitProducerIdHandler, "on_complete", ["self", "correlation_id", "response_or_exc"]),
        (KafkaTCPTransport, "_sock_recv", ["self"]),
        (KafkaSSLTransport, "_sock_recv", ["self"]),
    ],
)
def test_what_is_overridden_is_there_and_takes_the_same(where: type, name: str, takes: list[str]) -> None:
    assert list(inspect.signature(getattr(where, name)).parameters) == takes


def mended() -> TransactionManager:
    """Make the state of an idempotent producer that has an id, mended as `Producer` does it."""
    manager = TransactionManager()
    manager.__class__ = kafka_batches._Sequences
    manager.set_producer_id_and_epoch(ProducerIdAndEpoch(7, 1))
    manager._current_state = TransactionState.READY
    return manager


def refused_batch(*, retried: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        topic_partition=PARTITION,
        base_sequence=42,
        producer_id=7,
        producer_epoch=1,
        in_retry=lambda: retried,
    )


def test_a_refused_batch_gives_its_sequence_numbers_back_and_ends_nothing() -> None:
    manager = mended()
    manager.set_sequence_number(PARTITION, 50)
    kind = manager.classify_batch_error(errors.MessageSizeTooLargeError(), refused_batch())
    assert (kind, manager.sequence_number(PARTITION)) == (TransactionManager.ERROR_CLASS_RETRIABLE, 42)
    assert (manager._current_state, manager.has_producer_id()) == (TransactionState.READY, True)


def test_a_batch_of_which_nothing_is_known_makes_the_producer_ask_for_another_id() -> None:
    manager = mended()
    kind = manager.classify_batch_error(errors.MessageSizeTooLargeError(), refused_batch(retried=True))
    assert (kind, manager._current_state) == (
        TransactionManager.ERROR_CLASS_RETRIABLE,
        TransactionState.UNINITIALIZED,
    )
    assert not manager.has_producer_id()


def test_what_the_library_calls_fatal_stays_fatal() -> None:
    assert errors.ClusterAuthorizationFailedError in TransactionManager._FATAL_ERRORS
    kind = mended().classify_batch_error(errors.ClusterAuthorizationFailedError(), refused_batch())
    assert kind == TransactionManager.ERROR_CLASS_FATAL


def test_a_broker_that_is_slow_to_give_an_id_is_asked_again() -> None:
    manager = mended()
    manager.reset_producer_id()
    manager.init_producer_id()
    (_, _, asked) = manager._pending_requests.pop()
    asked.on_complete(manager._in_flight_request_correlation_id, errors.RequestTimedOutError())
    assert [entry[2] for entry in manager._pending_requests] == [asked], "it asks again"
    assert manager._current_state == TransactionState.INITIALIZING


def test_a_library_that_reads_in_another_way_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for transport in (KafkaTCPTransport, KafkaSSLTransport):
        monkeypatch.delattr(transport, "_sock_recv")
    with pytest.raises(ZeroDivisionError), kafka_causes.causes_named():
        raise ZeroDivisionError
