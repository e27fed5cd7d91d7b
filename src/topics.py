"""The Kafka topics: what is wanted of each, how a broker's differ from that, and making them alike.

Every function takes a `kafka.admin.KafkaAdminClient` that its caller opens and closes. Errors of the
connection pass through as `kafka.errors.KafkaError`; what a broker refuses becomes a `TopicError`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import NoError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kafka.admin import KafkaAdminClient

    from config.kafka import KafkaConfig

_DAY_MS = 86_400_000
_RETENTION = "retention.ms"
_FOREVER = "-1"
_IN_SYNC = "min.insync.replicas"
_REPLICAS_TO_SPARE = 3
"""From so many on a record must be on two before it is acknowledged: with fewer, one broker that is down would
stop the topic; without it a record may be on one alone, and lost with that one."""
_PARTITIONS = "partitions"
_COMPACTED = {
    "cleanup.policy": "compact",
    "compression.type": "producer",
    # Only what is not in the newest segment is compacted; these keep the topic small enough to be read at a start.
    "segment.ms": str(10 * 60_000),
    "segment.bytes": str(16 * 1024 * 1024),
    "min.cleanable.dirty.ratio": "0.1",
}


class TopicError(Exception):
    """A broker refused something about a topic; the message is one line that names the topic and the reason."""


@dataclass(frozen=True)
class Topic:
    """A topic as it is wanted; `configs` are Kafka's own topic configs by name.

    `one_log`: it has one partition, whatever KAFKA_PARTITIONS says, so that its records have one order.
    """

    name: str
    partitions: int
    replication_factor: int
    configs: Mapping[str, str]
    one_log: bool = False

    def __str__(self) -> str:
        return (
            f"{_count(self.partitions, 'partition')}, {_count(self.replication_factor, 'replica')}, {self._keeps}"
        )

    @property
    def _keeps(self) -> str:
        if _RETENTION not in self.configs:
            return "the last record of each key kept"
        return f"kept for at least {_count(int(self.configs[_RETENTION]) // _DAY_MS, 'day')}"


@dataclass(frozen=True)
class Difference:
    """One thing in which an existing topic is not as wanted.

    `fixable` tells whether `fix` can change it; `remark` what to know before, or what to do instead.
    """

    topic: Topic
    what: str
    actual: str
    wanted: str
    fixable: bool
    remark: str = ""

    def __str__(self) -> str:
        said = f"{self.what} is {_readable(self.what, self.actual)}, wanted {_readable(self.what, self.wanted)}"
        return f"{said}: {self.remark}" if self.remark else said


def wanted_topics(config: KafkaConfig) -> tuple[Topic, ...]:
    """Return every topic that the service writes to: those of the data and those beside it."""
    return (*data_topics(config), *aside_topics(config))


def aside_topics(config: KafkaConfig) -> tuple[Topic, ...]:
    """Return the topics that the data does not depend on.

    Dead letters are kept 30 days, the gap ledger 365 days; of the checkpoints Kafka keeps the last of each key.
    """
    replicas = config.replication_factor
    return (
        Topic(config.topic_dead_letters, config.partitions, replicas, _configs(30, replicas)),
        Topic(config.topic_gaps, 1, replicas, _configs(365, replicas), one_log=True),
        Topic(config.topic_checkpoints, 1, replicas, _COMPACTED | _in_sync(replicas), one_log=True),
    )


def data_topics(config: KafkaConfig) -> tuple[Topic, ...]:
    """Return the topics of the data: raw events kept 7 days, trades 30, depth 7.

    Names may coincide in the configuration; then there is one topic, with the longest of the retentions.
    """
    days: dict[str, int] = {}
    kept = ((config.topic_raw_events, 7), (config.topic_trades, 30), (config.topic_depth, 7))
    for name, wanted in kept:
        days[name] = max(wanted, days.get(name, 0))
    replicas = config.replication_factor
    return tuple(Topic(name, config.partitions, replicas, _configs(keep, replicas)) for name, keep in days.items())


def missing_topics(admin: KafkaAdminClient, topics: Iterable[Topic]) -> list[Topic]:
    """Return those that the broker does not have; raise `TopicError` where it does not say."""
    return [topic for topic, found in _look_up(admin, topics) if found is None]


def create_topics(admin: KafkaAdminClient, topics: Sequence[Topic], *, dry_run: bool = False) -> list[Topic]:
    """Create topics and return those that were created, once each of their partitions has a leader.

    One that exists by now, made by another process, is left as it is and not returned. With `dry_run` the
    broker only checks whether it could. Raises `TopicError` for the first that it refuses; those that it
    accepted are created all the same.
    """
    if not topics:
        return []
    asked = {
        topic.name: {
            "num_partitions": topic.partitions,
            "replication_factor": topic.replication_factor,
            "configs": dict(topic.configs),
        }
        for topic in topics
    }
    with _controller_found(", ".join(asked)):
        answer = admin.create_topics(asked, validate_only=dry_run, raise_errors=False)
    created = []
    for result in answer["topics"]:
        error = for_code(result["error_code"])
        if error is NoError:
            created.append(result["name"])
        elif error is not TopicAlreadyExistsError:
            raise TopicError(f"{result['name']}: {_reason(error, result['error_message'])}")
    if not dry_run:
        admin.wait_for_topics([topic.name for topic in topics])
    return [topic for topic in topics if topic.name in created]


def differences(admin: KafkaAdminClient, topics: Iterable[Topic]) -> list[Difference]:
    """Compare the existing ones of `topics` with what is wanted; missing ones are not mentioned.

    What is kept longer than wanted, or must be on more replicas, is no difference.
    """
    existing = [(topic, found) for topic, found in _look_up(admin, topics) if found is not None]
    return [
        difference
        for topic, found in existing
        for difference in (*_layout_differences(topic, found), *_config_differences(admin, topic, found))
    ]


def fix(admin: KafkaAdminClient, difference: Difference) -> None:
    """Correct one fixable difference; no harm when another process did it meanwhile. Raises `TopicError`."""
    if not difference.fixable:
        raise TopicError(f"{difference.topic.name}: {difference}")
    if difference.what == _PARTITIONS:
        _raise_partitions(admin, difference.topic)
    else:
        _set_config(admin, difference)


@contextmanager
def _controller_found(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of kafka-python 3.0.12, when the brokers are just choosing another one
        raise TopicError(f"{name}: {error}") from error


def _configs(days: int, replicas: int) -> dict[str, str]:
    # `producer`: the broker keeps the producer's compression instead of compressing everything again.
    kept = {_RETENTION: str(days * _DAY_MS), "cleanup.policy": "delete", "compression.type": "producer"}
    return kept | _in_sync(replicas)


def _in_sync(replicas: int) -> dict[str, str]:
    return {_IN_SYNC: "2"} if replicas >= _REPLICAS_TO_SPARE else {}


def _look_up(admin: KafkaAdminClient, topics: Iterable[Topic]) -> list[tuple[Topic, dict[str, Any] | None]]:
    """Pair each topic with its metadata (kafka-python's dict of a Metadata response), None when it is missing."""
    wanted = list(topics)
    if not wanted:  # an empty question means all topics to some brokers
        return []
    answers = {found["name"]: found for found in admin.describe_topics([topic.name for topic in wanted])}
    pairs: list[tuple[Topic, dict[str, Any] | None]] = []
    for topic in wanted:  # a broker answers in an order of its own
        found = answers[topic.name]
        error = for_code(found["error_code"])
        if error not in (NoError, UnknownTopicOrPartitionError):
            raise TopicError(f"{topic.name}: {_reason(error, None)}")
        pairs.append((topic, found if error is NoError else None))
    return pairs


def _layout_differences(topic: Topic, found: dict[str, Any]) -> list[Difference]:
    partitions, replicas = len(found["partitions"]), _replicas(found)
    layout = []
    if partitions != topic.partitions:
        fixable = partitions < topic.partitions
        lowering = _LOWERING_ONE_LOG if topic.one_log else _LOWERING.format(partitions)
        remark = _RAISING if fixable else lowering
        layout.append(Difference(topic, _PARTITIONS, str(partitions), str(topic.partitions), fixable, remark))
    if replicas != topic.replication_factor:
        wanted = str(topic.replication_factor)
        remark = _REPLICATION.format(replicas)
        layout.append(Difference(topic, "replication factor", str(replicas), wanted, fixable=False, remark=remark))
    return layout


_RAISING = "raising it moves symbols to other partitions, so their order holds only before and after the change"
_LOWERING = (
    "Kafka cannot lower it; set KAFKA_PARTITIONS={}, or delete the topic with its records and run this again"
)
_LOWERING_ONE_LOG = "Kafka cannot lower it; delete the topic with its records and run this again"
_REPLICATION = "moving replicas is up to kafka-reassign-partitions.sh; or set KAFKA_REPLICATION_FACTOR={}"
_UNREADABLE = "does this user lack the permission DESCRIBE_CONFIGS?"


_REMARKS = {_IN_SYNC: "a record may be on one broker alone when it is acknowledged"}


def _replicas(found: dict[str, Any]) -> int:
    return min(len(partition["replica_nodes"]) for partition in found["partitions"])


def _config_differences(admin: KafkaAdminClient, topic: Topic, found: dict[str, Any]) -> list[Difference]:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic.name, list(topic.configs))
    actual = admin.describe_configs([resource], config_filter="all")["topic"][topic.name]
    if not actual:  # kafka-python passes an error of the broker off as an empty answer
        return [Difference(topic, "configuration", "not readable", str(topic), fixable=False, remark=_UNREADABLE)]
    wanted = dict(topic.configs)
    if _replicas(found) < _REPLICAS_TO_SPARE:  # whatever the settings say: it would stop with one of its brokers
        wanted.pop(_IN_SYNC, None)
    return [
        Difference(topic, name, str(actual[name]["value"]), value, fixable=True, remark=_REMARKS.get(name, ""))
        for name, value in wanted.items()
        if name in actual and not _is_enough(name, str(actual[name]["value"]), value)
    ]


def _is_enough(name: str, actual: str, wanted: str) -> bool:
    """Whether a config is as wanted, or keeps records longer or safer than that."""
    if name == _RETENTION and actual == _FOREVER:
        return True
    if name in (_RETENTION, _IN_SYNC) and actual.isdigit():
        return int(actual) >= int(wanted)
    return actual == wanted


def _raise_partitions(admin: KafkaAdminClient, topic: Topic) -> None:
    with _controller_found(topic.name):
        answer = admin.create_partitions({topic.name: topic.partitions}, raise_errors=False)
    error = for_code(answer.results[0].error_code)
    if error is not NoError and _partition_count(admin, topic) != topic.partitions:
        raise TopicError(f"{topic.name}: {_reason(error, answer.results[0].error_message)}")


def _partition_count(admin: KafkaAdminClient, topic: Topic) -> int:
    ((_, found),) = _look_up(admin, [topic])
    return len(found["partitions"]) if found else 0


def _set_config(admin: KafkaAdminClient, difference: Difference) -> None:
    name = difference.topic.name
    resource = ConfigResource(ConfigResourceType.TOPIC, name, {difference.what: difference.wanted})
    answer = admin.alter_configs([resource])["topic"][name]
    if answer != "OK":
        raise TopicError(f"{name}: {answer}")


def _reason(error: Any, message: str | None) -> str:  # noqa: ANN401 - a class of kafka.errors, untyped
    return f"{message or error.description} ({error.__name__})"


def _readable(what: str, value: str) -> str:
    if what != _RETENTION or not value.isdigit():
        return value
    days = int(value) / _DAY_MS
    return f"{value} ({_count(int(days) if days.is_integer() else round(days, 2), 'day')})"


def _count(number: float, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
