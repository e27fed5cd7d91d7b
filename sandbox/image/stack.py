"""The compose stack as processes: each service on a host of its own, with the settings of the compose file.

ZooKeeper and Kafka are Apache's own programs (3.9, from Maven), their properties made of the environment by the
rules of the images that the compose file names; the service's own image runs as it is. Names, listeners,
published ports, start order and health checks are the compose file's; so are Prometheus's command, configuration
and rules, where the program is installed. What only an engine can do is not done: pulling, limits, restarts; Kafka
UI and Grafana, of which there are no packages here, are left out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dotenv import dotenv_values

from sandbox.brokers.child import Child
from sandbox.brokers.maven import fetched
from sandbox.image.command import ImageError
from sandbox.image.container import Container
from sandbox.image.hosts import Hosts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Environment = dict[str, str]

_ROOT = Path(__file__).resolve().parents[2]
_ZOOKEEPER = "confluentinc/cp-zookeeper"
_KAFKA = "confluentinc/cp-kafka"
_OWN = "binance-ingestion"
_PROMETHEUS = "prom/prometheus"
_RUNNABLE = (_ZOOKEEPER, _KAFKA, _OWN, *([_PROMETHEUS] if shutil.which("prometheus") else []))
_ZOOKEEPER_PROPERTIES = {
    "ZOOKEEPER_CLIENT_PORT": "clientPort",
    "ZOOKEEPER_TICK_TIME": "tickTime",
    "ZOOKEEPER_ADMIN_ENABLE_SERVER": "admin.enableServer",
    "ZOOKEEPER_AUTOPURGE_PURGE_INTERVAL": "autopurge.purgeInterval",
}
_NO_PROPERTY = ("KAFKA_HEAP_OPTS", "KAFKA_OPTS", "KAFKA_LOG4J_OPTS", "KAFKA_JMX_OPTS")
_EXCHANGE_PORT = 9443
_HEALTHY_SECONDS = 120.0
_POLL_SECONDS = 0.5
_COMMAND_SECONDS = 90.0
_STOP_SECONDS = 10.0  # brokers of a quorum wait for each other; what is left then is killed


class Stack:
    """A merged compose model, up from entry to exit, with a simulated exchange on the outer host.

    `image` stands for the service's own image. `running` holds the processes by service.
    """

    def __init__(self, model: Mapping[str, Any], image: str, folder: Path) -> None:
        self._services = {
            name: service for name, service in model["services"].items() if _program(service) in _RUNNABLE
        }
        self._image = image
        self._folder = folder
        self.hosts = Hosts(list(self._services))
        self.running: dict[str, Child | Container] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self.hosts)
            self._shims()
            opened.enter_context(_running(self._child("exchange", self._exchange(), self.hosts.inside())))
            opened.enter_context(_running(self._child("publisher", self._publisher(), self.hosts.inside())))
            self._up(opened)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def outside(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the outer host, where the published ports are."""
        return self._execute([*self.hosts.inside(), *command], environment)

    def healthy(self, name: str) -> bool:
        """Whether the health check of the compose file, or else of the image, passes now."""
        process = self.running[name]
        if isinstance(process, Container):
            return process.healthy()
        kind, *command = self._services[name]["healthcheck"]["test"]
        words = ["sh", "-c", *command] if kind == "CMD-SHELL" else command
        return self._execute([*self.hosts.inside(name), *words], {}).returncode == 0

    def _up(self, opened: ExitStack) -> None:
        """Start each service as soon as what it depends on is as it must be."""
        waiting = dict(self._services)
        while waiting:
            ready = {
                name: one for name, one in waiting.items() if not set(one.get("depends_on", {})) & set(waiting)
            }
            if not ready:
                raise ImageError(f"these wait for each other: {', '.join(waiting)}")
            for name, service in ready.items():
                for other, needed in service.get("depends_on", {}).items():
                    self._wait_until(other, needed["condition"])
                self.running[name] = opened.enter_context(self._started(name, service))
                del waiting[name]

    def _wait_until(self, name: str, condition: str) -> None:
        process = self.running[name]
        if condition == "service_completed_successfully" and isinstance(process, Container):
            if code := process.wait(_HEALTHY_SECONDS):
                raise ImageError(f"{name} ended with {code}: {process.log.read_text()}")
            return
        deadline = time.monotonic() + _HEALTHY_SECONDS
        while not self.healthy(name):
            if time.monotonic() > deadline or not process.running:
                raise ImageError(f"{name} did not become healthy: {process.log.read_text()[-3000:]}")
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def _started(self, name: str, service: Mapping[str, Any]) -> Iterator[Child | Container]:
        environment = environment_of(service)
        if _program(service) == _OWN:
            exchange = {"BINANCE_WS_BASE_URL": f"ws://{self.hosts.outer_address}:{_EXCHANGE_PORT}/ws"}
            network = self.hosts.namespace(name)
            with Container(self._image, environment | exchange, service.get("command"), network) as container:
                yield container
        elif _program(service) == _PROMETHEUS:
            with _running(self._prometheus(name, service)) as child:
                yield child
        else:
            with _running(self._apache(name, _program(service), environment)) as child:
                yield child

    def _prometheus(self, name: str, service: Mapping[str, Any]) -> Child:
        """Give it its files where they are here, in its command and in its configuration."""
        folder = self._folder / name
        folder.mkdir()
        places = {volume["target"]: volume["source"] for volume in service["volumes"]}
        places |= {target: str(folder / "data") for target, source in places.items() if not source.startswith("/")}
        configuration = next(target for target in places if target.endswith(".yml"))
        copy = folder / "prometheus.yml"
        copy.write_text(_placed(Path(places.pop(configuration)).read_text(), places))
        places[configuration] = str(copy)
        arguments = [_placed(argument, places) for argument in service["command"]]
        return self._child(name, ["prometheus", *arguments], self.hosts.inside(name))

    def _apache(self, name: str, program: str, environment: Environment) -> Child:
        folder = self._folder / name
        folder.mkdir()
        of_zookeeper = program == _ZOOKEEPER
        properties = (zookeeper_properties if of_zookeeper else kafka_properties)(environment, folder)
        file = folder / "properties"
        file.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        if "process.roles" in properties:
            self._format(name, environment["CLUSTER_ID"], file)
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain" if of_zookeeper else "kafka.Kafka"
        heap = shlex.split(environment["KAFKA_HEAP_OPTS"])
        return self._child(name, [*_java(heap), main, str(file)], self.hosts.inside(name))

    def _format(self, name: str, cluster_id: str, properties: Path) -> None:
        tool = [*_java([]), "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties)]
        done = self._execute([*self.hosts.inside(name), *tool], {})
        if done.returncode:
            raise ImageError(f"{name} could not be formatted: {done.stdout}{done.stderr}")

    def _shims(self) -> None:
        """Give the health checks the script that Kafka's image has on its PATH."""
        self._bin = self._folder / "bin"
        self._bin.mkdir(parents=True)
        script = self._bin / "kafka-broker-api-versions"
        script.write_text(f'#!/bin/sh\nexec {shlex.join(_java([]))} kafka.admin.BrokerApiVersionsCommand "$@"\n')
        script.chmod(0o755)

    def _execute(self, command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        path = f"{self._bin}:{os.environ['PATH']}"
        return subprocess.run(
            command,
            cwd=_ROOT,
            env=os.environ | environment | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )

    def _exchange(self) -> list[str]:
        listening = ["--host", "0.0.0.0", "--port", str(_EXCHANGE_PORT)]
        return [sys.executable, "-m", "sandbox.exchange", *listening, "--rate", "200"]

    def _publisher(self) -> list[str]:
        pairs = [
            f"{port['host_ip']}:{port['published']}={self.hosts.addresses[name]}:{port['target']}"
            for name, service in self._services.items()
            for port in service.get("ports", [])
        ]
        return [sys.executable, "-m", "sandbox.image.publish", *pairs]

    def _child(self, name: str, command: list[str], inside: list[str]) -> Child:
        return Child(name, lambda: [*inside, *command], log=self._folder / f"{name}.log", answers=lambda: True)


@contextmanager
def _running(child: Child) -> Iterator[Child]:
    child.start()
    try:
        yield child
    finally:
        child.stop(_STOP_SECONDS)


def _placed(text: str, places: Mapping[str, str]) -> str:
    """Put the places here in the stead of those in the container, the longer ones first."""
    for target in sorted(places, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(target)}(?![\w.-])", places[target], text)
    return text


def _program(service: Mapping[str, Any]) -> str:
    name: str = service["image"]
    return name.partition(":")[0]


def _java(heap: list[str]) -> list[str]:
    return ["java", *(heap or ["-Xmx256m"]), "-cp", f"{fetched('kafka3')}/*"]


def environment_of(service: Mapping[str, Any]) -> Environment:
    """Return a service's environment: `environment` over its env files, as the specification has it."""
    files = [Path(file["path"]) for file in service.get("env_file", [])]
    from_files = {name: value or "" for file in files for name, value in dotenv_values(file).items()}
    given = service.get("environment", {})
    if isinstance(given, list):  # the merged model holds a mapping or a list of NAME=value
        given = dict(entry.split("=", 1) for entry in given)
    return from_files | {name: str(value) for name, value in given.items()}


def kafka_properties(environment: Environment, folder: Path) -> Environment:
    """Return server.properties as the image makes it: KAFKA_LOG_DIRS is log.dirs; the data goes into `folder`."""
    properties = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment.items()
        if name.startswith("KAFKA_") and name not in _NO_PROPERTY
    }
    return properties | {"log.dirs": str(folder / "data")}


def zookeeper_properties(environment: Environment, folder: Path) -> Environment:
    """Return zookeeper.properties as the image makes it, which knows a fixed list of variables."""
    given = {name: value for name, value in environment.items() if name.startswith("ZOOKEEPER_")}
    properties = {_ZOOKEEPER_PROPERTIES[name]: value for name, value in given.items()}
    return properties | {"dataDir": str(folder / "data"), "dataLogDir": str(folder / "log")}


def lines_of(process: Child | Container) -> list[dict[str, Any]]:
    """Return the JSON lines that a service has logged."""
    return [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
