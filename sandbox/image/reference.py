"""The reference implementations of compose and kustomize, fetched and built as Go modules.

They read the files as `docker compose` and `kubectl apply -k` do, and need neither an engine nor a cluster.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sandbox.image.command import run

COMPOSE = "github.com/compose-spec/compose-go/v2/cmd@v2.16.2"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.1"
PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
_BUILD_SECONDS = 500.0


def merged_compose(*files: Path) -> dict[str, Any]:
    """Return the model that `docker compose config` would show for these files, every profile included.

    Like compose it takes `.env` and relative paths from the folder of the first file.
    """
    arguments = ["-format", "json", *map(str, files)]
    model: dict[str, Any] = json.loads(_go(COMPOSE, *arguments, folder=files[0].parent))
    return model


def built_kustomization(folder: Path) -> str:
    """Return the YAML documents that `kubectl apply -k` would send."""
    return _go(KUSTOMIZE, "build", str(folder))


def fetch() -> None:
    """Fetch and build both programs, so that what comes after needs no network; raises `ImageError`."""
    _go(COMPOSE, "-h")
    _go(KUSTOMIZE, "version")


def _go(program: str, *arguments: str, folder: Path | None = None) -> str:
    return run("go", "run", "-p=1", program, *arguments, timeout=_BUILD_SECONDS, folder=folder)


def service_monitor_schema() -> dict[str, Any]:
    """Return the JSON schema of the Prometheus operator's ServiceMonitor."""
    found = json.loads(run("go", "mod", "download", "-json", PROMETHEUS_OPERATOR, timeout=_BUILD_SECONDS))
    file = Path(found["Dir"]) / "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"
    [version] = yaml.safe_load(file.read_text())["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema
