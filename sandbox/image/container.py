"""Run an image as Docker would with `--read-only`: own mounts and processes, plain user, nothing writable.

Network: that of the caller, or of a network namespace by name (`ip netns`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sandbox.image.build import inspect
from sandbox.image.command import ImageError, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_INSIDE = Path(__file__).with_name("inside.py")
_START_SECONDS = 10.0
_POLL_SECONDS = 0.02
_HEALTH_SECONDS = 30.0


class Container:
    """One run of an image; as a context manager it starts on entry, and is killed and removed on exit.

    What it prints is in `log`. The folders that the image declares as volumes are writable. They lie in
    `volumes`, where a later run finds them again, or are fresh; like Docker's they belong to the folder's owner in
    the image. `/tmp` is in memory; all else is read-only. `healthy()` runs the image's own HEALTHCHECK inside.
    """

    def __init__(
        self,
        tag: str,
        environment: Mapping[str, str],
        command: Sequence[str] | None = None,
        network: str | None = None,
        volumes: Path | None = None,
    ) -> None:
        self.config = inspect(tag)
        self._tag = tag
        self._environment = _parsed(self.config["Env"]) | dict(environment)
        self._command = list(command or self.config["Cmd"])
        self._network = network
        self._kept = volumes
        self._process: subprocess.Popen[bytes] | None = None
        self._buildah = ""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="container-")
        self.log = Path(self._folder.name) / "log"
        self._buildah = run("buildah", "from", "--pull-never", self._tag).strip()
        try:
            self._start(run("buildah", "mount", self._buildah).strip())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()  # unshare takes the container with it
        if self._process:
            self._process.wait()
        run("buildah", "rm", self._buildah)
        self._folder.cleanup()

    @property
    def user(self) -> tuple[int, int]:
        """The user and group of the image, which must be numbers."""
        uid, _, gid = self.config["User"].partition(":")
        return int(uid), int(gid)

    @property
    def running(self) -> bool:
        """Whether its first process exists."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process outside that is number 1 inside, once it has become the container's command."""
        deadline = time.monotonic() + _START_SECONDS
        while (number := self._first()) is None:
            if time.monotonic() > deadline or not self.running:
                raise ImageError(f"the container did not start: {self.log.read_text()}")
            time.sleep(_POLL_SECONDS)
        return number

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the running container as its user, as `docker exec` does."""
        uid, gid = self.user
        enter = ["--mount", "--pid", "--net", "--root", "--wd", f"--setuid={uid}", f"--setgid={gid}"]
        return subprocess.run(
            ["/usr/bin/nsenter", f"--target={self.pid}", *enter, "--", *command],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_HEALTH_SECONDS,
            check=False,
        )

    def healthy(self) -> bool:
        """Whether the image's own HEALTHCHECK passes now."""
        kind, *command = self.config["Healthcheck"]["Test"]
        if kind != "CMD":
            raise ImageError(f"the health check must name a program, not {kind}")
        return self.execute(*command).returncode == 0

    def stop(self, timeout: float) -> int:
        """Send the image's stop signal to process 1 and return the exit code of the container."""
        os.kill(self.pid, signal.Signals[self.config["StopSignal"]])
        return self.wait(timeout)

    def wait(self, timeout: float) -> int:
        """Return the exit code; raises `ImageError` when it still runs after `timeout` seconds."""
        if self._process is None:
            raise ImageError("the container was never started")
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ImageError(f"it still runs after {timeout:g} s: {self.log.read_text()}") from None

    def _first(self) -> int | None:
        if self._process is None:
            raise ImageError("the container was never started")
        number = self._process.pid
        try:
            [first] = Path(f"/proc/{number}/task/{number}/children").read_text().split()
            command = Path(f"/proc/{first}/cmdline").read_text()
        except (FileNotFoundError, ValueError):  # not there yet, or no more
            return None
        on_its_way = not command or _INSIDE.name in command  # empty while one program takes another's place
        return None if on_its_way else int(first)

    def _start(self, root: str) -> None:
        uid, gid = self.user
        asked = {
            "root": root,
            "binds": self._volumes(root) | {path: path for path in ("/etc/hosts", "/etc/resolv.conf")},
            "tmpfs": ["/tmp"],  # noqa: S108 - the container's own
            "workdir": self.config["WorkingDir"],
            "user": [uid, gid],
            "environment": self._environment,
            "command": self._command,
        }
        network = ["ip", "netns", "exec", self._network] if self._network else []
        unshare = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [*network, *unshare, sys.executable, "-I", str(_INSIDE), json.dumps(asked)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _volumes(self, root: str) -> dict[str, str]:
        volumes = {}
        for number, inside in enumerate(self.config["Volumes"] or {}):
            outside = (self._kept or Path(self._folder.name)) / f"volume-{number}"
            if not outside.exists():
                outside.mkdir()
                folder = Path(f"{root}{inside}").stat()
                os.chown(outside, folder.st_uid, folder.st_gid)
            volumes[inside] = str(outside)
        return volumes


def _parsed(environment: list[str]) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in environment)
