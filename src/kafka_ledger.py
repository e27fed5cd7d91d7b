"""Reads the gap ledger from its topic, from the beginning or a point in time to the present end."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from src.kafka_causes import NotConnectedError, causes_named
from src.kafka_producer import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.kafka import KafkaConfig

_POLL_MS = 500
_ANSWER_SECONDS = 30.0


class LedgerUnreadable(Exception):  # noqa: N818 - named after the fact
    """The topic is not there, or Kafka gives nothing; the message is one line."""


def read_ledger(config: KafkaConfig, since_ms: int | None = None, wait: float = 10.0) -> Iterator[Any]:
    """Yield what each record holds, in order; None for one that is no JSON.

    `since_ms` leaves out what Kafka has an earlier time for. Raises `LedgerUnreadable`, also when no broker
    answers within `wait` seconds.
    """
    options = {"group_id": None, "enable_auto_commit": False, "bootstrap_timeout_ms": int(wait * 1000)}
    try:
        with causes_named():
            consumer = opened(KafkaConsumer, config.client_options() | options)
        try:
            yield from _records(consumer, config.topic_gaps, since_ms)
        finally:
            consumer.close(autocommit=False)
    except NotConnectedError as error:
        servers = ",".join(config.bootstrap_servers)
        raise LedgerUnreadable(f"no connection to Kafka at {servers}: {error}; check {error.check}") from error
    except (KafkaError, OSError) as error:
        raise LedgerUnreadable(" ".join(str(error).split()) or type(error).__name__) from error


def _records(consumer: Any, topic: str, since_ms: int | None) -> Iterator[Any]:  # noqa: ANN401 - untyped
    parts = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
    if not parts:
        raise LedgerUnreadable(f"there is no topic {topic}; the service and setup_kafka.py make it")
    consumer.assign(parts)
    ends = consumer.end_offsets(parts)
    _seek(consumer, parts, ends, since_ms)
    quiet_since = time.monotonic()
    while any(consumer.position(part) < ends[part] for part in parts):
        for part, records in consumer.poll(timeout_ms=_POLL_MS).items():
            quiet_since = time.monotonic()
            yield from (_held(one.value) for one in records if one.offset < ends[part])
        if time.monotonic() - quiet_since > _ANSWER_SECONDS:
            raise LedgerUnreadable(f"{topic}: Kafka gave nothing for {_ANSWER_SECONDS:g} s")


def _seek(consumer: Any, parts: list[Any], ends: dict[Any, int], since_ms: int | None) -> None:  # noqa: ANN401
    consumer.seek_to_beginning(*parts)
    if since_ms is None:
        return
    for part, found in consumer.offsets_for_times(dict.fromkeys(parts, since_ms)).items():
        consumer.seek(part, ends[part] if found is None else found.offset)


def _held(value: bytes | None) -> Any:  # noqa: ANN401 - JSON may be anything
    try:
        return json.loads(value or b"")
    except (ValueError, RecursionError):
        return None
