"""The one place that constructs a thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Worker:
    """A named daemon thread that keeps the exception which ended it and reports its end to its owner.

    Daemon, so that a thread stuck in a system call (name resolution knows no timeout) cannot keep
    the process alive past its shutdown deadline; owners still join every worker.
    """

    def __init__(self, name: str, target: Callable[[], None], on_exit: Callable[[Worker], None]) -> None:
        self.name = name
        self.failure: BaseException | None = None
        self._target = target
        self._on_exit = on_exit
        self._thread = threading.Thread(name=name, target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the end; return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self.alive

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._target()
        except BaseException as failure:  # noqa: BLE001 - the top of a thread: kept for the supervisor
            self.failure = failure
        finally:
            self._on_exit(self)
