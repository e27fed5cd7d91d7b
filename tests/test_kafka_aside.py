"""Records beside the data's: in order, without waiting, and never in the way of the data."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from config.kafka import KafkaConfig
from src import kafka_aside
from tests.broker_fixtures import Topics, create_topics, fresh_topics, read_all
from tests.test_kafka_producer import NOW, Feed, Rig, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.brokers import Broker

pytestmark = pytest.mark.kafka


@pytest.fixture
def config(broker: Broker) -> KafkaConfig:
    """Name topics of this test's own."""
    topics, unique = fresh_topics(broker.bootstrap_servers), uuid.uuid4().hex[:12]
    return KafkaConfig(
        bootstrap_servers=(broker.bootstrap_servers,),
        topic_raw_events=topics.raw,
        topic_trades=topics.trades,
        topic_depth=topics.depth,
        topic_dead_letters=f"dead-{unique}",
        topic_gaps=f"gaps-{unique}",
        topic_checkpoints=f"checkpoints-{unique}",
    )


@pytest.fixture
def rig(config: KafkaConfig, tmp_path: Path) -> Iterator[Rig]:
    """Make a sink with its delivery; the test starts it."""
    made = Rig(config, tmp_path)
    yield made
    made.close(5.0)


def test_records_are_answered_once_each_and_keep_their_order(rig: Rig, config: KafkaConfig) -> None:
    answers: list[bool] = []
    assert not rig.sink.send_aside(config.topic_gaps, b"k", b"early", answered=answers.append)
    rig.start()
    wait_until(lambda: rig.sink.aside_producer(config.topic_gaps) is not None)
    values = [b"%d" % number for number in range(500)]
    for value in values:
        assert rig.sink.send_aside(config.topic_gaps, b"k", value, timestamp_ms=NOW, answered=answers.append)
    wait_until(lambda: len(answers) == len(values))
    records = read_all(config.bootstrap_servers[0], config.topic_gaps)
    assert [(one.key, one.value, one.timestamp) for one in records] == [(b"k", value, NOW) for value in values]
    assert all(answers)


def test_one_topic_that_may_not_be_created_leaves_the_data_and_the_others_alone(
    rig: Rig, config: KafkaConfig
) -> None:
    wanted = rig.sink._aside._wanted
    wanted[config.topic_gaps] = replace(wanted[config.topic_gaps], replication_factor=9)
    rig.start()
    names = (config.topic_raw_events, config.topic_trades, config.topic_depth)
    rig.send(Feed(Topics(*names, config.bootstrap_servers[0])).events(1))
    wait_until(lambda: rig.count("kafka_produced") == 1)
    assert rig.sink.aside_producer(config.topic_gaps) is None
    assert rig.sink.aside_producer(config.topic_checkpoints) is not None
    assert not rig.sink.send_aside(config.topic_gaps, b"k", b"v", answered=lambda _: None)


def test_a_topic_that_is_made_later_is_found_without_another_producer(
    rig: Rig, config: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_aside, "_AGAIN_SECONDS", 0.5)
    wanted = rig.sink._aside._wanted
    wanted[config.topic_gaps] = replace(wanted[config.topic_gaps], replication_factor=9)
    rig.start()
    wait_until(lambda: rig.sink.ready)
    assert rig.sink.aside_producer(config.topic_gaps) is None
    create_topics(config.bootstrap_servers[0], [config.topic_gaps])
    wait_until(lambda: rig.sink.aside_producer(config.topic_gaps) is not None)
    answers: list[bool] = []
    assert rig.sink.send_aside(config.topic_gaps, b"k", b"v", answered=answers.append)
    wait_until(lambda: answers == [True])
    assert rig.count("producer_break_offs") == 0
