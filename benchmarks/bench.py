"""`python -m benchmarks.bench`: how fast and how cheap, from the socket to Kafka's acknowledgement.

In one run, on one broker: the naive reference, cryptofeed, the service with the seeds' producer settings, with
high-throughput ones, and with these while its frames come over TLS; two loads; rounds in which the order turns,
so that what else the machine does falls on all. Then latencies leg by leg. Before all that: without a broker, what
following the streams' ids costs a message; on a broker that holds nothing yet, what the service costs at the live
exchange's usual pace, spaced as frames of the exchange were, over TLS, and evenly. Every record of every run is
read back and compared with what was sent. Writes results.json and plot.svg; exit code 1 when a run was faulty.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import peer_venv, report
from benchmarks.children import ROOT, Child, load_average, machine
from benchmarks.load import Frames, alone
from benchmarks.rest import RestServer
from benchmarks.runs import PIPELINES, Result, Task, run
from benchmarks.steady import Steady
from sandbox.brokers import BROKERS

if TYPE_CHECKING:
    from collections.abc import Sequence

LOADS = ("trades", "realistic")
TRACED_SAMPLES = 20_000
SHARES = (0.8, 0.8, 0.6)
"""Of the maximum: what is offered, again where the pace was not kept, and at last."""
SHARE_SECONDS = 6.0
USUAL_LOOK_SECONDS = 1.0
"""Between two looks at the topics at the usual pace: every 0.05 s they made it 8 % dearer (five pairs)."""
LEAST_KEPT = 0.95
"""Of what a paced run offers, so much has to be delivered while it is offered."""
MOST_BEHIND_SECONDS = 0.1
"""How far the generator of a paced run may fall behind: it does when its client does not read."""
LEAST_SAMPLED = 0.98
"""Of the events to be traced; one that came back from disk is not traced."""


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    seconds: float
    """Of load in each closed-loop run, at the rate that is expected."""
    latency_seconds: float
    usual_seconds: float
    """With each spacing."""
    following_pairs: int
    budget_seconds: float = 180.0
    """After so long no further round is begun: on a busy machine there are fewer, and the figures say how many."""


EFFORTS = {"full": Effort(3, 5.0, 20.0, 60.0, 51, 480.0), "quick": Effort(1, 1.5, 3.0, 10.0, 7)}


@dataclass
class Session:
    """All results of one call, in the order in which they were measured."""

    broker: str
    effort: str
    command: str = field(default_factory=lambda: " ".join(["python -m benchmarks.bench", *sys.argv[1:]]))
    machine: dict[str, object] = field(default_factory=machine)
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    load_average_before: float = field(default_factory=load_average)
    generator_alone: dict[str, int] = field(default_factory=dict)
    following: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Result]] = field(default_factory=list)
    """By `pipeline load`."""
    latency: dict[str, Result] = field(default_factory=dict)
    repeated: list[Result] = field(default_factory=list)
    """Paced runs whose pace was not kept, and that were therefore made again, more slowly at last."""
    usual: dict[str, Result] = field(default_factory=dict)
    """By spacing of the frames."""
    seconds: float = 0.0


class Bench:
    """Measures on one broker and tells as it goes."""

    def __init__(self, bootstrap_servers: str, rest_url: str, session: Session, effort: Effort) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._rest_url = rest_url
        self._session = session
        self._effort = effort

    def throughput(self, pipelines: list[str], loads: list[str]) -> None:
        """Run everything in each round, in an order that turns."""
        started_at = time.monotonic()
        for number in range(self._effort.rounds):
            if number and time.monotonic() - started_at > self._effort.budget_seconds:
                return
            turn = number % len(pipelines)
            results: dict[str, Result] = {}
            self._session.rounds.append(results)
            for load in loads:
                for name in pipelines[turn:] + pipelines[:turn]:
                    frames = int(PIPELINES[name].expected_rate[load] * self._effort.seconds)
                    results[f"{name} {load}"] = self._run(Task(PIPELINES[name], load, frames))

    def latency(self, name: str, load: str, rates: Sequence[tuple[str, float]], seconds: float) -> None:
        """Trace at a paced rate, by its title; at the next one where a pace is not kept, which is told."""
        for number, (title, rate) in enumerate(rates, 1):
            task = Task(
                PIPELINES[name],
                load,
                int(rate * seconds),
                rate,
                trace_every=max(1, int(rate * seconds / TRACED_SAMPLES)),
                settings={"CONNECTION_BATCH_TIMEOUT_SECONDS": "0.05"},
            )
            result = self._run(task)
            unkept = "" if result.fault else not_kept(task, result)
            result.fault = result.fault or unkept
            if not unkept or number == len(rates):
                self._session.latency[title] = result
                return
            self._session.repeated.append(result)

    def usual(self) -> None:
        """Run five symbols at the live exchange's usual pace, with the default time of flushing."""
        settings = {"CONNECTION_BATCH_TIMEOUT_SECONDS": "5"}
        seconds = self._effort.usual_seconds
        for spacing in report.SPACINGS:
            steady = Steady(seconds - USUAL_LOOK_SECONDS)  # the first look may come so late
            task = Task(
                replace(PIPELINES["seeds"], tls=spacing == "tls"),
                "realistic",
                int(report.USUAL_RATE * seconds),
                report.USUAL_RATE,
                arrivals="even" if spacing == "even" else "recorded",
                settings=settings,
                watch=steady.watch,
                look_seconds=USUAL_LOOK_SECONDS,
            )
            result = self._run(task)
            result.steady = steady.found()
            self._session.usual[spacing] = result

    def _run(self, task: Task) -> Result:
        result = run(task, self._bootstrap_servers, self._rest_url)
        print(report.line(result), flush=True)
        return result


def not_kept(task: Task, result: Result) -> str:
    """Say why the pace of a traced run was not kept, so that its latencies would say too little; else nothing."""
    sampled = result.legs.get("send_to_ack", {}).get("samples", 0) * task.trace_every
    if result.rate < LEAST_KEPT * (task.rate or 0):
        return f"offered {task.rate:,.0f}/s, delivered {result.rate:,.0f}/s"
    if (behind := result.generator["behind_seconds"]) > MOST_BEHIND_SECONDS:
        return f"offered {task.rate:,.0f}/s, the generator fell {behind:.2f} s behind"
    if sampled < LEAST_SAMPLED * task.frames:
        return f"{sampled:,} of {task.frames:,} events could be traced, the others went by way of the disk"
    return ""


def following(pairs: int) -> list[dict[str, Any]]:
    """Return what following ids costs, measured in a process of its own."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "benchmarks.following", "--json"]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        child = Child("following", [*command, "--pairs", str(pairs)], Path(folder), {}, piped=True)
        try:
            rows: list[dict[str, Any]] = child.line()["following"]
        finally:
            child.stop()
    return rows


def measure(session: Session, pipelines: list[str], loads: list[str]) -> None:
    """Do everything in the session's effort."""
    effort = EFFORTS[session.effort]
    if "peer" in pipelines:
        peer_venv.python()  # made at the first use, which takes longer than a generator waits for its client
    if "seeds" in pipelines:
        session.following = following(effort.following_pairs)
    for load in loads:
        session.generator_alone[load] = round(alone(Frames(load, 200_000)))
    with (
        tempfile.TemporaryDirectory(prefix="bench-broker-") as folder,
        BROKERS[session.broker](Path(folder)) as broker,
        RestServer() as rest,
    ):
        bench = Bench(broker.bootstrap_servers, rest.url, session, effort)
        if "seeds" in pipelines:  # first: a broker that holds millions of records has the caches to itself
            bench.usual()
        bench.throughput(pipelines, loads)
        if "seeds" in pipelines:
            for rate in (1_000, 10_000):
                bench.latency("seeds", "trades", [(f"{rate:,}/s", rate)] * 2, effort.latency_seconds)
        if "fast" in pipelines:
            for load in loads:
                most = report.median_rate(session.rounds, f"fast {load}")
                shares = [
                    (f"{share:.0%}".replace("%", f" % of maximum, {load}"), share * most) for share in SHARES
                ]
                bench.latency("fast", load, shares, min(SHARE_SECONDS, effort.latency_seconds))


def main() -> int:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broker", choices=sorted(BROKERS), default="embedded")
    parser.add_argument("--quick", action="store_true", help="one round, shorter: for a look, not for figures")
    parser.add_argument("--pipelines", default=",".join(PIPELINES), help="comma-separated")
    parser.add_argument("--loads", default=",".join(LOADS), help="comma-separated")
    parser.add_argument("--into", type=Path, help="folder of results.json and plot.svg (default: build/bench/…)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    session = Session(arguments.broker, "quick" if arguments.quick else "full")
    started_at = time.monotonic()
    measure(session, arguments.pipelines.split(","), arguments.loads.split(","))
    session.seconds = round(time.monotonic() - started_at, 1)
    summary = report.summary(session.rounds, session.latency, session.usual, session.following, session.repeated)
    print("\n" + report.text(session.broker, summary))
    named = arguments.broker + ("-quick" if arguments.quick else "")
    into = arguments.into or ROOT / "build" / "bench" / named
    into.mkdir(parents=True, exist_ok=True)
    (into / "results.json").write_text(json.dumps({"summary": summary} | asdict(session), indent=1) + "\n")
    report.plot(into / "plot.svg", session.broker, summary)
    print(f"written: {into}/results.json, {into}/plot.svg; {session.seconds:.0f} s")
    return 1 if summary["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
