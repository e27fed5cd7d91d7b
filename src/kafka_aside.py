"""Records that go to topics beside the data's: dead letters, the gap ledger, checkpoints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kafka.errors import KafkaError

from src import topics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient

    from src.telemetry import Telemetry

_AGAIN_SECONDS = 30.0  # between looks for a topic that was not there, or refused


class Aside:
    """Sends through the open producer to topics that the data does not depend on.

    Such a topic is created where we may. Without it, or when it takes nothing, the sender keeps its records and
    the data flows. All but `producer` and `send` are for the sink's connector thread.
    """

    def __init__(self, wanted: Sequence[topics.Topic], telemetry: Telemetry) -> None:
        self._wanted = {topic.name: topic for topic in wanted}
        self._telemetry = telemetry
        self._there: frozenset[str] = frozenset()
        self._looked_at = 0.0
        self._open: KafkaProducer | None = None
        self._known: frozenset[str] = frozenset()

    def create(self, admin: KafkaAdminClient) -> list[topics.Topic]:
        """Create what is missing, one by one, and return it; what a broker refuses is only logged."""
        self._looked_at = time.monotonic()
        created: list[topics.Topic] = []
        there = set()
        for name, topic in self._wanted.items():
            try:
                created += topics.create_topics(admin, topics.missing_topics(admin, [topic]))
            except (KafkaError, topics.TopicError) as error:
                self._telemetry.aside_topic_unavailable(name, error)
            else:
                there.add(name)
        self._there = frozenset(there)
        return created

    @property
    def look_again(self) -> bool:
        """Whether it is time to look for topics that were not there, or were refused."""
        return len(self._there) < len(self._wanted) and time.monotonic() - self._looked_at > _AGAIN_SECONDS

    def learn(self, producer: KafkaProducer) -> None:
        """Find out which of the topics this producer knows; waits as long as it may wait for metadata."""
        self._known |= {name for name in self._there - self._known if self._knows(producer, name)}

    def learn_more(self) -> None:
        """Find out whether the open producer knows more of them by now; does not wait."""
        if self._open is not None:
            self.learn(self._open)

    def opened(self, producer: KafkaProducer) -> None:
        """Send to this producer from here on."""
        self._open = producer

    def ended(self) -> None:
        """Send nothing more to the producer; its answers may or may not come."""
        self._open = None
        self._known = frozenset()

    def producer(self, topic: str) -> KafkaProducer | None:
        """Return the open producer when it knows the topic; another object after each rebuild.

        When it changes, the answers to what the one before had taken may never come.
        """
        return self._open if topic in self._known else None

    def send(  # noqa: PLR0913 - what a record consists of
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
        answered: Callable[[bool], None],
    ) -> bool:
        """Send a record without waiting; return whether an answer will come.

        `answered` is called on the producer's I/O thread with whether Kafka took it. Records of one key stay in
        order as long as all are taken.
        """
        if (producer := self.producer(topic)) is None:
            return False
        try:
            future = producer.send(topic, value, key=key, headers=list(headers), timestamp_ms=timestamp_ms)
        except (KafkaError, ValueError) as error:
            self._refused(topic, error)
            return False

        def refused(error: BaseException) -> None:
            self._refused(topic, error)
            answered(False)  # noqa: FBT003 - the answer

        future.add_callback(lambda _: answered(True))  # noqa: FBT003
        future.add_errback(refused)
        return True

    def _refused(self, topic: str, error: BaseException) -> None:
        self._telemetry.aside_record_refused(topic, error)

    def _knows(self, producer: KafkaProducer, name: str) -> bool:
        try:
            return bool(producer.partitions_for(name))
        except KafkaError as error:
            if producer.config["max_block_ms"]:  # otherwise it has asked, and knows the next time
                self._telemetry.aside_topic_unavailable(name, error)
            return False
