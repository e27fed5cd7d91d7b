"""The base image: python:3.11-slim from its registry, else a stand-in made of Debian's packages.

The stand-in has what the Dockerfile uses of the true one: Debian, Python 3.11 as `python`, pip, venv and the
certificates of the authorities (those of this machine, so that a proxy's own are among them). Its files differ
and so does its size; what is built on it is for tests, not for production.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from sandbox.image.command import ImageError, run

TRUE_BASE = "docker.io/library/python:3.11-slim"
STAND_IN = "localhost/python-3.11-slim-stand-in"
_SUITE = "bookworm"  # the Debian release that has Python 3.11
_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
_PIP_CONFIGURATION = f"[global]\ncert = /{_CERTIFICATES}\n"
_PULL_SECONDS = 300.0
_BOOTSTRAP_SECONDS = 540.0


def base_image() -> str:
    """Return the name of a base image that is here: the true one if it can be had, else the stand-in."""
    try:
        run("buildah", "pull", "--policy", "missing", TRUE_BASE, timeout=_PULL_SECONDS)
    except ImageError:
        return stand_in()
    return TRUE_BASE


def stand_in() -> str:
    """Make the stand-in unless it is there, and return its name."""
    if not run("buildah", "images", "--quiet", "--filter", f"reference={STAND_IN}").strip():
        with tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
            root = Path(folder) / "root"
            _bootstrap(root)
            _commit(root)
    return STAND_IN


def _bootstrap(root: Path) -> None:
    asked = ["--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)]
    run("debootstrap", *asked, timeout=_BOOTSTRAP_SECONDS)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    shutil.copy(Path("/") / _CERTIFICATES, root / _CERTIFICATES)
    (root / "etc/pip.conf").write_text(_PIP_CONFIGURATION)
    for needless in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / needless, ignore_errors=True)


def _commit(root: Path) -> None:
    container = run("buildah", "from", "scratch").strip()
    try:
        run("buildah", "add", "--quiet", container, str(root), "/", timeout=_PULL_SECONDS)
        path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        run("buildah", "config", "--env", path, "--cmd", "python3", container)
        run("buildah", "commit", "--quiet", container, STAND_IN, timeout=_PULL_SECONDS)
    finally:
        run("buildah", "rm", container)
