"""The targets of issues 5 and 6, and which of them hold for what was measured."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any, NamedTuple


class Target(NamedTuple):
    """What is to hold: a figure of the summary against a limit, `>=` or `<=`."""

    what: str
    sign: str
    limit: float
    unit: str
    path: tuple[str, ...]


TARGETS = (
    Target("aggTrade, high-throughput settings", ">=", 100_000, "msg/s", ("throughput", "fast trades", "rate")),
    Target("the same, CPU", "<=", 10, "us a message", ("throughput", "fast trades", "cpu_us")),
    Target("aggTrade, the seeds' settings", ">=", 45_000, "msg/s", ("throughput", "seeds trades", "rate")),
    Target("the same, CPU", "<=", 22, "us a message", ("throughput", "seeds trades", "cpu_us")),
    Target("realistic, high-throughput settings", ">=", 45_000, "msg/s", ("throughput", "fast realistic", "rate")),
    Target("the same, CPU", "<=", 20, "us a message", ("throughput", "fast realistic", "cpu_us")),
    Target(
        "aggTrade, high-throughput settings, against the naive reference",
        ">=",
        12,
        "x",
        ("throughput", "fast trades", "times_naive"),
    ),
    Target("the same, CPU", ">=", 12, "x", ("throughput", "fast trades", "times_naive_cpu")),
    Target(
        "socket -> buffer at 10,000/s, p99", "<=", 1, "ms", ("latency_ms", "10,000/s", "read_to_buffer", "p99")
    ),
    Target("sent -> buffer at 10,000/s, p99", "<=", 1, "ms", ("latency_ms", "10,000/s", "send_to_buffer", "p99")),
    Target("read -> ack at 1,000/s, p99", "<=", 100, "ms", ("latency_ms", "1,000/s", "read_to_ack", "p99")),
    Target("resident memory, idle", "<=", 100, "MB", ("throughput", "seeds trades", "idle_mb")),
    Target("resident memory, the most of all runs", "<=", 200, "MB", ("memory_full_mb",)),
    Target("500 msg/s, five symbols, as recorded", "<=", 3, "% of a core", ("usual_percent", "recorded")),
    Target("500 msg/s, five symbols, as recorded, over TLS", "<=", 3, "% of a core", ("usual_percent", "tls")),
    Target("500 msg/s, evenly spaced, the worst case", "<=", 3, "% of a core", ("usual_percent", "even")),
    Target("following ids, a message, at full rate", "<=", 1, "us", ("following_us", "chunks")),
    Target("following ids, a message, frame by frame", "<=", 1, "us", ("following_us", "single")),
)


def compare(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each target with what was measured and whether it holds; what was not measured is left out."""
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        try:
            measured = reduce(operator.getitem, target.path, found)
        except KeyError:
            continue
        if not isinstance(measured, int | float):
            continue
        holds = measured >= target.limit if target.sign == ">=" else measured <= target.limit
        rows.append(target._asdict() | {"measured": measured, "holds": holds})
    return rows
