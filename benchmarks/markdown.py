"""`python -m benchmarks.markdown`: put what was measured last into BENCHMARKS.md.

Each of its places, `<!-- NAME -->` to `<!-- end of NAME -->`, is rewritten from what stands below build/bench:
the results of `make bench` and `make bench-kafka`, `make bench-shards` and `make bench-shards-paced`, `make
soak` and `make profile`. What was not measured here is taken from benchmarks/results, where everything that is
shown is kept, plots too; so no figure there is typed by hand.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

from benchmarks import following
from benchmarks.bench import LOADS
from benchmarks.children import ROOT
from benchmarks.latency import LEGS
from benchmarks.report import NAMES, OTHERS, SPACINGS, USUAL_RATE, busiest
from benchmarks.soak import LEAST_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

MEASURED = ROOT / "build" / "bench"
KEPT = ROOT / "benchmarks" / "results"
COMMANDS = {"embedded": "make bench", "kafka4": "make bench-kafka"}
QUICK = " in short (`--quick`: for a look, not for figures)"
PROFILE = "hotspots-fast-trades.txt"
_SAMPLE_EACH = 10
"""Of the seconds of a soak so many are kept."""
BROKER_NAMES = {"embedded": "the embedded broker", "kafka4": "Apache Kafka 4.4", "kafka3": "Apache Kafka 3.9"}


def section(results: dict[str, dict[str, Any]], soaked: dict[str, Any]) -> str:
    """Return the tables of the results by broker; the first one, of the targets, takes in what a soak found."""
    parts = [_targets(results, soaked)]
    for broker, found in results.items():
        parts += [_about(broker, found), _throughput(found), _latency(found)]
        parts += [_usual(found), _following(found), f"![plot]({_plot(broker)})"]
    return "\n\n".join(part for part in parts if part)


def _plot(broker: str) -> str:
    return f"benchmarks/results/{broker}.svg"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _targets(results: dict[str, dict[str, Any]], soaked: dict[str, Any]) -> str:
    columns: dict[tuple[str, str], dict[str, str]] = {}
    for broker, found in results.items():
        what = ""
        for row in found["summary"]["targets"]:
            what = f"{what.partition(': ')[0]}: CPU" if row["what"] == "the same, CPU" else row["what"]
            limit = f"{row['sign']} {row['limit']:,} {row['unit']}"
            verdict = "" if row["holds"] else " **missed**"
            columns.setdefault((what, limit), {})[broker] = _figure(row["measured"]) + verdict
    if soaked:
        told = soaked["summary"]
        what = f"resident memory over {told['seconds'] / 60:.0f} minutes at {told['rate']:,.0f}/s, its climb"
        verdict = "" if told["verdict"] == "flat" else " **missed**"
        limit = f"<= {told['climb_at_most']:.3g} MB in 30 min"
        columns[what, limit] = {told["broker"]: _figure(told["climb_mb_in_30_min"]) + verdict}
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
    shortened = QUICK if found["effort"] == "quick" else ""
    return (
        f"### {name[0].upper() + name[1:]}\n\n"
        f"`{COMMANDS[broker]}` (`{found['command']}`){shortened}, {found['started']}, {found['seconds']:.0f} s, "
        f"{len(found['rounds'])} rounds. "
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Python {machine['python']}. "
        f"Load average {averages[0]:.1f} to {averages[-1]:.1f}. The generator alone: {alone}. "
        f"{summary['records_verified']:,} records were read back: complete by id, none twice, in order. "
        f"Faulty runs: {len(summary['faults'])}. {_repeated(found['repeated'])}"
    )


def _throughput(found: dict[str, Any]) -> str:
    rows = []
    for name, row in found["summary"]["throughput"].items():
        pipeline, _, load = name.partition(" ")
        rows.append(
            [
                f"{NAMES[pipeline]}, {load}",
                f"{row['rate']:,.0f}",
                f"{row['least']:,.0f} to {row['most']:,.0f}",
                f"{row['seconds']:.1f}",
                f"{row['cpu_us']:.1f}",
                f"{row['cores']:.2f}",
                f"{row['times_naive']:.1f}" if "times_naive" in row else "-",
                f"{row['times_naive_cpu']:.1f}" if "times_naive_cpu" in row else "-",
                f"{row['idle_mb']:.0f} / {row['peak_mb']:.0f}",
            ]
        )
    head = [
        "median of the rounds",
        "msg/s",
        "from, to",
        "s",
        "µs CPU",
        "cores",
        "x naive",
        "x in CPU",
        "MB idle / most",
    ]
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
    paced = [
        [
            title,
            f"{row['offered']:,.0f}",
            f"{row['rate']:,.0f}",
            f"{row['behind_ms']:.0f}",
            f"{row['samples']:,}",
            row["fault"] or "kept",
        ]
        for title, row in found["summary"]["paced"].items()
    ]
    head = ["paced runs", "offered/s", "delivered/s", "generator behind, ms", "events traced", "the pace was"]
    return _table(["ms", "p50", "p90", "p99", "p99.9"], rows) + "\n\n" + _table(head, paced)


def _repeated(runs: list[dict[str, Any]]) -> str:
    """Say which paced runs were made again, and why."""
    if not runs:
        return "Every pace was kept at the first try."
    return "Made again: " + "; ".join(f"{run['load']}: {run['fault']}" for run in runs) + "."


def _usual(found: dict[str, Any]) -> str:
    """Of results that were measured before this was, nothing."""
    usual: dict[str, Any] = found["summary"].get("usual") or {}
    if not usual:
        return ""
    shown = {spacing: busiest(steady) for spacing, steady in usual.items()}
    names = dict.fromkeys(name for shares in shown.values() for name in shares if name != OTHERS)
    whole = [
        ["µs CPU a message", *(f"{steady['cpu_us']:.1f}" for steady in usual.values())],
        ["% of a core", *(f"{found['summary']['usual_percent'][spacing]:.2f}" for spacing in usual)],
    ]
    rows = [
        [f"... {name}", *(f"{shares[name]:.2f}" if name in shares else "-" for shares in shown.values())]
        for name in (*names, OTHERS)
    ]
    seconds = min(steady["seconds"] for steady in usual.values())
    head = [
        f"{USUAL_RATE} msg/s, five symbols, {seconds:.0f} s in steady state",
        *(SPACINGS[each] for each in usual),
    ]
    return _table(head, whole + rows)


def _following(found: dict[str, Any]) -> str:
    rows = [
        [following.title(row), *(f"{row[name]:.2f}" for name in ("ids", "stage", "cost", "least", "most"))]
        for row in found["summary"].get("following") or []
    ]
    head = ["following ids, µs CPU a message", "finding them", "the stage", "both", "pairs from", "to"]
    return _table(head, rows) if rows else ""


def shards_section(closed_loop: dict[str, Any], paced: dict[str, Any]) -> str:
    """Return what several processes brought: as fast as they go, and at a pace that leaves cores idle."""
    parts = []
    if closed_loop.get("outcomes"):
        parts.append(
            f"As fast as they go, `make bench-shards` (`{closed_loop['command']}`), the median of "
            f"{closed_loop['rounds']} rounds, {_conditions(closed_loop)}:"
        )
        parts.append(_shares(closed_loop))
        parts.append("\n".join(f"- {_together(outcome)}" for outcome in closed_loop["outcomes"]))
    if paced.get("rates"):
        parts.append(
            f"At a pace, `make bench-shards-paced` (`{paced['command']}`), {paced['seconds']:.0f} s each, "
            f"{_conditions(paced)}. "
            "An added process is to bring 85 % of the first as long as cores are idle:"
        )
        parts.append(_verdicts(paced))
    return "\n\n".join(parts)


def _conditions(found: dict[str, Any]) -> str:
    machine, averages = found["machine"], found["load_average"]
    return (
        f"{found['started']}, {found['load']} on {BROKER_NAMES[found['broker']]}, {NAMES[found['pipeline']]}, "
        f"{machine['cores']} cores that carry broker and load too, load average {averages[0]:.1f} before, "
        f"{averages[1]:.1f} after"
    )


def _shares(found: dict[str, Any]) -> str:
    alone = found["outcomes"][0]["shares"][0]
    rows = [
        [
            str(len(outcome["shares"])),
            str(share["shard"]),
            str(share["streams"]),
            f"{share['rate']:,.0f}",
            f"{share['rate'] / alone['rate']:.0%}",
            f"{share['cpu_us']:.2f}",
            f"{share['peak_mb']:.0f}",
        ]
        for outcome in found["outcomes"]
        for share in outcome["shares"]
    ]
    return _table(["processes", "shard", "streams", "msg/s", "of the first alone", "µs CPU", "MB"], rows)


def _together(outcome: dict[str, Any]) -> str:
    count = len(outcome["shares"])
    return (
        f"{count} process{'es' if count > 1 else ''}: {outcome['rate']:,.0f} msg/s in all, {outcome['cores']:.2f} "
        f"cores used by them, {outcome['idle']:.2f} idle"
    )


def _verdicts(found: dict[str, Any]) -> str:
    rows = []
    for measured in found["rates"]:
        alone = measured["outcomes"][0]
        rows.append(
            [
                f"{alone['offered']:,.0f}",
                "1",
                f"{alone['rate'] / alone['offered']:.1%} of that".replace("%", " %"),
                f"{alone['shares'][0]['cpu_us']:.2f}",
                f"{alone['idle']:.2f}",
                "",
            ]
        )
        for added, judged in zip(measured["outcomes"][1:], measured["verdicts"], strict=True):
            rows.append(
                [
                    f"{judged['offered']:,.0f}",
                    str(judged["processes"]),
                    f"{judged['ratio']:.1%}".replace("%", " %"),
                    ", ".join(f"{share['cpu_us']:.2f}" for share in added["shares"]),
                    f"{judged['idle']:.2f}",
                    judged["word"],
                ]
            )
    return _table(
        ["msg/s offered to each", "processes", "brought at least", "µs CPU", "cores idle", "verdict"], rows
    )


def soak_section(found: dict[str, Any]) -> str:
    """Return how a soak went."""
    told, age = found["summary"], found["summary"]["age_ms"]
    limits = f"at most {told['climb_at_most']:.1f}"
    rows = [
        ["length", f"{told['seconds'] / 60:.1f} min, {told['records']:,} records"],
        ["resident memory at first, half-way, at last, most", _memory(told)],
        [
            "its line through the second half",
            f"{told['climb_mb_in_30_min']:+.2f} MB in 30 min ({limits}): **{told['verdict']}**",
        ],
        ["... of its rise: with a backlog, without", _rises(told)],
        ["age of the newest record, p50, p99, p99.9", _ages(age) if age else "-"],
        ["the generator fell behind by at most", f"{found['result']['generator'].get('behind_seconds', 0):.2f} s"],
        ["CPU", f"{told['cpu_us']} µs a message"],
        ["broker, harness at most", f"{told['broker_mb_at_most']} MB, {told['harness_mb_at_most']} MB"],
        ["records", told["fault"] or "every one read back: complete, none twice, in order"],
    ]
    averages = told["load_average"]
    return (
        f"`{found['command']}`, ended {found['ended']}, {found['machine']['cores']} cores, load average "
        f"{averages[0]} to {averages[2]}, {averages[1]} in the median:\n\n"
        f"{_table(['what', 'measured'], rows)}\n\n![plot](benchmarks/results/soak.svg)"
    )


def _memory(told: dict[str, Any]) -> str:
    return " / ".join(f"{told[f'memory_{name}_mb']}" for name in ("first", "middle", "last", "peak")) + " MB"


def _rises(told: dict[str, Any]) -> str:
    return f"{told['rise_with_backlog_mb']:+.2f} MB, {told['rise_without_mb']:+.2f} MB"


def _ages(age: dict[str, float]) -> str:
    return " / ".join(f"{age[name]:.0f}" for name in ("p50", "p99", "p999")) + " ms"


def profile_section(found: str) -> str:
    """Return where the time goes."""
    return f"`make profile`:\n\n```\n{found.rstrip()}\n```"


def keep() -> None:
    """Copy what was measured here to where what is shown is kept."""
    KEPT.mkdir(exist_ok=True)
    for broker in COMMANDS:
        if _whole(MEASURED / broker / "results.json"):
            shutil.copyfile(MEASURED / broker / "plot.svg", KEPT / f"{broker}.svg")
            shutil.copyfile(MEASURED / broker / "results.json", KEPT / f"{broker}.json")
    for name in ("shards", "shards-paced"):
        if (MEASURED / f"{name}.json").is_file():
            shutil.copyfile(MEASURED / f"{name}.json", KEPT / f"{name}.json")
    if (MEASURED / PROFILE).is_file():
        shutil.copyfile(MEASURED / PROFILE, KEPT / PROFILE)
    soaks = [path for path in sorted(MEASURED.glob("soak-*.json")) if _long_enough(path)]
    if soaks:
        found = json.loads(soaks[-1].read_text())
        found["samples"] = found["samples"][::_SAMPLE_EACH]
        (KEPT / "soak.json").write_text(json.dumps(found) + "\n")
        shutil.copyfile(soaks[-1].with_suffix(".svg"), KEPT / "soak.svg")


def _whole(path: Path) -> bool:
    """Whether the results of everything are there, and no run was faulty in what it delivered."""
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    faults = [run["fault"] for results in found["rounds"] for run in results.values() if run["fault"]]
    return found["effort"] == "full" and len(found["rounds"][0]) == len(NAMES) * len(LOADS) and not faults


def _long_enough(soak: Path) -> bool:
    return bool(json.loads(soak.read_text())["summary"]["seconds"] >= LEAST_SECONDS)


def kept(name: str) -> dict[str, Any]:
    """Return what is kept under a name; empty when nothing is."""
    path = KEPT / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def with_place(document: str, name: str, content: str) -> str:
    """Return the document with one of its places rewritten; with nothing to show it stays as it is."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = document.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"BENCHMARKS.md has no place {start} to {end}")
    return f"{before}{start}\n\n{content}\n\n{end}{after}" if content else document


def main() -> int:
    """Rewrite the places from what is there."""
    keep()
    results = {broker: found for broker in COMMANDS if (found := kept(broker))}
    if not results:
        sys.stderr.write("nothing has been measured yet: make bench\n")
        return 1
    path = ROOT / "BENCHMARKS.md"
    soaked = kept("soak")
    document = with_place(path.read_text(), "results", section(results, soaked))
    document = with_place(document, "shards", shards_section(kept("shards"), kept("shards-paced")))
    document = with_place(document, "soak", soak_section(soaked) if soaked else "")
    profiled = KEPT / PROFILE
    path.write_text(
        with_place(document, "profile", profile_section(profiled.read_text()) if profiled.is_file() else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
