"""`python -m benchmarks.resume`: how long a start takes that has to find where 500 symbols stand in Kafka.

The real service on the embedded broker, with two streams a symbol, a checkpoint of all of them and the tail that a
killed run left behind it. Told are the seconds of the search, and those from the start of the process to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kafka import KafkaProducer

from config.kafka import KafkaConfig
from sandbox.brokers import EmbeddedBroker
from src import topics
from src.checkpoints import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

WANTED_SECONDS = 5.0
_REPOSITORY = Path(__file__).resolve().parent.parent
_KINDS = (("trade", "trade", "t"), ("aggTrade", "aggregate_trade", "a"))


def main() -> int:
    """Measure and print; return 1 when the search takes longer than it may."""
    asked = _command_line()
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(Path(folder) / "broker") as broker:
        kafka = KafkaConfig(bootstrap_servers=(broker.bootstrap_servers,))
        _fill(kafka, asked.symbols, asked.tail)
        found, total = _started(kafka, asked.symbols, Path(folder))
    rate = found["records"] / found["seconds"]
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)  # the broker is no child of this process that has ended
    print(
        f"{found['streams']} streams, {found['records']:,} records behind the checkpoint: found in "
        f"{found['seconds']:.2f} s ({rate:,.0f} records/s), {total:.2f} s from the start of the process, which "
        f"took {cpu.ru_utime + cpu.ru_stime:.2f} s of CPU"
    )
    return 0 if found["seconds"] < WANTED_SECONDS and found["missing"] == 0 else 1


def _fill(kafka: KafkaConfig, symbols: int, tail: int) -> None:
    from kafka.admin import KafkaAdminClient  # noqa: PLC0415

    with KafkaAdminClient(bootstrap_servers=list(kafka.bootstrap_servers)) as admin:
        topics.create_topics(admin, topics.wanted_topics(kafka))
    producer = KafkaProducer(
        bootstrap_servers=list(kafka.bootstrap_servers),
        compression_type="snappy",
        batch_size=128 * 1024,
        linger_ms=10,
    )
    for key, value in _checkpoint(kafka, symbols):
        producer.send(kafka.topic_checkpoints, value, key=key)
    for symbol, value in _tail(symbols, tail):
        producer.send(kafka.topic_trades, value, key=symbol.encode(), timestamp_ms=_now_ms())
    producer.flush()
    producer.close()


def _names(symbols: int) -> list[str]:
    return [f"SYM{number:04}USDT" for number in range(symbols)]


def _checkpoint(kafka: KafkaConfig, symbols: int) -> Iterator[tuple[bytes, bytes]]:
    for symbol in _names(symbols):
        for kind, _, _ in _KINDS:
            stream = f"{symbol.lower()}@{kind}"
            stands = {"stream": stream, "last": 0, "missing": [], "final": True}
            yield stream.encode(), _json(stands | {"at_ms": _now_ms(), "shard": "0/1", "version": VERSION})
    data = (kafka.topic_trades, kafka.topic_depth, kafka.topic_raw_events)
    offsets = {topic: {str(number): 0 for number in range(kafka.partitions)} for topic in data}
    yield (
        b"positions 0/1",
        _json({"offsets": offsets, "at_ms": _now_ms(), "version": VERSION}),
    )


def _tail(symbols: int, records: int) -> Iterator[tuple[str, bytes]]:
    names = _names(symbols)
    for number in range(records):
        round_, place = divmod(number, symbols * len(_KINDS))
        symbol, (kind, event_type, field) = names[place // len(_KINDS)], _KINDS[place % len(_KINDS)]
        now = _now_ms()
        event = {"e": kind, "E": now, "s": symbol, field: round_ + 1, "p": "0.00100000", "q": "100.00000000"}
        event |= {"f": 100, "l": 105, "T": now, "m": True, "M": True, "ingestion_timestamp": now}
        event |= {"source": "binance_websocket", "event_type": event_type, "pipeline_version": "1.0.0"}
        yield symbol, _json(event)


def _started(kafka: KafkaConfig, symbols: int, folder: Path) -> tuple[dict[str, Any], float]:
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers[0],
        "BINANCE_SYMBOLS": ",".join(_names(symbols)),
        "BINANCE_STREAM_TYPES": ",".join(kind for kind, _, _ in _KINDS),
        "BINANCE_WS_BASE_URL": "ws://127.0.0.1:9",  # nobody is there, and nothing is read
        "BINANCE_REST_BASE_URL": "http://127.0.0.1:9",
        "BACKFILL_ENABLED": "false",
        "CONNECTION_MAX_RETRIES": "0",
        "SPOOL_PATH": str(folder / "spool"),
        "SPOOL_MIN_FREE_BYTES": "0",
        "MONITORING_PORT": "0",
    }
    begun = time.monotonic()
    command = [sys.executable, str(_REPOSITORY / "main.py")]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            lines = (json.loads(line) for line in process.stdout)
            found = next(line for line in lines if line["event"] == "positions_found")
            return found, time.monotonic() - begun
        finally:
            process.terminate()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__)
    parser.add_argument("--symbols", type=int, default=500)
    parser.add_argument("--tail", type=int, default=100_000, help="records behind the checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
