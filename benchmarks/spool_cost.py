"""`python -m benchmarks.spool_cost`: what the spool costs while Kafka is healthy.

The service as it is and the service without its spool (`benchmarks.spoolless`), in pairs on one broker whose order
turns; of each pair the ratio of the rates, and of all pairs the median. Exit code 1 when it is below 0.95 or a run
was faulty.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.rest import RestServer
from benchmarks.runs import PIPELINES, Result, Task, run
from sandbox.brokers import BROKERS

WANTED = 0.95


def main() -> int:
    """Measure the pairs, print each run, the medians and the ratio."""
    asked = _command_line()
    with (
        tempfile.TemporaryDirectory(prefix="bench-broker-") as folder,
        BROKERS[asked.broker](Path(folder)) as broker,
        RestServer() as rest,
    ):
        pairs = [_pair(asked, number, broker.bootstrap_servers, rest.url) for number in range(asked.pairs)]
    for name, at in (("with", 0), ("without", 1)):
        rate, cpu = (statistics.median(getattr(pair[at], of) for pair in pairs) for of in ("rate", "cpu_us"))
        print(f"{name} the spool: {rate:,.0f} messages/s, {cpu:.1f} us of CPU a message (medians)")
    ratios = sorted(spooled.rate / straight.rate for spooled, straight in pairs)
    cost = statistics.median(spooled.cpu_us / straight.cpu_us for spooled, straight in pairs)
    ratio = statistics.median(ratios)
    print(f"rate with over without, median of {len(pairs)} pairs: {ratio:.3f} (at least {WANTED}), "
          f"from {ratios[0]:.3f} to {ratios[-1]:.3f}; CPU {cost:.3f}")  # fmt: skip
    faulty = [result for pair in pairs for result in pair if result.fault]
    return 1 if ratio < WANTED or faulty else 0


def _pair(asked: argparse.Namespace, number: int, bootstrap_servers: str, rest_url: str) -> tuple[Result, Result]:
    spooled = PIPELINES[asked.pipeline]
    straight = dataclasses.replace(
        spooled, name=f"{spooled.name}, no spool", arguments=("-m", "benchmarks.spoolless")
    )
    frames = int(spooled.expected_rate[asked.load] * asked.seconds)
    results = {}
    for pipeline in (spooled, straight) if number % 2 else (straight, spooled):
        results[pipeline.name] = run(Task(pipeline, asked.load, frames), bootstrap_servers, rest_url)
        print(report.line(results[pipeline.name]), flush=True)
    return results[spooled.name], results[straight.name]


def _command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spool_cost", description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load in each run, roughly")
    parser.add_argument("--broker", choices=sorted(BROKERS), default="embedded")
    parser.add_argument("--pipeline", choices=["seeds", "fast"], default="seeds")
    parser.add_argument("--load", choices=["trades", "realistic"], default="trades")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
