"""The Kubernetes manifests: valid, in agreement with the code, and safe to apply.

What kustomize makes of them is checked with kustomize itself, which needs Go: `make test-stack`.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml
from dotenv import dotenv_values

from config.binance import BinanceConfig
from config.settings import MonitoringConfig, ServiceConfig, SpoolConfig, known_variables, load_settings
from sandbox.image.reference import built_kustomization, service_monitor_schema
from src.endpoints import View, _routes

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
BASE = FOLDER / "base"
LABELS = {"app.kubernetes.io/name": "binance-ingestion", "app.kubernetes.io/component": "ingestion"}
VERSIONS = ("1.28", "1.31", kubernetes_validate.latest_version())
GRACE_SECONDS = 30
stack = pytest.mark.skipif(
    os.environ.get("STACK_TESTS") != "1", reason="builds kustomize with Go: make test-stack"
)


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((BASE / f"{name}.yaml").read_text())


def variables(name: str) -> dict[str, str]:
    given = dotenv_values(stream=io.StringIO((BASE / f"{name}.env").read_text()))
    return {variable: value or "" for variable, value in given.items()}


def manifests() -> list[dict[str, Any]]:
    """Return the manifests of the base, with the ConfigMap and the Secret that kustomize would generate."""
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secrets"}}
    generated = [config | {"data": variables("settings")}, secret | {"stringData": variables("secrets")}]
    return [*(read(name.removesuffix(".yaml")) for name in listed), *generated]


@pytest.fixture(scope="module")
def stateful_set() -> dict[str, Any]:
    return read("stateful-set")["spec"]


@pytest.fixture(scope="module")
def pod(stateful_set: dict[str, Any]) -> dict[str, Any]:
    return stateful_set["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    return only


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: manifest["kind"])
def test_every_manifest_is_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_everything_in_the_base_is_in_its_kustomization() -> None:
    listed = set(yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"])
    assert listed == {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}


def test_every_variable_is_a_setting_and_no_secret_is_in_the_config_map() -> None:
    known = known_variables()
    settings, secrets = variables("settings"), variables("secrets")
    assert set(settings) | set(secrets) <= set(known)
    secret = {
        name
        for name, (section, field) in known.items()
        if "SecretStr" in str(section.model_fields[field].annotation)
    }
    assert secret <= set(secrets)
    assert not set(settings) & set(secrets)
    assert not any(secrets.values())


def test_the_service_accepts_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in known_variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables("settings") | variables("secrets")).items():
        monkeypatch.setenv(name, value)
    settings = load_settings(env_file=None)
    assert settings.kafka.sasl_plain_password is None
    assert settings.monitoring.port == MonitoringConfig.model_fields["port"].default


def test_the_probes_ask_endpoints_that_exist(container: dict[str, Any]) -> None:
    routes = _routes(View(status=dict, unready=list, alive=lambda: True))
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health",
        "liveness": "/health",
        "readiness": "/ready",
    }
    assert all(probe["path"] in routes for probe in probes.values())
    assert {probe["port"] for probe in probes.values()} == {"http"}


def test_every_port_is_the_one_that_the_service_listens_on(container: dict[str, Any]) -> None:
    port = int(variables("settings")["MONITORING_PORT"])
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    assert read("service")["spec"]["ports"] == [{"name": "http", "port": port, "targetPort": "http"}]
    assert f"EXPOSE {port}\n" in (ROOT / "Dockerfile").read_text()


def test_a_stop_leaves_the_service_the_time_that_it_takes(pod: dict[str, Any]) -> None:
    limit = int(variables("settings")["SHUTDOWN_TIMEOUT_SECONDS"])
    assert limit == ServiceConfig.model_fields["shutdown_timeout_seconds"].default
    assert pod["terminationGracePeriodSeconds"] >= max(GRACE_SECONDS, limit + 10)


def test_the_pod_has_no_privilege_and_the_images_user(pod: dict[str, Any], container: dict[str, Any]) -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
    assert context["fsGroup"] == context["runAsGroup"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert read("namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_variable_of_a_kubernetes_service_reaches_the_pod(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False


def test_resources_are_asked_for_and_memory_is_limited(container: dict[str, Any]) -> None:
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]


def test_the_data_folder_of_the_image_is_kept(stateful_set: dict[str, Any], container: dict[str, Any]) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    [claim] = stateful_set["volumeClaimTemplates"]
    assert f'VOLUME ["{mounts[claim["metadata"]["name"]]}"]' in (ROOT / "Dockerfile").read_text()


def test_the_volume_holds_the_spool_and_its_bounds(
    stateful_set: dict[str, Any], container: dict[str, Any]
) -> None:
    [data] = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "data"]
    [workdir] = set(re.findall(r"^WORKDIR (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    spool = SpoolConfig(
        **{
            name.removeprefix("SPOOL_").lower(): value
            for name, value in variables("settings").items()
            if name.startswith("SPOOL_")
        }
    )
    assert (Path(workdir) / spool.path).is_relative_to(data)
    [claim] = stateful_set["volumeClaimTemplates"]
    size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 1024**3
    assert size >= 1.5 * spool.max_bytes + spool.min_free_bytes


def test_the_service_has_ten_minutes_to_read_a_large_spool_before_it_must_answer(
    container: dict[str, Any],
) -> None:
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600


def test_each_replica_is_the_shard_of_its_number_and_there_are_as_many_as_shards(
    stateful_set: dict[str, Any], container: dict[str, Any]
) -> None:
    environment = {entry["name"]: entry for entry in container["env"]}
    index = environment["SHARD_INDEX"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.labels['apps.kubernetes.io/pod-index']"
    assert int(variables("settings")["SHARD_COUNT"]) == stateful_set["replicas"]


def test_everything_selects_the_same_pods(stateful_set: dict[str, Any]) -> None:
    assert stateful_set["template"]["metadata"]["labels"] == LABELS
    assert stateful_set["selector"]["matchLabels"] == LABELS
    assert stateful_set["serviceName"] == read("service")["metadata"]["name"]
    assert read("service")["spec"]["selector"] == LABELS
    assert read("pod-disruption-budget")["spec"]["selector"]["matchLabels"] == LABELS
    assert read("network-policy")["spec"]["podSelector"]["matchLabels"] == LABELS


def test_the_disruption_budget_does_not_block_the_draining_of_a_node() -> None:
    budget = read("pod-disruption-budget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget


def test_the_network_policy_lets_out_to_kafka_and_the_exchange_and_nothing_else_in_than_the_endpoints() -> None:
    policy = read("network-policy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["http"]
    names, kafka, exchange = ([port["port"] for port in rule["ports"]] for rule in policy["egress"])
    assert names == [53, 53]
    assert {str(port) for port in kafka} == {
        server.rpartition(":")[2] for server in variables("settings")["KAFKA_BOOTSTRAP_SERVERS"].split(",")
    }
    urls = [BinanceConfig.model_fields[name].default for name in ("ws_base_url", "rest_base_url")]
    assert set(exchange) == {urlsplit(url).port or 443 for url in urls}


def test_prometheus_scrapes_the_services_port_under_the_job_of_the_rules() -> None:
    monitor = yaml.safe_load((FOLDER / "service-monitor" / "service-monitor.yaml").read_text())["spec"]
    assert monitor["selector"]["matchLabels"] == LABELS
    assert [(one["port"], one["path"]) for one in monitor["endpoints"]] == [("http", "/metrics")]
    job = LABELS[monitor["jobLabel"]]
    assert f'job="{job}"' in (ROOT / "deploy/prometheus/rules/binance-ingestion.yml").read_text()


@stack
@pytest.mark.parametrize("name", ["base", "example"])
def test_kustomize_builds_valid_objects_whose_names_fit_together(name: str) -> None:
    built = list(yaml.safe_load_all(built_kustomization(FOLDER / name)))
    by_kind = {one["kind"]: one for one in built}
    monitor = by_kind.pop("ServiceMonitor", None)
    assert (monitor is not None) == (name == "example")
    for one in by_kind.values():
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "binance-ingestion"
    if monitor:
        jsonschema.validate(monitor, service_monitor_schema())
    [container] = by_kind["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    [config, secret] = container["envFrom"]
    assert config["configMapRef"]["name"] == by_kind["ConfigMap"]["metadata"]["name"] != "settings"
    assert secret["secretRef"]["name"] == by_kind["Secret"]["metadata"]["name"] != "secrets"
    assert container["image"].endswith("binance-ingestion:1.0.0")
    assert by_kind["StatefulSet"]["spec"]["replicas"] == int(by_kind["ConfigMap"]["data"]["SHARD_COUNT"])
    assert LABELS.items() <= by_kind["Service"]["metadata"]["labels"].items()
