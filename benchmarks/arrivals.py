"""When frames arrive: evenly, or spaced as they were recorded.

The exchange sends in groups: of frames recorded in August 2024 (BTCUSDT and ETHUSDT, 231 a second) half came
within 0.1 ms of the one before. `arrivals.json` keeps what is needed of that: quantiles of the sizes of groups
(frames less than 0.5 ms behind one another), of the gaps within a group and of those between groups. `python -m
benchmarks.arrivals ../shared/binance/frames/spot_btc_eth_20240808_interleaved_12k.recv_ts` makes it anew from
times of reception in ns, one a line, and says how the two compare.

Another rate is had by stretching the gaps between groups alone: what belongs together stays together. Sizes and
gaps are drawn independently, so a busy second is not followed by another one as in a true market.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TABLE = Path(__file__).with_name("arrivals.json")
Number = TypeVar("Number", int, float)
SPACINGS = ("even", "recorded")
GROUP_MS = 0.5
QUANTILES = 200
"""So many equal steps, each represented by its middle."""
_LEVEL_SECONDS = 10.0
"""After so long at the latest the rate is exactly the one that was asked for."""


class Table(NamedTuple):
    """Quantiles, ascending; times in ms."""

    sizes: list[int]
    within_ms: list[float]
    between_ms: list[float]


def derived(received_ns: Sequence[int]) -> Table:
    """Return the table of a recording."""
    gaps = _gaps_ms(received_ns)
    within = [gap for gap in gaps if gap < GROUP_MS]
    between = [gap for gap in gaps if gap >= GROUP_MS]
    return Table(_quantiles(_sizes(gaps)), _quantiles(within), _quantiles(between))


def _gaps_ms(times_ns: Sequence[int]) -> list[float]:
    return [(later - earlier) / 1e6 for earlier, later in pairwise(times_ns)]


def _sizes(gaps_ms: Sequence[float]) -> list[int]:
    sizes = [1]
    for gap in gaps_ms:
        if gap < GROUP_MS:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes


def _quantiles(values: Sequence[Number]) -> list[Number]:
    ordered = sorted(values)
    return [ordered[int((step + 0.5) / QUANTILES * len(ordered))] for step in range(QUANTILES)]


@cache
def kept() -> Table:
    """Return the table that is kept."""
    return Table(**json.loads(TABLE.read_text()))


def recorded(total: int, rate: float, seed: int = 7, table: Table | None = None) -> Iterator[float]:
    """Yield when each of so many frames is due, in s from the start, at `rate` a second; the same for a seed.

    Raises ValueError for a rate at which the groups would overlap.
    """
    chooser = random.Random(seed)
    table = table or kept()
    stretch = max(1, min(total, int(rate * _LEVEL_SECONDS)))
    for first in range(0, total, stretch):
        count = min(stretch, total - first)
        for due in _level(chooser, table, count, count / rate):
            yield first / rate + due


def _level(chooser: random.Random, table: Table, count: int, seconds: float) -> list[float]:
    """Return the times of so many frames, whose groups fill so many seconds exactly."""
    groups: list[list[float]] = []
    left = count
    while left:
        size = min(chooser.choice(table.sizes), left)
        groups.append([0.0, *(chooser.choice(table.within_ms) / 1e3 for _ in range(size - 1))])
        left -= size
    gaps = [chooser.choice(table.between_ms) for _ in groups]
    spare = seconds - sum(chain.from_iterable(groups))
    if spare <= 0:
        raise ValueError(f"{count / seconds:,.0f} frames a second leave no gaps between the recorded groups")
    times, at, share = [], 0.0, spare / sum(gaps)
    for group, gap in zip(groups, gaps, strict=True):
        for after in group:
            at += after
            times.append(at)
        at += gap * share
    return times


def described(times_ns: Sequence[int]) -> str:
    """Say what the spacing is like."""
    gaps = _gaps_ms(times_ns)
    sizes, ordered = _sizes(gaps), sorted(gaps)
    shares = ", ".join(
        f"{ordered[int(share * len(ordered))]:.3f} at {share:.0%}" for share in (0.25, 0.5, 0.75, 0.9)
    )
    return f"{statistics.mean(sizes):.2f} frames a group, {max(sizes)} at most; gaps in ms: {shares}"


def main() -> int:
    """Derive the table from a recording, write it, and compare what it gives with the recording."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recording", type=Path, help="times of reception in ns, one a line")
    arguments = parser.parse_args()
    received = [int(line) for line in arguments.recording.read_text().split()]
    table = derived(received)
    rounded = {name: [round(value, 4) for value in values] for name, values in table._asdict().items()}
    TABLE.write_text(json.dumps(rounded) + "\n")
    rate = (len(received) - 1) / (received[-1] - received[0]) * 1e9
    given = [round(at * 1e9) for at in recorded(len(received), rate, table=table)]
    print(f"recorded: {rate:.0f} a second, {described(received)}")
    print(f"given: {rate:.0f} a second, {described(given)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
