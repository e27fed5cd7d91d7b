"""setup_kafka.py against real brokers, as the process that a user starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from config.kafka import KafkaConfig
from sandbox.brokers import free_port
from setup_kafka import main
from src.topics import Topic, TopicError, create_topics, differences, fix, missing_topics, wanted_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.brokers import Broker

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[1]
LIMIT = 60.0
DAY_MS = 86_400_000


class Ran(NamedTuple):
    exit_code: int
    out: str
    err: str


class Names(NamedTuple):
    raw: str
    trades: str
    depth: str
    dead_letters: str
    gaps: str
    checkpoints: str

    @property
    def environment(self) -> dict[str, str]:
        """Name the topics to the process."""
        kinds = ("RAW_EVENTS", "TRADES", "DEPTH", "DEAD_LETTERS", "GAPS", "CHECKPOINTS")
        return {f"KAFKA_TOPIC_{kind}": name for kind, name in zip(kinds, self, strict=True)}


@pytest.fixture
def names() -> Names:
    unique = uuid.uuid4().hex[:12]
    return Names(*(f"{kind}-{unique}" for kind in ("raw", "trades", "depth", "dead", "gaps", "checkpoints")))


@pytest.fixture
def admin(broker: Broker) -> Iterator[KafkaAdminClient]:
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers) as client:
        yield client


def environment(bootstrap_servers: str, names: Names, **more: str) -> dict[str, str]:
    ours = ("BINANCE_", "KAFKA_", "CONNECTION_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **inherited,
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        **names.environment,
        **more,
    }


def start(settings: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "setup_kafka.py", *arguments],
        cwd=ROOT / "tests",  # where no .env of the user is
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(settings: dict[str, str], *arguments: str) -> Ran:
    with start(settings, *arguments) as process:
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert "Traceback" not in err
    return Ran(process.returncode, out, err)


def partitions(admin: KafkaAdminClient, topic: str) -> int:
    ((found),) = admin.describe_topics([topic])
    return len(found["partitions"])


def configs(admin: KafkaAdminClient, topic: str, *names: str) -> dict[str, Any]:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    described = admin.describe_configs([resource], config_filter="all")["topic"][topic]
    return {name: described[name]["value"] for name in names}


def test_it_creates_the_topics_and_finds_them_as_wanted_the_next_time(
    broker: Broker, names: Names, admin: KafkaAdminClient
) -> None:
    settings = environment(broker.bootstrap_servers, names)
    first = run(settings)
    assert (first.exit_code, first.err) == (0, "")
    assert f"{names.trades}: created (3 partitions, 1 replica, kept for at least 30 days)" in first.out
    for topic, days in zip(names[:5], (7, 30, 7, 30, 365), strict=True):
        assert partitions(admin, topic) == (1 if topic == names.gaps else 3)
        assert configs(admin, topic, "retention.ms", "cleanup.policy", "compression.type") == {
            "retention.ms": str(days * DAY_MS),
            "cleanup.policy": "delete",
            "compression.type": "producer",
        }
    again = run(settings)
    assert again.exit_code == 0
    assert again.out.count("as wanted") == 6


def test_the_checkpoints_are_one_compacted_log_that_stays_small(
    broker: Broker, names: Names, admin: KafkaAdminClient
) -> None:
    made = run(environment(broker.bootstrap_servers, names))
    assert f"{names.checkpoints}: created (1 partition, 1 replica, the last record of each key kept)" in made.out
    assert partitions(admin, names.checkpoints) == 1
    found = configs(admin, names.checkpoints, "cleanup.policy", "segment.ms", "min.cleanable.dirty.ratio")
    assert found == {"cleanup.policy": "compact", "segment.ms": "600000", "min.cleanable.dirty.ratio": "0.1"}


def test_a_ledger_with_several_partitions_is_told_and_no_setting_is_named_that_would_not_help(
    broker: Broker, names: Names, admin: KafkaAdminClient
) -> None:
    admin.create_topics({names.gaps: {"num_partitions": 3, "replication_factor": 1}})
    ran = run(environment(broker.bootstrap_servers, names), "--fix")
    assert ran.exit_code == 1
    assert f"{names.gaps}: differs: partitions is 3, wanted 1: Kafka cannot lower it; delete the topic" in ran.out
    assert f"{names.gaps}: corrected: retention.ms" in ran.out


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    broker: Broker, names: Names, admin: KafkaAdminClient
) -> None:
    ran = run(environment(broker.bootstrap_servers, names), "--dry-run", "--fix")
    assert ran.exit_code == 0, "as the run that creates them"
    assert ran.out.count("would be created") == 6
    assert "nothing was changed" in ran.out
    assert not set(names) & set(admin.list_topics())


def test_it_tells_what_differs_and_corrects_it_when_asked(
    broker: Broker, names: Names, admin: KafkaAdminClient
) -> None:
    admin.create_topics({names.trades: {"num_partitions": 2, "replication_factor": 1}})
    odd = {"retention.ms": "3600000", "cleanup.policy": "compact"}
    admin.create_topics({names.raw: {"num_partitions": 3, "replication_factor": 1, "configs": odd}})
    settings = environment(broker.bootstrap_servers, names)

    told = run(settings)
    assert told.exit_code == 1
    assert f"{names.trades}: differs: partitions is 2, wanted 3: raising it moves symbols" in told.out
    assert "differs: retention.ms is 604800000 (7 days), wanted 2592000000 (30 days)" in told.out
    assert f"{names.raw}: differs: cleanup.policy is compact, wanted delete" in told.out
    assert "--fix" in told.out
    assert partitions(admin, names.trades) == 2

    rehearsed = run(settings, "--fix", "--dry-run")
    assert rehearsed.exit_code == 0, "as the run that corrects them"
    assert rehearsed.out.count("would be corrected") == 4
    assert run(settings, "--dry-run").exit_code == 1
    assert partitions(admin, names.trades) == 2

    fixed = run(settings, "--fix")
    assert fixed.exit_code == 0, fixed
    assert fixed.out.count(": corrected: ") == 4
    assert partitions(admin, names.trades) == 3
    assert configs(admin, names.raw, "cleanup.policy")["cleanup.policy"] == "delete"
    assert run(settings).exit_code == 0


@pytest.mark.parametrize("kept", ["31536000000", "-1"])
def test_records_that_are_kept_longer_than_wanted_stay(
    kept: str, broker: Broker, names: Names, admin: KafkaAdminClient
) -> None:
    settings = environment(broker.bootstrap_servers, names)
    odd = {"retention.ms": kept, "cleanup.policy": "compact"}
    admin.create_topics({names.trades: {"num_partitions": 3, "replication_factor": 1, "configs": odd}})
    assert run(settings).exit_code == 1, "it is compacted"
    fixed = run(settings, "--fix")
    assert fixed.exit_code == 0, fixed
    assert fixed.out.count(": corrected: ") == 1
    assert configs(admin, names.trades, "retention.ms", "cleanup.policy") == {
        "retention.ms": kept,
        "cleanup.policy": "delete",
    }
    assert run(settings).exit_code == 0


def test_what_cannot_be_corrected_is_told_with_what_to_do(
    broker: Broker, names: Names, admin: KafkaAdminClient
) -> None:
    assert run(environment(broker.bootstrap_servers, names, KAFKA_PARTITIONS="4")).exit_code == 0
    ran = run(environment(broker.bootstrap_servers, names, KAFKA_REPLICATION_FACTOR="2"), "--fix")
    assert ran.exit_code == 1
    assert "partitions is 4, wanted 3: Kafka cannot lower it; set KAFKA_PARTITIONS=4" in ran.out
    assert "replication factor is 1, wanted 2: moving replicas is up to kafka-reassign-partitions.sh" in ran.out
    assert partitions(admin, names.raw) == 4


def test_a_topic_that_the_broker_refuses_is_named_with_the_reason(broker: Broker, names: Names) -> None:
    ran = run(environment(broker.bootstrap_servers, names, KAFKA_REPLICATION_FACTOR="3"))
    assert ran.exit_code == 1
    assert f"setup_kafka: {names.depth}: " in ran.err
    assert ran.err.count("InvalidReplicationFactorError") == 6


def test_several_at_once_do_no_harm(broker: Broker, names: Names, admin: KafkaAdminClient) -> None:
    settings = environment(broker.bootstrap_servers, names)
    together = [start(settings, "--fix") for _ in range(3)]
    ran = [process.communicate(timeout=LIMIT) for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], ran
    assert sum(out.count(": created (") for out, _ in ran) == 6
    assert [partitions(admin, name) for name in names] == [3, 3, 3, 3, 1, 1]


def test_it_waits_for_a_broker_that_comes_later(own_broker_factory: Callable[[], Broker], names: Names) -> None:
    late = own_broker_factory()
    with start(environment(late.bootstrap_servers, names), "--wait", "50") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"waiting up to 50 s for Kafka at {late.bootstrap_servers}\n"
            late.start()
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert out.count(": created (") == 6


def test_no_broker_is_one_clear_line(names: Names) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    ran = run(environment(nowhere, names), "--wait", "1")
    assert (ran.exit_code, ran.out) == (1, "")
    (line,) = ran.err.splitlines()
    assert line.startswith(f"setup_kafka: no connection to Kafka at {nowhere}: ")
    assert re.search("(refused|timed out); check KAFKA_BOOTSTRAP_SERVERS", line)  # out of time on a busy machine


def test_a_wrong_configuration_is_one_line_a_fault(names: Names) -> None:
    ran = run(environment("nonsense", names, KAFKA_PARTITIONS="none"))
    assert ran.exit_code == 2
    assert [line.partition("=")[0] for line in ran.err.splitlines()] == [
        "KAFKA_BOOTSTRAP_SERVERS",
        "KAFKA_PARTITIONS",
    ]
    assert ran.out == ""


@pytest.mark.parametrize("wait", ["soon", "-1", "inf"])
def test_a_wrong_command_line_is_refused(wait: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"--wait={wait}"])
    assert ended.value.code == 2


def test_topics_of_one_name_become_one_that_is_kept_longest() -> None:
    one, two, three, *_ = wanted_topics(
        KafkaConfig(topic_raw_events="all", topic_trades="all", topic_depth="depth")
    )
    assert (one.name, one.configs["retention.ms"]) == ("all", str(30 * DAY_MS))
    assert two.name == "depth"
    assert (three.name, three.configs["retention.ms"]) == ("binance-dead-letters", str(30 * DAY_MS))


@pytest.mark.parametrize(("replicas", "in_sync"), [(1, None), (2, None), (3, "2"), (5, "2")])
def test_with_three_replicas_a_record_must_be_on_two(replicas: int, in_sync: str | None) -> None:
    topics = wanted_topics(KafkaConfig(replication_factor=replicas))
    assert len(topics) == 6
    assert {topic.configs.get("min.insync.replicas") for topic in topics} == {in_sync}


class Describing:
    """An admin client of a cluster whose topics all have these replicas and configs; remembers what was set."""

    def __init__(self, replicas: int, **different: str) -> None:
        self._replicas, self._different = replicas, different
        self.altered: list[dict[str, str]] = []
        self.untold: set[str] = set()

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        partition = {"replica_nodes": list(range(self._replicas))}
        return [{"name": name, "error_code": 0, "partitions": [partition] * 3} for name in names]

    def describe_configs(self, resources: list[ConfigResource], config_filter: str) -> Any:
        assert config_filter == "all"
        told = {**trades().configs, **self._different}
        configs = {name: {"value": value} for name, value in told.items() if name not in self.untold}
        return {"topic": {resources[0].name: configs}}

    def alter_configs(self, resources: list[ConfigResource]) -> Any:
        self.altered += [resource.configs for resource in resources]
        return {"topic": {resource.name: "OK" for resource in resources}}


def trades(replicas: int = 3) -> Topic:
    return next(
        topic
        for topic in wanted_topics(KafkaConfig(replication_factor=replicas))
        if topic.name == "binance-trades"
    )


def test_a_topic_of_three_whose_records_may_be_on_one_alone_is_told_and_corrected() -> None:
    admin = Describing(3, **{"min.insync.replicas": "1"})
    (found,) = differences(admin, [trades()])
    assert str(found) == (
        "min.insync.replicas is 1, wanted 2: a record may be on one broker alone when it is acknowledged"
    )
    fix(admin, found)
    assert admin.altered == [{"min.insync.replicas": "2"}]


def test_a_topic_whose_records_must_be_on_more_is_as_wanted() -> None:
    assert differences(Describing(3, **{"min.insync.replicas": "3"}), [trades()]) == []


def test_a_broker_that_does_not_tell_of_a_config_is_taken_as_it_is() -> None:
    silent = Describing(3)
    silent.untold = {"min.insync.replicas"}
    assert differences(silent, [trades()]) == []


def test_a_topic_with_too_few_replicas_is_not_made_to_stop_with_one_broker() -> None:
    (found,) = differences(Describing(2, **{"min.insync.replicas": "1"}), [trades()])
    assert (found.what, found.fixable) == ("replication factor", False)


def test_the_service_can_create_what_is_missing(names: Names, admin: KafkaAdminClient) -> None:
    config = KafkaConfig(
        topic_raw_events=names.raw,
        topic_trades=names.trades,
        topic_depth=names.depth,
        topic_dead_letters=names.dead_letters,
        topic_gaps=names.gaps,
        topic_checkpoints=names.checkpoints,
    )
    wanted = wanted_topics(config)
    assert create_topics(admin, missing_topics(admin, wanted)) == list(wanted)
    assert missing_topics(admin, wanted) == []
    assert create_topics(admin, wanted) == []


def test_a_controller_that_is_none_any_more_is_an_error_that_names_the_topic(
    names: Names,
    admin: KafkaAdminClient,
    no_controller: pytest.MonkeyPatch,  # noqa: ARG001
) -> None:
    config = KafkaConfig(topic_raw_events=names.raw, topic_trades=names.raw, topic_depth=names.raw)
    wanted, *_ = wanted_topics(config)
    with pytest.raises(TopicError, match=f"{names.raw}: Failed to find active controller"):
        create_topics(admin, [wanted])


def test_a_refused_topic_is_an_error_that_names_it(names: Names, admin: KafkaAdminClient) -> None:
    config = KafkaConfig(topic_raw_events=names.raw, topic_trades=names.raw, topic_depth=names.raw)
    wanted, *_ = wanted_topics(config.model_copy(update={"replication_factor": 9}))
    with pytest.raises(TopicError, match=f"{names.raw}: .*InvalidReplicationFactorError"):
        create_topics(admin, [wanted])
