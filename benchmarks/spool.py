"""`python -m benchmarks.spool`: how fast events go to disk and come from there, and what CPU each costs.

Spooling: batches of 100, as the buffer gives them at its default, appended to a fresh spool. Draining: chunks
read, and removed as Kafka would acknowledge them. Sustained: events come to the buffer at the pace that is wanted,
and what it gives is appended; its batches grow while the disk is slow, as in the service. No broker takes part.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings import SpoolConfig
from src.buffer import Buffer
from src.events import Event, Route
from src.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable

WANTED = {"spooling": 20_000, "draining": 40_000, "sustained": 20_000}
NEARLY = 0.97  # the last batch comes after the last event
_READ = 2_000
_ACKNOWLEDGED = 1_000


def main() -> int:
    """Measure, print a line for each direction; return 1 when one is slower than it has to be."""
    asked = _command_line()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        config = SpoolConfig(path=Path(folder), min_free_bytes=0, fsync=asked.fsync)
        with closing(Spool(config)) as spool:
            events = _events(asked.events, asked.size)
            rates = {
                "spooling": _measured("spooling", asked.events, lambda: _fill(spool, events, asked.batch)),
                "draining": _measured("draining", asked.events, lambda: _drain(spool)),
            }
            paced = min(asked.events, 5 * WANTED["spooling"])
            rates["sustained"] = _measured("sustained", paced, lambda: _follow(spool, events[:paced]))
    return 1 if any(rate < NEARLY * WANTED[name] for name, rate in rates.items()) else 0


def _fill(spool: Spool, events: list[Event], batch: int) -> None:
    for start in range(0, len(events), batch):
        spool.append(events[start : start + batch])


def _follow(spool: Spool, events: list[Event]) -> None:
    buffer = Buffer(batch_size=100, batch_timeout=5.0)
    feeder = threading.Thread(target=_feed, args=(buffer, events))
    feeder.start()
    for batch in buffer.batches():
        spool.append(batch)
    feeder.join()


def _feed(buffer: Buffer, events: list[Event]) -> None:
    started, fed = time.perf_counter(), 0
    while fed < len(events):
        due = int((time.perf_counter() - started) * WANTED["sustained"])
        buffer.put(events[fed:due])
        fed = max(fed, due)
        time.sleep(0.001)
    buffer.close()


def _drain(spool: Spool) -> None:
    after = 0
    while events := spool.read(after, _READ):
        after = events[-1].seq
        for start in range(0, len(events), _ACKNOWLEDGED):
            spool.remove([event.seq for event in events[start : start + _ACKNOWLEDGED]])


def _measured(name: str, events: int, work: Callable[[], None]) -> float:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rate = events / wall
    print(f"{name}: {rate:,.0f} events/s (at least {WANTED[name]:,}), {cpu / events * 1e6:.1f} us of CPU an event")
    return rate


def _events(count: int, size: int) -> list[Event]:
    chance = random.Random(7)
    symbols = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "ADAUSDT", "XRPUSDT")
    routes = [Route("trade", "binance-trades", symbol.encode(), b"", 0, b"") for symbol in symbols]
    return [
        Event(chance.choice(routes), chance.randbytes(size), 1_700_000_000_000 + number, number)
        for number in range(1, count + 1)
    ]


def _command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spool", description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=300, help="bytes of a value")
    parser.add_argument("--batch", type=int, default=100, help="events of one append")
    parser.add_argument("--fsync", choices=["normal", "full"], default="normal")
    parser.add_argument("--folder", help="where the spool lies (default: the system's temporary folder)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
