"""`python -m benchmarks.hotspots`: where the time of the real process goes under load, as a table by function.

py-spy samples the running service from outside, without a change to it, 250 times a second while the load
generator keeps it busy in a closed loop (or at `--rate`). Samples that end in one of the few calls that wait are
left out; what those cost in themselves is thus not seen. The rest is shared out over the CPU time a message.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from benchmarks.children import ROOT
from benchmarks.rest import RestServer
from benchmarks.runs import PIPELINES, Look, Result, Task, run
from sandbox.brokers import BROKERS

SAMPLES_A_SECOND = 250
SHOWN = 16
WAITING = (
    "EpollSelector.select (selectors.py)",
    "Condition.wait (threading.py)",
    "sigwait (signal.py)",
    "ReadAheadSocket._wait_for (read_ahead.py)",
    "Service.run (service.py)",  # for a signal
)
"""Where threads wait for something to do; py-spy cannot tell that from work everywhere."""


class Profile(NamedTuple):
    """Samples in all, by thread, and by function: in it alone, and in it or what it called."""

    samples: int
    threads: Counter[str]
    own: Counter[str]
    cumulative: Counter[str]


def parsed(raw: str) -> Profile:
    """Read py-spy's raw format: `thread;outermost;...;innermost COUNT` a line."""
    profile = Profile(0, Counter(), Counter(), Counter())
    samples = 0
    for stack, _, count in (line.rpartition(" ") for line in raw.splitlines() if line):
        thread, *frames = stack.split(";")
        functions = [_function(frame) for frame in frames]
        if functions and functions[-1] in WAITING:
            continue
        samples += int(count)
        profile.threads[thread.rpartition(": ")[2]] += int(count)
        if functions:
            profile.own[functions[-1]] += int(count)
        for function in set(functions):
            profile.cumulative[function] += int(count)
    return profile._replace(samples=samples)


def _function(frame: str) -> str:
    """Return `function (file.py)` of `function (path/file.py:123)`."""
    name, _, place = frame.partition(" (")
    return f"{name} ({Path(place.rpartition(':')[0] or place.rstrip(')')).name})"


def text(profile: Profile, result: Result) -> str:
    """Return the tables; a function's microseconds are its share of the CPU time a message."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    parts = [f"{when}, {profile.samples} samples of threads at work", report.line(result), ""]
    parts += [
        f"{count / profile.samples:8.1%}  thread {thread}" for thread, count in profile.threads.most_common()
    ]
    parts += ["", f"{'own':>8}{'us':>7}{'with called':>13}  function"]
    for function, count in profile.own.most_common(SHOWN):
        share, cumulative = count / profile.samples, profile.cumulative[function] / profile.samples
        parts.append(f"{share:8.1%}{share * result.cpu_us:7.2f}{cumulative:13.1%}  {function}")
    return "\n".join(parts)


class Spy:
    """Starts py-spy on the process as soon as records flow."""

    def __init__(self, seconds: float, raw: Path) -> None:
        self._seconds = seconds
        self._raw = raw
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, look: Look) -> None:
        """Look at a run."""
        if look.count and self._process is None:
            spy = Path(sys.executable).with_name("py-spy")
            command = [str(spy) if spy.is_file() else shutil.which("py-spy") or "py-spy", "record"]
            command += ["--pid", str(look.child.pid), "--duration", str(round(self._seconds))]
            command += [
                "--rate",
                str(SAMPLES_A_SECOND),
                "--threads",
                "--format",
                "raw",
                "--output",
                str(self._raw),
            ]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def profile(self) -> Profile:
        """Wait for its end and read what it found."""
        if self._process is None or self._process.wait(60):
            raise RuntimeError("py-spy failed; it may need root, or kernel.yama.ptrace_scope=0")
        return parsed(self._raw.read_text())


def main() -> int:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broker", choices=sorted(BROKERS), default="embedded")
    parser.add_argument("--pipeline", choices=sorted(PIPELINES), default="fast")
    parser.add_argument("--load", choices=("trades", "realistic"), default="trades")
    parser.add_argument("--rate", type=float, help="messages a second (default: as many as it takes)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of sampling")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pipeline = PIPELINES[arguments.pipeline]
    rate = arguments.rate or pipeline.expected_rate[arguments.load] * 1.3
    with (
        tempfile.TemporaryDirectory(prefix="hotspots-") as folder,
        BROKERS[arguments.broker](Path(folder) / "broker") as broker,
        RestServer() as rest,
    ):
        spy = Spy(arguments.seconds, Path(folder) / "raw")
        frames = int(rate * (arguments.seconds + 1))
        task = Task(pipeline, arguments.load, frames, arguments.rate, watch=spy.watch)
        result = run(task, broker.bootstrap_servers, rest.url)
        shown = text(spy.profile(), result)
    print(shown)
    into = ROOT / "build" / "bench"
    into.mkdir(parents=True, exist_ok=True)
    (into / f"hotspots-{arguments.pipeline}-{arguments.load}.txt").write_text(shown + "\n")
    return 1 if result.fault else 0


if __name__ == "__main__":
    sys.exit(main())
