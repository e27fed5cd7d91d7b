"""`python -m benchmarks.bench`: sustained throughput from socket to ack, CPU a message, memory; ours and naive.

For each pipeline the offered rate climbs a ladder until it is not sustained: a rate is sustained when every
record is in the topics within 1.5 s of the last frame and the load generator never fell more than 0.5 s behind.
Each step is the real process, a broker with fresh topics, and a load generator of its own process. The best step
of the service is read back from the topics and every id checked. Results: a table, and JSON with `--json FILE`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaConsumer, TopicPartition
    from kafka.admin import KafkaAdminClient, NewTopic

from sandbox.brokers import BROKERS

ROOT = Path(__file__).parent.parent
SERVICE = ["main.py"]
NAIVE = ["-m", "benchmarks.naive"]
FAST = {"KAFKA_BATCH_SIZE": "131072", "KAFKA_LINGER_MS": "20", "KAFKA_COMPRESSION": "lz4"}
STEP = 1.25
GRACE = 1.5
BEHIND = 0.5
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Pipeline:
    """One thing to measure: a command, its settings, where its ladder starts."""

    name: str
    command: list[str]
    settings: dict[str, str]
    first_rate: int


PIPELINES = {
    "naive": Pipeline("naive reference", NAIVE, {}, 6_000),
    "default": Pipeline("service, default settings", SERVICE, {}, 30_000),
    "fast": Pipeline("service, high-throughput settings", SERVICE, FAST, 60_000),
}


@dataclass
class Step:
    """What one run at one rate gave."""

    pipeline: str
    mix: str
    offered: float
    delivered: float
    """Records a second from the first frame sent to the last record in a topic."""
    cpu_us: float
    """CPU time of the process over messages, in microseconds; start-up is left out."""
    peak_mb: float
    sustained: bool
    note: str = ""


class Topics:
    """Three fresh topics on a broker, and how many records they hold."""

    def __init__(self, bootstrap_servers: str) -> None:
        tag = uuid.uuid4().hex[:8]
        self.names = [f"bench-{kind}-{tag}" for kind in ("raw", "trades", "depth")]
        admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
        admin.create_topics([NewTopic(name, num_partitions=3, replication_factor=1) for name in self.names])
        admin.close()
        self._consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, fetch_max_bytes=8 << 20)
        self._partitions = [TopicPartition(name, number) for name in self.names for number in range(3)]
        self._consumer.assign(self._partitions)

    def count(self) -> int:
        """Return how many records are there."""
        return sum(self._consumer.end_offsets(self._partitions).values())

    def faults(self, expected: int) -> str:
        """Read everything; name what is missing, doubled or out of order per symbol; empty when nothing is."""
        self._consumer.seek_to_beginning()
        seen = bytearray(expected)
        last: dict[tuple[str, bytes], int] = {}
        read = 0
        while read < expected:
            polled = self._consumer.poll(timeout_ms=5000, max_records=5000)
            if not polled:
                return f"only {read} of {expected} records could be read"
            for partition, records in polled.items():
                for record in records:
                    read += 1
                    number = _number(record.value)
                    if seen[number]:
                        return f"record {number} is there twice"
                    seen[number] = 1
                    line = (partition.topic, record.key)
                    if last.get(line, -1) >= number:
                        return f"record {number} came after {last[line]} of {line}"
                    last[line] = number
        return "" if all(seen) else f"{seen.count(0)} records are missing"

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def _number(value: bytes) -> int:
    event = json.loads(value)
    return int(event["a"] if event["e"] == "aggTrade" else event["u"])


class Process:
    """A child process: its lines of JSON, its CPU time and memory."""

    def __init__(self, arguments: list[str], environment: dict[str, str], output: IO[str] | int) -> None:
        self._child = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, stdout=output, text=True
        )

    def line(self) -> dict[str, object]:
        """Return the next JSON line of its output."""
        assert self._child.stdout is not None  # noqa: S101
        parsed: dict[str, object] = json.loads(self._child.stdout.readline())
        return parsed

    def cpu_seconds(self) -> float:
        """Return user and system time so far."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def peak_mb(self) -> float:
        """Return the largest resident memory so far."""
        status = Path(f"/proc/{self._child.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> int:
        """End it by SIGTERM; return its exit code."""
        self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(40)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()


def run(  # noqa: PLR0913 - one run has that many facts
    pipeline: Pipeline, mix: str, rate: float, seconds: float, bootstrap_servers: str, *, verify: bool = False
) -> Step:
    """Offer `rate` frames a second for `seconds` and see what arrives."""
    topics = Topics(bootstrap_servers)
    load = Process(
        ["-m", "benchmarks.load", "--rate", str(rate), "--seconds", str(seconds), "--mix", mix],
        {},
        subprocess.PIPE,
    )
    started = load.line()
    raw, trades, depth = topics.names
    environment = pipeline.settings | {
        "BINANCE_WS_BASE_URL": str(started["ws"]),
        "BINANCE_STREAMS": "btcusdt@aggTrade",
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "KAFKA_TOPIC_RAW_EVENTS": raw,
        "KAFKA_TOPIC_TRADES": trades,
        "KAFKA_TOPIC_DEPTH": depth,
        "MONITORING_PORT": "0",
        "CONNECTION_BATCH_TIMEOUT_SECONDS": "0.2",  # the clock runs until the last, incomplete batch is there
    }
    log = Path(tempfile.gettempdir()) / "binance-ingestion-bench.log"
    with log.open("w") as output, tempfile.TemporaryDirectory(prefix="binance-ingestion-bench-") as spool:
        process = Process(pipeline.command, environment | {"SPOOL_PATH": spool}, output)
        sending_at = float(str(load.line()["at"]))
        cpu_before = process.cpu_seconds()
        expected = int(str(started["frames"]))
        done_at = _await(topics, expected, sending_at + seconds + 20)
        cpu, peak = process.cpu_seconds() - cpu_before, process.peak_mb()
        exit_code = process.stop()
    behind = float(str(load.line()["behind_seconds"]))
    load.stop()
    count = topics.count()
    note = topics.faults(expected) if verify and count == expected else ""
    topics.close()
    if count != expected or (exit_code and pipeline.command == SERVICE):
        note = note or f"{count} of {expected} arrived, exit code {exit_code}, log in {log}"
    sustained = not note and done_at - sending_at <= seconds + GRACE and behind <= BEHIND
    delivered = count / (done_at - sending_at)
    return Step(pipeline.name, mix, rate, delivered, cpu / max(count, 1) * 1e6, peak, sustained, note)


def _await(topics: Topics, expected: int, until: float) -> float:
    """Wait for the records; return when the last one was there."""
    while topics.count() < expected and time.time() < until:
        time.sleep(0.1)
    return time.time()


def climb(pipeline: Pipeline, mix: str, seconds: float, bootstrap_servers: str) -> Step:
    """Raise the rate until it is not sustained; return the last step that was, verified record by record."""
    rate, best = float(pipeline.first_rate), None
    while True:
        step = run(pipeline, mix, rate, seconds, bootstrap_servers, verify=pipeline.command == SERVICE)
        _tell(step)
        if not step.sustained:
            if best is None and rate > 500:  # noqa: PLR2004 - below, something is broken
                rate /= 2
                continue
            return best or step
        best = step
        rate *= STEP


def _tell(step: Step) -> None:
    verdict = "sustained" if step.sustained else "not sustained"
    print(
        f"{step.pipeline:36}{step.mix:11}{step.offered:9.0f}/s offered {step.delivered:9.0f}/s delivered "
        f"{step.cpu_us:7.1f} us CPU a message {step.peak_mb:6.0f} MB  {verdict}  {step.note}",
        flush=True,
    )


def report(best: dict[str, Step]) -> None:
    """Print the table, with ratios to the reference of the same run."""
    print(f"\n{'':36}{'mix':11}{'msg/s':>9}{'x naive':>9}{'us CPU':>9}{'peak MB':>9}")
    reference = best.get("naive")
    for step in best.values():
        ratio = f"{step.delivered / reference.delivered:.1f}" if reference else "-"
        print(
            f"{step.pipeline:36}{step.mix:11}{step.delivered:9.0f}{ratio:>9}{step.cpu_us:9.1f}{step.peak_mb:9.0f}"
        )


def main() -> int:
    """Run the ladders; return 1 when a best step of the service is below what it is to reach here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broker", choices=sorted(BROKERS), default="embedded")
    parser.add_argument("--pipelines", default="naive,default,fast", help="comma-separated")
    parser.add_argument("--mix", choices=("trades", "realistic"), default="trades")
    parser.add_argument("--seconds", type=float, default=5, help="of load a step")
    parser.add_argument("--json", type=Path, help="write the results there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, BROKERS[arguments.broker](Path(folder)) as broker:
        best = {
            name: climb(PIPELINES[name], arguments.mix, arguments.seconds, broker.bootstrap_servers)
            for name in arguments.pipelines.split(",")
        }
    report(best)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(step) for step in best.values()], indent=2) + "\n")
    return 0 if all(step.sustained for step in best.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
