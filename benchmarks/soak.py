"""`python -m benchmarks.soak --seconds 1800 --rate 20000`: whether memory and latency stay flat over time.

Each second: resident memory, CPU, records in flight (from /status), and how old the newest record in the topics
is, seen from outside: at each look (20 a second), how long ago the generator handed over the frame whose number
is the count of records. Memory is flat when its line through the second half climbs by at most 5 MB, or 5 %, in
30 minutes; a soak of less than ten is too short to tell. The embedded broker keeps everything in memory, so each
record is compared while the soak runs and then deleted there; so the length is not bounded by it. A line each
minute, plots and JSON. Exit code 1 when memory climbs or a record is missing, doubled or out of order.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import report, svg
from benchmarks.children import ROOT, load_average, machine, memory_mb
from benchmarks.latency import percentiles, sent_at_ns
from benchmarks.rest import RestServer
from benchmarks.runs import PIPELINES, Look, Run, Task
from sandbox.brokers import BROKERS
from sandbox.near import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.runs import Result

FLAT_SHARE = 0.05
FLAT_MB = 5.0
"""Most that memory may climb in 30 minutes: the larger of the two, the share being one of what it is."""
HALF_AN_HOUR = 1800.0
LEAST_SECONDS = 600.0
_BACKLOG_SECONDS = 0.5
TOLD_SECONDS = 60.0
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
    broker_mb: float = 0.0
    harness_mb: float = 0.0
    """Of this process and the load generator."""


class Watch:
    """Takes a sample each second, and the count of records at each look."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.looks: list[tuple[float, int]] = []
        self.broker: tuple[int, ...] = ()
        self.harness: tuple[int, ...] = ()
        """Process ids."""
        self._next_at = 0.0
        self._told_at = 0.0
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
                broker_mb=sum(map(memory_mb, self.broker)),
                harness_mb=sum(map(memory_mb, self.harness)),
            )
        )
        self._tell(self.samples[-1])

    def _tell(self, sample: Sample) -> None:
        if sample.second < self._told_at:
            return
        self._told_at += TOLD_SECONDS
        print(
            f"{sample.second:6.0f} s {sample.records:11,} records {sample.memory_mb:6.1f} MB "
            f"{sample.cpu_percent:4.0f} % of a core; "
            f"broker {sample.broker_mb:.0f} MB, harness {sample.harness_mb:.0f} MB, "
            f"load average {sample.load_average:.1f}",
            flush=True,
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
    """Return by how many MB in 30 minutes the line through the second half's memory climbs."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:  # noqa: PLR2004 - two points make a line
        return 0.0
    seconds = [sample.second for sample in half]
    return HALF_AN_HOUR * statistics.linear_regression(seconds, [sample.memory_mb for sample in half]).slope


def rises(samples: Sequence[Sample], rate: float) -> tuple[float, float]:
    """Return by how many MB memory rose in the second half: in seconds with a backlog, and in all others.

    Where more than half a second's records wait, the service was short of CPU or Kafka slow, and memory follows
    what waits; it is not given back all. What rises without a backlog would go on for ever.
    """
    half = samples[len(samples) // 2 :]
    backlog = others = 0.0
    for before, now in pairwise(half):
        rise = now.memory_mb - before.memory_mb
        if max(each.in_flight + each.buffered for each in (before, now)) > rate * _BACKLOG_SECONDS:
            backlog += rise
        else:
            others += rise
    return backlog, others


def bound(samples: Sequence[Sample]) -> float:
    """Return by how many MB in 30 minutes memory may climb."""
    return max(FLAT_MB, FLAT_SHARE * samples[len(samples) // 2].memory_mb) if samples else FLAT_MB


def verdict(samples: Sequence[Sample]) -> str:
    """Say whether memory stays where it is in the second half: `flat`, `climbs` or `too short to tell`."""
    if not samples or samples[-1].second < LEAST_SECONDS:
        return "too short to tell"
    return "flat" if climb(samples) <= bound(samples) else "climbs"


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
    print(" ".join(["python -m benchmarks.soak", *sys.argv[1:]]), flush=True)
    soaked = soak(arguments)
    into = ROOT / "build" / "bench"
    into.mkdir(parents=True, exist_ok=True)
    name = time.strftime("soak-%Y%m%d-%H%M%S", time.gmtime())
    (into / f"{name}.json").write_text(json.dumps(kept(arguments, soaked), indent=1) + "\n")
    plot(into / f"{name}.svg", soaked.samples)
    found = summary(arguments, soaked)
    print(report.line(soaked.result))
    print("\n".join(f"{key:28}{value}" for key, value in found.items()))
    print(f"written: {into}/{name}.json, {into}/{name}.svg")
    return 1 if found["verdict"] == "climbs" or soaked.result.fault else 0


class Soaked(NamedTuple):
    """What a soak gave."""

    result: Result
    samples: list[Sample]
    ages: list[float]
    """Of the newest record, at each look with new records, ms."""


def soak(arguments: argparse.Namespace) -> Soaked:
    """Soak."""
    watch = Watch()
    task = Task(
        PIPELINES[arguments.pipeline],
        arguments.load,
        int(arguments.rate * arguments.seconds),
        arguments.rate,
        tick=TICK,
        stretch=STRETCH,
        # The books are to be written once, as they are at the start: what is counted is what was sent.
        settings={"BACKFILL_SNAPSHOT_INTERVAL_SECONDS": str(int(2 * arguments.seconds + HALF_AN_HOUR))},
        watch=watch.watch,
        follow=True,
    )
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        BROKERS[arguments.broker](Path(folder)) as broker,
        RestServer() as rest,
        Run(task, broker.bootstrap_servers, rest.url) as prepared,
    ):
        watch.broker, watch.harness = (broker.pid,), (os.getpid(), prepared.generator_pid)
        result = prepared.measure()
        found = ages(watch.looks, prepared.blocks()) if not result.fault else []
    return Soaked(result, with_ages(watch.samples, found), [age for _, age in found])


def summary(arguments: argparse.Namespace, soaked: Soaked) -> dict[str, Any]:
    """Return what is to be told."""
    samples = soaked.samples
    loads = [sample.load_average for sample in samples] or [0.0]
    return {
        "broker": arguments.broker,
        "rate": arguments.rate,
        "load": arguments.load,
        "pipeline": arguments.pipeline,
        "seconds": round(samples[-1].second, 1) if samples else 0.0,
        "records": soaked.result.delivered,
        "memory_first_mb": round(samples[0].memory_mb, 1) if samples else 0.0,
        "memory_middle_mb": round(samples[len(samples) // 2].memory_mb, 1) if samples else 0.0,
        "memory_last_mb": round(samples[-1].memory_mb, 1) if samples else 0.0,
        "memory_peak_mb": round(soaked.result.peak_mb, 1),
        "climb_mb_in_30_min": round(climb(samples), 2),
        "climb_at_most": round(bound(samples), 2),
        "verdict": verdict(samples),
        "rise_with_backlog_mb": round(rises(samples, arguments.rate)[0], 2),
        "rise_without_mb": round(rises(samples, arguments.rate)[1], 2),
        "age_ms": percentiles(soaked.ages) if soaked.ages else {},
        "cpu_us": round(soaked.result.cpu_us, 1),
        "broker_mb_at_most": round(max((sample.broker_mb for sample in samples), default=0.0)),
        "harness_mb_at_most": round(max((sample.harness_mb for sample in samples), default=0.0)),
        "load_average": [round(least, 1) for least in (min(loads), statistics.median(loads), max(loads))],
        "fault": soaked.result.fault,
    }


def kept(arguments: argparse.Namespace, soaked: Soaked) -> dict[str, Any]:
    """Return what is written down."""
    return {
        "summary": summary(arguments, soaked),
        "command": " ".join(["python -m benchmarks.soak", *sys.argv[1:]]),
        "ended": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": machine(),
        "result": asdict(soaked.result),
        "samples": [asdict(sample) for sample in soaked.samples],
    }


if __name__ == "__main__":
    sys.exit(main())
