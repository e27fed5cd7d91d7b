"""Child processes of a measurement: their lines of JSON, CPU time, memory; and what is told of the machine."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_CPUCLOCK_SCHED = 2
"""The clock of a process's CPU time, numbered as clock_getcpuclockid(3) does; Python has that for threads only."""
OURS = (
    "BINANCE_",
    "KAFKA_",
    "CONNECTION_",
    "DELIVERY_",
    "LOG_",
    "METRICS_",
    "MONITORING_",
    "SHARD_",
    "SHUTDOWN_",
    "SPOOL_",
)
"""Variables of the user's own that must not reach what is measured."""


class Child:
    """A process started in a folder of its own (so without the user's `.env`), its output in `folder/NAME.log`."""

    def __init__(
        self, name: str, command: list[str], folder: Path, variables: dict[str, str], *, piped: bool = False
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith((*OURS, "BACKFILL_"))}
        with self.log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=inherited | {"PYTHONPATH": str(ROOT)} | variables,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else output,
                stderr=None if piped else subprocess.STDOUT,
                text=True,
            )
        self.pid = self._process.pid

    def line(self) -> dict[str, Any]:
        """Wait for the next line of JSON on its output."""
        text = self._process.stdout.readline() if self._process.stdout else ""
        if not text:
            raise RuntimeError(f"{self.name} ended, exit code {self._process.wait()}")
        parsed: dict[str, Any] = json.loads(text)
        return parsed

    def say(self, text: str) -> None:
        """Write a line to its input."""
        if self._process.stdin:
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def cpu_seconds(self) -> float:
        """Return user and system time so far, of all its threads, those that have ended included."""
        return time.clock_gettime(~self.pid << 3 | _CPUCLOCK_SCHED)  # in ns; /proc/PID/stat counts in 10 ms

    def threads(self) -> dict[int, float]:
        """Return the CPU seconds so far of each thread that runs, by its native id."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        return found

    def memory_mb(self, *, peak: bool = False) -> float:
        """Return resident memory now, or the most so far."""
        return memory_mb(self.pid, peak=peak)

    def stop(self) -> int:
        """End it by SIGTERM, by force after 40 s; return its exit code."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()

    def logged(self) -> list[dict[str, Any]]:
        """Return the lines of JSON in its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """Return the resident memory of a process now, or the most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0]) / 1024


def machine() -> dict[str, object]:
    """Say what the figures depend on."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    memory = Path("/proc/meminfo").read_text().split()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), "unknown"),
        "memory_gib": round(int(memory[1]) / 2**20, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def idle_core_seconds() -> float:
    """Return for how long all cores together have had nothing to do since the machine started."""
    ticks = Path("/proc/stat").read_text().split(maxsplit=6)[1:6]
    return (int(ticks[3]) + int(ticks[4])) / os.sysconf("SC_CLK_TCK")  # idle, and idle while a disk is waited for


def load_average() -> float:
    """Return the load average of the last minute: how busy others keep the machine."""
    return os.getloadavg()[0]
