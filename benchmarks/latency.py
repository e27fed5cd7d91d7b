"""Latencies from the times of two processes: when a frame was sent, and where its event was when.

| leg | from | to |
|---|---|---|
| send_to_read | its block goes to the kernel, or was due if it is late | the service has read it from its socket |
| read_to_buffer | ... | its event is in the buffer: cut, decoded, enriched, put |
| send_to_buffer | the first of these | the last of these |
| buffer_to_ack | ... | Kafka's acknowledgement has reached the service |
| read_to_ack | the service has read the frame | the same |
| send_to_ack | the block is handed to the kernel | the same |
"""

from __future__ import annotations

import bisect
import json
from typing import TYPE_CHECKING

from benchmarks.topics import identify_depth, identify_raw, identify_trade

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.loads import Line

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the percentiles (nearest rank), the largest value and the number of values."""
    ordered = sorted(values)
    count = len(ordered)
    found = {name: ordered[min(int(share * count), count - 1)] for name, share in PERCENTILES.items()}
    return {name: round(value, 3) for name, value in found.items()} | {
        "max": round(ordered[-1], 3),
        "samples": count,
    }


LEGS = ("send_to_read", "read_to_buffer", "send_to_buffer", "buffer_to_ack", "read_to_ack", "send_to_ack")


def sent_at_ns(blocks: Sequence[tuple[int, int]], frame: int) -> int:
    """Return when the block with that frame (counted from 0) was handed to the kernel, or due if it was late."""
    return blocks[bisect.bisect_right(blocks, frame, key=lambda block: block[0])][1]


def legs(
    trace: Path, blocks: Sequence[tuple[int, int]], lines: Mapping[Line, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Return the percentiles of each leg in milliseconds."""
    found: dict[str, list[float]] = {}
    for value, read_ns, put_ns, ack_ns in json.loads(trace.read_text()):
        identified = identify(value.encode())
        if identified is None:
            continue
        (kind, symbol), number = identified
        frame = lines[kind, symbol][number - 1]
        moments = {"send": sent_at_ns(blocks, frame), "read": read_ns, "buffer": put_ns, "ack": ack_ns}
        for name in LEGS:
            start, _, stop = name.partition("_to_")
            found.setdefault(name, []).append((moments[stop] - moments[start]) / 1e6)
    return {name: percentiles(values) for name, values in found.items()}


def identify(value: bytes) -> tuple[Line, int] | None:
    """Tell kind, symbol and id of any record of the service; None for the snapshot of a book."""
    if b'"event_type":"depth_' in value:
        return identify_depth(value)
    if b'"event_type":"aggregate_trade"' in value or b'"event_type":"trade"' in value:
        return identify_trade(value)
    return identify_raw(value)
