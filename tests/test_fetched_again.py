"""What a full disk lost while Kafka was away is in Kafka once Kafka is back, and the ledger says so.

The real service at 2,000 messages a second on a real broker that freezes, with a spool of 300 KB.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from src.completeness_report import DEPTH, CompletenessReport
from src.completeness_verdict import verdict
from src.holes import joined, without
from tests.broker_fixtures import read_all
from tests.service_fixtures import balanced
from tests.test_resume_process import SYMBOLS, Scene

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.brokers import Broker
    from sandbox.exchange import Exchange
    from src.holes import Interval
    from tests.service_fixtures import StartService

pytestmark = pytest.mark.kafka
SMALL = {"SPOOL_MAX_BYTES": 300_000, "DELIVERY_MAX_IN_FLIGHT_RECORDS": 1_000}


@pytest.fixture
def scene(
    exchange_factory: Callable[..., Exchange], own_broker: Broker, start_service: StartService, tmp_path: Path
) -> Scene:
    return Scene(exchange_factory(rate=2_000, symbols=SYMBOLS), own_broker, start_service, tmp_path)


def lose_some(scene: Scene, broker: Broker, more_than: int = 3_000) -> None:
    """Let Kafka stay away until the disk has taken no more for a while, and come back."""
    broker.freeze()
    scene.service.wait_for(lambda: scene["messages_dropped"] > more_than, "events dropped", 30)
    broker.thaw()
    scene.service.wait_for(lambda: not scene["spooling"], "everything was sent from disk", 30)


def all_fetched(scene: Scene) -> bool:
    """Whether everything that was lost was fetched, and none of it can be lost again on this small disk.

    Looked at twice: what was fetched may be between buffer and disk at the first.
    """
    for pause in (0.5, 0.0):
        status = scene.service.status()
        on_its_way = status["spooling"] or status["messages_buffered"] > 500 or status["gaps_open"]
        if on_its_way or status["ledger_backlog"]:
            return False
        time.sleep(pause)
    found = verdict(report(scene))
    return (found.missing, found.open, found.unbridged) == (0, 0, 0)


def assert_each_once(scene: Scene) -> None:
    for stream, ids in scene.trades().items():
        assert sorted(ids) == list(range(min(ids), max(ids) + 1)), stream


def assert_the_ledger_tells_what_is_missing(scene: Scene) -> CompletenessReport:
    """Of each stream the ledger says exactly which ids between the first and the last are not in Kafka."""
    told = report(scene)
    for stream, ids in scene.trades().items():
        assert len(set(ids)) == len(ids), f"{stream}: some are there twice"
        those = told.streams[stream]
        said = joined([*those.missing, *(left for hole in those.open_holes for left in hole.left)])
        missing = joined((before + 1, after - 1) for before, after in pairwise(sorted(ids)) if after > before + 1)
        assert within(said, min(ids), max(ids)) == missing, stream
    return told


def within(ids: list[Interval], first: int, last: int) -> list[Interval]:
    return without(without(ids, 0, first - 1), last + 1, sys.maxsize)


def report(scene: Scene) -> CompletenessReport:
    told = CompletenessReport()
    for record in read_all(scene.topics.bootstrap_servers, scene.topics.gaps):
        told.add(json.loads(record.value or b""))
    return told


def test_what_a_full_disk_lost_is_fetched_when_kafka_is_back(scene: Scene, own_broker: Broker) -> None:
    service = scene.start(**SMALL)
    scene.flows()
    lose_some(scene, own_broker, more_than=6_000)  # so many that depth has to go too
    service.wait_for(lambda: all_fetched(scene), "what was lost was fetched", 60)
    assert service.stop() == 1, "events were lost, though not what they told"
    assert balanced(service.final)
    assert service.final["messages_backfilled"] > 1_000
    assert service.final["messages_dropped"] > 3_000
    told = assert_the_ledger_tells_what_is_missing(scene)
    assert {hole.cause for stream in told.streams.values() for hole in stream.holes.values()} == {"dropped"}
    assert any(stream.drops_ms for stream in told.streams.values() if stream.event_type == DEPTH)


@pytest.mark.parametrize("seconds", [0.0, 0.15, 0.3, 0.45])
def test_stopped_while_it_is_fetched_the_ledger_tells_what_is_missing_and_the_next_run_fetches_it(
    seconds: float, scene: Scene, own_broker: Broker
) -> None:
    """What is fetched is lost again on so small a disk, in the middle of a gap too, and fetched once more."""
    scene.start(**SMALL)
    scene.flows()
    lose_some(scene, own_broker, more_than=6_000)
    time.sleep(seconds)
    scene.service.stop()
    assert balanced(scene.service.final)
    assert_the_ledger_tells_what_is_missing(scene)
    service = scene.start()
    scene.flows()
    service.wait_for(lambda: all_fetched(scene), "what was lost was fetched", 60)
    scene.stop()
    assert_each_once(scene)
    found = verdict(report(scene))
    assert (found.missing, found.open) == (0, 0), str(found)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_before_it_was_fetched_changes_nothing_of_that(
    end: signal.Signals, scene: Scene, own_broker: Broker
) -> None:
    service = scene.start(**SMALL)
    scene.flows()
    scene.exchange.rest(503, count=10_000)
    lose_some(scene, own_broker)
    service.wait_for(lambda: scene["gaps_open"] > 3, "gaps are open")
    written = scene["checkpoints_written"]
    service.wait_for(lambda: scene["checkpoints_written"] > written + 2, "checkpoints were written")
    service.send(end)
    service.wait()
    scene.exchange.rest(forgive=True)
    service = scene.start()
    scene.flows()
    scene.gapless()
    scene.stop()
    assert_each_once(scene)
    found = verdict(report(scene))
    assert (found.missing, found.open) == (0, 0), str(found)
