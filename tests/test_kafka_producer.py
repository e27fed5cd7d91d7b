"""Sink, delivery and spool together: in order, within the bounds, never waiting, every event accounted for."""

from __future__ import annotations

import gc
import logging
import random
import socket
import subprocess
import sys
import time
import tracemalloc
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import kafka.producer.kafka
import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
)
from kafka.partitioner.default import murmur2
from structlog.testing import capture_logs

from config.kafka import KafkaConfig
from config.settings import DeliveryConfig, SpoolConfig
from src import kafka_producer
from src.deadline import Deadline
from src.delivery import Delivery
from src.events import Decoded, Event, Route
from src.kafka_batches import BatchAppender
from src.kafka_fates import Fate
from src.kafka_producer import KafkaSink, MirroredEvent, open_producer
from src.kafka_public import PublicAppender
from src.lost import Lost
from src.spool import Spool
from src.telemetry import Telemetry
from tests.broker_fixtures import Record, Topics, fresh_topics, read_all
from tests.certificates import Authority
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kafka import KafkaProducer

    from sandbox.brokers import Broker
    from src.kafka_fates import Settle
    from src.worker import Worker

    MakeRig = Callable[..., "Rig"]
    Condition = Callable[[], bool]

kafka_test = pytest.mark.kafka

ROOT = Path(__file__).parents[1]
NOW = int(time.time() * 1000) - 3_600_000
LIMIT = 30.0
SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "ADAUSDT", "XRPUSDT", "比特币USDT")


def wait_until(holds: Condition, timeout: float = LIMIT) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


class Rig:
    """A sink with its delivery and spool, fed as the pipeline feeds them."""

    def __init__(
        self,
        kafka: KafkaConfig,
        folder: Path,
        records: int = 200_000,
        size: int = 100_000_000,
        make_producer: Callable[[KafkaConfig], KafkaProducer] = open_producer,
        **hooks: Callable[..., object],
    ) -> None:
        self.telemetry = Telemetry()
        self.ended: list[Worker] = []
        self.producers: list[KafkaProducer] = []
        self._make_producer = make_producer
        bound = DeliveryConfig(max_in_flight_records=records, max_in_flight_bytes=size)
        hooks["make_producer"] = self._noted_producer
        self.sink = KafkaSink(kafka, bound, self.telemetry, self.ended.append, **hooks)
        self.spool = Spool(SpoolConfig(path=folder, min_free_bytes=0))
        self.delivery = Delivery(
            self.sink, self.spool, kafka.topic_trades, self.telemetry, self.ended.append, Lost()
        )
        self.accepted: list[Event] = []
        self.slowest = 0.0
        self._closed = False

    def _noted_producer(self, kafka: KafkaConfig) -> KafkaProducer:
        self.producers.append(self._make_producer(kafka))
        return self.producers[-1]

    def start(self) -> None:
        self.delivery.start()
        wait_until(lambda: self.sink.ready)

    def send(self, events: list[Event]) -> None:
        """Send as the pipeline does, and remember it."""
        self.offer(events)
        self.accepted += events

    def offer(self, events: list[Event]) -> None:
        """Send as the pipeline does."""
        self.telemetry.received(Decoded(events), NOW)
        started = time.monotonic()
        self.delivery.accept(events)
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.assert_all_accounted_for()

    def count(self, name: str) -> int:
        counted: int = self.telemetry.snapshot()[name]
        return counted

    def wait_for_delivery(self) -> None:
        """Wait until Kafka has acknowledged everything and the disk is empty."""
        wait_until(lambda: self.count("kafka_produced") == len(self.accepted) + self.count("messages_recovered"))
        wait_until(lambda: not self.sink.in_flight.records)  # released a moment after it is counted
        wait_until(lambda: not self.spool.count)

    def close(self, seconds: float) -> float:
        """Close everything and return how long that took."""
        started = time.monotonic()
        if not self._closed:
            self._closed = True
            deadline = Deadline(seconds)
            self.delivery.finish(deadline)
            self.delivery.close(deadline)
        return time.monotonic() - started

    def assert_all_accounted_for(self) -> None:
        assert balanced(self.telemetry.snapshot())

    def assert_settled(self, produced: int, spooled: int = 0) -> None:
        """Nothing is under way, nothing is lost."""
        self.assert_all_accounted_for()
        now = self.telemetry.snapshot()
        assert (now["kafka_produced"], now["messages_spooled"]) == (produced, spooled)
        assert self.spool.count == spooled
        lost = ("messages_dropped", "messages_dead_lettered", "kafka_failed")
        assert [now[name] for name in lost] == [0, 0, 0]
        assert (now["messages_in_flight"], now["messages_buffered"]) == (0, 0)
        assert (self.sink.in_flight.records, self.sink.in_flight.bytes) == (0, 0)
        assert [worker.failure for worker in self.ended if worker.failure] == []


@pytest.fixture(autouse=True)
def sockets_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Collect them here, where they are expected, and not during the next test."""
    yield
    caplog.get_records("call").clear()
    gc.collect()


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    """Make rigs; each is closed afterwards, without patience."""
    made: list[Rig] = []

    def make(kafka: KafkaConfig, folder: str = "", **more: object) -> Rig:
        made.append(Rig(kafka, tmp_path / (folder or f"spool-{len(made)}"), **more))
        return made[-1]

    yield make
    for rig in made:
        rig.close(2.5)
        for producer in rig.producers:  # one of the public way goes on by itself
            producer._sender.force_close()
            producer._sender.join(LIMIT)
        rig.assert_all_accounted_for()
        assert not rig.count("messages_in_flight")


def config(topics: Topics, **more: object) -> KafkaConfig:
    return KafkaConfig(
        bootstrap_servers=(topics.bootstrap_servers,),
        topic_raw_events=topics.raw,
        topic_trades=topics.trades,
        topic_depth=topics.depth,
        **more,
    )


class Feed:
    """Makes events of all symbols and topics; the value of each is unlike any other."""

    def __init__(self, topics: Topics, size: int = 200) -> None:
        self._random = random.Random(7)
        self._made = 0
        self._size = size
        self._routes = [
            Route("trade", topic, symbol.encode(), b"", 0, b"") for topic in topics.names for symbol in SYMBOLS
        ]

    def events(self, count: int) -> list[Event]:
        return [self._event() for _ in range(count)]

    def _event(self) -> Event:
        self._made += 1
        value = b"%d " % self._made + b"." * self._random.randint(0, self._size)
        return Event(self._random.choice(self._routes), value, NOW + self._random.randint(-1_000, 1_000))


def by_topic_and_key(events: list[Event]) -> dict[tuple[str, bytes | None], list[tuple[bytes, int]]]:
    streams = defaultdict(list)
    for event in events:
        streams[event.route.topic, event.route.key].append((event.value, event.timestamp_ms))
    return streams


def read_streams(records: list[Record]) -> dict[tuple[str, bytes | None], list[tuple[bytes, int]]]:
    streams = defaultdict(list)
    for one in records:
        assert one.key is not None
        assert one.value is not None
        assert one.partition == (murmur2(one.key) & 0x7FFFFFFF) % 3
        streams[one.topic, one.key].append((one.value, one.timestamp))
    return streams


def assert_exactly_delivered(topics: Topics, events: list[Event]) -> None:
    """Each event once, in order per key, nothing else, and no hole in the offsets."""
    records = read_all(topics.bootstrap_servers, *topics.names)
    assert len(records) == len(events)
    assert read_streams(records) == by_topic_and_key(events)
    offsets = defaultdict(list)
    for one in records:
        offsets[one.topic, one.partition].append(one.offset)
    assert all(found == list(range(len(found))) for found in offsets.values())


def assert_delivered_with_known_duplicates(rig: Rig, topics: Topics, events: list[Event]) -> None:
    """Each event, in order per key at its first coming, and no more of them twice than were counted."""
    records = read_all(topics.bootstrap_servers, *topics.names)
    assert len(events) <= len(records) <= len(events) + rig.count("possible_duplicates")
    streams = {each: list(dict.fromkeys(found)) for each, found in read_streams(records).items()}
    assert streams == by_topic_and_key(events)


def send_in_chunks(rig: Rig, feed: Feed, count: int, chunk: int = 200) -> None:
    for _ in range(count // chunk):
        rig.send(feed.events(chunk))


# Delivery


@kafka_test
@pytest.mark.parametrize("make_appender", [BatchAppender, PublicAppender])
def test_events_arrive_once_and_in_order(topics: Topics, make_rig: MakeRig, make_appender: type) -> None:
    rig = make_rig(config(topics), make_appender=make_appender)
    rig.start()
    send_in_chunks(rig, Feed(topics), 20_000)
    assert rig.close(15.0) < 10.0
    rig.assert_settled(produced=20_000)
    assert rig.count("bytes_sent") == sum(len(event.value) for event in rig.accepted)
    assert_exactly_delivered(topics, rig.accepted)


@kafka_test
def test_closing_under_full_load_delivers_everything(topics: Topics, make_rig: MakeRig) -> None:
    rig = make_rig(config(topics, linger_ms=60_000, batch_size=131_072))
    rig.start()
    rig.send(Feed(topics).events(50_000))
    assert rig.sink.in_flight.records > 0
    assert rig.close(20.0) < 10.0
    rig.assert_settled(produced=50_000)
    assert_exactly_delivered(topics, rig.accepted)


@kafka_test
def test_a_closed_sink_takes_nothing(topics: Topics, make_rig: MakeRig) -> None:
    rig = make_rig(config(topics))
    rig.start()
    rig.close(5.0)
    assert rig.sink.send(Feed(topics).events(10)) == 0
    assert not rig.sink.ready
    rig.assert_settled(produced=0)


@kafka_test
def test_copies_to_the_raw_topic_are_counted_apart(topics: Topics, make_rig: MakeRig) -> None:
    rig = make_rig(config(topics, mirror_raw_events=True))
    rig.start()
    send_in_chunks(rig, Feed(topics), 3_000)
    rig.close(15.0)
    rig.assert_settled(produced=3_000)
    others = [event for event in rig.accepted if event.route.topic != topics.raw]
    assert rig.count("mirror_produced") == len(others)
    assert rig.count("mirror_failed") == 0
    raw = [one.value for one in read_all(topics.bootstrap_servers, topics.raw)]
    assert sorted(raw) == sorted(event.value for event in rig.accepted)
    apart = read_streams(read_all(topics.bootstrap_servers, topics.trades, topics.depth))
    assert apart == by_topic_and_key(others)


@kafka_test
def test_copies_that_come_back_with_their_events_are_there_in_the_end_and_not_counted_as_failed(
    own_broker: Broker, make_rig: MakeRig
) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    impatient = partial(open_producer, request_timeout_ms=500, delivery_timeout_ms=1_000)
    rig = make_rig(config(topics, mirror_raw_events=True), make_producer=impatient)
    rig.start()
    feed = Feed(topics)
    send_in_chunks(rig, feed, 2_000)
    rig.wait_for_delivery()
    wait_until(lambda: not rig.sink.copies_in_flight.records)  # whose events would not come back
    own_broker.freeze()
    rig.send(feed.events(2_000))  # at once: the first batch to expire is one of events, not of copies alone
    wait_until(lambda: rig.count("producer_break_offs") > 0)
    own_broker.thaw()
    rig.wait_for_delivery()
    rig.close(15.0)
    rig.assert_settled(produced=4_000)
    assert rig.count("mirror_failed") == 0
    assert not rig.telemetry.undelivered()
    raw = {one.value for one in read_all(topics.bootstrap_servers, topics.raw)}
    assert raw == {event.value for event in rig.accepted}


@kafka_test
def test_copies_that_are_lost_while_their_events_arrive_are_counted(
    topics: Topics, make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_copies(producer: KafkaProducer, settle: Settle) -> BatchAppender:
        def told(events: list[Event], error: BaseException | None, fate: Fate) -> None:
            copies = [event for event in events if isinstance(event, MirroredEvent)]
            settle(copies, TopicAuthorizationFailedError(), Fate())
            settle([event for event in events if event not in copies], error, fate)

        return BatchAppender(producer, told)

    monkeypatch.setattr(kafka_producer, "_LOOK_SECONDS", 0.1)
    rig = make_rig(config(topics, mirror_raw_events=True), make_appender=without_copies)
    rig.start()
    rig.send(Feed(topics).events(300))
    rig.wait_for_delivery()
    others = [event for event in rig.accepted if event.route.topic != topics.raw]
    wait_until(lambda: rig.count("mirror_failed") == len(others))
    rig.close(15.0)
    rig.assert_settled(produced=300)
    assert rig.count("mirror_failed") == len(others)


# A broker that does not answer


@kafka_test
def test_a_frozen_broker_loses_and_doubles_nothing(own_broker: Broker, make_rig: MakeRig) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    feed = Feed(topics)
    rig = make_rig(config(topics), make_producer=partial(open_producer, request_timeout_ms=1_500))
    rig.start()
    send_in_chunks(rig, feed, 2_000)
    own_broker.freeze()
    send_in_chunks(rig, feed, 2_000)
    time.sleep(3.5)  # the freeze itself: longer than the request's timeout, so requests are sent again
    send_in_chunks(rig, feed, 2_000)
    own_broker.thaw()
    send_in_chunks(rig, feed, 2_000)
    rig.wait_for_delivery()
    rig.assert_settled(produced=8_000)
    assert_exactly_delivered(topics, rig.accepted)


@kafka_test
def test_a_certificate_that_does_not_match_its_key_for_a_while_is_named_and_costs_nothing(
    own_broker: Broker, make_rig: MakeRig, tmp_path: Path
) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client.example")
    rotated = config(topics, security_protocol="SSL", ssl_certfile=certificate, ssl_keyfile=key)
    key.write_bytes(authority.issue("other.example")[1].read_bytes())
    rig = make_rig(config(topics))
    rig.start()
    plain, rig.sink._kafka = rig.sink._kafka, rotated
    own_broker.freeze()  # a stall has it look for what is wrong
    rig.send(Feed(topics).events(200))
    with capture_logs() as logs:
        wait_until(lambda: any(line["event"] == "kafka_unavailable" for line in logs))
    (line,) = [line for line in logs if line["event"] == "kafka_unavailable"]
    assert "KAFKA_SSL_KEYFILE" in line["reason"]
    assert line["check"] == "that file"
    rig.sink._kafka = plain
    own_broker.thaw()
    rig.wait_for_delivery()
    rig.assert_settled(produced=200)
    assert rig.sink._connector.alive


@kafka_test
def test_topics_that_no_controller_creates_for_a_while_are_created_later(
    topics: Topics, make_rig: MakeRig, no_controller: pytest.MonkeyPatch
) -> None:
    absent = Topics(*(f"absent-{name}" for name in topics.names), topics.bootstrap_servers)
    rig = make_rig(config(absent))
    with capture_logs() as logs:
        rig.delivery.start()
        rig.send(Feed(absent).events(200))
        wait_until(lambda: any(line["event"] == "kafka_unavailable" for line in logs))
    assert "Failed to find active controller" in next(
        line["reason"] for line in logs if line["event"] == "kafka_unavailable"
    )
    no_controller.undo()
    rig.wait_for_delivery()
    rig.assert_settled(produced=200)


@kafka_test
def test_a_killed_broker_that_returns_with_its_data_loses_and_doubles_nothing(
    own_broker: Broker, make_rig: MakeRig
) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    feed = Feed(topics)
    rig = make_rig(config(topics))
    rig.start()
    send_in_chunks(rig, feed, 2_000)
    rig.wait_for_delivery()
    own_broker.wait_until_durable()
    own_broker.freeze()  # so that requests are under way, unanswered, when it dies
    send_in_chunks(rig, feed, 2_000)
    own_broker.kill()
    send_in_chunks(rig, feed, 2_000)
    own_broker.start()
    send_in_chunks(rig, feed, 2_000)
    rig.wait_for_delivery()
    rig.assert_settled(produced=8_000)
    assert_exactly_delivered(topics, rig.accepted)


@kafka_test
@pytest.mark.parametrize("mirror", [False, True])
def test_a_frozen_broker_is_offered_ten_times_the_bound(
    mirror: bool,  # noqa: FBT001
    own_broker: Broker,
    make_rig: MakeRig,
) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    feed = Feed(topics, size=100)
    rig = make_rig(config(topics, mirror_raw_events=mirror), records=5_000, size=400_000)
    rig.start()
    own_broker.freeze()
    for _ in range(30):
        rig.send(feed.events(200))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(220):
        rig.offer(feed.events(200))
        assert rig.sink.in_flight.records <= 5_000
        assert rig.sink.in_flight.bytes <= 400_000
        assert rig.sink.copies_in_flight.records <= 5_000
        assert rig.sink.copies_in_flight.bytes <= 400_000
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 1_000_000  # what was offered would be 10 MB; the library asks for metadata meanwhile
    assert rig.sink.in_flight.full
    assert rig.slowest < 3.0  # 0.02 on an idle machine; two processors are shared with other tests
    rig.accepted = Feed(topics, size=100).events(50_000)
    assert rig.count("messages_spooled") > 40_000
    own_broker.thaw()
    rig.wait_for_delivery()
    rig.assert_settled(produced=50_000)
    assert rig.count("possible_duplicates") == 0
    if not mirror:
        assert_exactly_delivered(topics, rig.accepted)


@kafka_test
@pytest.mark.parametrize("make_appender", [BatchAppender, PublicAppender])
def test_copies_do_not_count_among_what_is_in_flight_for_long(
    own_broker: Broker, make_rig: MakeRig, make_appender: type
) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    rig = make_rig(config(topics, mirror_raw_events=True), make_appender=make_appender)
    rig.start()
    own_broker.freeze()
    rig.send(Feed(topics).events(600))
    assert rig.sink.copies_in_flight.records > 200
    assert rig.sink.count_late(float("-inf")) == 0
    assert rig.sink.count_late(float("inf")) == rig.sink.in_flight.records == 600
    own_broker.thaw()
    rig.wait_for_delivery()


@kafka_test
@pytest.mark.parametrize("make_appender", [BatchAppender, PublicAppender])
def test_closing_before_a_frozen_broker_ends_in_time(
    own_broker: Broker, make_rig: MakeRig, make_appender: type
) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    rig = make_rig(config(topics, mirror_raw_events=True), make_appender=make_appender)
    rig.start()
    rig.send(first := Feed(topics).events(50))
    rig.wait_for_delivery()
    own_broker.freeze()
    rig.send(Feed(topics).events(2_000))
    assert rig.close(3.0) < 4.5
    rig.assert_settled(produced=len(first), spooled=2_000)
    own_broker.thaw()  # what may be acknowledged from here on must not count any more
    rig.producers[0]._sender.join(5.0 if make_appender is BatchAppender else 0.5)
    rig.assert_settled(produced=len(first), spooled=2_000)


@kafka_test
def test_what_a_close_left_on_disk_is_delivered_by_the_next_run(own_broker: Broker, make_rig: MakeRig) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    feed = Feed(topics)
    rig = make_rig(config(topics), folder="kept")
    rig.start()
    rig.send(feed.events(50))
    rig.wait_for_delivery()
    own_broker.freeze()
    send_in_chunks(rig, feed, 2_000)
    rig.close(3.0)
    own_broker.thaw()
    again = make_rig(config(topics), folder="kept")
    again.start()
    assert again.count("messages_recovered") == 2_000
    send_in_chunks(again, feed, 2_000)
    again.wait_for_delivery()
    again.assert_settled(produced=4_000)
    streams = read_streams(read_all(topics.bootstrap_servers, *topics.names))
    distinct = {each: list(dict.fromkeys(found)) for each, found in streams.items()}
    assert distinct == by_topic_and_key(rig.accepted + again.accepted)


@kafka_test
def test_events_of_a_delivery_timeout_are_sent_again_before_later_ones(
    own_broker: Broker, make_rig: MakeRig
) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    patience = {"request_timeout_ms": 500, "delivery_timeout_ms": 1_500}
    rig = make_rig(config(topics), make_producer=partial(open_producer, **patience))
    rig.start()
    feed = Feed(topics)
    rig.send(feed.events(100))
    rig.wait_for_delivery()
    own_broker.freeze()
    rig.send(feed.events(1_000))
    wait_until(lambda: not rig.sink.ready)
    rig.send(feed.events(1_000))
    own_broker.thaw()
    rig.send(feed.events(1_000))
    rig.wait_for_delivery()
    rig.assert_settled(produced=3_100)
    assert 0 < rig.count("possible_duplicates") <= 1_000
    assert rig.sink.ready
    assert_delivered_with_known_duplicates(rig, topics, rig.accepted)


@kafka_test
def test_a_producer_that_got_no_id_yet_waits_for_the_broker(own_broker: Broker, make_rig: MakeRig) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    patience = {"request_timeout_ms": 500, "delivery_timeout_ms": 60_000}
    rig = make_rig(config(topics), make_producer=lambda kafka: frozen_producer(own_broker, kafka, patience))
    rig.start()
    rig.send(Feed(topics).events(1_000))
    time.sleep(1.5)  # longer than the requests' timeout
    own_broker.thaw()
    rig.wait_for_delivery()
    rig.assert_settled(produced=1_000)
    assert_exactly_delivered(topics, rig.accepted)


def frozen_producer(broker: Broker, kafka: KafkaConfig, options: dict[str, object]) -> KafkaProducer:
    producer = open_producer(kafka, **options)
    for topic in (kafka.topic_raw_events, kafka.topic_trades, kafka.topic_depth):
        producer.partitions_for(topic)
    wait_until(producer._transaction_manager.has_producer_id)  # over a connection that is now open
    broker.freeze()
    producer._transaction_manager.reset_producer_id()
    return producer


# No broker at all


@kafka_test
def test_events_wait_in_order_for_a_broker_that_comes_late(
    own_broker_factory: Callable[[], Broker], make_rig: MakeRig
) -> None:
    broker = own_broker_factory()
    topics = Topics("raw", "trades", "depth", broker.bootstrap_servers)
    feed = Feed(topics)
    rig = make_rig(config(topics, linger_ms=0), records=30_000)
    rig.delivery.start()
    send_in_chunks(rig, feed, 20_000)
    assert rig.slowest < 3.0
    broker.start()
    while not rig.sink.ready:
        rig.send(feed.events(5))
        time.sleep(0.01)
    rig.send(feed.events(200))
    rig.wait_for_delivery()
    rig.assert_settled(produced=len(rig.accepted))
    assert_exactly_delivered(topics, rig.accepted)
    assert_as_wanted(broker, topics)


def assert_as_wanted(broker: Broker, topics: Topics) -> None:
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        found = admin.describe_topics(list(topics.names))
        assert {one["name"]: len(one["partitions"]) for one in found} == dict.fromkeys(topics.names, 3)
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, ["retention.ms"]) for name in topics.names]
        kept = admin.describe_configs(resources, config_filter="all")["topic"]
    days = {name: int(kept[name]["retention.ms"]["value"]) / 86_400_000 for name in topics.names}
    assert days == {"raw": 7, "trades": 30, "depth": 7}


@contextmanager
def mute_port() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("mute", [False, True])
def test_closing_without_a_broker_ends_in_time(mute: bool, make_rig: MakeRig) -> None:  # noqa: FBT001
    with mute_port() as server:
        topics = Topics("raw", "trades", "depth", server if mute else "127.0.0.1:1")
        rig = make_rig(config(topics, mirror_raw_events=True), records=1_000)
        rig.delivery.start()
        for _ in range(100):
            rig.send(Feed(topics).events(50))
        assert rig.close(2.5) < 4.0
        rig.assert_settled(produced=0, spooled=5_000)


def test_without_a_producer_nothing_is_taken_and_nothing_is_in_flight(make_rig: MakeRig) -> None:
    topics = Topics("raw", "trades", "depth", "127.0.0.1:1")
    rig = make_rig(config(topics), records=10)
    for _ in range(100):
        assert rig.sink.send(Feed(topics).events(5)) == 0
    assert rig.sink.in_flight.records == 0
    assert rig.sink.late(float("inf")) == []


@kafka_test
def test_what_lingers_is_hurried_even_when_the_producer_opens_after_that(
    own_broker_factory: Callable[[], Broker], make_rig: MakeRig
) -> None:
    broker = own_broker_factory()
    topics = Topics("raw", "trades", "depth", broker.bootstrap_servers)
    rig = make_rig(config(topics, linger_ms=60_000))
    rig.delivery.start()
    rig.send(Feed(topics).events(100))
    rig.sink.hurry()
    broker.start()
    rig.wait_for_delivery()
    rig.assert_settled(produced=100)


@kafka_test
def test_lingering_for_longer_than_a_second_is_no_stall(topics: Topics, make_rig: MakeRig) -> None:
    rig = make_rig(config(topics, linger_ms=1_500))
    rig.start()
    feed = Feed(topics)
    sent_at = time.monotonic()
    rig.send(feed.events(10))
    while not rig.count("kafka_produced"):
        assert not rig.delivery.spooling
        time.sleep(0.01)
    assert time.monotonic() - sent_at > 1.4
    assert rig.spool.last_seq == 0, "and nothing went to disk"
    rig.wait_for_delivery()


@kafka_test
def test_a_topic_that_cannot_be_created_is_tried_again_and_told_of_once(broker: Broker, make_rig: MakeRig) -> None:
    topics = Topics("a-raw", "a-trades", "a-depth", broker.bootstrap_servers)
    tries: list[BaseException] = []
    rig = make_rig(config(topics, replication_factor=3))
    told = rig.telemetry.kafka_unavailable

    def noted(error: BaseException, **context: object) -> None:
        tries.append(error)
        told(error, **context)

    rig.telemetry.kafka_unavailable = noted  # type: ignore[method-assign]
    with capture_logs() as lines:
        rig.delivery.start()
        wait_until(lambda: len(tries) == 3)
        assert not rig.sink.ready
    said = [line for line in lines if line["event"] == "kafka_unavailable"]
    assert len(said) == 1
    assert "replica" in said[0]["reason"].lower()


_ATTEMPTS = """
import gc, logging, os, sys, threading, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import kafka.producer.kafka
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaTimeoutError
from config.kafka import KafkaConfig
from src.kafka_producer import open_producer, opened

config = KafkaConfig(bootstrap_servers=(sys.argv[1],))

def attempt(open, *args, **more):
    try:
        open(*args, **more)
    except KafkaTimeoutError:
        return
    raise AssertionError("it opened")

def state():
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))

before = state()
for _ in range(10):
    attempt(opened, KafkaAdminClient, config.client_options() | {"bootstrap_timeout_ms": 100})
    attempt(open_producer, config, bootstrap_timeout_ms=100)
assert state() == before, (before, state())
assert isinstance(kafka.producer.kafka.log, logging.Logger)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
@pytest.mark.parametrize("mute", [False, True])
def test_attempts_that_fail_leave_no_threads_files_or_silence(mute: bool) -> None:  # noqa: FBT001
    with mute_port() as server:
        run_program(_ATTEMPTS, server if mute else "127.0.0.1:1")


@kafka_test
def test_a_sink_that_is_gone_does_not_silence_the_library(topics: Topics, tmp_path: Path) -> None:
    gc.collect()  # producers of other tests do silence it
    kafka.producer.kafka.log = logging.getLogger("kafka.producer.kafka")
    rig = Rig(config(topics), tmp_path / "spool")
    rig.start()
    rig.close(5.0)
    del rig
    gc.collect()
    assert isinstance(kafka.producer.kafka.log, logging.Logger)


# A producer or a topic that changes under way


@kafka_test
def test_a_fatal_producer_is_replaced_and_told_of_once(topics: Topics, make_rig: MakeRig) -> None:
    rig = make_rig(config(topics))
    rig.start()
    rig.send(Feed(topics).events(100))
    rig.wait_for_delivery()
    feed = Feed(topics)
    feed.events(100)
    with capture_logs() as lines:
        manager = rig.producers[0]._transaction_manager
        manager.transition_to_fatal_error(ClusterAuthorizationFailedError())
        for _ in range(5):
            rig.send(feed.events(100))
        rig.wait_for_delivery()
    assert len(rig.producers) == 2
    assert rig.sink.ready
    rig.assert_settled(produced=600)
    assert rig.count("possible_duplicates") == 0, "nothing of it had left"
    assert_exactly_delivered(topics, rig.accepted)
    said = [line for line in lines if line["event"] == "producer_broken_off"]
    assert [(line["log_level"], line["reason"], line["check"]) for line in said] == [
        ("warning", "ClusterAuthorizationFailedError", "the rights (ACLs) of this user")
    ]


@pytest.mark.parametrize(
    ("error", "check"),
    [
        (TopicAuthorizationFailedError(), "the rights (ACLs) of this user"),
        (ClusterAuthorizationFailedError(), "the rights (ACLs) of this user"),
        (KafkaTimeoutError(), None),
    ],
)
def test_a_producer_that_a_broker_refuses_something_is_told_with_what_to_look_at(
    error: KafkaError, check: str | None, tmp_path: Path
) -> None:
    rig = Rig(KafkaConfig(), tmp_path)
    with capture_logs() as lines:
        rig.sink.break_off(error)
    rig.spool.close()
    (line,) = lines
    assert (line["event"], line["check"]) == ("producer_broken_off", check)


@kafka_test
@pytest.mark.parametrize("make_appender", [BatchAppender, PublicAppender])
def test_a_topic_that_was_deleted_is_made_again_without_a_wait(
    topics: Topics, make_rig: MakeRig, make_appender: type
) -> None:
    settings = {"request_timeout_ms": 1_000, "delivery_timeout_ms": 3_000}
    fresh = partial(open_producer, metadata_max_age_ms=100, **settings)
    rig = make_rig(config(topics), make_producer=fresh, make_appender=make_appender)
    rig.start()
    feed = Feed(topics)
    with KafkaAdminClient(bootstrap_servers=topics.bootstrap_servers) as admin:
        admin.delete_topics([topics.trades])
    metadata = rig.producers[0]._metadata
    wait_until(lambda: metadata.partitions_for_topic(topics.trades) is None)
    for _ in range(20):
        rig.send(feed.events(100))
    assert rig.slowest < 3.0
    rig.wait_for_delivery()
    rig.assert_settled(produced=2_000)
    assert_delivered_with_known_duplicates(rig, topics, rig.accepted)


@kafka_test
def test_partitions_that_are_added_under_way_are_used(topics: Topics, make_rig: MakeRig) -> None:
    rig = make_rig(config(topics), make_producer=partial(open_producer, metadata_max_age_ms=100))
    rig.start()
    with KafkaAdminClient(bootstrap_servers=topics.bootstrap_servers) as admin:
        admin.create_partitions(dict.fromkeys(topics.names, 12))
    metadata = rig.producers[0]._metadata
    wait_until(lambda: all(len(metadata.partitions_for_topic(name) or ()) == 12 for name in topics.names))
    rig.send(Feed(topics).events(500))
    rig.wait_for_delivery()
    records = read_all(topics.bootstrap_servers, *topics.names)
    assert len(records) == 500
    assert all(one.partition == (murmur2(one.key) & 0x7FFFFFFF) % 12 for one in records)


# The process around it

_PROGRAM = """
import atexit, os, pathlib, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from config.kafka import KafkaConfig
from config.settings import DeliveryConfig, SpoolConfig
from src.deadline import Deadline
from src.delivery import Delivery
from src.events import Event, Route
from src.kafka_producer import KafkaSink
from src.logger import configure_logging
from src.lost import Lost
from src.spool import Spool
from src.telemetry import Telemetry

configure_logging()
servers, pid = sys.argv[1], int(sys.argv[2])
kafka = KafkaConfig(bootstrap_servers=(servers,), mirror_raw_events=True)
sink = KafkaSink(kafka, DeliveryConfig(), telemetry := Telemetry(), lambda worker: None)
spool = Spool(SpoolConfig(path=pathlib.Path(sys.argv[3]), min_free_bytes=0))
delivery = Delivery(sink, spool, kafka.topic_trades, telemetry, lambda worker: None, Lost())
delivery.start()
if pid:
    while not sink.ready:
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
route = Route("trade", kafka.topic_trades, b"BTCUSDT", b"", 0, b"")
for _ in range(100):
    delivery.accept([Event(route, b"x" * 200, int(time.time() * 1000)) for _ in range(100)])
started = time.monotonic()
deadline = Deadline(3.0)
delivery.finish(deadline)
delivery.close(deadline)
assert time.monotonic() - started < 4.5
assert telemetry.snapshot()["messages_spooled"] == 10_000
assert [t for t in threading.enumerate() if not t.daemon] == [threading.main_thread()]
atexit.register(lambda: print("exiting at", time.monotonic()))  # runs before the exit handlers of earlier ones
"""


def run_program(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.stderr == ""
    assert (done.returncode, "Traceback" in done.stdout) == (0, False), done.stdout
    return done.stdout


@kafka_test
def test_the_process_ends_quietly_before_a_frozen_broker(own_broker: Broker, tmp_path: Path) -> None:
    said = run_program(_PROGRAM, own_broker.bootstrap_servers, str(own_broker.pid), str(tmp_path / "spool"))
    assert time.monotonic() - float(said.split()[-1]) < 3


@pytest.mark.parametrize("mute", [False, True])
def test_the_process_ends_quietly_without_a_broker(mute: bool, tmp_path: Path) -> None:  # noqa: FBT001
    with mute_port() as server:
        said = run_program(_PROGRAM, server if mute else "127.0.0.1:1", "0", str(tmp_path / "spool"))
    assert time.monotonic() - float(said.split()[-1]) < 3
