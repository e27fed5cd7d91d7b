"""Kafka fails in every way that is known, under 5,000 messages a second, and nothing is lost or overtaken.

The real process, the simulated exchange, a real broker. After each fault: what the exchange's own record says it
put on the connection is in Kafka, in order per stream; twice only what was counted as possible; the equation is
exact. The longer ones: `python -m pytest tests/test_faults_kafka.py -m slow`, on Apache Kafka with
`--brokers kafka4`.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from kafka.admin import KafkaAdminClient, ScramMechanism, UserScramCredentialUpsertion

from sandbox.brokers import EmbeddedBroker, Kafka3, Kafka4, Listener
from sandbox.proxy import Proxy
from tests.broker_fixtures import Topics, create_topics
from tests.certificates import Authority
from tests.fault_scene import RATE, SYMBOLS, Scene
from tests.service_fixtures import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.brokers import Broker
    from sandbox.exchange import Exchange
    from tests.service_fixtures import StartService

pytestmark = pytest.mark.kafka


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
    scene.service.wait_for(lambda: len(scene.service.events("topics_created")) >= 1, "topic made again")
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


# Logins and certificates


@pytest.mark.parametrize("fault", ["password", slow("certificate")])
def test_what_the_broker_refuses_for_a_while_costs_nothing(
    fault: str,
    broker_name: str,
    exchange_factory: Callable[..., Exchange],
    start_service: StartService,
    tmp_path: Path,
) -> None:
    if broker_name not in APACHE:
        pytest.skip(f"{broker_name} has no logins and no TLS; make test-kafka runs this on Apache Kafka")
    gate = (PasswordGate if fault == "password" else CertificateGate)(broker_name, tmp_path)
    with gate.broker, Proxy(gate.listener.port) as proxy:
        scene = Scene(exchange_factory(rate=RATE, symbols=SYMBOLS), gate.broker, start_service, tmp_path)
        gate.mend()
        scene.start(KAFKA_BOOTSTRAP_SERVERS=proxy.bootstrap_servers, **gate.variables)
        scene.flows()
        gate.break_()
        # A broker may take some time to learn of it, and lets us in once more until then.
        scene.service.wait_for(lambda: proxy.reset() or scene["messages_spooled"] > 0, "we are refused")
        scene.goes_on_reading_for(4)
        assert scene["messages_spooled"] > RATE
        gate.mend()
        scene.drained(60)
        scene.flows()
        final = scene.stop()
        scene.all_there(final["possible_duplicates"])


APACHE: dict[str, type[Kafka3 | Kafka4]] = {"kafka3": Kafka3, "kafka4": Kafka4}


class PasswordGate:
    """A listener with SCRAM; the broker's password of the service can be another one."""

    variables: ClassVar = {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
        "KAFKA_SASL_PLAIN_USERNAME": "service",
        "KAFKA_SASL_PLAIN_PASSWORD": "right",
    }

    def __init__(self, broker_name: str, folder: Path) -> None:
        self.listener = Listener("SASL_PLAINTEXT")
        self.broker = APACHE[broker_name](folder / "broker", None, (self.listener,))

    def break_(self) -> None:
        self._set("wrong")

    def mend(self) -> None:
        self._set("right")

    def _set(self, password: str) -> None:
        with KafkaAdminClient(bootstrap_servers=self.broker.bootstrap_servers) as admin:
            known = UserScramCredentialUpsertion("service", ScramMechanism.SCRAM_SHA_256, password)
            admin.alter_user_scram_credentials([known])


class CertificateGate:
    """A listener with TLS; the broker's certificate can be one that the service does not trust."""

    def __init__(self, broker_name: str, folder: Path) -> None:
        ours, stranger = Authority(folder / "ours"), Authority(folder / "stranger")
        self.variables = {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": ours.file}
        self.listener = Listener("SSL", ours.keystore("127.0.0.1"))
        self._strange = dataclasses.replace(self.listener, certificate=stranger.keystore("127.0.0.1"))
        self.broker = APACHE[broker_name](folder / "broker", None, (self.listener,))

    def break_(self) -> None:
        self._restart(self._strange)

    def mend(self) -> None:
        if self.broker.listeners != (self.listener,):
            self._restart(self.listener)

    def _restart(self, listener: Listener) -> None:
        self.broker.stop()
        self.broker.listeners = (listener,)
        self.broker.start()


# The service


def freeze(scene: Scene, proxy: Proxy) -> Callable[[], None]:  # noqa: ARG001
    scene.broker.freeze()
    return scene.broker.thaw


def refuse(scene: Scene, proxy: Proxy) -> Callable[[], None]:  # noqa: ARG001
    proxy.refuse()
    return proxy.flow


def kill_broker(scene: Scene, proxy: Proxy) -> Callable[[], None]:
    if isinstance(scene.broker, EmbeddedBroker):
        proxy.refuse()  # or it would lose what it acknowledged in the last two seconds
        scene.broker.wait_until_durable()
    scene.broker.kill()

    def mend() -> None:
        scene.broker.start()
        proxy.flow()

    return mend


@pytest.mark.parametrize("fault", [freeze, slow(refuse), slow(kill_broker)])
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


@pytest.mark.parametrize("fault", [freeze, slow(refuse), slow(kill_broker)])
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
    assert findings.duplicates <= status["possible_duplicates"] + second["possible_duplicates"]
    assert second["possible_duplicates"] < second["messages_recovered"], "most of it was only on disk"
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
    scene.service.wait_for(lambda: scene["messages_dropped"] > 5000, "events lost")
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MB."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system may not be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("limit", ["file system", slow("file size")])
def test_a_disk_that_takes_no_more_costs_what_is_counted_and_is_used_again_when_it_can_be(
    limit: str, scene: Scene, small_disk: Path
) -> None:
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, -1));"
        f"sys.argv = ['main.py']; runpy.run_path('{REPOSITORY}/main.py', run_name='__main__')"
    )
    if limit == "file size":
        scene.start(command=("-c", limited))
    else:
        scene.start(SPOOL_PATH=small_disk / "spool")
    scene.flows()
    scene.broker.freeze()
    scene.service.wait_for(lambda: scene["messages_dropped"] > 5000, "events lost")
    assert scene.service.get("/ready")[0] == 503
    scene.broker.thaw()
    scene.drained()
    before = scene["kafka_produced"]
    scene.service.wait_for(lambda: scene["kafka_produced"] > before + 1000, "it flows")
    started = time.monotonic()
    final = scene.stop(expected=1)
    assert time.monotonic() - started < 15, "waited for a disk that keeps what Kafka has already"
    assert set(final["messages_dropped_by_reason"]) == {"spool_failed"}
    findings = scene.lines().compared(scene.sent())
    assert findings.sent - findings.delivered == final["messages_dropped"]
    assert findings.duplicates <= final["possible_duplicates"]
    assert not [fault for fault in findings.faults if " after " in fault]
