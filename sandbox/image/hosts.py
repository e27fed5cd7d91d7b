"""Several hosts on this machine: network namespaces on a bridge, which know each other by name.

One of them stands for the machine that runs the stack; the others are its containers. Nothing leaves them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sandbox.image.command import ImageError, run

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUBNET = "198.18.7"  # of the range that is set apart for tests of networks
_FIRST = 10
_ETC = Path("/etc/netns")  # `ip netns exec` lays what is in here over /etc


class Hosts:
    """The outer host and one host for each name; as a context manager they exist from entry to exit."""

    outer_address = f"{_SUBNET}.1"

    def __init__(self, names: Sequence[str]) -> None:
        self._prefix = f"stack{os.getpid()}"
        self.outer = f"{self._prefix}-outer"
        self.addresses = {name: f"{_SUBNET}.{number}" for number, name in enumerate(names, start=_FIRST)}

    def namespace(self, name: str) -> str:
        """Return the network namespace of a host."""
        return f"{self._prefix}-{name}"

    def inside(self, name: str | None = None) -> list[str]:
        """Return the words before a command that is to run on a host, without a name on the outer one."""
        if name is None:
            return ["ip", "netns", "exec", self.outer]
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
        return ["ip", "netns", "exec", self.namespace(name), *named]

    def __enter__(self) -> Self:
        try:
            self._add(self.outer, {})
            run("ip", "-n", self.outer, "link", "add", "bridge", "type", "bridge")
            self._set_up(self.outer, "bridge", self.outer_address)
            for name, address in self.addresses.items():
                self._add(self.namespace(name), self.addresses)
                self._connect(name, address)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for namespace in (self.outer, *map(self.namespace, self.addresses)):
            if (Path("/run/netns") / namespace).exists():
                run("ip", "netns", "delete", namespace)
            shutil.rmtree(_ETC / namespace, ignore_errors=True)

    def _add(self, namespace: str, names: dict[str, str]) -> None:
        if (Path("/run/netns") / namespace).exists():
            raise ImageError(f"the network namespace {namespace} exists already")
        (_ETC / namespace).mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        (_ETC / namespace / "hosts").write_text("\n".join([*lines, ""]))
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")

    def _connect(self, name: str, address: str) -> None:
        namespace, port = self.namespace(name), f"port{address.rpartition('.')[2]}"
        peer = ["peer", "name", "eth0", "netns", namespace]
        run("ip", "-n", self.outer, "link", "add", port, "type", "veth", *peer)
        run("ip", "-n", self.outer, "link", "set", port, "master", "bridge", "up")
        self._set_up(namespace, "eth0", address)

    @staticmethod
    def _set_up(namespace: str, link: str, address: str) -> None:
        run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", link)
        run("ip", "-n", namespace, "link", "set", link, "up")
