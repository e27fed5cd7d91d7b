"""The brokers of the sandbox behave as a Kafka broker must, whichever program stands behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer

from tests.broker_fixtures import Topics, create_topics, read_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.brokers import Broker

pytestmark = pytest.mark.kafka


def send(bootstrap_servers: str, topic: str, values: list[bytes], **fields: object) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, compression_type="snappy")
    try:
        sent = [producer.send(topic, value=value, **fields) for value in values]
        for future in sent:
            future.get(timeout=20)
    finally:
        producer.close()


def test_what_is_sent_is_read_back_with_key_and_timestamp(broker: Broker, topics: Topics) -> None:
    send(broker.bootstrap_servers, topics.trades, [b"1", b"2"], key=b"BTCUSDT", timestamp_ms=1_677_000_000_000)
    records = read_all(broker.bootstrap_servers, *topics.names)
    assert [(one.key, one.value, one.timestamp) for one in records] == [
        (b"BTCUSDT", b"1", 1_677_000_000_000),
        (b"BTCUSDT", b"2", 1_677_000_000_000),
    ]
    assert [one.offset for one in records] == [0, 1]


def test_acknowledged_records_survive_a_clean_restart(own_broker: Broker) -> None:
    create_topics(own_broker.bootstrap_servers, ["kept"])
    send(own_broker.bootstrap_servers, "kept", [b"1", b"2", b"3"])
    own_broker.restart()
    assert [one.value for one in read_all(own_broker.bootstrap_servers, "kept")] == [b"1", b"2", b"3"]


def test_acknowledged_records_survive_a_kill(own_broker: Broker) -> None:
    create_topics(own_broker.bootstrap_servers, ["kept"])
    send(own_broker.bootstrap_servers, "kept", [b"1", b"2", b"3"])
    own_broker.wait_until_durable()
    own_broker.kill()
    assert not own_broker.running
    own_broker.start()
    assert [one.value for one in read_all(own_broker.bootstrap_servers, "kept")] == [b"1", b"2", b"3"]


def test_a_frozen_broker_answers_again_when_thawed(own_broker: Broker) -> None:
    create_topics(own_broker.bootstrap_servers, ["kept"])
    producer = KafkaProducer(bootstrap_servers=own_broker.bootstrap_servers)
    try:
        producer.send("kept", b"before").get(timeout=20)
        own_broker.freeze()
        late = producer.send("kept", b"during")
        with pytest.raises(Exception, match=r"(?i)time"):
            late.get(timeout=1)
        own_broker.thaw()
        late.get(timeout=20)
    finally:
        own_broker.thaw()
        producer.close()
    assert [one.value for one in read_all(own_broker.bootstrap_servers, "kept")] == [b"before", b"during"]


def test_two_brokers_run_side_by_side(own_broker_factory: Callable[[], Broker]) -> None:
    first, second = own_broker_factory(), own_broker_factory()
    first.start()
    second.start()
    create_topics(first.bootstrap_servers, ["only-here"])
    assert first.bootstrap_servers != second.bootstrap_servers
    assert first.pid != second.pid


def test_a_frozen_broker_can_be_stopped(own_broker: Broker) -> None:
    own_broker.freeze()
    own_broker.stop()
    assert not own_broker.running
