"""Both ways into the producer write the same records and tell each event's fate exactly once."""

from __future__ import annotations

import gc
import random
import threading
import time
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, RequestTimedOutError

from config.kafka import KafkaConfig
from sandbox.brokers import EmbeddedBroker
from src import kafka_batches
from src.events import Event, Route
from src.kafka_batches import BatchAppender, can_append_batches
from src.kafka_fates import Appender, Fate, ProducerEnded
from src.kafka_producer import open_producer
from src.kafka_public import PublicAppender
from tests.broker_fixtures import create_topics, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kafka import KafkaProducer

    from sandbox.brokers import Broker

    MakeTopic = Callable[..., str]
    OpenAppender = Callable[..., Appender]

pytestmark = pytest.mark.kafka

NOW = int(time.time() * 1000) - 3_600_000  # a broker deletes records that are older than its retention
LIMIT = 20.0
SIZES = (1, 2, 250, 1_000, 16_384, 40_000)
KEYS = (b"BTCUSDT", "比特币USDT".encode(), b"", None)


class Fates:
    """Notes what became of each event."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.settled: list[tuple[Event, BaseException | None]] = []
        self.of: dict[bytes, Fate] = {}

    def __call__(self, events: list[Event], error: BaseException | None, fate: Fate) -> None:
        with self._changed:
            self.settled += [(event, error) for event in events]
            self.of |= {event.value: fate for event in events}
            self._changed.notify_all()

    def wait_for(self, count: int, timeout: float = LIMIT) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self.settled) >= count, timeout)
            assert len(self.settled) == count

    @property
    def acknowledged(self) -> list[bytes]:
        return [event.value for event, error in self.settled if error is None]

    @property
    def failed(self) -> list[tuple[bytes, type[BaseException]]]:
        return [(event.value, type(error)) for event, error in self.settled if error is not None]


@pytest.fixture(autouse=True)
def sockets_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Collect them here, where they are expected, and not during the next test."""
    yield
    caplog.get_records("call").clear()
    gc.collect()


@pytest.fixture
def fates() -> Fates:
    return Fates()


@pytest.fixture(params=[BatchAppender, PublicAppender])
def open_appender(request: pytest.FixtureRequest, fates: Fates) -> Iterator[OpenAppender]:
    """Open `open_appender(bootstrap_servers, topic, overrides, **settings)`; all are ended afterwards."""
    with ended_afterwards() as producers:

        def make(
            servers: str, topic: str, overrides: dict[str, object] | None = None, **kafka: object
        ) -> Appender:
            config = KafkaConfig(bootstrap_servers=(servers,), **kafka)
            producers.append(open_producer(config, **(overrides or {})))
            producers[-1].partitions_for(topic)
            appender: Appender = request.param(producers[-1], fates)
            return appender

        yield make


class ended_afterwards(list["KafkaProducer"]):  # noqa: N801 - reads as a word of the with statement
    def __enter__(self) -> list[KafkaProducer]:
        return self

    def __exit__(self, *_: object) -> None:
        for producer in self:
            producer._sender.force_close()
            producer._sender.join(LIMIT)
            producer._unregister_cleanup()


def event(value: bytes, key: bytes | None = b"BTCUSDT", timestamp_ms: int = NOW) -> Event:
    return Event(Route("trade", "", key, b"", 0, b""), value, timestamp_ms)


def numbered(count: int, size: int = 10) -> list[Event]:
    return [event(b"%d" % number + b"." * size, timestamp_ms=NOW + number) for number in range(count)]


def values(events: list[Event]) -> list[bytes]:
    return [one.value for one in events]


def mixed() -> list[Event]:
    """Every size with every key; the timestamps decrease."""
    return [
        event(b"%c" % (97 + place) * size, key, NOW - 7_000 * place)
        for place, (size, key) in enumerate((size, key) for size in SIZES for key in KEYS)
    ]


@pytest.mark.parametrize(
    "batching", list(product(["snappy", "gzip", "lz4", "zstd", "none"], [1, 16_384, 1_000_000]))
)
def test_what_is_appended_is_read_back(
    batching: tuple[str, int], broker: Broker, make_topic: MakeTopic, open_appender: OpenAppender, fates: Fates
) -> None:
    (codec, batch_size), topic, events = batching, make_topic(2), mixed()
    appender = open_appender(broker.bootstrap_servers, topic, compression=codec, batch_size=batch_size)
    appender.append(TopicPartition(topic, 1), events[:5])
    appender.append(TopicPartition(topic, 1), events[5:])
    fates.wait_for(len(events))
    assert fates.acknowledged == values(events)
    assert not appender.unsettled()
    assert [
        (one.partition, one.key, one.value, one.timestamp) for one in read_all(broker.bootstrap_servers, topic)
    ] == [(1, one.route.key, one.value, one.timestamp_ms) for one in events]


class Noting(BatchAppender):
    """Notes of each batch that was sent how long it is, compressed, and how long its records are."""

    def __init__(self, producer: KafkaProducer, settle: Fates) -> None:
        super().__init__(producer, settle)
        self.sent: list[tuple[int, int]] = []

    def learn(self, batch: Any) -> None:
        super().learn(batch)
        self.sent.append((batch.records.size_in_bytes(), batch.records._bytes_written))


CHANCE = random.Random(7)
TRADE = b'{"e":"aggTrade","s":"BTCUSDT","p":"61700.00000000","q":"0.05%x","m":true,"M":true}'


@pytest.mark.parametrize(
    ("some_value", "bounds"),
    [(lambda: TRADE % CHANCE.randrange(10**9), (2, 12)), (lambda: CHANCE.randbytes(200), (0.5, 1))],
    ids=["compressible", "random"],
)
def test_a_batch_is_filled_up_to_its_size_as_it_is_sent(
    some_value: Callable[[], bytes],
    bounds: tuple[float, float],
    broker: Broker,
    make_topic: MakeTopic,
    fates: Fates,
) -> None:
    topic, batch_size = make_topic(1), 4_096
    events = [event(some_value()) for _ in range(9_000)]
    config = KafkaConfig(bootstrap_servers=(broker.bootstrap_servers,), batch_size=batch_size)
    with ended_afterwards() as producers:
        producers.append(open_producer(config))
        producers[0].partitions_for(topic)
        appender = Noting(producers[0], fates)
        for start in range(0, len(events), 1_500):
            appender.append(TopicPartition(topic, 0), events[start : start + 1_500])
            fates.wait_for(start + 1_500)
    assert fates.acknowledged == values(events)
    usual = [raw for compressed, raw in appender.sent if compressed <= 1.2 * batch_size]
    assert len(appender.sent) - len(usual) <= 6, "the last batch of each group may take the remainder"
    longest = max(usual)
    assert bounds[0] < longest / batch_size <= bounds[1]


def test_what_comes_after_a_pause_is_sent_at_once_and_in_one_batch_as_far_as_that_goes(
    broker: Broker, make_topic: MakeTopic, fates: Fates
) -> None:
    topic, linger = make_topic(1), 2.0
    config = KafkaConfig(
        bootstrap_servers=(broker.bootstrap_servers,),
        batch_size=4_096,
        linger_ms=int(linger * 1000),
        compression="none",
    )
    events = numbered(90, size=200)
    with ended_afterwards() as producers:
        producers.append(open_producer(config))
        producers[0].partitions_for(topic)
        appender = Noting(producers[0], fates)
        time.sleep(linger)
        began = time.monotonic()
        appender.append(TopicPartition(topic, 0), events[:30])  # 6 to 7 KB
        fates.wait_for(30)
        assert time.monotonic() - began < linger
        assert len(appender.sent) == 1
        appender.append(TopicPartition(topic, 0), events[30:60])
        fates.wait_for(60)
        assert time.monotonic() - began >= linger, "what soon follows is waited with for more"
        assert len(appender.sent) == 3
        time.sleep(linger)
        appender.append(TopicPartition(topic, 0), events[60:] * 2)
        fates.wait_for(120)
        assert len(appender.sent) == 6, "no larger than twice"
    assert [one.value for one in read_all(broker.bootstrap_servers, topic)] == values(events + events[60:])


@pytest.mark.parametrize("settings", [{"acks": "1"}, {"acks": "0"}, {"retries": 0}, {"acks": "1", "retries": 0}])
def test_weaker_settings_deliver_and_settle(
    settings: dict[str, object],
    broker: Broker,
    make_topic: MakeTopic,
    open_appender: OpenAppender,
    fates: Fates,
) -> None:
    topic, events = make_topic(), numbered(2_000)
    appender = open_appender(broker.bootstrap_servers, topic, **settings)
    appender.append(TopicPartition(topic, 0), events)
    fates.wait_for(2_000)
    assert fates.acknowledged == values(events)
    if settings.get("acks") != "0":
        assert [one.value for one in read_all(broker.bootstrap_servers, topic)] == values(events)
    elif not isinstance(broker, EmbeddedBroker):  # which answers where no answer is due, and so loses some
        wait_until(lambda: len(read_all(broker.bootstrap_servers, topic)) == len(events))


def wait_until(holds: Callable[[], bool], timeout: float = LIMIT) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.mark.parametrize("place", [0, 4, 9])
def test_a_record_too_large_fails_alone_and_the_producer_goes_on(
    place: int, broker: Broker, make_topic: MakeTopic, open_appender: OpenAppender, fates: Fates
) -> None:
    topic = make_topic(1, **{"max.message.bytes": "5000"})
    events = [event(b"%d" % number * 900) for number in range(10)]  # too large together, all but one small enough
    events[place] = event(b"L" * 9_000)
    rest = numbered(500)
    appender = open_appender(
        broker.bootstrap_servers, topic, compression="none", batch_size=100_000, linger_ms=100
    )
    appender.append(TopicPartition(topic, 0), events)
    fates.wait_for(10)
    appender.append(TopicPartition(topic, 0), rest[:1])
    fates.wait_for(11)
    appender.append(TopicPartition(topic, 0), rest[1:])
    fates.wait_for(510)
    delivered = values([one for one in events if one is not events[place]] + rest)
    assert fates.failed == [(events[place].value, MessageSizeTooLargeError)]
    assert fates.of[events[place].value] == Fate(poison=True), "no broker takes it, however often it is sent"
    assert sorted(fates.acknowledged) == sorted(delivered)
    assert [one.value for one in read_all(broker.bootstrap_servers, topic)] == delivered


def test_a_batch_that_is_split_again_and_again_arrives_whole(
    broker: Broker, make_topic: MakeTopic, open_appender: OpenAppender, fates: Fates
) -> None:
    topic, events = make_topic(1, **{"max.message.bytes": "1500"}), numbered(400, size=400)
    appender = open_appender(broker.bootstrap_servers, topic, compression="none", batch_size=100_000, linger_ms=50)
    appender.append(TopicPartition(topic, 0), events[:200])
    appender.append(TopicPartition(topic, 0), events[200:])
    fates.wait_for(400)
    assert not fates.failed
    assert [one.value for one in read_all(broker.bootstrap_servers, topic)] == values(events)


def test_a_timestamp_that_the_broker_refuses_does_not_end_the_producer(
    broker: Broker, make_topic: MakeTopic, open_appender: OpenAppender, fates: Fates
) -> None:
    topic = make_topic(1)
    appender = open_appender(broker.bootstrap_servers, topic)
    ahead = event(b"ahead", timestamp_ms=int(time.time() * 1000) + 10 * 86_400_000)
    now = event(b"now", timestamp_ms=int(time.time() * 1000))
    for number, one in enumerate((now, ahead, now), 1):
        appender.append(TopicPartition(topic, 0), [one])
        fates.wait_for(number)
    assert fates.acknowledged in ([b"now", b"now"], [b"now", b"ahead", b"now"])  # not every broker minds
    assert fates.of.get(b"ahead") in (Fate(poison=True), Fate())
    assert [one.value for one in read_all(broker.bootstrap_servers, topic)] == fates.acknowledged


PATIENCE = {"request_timeout_ms": 500, "delivery_timeout_ms": 1_500}


def test_after_a_delivery_timeout_the_producer_goes_on(
    own_broker: Broker, open_appender: OpenAppender, fates: Fates
) -> None:
    create_topics(own_broker.bootstrap_servers, ["t"])
    appender = open_appender(own_broker.bootstrap_servers, "t", PATIENCE)
    appender.append(TopicPartition("t", 0), [event(b"before")])
    fates.wait_for(1)
    own_broker.freeze()
    # One batch: what is behind it would wait for a new producer id, which a frozen broker does not give.
    appender.append(TopicPartition("t", 0), numbered(50))
    fates.wait_for(51)
    own_broker.thaw()
    appender.append(TopicPartition("t", 0), [event(b"after")])
    fates.wait_for(52)
    assert {error for _, error in fates.failed} <= {KafkaTimeoutError, RequestTimedOutError}
    assert {fates.of[value] for value, _ in fates.failed} == {Fate(maybe_written=True)}, "the broker may have it"
    assert fates.acknowledged == [b"before", b"after"]
    assert read_all(own_broker.bootstrap_servers, "t")[-1].value == b"after"


def test_what_a_stopped_producer_had_not_delivered_comes_back_once(own_broker: Broker, fates: Fates) -> None:
    create_topics(own_broker.bootstrap_servers, ["t"], partitions=3)
    with ended_afterwards() as producers:
        producers.append(open_producer(KafkaConfig(bootstrap_servers=(own_broker.bootstrap_servers,))))
        producers[0].partitions_for("t")
        appender = BatchAppender(producers[0], fates)
        appender.append(TopicPartition("t", 0), [event(b"before")])
        fates.wait_for(1)
        own_broker.freeze()
        for partition in (0, 1, 2):
            appender.append(TopicPartition("t", partition), numbered(3_000))
        assert len(appender.unsettled()) == 9_000
        appender.stop(5.0)
        fates.wait_for(9_001)
        assert not appender.unsettled()
        assert not producers[0]._sender.is_alive()
        appender.append(TopicPartition("t", 0), [event(b"late")])
        fates.wait_for(9_002)
    assert fates.failed[-1] == (b"late", ProducerEnded)
    assert fates.of[b"late"] == Fate(), "it never left"
    assert fates.acknowledged == [b"before"]


def test_a_producer_that_is_stopped_amid_acknowledgements_tells_each_fate_once(
    broker: Broker, make_topic: MakeTopic, open_appender: OpenAppender, fates: Fates
) -> None:
    topic, events = make_topic(), numbered(3_000, size=100)
    appender = open_appender(broker.bootstrap_servers, topic, linger_ms=0, batch_size=1_000)
    appender.append(TopicPartition(topic, 0), events)
    wait_until(lambda: len(fates.settled) > 0)
    appender.stop(5.0)
    fates.wait_for(3_000)
    assert sorted(value for value in fates.of) == sorted(values(events))
    read = [one.value for one in read_all(broker.bootstrap_servers, topic)]
    assert set(fates.acknowledged) <= set(read)
    unacknowledged = [value for value in read if value not in set(fates.acknowledged)]
    assert all(fates.of[value].maybe_written for value in unacknowledged), "what may be there twice is counted"


def test_a_producer_that_was_broken_off_sends_nothing_more(own_broker: Broker, fates: Fates) -> None:
    create_topics(own_broker.bootstrap_servers, ["t"])
    with ended_afterwards() as producers:
        config = KafkaConfig(bootstrap_servers=(own_broker.bootstrap_servers,), linger_ms=60_000)
        producers.append(open_producer(config))
        producers[0].partitions_for("t")
        appender = BatchAppender(producers[0], fates)
        appender.append(TopicPartition("t", 0), numbered(100))
        appender.break_off()
        fates.wait_for(100)
        producers[0]._sender.join(LIMIT)
        appender.append(TopicPartition("t", 0), [event(b"late")])
        fates.wait_for(101)
        appender.stop(5.0)
    assert not fates.acknowledged
    assert set(fates.of.values()) == {Fate()}, "nothing of it ever left"
    assert not read_all(own_broker.bootstrap_servers, "t")


def test_what_lingers_is_sent_when_there_is_a_hurry(
    broker: Broker, make_topic: MakeTopic, open_appender: OpenAppender, fates: Fates
) -> None:
    topic = make_topic()
    appender = open_appender(broker.bootstrap_servers, topic, linger_ms=60_000)
    appender.append(TopicPartition(topic, 0), numbered(3))
    appender.hurry()
    fates.wait_for(3, timeout=5.0)


def test_without_metadata_records_fail_instead_of_blocking(
    broker: Broker, make_topic: MakeTopic, fates: Fates
) -> None:
    with ended_afterwards() as producers:
        producers.append(open_producer(KafkaConfig(bootstrap_servers=(broker.bootstrap_servers,))))
        appender = PublicAppender(producers[0], fates)
        started = time.monotonic()
        appender.append(TopicPartition(make_topic(), 0), numbered(10))  # nobody has asked for this topic yet
        assert time.monotonic() - started < 3.0
    assert [error for _, error in fates.failed] == [KafkaTimeoutError] * 10
    assert set(fates.of.values()) == {Fate()}, "they never left"


@pytest.mark.parametrize("partition", [0, 7])
def test_a_record_beyond_the_largest_request_or_the_last_partition_fails(
    partition: int, broker: Broker, make_topic: MakeTopic, fates: Fates
) -> None:
    topic = make_topic()
    with ended_afterwards() as producers:
        config = KafkaConfig(bootstrap_servers=(broker.bootstrap_servers,))
        producers.append(open_producer(config, max_request_size=1_000))
        producers[0].partitions_for(topic)
        PublicAppender(producers[0], fates).append(TopicPartition(topic, partition), [event(b"x" * 2_000)])
    assert len(fates.failed) == 1


def test_the_producer_of_the_service_takes_batches_and_is_mended(broker: Broker) -> None:
    with ended_afterwards() as producers:
        producers.append(open_producer(KafkaConfig(bootstrap_servers=(broker.bootstrap_servers,))))
        assert can_append_batches(producers[0])
        assert type(producers[0]._transaction_manager) is kafka_batches._Sequences
        assert producers[0]._metadata.config["allow_auto_create_topics"] is False
