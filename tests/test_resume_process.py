"""The real service, killed and started again: it goes on where Kafka ends, and nothing is there twice.

Against the simulated exchange with its REST, 2,000 messages a second, on a real broker.
"""

from __future__ import annotations

import itertools
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from config.kafka import KafkaConfig
from sandbox.completeness import Lines
from tests.broker_fixtures import fresh_topics, read_all
from tests.resume_fixtures import Run, Truth, expanded
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.brokers import Broker
    from sandbox.exchange import Exchange
    from tests.broker_fixtures import Topics
    from tests.service_fixtures import ServiceProcess, StartService

pytestmark = pytest.mark.kafka

RATE = 2000
SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT")
TRADES = [f"{symbol.lower()}@{kind}" for symbol in SYMBOLS for kind in ("trade", "aggTrade")]


class Scene:
    """One exchange, topics, one spool, and the runs of the service on them."""

    def __init__(self, exchange: Exchange, broker: Broker, start: StartService, folder: Path) -> None:
        self.exchange = exchange
        self.topics: Topics = fresh_topics(broker.bootstrap_servers)
        self.spool = folder / "scene-spool"
        self._start = start
        self.service: ServiceProcess

    def start(self, **variables: Any) -> ServiceProcess:
        settings = {
            "BINANCE_SYMBOLS": ",".join(SYMBOLS),
            "BINANCE_STREAM_TYPES": "trade,aggTrade,depth@100ms",
            "CONNECTION_RECONNECT_INTERVAL": 0.2,
            "BACKFILL_ENABLED": "true",
            "CHECKPOINT_INTERVAL_SECONDS": 1,
            "CONNECTION_BATCH_TIMEOUT_SECONDS": 0.2,
            "SPOOL_PATH": self.spool,
        }
        self.service = self._start(self.exchange.ws_url, self.topics, **(settings | variables))
        return self.service

    def flows(self, events: int = 2000) -> None:
        self.service.ready()
        before = self["kafka_produced"]
        self.service.wait_for(lambda: self["kafka_produced"] > before + events, "it flows", 30)

    def __getitem__(self, name: str) -> Any:
        return self.service.status()[name]

    def kill(self) -> None:
        self.service.send(signal.SIGKILL)
        self.service.wait()

    def gapless(self) -> None:
        """Wait until everything missing was fetched."""
        self.service.logged("positions_found", 30)
        self.service.wait_for(lambda: not self["gaps_open"], "no gap is open", 40)

    def stop(self) -> dict[str, Any]:
        code = self.service.stop()
        final = self.service.final
        assert code == 0, final
        assert balanced(final), final
        return final

    @property
    def kafka(self) -> KafkaConfig:
        """The settings of the service, for parts in this process."""
        fields = {name.removeprefix("KAFKA_").lower(): value for name, value in self.topics.environment.items()}
        fields["bootstrap_servers"] = (fields["bootstrap_servers"],)
        return KafkaConfig(**fields)

    def trades(self) -> dict[str, list[int]]:
        """Return the ids of trades and aggregate trades in Kafka, in the order of their offsets."""
        lines = Lines(one.value or b"" for one in read_all(self.topics.bootstrap_servers, self.topics.trades))
        return {stream: lines.ids[stream] for stream in TRADES}

    def assert_complete_once_in_order(self) -> None:
        for stream, ids in self.trades().items():
            assert ids == list(range(ids[0], ids[-1] + 1)), f"{stream}: {faults(ids)}"


def faults(ids: list[int]) -> str:
    steps = [(before, after) for before, after in itertools.pairwise(ids) if after != before + 1]
    return f"{len(ids)} ids, {len(ids) - len(set(ids))} twice, wrong steps {steps[:5]}"


@pytest.fixture
def scene(
    exchange_factory: Callable[..., Exchange], own_broker: Broker, start_service: StartService, tmp_path: Path
) -> Scene:
    return Scene(exchange_factory(rate=RATE, symbols=SYMBOLS), own_broker, start_service, tmp_path)


def test_what_is_found_after_a_kill_is_what_kafka_holds(scene: Scene, tmp_path: Path) -> None:
    scene.start()
    scene.flows(6000)
    scene.kill()
    run = Run(scene.kafka, tmp_path / "another-spool").start()
    truth, found, read = Truth(scene.kafka), run.found, run.resume._records
    run.die()
    for stream in TRADES:
        assert found[stream].last == truth.last(stream)
        assert expanded(found[stream]) == truth.missing(stream)
    assert 0 < read < len(truth.values), "the tail behind the checkpoint, not everything"


def test_after_a_kill_it_goes_on_where_kafka_ends_without_a_hole_or_a_repeat(scene: Scene) -> None:
    scene.start()
    scene.flows(6000)
    scene.kill()
    time.sleep(1.0)  # the market goes on meanwhile
    scene.start()
    scene.flows()
    assert scene.service.logged("positions_found")["streams"] == 3 * len(SYMBOLS)
    scene.gapless()
    assert scene["messages_backfilled"] > 0
    scene.flows()
    scene.stop()
    scene.assert_complete_once_in_order()


def test_after_an_orderly_stop_it_goes_on_the_same_way(scene: Scene) -> None:
    scene.start()
    scene.flows()
    scene.stop()
    assert scene.service.events("checkpoint_written") or scene.service.final["checkpoints_written"] > 0
    time.sleep(0.5)  # the market goes on meanwhile
    scene.start()
    scene.flows()
    assert scene.service.logged("positions_found")["records"] == 0
    scene.gapless()
    scene.stop()
    scene.assert_complete_once_in_order()


def test_killed_while_the_disk_is_sent_nothing_is_sent_twice(scene: Scene, own_broker: Broker) -> None:
    scene.start()
    scene.flows()
    own_broker.freeze()
    scene.service.wait_for(lambda: scene["messages_spooled"] > 10_000, "on disk", 30)
    own_broker.thaw()
    scene.service.wait_for(lambda: scene["messages_spooled"] < 8_000, "half of it sent", 30)
    scene.kill()
    scene.start()
    scene.flows()
    found = scene.service.logged("positions_found")
    assert found["records"] > 0
    scene.service.wait_for(lambda: not scene["messages_spooled"], "sent", 30)
    scene.flows()
    scene.gapless()
    final = scene.stop()
    print("already delivered", final["messages_already_delivered"], "recovered", final["messages_recovered"])  # noqa: T201
    values = [one.value for one in read_all(scene.topics.bootstrap_servers, *scene.topics.names)]
    assert len(values) == len(set(values))
    for stream, ids in scene.trades().items():
        assert len(ids) == len(set(ids)), f"{stream}: {faults(ids)}"
        assert set(ids) == set(range(min(ids), max(ids) + 1)), f"{stream}: {faults(ids)}"


def test_a_stop_while_the_positions_are_looked_for_ends_in_time(scene: Scene, own_broker: Broker) -> None:
    own_broker.freeze()
    scene.start(RESUME_TIMEOUT_SECONDS=60, SHUTDOWN_TIMEOUT_SECONDS=10)
    scene.service.logged("service_started")
    time.sleep(0.5)  # while it looks
    begun = time.monotonic()
    scene.service.stop()
    assert time.monotonic() - begun < 11
    assert not scene.service.events("connection_attempted")
    own_broker.thaw()
