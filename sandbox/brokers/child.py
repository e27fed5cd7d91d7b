"""One child process: started with its output in a file, watched until it answers, ended by its own pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_POLL_SECONDS = 0.05
_LOG_TAIL_LINES = 20


class BrokerError(Exception):
    """A broker could not be fetched, started or reached; the message says why and what helps."""


class Child:
    """A program that runs until it is told to stop; it can be killed, frozen and started again.

    `command` is asked for the words to execute at each start. The output is appended to `log`. The child
    gets a session of its own, so that Ctrl+C in a terminal reaches only the program that started it. Where
    `setpriv` exists (Linux), the kernel kills it when this process dies without stopping it. Not safe for
    use by several threads at once.
    """

    def __init__(
        self, name: str, command: Callable[[], Sequence[str]], *, log: Path, answers: Callable[[], bool]
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._answers = answers
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the current or last run; raises `BrokerError` before the first one."""
        if self._process is None:
            raise BrokerError(f"{self.name} was never started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the program if it does not run; raises `BrokerError` when it cannot be executed."""
        if self.running:
            return
        command = self._command()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    [*_leash(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise BrokerError(f"{self.name} cannot be executed: {error}") from error

    def wait_until_it_answers(self, deadline: float) -> None:
        """Return as soon as it answers; raise `BrokerError` when it ends or `deadline` (monotonic) passes."""
        while not self._answers():
            if not self.running:
                raise BrokerError(f"{self.name} ended while it was starting{self.log_tail()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"{self.name} runs but does not answer{self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def stop(self, timeout: float) -> None:
        """Ask it to end (SIGTERM); kill it when it still runs after `timeout` seconds."""
        if self._process is None:
            return
        self.thaw()
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once (SIGKILL), frozen or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Stop it in its tracks (SIGSTOP): its connections stay open and nothing answers when this returns."""
        self._signal(signal.SIGSTOP)
        if self.running and hasattr(os, "waitid"):  # without it (macOS before Python 3.13) it stops a moment later
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen program go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def log_tail(self) -> str:
        """Return the last 20 lines of the log, ready to follow an error's message."""
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join([f"; the end of {self.log}:", *lines])


def _leash() -> list[str]:
    # The kernel ties the death signal to the thread that started the child, not to the process: started from
    # a thread that ends soon, the child would die with that thread. So only the main thread uses it.
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return []
    return [setpriv, "--pdeathsig", "KILL", "--"]
