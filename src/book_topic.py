"""Where in the depth topic the book of one symbol begins: its last snapshot, searched from the end backwards."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.partitioner.default import murmur2

from src.kafka_causes import causes_named
from src.kafka_producer import opened
from src.kafka_reader import KafkaReader
from src.order_book import SNAPSHOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.kafka import KafkaConfig
    from src.consumer_reader import Ending

_FIRST_STEP, _LONGEST_STEP = 20_000, 500_000
_MOST_RECORDS = 20_000_000
_BEFORE = 1_000
"""Records before the snapshot that are read too: it may be older than updates that stand before it."""


class NoDepthTopic(Exception):  # noqa: N818 - named after the fact
    """The topic is not there; the message is one line."""


class Start(NamedTuple):
    """Where to begin, and what there is to say about it."""

    partition: TopicPartition
    offset: int
    end: int
    """The present end of the partition."""
    lacking: str
    """Empty when there is a snapshot; else what is not there, and why that may be."""


class UpToNow:
    """Asks to end when a consumer has read up to an offset, or when another asks for it."""

    def __init__(self, other: Ending, consumer: KafkaConsumer, start: Start) -> None:
        self._other = other
        self._consumer = consumer
        self._start = start

    @property
    def asked(self) -> bool:
        """Whether the end is reached."""
        return self._other.asked or self._consumer.position(self._start.partition) >= self._start.end


def connect(config: KafkaConfig, wait: float) -> KafkaConsumer:
    """Return a consumer without a group that reads nothing yet; raises `NotConnectedError` after `wait` s."""
    options = {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",  # for records that are deleted before they are read: the book breaks
        "allow_auto_create_topics": False,
        "bootstrap_timeout_ms": math.ceil(wait * 1000),
        "reconnect_backoff_max_ms": 1_000,
        "max_partition_fetch_bytes": 4 * 1024 * 1024,
    }
    with causes_named():
        return opened(KafkaConsumer, config.client_options() | options)


def find_start(config: KafkaConfig, symbol: str, tell: Callable[[str], None]) -> Start:
    """Search the last snapshot of a symbol; `tell` gets a line now and then while that takes long.

    All records of a symbol lie in one partition, by their key. Raises `NoDepthTopic`, `KafkaError`.
    """
    reader = KafkaReader(config)
    try:
        return _search(reader, config.topic_depth, symbol, tell)
    finally:
        reader.close()


def _search(reader: KafkaReader, topic: str, symbol: str, tell: Callable[[str], None]) -> Start:
    partitions = reader.partitions([topic])
    if not partitions:
        raise NoDepthTopic(f"there is no topic {topic}; the service and setup_kafka.py make it")
    key = symbol.encode()
    partition = partitions[(murmur2(key) & 0x7FFF_FFFF) % len(partitions)]
    begin, end = (found[partition] for found in (reader.begins([partition]), reader.ends([partition])))
    upper, step, seen = end, _FIRST_STEP, False
    begin = max(begin, end - _MOST_RECORDS)
    while upper > begin:
        lower = max(begin, upper - step)
        found, any_of_it = _last_snapshot(reader, partition, lower, upper, key)
        if found is not None:
            return Start(partition, max(begin, found - _BEFORE), end, "")
        seen |= any_of_it
        upper, step = lower, min(2 * step, _LONGEST_STEP)
        tell(f"no snapshot of {symbol} in the last {end - upper:,} records of {topic}; looking further back")
    where = f"in the last {end - begin:,} records of {topic}, partition {partition.partition}"
    return Start(partition, max(begin, end - _BEFORE), end, _lacking(symbol, where, seen=seen))


def _last_snapshot(
    reader: KafkaReader, partition: TopicPartition, lower: int, upper: int, key: bytes
) -> tuple[int | None, bool]:
    """Return the offset of the last snapshot in this range, and whether there is anything of this key."""
    found, seen = None, False
    for _, records in reader.records({partition: lower}, {partition: upper}, lambda: False):
        for record in records:
            if record.key == key:
                seen = True
                if _is_snapshot(record.value):
                    found = record.offset
    return found, seen


def _is_snapshot(value: bytes | None) -> bool:
    if value is None or SNAPSHOT.encode() not in value:
        return False
    try:
        event: Any = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return False
    return isinstance(event, dict) and event.get("event_type") == SNAPSHOT


def _lacking(symbol: str, where: str, *, seen: bool) -> str:
    if seen:
        return (
            f"there is depth of {symbol} but no snapshot {where}: the service runs with BACKFILL_ENABLED=false, "
            "could not reach the exchange's REST interface, or took its last one before what the topic still keeps"
        )
    return f"there is no depth of {symbol} {where}: see that BINANCE_SYMBOLS has it, with a depth stream"
