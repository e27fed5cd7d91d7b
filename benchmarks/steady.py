"""What a paced run costs once it is under way: from a second after its first records to the end of the load.

What happens once at a start (books, first checkpoint, routes that are met) is left out; what recurs is in. CPU
times are those of the scheduler, in ns. Threads are named by py-spy where that may look into the process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from benchmarks.children import Child
    from benchmarks.runs import Look

SETTLED_SECONDS = 1.0
UNNAMED = "no Python thread"
_SPY_SECONDS = 20.0


class Moment(NamedTuple):
    """Where a run stood at a look that found new records; those of the buffer are not among them."""

    at: float
    frames: int
    cpu: float
    threads: dict[int, float]


class Steady:
    """Watches a run of so many seconds; give `watch` to its task."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen = 0
        self._first_at: float | None = None
        self._begin_at = 0.0
        self._begin: Moment | None = None
        self._last: Moment | None = None
        self._names: dict[int, str] = {}

    def watch(self, look: Look) -> None:
        """Look at the run; only looks that show new records count."""
        if look.count <= self._seen:
            return
        self._seen = look.count
        if self._first_at is None:
            self._first_at = look.at
            asked_at = time.monotonic()
            self._names = thread_names(look.child)  # stops the process for a moment: before what is measured
            self._begin_at = look.at + max(SETTLED_SECONDS, time.monotonic() - asked_at)
        elif self._begin is None:
            if look.at >= self._begin_at:
                self._begin = self._last = _moment(look)
        elif look.at <= self._first_at + self._seconds:
            self._last = _moment(look)

    def found(self) -> dict[str, Any]:
        """Return µs of CPU a message, % of a core, and % of a core by thread; empty when the run was too short."""
        begin, last = self._begin, self._last
        if begin is None or last is None or last.frames == begin.frames:
            return {}
        seconds, messages = last.at - begin.at, last.frames - begin.frames
        spent = {tid: cpu - begin.threads.get(tid, 0.0) for tid, cpu in last.threads.items()}
        threads: dict[str, float] = defaultdict(float)
        for tid, cpu in spent.items():
            threads[self._names.get(tid) or UNNAMED] += 100 * cpu / seconds
        return {
            "seconds": round(seconds, 2),
            "messages": messages,
            "rate": messages / seconds,
            "cpu_us": (last.cpu - begin.cpu) / messages * 1e6,
            "percent": 100 * (last.cpu - begin.cpu) / seconds,
            "threads": dict(sorted(threads.items(), key=lambda item: -item[1])),
        }


def _moment(look: Look) -> Moment:
    return Moment(look.at, look.count, look.child.cpu_seconds(), look.child.threads())


def thread_names(child: Child) -> dict[int, str]:
    """Return the names of a process's Python threads by native id; nothing where py-spy may not look."""
    spy = Path(sys.executable).with_name("py-spy")
    command = [str(spy) if spy.is_file() else shutil.which("py-spy") or "py-spy", "dump", "--json"]
    try:
        dumped = subprocess.run(
            [*command, "--pid", str(child.pid)], capture_output=True, timeout=_SPY_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {thread["os_thread_id"]: thread["thread_name"] or "" for thread in json.loads(dumped.stdout)}
