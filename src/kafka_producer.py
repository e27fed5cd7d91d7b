"""Kafka's side: events in, fates out, with a bound on what is unacknowledged.

A connector thread finds the brokers, creates missing topics and opens the producer; until then admitted
events wait here. `send` never blocks on Kafka, so the reading of the socket never does.

Locks: the sink's own is taken before the producer's; fates arrive on the producer's I/O thread without
either and take neither, so they cannot wait for `send`.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2
from kafka.structs import TopicPartition

from src import topics
from src.events import Event, Route, Topics
from src.failed_copies import FailedCopies
from src.in_flight import InFlight
from src.kafka_aside import Aside
from src.kafka_batches import BatchAppender, Producer, appender_for, partition_count
from src.kafka_causes import NotConnectedError, causes_named, check_of
from src.selector import CheapMisses
from src.worker import Worker

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from kafka import KafkaProducer

    from config.kafka import KafkaConfig
    from config.settings import DeliveryConfig
    from src.deadline import Deadline
    from src.kafka_fates import Appender, Fate, Settle
    from src.spool import DeadLetter
    from src.telemetry import Telemetry

_BOOTSTRAP_SECONDS = 5.0  # the library's constructor blocks this long, so a stop may have to wait for it
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 2.0  # between looks whether a topic is gone
_END_SECONDS = 10.0  # for a producer that is replaced; what it still holds then is given up
_MAX_REQUEST_BYTES = 8 * 1024 * 1024  # of one request to a broker, over all its partitions


def topic_names(kafka: KafkaConfig) -> Topics:
    """Return the topics that events are routed to."""
    return Topics(kafka.topic_trades, kafka.topic_depth, kafka.topic_raw_events)


def producer_options(kafka: KafkaConfig) -> dict[str, Any]:
    """Return the arguments of `KafkaProducer`: the contract's, idempotent unless acks or retries forbid it."""
    return kafka.client_options() | {
        "acks": kafka.acks if kafka.acks == "all" else int(kafka.acks),
        "retries": kafka.retries,
        "enable_idempotence": kafka.acks == "all" and kafka.retries > 0,
        "max_in_flight_requests_per_connection": kafka.max_in_flight,
        "batch_size": kafka.batch_size,
        "linger_ms": kafka.linger_ms,
        # A batch may legally be as old as its lingering and one request; the library insists on it.
        "delivery_timeout_ms": max(120_000, kafka.linger_ms + 60_000),
        "compression_type": None if kafka.compression == "none" else kafka.compression,
        "max_request_size": _MAX_REQUEST_BYTES,
        "allow_auto_create_topics": False,  # a deleted topic is made again as wanted, not as the broker's default
        "bootstrap_timeout_ms": int(_BOOTSTRAP_SECONDS * 1000),
        "max_block_ms": int(_BOOTSTRAP_SECONDS * 1000),
        "reconnect_backoff_max_ms": 2_000,
        "metrics_enabled": False,
        "selector": CheapMisses,
    }


def open_producer(kafka: KafkaConfig, **overrides: object) -> KafkaProducer:
    """Open a producer, blocking until a broker answers; raises `KafkaError` after 5 s without one."""
    return opened(Producer, producer_options(kafka) | overrides)


def opened(make: Callable[..., Any], options: dict[str, Any]) -> Any:  # noqa: ANN401 - a client of kafka-python
    """Construct a client; when that fails, close what it has started, which the library leaks."""
    inner: list[Any] = []

    def kafka_client(**configs: object) -> Any:  # noqa: ANN401
        inner.append(make.DEFAULT_CONFIG["kafka_client"](**configs))  # type: ignore[attr-defined]
        return inner[-1]

    try:
        return make(**options, kafka_client=kafka_client)
    except BaseException:
        for client in inner:
            client.close()
        raise


class KafkaSink:
    """Keeps a producer open and appends events to its batches; tells the fate of each event once.

    `send` is for one thread at a time. Order holds per key: one key goes to one partition, and the idempotent
    producer keeps a partition's order. A producer that lost a record is ended (`break_off`) before it can
    send a later one of the same partition, everything unacknowledged comes back, and a new one is opened.
    """

    FORCE_SECONDS = 2.0
    """Of the shutdown's time, kept for a producer that has to be ended by force."""

    def __init__(  # noqa: PLR0913 - the last two are for tests
        self,
        kafka: KafkaConfig,
        delivery: DeliveryConfig,
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],
        *,
        make_producer: Callable[[KafkaConfig], KafkaProducer] = open_producer,
        make_appender: Callable[[KafkaProducer, Settle], Appender] = appender_for,
    ) -> None:
        self._kafka = kafka
        self._make_producer = make_producer
        self._make_appender = make_appender
        self._telemetry = telemetry
        self._topics = topics.data_topics(kafka)
        self._aside = Aside(topics.aside_topics(kafka), telemetry)
        self._mirror = Mirror(kafka.topic_raw_events) if kafka.mirror_raw_events else None
        self._failed_copies = FailedCopies()
        self.in_flight = InFlight(delivery.max_in_flight_records, delivery.max_in_flight_bytes)
        self.copies_in_flight = InFlight(delivery.max_in_flight_records, delivery.max_in_flight_bytes)
        self.in_flight.lingering_seconds = kafka.linger_ms / 1000
        self._settle: Settle = _nobody_asked
        self._lock = threading.Lock()  # guards the next three against the connector
        self._appender: Appender | None = None
        self._partitions: _Partitions
        self._hurried = False
        self._broken = threading.Event()
        self._failure: BaseException | None = None
        """What was raised while the fate of events was told: the producer's own thread would swallow it."""
        self._closing = threading.Event()
        self._connector = Worker("kafka-connector", self._keep_connected, on_exit)

    def settle_with(self, settle: Settle) -> None:
        """Say who is told the fate of events, on the producer's I/O thread; before `start`."""
        self._settle = settle

    def start(self) -> None:
        """Begin to look for the brokers."""
        self._connector.start()

    @property
    def ready(self) -> bool:
        """Whether a producer is open and every topic known."""
        return self._appender is not None and not self._broken.is_set()

    def send(self, events: list[Event]) -> int:
        """Take as many of the first events as the bound admits, none without a producer; return how many."""
        with self._lock:
            if self._appender is None or self._broken.is_set():
                return 0
            admitted = self.in_flight.admit(events)
            if admitted:
                self._append(self._appender, events[:admitted])
            return admitted

    @property
    def dead_letter_producer(self) -> object | None:
        """The open producer, when it knows the topic of the dead letters; another object after each rebuild."""
        return self.aside_producer(self._kafka.topic_dead_letters)

    def send_dead_letter(self, letter: DeadLetter, answered: Callable[[int, bool], None]) -> bool:
        """Send a dead letter to its topic without waiting; return whether an answer will come.

        `answered` is called on the producer's I/O thread with the letter's id and whether Kafka took it.
        """
        return self.send_aside(
            self._kafka.topic_dead_letters,
            letter.key,
            letter.value,
            headers=_headers(letter),
            timestamp_ms=letter.died_ms,
            answered=partial(answered, letter.id),
        )

    def aside_producer(self, topic: str) -> object | None:
        """Return the open producer when it knows this topic beside the data's; another object after each rebuild.

        When it changes, the answers to what the one before had taken may never come.
        """
        return self._aside.producer(topic)

    def send_aside(  # noqa: PLR0913 - what a record consists of
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
        answered: Callable[[bool], None],
    ) -> bool:
        """Send a record to a topic beside the data's without waiting; return whether an answer will come.

        `answered` is called on the producer's I/O thread with whether Kafka took it. Any thread may call this.
        """
        if self._broken.is_set():
            return False
        return self._aside.send(topic, key, value, headers=headers, timestamp_ms=timestamp_ms, answered=answered)

    def unacknowledged(self) -> list[Event]:
        """Return what is in flight at this moment, in no order."""
        appender = self._appender
        return _without_copies(appender.unsettled()) if appender is not None else []

    def count_late(self, before: float) -> int:
        """Return how many of the records `in_flight` are so since before then (monotonic clock)."""
        appender = self._appender
        return len(_without_copies(appender.unsettled(before))) if appender is not None else 0

    def late(self, before: float, *, again: bool = False) -> list[Event]:
        """Return those events of them that no earlier call returned, or all `again`; for one thread."""
        appender = self._appender
        return _without_copies(appender.late(before, again=again)) if appender is not None else []

    def break_off(self, error: BaseException) -> None:
        """End the producer after this failure; called on its own I/O thread, which sends nothing after it."""
        if not self._broken.is_set():
            self._broken.set()
            self._telemetry.producer_broken_off(error, check_of(error))
            if (appender := self._appender) is not None:
                appender.break_off()

    def hurry(self) -> None:
        """Send what lingers now; for the end."""
        with self._lock:
            self._hurried = True
            self.in_flight.lingering_seconds = 0.0
            if self._appender is not None:
                self._appender.hurry()

    def close(self, deadline: Deadline) -> None:
        """End the producer; what is not acknowledged by now comes back."""
        self._closing.set()
        self._broken.set()
        self._end_producer(deadline.remaining(at_most=self.FORCE_SECONDS))
        self._connector.join(deadline.remaining(at_most=0.2))

    # The life of producers

    def _keep_connected(self) -> None:
        while not self._closing.is_set() and self._failure is None:
            try:
                with causes_named():
                    self._create_missing_topics()
                    self._open_producer()
            except (KafkaError, topics.TopicError) as error:
                self._unavailable(error)
                self._closing.wait(_RETRY_SECONDS)
                continue
            self._wait_until_broken()
            if not self._closing.is_set():
                self._end_producer(_END_SECONDS)
                self._closing.wait(_RETRY_SECONDS)
        if self._failure is not None:
            raise self._failure

    def _wait_until_broken(self) -> None:
        """Break the producer off when a topic is gone, which it would wait for until its batches are too old."""
        while not self._broken.wait(_LOOK_SECONDS):
            self._count_lost_copies(self._failed_copies.look(self.unacknowledged))
            self._aside.learn_more()
            stalled = self.in_flight.stalled_seconds >= _LOOK_SECONDS or self._partitions.missing()
            if not stalled and not self._aside.look_again:
                continue
            try:
                with causes_named():
                    created = self._create_missing_topics()
            except (KafkaError, topics.TopicError) as error:
                self._unavailable(error)
                continue
            if created:
                self.break_off(topics.TopicError(f"{', '.join(created)}: gone, and made again"))

    def _unavailable(self, error: BaseException) -> None:
        check = error.check if isinstance(error, NotConnectedError) else None
        self._telemetry.kafka_unavailable(error, check=check, bootstrap_servers=self._kafka.bootstrap_servers)

    def _create_missing_topics(self) -> list[str]:
        """Create topics and return the names of those of the data."""
        options = self._kafka.client_options() | {"bootstrap_timeout_ms": int(_BOOTSTRAP_SECONDS * 1000)}
        admin = opened(KafkaAdminClient, options)
        try:
            missing = topics.missing_topics(admin, self._topics)
            created = topics.create_topics(admin, missing)
            beside = self._aside.create(admin)
        finally:
            admin.close()
        if created or beside:
            self._telemetry.topics_created([topic.name for topic in (*created, *beside)])
        return [topic.name for topic in created]

    def _open_producer(self) -> None:
        producer = self._make_producer(self._kafka)
        try:  # before there is an appender: that of the public way lets nothing wait for metadata any more
            counts = {topic.name: len(producer.partitions_for(topic.name)) for topic in self._topics}
            self._aside.learn(producer)
        except BaseException:
            self._make_appender(producer, self._told).stop(0.0)
            raise
        producer.config["max_block_ms"] = 0  # from here on nothing waits for metadata
        appender = self._make_appender(producer, self._told)
        with self._lock:
            if self._closing.is_set():
                appender.stop(0.0)
                return
            self._partitions = _Partitions(producer, counts)
            self._broken.clear()
            self._appender = appender
            self._aside.opened(producer)
            if self._hurried:
                appender.hurry()
        self._telemetry.kafka_connected(counts, batchwise=isinstance(appender, BatchAppender))

    def _end_producer(self, timeout: float) -> None:
        """Take the producer away from `send` and end it; all that it held has come back on return."""
        with self._lock:
            appender = self._appender
            self._aside.ended()
        if appender is not None:
            appender.stop(timeout)
            with self._lock:
                self._appender = None
            self._count_lost_copies(self._failed_copies.ended())

    # The way of an event

    def _append(self, appender: Appender, events: list[Event]) -> None:
        if self._mirror is not None:
            events = events + self._copied(self._mirror, events)
        by_partition: dict[TopicPartition, list[Event]] = defaultdict(list)
        partition_of = self._partitions.current()
        for event in events:
            by_partition[partition_of[event.route]].append(event)
        appender.append_all(by_partition)

    def _copied(self, mirror: Mirror, events: list[Event]) -> list[Event]:
        copies = mirror.copies(events)
        admitted = self.copies_in_flight.admit(copies)
        if admitted < len(copies):
            self._telemetry.mirror_failed(len(copies) - admitted, "in_flight_limit")
        return copies[:admitted]

    def _told(self, events: list[Event], error: BaseException | None, fate: Fate) -> None:
        """Take note of the fate of records; runs on the producer's I/O thread. A failure ends the connector."""
        try:
            self._take_note(events, error, fate)
        except BaseException as failure:  # noqa: BLE001 - kept for the connector
            self._failure = self._failure or failure
            self.break_off(failure)

    def _take_note(self, events: list[Event], error: BaseException | None, fate: Fate) -> None:
        if self._mirror is not None:
            copies = [event for event in events if isinstance(event, MirroredEvent)]
            events = _without_copies(events)
            self._copies_settled(copies, error)
            if error is not None and not fate.poison:
                self._failed_copies.returned(events)
        if events:
            self._settle(events, error, fate)

    def _copies_settled(self, copies: Sequence[Event], error: BaseException | None) -> None:
        if not copies:
            return
        self.copies_in_flight.settle(len(copies), sum(len(event.value) for event in copies))
        if error is None:
            self._telemetry.mirrored(len(copies))
        else:
            self._failed_copies.failed(copies, type(error).__name__)

    def _count_lost_copies(self, reasons: Counter[str]) -> None:
        for reason, copies in reasons.items():
            self._telemetry.mirror_failed(copies, reason)


def _headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    told = ("reason", "error", "topic", "event_type", "timestamp_ms", "died_ms")
    return [(name, str(getattr(letter, name)).encode()) for name in told]


def _nobody_asked(events: list[Event], error: BaseException | None, fate: Fate) -> None:
    """Stand in until `settle_with`."""


class MirroredEvent(Event, eq=False, gc=False):
    """The copy of an event for the raw topic, with the event's number; counted apart from the event itself."""


def _without_copies(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, MirroredEvent)]


class Mirror:
    """Copies events of the other topics to the raw topic (KAFKA_MIRROR_RAW_EVENTS)."""

    def __init__(self, raw_topic: str) -> None:
        self._raw_topic = raw_topic
        self._routes = _RouteMap(self._redirected)

    def copies(self, events: list[Event]) -> list[Event]:
        """Return a copy for each event that is not on its way to the raw topic anyway."""
        return [
            MirroredEvent(self._routes[event.route], event.value, event.timestamp_ms, event.seq)
            for event in events
            if event.route.topic != self._raw_topic
        ]

    def _redirected(self, route: Route) -> Route:
        return msgspec.structs.replace(route, topic=self._raw_topic)


class _Partitions:
    """Maps a route to its partition, as Java's default partitioner does for a key."""

    def __init__(self, producer: KafkaProducer, counts: dict[str, int]) -> None:
        self._producer = producer
        self._counts = counts
        self._known = _RouteMap(self._partition)

    def current(self) -> _RouteMap[TopicPartition]:
        """Return the map for the partition counts that the producer knows at this moment."""
        counts = {topic: partition_count(self._producer, topic) or count for topic, count in self._counts.items()}
        if counts != self._counts:
            self._counts = counts
            self._known = _RouteMap(self._partition)
        return self._known

    def missing(self) -> bool:
        """Whether the producer has learnt that a topic does not exist."""
        return any(partition_count(self._producer, topic) is None for topic in self._counts)

    def _partition(self, route: Route) -> TopicPartition:
        hashed = murmur2(route.key) & 0x7FFF_FFFF if route.key is not None else 0
        return TopicPartition(route.topic, hashed % self._counts[route.topic])


V = TypeVar("V")


class _RouteMap(dict[Route, V]):
    """Computes what it does not know; forgets all now and then, since routes come from the input."""

    def __init__(self, compute: Callable[[Route], V]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, route: Route) -> V:
        if len(self) > 100_000:  # noqa: PLR2004
            self.clear()
        value = self[route] = self._compute(route)
        return value
