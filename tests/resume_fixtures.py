"""What resume and checkpoints are tested with: one run of the service's parts from buffer to Kafka, and its end.

`Run` is what a process does, in this process; to `die` is to leave everything as `kill -9` would, as far as Kafka
and the disk can tell.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from config.kafka import KafkaConfig
from config.settings import DeliveryConfig, SpoolConfig
from src.checkpoints import CheckpointWriter, every_stream
from src.coverage import Coverage, Place, sent_at
from src.deadline import Deadline
from src.decoder import EventDecoder
from src.delivery import Delivery
from src.kafka_producer import KafkaSink, topic_names
from src.lost import Lost
from src.resume import Resume
from src.spool import Spool
from src.telemetry import Telemetry
from tests.broker_fixtures import create_topics, fresh_topics, read_all
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from src.events import Event
    from src.holes import Position
    from src.worker import Worker


def wait_until(holds: Callable[[], Any], what: str, within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)


def kafka_config(bootstrap_servers: str, partitions: int = 3, *, checkpoints: bool = True) -> KafkaConfig:
    """Make fresh topics and settings that name them."""
    unique = uuid.uuid4().hex[:12]
    topics = fresh_topics(bootstrap_servers, partitions=partitions)
    if checkpoints:
        create_topics(bootstrap_servers, [f"checkpoints-{unique}"])
    return KafkaConfig(
        bootstrap_servers=(bootstrap_servers,),
        topic_raw_events=topics.raw,
        topic_trades=topics.trades,
        topic_depth=topics.depth,
        topic_dead_letters=f"dead-{unique}",
        topic_gaps=f"gaps-{unique}",
        topic_checkpoints=f"checkpoints-{unique}",
    )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def trade(symbol: str, number: int) -> bytes:
    return frame(f"{symbol.lower()}@trade", {"e": "trade", "E": now_ms(), "s": symbol, "t": number, "p": "1.0"})


def aggregate(symbol: str, number: int) -> bytes:
    return frame(
        f"{symbol.lower()}@aggTrade", {"e": "aggTrade", "E": now_ms(), "s": symbol, "a": number, "p": "1.0"}
    )


def depth(symbol: str, first: int, last: int, stream: str = "depth@100ms") -> bytes:
    payload = {"e": "depthUpdate", "E": now_ms(), "s": symbol, "U": first, "u": last, "b": [], "a": [["1", "2"]]}
    return frame(f"{symbol.lower()}@{stream}", payload)


def bar(symbol: str, opened: int, *, closed: bool, interval: str = "1m") -> bytes:
    inner = {"t": opened, "T": opened + 59_999, "s": symbol, "i": interval[:2], "x": closed}
    stream = f"{symbol.lower()}@kline_{interval}"
    return frame(stream, {"e": "kline", "E": now_ms(), "s": symbol, "k": inner})


def frame(stream: str, payload: dict[str, Any]) -> bytes:
    return json.dumps({"stream": stream, "data": payload}, separators=(",", ":")).encode()


class Standing:
    """Stands in for `Continuity`: counts what passes, knows the positions, fills nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0
        self.coverage = Coverage({})
        self._early: list[tuple[Place, int]] = []
        self.resumed: dict[str, Position] | None = None
        self.until_ms = 0

    def put(self, events: Iterable[Event], accept: Callable[[list[Event]], None]) -> None:
        with self._lock:
            events = list(events)
            for event in events:
                if event.first_id >= 0:
                    self._saw(
                        Place(event.route.stream, event.first_id, event.last_id, event.final),
                        sent_at(event.value, event.route.event_type.encode(), event.timestamp_ms),
                    )
            self.count += len(events)
            accept(events)

    def positions(self) -> tuple[int, dict[str, Position]]:
        with self._lock:
            return self.count, self.coverage.positions()

    def resume(self, positions: dict[str, Position], until_ms: int = 0) -> None:
        with self._lock:
            self.resumed, self.until_ms = positions, until_ms
            self.coverage = Coverage(positions)
            for seen, at_ms in self._early:
                self.coverage.saw(seen, at_ms)
            self._early.clear()

    def _saw(self, seen: Place, at_ms: int) -> None:
        self.coverage.saw(seen, at_ms)
        if self.resumed is None:
            self._early.append((seen, at_ms))


class Run:
    """From the decoder to Kafka, with checkpoints, as one run of the service."""

    def __init__(  # noqa: PLR0913 - each has its default
        self,
        kafka: KafkaConfig,
        folder: Path,
        *,
        interval: float = 0.2,
        timeout: float = 20.0,
        in_flight: int = 200_000,
        shard: str = "0/1",
        ours: Callable[[str], bool] = every_stream,
    ) -> None:
        self.kafka = kafka
        self.telemetry = Telemetry()
        self.ended: list[Worker] = []
        self.spool = Spool(SpoolConfig(path=folder, min_free_bytes=0))
        self.sink = KafkaSink(
            kafka, DeliveryConfig(max_in_flight_records=in_flight), self.telemetry, self.ended.append
        )
        self.lost = Lost()
        self.delivery = Delivery(
            self.sink, self.spool, kafka.topic_trades, self.telemetry, self.ended.append, self.lost
        )
        self.standing = Standing()
        self.resume = Resume(
            kafka,
            topic_names(kafka),
            timeout,
            self.spool,
            self.delivery,
            self.standing,
            self.telemetry,
            self.ended.append,
            lambda: self.sink.ready,
            ours,
        )
        self.checkpoints = CheckpointWriter(
            kafka,
            interval,
            self.sink,
            self.delivery,
            self.standing,
            self.telemetry,
            self.ended.append,
            lambda: self.resume.done,
            self.lost,
            shard,
        )
        self._decoder = EventDecoder(topic_names(kafka))
        self._open = True

    def start(self, *, resumed: bool = True) -> Run:
        self.resume.start()
        self.delivery.start()
        self.checkpoints.start()
        if resumed:
            wait_until(lambda: self.resume.done, "resumed")
        return self

    def feed(self, frames: Sequence[bytes]) -> list[Event]:
        at = now_ms()
        decoded = self._decoder.decode(list(frames), at)
        self.telemetry.received(decoded, at)
        self.standing.put(decoded.events, self.delivery.accept)
        return decoded.events

    def decoded(self, frames: Sequence[bytes]) -> list[Event]:
        return self._decoder.decode(list(frames), now_ms()).events

    def delivered(self) -> None:
        wait_until(lambda: not self.sink.in_flight.records and not self.spool.count, "everything is in Kafka")

    def checkpointed(self, more: int = 2) -> None:
        """Wait for a checkpoint that began after this call."""
        before = self["checkpoints_written"]
        wait_until(lambda: self["checkpoints_written"] >= before + more, "a checkpoint")

    def __getitem__(self, name: str) -> Any:
        return self.telemetry.snapshot()[name]

    @property
    def found(self) -> dict[str, Position]:
        """The positions that were found, without their times."""
        assert self.standing.resumed is not None
        return {name: each._replace(at_ms=0) for name, each in self.standing.resumed.items()}

    def close(self, seconds: float = 10.0) -> None:
        """End in order."""
        if not self._open:
            return
        self._open = False
        deadline = Deadline(seconds)
        self.resume.close(deadline.remaining())
        self.delivery.finish(deadline)
        self.checkpoints.close(deadline)
        self.delivery.close(deadline)
        assert [worker.failure for worker in self.ended if worker.failure] == []
        assert balanced(self.telemetry.snapshot()), self.telemetry.snapshot()

    def die(self) -> None:
        """End without a last checkpoint."""
        self.checkpoints._resumed = lambda: False
        self.close()


class Truth:
    """What stands in Kafka, read by the tests' own consumer and parsed by the standard library."""

    _FIELDS = {  # noqa: RUF012
        "trade": lambda event: (f"{event['s'].lower()}@trade", event["t"], event["t"], True),
        "aggregate_trade": lambda event: (f"{event['s'].lower()}@aggTrade", event["a"], event["a"], True),
        "kline": lambda event: (
            event.get("stream") or f"{event['s'].lower()}@kline_{event['k']['i']}",
            event["k"]["t"],
            event["k"]["T"],
            event["k"]["x"],
        ),
    }

    def __init__(self, kafka: KafkaConfig) -> None:
        self.ids: dict[str, list[int]] = defaultdict(list)
        self.values: list[bytes] = []
        self.final: dict[str, bool] = {}
        for record in read_all(kafka.bootstrap_servers[0], *dict.fromkeys(topic_names(kafka)), timeout=60):
            assert record.value is not None
            self.values.append(record.value)
            event = json.loads(record.value)
            if (fields := self._FIELDS.get(event["event_type"])) is None:
                continue
            stream, _, last, final = fields(event)
            self.ids[stream].append(last)
            self.final[stream] = final

    def last(self, stream: str) -> int:
        return max(self.ids[stream])

    def missing(self, stream: str) -> set[int]:
        """Return the ids between the first and the last that are not there."""
        ids = set(self.ids[stream])
        return set(range(min(ids), max(ids))) - ids


def expanded(position: Position) -> set[int]:
    return {number for first, last in position.missing for number in range(first, last + 1)}
