"""What every broker of the sandbox can do, whichever program stands behind it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from sandbox.brokers.child import BrokerError, Child
from sandbox.brokers.probe import free_port, is_taken

if TYPE_CHECKING:
    from pathlib import Path

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


class Broker(ABC):
    """One Kafka broker on 127.0.0.1, its data, configuration and log in one folder.

    The address is fixed when the object is made and stays over stops and starts, so a client may be pointed at
    a broker that is not up yet. Everything is kept in `folder`; removing it is the caller's affair.
    As a context manager it starts on entry and stops on exit.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = free_port() if port is None else port

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:PORT`, as Kafka clients take it."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the broker itself."""
        return self._children()[-1].pid

    @property
    def running(self) -> bool:
        """Whether the broker's process exists, frozen or not."""
        return self._children()[-1].running

    def log_tail(self) -> str:
        """Return the last lines of the broker's log, ready to follow an error's message."""
        return self._children()[-1].log_tail()

    @abstractmethod
    def _children(self) -> tuple[Child, ...]:
        """Return the processes in the order of starting, the broker last; the same objects at each call."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make sure that the folder holds what a start needs, without touching data of an earlier run."""

    def start(self) -> None:
        """Start and return once clients are answered (60 s at most); the data of an earlier run is kept.

        SIGTERM must not be blocked in the calling thread: the broker would inherit that and ignore `stop()`.
        Raises `BrokerError`, with the end of the log, when it does not come up; nothing is left running then.
        """
        if self.running:
            return
        self._make_ready()
        deadline = time.monotonic() + _START_SECONDS
        try:
            for child in self._children():
                child.start()
                child.wait_until_it_answers(deadline)
        except BaseException:
            self.stop()
            raise

    def begin(self) -> None:
        """Start the broker's own process without waiting for its answers: it may need others for them."""
        if not self.running:
            self._make_ready()
            self._children()[-1].start()

    def _make_ready(self) -> None:
        if is_taken(self.port):  # and could answer in the place of the one that is started here
            raise BrokerError(f"port {self.port} on 127.0.0.1 is taken by another program; choose another")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prepare()

    def stop(self) -> None:
        """End it cleanly, by force after 20 s; a frozen one is thawed first. No harm when it does not run."""
        for child in reversed(self._children()):
            child.stop(_STOP_SECONDS)

    def wait_until_durable(self) -> None:  # noqa: B027 - nothing to wait for is the usual case
        """Return when what was acknowledged before the call survives `kill()`; call it while nothing is sent.

        Apache Kafka has handed a record to the operating system when it acknowledges it: nothing to wait for.
        """

    def kill(self) -> None:
        """End the broker with SIGKILL, as a crash would; `start()` brings it back with what was durable."""
        self._children()[-1].kill()

    def restart(self) -> None:
        """Stop cleanly and start again with the same address and data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Suspend the broker (SIGSTOP): connections stay open, nothing is answered."""
        self._children()[-1].freeze()

    def thaw(self) -> None:
        """Let a frozen broker go on (SIGCONT)."""
        self._children()[-1].thaw()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


__all__ = ["Broker", "BrokerError"]
