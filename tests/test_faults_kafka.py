"""Kafka fails in every way that is known, under 5,000 messages a second, and nothing is lost or overtaken.

The real process, the simulated exchange, a real broker. After each fault: what the exchange's own record says it
put on the connection is in Kafka, in order per stream; twice only what was counted as possible; the equation is
exact. The longer ones: `python -m pytest tests/test_faults_kafka.py -m slow`, on Apache Kafka with
`--brokers kafka4`.
"""

from __future__ import annotations

import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from kafka.admin import KafkaAdminClient

from sandbox.brokers import EmbeddedBroker
from sandbox.completeness import STREAM_TYPES, Findings, Lines
from sandbox.proxy import Proxy
from tests.broker_fixtures import Topics, create_topics, fresh_topics, read_all
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.brokers import Broker
    from sandbox.exchange import Exchange
    from tests.service_fixtures import ServiceProcess, StartService

pytestmark = pytest.mark.kafka

RATE = 5000
SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT")
MEMORY_MB = 500


class Scene:
    """One broker, one exchange, one spool, and the runs of the service on them."""

    def __init__(self, exchange: Exchange, broker: Broker, start: StartService, folder: Path) -> None:
        self.exchange = exchange
        self.broker = broker
        self.topics = fresh_topics(broker.bootstrap_servers)
        self.spool = folder / "scene-spool"
        self.service: ServiceProcess
        self.memory_mb = 0.0
        self._start = start

    def start(self, **variables: Any) -> ServiceProcess:
        """Start the service on the same spool as every run of this scene."""
        settings = {
            "BINANCE_SYMBOLS": ",".join(SYMBOLS),
            "BINANCE_STREAM_TYPES": STREAM_TYPES,
            "CONNECTION_RECONNECT_INTERVAL": 0.2,
            "SPOOL_PATH": self.spool,
        }
        self.service = self._start(self.exchange.ws_url, self.topics, **(settings | variables))
        return self.service

    def flows(self) -> None:
        """Wait until the service is ready and events arrive in Kafka."""
        self.service.ready()
        before = self["kafka_produced"]
        self.service.wait_for(lambda: self["kafka_produced"] > before + 1000, "it flows")

    def __getitem__(self, name: str) -> Any:
        return self.service.status()[name]

    def goes_on_reading_for(self, seconds: float) -> None:
        """Check for so long that reading keeps up, memory stays bounded and the equation holds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            before = self["messages_received"]
            self.service.wait_for(lambda before=before: self["messages_received"] > before, "reading goes on", 3)
            assert balanced(self.service.status())
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))

    def drained(self, within: float = 30.0) -> None:
        """Wait until nothing is on disk any more."""
        self.service.wait_for(lambda: not self["messages_spooled"], "drained", within)

    def stop(self, expected: int = 0, number: int = signal.SIGTERM) -> dict[str, Any]:
        """Stop the service; return its last metrics, exact."""
        self.memory_mb = max(self.memory_mb, peak_memory_mb(self.service.pid))
        code = self.service.stop(number)
        final = self.service.final
        assert code == expected, final
        assert balanced(final)
        assert final["messages_in_flight"] == final["messages_buffered"] == 0
        assert self.memory_mb < MEMORY_MB
        return final

    def kill(self) -> dict[str, Any]:
        """End the service by SIGKILL; return its metrics of a moment before."""
        status = self.service.status()
        self.memory_mb = max(self.memory_mb, peak_memory_mb(self.service.pid))
        self.service.send(signal.SIGKILL)
        self.service.wait()
        return status

    def lines(self) -> Lines:
        return Lines(
            one.value or b"" for one in read_all(self.topics.bootstrap_servers, *self.topics.names, timeout=60)
        )

    def sent(self, connection: int | None = None) -> dict[str, Any]:
        return self.exchange.command("sent", connection)["streams"]

    def all_there(self, possible_duplicates: int) -> Findings:
        """Check that everything sent is in Kafka as promised."""
        findings = self.lines().compared(self.sent())
        assert findings.faults == []
        assert findings.duplicates <= possible_duplicates
        said = f"{findings}, duplicates possible {possible_duplicates}, memory peak {self.memory_mb:.0f} MB"
        print(said)  # noqa: T201 - shown with -rA
        return findings


def peak_memory_mb(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


@pytest.fixture
def scene(
    exchange_factory: Callable[..., Exchange], own_broker: Broker, start_service: StartService, tmp_path: Path
) -> Scene:
    return Scene(exchange_factory(rate=RATE, symbols=SYMBOLS), own_broker, start_service, tmp_path)


@pytest.fixture
def proxy(scene: Scene) -> Iterator[Proxy]:
    """Put a proxy between the service and the broker."""
    with Proxy(scene.broker.port) as between:
        yield between


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


# The broker


@pytest.mark.parametrize("seconds", [3, slow(10), slow(60), slow(150)])
def test_a_frozen_broker_costs_nothing(seconds: float, scene: Scene) -> None:
    scene.start()
    scene.flows()
    scene.broker.freeze()
    scene.goes_on_reading_for(seconds)
    assert scene["messages_spooled"] > (seconds - 2.5) * RATE * 0.5
    scene.broker.thaw()
    scene.drained(60 + seconds)
    scene.service.ready()
    final = scene.stop()
    scene.all_there(final["possible_duplicates"])


@pytest.mark.parametrize("seconds", [2, slow(30)])
def test_a_broker_that_is_killed_and_comes_back_with_its_data_costs_nothing(
    seconds: float, scene: Scene, proxy: Proxy
) -> None:
    scene.start(KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap_servers)
    scene.flows()
    if isinstance(scene.broker, EmbeddedBroker):
        proxy.refuse()  # or it would lose what it acknowledged in the last two seconds
        scene.broker.wait_until_durable()
    scene.broker.kill()
    scene.goes_on_reading_for(seconds)
    scene.broker.start()
    proxy.flow()
    scene.drained()
    final = scene.stop()
    scene.all_there(final["possible_duplicates"])


def test_a_broker_that_comes_back_without_its_data_gets_everything_it_had_not_acknowledged(
    scene: Scene,
) -> None:
    scene.start()
    scene.flows()
    scene.broker.kill()
    before = scene["kafka_produced"]
    scene.goes_on_reading_for(1.5)
    produced = scene["kafka_produced"]
    assert produced - before < 1000
    for folder in scene.broker.folder.glob("data"):
        shutil.rmtree(folder)
    scene.broker.start()
    scene.drained()
    scene.flows()
    final = scene.stop()
    lines = scene.lines()
    found = sum(len(set(ids)) for ids in lines.ids.values())
    twice = sum(len(ids) - len(set(ids)) for ids in lines.ids.values())
    assert (
        final["messages_received"]
        == final["kafka_produced"]
        == sum(each["events"] for each in scene.sent().values())
    )
    assert found >= final["messages_received"] - produced
    assert twice <= final["possible_duplicates"]
    assert all(ids == sorted(ids) for ids in (list(dict.fromkeys(ids)) for ids in lines.ids.values()))


def test_a_topic_that_cannot_be_created_is_waited_for(scene: Scene) -> None:
    names = ("absent-raw", "absent-trades", "absent-depth")
    scene.topics = Topics(*names, scene.broker.bootstrap_servers)
    refused = {"KAFKA_REPLICATION_FACTOR": 3}  # there is one broker
    scene.start(**refused)
    scene.service.logged("service_started")
    scene.service.wait_for(lambda: scene["messages_received"] > 2000, "reading goes on")
    if scene["kafka_connected"]:
        pytest.skip("this broker creates the topic all the same")
    create_topics(scene.broker.bootstrap_servers, names, partitions=3)
    scene.drained()
    scene.flows()
    final = scene.stop()
    scene.all_there(final["possible_duplicates"])


def test_a_topic_deleted_under_load_is_made_again_and_gets_what_was_not_acknowledged(scene: Scene) -> None:
    scene.start()
    scene.flows()
    with KafkaAdminClient(bootstrap_servers=scene.broker.bootstrap_servers) as admin:
        admin.delete_topics([scene.topics.trades])
    scene.goes_on_reading_for(3)
    scene.service.wait_for(lambda: len(scene.service.events("topics_created")) >= 1, "topic made again", 30)
    scene.drained()
    scene.flows()
    final = scene.stop()
    assert final["messages_received"] == final["kafka_produced"]
    lines = scene.lines()
    sent = scene.sent()
    kept = {stream: tally for stream, tally in sent.items() if not stream.endswith("rade")}
    lines.ids = {stream: ids for stream, ids in lines.ids.items() if stream in kept or ids == []}  # type: ignore[assignment]
    findings = lines.compared(kept)
    assert findings.faults == []
    assert findings.duplicates <= final["possible_duplicates"]
    trades = scene.lines()
    for stream in sent:
        if stream.endswith("rade"):  # the tail of it: nothing is missing from where it begins again
            ids = list(dict.fromkeys(trades.ids[stream]))
            assert ids == list(range(ids[0], sent[stream]["last_id"] + 1))


# The network


@pytest.mark.parametrize("fault", ["swallow", "reset", slow("hold"), slow("refuse"), slow("delay")])
def test_a_network_that_fails_costs_nothing(fault: str, scene: Scene, proxy: Proxy) -> None:
    scene.start(KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap_servers)
    scene.flows()
    if fault == "reset":
        for _ in range(10):
            proxy.reset()
            scene.goes_on_reading_for(0.3)
    else:
        proxy.delay(0.3) if fault == "delay" else getattr(proxy, fault)()
        scene.goes_on_reading_for(3)
    proxy.flow()
    scene.drained()
    scene.flows()
    final = scene.stop()
    scene.all_there(final["possible_duplicates"])


# The service


def freeze(scene: Scene, proxy: Proxy) -> Callable[[], None]:  # noqa: ARG001
    scene.broker.freeze()
    return scene.broker.thaw


def refuse(scene: Scene, proxy: Proxy) -> Callable[[], None]:  # noqa: ARG001
    proxy.refuse()
    return proxy.flow


@pytest.mark.parametrize("fault", [freeze, slow(refuse)])
def test_a_service_stopped_during_an_outage_leaves_the_rest_to_its_successor(
    fault: Any, scene: Scene, proxy: Proxy
) -> None:
    scene.start(KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap_servers, SHUTDOWN_TIMEOUT_SECONDS=4)
    scene.flows()
    mend = fault(scene, proxy)
    scene.goes_on_reading_for(1.5)
    first = scene.stop(expected=1)
    assert first["messages_spooled"] > 0
    assert first["messages_dropped"] == 0
    mend()
    scene.start(KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap_servers)
    scene.flows()
    assert scene["messages_recovered"] == first["messages_spooled"]
    scene.drained()
    second = scene.stop()
    scene.all_there(first["possible_duplicates"] + second["possible_duplicates"])


@pytest.mark.parametrize("fault", [freeze, slow(refuse)])
def test_a_service_killed_during_an_outage_loses_only_the_end_of_what_it_read(
    fault: Any, scene: Scene, proxy: Proxy
) -> None:
    """What was read a flush before the kill is on disk; on the connections of the successor nothing is missing."""
    scene.start(KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap_servers)
    scene.flows()
    mend = fault(scene, proxy)
    scene.goes_on_reading_for(2.5)
    status = scene.kill()
    first = scene.sent()
    mend()
    scene.start(KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap_servers)
    scene.flows()
    scene.drained()
    second = scene.stop()
    lines = scene.lines()
    lines.lost_at_the_end(first)
    findings = lines.compared(scene.sent())
    of_the_first = findings.delivered - second["messages_received"]
    assert of_the_first >= status["messages_received"] - status["messages_buffered"]
    assert (
        findings.duplicates
        <= status["possible_duplicates"] + second["messages_recovered"] + second["possible_duplicates"]
    )
    assert not [fault for fault in findings.faults if " after " in fault]


def test_a_service_killed_while_kafka_takes_everything_loses_only_the_end_of_what_it_read(scene: Scene) -> None:
    """What is on its way to a healthy Kafka is not on disk: the loss is bounded by what was in memory."""
    scene.start()
    scene.flows()
    status = scene.kill()
    first = scene.sent()
    scene.start()
    scene.flows()
    second = scene.stop()
    lines = scene.lines()
    lines.lost_at_the_end(first)
    delivered = lines.compared(scene.sent()).delivered
    assert delivered - second["messages_received"] >= status["kafka_produced"]


# The disk


def test_beyond_the_spools_limit_trades_go_first_each_loss_is_counted_and_the_rest_is_in_order(
    scene: Scene,
) -> None:
    scene.start(SPOOL_MAX_BYTES=4_000_000)
    scene.flows()
    scene.broker.freeze()
    scene.service.wait_for(lambda: scene["messages_dropped"] > 5000, "events lost", 30)
    assert scene.service.get("/ready")[0] == 503
    scene.broker.thaw()
    scene.drained()
    final = scene.stop(expected=1)
    assert set(final["messages_dropped_by_reason"]) == {"spool_full"}
    assert scene.service.events("events_dropped")[0]["level"] == "error"
    lines = scene.lines()
    findings = lines.compared(scene.sent())
    assert findings.delivered == final["kafka_produced"] - findings.duplicates
    assert findings.sent - findings.delivered == final["messages_dropped"]
    assert not [fault for fault in findings.faults if " after " in fault]
    assert not [fault for fault in findings.faults if "depth" in fault], "depth goes last"


@pytest.mark.slow
def test_a_disk_that_takes_no_more_costs_what_is_counted_and_is_used_again_when_it_can_be(
    scene: Scene,
) -> None:
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, -1));"
        "sys.argv = ['main.py']; runpy.run_path('main.py', run_name='__main__')"
    )
    scene.start(command=("-c", limited))
    scene.flows()
    scene.broker.freeze()
    scene.service.wait_for(lambda: scene["messages_dropped"] > 5000, "events lost", 30)
    assert scene.service.get("/ready")[0] == 503
    scene.broker.thaw()
    scene.drained()
    before = scene["kafka_produced"]
    scene.service.wait_for(lambda: scene["kafka_produced"] > before + 1000, "it flows")
    final = scene.stop(expected=1)
    assert set(final["messages_dropped_by_reason"]) == {"spool_failed"}
    findings = scene.lines().compared(scene.sent())
    assert findings.sent - findings.delivered == final["messages_dropped"]
    assert findings.duplicates <= final["possible_duplicates"]
    assert not [fault for fault in findings.faults if " after " in fault]
