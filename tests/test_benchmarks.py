"""The benchmark's own arithmetic, its load generator, and a short run of the real thing."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import socket
import statistics
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from benchmarks import (
    arrivals,
    bench,
    following,
    hotspots,
    loads,
    markdown,
    report,
    shards,
    soak,
    svg,
    targets,
    topics,
    traced,
)
from benchmarks.children import ROOT, Child, idle_core_seconds
from benchmarks.follower import Follower
from benchmarks.latency import legs, percentiles, sent_at_ns
from benchmarks.load import Frames, Progress, Sender
from benchmarks.rest import LIVE, RestServer
from benchmarks.runs import PIPELINES, Look, Result, Run, Task, run
from benchmarks.spoolless import Straight
from benchmarks.steady import Steady
from src.decoder import EventDecoder
from src.delivery import Delivery
from src.events import NO_ID, Topics

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaProducer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.brokers import Broker

HEADER = 126


def test_the_stage_without_a_spool_stands_in_for_the_one_with_it() -> None:
    both = (Delivery, Straight)
    stages = [{name: each for name, each in vars(stage).items() if name[0] != "_"} for stage in both]
    assert stages[0].keys() == stages[1].keys()
    for name, verb in stages[0].items():
        other = stages[1][name]
        assert callable(verb) is callable(other), name
        if callable(verb):
            assert inspect.signature(verb).parameters.keys() == inspect.signature(other).parameters.keys(), name
    assert inspect.signature(Delivery).parameters.keys() == inspect.signature(Straight).parameters.keys()


def payloads(block: bytes) -> list[bytes]:
    """Take WebSocket frames apart."""
    found, at = [], 0
    while at < len(block):
        length, start = block[at + 1], at + 2
        if length == HEADER:
            length, start = int.from_bytes(block[at + 2 : at + 4], "big"), at + 4
        found.append(block[start : start + length])
        at = start + length
    return found


@pytest.mark.parametrize("load", loads.LOADS)
def test_a_load_holds_its_kinds_in_their_shares_and_ids_without_a_gap(load: str) -> None:
    encoded = loads.Encoder(load).encode(2000)
    frames = [json.loads(payload) for payload in payloads(encoded.block)]
    assert len(frames) == len(encoded.ends) == 2000
    kinds = Counter(frame["stream"].partition("@")[2].partition("@")[0].partition("_")[0] for frame in frames)
    assert kinds == {kind: 20 * percent for kind, percent in loads.LOADS[load].items()}
    assert {frame["stream"] for frame in frames} == set(loads.streams(load).split(","))
    decoded = EventDecoder(Topics("t", "d", "r")).decode(payloads(encoded.block), 1)
    tally = topics.Tally()
    for event in decoded.events:
        identify = {"t": topics.identify_trade, "d": topics.identify_depth, "r": topics.identify_raw}
        tally.add(identify[event.route.topic](event.value))
    assert tally.verdict(loads.counts(load, 2000)) == ""
    assert decoded.skipped == []
    assert decoded.unenriched == []


def test_the_realistic_mix_has_the_size_of_the_recorded_one() -> None:
    encoded = loads.Encoder("realistic").encode(10_000)
    assert len(encoded.block) / 10_000 == pytest.approx(780, rel=0.03)


def test_counts_and_numbers_agree_with_what_is_encoded() -> None:
    numbers = loads.numbers("realistic", 3456)
    assert {line: len(found) for line, found in numbers.items()} == loads.counts("realistic", 3456)
    stretches = loads.Encoder("realistic")
    whole = loads.Encoder("realistic").encode(3456).block
    assert stretches.encode(1000).block + stretches.encode(2456).block == whole


LINE = ("aggTrade", "BTCUSDT")


@pytest.mark.parametrize(
    ("ids", "verdict"),
    [
        ([1, 2, 3], ""),
        ([1, 3], "3 came after 1"),
        ([1, 2, 2, 3], "2 came after 2"),
        ([2, 1, 3], "2 came after 0"),
        ([1, 2], "2 of 3 are there"),
        ([1, 2, 3, 4], "4 of 3 are there"),
    ],
)
def test_what_is_missing_doubled_or_out_of_order_is_found(ids: list[int], verdict: str) -> None:
    tally = topics.Tally()
    for number in ids:
        tally.add((LINE, number))
    found = tally.verdict({LINE: 3})
    assert found.endswith(verdict)
    assert bool(found) == bool(verdict)


def test_a_record_of_a_line_that_was_never_sent_is_found() -> None:
    tally = topics.Tally()
    tally.add((("trade", "BTCUSDT"), 1))
    assert tally.verdict({}).startswith("never sent")


def test_the_peers_records_are_told_by_what_it_writes() -> None:
    book = b'{"exchange":"BINANCE","symbol":"BTC-USDT","delta":{"bid":[[61699.99,12.0],[1.0,2.0]],"ask":[]}}'
    assert topics.identify_peer("book")(book) == (("depth", "BTCUSDT"), 12)
    assert topics.identify_peer("book")(b'{"symbol":"BTC-USDT","book":{}}') is None
    assert topics.identify_peer("trades")(b'{"symbol":"ETH-USDT","id":"7"}') == (("aggTrade", "ETHUSDT"), 7)
    assert topics.identify_peer("ticker")(b'{"symbol":"ETH-USDT","bid":9.0}') == (("bookTicker", "ETHUSDT"), 9)


@pytest.fixture
def receiver() -> Iterator[tuple[socket.socket, list[tuple[float, int]], threading.Thread]]:
    """Give a socket to send to, and when how many bytes came out of it."""
    ours, theirs = socket.socketpair()
    arrivals: list[tuple[float, int]] = []

    def receive() -> None:
        while block := theirs.recv(1 << 20):
            arrivals.append((time.monotonic(), len(block)))

    thread = threading.Thread(target=receive)
    thread.start()
    yield ours, arrivals, thread
    ours.close()
    thread.join()
    theirs.close()


def test_a_paced_generator_keeps_its_pace_and_says_when_each_block_went(receiver: Any) -> None:
    ours, arrivals, thread = receiver
    sender = Sender(ours, Frames("trades", 2000))
    before = time.monotonic_ns()
    sent = sender.paced(4000, 0.001)
    ours.shutdown(socket.SHUT_WR)
    thread.join()
    assert sent.frames == 2000
    assert 0.4 < sent.seconds < 5
    assert sent.waited > 0.5
    assert sum(size for _, size in arrivals) == len(loads.Encoder("trades").encode(2000).block)
    assert sender.blocks[-1][0] == 2000
    assert before <= sender.blocks[0][1] <= sender.blocks[-1][1]


def test_a_block_that_is_late_counts_as_sent_when_it_was_due() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sender = Sender(ours, Frames("trades", 1000))

        def read_late() -> None:
            threading.Event().wait(0.5)
            while theirs.recv(1 << 20):
                pass

        reader = threading.Thread(target=read_late)
        reader.start()
        started_ns = time.monotonic_ns()
        sent = sender.paced(10_000, 0.001)
        ours.close()
        reader.join()
    assert sent.behind_seconds > 0.3
    ends = [0, *(count for count, _ in sender.blocks)]
    assert max(after - before for before, after in pairwise(ends)) <= 20, "what falls due in 2 ms"
    for count, at in sender.blocks:
        assert abs(at - started_ns - count * 100_000) < 100_000_000  # 0.1 ms a frame


def test_a_generator_that_could_not_keep_its_pace_says_by_how_much(receiver: Any) -> None:
    ours, _, _ = receiver
    assert Sender(ours, Frames("trades", 100_000)).paced(1e9, 0.001).behind_seconds > 0.001


def test_recorded_spacing_keeps_its_rate_and_its_groups() -> None:
    times = list(arrivals.recorded(30_000, 500.0))
    assert times == sorted(times)
    assert times == list(arrivals.recorded(30_000, 500.0))
    assert times != list(arrivals.recorded(30_000, 500.0, seed=8))
    for second in (10, 20, 30, 40, 50):
        assert sum(at < second for at in times) == 500 * second
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    assert gaps[len(gaps) * 2 // 5] < 0.0001  # where an even spacing has 2 ms everywhere
    assert gaps[-1] > 0.02


def test_a_table_of_spacing_is_made_from_times_of_reception() -> None:
    group = [0, 1_000, 101_000]
    received = [start + at for start in range(0, 200_000_000, 10_000_000) for at in group]
    table = arrivals.derived(received)
    assert set(table.sizes) == {3}
    assert set(table.within_ms) == {0.001, 0.1}
    assert set(table.between_ms) == {9.899}
    times = list(arrivals.recorded(300, 600.0, table=table))
    between = {round(times[first] - times[first - 1], 9) for first in range(3, 300, 3)}
    assert len(between) == 1
    assert sum(between) == pytest.approx(3 / 600.0, rel=0.05)


def test_a_rate_at_which_recorded_groups_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="no gaps between"):
        list(arrivals.recorded(10_000, 1e6))


def test_a_scheduled_generator_sends_each_group_when_it_is_due(receiver: Any) -> None:
    ours, arrived, thread = receiver
    before = time.monotonic()
    sent = Sender(ours, Frames("trades", 6)).scheduled(iter([0.0, 0.0, 0.0, 0.6, 0.6, 1.2]))
    ours.shutdown(socket.SHUT_WR)
    thread.join()
    ends = loads.Encoder("trades").encode(6).ends
    assert sum(size for _, size in arrived) == ends[-1]
    early = sum(size for at, size in arrived if at < before + 0.6)
    late = sum(size for at, size in arrived if at >= before + 1.2)
    assert (early, late) == (ends[2], ends[5] - ends[4])
    assert sent.behind_seconds < 1.0


def test_a_closed_loop_is_never_further_ahead_than_its_window(receiver: Any, tmp_path: Path) -> None:
    ours, arrivals, thread = receiver
    progress = Progress.create(tmp_path / "progress")
    frames = Frames("trades", 1000, stretch=300)
    loop = threading.Thread(target=lambda: Sender(ours, frames).closed_loop(progress, 400))
    loop.start()
    loop.join(0.3)
    assert loop.is_alive()
    ends = loads.Encoder("trades").encode(1000).ends
    assert sum(size for _, size in arrivals) == ends[399]
    Progress(tmp_path / "progress").count = 600
    loop.join(5)
    ours.shutdown(socket.SHUT_WR)
    thread.join()
    assert sum(size for _, size in arrivals) == ends[-1]


def test_percentiles_are_nearest_ranks() -> None:
    found = percentiles([float(value) for value in range(1, 101)])
    assert (found["p50"], found["p99"], found["max"], found["samples"]) == (51.0, 100.0, 100.0, 100)
    assert percentiles([4.0])["p999"] == 4.0


def test_the_send_time_of_a_frame_is_that_of_its_block() -> None:
    blocks = [(10, 1000), (11, 2000), (20, 3000)]
    assert [sent_at_ns(blocks, frame) for frame in (0, 9, 10, 11, 19)] == [1000, 1000, 2000, 3000, 3000]


def test_legs_are_differences_of_the_moments(tmp_path: Path) -> None:
    value = (
        '{"e":"aggTrade","s":"BTCUSDT","a":2,"ingestion_timestamp":1,"source":"x",'
        '"event_type":"aggregate_trade","pipeline_version":"1"}'
    )
    (tmp_path / "trace").write_text(json.dumps([(value, 3_000_000, 4_000_000, 9_000_000)]))
    found = legs(tmp_path / "trace", [(1, 500_000), (2, 1_000_000)], {LINE: [0, 1]})
    assert {leg: round(values["p50"], 3) for leg, values in found.items()} == {
        "send_to_read": 2.0,
        "read_to_buffer": 1.0,
        "send_to_buffer": 3.0,
        "buffer_to_ack": 5.0,
        "read_to_ack": 6.0,
        "send_to_ack": 8.0,
    }


def test_every_place_that_is_traced_is_there() -> None:
    for module, owner, method in traced.PROBED.values():
        assert callable(getattr(getattr(import_module(module), owner), method))


def test_a_pace_that_was_not_kept_is_named() -> None:
    task = Task(PIPELINES["fast"], "trades", 10_000, 1_000.0, trace_every=10)
    kept = result(990, 5, legs={"send_to_ack": {"samples": 1000}})
    assert bench.not_kept(task, kept) == ""
    assert "delivered 900/s" in bench.not_kept(task, replace(kept, rate=900))
    assert "0.30 s behind" in bench.not_kept(task, replace(kept, generator={"behind_seconds": 0.3}))
    assert "9,000 of 10,000" in bench.not_kept(task, replace(kept, legs={"send_to_ack": {"samples": 900}}))


@pytest.mark.parametrize(
    ("faults", "rates", "kept", "repeated"),
    [
        (["", ""], [990, 990], "80 %", 0),
        (["lost", ""], [500, 990], "80 %", 0),  # is told, not tried away
        (["", "lost"], [500, 990], "80 % again", 1),
        (["", "", ""], [500, 500, 500], "60 %", 2),
    ],
)
def test_a_pace_that_was_not_kept_is_tried_again_and_a_loss_is_not(
    faults: list[str], rates: list[float], kept: str, repeated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter(
        result(rate, 5, fault=fault, legs={"send_to_ack": {"samples": 1000}})
        for rate, fault in zip(rates, faults, strict=True)
    )
    monkeypatch.setattr(bench.Bench, "_run", lambda *_: next(runs))
    session = bench.Session("embedded", "full")
    measuring = bench.Bench("", "", session, bench.EFFORTS["full"])
    measuring.latency("fast", "trades", [("80 %", 1000.0), ("80 % again", 1000.0), ("60 %", 1000.0)], 1.0)
    ((title, measured),) = session.latency.items()
    assert (title, len(session.repeated)) == (kept, repeated)
    assert bool(measured.fault) == ("lost" in faults or kept == "60 %")


def test_the_most_memory_is_that_of_the_service_in_any_run() -> None:
    ours = replace(
        result(100, 5, legs={"send_to_ack": {"samples": 1}}), pipeline=report.NAMES["fast"], peak_mb=161.0
    )
    others = replace(result(100, 5), peak_mb=500.0)
    found = report.summary([{"naive trades": others, "fast trades": others}], {"80 %": ours}, {})
    assert found["memory_full_mb"] == 161.0
    assert found["paced"]["80 %"]["samples"] == 1


def result(rate: float, cpu_us: float, **others: Any) -> Result:
    return Result("p", "trades", 10, 10, rate, cpu_us, 0.5, 50.0, 60.0, 1.0, {"behind_seconds": 0.0}, **others)


def test_medians_are_over_rounds_and_ratios_within_them() -> None:
    rounds = [
        {"naive trades": result(10, 100), "fast trades": result(100, 5)},
        {"naive trades": result(5, 200), "fast trades": result(80, 4)},
        {"naive trades": result(20, 50), "fast trades": result(220, 6)},
    ]
    found = report.medians(rounds)["fast trades"]
    assert (found["rate"], found["cpu_us"]) == (100, 5)
    assert found["times_naive"] == statistics.median([10, 16, 11])
    assert found["times_naive_cpu"] == statistics.median([20, 50, 50 / 6])


def test_a_summary_names_faults_and_counts_only_what_was_verified() -> None:
    rounds = [{"naive trades": result(10, 100), "fast trades": result(99_000, 5, fault="one is missing")}]
    followed = [{"load": "trades", "chunk": 500, "cost": 0.5}, {"load": "realistic", "chunk": 500, "cost": 1.5}]
    usual = {"recorded": result(500, 80, steady=steady(70)), "even": result(500, 80, steady=steady(50))}
    found = report.summary(rounds, {}, usual, followed)
    assert found["records_verified"] == 30
    assert found["faults"] == ["p, trades: one is missing"]
    held = {row["what"]: row["holds"] for row in found["targets"]}
    assert held["aggTrade, high-throughput settings"] is False
    assert held["500 msg/s, five symbols, as recorded"] is False
    assert held["500 msg/s, evenly spaced, the worst case"] is True
    assert held["following ids, a message, at full rate"] is False
    assert found["following_us"] == {"chunks": 1.5}
    found["following"] = []
    assert "FAULT p, trades: one is missing" in report.text("embedded", found)


def steady(cpu_us: float) -> dict[str, Any]:
    percent = cpu_us / 20
    threads = {"reader": percent / 2, "producer": percent / 4, "idle": percent / 1000}
    return {
        "seconds": 9.0,
        "messages": 4500,
        "rate": 500.0,
        "cpu_us": cpu_us,
        "percent": percent,
        "threads": threads,
    }


def test_threads_that_take_next_to_nothing_are_shown_together() -> None:
    assert report.busiest(steady(80)) == {"reader": 2.0, "producer": 1.0, "all others": 1.0}


def test_targets_that_were_not_measured_are_left_out() -> None:
    assert targets.compare({"throughput": {}, "latency_ms": {}, "usual_percent": {}, "following_us": {}}) == []


def test_a_plot_is_well_formed_and_its_lines_keep_their_peaks(tmp_path: Path) -> None:
    points = [(float(second), 5.0 if second == 1234 else 1.0) for second in range(4000)]
    assert max(y for _, y in svg.thinned(points)) == 5.0
    assert len(svg.thinned(points)) <= svg.MOST_POINTS
    svg.write(tmp_path / "plot.svg", [svg.bars("a < b", [svg.Bar("x", 0.0, "0")]), svg.line("l", points, "MB")])
    text = (tmp_path / "plot.svg").read_text()
    assert "a &lt; b" in text
    for tag in ("g", "text", "svg"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>")


def sample(second: float, memory_mb: float) -> soak.Sample:
    return soak.Sample(second, memory_mb, 10.0, 0, 0, 0, 1.0)


def test_memory_that_climbs_is_told_from_memory_that_settles() -> None:
    settles = [sample(second, min(60.0 + second, 90.0)) for second in range(1000)]
    climbs = [sample(second, 60.0 + second / 300) for second in range(1000)]
    assert soak.verdict(settles) == "flat"
    assert soak.verdict(climbs) == "climbs"
    assert soak.climb(climbs) == pytest.approx(6.0)
    assert soak.bound(climbs) == 5.0
    assert soak.bound([sample(0, 200.0)]) == 10.0


def test_a_rise_with_a_backlog_is_told_from_one_without() -> None:
    quiet = [sample(second, 60.0 + second / 100) for second in range(200)]
    starved = [replace(sample(200.0 + second, 70.0 + second), in_flight=600) for second in range(10)]
    after = [sample(210.0 + second, 79.0) for second in range(100)]
    backlog, others = soak.rises([*quiet, *starved, *after], 1000.0)
    assert backlog == pytest.approx(79 - quiet[-1].memory_mb)
    assert others == pytest.approx(quiet[-1].memory_mb - quiet[155].memory_mb)
    assert soak.rises([], 1000.0) == (0.0, 0.0)


def test_a_short_soak_gives_no_verdict() -> None:
    assert soak.verdict([sample(second, 60.0 + second) for second in range(599)]) == "too short to tell"
    assert soak.verdict([]) == "too short to tell"


def test_the_age_of_the_newest_record_is_seen_from_outside() -> None:
    blocks = [(100, 1_000_000_000), (200, 2_000_000_000)]
    looks = [(1.5, 0), (1.5, 100), (2.25, 150), (2.75, 200)]
    found = soak.ages(looks, blocks)
    assert found == [(0.0, 500.0), (0.75, 250.0), (1.25, 750.0)]
    assert [each.worst_ms for each in soak.with_ages([sample(1.1, 1), sample(2.2, 1)], found)] == [500.0, 750.0]


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    """Start programs that are ended with the test."""
    with ExitStack() as stack:

        def start(program: str) -> Child:
            child = Child("program", [sys.executable, "-c", program], tmp_path, {}, piped=True)
            stack.callback(child.stop)
            return child

        yield start


def test_a_steady_state_begins_after_the_first_second_and_ends_with_the_load(
    python: Callable[[str], Child],
) -> None:
    child = python("while True: pass")
    watched = Steady(3.0)

    def look(*looks: tuple[float, int]) -> None:
        for at, count in looks:
            watched.watch(Look(at, count, child, 0))

    look((0.0, 0), (1.0, 10), (1.5, 400), (2.1, 400), (2.2, 500), (2.3, 500))
    assert watched.found() == {}
    until = child.cpu_seconds() + 0.1
    while child.cpu_seconds() < until:
        time.sleep(0.01)
    look((3.0, 900), (3.5, 900), (4.1, 1500))
    found = watched.found()
    assert (found["messages"], found["seconds"], found["rate"]) == (400, 0.8, pytest.approx(500.0))
    assert found["cpu_us"] >= 0.1e6 / 400
    assert found["percent"] == pytest.approx(found["cpu_us"] * 500 / 1e4)
    assert sum(found["threads"].values()) == pytest.approx(found["percent"], rel=0.3)


def test_the_cpu_time_of_a_child_holds_its_threads_those_that_ended_too(python: Callable[[str], Child]) -> None:
    child = python(
        "import os, threading, time\n"
        "def work():\n"
        "    while time.thread_time() < 0.2: pass\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "while len(os.listdir('/proc/self/task')) > 1: pass\n"
        "print(time.process_time(), flush=True); time.sleep(60)"
    )
    own: Any = child.line()
    seconds, threads = child.cpu_seconds(), child.threads()
    assert 0.2 <= own <= seconds < own + 0.1
    assert list(threads) == [child.pid]
    assert threads[child.pid] < seconds - 0.1


def test_idle_time_of_the_cores_is_what_the_kernel_says() -> None:
    up, idle = (float(text) for text in Path("/proc/uptime").read_text().split())
    measured = idle_core_seconds()
    assert idle - 1.0 <= measured  # which holds the time in which a disk was waited for, too
    assert measured <= (up + 1.0) * (os.cpu_count() or 1)


def share(rate: float, cpu_us: float = 5.0) -> shards.Share:
    return shards.Share(0, 2, 1000, rate, cpu_us, 70.0)


@pytest.mark.parametrize(
    ("rates", "idle", "word"),
    [
        ([1000, 990], 0.5, "holds"),
        ([1000, 990], 0.0, "holds"),
        ([1000, 840], 0.5, "MISSED"),
        ([1000, 840], 0.05, "cores used up"),
    ],
)
def test_an_added_process_is_judged_while_cores_are_idle(rates: list[float], idle: float, word: str) -> None:
    first = shards.Outcome([share(1000)], 1000, 0.1, "", 1.0, 1000)
    added = shards.Outcome([share(rate, 6.0) for rate in rates], sum(rates), 0.2, "", idle, 1000)
    found = shards.verdict(first, added)
    assert (found.word, found.processes, found.cpu_ratio) == (word, 2, 1.2)
    assert found.ratio == min(rates) / 1000
    assert str(found).startswith(f"{word}: 2 processes, 1,000 msg/s offered to each")


def test_a_profile_counts_functions_and_leaves_waiting_out() -> None:
    raw = (
        'thread (1): "reader";main (a.py:1);decode (src/b.py:2) 6\n'
        'thread (1): "reader";main (a.py:1) 2\n'
        'thread (2): "other";sigwait (signal.py:3) 50\n'
    )
    profile = hotspots.parsed(raw)
    assert profile.samples == 8
    assert profile.own == {"decode (b.py)": 6, "main (a.py)": 2}
    assert profile.cumulative["main (a.py)"] == 8


def test_what_counts_as_waiting_is_still_called_so() -> None:
    called = re.compile(r"(\w+)\.(\w+) \((\w+)\.py\)")
    places = [found.groups() for name in hotspots.WAITING if (found := called.fullmatch(name))]
    ours = [place for place in places if (ROOT / "src" / f"{place[2]}.py").is_file()]
    assert ours
    for owner, method, module in ours:
        assert callable(getattr(getattr(import_module(f"src.{module}"), owner), method))


def test_a_child_gets_none_of_the_users_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_LINGER_MS", "777")
    child = Child("show", ["env"], tmp_path, {"BINANCE_SYMBOLS": "X"})
    child.stop()
    assert "KAFKA_LINGER_MS" not in child.log.read_text()


def test_a_traced_run_of_the_real_service_is_complete_and_timed(broker: Broker) -> None:
    with RestServer() as rest:
        task = Task(PIPELINES["seeds"], "realistic", 2000, 2000, trace_every=2)
        measured = run(task, broker.bootstrap_servers, rest.url)
    assert measured.fault == ""
    assert measured.delivered == 2000
    assert measured.cpu_us > 0
    assert 20 < measured.idle_mb <= measured.peak_mb
    assert measured.legs["send_to_ack"]["samples"] == pytest.approx(
        1000, abs=5
    )  # the books of five symbols come between
    assert 0 <= measured.legs["send_to_read"]["p50"] <= measured.legs["send_to_ack"]["p50"]


def test_a_run_over_tls_that_is_followed_is_compared_and_the_broker_keeps_little_of_it(broker: Broker) -> None:
    watched = Steady(4.0)
    task = Task(
        replace(PIPELINES["seeds"], tls=True),
        "realistic",
        2000,
        500,
        stretch=500,
        arrivals="recorded",
        watch=watched.watch,
        follow=True,
    )
    with RestServer() as rest, Run(task, broker.bootstrap_servers, rest.url) as prepared:
        measured = prepared.measure()
        follower = prepared.follower
        with closing(prepared.topics.open_consumer()) as consumer:
            begins = consumer.beginning_offsets(prepared.topics.partitions)
    assert measured.fault == ""
    assert isinstance(follower, Follower)
    assert follower.read == 2005  # with the books
    assert 0 < follower.deleted == sum(begins.values())
    assert 150 < watched.found()["rate"] < 1500  # 500 over less than 4 s, in which a busy machine may stand still


def test_a_short_soak_of_the_real_service_is_sampled_timed_and_compared() -> None:
    arguments = argparse.Namespace(broker="embedded", pipeline="fast", load="realistic", rate=500.0, seconds=4.0)
    soaked = soak.soak(arguments)
    found = soak.kept(arguments, soaked)["summary"]
    assert (found["fault"], found["records"], found["verdict"]) == ("", 2000, "too short to tell")
    assert 0 < found["age_ms"]["p50"] < 10_000
    last = soaked.samples[-1]
    assert min(last.memory_mb, last.broker_mb, last.harness_mb) > 5
    assert found["memory_peak_mb"] >= max(each.memory_mb for each in soaked.samples) - 1
    text = markdown.soak_section(soak.kept(arguments, soaked))
    assert "**too short to tell**" in text
    assert "every one read back" in text
    measured: dict[str, Any] = {"summary": {"targets": []}}
    table = markdown._targets({"embedded": measured, "kafka4": measured}, {"summary": found})
    assert "over 0 minutes at 500/s, its climb" in table
    assert table.endswith("**missed** | - |")  # what was not told to be flat is no target met


def test_what_a_follower_finds_missing_is_the_verdict(broker: Broker) -> None:
    made = topics.RunTopics(broker.bootstrap_servers, peer=False)
    value = (
        b'{"s":"BTCUSDT","a":%d,"ingestion_timestamp":1,"source":"x",'
        b'"event_type":"aggregate_trade","pipeline_version":"1"}'
    )
    follower = Follower(made)
    follower.start()
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for number in (1, 2, 4):
        producer.send(f"{made.tag}-trades", value % number, partition=0)
    producer.close()
    assert follower.verdict({LINE: 4}, 3).endswith("4 came after 2")
    assert follower.fault.endswith("4 came after 2")
    follower.close()
    made.close()


def test_a_run_that_cannot_be_followed_any_more_ends_with_what_is_wrong(broker: Broker) -> None:
    task = Task(PIPELINES["seeds"], "trades", 30_000, 500, stretch=500, follow=True)
    with RestServer() as rest, Run(task, broker.bootstrap_servers, rest.url) as prepared:
        assert prepared.follower is not None
        vars(prepared.topics)["identify"] = None  # whatever it may be that fails on the follower's thread
        started = time.monotonic()
        measured = prepared.measure()
    assert measured.fault.startswith("the records could not be followed: TypeError")
    assert time.monotonic() - started < 30


def test_two_real_shards_send_every_stream_once_and_it_is_verified(broker: Broker) -> None:
    arguments = argparse.Namespace(load="realistic", frames=1500, rate=1500, pipeline="seeds")
    with RestServer() as rest:
        outcome = shards.run(2, arguments, broker.bootstrap_servers, rest.url)
    assert outcome.fault == ""
    assert [share.delivered for share in outcome.shares] == [1500, 1500]
    assert (outcome.offered, outcome.idle >= 0, outcome.behind_seconds >= 0) == (1500, True, True)
    assert sum(share.streams for share in outcome.shares) == len(loads.streams("realistic").split(","))


def test_a_stream_on_two_shards_or_on_none_is_found() -> None:
    streams = loads.streams("trades").split(",")
    halves = [SimpleNamespace(streams=streams[:3]), SimpleNamespace(streams=streams[2:4])]
    assert shards._overlap(halves, "trades") == f"subscribed to so often: {{{streams[2]!r}: 2, {streams[4]!r}: 0}}"


@pytest.mark.parametrize("load", following.MEASURED)
def test_following_is_measured_on_events_that_all_come_out(load: str) -> None:
    with RestServer() as rest:
        measurement = following.Measurement(load, f"{rest.url}{LIVE}")
        pairs = [
            measurement.pair(chunk, plain_first=plain) for chunk in following.CHUNKS for plain in (True, False)
        ]
        measurement.close()
    assert all(min(pair) > 0 for pair in pairs)
    row = {"load": load, "chunk": 500} | following._row(pairs)
    assert row["cost"] == statistics.median(pair.cost for pair in pairs)
    assert f"{load}, chunks of 500" in following.text([row])


def test_a_decoder_that_wants_no_ids_gives_the_same_values_without_them() -> None:
    frames = list(loads.Encoder("realistic").payloads(1000))
    made: dict[Any, Any] = {}
    whole = EventDecoder(Topics("t", "d", "r"), made).decode(frames, 1).events
    without = {key: msgspec.structs.replace(route, ids=None) for key, route in made.items()}
    with following.ids_not_parsed():
        plain = EventDecoder(Topics("t", "d", "r"), without).decode(frames, 1).events
        with pytest.raises(AttributeError):  # the parser has no field of an id
            EventDecoder(Topics("t", "d", "r"), made).decode(frames, 1)
    assert [event.value for event in plain] == [event.value for event in whole]
    assert {event.first_id for event in plain} == {NO_ID}
    assert {event.first_id for event in whole} > {NO_ID, 1}


def test_an_event_that_does_not_come_out_is_told() -> None:
    with RestServer() as rest:
        measurement = following.Measurement("trades", f"{rest.url}{LIVE}")
        next(measurement._encoder.payloads(1))
        try:
            with pytest.raises(following.IncompleteError):
                measurement.pair(500, plain_first=True)
        finally:
            measurement._stage.close()


def test_a_place_of_the_page_is_rewritten_and_the_rest_is_left() -> None:
    document = "a\n<!-- soak -->\n\nold\n\n<!-- end of soak -->\nb\n"
    assert markdown.with_place(document, "soak", "new") == document.replace("old", "new")
    assert markdown.with_place(document, "soak", "") == document
    with pytest.raises(ValueError, match="no place"):
        markdown.with_place(document, "shards", "x")


def test_the_page_has_every_place_and_its_tables_can_be_made_from_what_is_kept() -> None:
    document = (ROOT / "BENCHMARKS.md").read_text()
    results = {broker: markdown.kept(broker) for broker in markdown.COMMANDS}
    soaked = markdown.kept("soak")
    page = markdown.with_place(document, "results", markdown.section(results, soaked))
    page = markdown.with_place(page, "shards", "x")
    page = markdown.with_place(page, "soak", markdown.soak_section(soaked))
    assert "/s, its climb | <= " in page
    assert page.count("![plot](benchmarks/results/") == 3
    for name in re.findall(r"!\[plot\]\((.*?)\)", page):
        assert (ROOT / name).is_file()


def test_a_first_process_that_falls_short_says_nothing_about_the_others() -> None:
    first = shards.Outcome([share(900)], 900, 0.1, "", 1.0, 1000)
    added = shards.Outcome([share(900), share(900)], 1800, 0.2, "", 0.5, 1000)
    assert shards.verdict(first, added).word == "the first alone falls short"
    assert shards.verdict(first._replace(offered=None), added._replace(offered=None)).word == "holds"


def test_what_several_processes_brought_is_told_with_its_verdict() -> None:
    first = shards.Outcome([share(1000)], 1000, 0.1, "", 1.0, 1000)
    added = shards.Outcome([share(1000), share(990)], 1990, 0.2, "", 0.5, 1000)
    rows = shards.report([first, added])
    about = {
        "machine": {"cores": 2},
        "started": "2026-11-26",
        "load_average": [1.0, 2.0],
        "load": "trades",
        "pipeline": "fast",
        "broker": "embedded",
        "seconds": 20.0,
        "rounds": 3,
        "command": "python -m benchmarks.shards",
    }
    text = markdown.shards_section(about | rows, about | {"rates": [rows]})
    assert "| 1,000 | 2 | 99.0 % | 5.00, 5.00 | 0.50 | holds |" in text
    assert "| 2 | 0 | 2 | 1,000 | 100% | 5.00 | 70 |" in text
    assert markdown.shards_section({}, {}) == ""
