"""Build the image of the Dockerfile with buildah, as `docker build` would."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from sandbox.image.base import base_image
from sandbox.image.command import ImageError, run

ROOT = Path(__file__).resolve().parents[2]
_BUILD_SECONDS = 560.0


class Built(NamedTuple):
    """What a build made; sizes in bytes, uncompressed; `added_bytes` without the base image."""

    tag: str
    base: str
    base_seconds: float
    build_seconds: float
    bytes: int
    added_bytes: int


def build(tag: str) -> Built:
    """Build the image anew, without any layer of an earlier build, and name it `tag`."""
    started = time.monotonic()
    base = base_image()
    based = time.monotonic()
    options = ["--isolation", "chroot", "--format", "docker", "--no-cache", "--pull-never"]
    arguments = ["--build-arg", f"PYTHON_IMAGE={base}", "--build-arg", f"REVISION={_revision()}"]
    former = _images(tag)
    run("buildah", "bud", *options, *arguments, "--tag", tag, str(ROOT), timeout=_BUILD_SECONDS)
    if former - _images(tag):
        run("buildah", "rmi", *(former - _images(tag)))
    seconds = time.monotonic() - based
    size = _size(tag)
    return Built(tag, base, based - started, seconds, size, size - _size(base))


def inspect(tag: str) -> dict[str, Any]:
    """Return the image's configuration, as `docker inspect` shows it under `Config`."""
    inspected = json.loads(run("buildah", "inspect", "--type", "image", tag))
    config: dict[str, Any] = inspected["Docker"]["config"]
    return config


def _images(tag: str) -> set[str]:
    return set(run("buildah", "images", "--quiet", "--filter", f"reference={tag}").split())


def _size(tag: str) -> int:
    """Return the bytes of an image's layers, uncompressed."""
    layers = json.loads(run("buildah", "inspect", "--type", "image", tag))["OCIv1"]["rootfs"]["diff_ids"]
    stored = {layer["diff-digest"]: layer["diff-size"] for layer in _stored_layers() if "diff-digest" in layer}
    return sum(int(stored[layer]) for layer in layers)


def _stored_layers() -> list[dict[str, Any]]:
    [line] = [line for line in run("buildah", "info").splitlines() if '"GraphRoot"' in line]
    store = Path(json.loads("{" + line.strip().rstrip(",") + "}")["GraphRoot"])
    return [layer for found in store.glob("*-layers/layers.json") for layer in json.loads(found.read_text())]


def _revision() -> str:
    try:
        return run("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD").strip()
    except ImageError:
        return "unknown"
