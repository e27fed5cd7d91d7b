"""`python -m benchmarks.shards`: one process, then several shards of the streams, against one broker.

Each process has a load generator of its own that sends what it subscribed to, in a closed loop (or at `--rate`).
Tells throughput and CPU of each process, the ratio to one process alone, and reads every record back: all shards'
streams together are all of them, none is on two, and each record is there once and in order. Where the cores are
used up the rate of a process falls; what it costs in CPU must not.
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
from benchmarks.children import ROOT, Child, load_average, machine
from benchmarks.load import Progress
from benchmarks.rest import RestServer
from benchmarks.runs import PIPELINES, POLL_SECONDS, READY_SECONDS, STALLED_SECONDS
from benchmarks.topics import RunTopics
from sandbox.brokers import BROKERS, free_port
from sandbox.near import ask

if TYPE_CHECKING:
    from collections.abc import Sequence


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


class Shard:
    """One process and its load generator."""

    def __init__(
        self, number: int, arguments: argparse.Namespace, folder: Path, variables: dict[str, str]
    ) -> None:
        self.number = number
        self.frames = arguments.frames
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
    started_at = time.monotonic()
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
    seconds = max(shard.done_at for shard in shards) - started_at
    cores = sum(share.cpu_us * share.delivered for share in shares) / 1e6 / seconds
    exit_codes = [shard.process.stop() for shard in shards]
    fault = _overlap(shards, load) or ("" if not any(exit_codes) else f"exit codes {exit_codes}")
    fault = fault or topics.verdict(_sent(shards, load))
    return Outcome(shares, sum(share.delivered for share in shares) / seconds, cores, fault)


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
    for outcome in outcomes[1:]:
        times, cost = outcome.rate / outcomes[0].rate, max(s.cpu_us for s in outcome.shares) / alone.cpu_us
        print(
            f"{len(outcome.shares)} processes: {outcome.rate:,.0f} msg/s, x {times:.2f} of one; they used "
            f"{outcome.cores:.2f} of {os.cpu_count()} cores beside broker and load; CPU a message x {cost:.2f}"
        )
    return {
        "outcomes": [outcome._asdict() | {"shares": [s._asdict() for s in outcome.shares]} for outcome in outcomes]
    }


def main() -> int:
    """Read the arguments, run, print; exit code 1 when a record is missing, doubled or out of order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broker", choices=sorted(BROKERS), default="embedded")
    parser.add_argument("--pipeline", choices=("seeds", "fast"), default="fast")
    parser.add_argument("--load", choices=("trades", "realistic"), default="trades")
    parser.add_argument("--processes", type=int, default=2, help="at most so many")
    parser.add_argument("--frames", type=int, default=300_000, help="for each process")
    parser.add_argument(
        "--rate", type=float, help="messages a second for each process (default: as many as it takes)"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-broker-") as folder,
        BROKERS[arguments.broker](Path(folder)) as broker,
        RestServer() as rest,
    ):
        for count in range(1, arguments.processes + 1):
            outcomes.append(run(count, arguments, broker.bootstrap_servers, rest.url))
            if outcomes[-1].fault:
                print(f"FAULT with {count} processes: {outcomes[-1].fault}")
                return 1
    found = report(outcomes) | {"machine": machine(), "load_average": load_average()}
    records = sum(share.delivered for outcome in outcomes for share in outcome.shares)
    print(f"{records:,} records read back: none missing, none twice, in order; every stream on one shard")
    into = ROOT / "build" / "bench"
    into.mkdir(parents=True, exist_ok=True)
    (into / "shards.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
