"""Three Apache Kafka with replication 3: any one may go, under 5,000 messages a second, and nothing is lost.

As in `test_faults_kafka.py`: what the exchange's own record says it put on the connection is in Kafka, in order
per stream, and twice only what was counted as possible.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.partitioner.default import murmur2

from sandbox.brokers import Cluster
from tests.broker_fixtures import fresh_topics
from tests.fault_scene import RATE, SYMBOLS, Scene
from tests.service_fixtures import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.exchange import Exchange
    from tests.service_fixtures import StartService

pytestmark = [
    pytest.mark.kafka,
    # kafka-python leaves a socket behind when a broker is away while a client of the test's own closes.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def running_cluster(broker_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if broker_name != "kafka4":
        pytest.skip(f"{broker_name} stands alone; make test-kafka runs this on three Apache Kafka 4")
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """Give the cluster to a test that may break it, and put it in order for the next one."""
    yield running_cluster
    for node in running_cluster.nodes:
        node.thaw()
    running_cluster.start()


@pytest.fixture
def scene(
    exchange_factory: Callable[..., Exchange], cluster: Cluster, start_service: StartService, tmp_path: Path
) -> Scene:
    made = Scene(exchange_factory(rate=RATE, symbols=SYMBOLS), cluster, start_service, tmp_path, replication=3)
    cluster.wait_until_in_sync(*made.topics.names)
    return made


def partition_of(symbol: str) -> int:
    return (murmur2(symbol.encode()) & 0x7FFF_FFFF) % 3


def settled(scene: Scene) -> None:
    """Wait until everything flows again, stop, and look whether everything is there."""
    scene.drained(60)
    scene.flows()
    final = scene.stop()
    scene.all_there(final["possible_duplicates"])


def test_setup_makes_topics_with_three_replicas_of_which_two_must_have_a_record(
    cluster: Cluster, tmp_path: Path
) -> None:
    command = [sys.executable, str(REPOSITORY / "setup_kafka.py")]
    variables = {"KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap_servers, "KAFKA_REPLICATION_FACTOR": "3"}
    for words in ("created (3 partitions, 3 replicas", "as wanted (3 partitions, 3 replicas"):
        done = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count(words) == 4
    with KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers) as admin:
        topic = ConfigResource(ConfigResourceType.TOPIC, "binance-trades")
        found = admin.describe_configs([topic], config_filter="all")["topic"]["binance-trades"]
    assert found["min.insync.replicas"]["value"] == "2"
    assert len({cluster.leader("binance-trades", number).pid for number in range(3)}) == 3


def test_the_leader_of_a_partition_that_is_killed_costs_nothing(scene: Scene, cluster: Cluster) -> None:
    scene.start()
    scene.flows()
    leader = cluster.leader(scene.topics.trades, partition_of("BTCUSDT"))
    leader.kill()
    scene.goes_on_reading_for(3)
    scene.drained()
    before = scene["kafka_produced"]
    scene.service.wait_for(lambda: scene["kafka_produced"] > before + RATE, "the other two go on")
    assert cluster.leader(scene.topics.trades, partition_of("BTCUSDT")) is not leader
    leader.start()
    settled(scene)


def test_a_broker_of_three_that_freezes_costs_nothing(scene: Scene, cluster: Cluster) -> None:
    scene.start()
    scene.flows()
    leader = cluster.leader(scene.topics.trades, partition_of("BTCUSDT"))
    leader.freeze()
    scene.goes_on_reading_for(10)
    leader.thaw()
    settled(scene)


def test_a_rolling_restart_of_all_three_costs_nothing(scene: Scene, cluster: Cluster) -> None:
    scene.start()
    scene.flows()
    received, began = scene["messages_received"], time.monotonic()
    for node in cluster.nodes:
        node.restart()
        cluster.wait_until_in_sync(*scene.topics.names)
    rate = (scene["messages_received"] - received) / (time.monotonic() - began)
    print(f"{rate:.0f} messages a second during the restarts")  # noqa: T201 - shown with -rA
    assert rate > 0.5 * RATE, "the machine was too busy for the load that was meant"
    settled(scene)


def test_what_waits_for_one_partition_is_on_disk_within_seconds_while_the_others_flow(
    scene: Scene, cluster: Cluster
) -> None:
    """One replica each, so a frozen leader has no successor; then the service is killed, too."""
    scene.topics = fresh_topics(cluster.bootstrap_servers)
    scene.start()
    scene.flows()
    leader = cluster.leader(scene.topics.trades, partition_of("BTCUSDT"))
    leader.freeze()
    scene.service.wait_for(lambda: scene["spool_bytes"] > 0, "what waits is on disk", 10)
    before = scene["kafka_produced"]
    scene.goes_on_reading_for(1.5)
    assert scene["kafka_produced"] > before + 1000, "others flow"
    assert not scene["spooling"], "and directly"
    safe = scene.sent()
    scene.goes_on_reading_for(3.5)
    possible = scene.kill()["possible_duplicates"]
    first = scene.sent()
    leader.thaw()
    wait_for_leaders(cluster, scene.topics.names)
    scene.start()
    scene.flows()
    assert scene["messages_recovered"] > 0
    scene.drained()
    final = scene.stop()
    lines = scene.lines()
    lines.lost_at_the_end(first)
    for stream, tally in safe.items():
        if stream.endswith("rade"):
            wanted = set(range(tally["first_id"], tally["last_id"] + 1))
            assert wanted <= set(lines.ids[stream]), f"{stream}: read 3.5 s before the kill"
    findings = lines.compared(scene.sent())
    assert not [fault for fault in findings.faults if " after " in fault]
    assert findings.duplicates <= possible + final["possible_duplicates"]


def wait_for_leaders(cluster: Cluster, names: tuple[str, ...]) -> None:
    deadline = time.monotonic() + 30
    while any(leaderless(cluster, name) for name in names):
        assert time.monotonic() < deadline, "no leader"
        time.sleep(0.2)


def leaderless(cluster: Cluster, topic: str) -> bool:
    with KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers) as admin:
        (found,) = admin.describe_topics([topic])
    return any(partition["leader_id"] < 0 for partition in found["partitions"])
