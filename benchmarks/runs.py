"""One run: a pipeline, a load, fresh topics; how fast it was, at what cost, and whether everything arrived."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import trustme

from benchmarks import loads, peer_venv
from benchmarks.children import ROOT, Child, load_average
from benchmarks.follower import Follower
from benchmarks.latency import legs
from benchmarks.load import Progress
from benchmarks.rest import LIVE
from benchmarks.topics import RunTopics
from sandbox.brokers import free_port
from sandbox.near import ask

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
POLL_SECONDS = 0.05
STALLED_SECONDS = 10.0
"""Without a new record in the topics for so long, a run is over."""
READY_SECONDS = 30.0
SETTLE_SECONDS = 1.5
"""Time for a pipeline that cannot say when it is ready, after it has connected to the exchange."""
HIGH_THROUGHPUT = {"KAFKA_BATCH_SIZE": "131072", "KAFKA_LINGER_MS": "20", "KAFKA_COMPRESSION": "lz4"}


@dataclass(frozen=True)
class Pipeline:
    """Something to measure: how it is started, its settings, how many frames may be ahead of its records."""

    name: str
    arguments: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)
    window: int = 20_000
    expected_rate: dict[str, int] = field(default_factory=dict)
    """Messages a second, roughly, by load: decides how many are sent, not how fast."""
    product: bool = True
    tls: bool = False
    """Whether its frames come over TLS, as those of the exchange do."""

    @property
    def is_peer(self) -> bool:
        """Whether it is somebody else's program, in its own environment."""
        return self.arguments == ("-m", "benchmarks.peer")

    def load(self, load: str) -> str:
        """Return the load in the kinds of event that it can take."""
        return "peer" if self.is_peer and load == "realistic" else load


PIPELINES = {
    "naive": Pipeline(
        "naive reference",
        ("-m", "benchmarks.naive"),
        window=4_000,
        expected_rate={"trades": 9_000, "realistic": 6_000},
        product=False,
    ),
    "peer": Pipeline(
        "cryptofeed",
        ("-m", "benchmarks.peer"),
        window=1_000,
        expected_rate={"trades": 5_000, "realistic": 5_000},
        product=False,
    ),
    "seeds": Pipeline(
        "service, the seeds' settings",
        (str(ROOT / "main.py"),),
        expected_rate={"trades": 165_000, "realistic": 55_000},
    ),
    "fast": Pipeline(
        "service, high-throughput settings",
        (str(ROOT / "main.py"),),
        HIGH_THROUGHPUT,
        expected_rate={"trades": 200_000, "realistic": 80_000},
    ),
    "tls": Pipeline(
        "service, high-throughput settings, TLS",
        (str(ROOT / "main.py"),),
        HIGH_THROUGHPUT,
        expected_rate={"trades": 150_000, "realistic": 60_000},
        tls=True,
    ),
}


@dataclass
class Result:
    """What one run gave. Rates in messages a second, times of CPU in microseconds a message, memory in MB."""

    pipeline: str
    load: str
    frames: int
    delivered: int
    rate: float
    """From the moment the first frame is handed to the kernel to the last record in the topics."""
    cpu_us: float
    """CPU time of the process from `go` to the last record, over messages."""
    cores: float
    """The same CPU time over wall-clock time."""
    idle_mb: float
    peak_mb: float
    load_average: float
    generator: dict[str, float]
    fault: str = ""
    """Empty when every record was read back and is there once and in order, and the books of the service agree."""
    bytes_a_frame: float = 0.0
    offered: float | None = None
    """Messages a second, of a paced run."""
    legs: dict[str, dict[str, float]] = field(default_factory=dict)
    steady: dict[str, Any] = field(default_factory=dict)
    """Of a run that was watched for it: what it cost once it was under way, see `benchmarks/steady.py`."""


@dataclass(frozen=True)
class Look:
    """One look at a run: when (monotonic, s), frames' records in the topics, the process, its monitoring port."""

    at: float
    count: int
    child: Child
    port: int


@dataclass(frozen=True)
class Task:
    """What to run: paced at `rate` when that is given, else closed-loop."""

    pipeline: Pipeline
    load: str
    frames: int
    rate: float | None = None
    tick: float = 0.001
    arrivals: str = "even"
    """How a paced load is spaced: `even` or `recorded`."""
    stretch: int | None = None
    """How many frames the generator encodes ahead; None: all."""
    trace_every: int = 0
    """Traced, every so many events; 0: the product as it is."""
    settings: dict[str, str] = field(default_factory=dict)
    watch: Callable[[Look], None] | None = None
    """Called at each look at the topics."""
    look_seconds: float = POLL_SECONDS
    """Between two looks; each takes the caches of the cores that are measured."""
    follow: bool = False
    """Compare while it runs, and delete what was compared: for more records than the broker can keep."""


class Run:
    """Starts everything for a task, and ends it."""

    def __init__(self, task: Task, bootstrap_servers: str, rest_url: str) -> None:
        self._task = task
        self._load = task.pipeline.load(task.load)
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.topics = RunTopics(bootstrap_servers, peer=task.pipeline.is_peer)
        self._stack.callback(self.topics.close)
        self._progress = Progress.create(self._folder / "progress")
        self._authority = trustme.CA(key_type=trustme.KeyType.ECDSA) if task.pipeline.tls else None
        self._generator = self._start_generator()
        self._stack.callback(self._generator.stop)
        self._monitoring = free_port()
        self._child = self._start_pipeline(bootstrap_servers, rest_url)
        self._stack.callback(self._child.stop)
        self.follower = Follower(self.topics) if task.follow else None
        if self.follower:
            self._stack.callback(self.follower.close)
            self.follower.start()

    @property
    def generator_pid(self) -> int:
        """The process id of the load generator."""
        return self._generator.pid

    def _start_generator(self) -> Child:
        task = self._task
        pace = (
            ["--rate", str(task.rate), "--tick", str(task.tick), "--arrivals", task.arrivals] if task.rate else []
        )
        window = [] if task.rate else ["--window", str(task.pipeline.window)]
        files = ["--progress", str(self._folder / "progress"), "--blocks", str(self._folder / "blocks")]
        arguments = ["-m", "benchmarks.load", "--load", self._load, "--count", str(task.frames)]
        stretch = ["--stretch", str(task.stretch)] if task.stretch else []
        command = [sys.executable, *arguments, *pace, *window, *files, *stretch, *self._tls()]
        return Child("load", command, self._folder, {}, piped=True)

    def _tls(self) -> list[str]:
        """Write the certificates' files; return what the generator is told of its own."""
        if self._authority is None:
            return []
        file = self._folder / "server.pem"
        self._authority.cert_pem.write_to_path(str(self._folder / "authority.pem"))
        self._authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(file))
        return ["--tls", str(file)]

    def _start_pipeline(self, bootstrap_servers: str, rest_url: str) -> Child:
        task = self._task
        pipeline = task.pipeline
        variables = self.topics.variables() | {
            "BINANCE_WS_BASE_URL": f"{'wss' if pipeline.tls else 'ws'}://{HOST}:{self._generator.line()['port']}/ws",
            "BINANCE_REST_BASE_URL": rest_url if pipeline.is_peer else f"{rest_url}{LIVE}",
            "BINANCE_STREAMS": loads.streams(self._load),
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "MONITORING_PORT": str(self._monitoring),
            # The last, incomplete batch of a run is not to wait the usual 5 s: the clock runs until it is there.
            "CONNECTION_BATCH_TIMEOUT_SECONDS": "0.2",
            "SPOOL_PATH": str(self._folder / "spool"),
            "PEER_TOPIC_PREFIX": self.topics.tag,
            "PEER_CHANNELS": ",".join(loads.LOADS[self._load]),
            "TRACE_FILE": str(self._folder / "trace"),
            "TRACE_EVERY": str(task.trace_every),
        }
        python = str(peer_venv.python()) if pipeline.is_peer else sys.executable
        arguments = ["-m", "benchmarks.traced"] if task.trace_every else list(pipeline.arguments)
        trusted = {"SSL_CERT_FILE": str(self._folder / "authority.pem")} if pipeline.tls else {}
        settings = pipeline.settings | trusted | task.settings
        return Child("pipeline", [python, *arguments], self._folder, variables | settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> Result:
        """Run it through."""
        task = self._task
        self._wait_ready()
        idle_mb, cpu_before = self._child.memory_mb(), self._child.cpu_seconds()
        self._generator.say("go")
        started_at = float(self._generator.line()["at"])
        done_at = self._await_records()
        cpu = self._child.cpu_seconds() - cpu_before if self._child.running else 0.0
        count = self.topics.count() - self._extra()
        result = Result(
            pipeline=task.pipeline.name,
            load=task.load,
            frames=task.frames,
            delivered=count,
            rate=count / (done_at - started_at),
            cpu_us=cpu / max(count, 1) * 1e6,
            cores=cpu / (done_at - started_at),
            idle_mb=idle_mb,
            peak_mb=self._child.memory_mb(peak=True) if self._child.running else 0.0,
            load_average=load_average(),
            generator={},
            offered=task.rate,
        )
        exit_code = self._child.stop()
        sent = loads.counts(self._load, task.frames)
        result.fault = self._followed_fault() or self._fault(count, exit_code) or self._verdict(sent)
        if count == task.frames:
            self._add_generator(result)
            if task.trace_every:
                numbers = loads.numbers(self._load, task.frames)
                result.legs = legs(self._folder / "trace", self.blocks(), numbers)
        return result

    def _followed_fault(self) -> str:
        return self.follower.fault if self.follower else ""

    def _verdict(self, sent: dict[loads.Line, int]) -> str:
        if self.follower:
            return self.follower.verdict(sent, self.topics.count())
        return self.topics.verdict(sent)

    def blocks(self) -> list[tuple[int, int]]:
        """Return the generator's blocks: frames sent so far, and when (monotonic, ns)."""
        return [(sent, at) for sent, at in json.loads((self._folder / "blocks").read_text())]

    def _add_generator(self, result: Result) -> None:
        sent: dict[str, Any] = self._generator.line()
        result.bytes_a_frame = sent.pop("bytes_a_frame")
        result.generator = {key: round(value, 4) for key, value in sent.items() if key != "event"}

    def _extra(self) -> int:
        """Return how many records are no frame's: the service and the peer write each book once as it starts."""
        books = self._task.pipeline.is_peer or self._task.pipeline.product
        return len(loads.SYMBOLS) if books and self._task.load == "realistic" else 0

    def _wait_ready(self) -> None:
        try:
            self._generator.line()  # subscribed
        except RuntimeError as error:
            raise RuntimeError(
                f"{self._task.pipeline.name}: {error}: {self._child.log.read_text()[-2000:]}"
            ) from None
        if not self._task.pipeline.product:
            time.sleep(SETTLE_SECONDS)
            return
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until and self._child.running:
            try:
                ask(f"http://127.0.0.1:{self._monitoring}/ready", timeout=2)
            except OSError:
                time.sleep(0.05)
            else:
                time.sleep(0.3)
                return
        raise RuntimeError(f"the service did not become ready: {self._child.log.read_text()[-2000:]}")

    def _await_records(self) -> float:
        """Wait until all are in the topics, nothing comes any more or a fault is known; return when that was."""
        expected, seen, moved_at = self._task.frames + self._extra(), -1, time.monotonic()
        while seen < expected and time.monotonic() - moved_at < STALLED_SECONDS and not self._followed_fault():
            count = self.topics.count()
            self._progress.count = count
            if count > seen:
                seen, moved_at = count, time.monotonic()
            if self._task.watch:
                frames = max(0, count - self._extra())
                self._task.watch(Look(time.monotonic(), frames, self._child, self._monitoring))
            if seen < expected:
                time.sleep(self._task.look_seconds)
        return moved_at

    def _fault(self, count: int, exit_code: int) -> str:
        if count != self._task.frames:
            tail = self._child.log.read_text()[-1500:]
            return f"{count} of {self._task.frames} records arrived, exit code {exit_code}: {tail}"
        if not self._task.pipeline.product:
            return ""
        logged = self._child.logged()
        last = next(line for line in reversed(logged) if line["event"] == "service_metrics")
        agreed = last["messages_received"] == last["kafka_produced"] - self._extra() == count
        books = "" if agreed and exit_code == 0 else f"exit code {exit_code}, metrics {json.dumps(last)}"
        connected = next(line for line in logged if line["event"] == "kafka_connected")
        return books or ("" if connected["batchwise"] else "the service fell back to sending one by one")


def run(task: Task, bootstrap_servers: str, rest_url: str) -> Result:
    """Run one task on a broker; RuntimeError, with the end of its log, when the pipeline did not get going."""
    with Run(task, bootstrap_servers, rest_url) as prepared:
        return prepared.measure()
