"""`python -m benchmarks.shards`: one process, then several shards of the streams, against one broker.

Each process has a load generator of its own that sends what it subscribed to, in a closed loop. Tells throughput
and CPU of each process, the ratio to one process alone, and reads every record back: all shards' streams
together are all of them, none is on two, and each record is there once and in order. In a closed loop broker,
load and processes use up all cores, so the rate of a process falls; what it costs in CPU must not.

What an added process brings *until* the cores are used is shown by `--paced RATE`: each process is offered that
rate and no more, alone and with others, and it is told how much of the cores was idle meanwhile. An added
process has to bring 85 % of what the first does alone, as long as a tenth of a core is left. With several rates,
`--paced 10000,20000,30000`, it goes on to the next as long as all fit. Exit code 1 when a process falls short,
or a record is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import loads
from benchmarks.children import ROOT, Child, idle_core_seconds, load_average, machine
from benchmarks.load import Progress
from benchmarks.rest import RestServer
from benchmarks.runs import PIPELINES, POLL_SECONDS, READY_SECONDS, STALLED_SECONDS
from benchmarks.topics import RunTopics
from sandbox.brokers import BROKERS, free_port
from sandbox.near import ask

if TYPE_CHECKING:
    from collections.abc import Sequence


LEAST_RATIO = 0.85
LEAST_KEPT = 0.95
"""Of what the first alone is offered at a pace; with less its rate is no measure for the others."""
LEAST_IDLE = 0.1
"""Cores; with less left they are used up."""


class Share(NamedTuple):
    """What one process of a run gave."""

    shard: int
    streams: int
    delivered: int
    rate: float
    cpu_us: float
    peak_mb: float


class Outcome(NamedTuple):
    """What a run with so many processes gave; `fault` is empty when every record is there once and in order."""

    shares: list[Share]
    rate: float
    cores: float
    fault: str
    idle: float = 0.0
    """Cores that had nothing to do meanwhile, on average."""
    offered: float | None = None
    """Messages a second to each process; None: as many as it takes."""
    behind_seconds: float = 0.0
    """How far the generators fell behind that at worst."""


class Shard:
    """One process and its load generator."""

    def __init__(
        self, number: int, arguments: argparse.Namespace, folder: Path, variables: dict[str, str]
    ) -> None:
        self.number = number
        self.frames = arguments.frames
        self.offered = arguments.rate
        self._folder = folder
        files = [f"{folder}/progress-{number}", f"{folder}/blocks-{number}"]
        self.progress = Progress.create(Path(files[0]))
        pace = ["--rate", str(arguments.rate)] if arguments.rate else ["--window", "20000"]
        command = ["-m", "benchmarks.load", "--load", arguments.load, "--count", str(self.frames), "--subscribed"]
        command += [*pace, "--progress", files[0], "--blocks", files[1]]
        self.generator = Child(f"load-{number}", [sys.executable, *command], folder, {}, piped=True)
        self._port = free_port()
        url = f"ws://127.0.0.1:{self.generator.line()['port']}/ws"
        own = {"BINANCE_WS_BASE_URL": url, "SHARD_INDEX": str(number), "MONITORING_PORT": str(self._port)}
        self.process = Child(f"shard-{number}", [sys.executable, str(ROOT / "main.py")], folder, variables | own)
        self.streams: list[str] = []
        self.done_at = 0.0

    def wait_ready(self) -> None:
        """Wait until it has subscribed and its producer is open."""
        self.streams = self.generator.line()["streams"]
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until and self.process.running:
            try:
                ask(f"http://127.0.0.1:{self._port}/ready", timeout=2)
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"shard {self.number} did not become ready: {self.process.log.read_text()[-2000:]}")

    def go(self) -> None:
        """Begin to send."""
        self._cpu_before = self.process.cpu_seconds()
        self.generator.say("go")
        self._started_at = float(self.generator.line()["at"])

    def look(self) -> None:
        """Take note of how far it is."""
        if self.done_at or not self.process.running:
            return
        self.progress.count = json.loads(ask(f"http://127.0.0.1:{self._port}/status", timeout=5))["kafka_produced"]
        if self.progress.count >= self.frames:
            self.done_at = time.monotonic()
            self._cpu = self.process.cpu_seconds() - self._cpu_before

    def share(self) -> Share:
        """Return what it gave, once it is done."""
        count = self.progress.count
        seconds = self.done_at - self._started_at
        cpu_us = self._cpu / count * 1e6
        return Share(
            self.number, len(self.streams), count, count / seconds, cpu_us, self.process.memory_mb(peak=True)
        )


def run(count: int, arguments: argparse.Namespace, bootstrap_servers: str, rest_url: str) -> Outcome:
    """Run so many processes at the same time, each with the same number of frames."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-shards-")))
        topics = RunTopics(bootstrap_servers, peer=False)
        stack.callback(topics.close)
        variables = PIPELINES[arguments.pipeline].settings | topics.variables()
        variables |= {
            "BINANCE_REST_BASE_URL": rest_url,
            "BINANCE_STREAMS": loads.streams(arguments.load),
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "CONNECTION_BATCH_TIMEOUT_SECONDS": "0.2",
            "SPOOL_PATH": str(folder / "spool"),
            "SHARD_COUNT": str(count),
        }
        shards = [Shard(number, arguments, folder, variables) for number in range(count)]
        for shard in shards:
            stack.callback(shard.generator.stop)
            stack.callback(shard.process.stop)
        for shard in shards:
            shard.wait_ready()
        time.sleep(0.3)
        return _measured(shards, arguments.load, topics)


def _measured(shards: Sequence[Shard], load: str, topics: RunTopics) -> Outcome:
    started_at, idle_before = time.monotonic(), idle_core_seconds()
    for shard in shards:
        shard.go()
    seen, moved_at = -1, started_at
    while not all(shard.done_at for shard in shards) and time.monotonic() - moved_at < STALLED_SECONDS:
        for shard in shards:
            shard.look()
        total = sum(shard.progress.count for shard in shards)
        if total > seen:
            seen, moved_at = total, time.monotonic()
        time.sleep(POLL_SECONDS)
    unfinished = [shard.number for shard in shards if not shard.done_at]
    if unfinished:
        return Outcome([], 0.0, 0.0, f"shards {unfinished} did not deliver everything")
    shares = [shard.share() for shard in shards]
    idle = (idle_core_seconds() - idle_before) / (time.monotonic() - started_at)
    seconds = max(shard.done_at for shard in shards) - started_at
    cores = sum(share.cpu_us * share.delivered for share in shares) / 1e6 / seconds
    behind = max(float(shard.generator.line()["behind_seconds"]) for shard in shards)
    exit_codes = [shard.process.stop() for shard in shards]
    fault = _overlap(shards, load) or ("" if not any(exit_codes) else f"exit codes {exit_codes}")
    fault = fault or topics.verdict(_sent(shards, load))
    rate = sum(share.delivered for share in shares) / seconds
    return Outcome(shares, rate, cores, fault, idle, shards[0].offered, behind)


def _overlap(shards: Sequence[Shard], load: str) -> str:
    """Say which streams are on no shard or on several."""
    subscribed = Counter(stream for shard in shards for stream in shard.streams)
    wrong = {stream: subscribed[stream] for stream in loads.streams(load).split(",") if subscribed[stream] != 1}
    return f"subscribed to so often: {wrong}" if wrong else ""


def _sent(shards: Sequence[Shard], load: str) -> Counter[loads.Line]:
    sent: Counter[loads.Line] = Counter()
    for shard in shards:
        sent.update(loads.counts(load, shard.frames, shard.streams))
    return sent


def report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Print a table and return what it says."""
    alone = outcomes[0].shares[0]
    print(
        f"{'processes':>9} {'shard':>6} {'streams':>8} {'msg/s':>10} {'of the first':>13} {'us CPU':>7} {'MB':>5}"
    )
    for outcome in outcomes:
        for share in outcome.shares:
            print(
                f"{len(outcome.shares):9} {share.shard:6} {share.streams:8} {share.rate:10,.0f} "
                f"{share.rate / alone.rate:12.0%} {share.cpu_us:8.2f} {share.peak_mb:5.0f}"
            )
    for outcome in outcomes:
        times, cost = outcome.rate / outcomes[0].rate, max(s.cpu_us for s in outcome.shares) / alone.cpu_us
        print(
            f"{len(outcome.shares)} processes: {outcome.rate:,.0f} msg/s, x {times:.2f} of one; they used "
            f"{outcome.cores:.2f} of {os.cpu_count()} cores beside broker and load, {outcome.idle:.2f} were idle; "
            f"CPU a message x {cost:.2f}"
            + (f"; the generators were up to {outcome.behind_seconds:.2f} s behind" if outcome.offered else "")
        )
    rows = [outcome._asdict() | {"shares": [s._asdict() for s in outcome.shares]} for outcome in outcomes]
    return {"outcomes": rows, "verdicts": [verdict(outcomes[0], added)._asdict() for added in outcomes[1:]]}


class Verdict(NamedTuple):
    """What the weakest of several processes brought of what the first brings alone."""

    processes: int
    offered: float | None
    ratio: float
    cpu_ratio: float
    """CPU a message of the dearest, over that of the first alone."""
    idle: float
    word: str
    """`holds`, `MISSED`, or `cores used up`, `the first alone falls short`: then nothing follows from it."""

    def __str__(self) -> str:
        offered = f"{self.offered:,.0f} msg/s offered to each" if self.offered else "as many as they take"
        return (
            f"{self.word}: {self.processes} processes, {offered}: each brings at least {self.ratio:.1%} of the "
            f"first alone (at least {LEAST_RATIO:.0%}), CPU a message x {self.cpu_ratio:.2f}, "
            f"{self.idle:.2f} cores idle"
        )


def verdict(first: Outcome, added: Outcome) -> Verdict:
    """Judge what added processes bring."""
    alone = first.shares[0]
    ratio = min(share.rate for share in added.shares) / alone.rate
    if added.offered and alone.rate < LEAST_KEPT * added.offered:
        word = "the first alone falls short"
    else:
        word = _word(ratio, added.idle)
    cpu_ratio = max(share.cpu_us for share in added.shares) / alone.cpu_us
    return Verdict(len(added.shares), added.offered, ratio, cpu_ratio, added.idle, word)


def _word(ratio: float, idle: float) -> str:
    return "holds" if ratio >= LEAST_RATIO else "MISSED" if idle >= LEAST_IDLE else "cores used up"


def closed_loop(
    arguments: argparse.Namespace, bootstrap_servers: str, rest_url: str
) -> tuple[dict[str, Any], int]:
    """Run one to `--processes` as fast as they go, in rounds; of each the median in messages a second is told."""
    counts = range(1, arguments.processes + 1)
    tried: dict[int, list[Outcome]] = {count: [] for count in counts}
    for number in range(arguments.rounds):
        for count in counts if number % 2 == 0 else reversed(counts):
            tried[count].append(run(count, arguments, bootstrap_servers, rest_url))
            if tried[count][-1].fault:
                print(f"FAULT with {count} processes: {tried[count][-1].fault}")
                return {}, 1
    found = report([sorted(each, key=lambda one: one.rate)[len(each) // 2] for each in tried.values()])
    _told_verified([one for each in tried.values() for one in each])
    return found, 0


def paced(arguments: argparse.Namespace, bootstrap_servers: str, rest_url: str) -> tuple[dict[str, Any], int]:
    """Run one to `--processes` at each rate, until one does not fit."""
    found: list[dict[str, Any]] = []
    for rate in (float(text) for text in arguments.paced.split(",")):
        offered = argparse.Namespace(**vars(arguments) | {"rate": rate, "frames": int(rate * arguments.seconds)})
        outcomes = []
        for count in range(1, arguments.processes + 1):
            outcomes.append(run(count, offered, bootstrap_servers, rest_url))
            if outcomes[-1].fault:
                print(f"FAULT with {count} processes at {rate:,.0f} msg/s each: {outcomes[-1].fault}")
                return {"rates": found}, 1
        found.append(report(outcomes))
        _told_verified(outcomes)
        verdicts = [verdict(outcomes[0], added) for added in outcomes[1:]]
        print("\n".join(map(str, verdicts)), flush=True)
        if any(each.word != "holds" for each in verdicts):
            break
    missed = any(each["word"] == "MISSED" for row in found for each in row["verdicts"])
    return {"rates": found}, int(missed)


def _told_verified(outcomes: Sequence[Outcome]) -> None:
    records = sum(share.delivered for outcome in outcomes for share in outcome.shares)
    print(
        f"{records:,} records read back: none missing, none twice, in order; every stream on one shard", flush=True
    )


def main() -> int:
    """Read the arguments, run, print; exit code 1 when a record is missing, doubled or out of order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broker", choices=sorted(BROKERS), default="embedded")
    parser.add_argument("--pipeline", choices=("seeds", "fast"), default="fast")
    parser.add_argument("--load", choices=("trades", "realistic"), default="trades")
    parser.add_argument("--processes", type=int, default=2, help="at most so many")
    parser.add_argument("--frames", type=int, default=600_000, help="for each process")
    parser.add_argument("--rounds", type=int, default=3, help="without --paced: how often, the order turned")
    parser.add_argument("--paced", help="instead: messages a second for each process; comma-separated")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run with --paced")
    parser.set_defaults(rate=None)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    measure = paced if arguments.paced else closed_loop
    with (
        tempfile.TemporaryDirectory(prefix="bench-broker-") as folder,
        BROKERS[arguments.broker](Path(folder)) as broker,
        RestServer() as rest,
    ):
        started, load_before = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), load_average()
        found, exit_code = measure(arguments, broker.bootstrap_servers, rest.url)
    about = {
        "command": " ".join(["python -m benchmarks.shards", *sys.argv[1:]]),
        "machine": machine(),
        "started": started,
        "load_average": [load_before, load_average()],
        "load": arguments.load,
        "pipeline": arguments.pipeline,
        "broker": arguments.broker,
        "frames": arguments.frames,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
    }
    into = ROOT / "build" / "bench"
    into.mkdir(parents=True, exist_ok=True)
    name = "shards-paced.json" if arguments.paced else "shards.json"
    (into / name).write_text(json.dumps(about | found, indent=1) + "\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
