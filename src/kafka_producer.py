"""Kafka's side: events in, fates out, with a bound on what is unacknowledged.

A connector thread finds the brokers, creates missing topics and opens the producer; until then admitted
events wait here. `send` never blocks on Kafka, so the reading of the socket never does.

Locks: the sink's own is taken before the producer's; fates arrive on the producer's I/O thread without
either and take neither, so they cannot wait for `send`.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2
from kafka.structs import TopicPartition

from src import topics
from src.events import Event, Route, Topics
from src.in_flight import InFlight
from src.kafka_batches import BatchAppender, Producer, appender_for, fatal_error, partition_count
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kafka import KafkaProducer

    from config.settings import DeliveryConfig, KafkaConfig
    from src.deadline import Deadline
    from src.kafka_batches import Appender, Settle
    from src.telemetry import Telemetry

_BOOTSTRAP_SECONDS = 5.0  # the library's constructor blocks this long, so a stop may have to wait for it
_RETRY_SECONDS = 1.0
_FORCE_SECONDS = 2.0  # of the shutdown's time, kept for a producer that has to be ended by force
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
        "bootstrap_timeout_ms": int(_BOOTSTRAP_SECONDS * 1000),
        "max_block_ms": int(_BOOTSTRAP_SECONDS * 1000),
        "reconnect_backoff_max_ms": 2_000,
        "metrics_enabled": False,
    }


def open_producer(kafka: KafkaConfig, **overrides: object) -> KafkaProducer:
    """Open a producer, blocking until a broker answers; raises `KafkaError` after 5 s without one."""
    return _opened(Producer, producer_options(kafka) | overrides)


def _opened(make: Callable[..., Any], options: dict[str, Any]) -> Any:  # noqa: ANN401 - a client of kafka-python
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
    """Delivers batches of events and tells the telemetry what became of each.

    `send` is for one thread. Order holds per key: one key goes to one partition, and the idempotent
    producer keeps a partition's order. What the bound does not admit is handed back to the caller.
    """

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
        self._topics = topics.wanted_topics(kafka)
        self._mirror = Mirror(kafka.topic_raw_events) if kafka.mirror_raw_events else None
        self.in_flight = InFlight(delivery.max_in_flight_records, delivery.max_in_flight_bytes)
        self._copies_in_flight = InFlight(delivery.max_in_flight_records, delivery.max_in_flight_bytes)
        self._lock = threading.Lock()  # guards the next four
        self._waiting: list[list[Event]] = []
        self._appender: Appender | None = None  # None: what is sent has to wait for the connector
        self._hurried = False
        self._closing = threading.Event()
        self._partitions: _Partitions  # the connector's until _appender is set, then of whoever holds the lock
        self._producer: KafkaProducer | None = None
        self._connector = Worker("kafka-connector", self._connect, on_exit)

    def start(self) -> None:
        """Begin to look for the brokers."""
        self._connector.start()

    @property
    def ready(self) -> bool:
        """Whether the producer is open, alive, and every topic known."""
        return self._appender is not None and fatal_error(self._producer) is None

    def send(self, events: list[Event]) -> list[Event]:
        """Take as many of the first events as the bound admits; return the rest, which is not in flight.

        All of them come back once the sink is closed.
        """
        with self._lock:
            if self._closing.is_set():
                return events
            admitted = self.in_flight.admit(events)
            accepted = events[:admitted]
            self._telemetry.handed_over(admitted)
            if accepted and self._appender is None:
                self._waiting.append(accepted)
            elif accepted and self._appender is not None:
                self._append(self._appender, accepted)
        return events[admitted:]

    def close(self, deadline: Deadline) -> None:
        """Deliver what is in flight until the deadline, close the producer, count what is left as failed."""
        with self._lock:
            self._hurried = True
            if self._appender is not None:
                self._appender.hurry()
        self.in_flight.wait_empty(deadline.remaining() - _FORCE_SECONDS)
        self._copies_in_flight.wait_empty(deadline.remaining() - _FORCE_SECONDS)
        with self._lock:
            self._closing.set()
            self._waiting.clear()
            appender, self._appender = self._appender, None
        self._give_up_the_rest()
        if appender is not None:
            appender.stop(deadline.remaining(at_most=_FORCE_SECONDS))
        self._connector.join(deadline.remaining(at_most=0.2))

    def _give_up_the_rest(self) -> None:
        if left := self.in_flight.give_up():
            self._telemetry.failed(left, "undelivered_at_shutdown")
        if left := self._copies_in_flight.give_up():
            self._telemetry.mirror_failed(left, "undelivered_at_shutdown")

    # Finding the brokers

    def _connect(self) -> None:
        while not self._closing.is_set():
            try:
                self._create_missing_topics()
                self._open_producer()
            except (KafkaError, OSError, topics.TopicError) as error:
                self._telemetry.kafka_unavailable(error, bootstrap_servers=self._kafka.bootstrap_servers)
                self._closing.wait(_RETRY_SECONDS)
            else:
                return
        if self._producer is not None:
            self._make_appender(self._producer, self._settled).stop(0.0)

    def _create_missing_topics(self) -> None:
        timeout = {"bootstrap_timeout_ms": int(_BOOTSTRAP_SECONDS * 1000)}
        admin = _opened(KafkaAdminClient, self._kafka.client_options() | timeout)
        try:
            missing = topics.missing_topics(admin, self._topics)
            created = topics.create_topics(admin, missing)
        finally:
            admin.close()
        if created:
            self._telemetry.topics_created([str(topic.name) for topic in created])

    def _open_producer(self) -> None:
        if self._producer is None:
            self._producer = self._make_producer(self._kafka)
        counts = {topic.name: len(self._producer.partitions_for(topic.name)) for topic in self._topics}
        appender = self._make_appender(self._producer, self._settled)
        self._partitions = _Partitions(self._producer, counts)
        while waiting := self._next_waiting(appender):
            for events in waiting:
                self._append(appender, events)
        if self._closing.is_set():
            appender.stop(0.0)
        else:
            self._telemetry.kafka_connected(counts, batchwise=isinstance(appender, BatchAppender))

    def _next_waiting(self, appender: Appender) -> list[list[Event]]:
        """Take what waits; when nothing does, let `send` append from here on.

        The waiting events are appended outside the lock: there may be many, and `send` must not wait.
        """
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if not waiting and not self._closing.is_set():
                self._appender = appender
                if self._hurried:
                    appender.hurry()
            return waiting

    # The way of an event

    def _append(self, appender: Appender, events: list[Event]) -> None:
        if self._mirror is not None:
            events = events + self._copied(self._mirror, events)
        by_partition: dict[TopicPartition, list[Event]] = defaultdict(list)
        partition_of = self._partitions.current()
        for event in events:
            by_partition[partition_of[event.route]].append(event)
        for partition, group in by_partition.items():
            appender.append(partition, group)

    def _copied(self, mirror: Mirror, events: list[Event]) -> list[Event]:
        copies = mirror.copies(events)
        admitted = self._copies_in_flight.admit(copies)
        if admitted < len(copies):
            self._telemetry.mirror_failed(len(copies) - admitted, "in_flight_limit")
        return copies[:admitted]

    def _settled(self, events: list[Event], error: BaseException | None) -> None:
        """Take note of the fate of records; runs on the producer's I/O thread."""
        if self._mirror is not None:
            copies = [event for event in events if isinstance(event, MirroredEvent)]
            events = [event for event in events if not isinstance(event, MirroredEvent)]
            self._copies_settled(copies, error)
        size = sum(len(event.value) for event in events)
        # Released first: who gave the rest up at shutdown has counted these as failed already.
        if not events or not self.in_flight.settle(len(events), size):
            return
        if error is None:
            self._telemetry.acknowledged(len(events), size)
        else:
            reason, topic = type(error).__name__, events[0].route.topic
            self._telemetry.failed(len(events), reason, topic=topic, error=str(error))
            if fatal := fatal_error(self._producer):
                self._telemetry.producer_failed(fatal)

    def _copies_settled(self, copies: Sequence[Event], error: BaseException | None) -> None:
        size = sum(len(event.value) for event in copies)
        if not copies or not self._copies_in_flight.settle(len(copies), size):
            return
        if error is None:
            self._telemetry.mirrored(len(copies))
        else:
            self._telemetry.mirror_failed(len(copies), type(error).__name__)


class MirroredEvent(Event, frozen=True, eq=False, gc=False):
    """The copy of an event for the raw topic; counted apart from the event itself."""


class Mirror:
    """Copies events of the other topics to the raw topic (KAFKA_MIRROR_RAW_EVENTS)."""

    def __init__(self, raw_topic: str) -> None:
        self._raw_topic = raw_topic
        self._routes = _RouteMap(self._redirected)

    def copies(self, events: list[Event]) -> list[Event]:
        """Return a copy for each event that is not on its way to the raw topic anyway."""
        return [
            MirroredEvent(self._routes[event.route], event.value, event.timestamp_ms)
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
