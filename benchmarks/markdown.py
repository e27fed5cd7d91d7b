"""`python -m benchmarks.markdown`: put what `make bench` and `make bench-kafka` last measured into BENCHMARKS.md.

Replaces what stands between `<!-- results -->` and `<!-- end of results -->`, and copies the plots beside it; so
no figure there is typed by hand.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from benchmarks.children import ROOT
from benchmarks.latency import LEGS
from benchmarks.report import NAMES

START, END = "<!-- results -->", "<!-- end of results -->"
MEASURED = ROOT / "build" / "bench"
KEPT = ROOT / "benchmarks" / "results"
COMMANDS = {"embedded": "make bench", "kafka4": "make bench-kafka"}
BROKER_NAMES = {"embedded": "the embedded broker", "kafka4": "Apache Kafka 4.4"}


def section(results: dict[str, dict[str, Any]]) -> str:
    """Return the tables of the results by broker."""
    parts = [_targets(results)]
    for broker, found in results.items():
        parts += [_about(broker, found), _throughput(found), _latency(found), f"![plot]({_plot(broker)})"]
    return "\n\n".join(parts)


def _plot(broker: str) -> str:
    return f"benchmarks/results/{broker}.svg"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _targets(results: dict[str, dict[str, Any]]) -> str:
    columns: dict[tuple[str, str], dict[str, str]] = {}
    for broker, found in results.items():
        what = ""
        for row in found["summary"]["targets"]:
            what = f"{what.partition(': ')[0]}: CPU" if row["what"] == "the same, CPU" else row["what"]
            limit = f"{row['sign']} {row['limit']:,} {row['unit']}"
            verdict = "" if row["holds"] else " **missed**"
            columns.setdefault((what, limit), {})[broker] = _figure(row["measured"]) + verdict
    rows = [[*key, *(cells.get(broker, "-") for broker in results)] for key, cells in columns.items()]
    return _table(["what", "target", *(BROKER_NAMES[broker] for broker in results)], rows)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"  # noqa: PLR2004 - thousands have no decimals


def _about(broker: str, found: dict[str, Any]) -> str:
    machine, summary = found["machine"], found["summary"]
    runs = [result for results in found["rounds"] for result in results.values()]
    averages = sorted(result["load_average"] for result in runs)
    alone = ", ".join(f"{rate / 1e6:.1f} million/s ({load})" for load, rate in found["generator_alone"].items())
    name = BROKER_NAMES[broker]
    return (
        f"### {name[0].upper() + name[1:]}\n\n"
        f"`{COMMANDS[broker]}`, {found['started']}, {found['seconds']:.0f} s, {len(found['rounds'])} rounds. "
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Python {machine['python']}. "
        f"Load average {averages[0]:.1f} to {averages[-1]:.1f}. The generator alone: {alone}. "
        f"{summary['records_verified']:,} records were read back: complete, none twice, in order per symbol. "
        f"Faulty runs: {len(summary['faults'])}. Paced runs made a second time: {len(found['repeated'])}."
    )


def _throughput(found: dict[str, Any]) -> str:
    rows = []
    for name, row in found["summary"]["throughput"].items():
        pipeline, _, load = name.partition(" ")
        rows.append(
            [
                f"{NAMES[pipeline]}, {load}",
                f"{row['rate']:,.0f}",
                f"{row['cpu_us']:.1f}",
                f"{row['cores']:.2f}",
                f"{row['times_naive']:.1f}",
                f"{row['times_naive_cpu']:.1f}",
                f"{row['idle_mb']:.0f} / {row['peak_mb']:.0f}",
            ]
        )
    head = ["median of the rounds", "msg/s", "µs CPU", "cores", "x naive", "x in CPU", "MB idle / most"]
    return _table(head, rows)


def _latency(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{title}: {leg.replace('_', ' ')}",
            *(f"{legs[leg][name]:.3g}" for name in ("p50", "p90", "p99", "p999")),
        ]
        for title, legs in found["summary"]["latency_ms"].items()
        for leg in LEGS
    ]
    return _table(["ms", "p50", "p90", "p99", "p99.9"], rows)


def main() -> int:
    """Rewrite the section from what is there."""
    results = {
        broker: json.loads((MEASURED / broker / "results.json").read_text())
        for broker in COMMANDS
        if (MEASURED / broker / "results.json").is_file()
    }
    if not results:
        sys.stderr.write("nothing has been measured yet: make bench\n")
        return 1
    KEPT.mkdir(exist_ok=True)
    for broker in results:
        shutil.copyfile(MEASURED / broker / "plot.svg", KEPT / f"{broker}.svg")
        shutil.copyfile(MEASURED / broker / "results.json", KEPT / f"{broker}.json")
    document = ROOT / "BENCHMARKS.md"
    before, _, rest = document.read_text().partition(START)
    document.write_text(f"{before}{START}\n\n{section(results)}\n\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
