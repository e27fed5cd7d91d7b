"""The compose files: valid, in agreement with the code, and proven by programs that run with their settings.

The tests that start the stack need root, an image, Java, Maven and Go: `make test-stack` runs them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from config.settings import ServiceConfig, known_variables
from sandbox.brokers.child import Child
from sandbox.image.container import Container
from sandbox.image.reference import merged_compose
from sandbox.image.stack import Stack, environment_of, kafka_properties, lines_of
from src.catalogue import PREFIX
from tests.exchange_fixtures import eventually
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Iterator

    Services = dict[str, dict[str, Any]]

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "docker-compose.yml"
HA = ROOT / "docker-compose.ha.yml"
SHARDS = ROOT / "docker-compose.shards.yml"
DEPLOY = ROOT / "deploy"
OWN = ("topics", "ingestion")
BROKERS = ("kafka", "kafka-2", "kafka-3")
PRODUCED = "kafka_produced"

IMAGE = os.environ.get("CONTAINER_IMAGE", "")
WANTED = os.environ.get("STACK_TESTS") == "1"
stack = pytest.mark.skipif(
    not (IMAGE and WANTED), reason="starts Apache Kafka; needs root, an image, Java, Maven and Go: make test-stack"
)


class ComposeLoader(yaml.SafeLoader):
    """Reads the two tags of the Compose specification: `!override` is its value, `!reset` is nothing."""


ComposeLoader.add_constructor("!reset", lambda _loader, _node: None)
ComposeLoader.add_constructor(
    "!override",
    lambda loader, node: (
        loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.MappingNode)
        else loader.construct_sequence(node, deep=True)
    ),
)


def read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), ComposeLoader)  # noqa: S506 - a SafeLoader


@pytest.fixture(scope="module")
def services() -> Services:
    return read(BASE)["services"]


@pytest.fixture(scope="module")
def overlay() -> Services:
    return read(HA)["services"]


def published(service: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return address, port outside and port inside of every published port."""
    parts = [port.split(":") for port in service.get("ports", [])]
    return [(address, int(outside), int(inside)) for address, outside, inside in parts]


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def listeners(text: str) -> dict[str, str]:
    """Map the names in `NAME://host:port,…` to `host:port`."""
    return dict(one.split("://") for one in text.split(","))


@pytest.mark.parametrize("path", [BASE, HA, SHARDS], ids=lambda path: path.name)
def test_it_follows_the_schema_of_the_compose_specification(path: Path) -> None:
    schema = json.loads((DEPLOY / "compose-spec" / "compose-spec.json").read_text())
    model = read(path)
    dropped = [name for name, service in model["services"].items() if service is None]
    for name in dropped:  # what the overlay takes away is no service to the schema
        del model["services"][name]
    for service in model["services"].values():
        service.update({key: {} for key in ("depends_on",) if service.get(key, {}) is None})
    jsonschema.Draft202012Validator(schema).validate(model)


def test_the_stack_is_the_one_of_the_specification(services: Services) -> None:
    assert set(services) == {"zookeeper", "kafka", "kafka-ui", "topics", "ingestion", "prometheus", "grafana"}
    optional = {name for name, service in services.items() if service.get("profiles") == ["monitoring"]}
    assert optional == {"prometheus", "grafana"}


def test_every_image_is_pinned_to_a_version(services: Services) -> None:
    for name, service in services.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name


def test_every_variable_of_our_own_services_is_a_setting(services: Services, overlay: Services) -> None:
    for name in OWN:
        variables = set(services[name]["environment"]) | set(overlay[name]["environment"])
        assert variables <= set(known_variables()), name


def test_what_the_stack_decides_wins_over_the_users_env_file(services: Services) -> None:
    for name in OWN:
        assert services[name]["env_file"] == [{"path": ".env", "required": False}]
        assert {"KAFKA_BOOTSTRAP_SERVERS", "KAFKA_SECURITY_PROTOCOL", "KAFKA_REPLICATION_FACTOR"} <= set(
            services[name]["environment"]
        )
        files = {name for name in known_variables() if name.startswith("KAFKA_S") and name.endswith("FILE")}
        assert {value for name, value in services[name]["environment"].items() if name in files} == {""}
        assert files <= set(services[name]["environment"])
    assert {"MONITORING_HOST", "MONITORING_PORT", "SHUTDOWN_TIMEOUT_SECONDS", "SPOOL_PATH"} <= set(
        services["ingestion"]["environment"]
    )


def test_the_service_is_reached_where_it_listens(services: Services) -> None:
    environment = services["ingestion"]["environment"]
    assert environment["MONITORING_HOST"] == "0.0.0.0"
    assert published(services["ingestion"]) == [("127.0.0.1", 8000, environment["MONITORING_PORT"])]


def test_kafka_is_localhost_9092_for_the_host_and_has_its_own_listener_for_the_network(services: Services) -> None:
    environment = services["kafka"]["environment"]
    advertised = listeners(environment["KAFKA_ADVERTISED_LISTENERS"])
    assert advertised["HOST"] == "localhost:9092"
    assert published(services["kafka"]) == [("127.0.0.1", 9092, 9092)]
    for name in OWN:
        assert services[name]["environment"]["KAFKA_BOOTSTRAP_SERVERS"] == advertised["NETWORK"]
    assert services["kafka-ui"]["environment"]["KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS"] == advertised["NETWORK"]
    bound = listeners(environment["KAFKA_LISTENERS"])
    assert {name: at.split(":")[1] for name, at in bound.items()} == {
        name: at.split(":")[1] for name, at in advertised.items()
    }
    assert environment["KAFKA_ZOOKEEPER_CONNECT"] == (
        f"zookeeper:{services['zookeeper']['environment']['ZOOKEEPER_CLIENT_PORT']}"
    )


def test_kafka_ui_is_on_8080_and_nothing_is_published_beyond_this_machine(services: Services) -> None:
    assert published(services["kafka-ui"]) == [("127.0.0.1", 8080, 8080)]
    ports = [port for service in services.values() for port in published(service)]
    assert {address for address, _, _ in ports} == {"127.0.0.1"}
    assert len({outside for _, outside, _ in ports}) == len(ports)


def test_the_start_follows_health(services: Services) -> None:
    order = {
        name: {other: needed["condition"] for other, needed in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    assert order["kafka"] == {"zookeeper": "service_healthy"}
    assert order["kafka-ui"] == order["topics"] == {"kafka": "service_healthy"}
    assert order["ingestion"] == {"kafka": "service_healthy", "topics": "service_completed_successfully"}
    assert order["grafana"] == {"prometheus": "service_healthy"}
    waited_for = {name for needed in order.values() for name in needed} - {"topics"}
    assert all("healthcheck" in services[name] for name in waited_for)


def test_every_service_that_stays_has_a_health_check(services: Services) -> None:
    without = {name for name, service in services.items() if "healthcheck" not in service}
    assert without == set(OWN)  # the ingestion service's own is in its image, the topics end by themselves
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_topics_are_set_up_once(services: Services) -> None:
    command = services["topics"]["command"]
    assert (ROOT / command[1]).is_file()
    assert services["topics"]["restart"] == "no"
    others = {service["restart"] for name, service in services.items() if name != "topics"}
    assert others == {"unless-stopped"}


def test_a_stop_leaves_the_service_the_time_that_it_takes(services: Services) -> None:
    limit = services["ingestion"]["environment"]["SHUTDOWN_TIMEOUT_SECONDS"]
    assert limit == ServiceConfig.model_fields["shutdown_timeout_seconds"].default
    assert seconds(services["ingestion"]["stop_grace_period"]) >= limit + 10


def test_every_service_has_limits_and_the_same_network(services: Services) -> None:
    for name, service in services.items():
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service["networks"] == ["ingestion"], name
        assert service["logging"]["options"]["max-size"], name
    assert read(BASE)["networks"] == {"ingestion": {"name": "binance-ingestion", "driver": "bridge"}}


def test_our_own_containers_can_write_nothing_but_their_data(services: Services) -> None:
    for name in OWN:
        service = services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert services["ingestion"]["volumes"] == ["ingestion-data:/app/data"]
    assert 'VOLUME ["/app/data"]' in (ROOT / "Dockerfile").read_text()


def test_the_spool_is_in_a_volume_that_outlives_the_container(services: Services) -> None:
    [(_, folder)] = [volume.split(":") for volume in services["ingestion"]["volumes"]]
    assert Path(services["ingestion"]["environment"]["SPOOL_PATH"]).is_relative_to(folder)


def test_every_volume_is_declared_and_every_mounted_file_exists(services: Services) -> None:
    sources = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    named = {source for source in sources if not source.startswith("./")}
    assert named == set(read(BASE)["volumes"])
    assert [source for source in sources if source.startswith("./") and not (ROOT / source).exists()] == []


def test_prometheus_scrapes_the_service_and_reads_the_rules_that_are_mounted(services: Services) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    port = services["ingestion"]["environment"]["MONITORING_PORT"]
    assert targets["binance-ingestion"] == [f"ingestion:{port}"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in services["prometheus"]["volumes"])
    [rules] = config["rule_files"]
    folder = ROOT / mounts[str(Path(rules).parent)]
    assert list(folder.glob(Path(rules).name))


def test_grafana_finds_its_data_source_and_dashboards(services: Services) -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "files.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in services["grafana"]["volumes"])
    dashboards = list((ROOT / mounts[provider["options"]["path"]]).glob("*.json"))
    assert dashboards
    for path in dashboards:
        used = set(re.findall(r'"uid": "(\w+)"', json.dumps(json.loads(path.read_text())["panels"])))
        assert used == {source["uid"]}


def test_the_overlay_has_three_brokers_without_zookeeper(services: Services, overlay: Services) -> None:
    assert overlay["zookeeper"] is None
    brokers = {name: overlay[name]["environment"] for name in BROKERS}
    voters = {f"{one['KAFKA_NODE_ID']}@{name}:29093" for name, one in brokers.items()}
    assert len({one["CLUSTER_ID"] for one in brokers.values()}) == 1
    for name, environment in brokers.items():
        assert set(environment["KAFKA_CONTROLLER_QUORUM_VOTERS"].split(",")) == voters
        assert "KAFKA_ZOOKEEPER_CONNECT" not in environment
        assert environment["KAFKA_PROCESS_ROLES"] == "broker,controller"
        assert environment["KAFKA_DEFAULT_REPLICATION_FACTOR"] == 3
        assert environment["KAFKA_MIN_INSYNC_REPLICAS"] == 2
        assert listeners(environment["KAFKA_ADVERTISED_LISTENERS"])["NETWORK"] == f"{name}:29092"
        port = int(listeners(environment["KAFKA_ADVERTISED_LISTENERS"])["HOST"].split(":")[1])
        assert published({"ports": services["kafka"]["ports"]} | overlay[name]) == [("127.0.0.1", port, port)]


def test_the_overlays_service_uses_every_broker_and_three_replicas(overlay: Services) -> None:
    for name in OWN:
        environment = overlay[name]["environment"]
        assert environment["KAFKA_BOOTSTRAP_SERVERS"] == ",".join(f"{broker}:29092" for broker in BROKERS)
        assert environment["KAFKA_REPLICATION_FACTOR"] == 3
        assert set(overlay[name]["depends_on"]) == set(BROKERS)


def test_kafkas_environment_becomes_its_properties() -> None:
    made = kafka_properties({"KAFKA_LOG_DIRS": "x", "KAFKA_MIN_INSYNC_REPLICAS": "2", "PATH": "y"}, Path("/k"))
    assert made == {"log.dirs": "/k/data", "min.insync.replicas": "2"}


def test_the_shards_overlay_divides_the_streams_between_all_its_instances() -> None:
    instances = {name: one for name, one in read(SHARDS)["services"].items() if name.startswith("ingestion")}
    shards = [one["environment"] for one in instances.values()]
    assert sorted(shard["SHARD_INDEX"] for shard in shards) == list(range(len(instances)))
    assert {shard["SHARD_COUNT"] for shard in shards} == {len(instances)}
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.shards.yml").read_text())
    single = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    [own] = [job for job in config["scrape_configs"] if job["job_name"] == "binance-ingestion"]
    assert own["static_configs"] == [{"targets": [f"{name}:8000" for name in instances]}]
    assert config | {"scrape_configs": None} == single | {"scrape_configs": None}


@stack
def test_composes_own_code_makes_each_shard_an_instance_of_its_own() -> None:
    services = merged_compose(BASE, SHARDS)["services"]
    first, second = services["ingestion"], services["ingestion-1"]
    different = {"environment", "ports"}
    assert {key: value for key, value in first.items() if key not in different} == {
        key: value for key, value in second.items() if key not in different
    }
    assert environment_of(second) == environment_of(first) | {"SHARD_INDEX": "1"}
    assert [port["published"] for port in (*first["ports"], *second["ports"])] == ["8000", "8001"]
    [mounted] = [each for each in services["prometheus"]["volumes"] if each["target"].endswith("prometheus.yml")]
    assert mounted["source"].endswith("prometheus.shards.yml")


@stack
def test_composes_own_code_reads_both_files() -> None:
    base, ha = merged_compose(BASE), merged_compose(BASE, HA)
    assert set(base["services"]) == set(read(BASE)["services"])
    assert set(ha["services"]) == set(base["services"]) - {"zookeeper"} | {"kafka-2", "kafka-3"}
    assert "zookeeper" not in json.dumps(ha)
    images = {ha["services"][name]["image"] for name in BROKERS}
    assert images == {base["services"]["kafka"]["image"]}
    environment = environment_of(ha["services"]["ingestion"])
    assert environment["KAFKA_REPLICATION_FACTOR"] == "3"
    assert environment["MONITORING_HOST"] == "0.0.0.0"


@stack
def test_the_stack_stands_over_a_users_env_file_and_the_rest_of_it_is_obeyed(tmp_path: Path) -> None:
    shutil.copy(BASE, tmp_path)
    example = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text(
        f"{example}\nBINANCE_SYMBOLS=DOGEUSDT\nMONITORING_PORT=9999\nSPOOL_PATH=/srv/spool\n"
        "KAFKA_REPLICATION_FACTOR=3\nKAFKA_SASL_PASSWORD_FILE=/etc/kafka/password\n"
    )
    environment = environment_of(merged_compose(tmp_path / BASE.name)["services"]["ingestion"])
    assert environment["KAFKA_BOOTSTRAP_SERVERS"] == "kafka:29092"
    assert environment["MONITORING_PORT"] == "8000"
    assert environment["MONITORING_HOST"] == "0.0.0.0"
    assert environment["SPOOL_PATH"] == "/app/data/spool"
    assert environment["KAFKA_REPLICATION_FACTOR"] == "1"
    assert environment["KAFKA_SASL_PASSWORD_FILE"] == ""
    assert environment["BINANCE_SYMBOLS"] == "DOGEUSDT"


@stack
def test_promtool_accepts_configuration_and_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is in Debian's package prometheus")
    rules = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
    for command in (["check", "rules", *rules], ["check", "config", DEPLOY / "prometheus" / "prometheus.yml"]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    with Stack(merged_compose(*request.param), IMAGE, tmp_path) as up:
        yield up


def status(up: Stack) -> dict[str, Any]:
    """Ask the service through its published port."""
    return json.loads(up.outside("curl", "-sS", "http://localhost:8000/status").stdout or "{}")


def consumed(up: Stack, bootstrap_servers: str) -> list[dict[str, Any]]:
    """Read events from the outer host."""
    asked = ["--from-beginning", "--max-messages", "300", "--seconds", "30", "--json"]
    done = up.outside(sys.executable, "consumer_example.py", *asked, KAFKA_BOOTSTRAP_SERVERS=bootstrap_servers)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def scraped(up: Stack) -> float:
    """Ask Prometheus, through its published port, how many events it saw acknowledged; 0 when it saw none."""
    query = f"http://localhost:9090/api/v1/query?query={PREFIX}{PRODUCED}_total"
    found = json.loads(up.outside("curl", "-sS", query).stdout or "{}").get("data", {}).get("result", [])
    return sum(float(series["value"][1]) for series in found if series["metric"]["job"] == "binance-ingestion")


def stopped(up: Stack) -> dict[str, Any]:
    """Stop the service as `docker compose stop` does; return its final metrics."""
    ingestion = up.running["ingestion"]
    assert isinstance(ingestion, Container)
    assert ingestion.stop(ServiceConfig().shutdown_timeout_seconds) == 0
    metrics = lines_of(ingestion)[-2]
    assert metrics["final"] is True
    assert balanced(metrics)
    return metrics


@stack
@pytest.mark.parametrize("running", [(BASE,)], indirect=True, ids=["zookeeper"])
def test_the_stack_comes_up_in_order_and_delivers(running: Stack) -> None:
    eventually(lambda: running.healthy("ingestion"), within=30)
    eventually(lambda: status(running).get(PRODUCED, 0) > 1000, within=60)
    assert status(running)["ready"] is True
    assert len(consumed(running, "localhost:9092")) == 300
    if "prometheus" in running.running:
        eventually(lambda: scraped(running) > 1000, within=60)
        rules = running.outside("curl", "-sS", "http://localhost:9090/api/v1/rules").stdout
        assert "binance-ingestion" in [group["name"] for group in json.loads(rules)["data"]["groups"]]
    metrics = stopped(running)
    assert metrics["messages_received"] == metrics[PRODUCED]


@stack
@pytest.mark.parametrize("running", [(BASE, HA)], indirect=True, ids=["kraft"])
def test_the_ha_stack_loses_nothing_when_a_broker_dies(running: Stack) -> None:
    eventually(lambda: running.healthy("ingestion"), within=30)
    eventually(lambda: status(running).get(PRODUCED, 0) > 1000, within=60)
    broker = running.running["kafka-3"]
    assert isinstance(broker, Child)
    broker.kill()
    before = status(running)[PRODUCED]
    eventually(lambda: status(running)[PRODUCED] > before + 2000, within=90)
    assert len(consumed(running, "localhost:9092,localhost:9093")) == 300
    metrics = stopped(running)
    assert metrics["messages_received"] == metrics[PRODUCED]
