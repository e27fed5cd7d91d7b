"""`python -m benchmarks.soak --seconds 1800 --rate 20000`: whether memory and latency stay flat over time.

Each second: resident memory, CPU, records in flight (from /status), and how old the newest record in the topics
is, seen from outside: at each look (20 a second), how long ago the generator handed over the frame whose number
is the count of records. Memory is flat when its line through the second half climbs by less than 5 % or 5 MB in
all. Plots and JSON; every record is verified at the end. Exit code 1 when memory is not flat or one is missing.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import report, svg
from benchmarks.children import ROOT, load_average, machine
from benchmarks.latency import percentiles, sent_at_ns
from benchmarks.rest import RestServer
from benchmarks.runs import PIPELINES, Look, Run, Task
from sandbox.brokers import BROKERS
from sandbox.near import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAT_SHARE = 0.05
FLAT_MB = 5.0
STRETCH = 2_000
"""Frames encoded ahead: more would be a pause in the sending."""
TICK = 0.005


@dataclass(frozen=True)
class Sample:
    """One second of a soak."""

    second: float
    memory_mb: float
    cpu_percent: float
    in_flight: int
    buffered: int
    records: int
    load_average: float
    worst_ms: float = 0.0
    """Of the looks in this second, the oldest age of the newest record."""


class Watch:
    """Takes a sample each second, and the count of records at each look."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.looks: list[tuple[float, int]] = []
        self._next_at = 0.0
        self._cpu: tuple[float, float] | None = None

    def watch(self, look: Look) -> None:
        """Look at a run."""
        if not self.looks or look.count > self.looks[-1][1]:
            self.looks.append((look.at, look.count))
        if look.at >= self._next_at:
            self._next_at = look.at + 1.0
            self._sample(look)

    def _sample(self, look: Look) -> None:
        cpu = look.child.cpu_seconds()
        before, self._cpu = self._cpu, (look.at, cpu)
        if before is None:
            return
        status: dict[str, Any] = json.loads(ask(f"http://127.0.0.1:{look.port}/status", timeout=5))
        self.samples.append(
            Sample(
                second=look.at - self.looks[0][0],
                memory_mb=look.child.memory_mb(),
                cpu_percent=100 * (cpu - before[1]) / (look.at - before[0]),
                in_flight=status["messages_in_flight"],
                buffered=status["messages_buffered"],
                records=look.count,
                load_average=load_average(),
            )
        )


def ages(looks: Sequence[tuple[float, int]], blocks: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Return, for each look with new records, its time (s since the first) and the newest record's age in ms."""
    first = looks[0][0]
    return [(at - first, at * 1e3 - sent_at_ns(blocks, count - 1) / 1e6) for at, count in looks if count]


def with_ages(samples: Sequence[Sample], found: Sequence[tuple[float, float]]) -> list[Sample]:
    """Return the samples with the worst age of the second before each."""
    worst: dict[int, float] = {}
    for second, age in found:
        worst[int(second)] = max(worst.get(int(second), 0.0), age)
    return [replace(sample, worst_ms=worst.get(int(sample.second) - 1, 0.0)) for sample in samples]


def climb(samples: Sequence[Sample]) -> float:
    """Return by how many MB the line through the second half's memory climbs from its first to its last point."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:  # noqa: PLR2004 - two points make a line
        return 0.0
    seconds = [sample.second for sample in half]
    slope = statistics.linear_regression(seconds, [sample.memory_mb for sample in half]).slope
    return slope * (seconds[-1] - seconds[0])


def is_flat(samples: Sequence[Sample]) -> bool:
    """Say whether memory stays where it is in the second half."""
    middle = samples[len(samples) // 2].memory_mb
    return climb(samples) <= max(FLAT_MB, FLAT_SHARE * middle)


def plot(path: Path, samples: Sequence[Sample]) -> None:
    """Draw memory, latency, CPU and in flight over time."""
    fields = (
        ("Resident memory", "memory_mb", "MB"),
        ("Age of the newest record in the topics, worst of each second", "worst_ms", "ms"),
        ("CPU", "cpu_percent", "% of a core"),
        ("In flight", "in_flight", "records"),
    )
    panels = [
        svg.line(title, [(sample.second, getattr(sample, name)) for sample in samples], unit, number)
        for number, (title, name, unit) in enumerate(fields)
    ]
    svg.write(path, panels)


def main() -> int:
    """Read the arguments, soak, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broker", choices=sorted(BROKERS), default="embedded")
    parser.add_argument("--pipeline", choices=("fast", "seeds"), default="fast")
    parser.add_argument("--load", choices=("trades", "realistic"), default="realistic")
    parser.add_argument("--rate", type=float, default=20_000, help="messages a second")
    parser.add_argument("--seconds", type=float, default=1800)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    watch = Watch()
    frames = int(arguments.rate * arguments.seconds)
    task = Task(
        PIPELINES[arguments.pipeline], arguments.load, frames, arguments.rate, TICK, STRETCH, watch=watch.watch
    )
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        BROKERS[arguments.broker](Path(folder)) as broker,
        RestServer() as rest,
        Run(task, broker.bootstrap_servers, rest.url) as prepared,
    ):
        result = prepared.measure()
        found = ages(watch.looks, prepared.blocks()) if not result.fault else []
    samples = with_ages(watch.samples, found)
    into = ROOT / "build" / "bench"
    into.mkdir(parents=True, exist_ok=True)
    name = time.strftime("soak-%Y%m%d-%H%M%S", time.gmtime())
    summary = {
        "rate": arguments.rate,
        "load": arguments.load,
        "seconds": samples[-1].second if samples else 0.0,
        "memory_first_mb": samples[0].memory_mb if samples else 0.0,
        "memory_last_mb": samples[-1].memory_mb if samples else 0.0,
        "memory_peak_mb": result.peak_mb,
        "climb_of_second_half_mb": round(climb(samples), 2) if samples else 0.0,
        "flat": bool(samples) and is_flat(samples),
        "age_ms": percentiles([age for _, age in found]) if found else {},
        "fault": result.fault,
    }
    kept = {
        "summary": summary,
        "machine": machine(),
        "result": asdict(result),
        "samples": [asdict(s) for s in samples],
    }
    (into / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    plot(into / f"{name}.svg", samples)
    print(report.line(result))
    print("\n".join(f"{key:28}{value}" for key, value in summary.items()))
    print(f"written: {into}/{name}.json, {into}/{name}.svg")
    return 0 if summary["flat"] and not result.fault else 1


if __name__ == "__main__":
    sys.exit(main())
