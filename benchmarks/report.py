"""From results to medians and ratios; as text, JSON and a plot."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks import following, svg, targets
from benchmarks.latency import LEGS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.runs import Result

    Round = dict[str, Result]

USUAL_RATE = 500
"""Messages a second of five symbols at the live exchange's usual pace."""

OTHERS = "all others"
SPACINGS = {
    "recorded": "as recorded",
    "tls": "as recorded, over TLS",
    "even": "evenly spaced, the worst case",
}

NAMES = {
    "naive": "naive reference",
    "peer": "cryptofeed, its Kafka backend",
    "seeds": "service, the seeds' settings",
    "fast": "service, high-throughput settings",
    "tls": "service, high-throughput settings, TLS",
}


def line(result: Result) -> str:
    """Say in one line what a run gave."""
    return (
        f"{result.pipeline:34}{result.load:10}{result.rate:9,.0f}/s{result.cpu_us:7.1f} us CPU"
        f"{result.cores:6.2f} cores {result.idle_mb:4.0f}-{result.peak_mb:.0f} MB, "
        f"load average {result.load_average:.1f}, {result.fault or 'all records there, in order'}"
    )


def median_rate(rounds: Sequence[Round], name: str) -> float:
    """Return the median rate over all rounds."""
    return statistics.median(results[name].rate for results in rounds)


def medians(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Return, by `pipeline load`, the medians of the rounds; of the peak of memory the largest."""
    found = {}
    for name in rounds[0]:
        results = [results[name] for results in rounds]
        fields = ("rate", "cpu_us", "cores", "idle_mb", "load_average")
        row = {field: statistics.median(getattr(result, field) for result in results) for field in fields}
        row["peak_mb"] = max(result.peak_mb for result in results)
        row["seconds"] = statistics.median(result.frames / max(result.rate, 1e-9) for result in results)
        row["least"], row["most"] = (end(result.rate for result in results) for end in (min, max))
        row["bytes_a_frame"] = results[0].bytes_a_frame
        found[name] = row | ratios(rounds, name)
    return found


def ratios(rounds: Sequence[Round], name: str) -> dict[str, float]:
    """Return how much faster, and cheaper in CPU, than the naive reference: the median of the rounds' ratios."""
    reference = f"naive {name.partition(' ')[2]}"
    if reference not in rounds[0]:
        return {}
    pairs = [(results[name], results[reference]) for results in rounds]
    return {
        "times_naive": statistics.median(ours.rate / naive.rate for ours, naive in pairs),
        "times_naive_cpu": statistics.median(naive.cpu_us / max(ours.cpu_us, 1e-9) for ours, naive in pairs),
    }


def summary(
    rounds: Sequence[Round],
    latency: Round,
    usual: Round,
    followed: Sequence[dict[str, Any]] = (),
    repeated: Sequence[Result] = (),
) -> dict[str, Any]:
    """Return what is to be shown."""
    everything = [result for results in (*rounds, latency, usual) for result in results.values()]
    found: dict[str, Any] = {
        "throughput": medians(rounds) if rounds else {},
        "latency_ms": {title: result.legs for title, result in latency.items() if result.legs},
        "paced": {title: _paced(result) for title, result in latency.items() if result.legs},
        "memory_full_mb": _most_memory([*everything, *repeated]),
        "usual": {spacing: result.steady for spacing, result in usual.items() if result.steady},
        "usual_percent": {
            spacing: result.steady["cpu_us"] * USUAL_RATE / 1e4
            for spacing, result in usual.items()
            if result.steady
        },
        "following": list(followed),
        "following_us": _worst(followed),
        "records_verified": sum(result.delivered for result in everything if not result.fault),
        "faults": [f"{result.pipeline}, {result.load}: {result.fault}" for result in everything if result.fault],
    }
    found["targets"] = targets.compare(found)
    return found


def _paced(result: Result) -> dict[str, Any]:
    return {
        "offered": result.offered,
        "rate": result.rate,
        "behind_ms": 1000 * result.generator["behind_seconds"],
        "samples": result.legs["send_to_ack"]["samples"],
        "fault": result.fault,
    }


def _most_memory(results: Sequence[Result]) -> float | None:
    """Return the most that the service took in any run, MB; None when it was in none."""
    ours = [NAMES["seeds"], NAMES["fast"], NAMES["tls"]]
    return max((result.peak_mb for result in results if result.pipeline in ours), default=None)


def _worst(followed: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the larger of both loads' costs, by the size of chunks."""
    kinds = {
        "chunks": [row for row in followed if row["chunk"] > 1],
        "single": [row for row in followed if row["chunk"] == 1],
    }
    return {kind: max(row["cost"] for row in rows) for kind, rows in kinds.items() if rows}


def text(broker: str, found: dict[str, Any]) -> str:
    """Return the tables."""
    parts = [_throughput_text(broker, found), _latency_text(found), _usual_text(found)]
    parts += [following.text(found["following"]) if found["following"] else "", _targets_text(found)]
    parts.append(f"{found['records_verified']:,} records read back: complete by id, none twice, in order")
    parts += [f"FAULT {fault}" for fault in found["faults"]]
    return "\n\n".join(part for part in parts if part)


def _throughput_text(broker: str, found: dict[str, Any]) -> str:
    columns = f"{'msg/s':>9}{'us CPU':>8}{'cores':>7}{'x naive':>9}{'x in CPU':>10}{'MB':>9}"
    rows = [
        f"{_title(name):46}{row['rate']:9,.0f}{row['cpu_us']:8.1f}{row['cores']:7.2f}"
        f"{row.get('times_naive', 0):9.1f}{row.get('times_naive_cpu', 0):10.1f}"
        f"{row['idle_mb']:5.0f}-{row['peak_mb']:.0f}"
        for name, row in found["throughput"].items()
    ]
    return "\n".join([f"{'Medians, broker ' + broker:46}{columns}", *rows])


def _title(name: str) -> str:
    pipeline, _, load = name.partition(" ")
    return f"{NAMES[pipeline]}, {load}"


def _latency_text(found: dict[str, Any]) -> str:
    if not found["latency_ms"]:
        return ""
    rows = [f"{'Latency in ms':34}{'p50':>10}{'p90':>10}{'p99':>10}{'p99.9':>10}"]
    for title, legs in found["latency_ms"].items():
        paced = found["paced"][title]
        rows.append(
            f"{title}; offered {paced['offered']:,.0f}/s, delivered {paced['rate']:,.0f}/s, {paced['samples']:,} "
            f"samples, the generator was up to {paced['behind_ms']:.0f} ms behind {paced['fault']}"
        )
        for leg in LEGS:
            cells = "".join(f"{legs[leg][name]:10.3f}" for name in ("p50", "p90", "p99", "p999"))
            rows.append(f"  {leg.replace('_', ' '):32}{cells}")
    return "\n".join(rows)


def _usual_text(found: dict[str, Any]) -> str:
    rows = []
    for spacing, steady in found["usual"].items():
        rows.append(
            f"{SPACINGS[spacing]}: {steady['percent']:.2f} % of a core, {steady['cpu_us']:.1f} us a message, "
            f"{steady['rate']:.0f}/s for {steady['seconds']:.0f} s"
        )
        rows += [f"  {share:5.2f} %  {name}" for name, share in busiest(steady).items()]
    return "\n".join([f"Five symbols at {USUAL_RATE}/s, in steady state", *rows]) if rows else ""


def busiest(steady: dict[str, Any]) -> dict[str, float]:
    """Return the threads that take a hundredth of the whole or more, and the others together."""
    least = steady["percent"] / 100
    shown = {name: share for name, share in steady["threads"].items() if share >= least}
    return shown | {OTHERS: max(0.0, steady["percent"] - sum(shown.values()))}


def _targets_text(found: dict[str, Any]) -> str:
    rows = []
    for row in found["targets"]:
        limit = f"{row['sign']} {row['limit']:,} {row['unit']}"
        verdict = "holds " if row["holds"] else "MISSED"
        rows.append(f"{verdict}  {row['what']:42}{limit:24}{row['measured']:12,.1f}")
    return "\n".join(["Targets", *rows]) if rows else ""


def plot(path: Path, broker: str, found: dict[str, Any]) -> None:
    """Draw throughput, CPU and latency."""
    order = {pipeline: number for number, pipeline in enumerate(NAMES)}
    throughput = sorted(found["throughput"].items(), key=lambda item: item[0].partition(" ")[2], reverse=True)
    rates = [_bar(name, row["rate"], f"{row['rate']:,.0f}", order) for name, row in throughput]
    costs = [_bar(name, row["cpu_us"], f"{row['cpu_us']:.1f}", order) for name, row in throughput]
    latencies = [
        svg.Bar(f"{title}: {leg.replace('_', ' ')}", legs[leg]["p99"], f"{legs[leg]['p99']:.3g}", number)
        for number, (title, legs) in enumerate(found["latency_ms"].items())
        for leg in ("send_to_read", "read_to_buffer", "buffer_to_ack")
    ]
    panels = [
        svg.bars(f"Messages a second, socket to acknowledgement; broker {broker}", rates),
        svg.bars("CPU time a message, microseconds", costs),
    ]
    if latencies:
        panels.append(svg.bars("Latency by leg, 99th percentile, ms (logarithmic)", latencies, logarithmic=True))
    svg.write(path, panels)


def _bar(name: str, value: float, text: str, order: dict[str, int]) -> svg.Bar:
    return svg.Bar(_title(name), value, text, order[name.partition(" ")[0]])
