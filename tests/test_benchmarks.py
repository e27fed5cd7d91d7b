"""The benchmark's own arithmetic, its load generator, and a short run of the real thing."""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import threading
import time
from collections import Counter
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import hotspots, loads, report, shards, soak, svg, targets, topics, traced
from benchmarks.children import Child
from benchmarks.latency import legs, percentiles, sent_at_ns
from benchmarks.load import Frames, Progress, Sender
from benchmarks.rest import RestServer
from benchmarks.runs import PIPELINES, Result, Task, run
from benchmarks.spoolless import Straight
from src.delivery import Delivery
from src.events import EventDecoder, Topics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.brokers import Broker

HEADER = 126


def test_the_stage_without_a_spool_stands_in_for_the_one_with_it() -> None:
    verbs = [{name for name in vars(stage) if name[0] != "_"} for stage in (Delivery, Straight)]
    assert verbs[0] == verbs[1]


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
    assert sent.seconds == pytest.approx(0.5, abs=0.1)
    assert sent.waited > 0.5
    assert sum(size for _, size in arrivals) == len(loads.Encoder("trades").encode(2000).block)
    assert sender.blocks[-1][0] == 2000
    assert before <= sender.blocks[0][1] <= sender.blocks[-1][1]


def test_a_generator_that_could_not_keep_its_pace_says_by_how_much(receiver: Any) -> None:
    ours, _, _ = receiver
    assert Sender(ours, Frames("trades", 100_000)).paced(1e9, 0.001).behind_seconds > 0.001


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
    found = report.summary(rounds, {}, result(500, 80))
    assert found["records_verified"] == 20
    assert found["faults"] == ["p, trades: one is missing"]
    held = {row["what"]: row["holds"] for row in found["targets"]}
    assert held["aggTrade, high-throughput settings"] is False
    assert held["500 msg/s, five symbols"] is False
    assert "FAULT p, trades: one is missing" in report.text("embedded", found)


def test_targets_that_were_not_measured_are_left_out() -> None:
    assert targets.compare({"throughput": {}, "latency_ms": {}, "usual_percent": None}) == []


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
    settles = [sample(second, min(60.0 + second, 90.0)) for second in range(100)]
    climbs = [sample(second, 60.0 + second / 5) for second in range(100)]
    assert soak.is_flat(settles)
    assert not soak.is_flat(climbs)
    assert soak.climb(climbs) == pytest.approx(49 / 5)


def test_the_age_of_the_newest_record_is_seen_from_outside() -> None:
    blocks = [(100, 1_000_000_000), (200, 2_000_000_000)]
    looks = [(1.5, 0), (1.5, 100), (2.25, 150), (2.75, 200)]
    found = soak.ages(looks, blocks)
    assert found == [(0.0, 500.0), (0.75, 250.0), (1.25, 750.0)]
    assert [each.worst_ms for each in soak.with_ages([sample(1.1, 1), sample(2.2, 1)], found)] == [500.0, 750.0]


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


def test_two_real_shards_send_every_stream_once_and_it_is_verified(broker: Broker) -> None:
    arguments = argparse.Namespace(load="realistic", frames=1500, rate=1500, pipeline="seeds")
    with RestServer() as rest:
        outcome = shards.run(2, arguments, broker.bootstrap_servers, rest.url)
    assert outcome.fault == ""
    assert [share.delivered for share in outcome.shares] == [1500, 1500]
    assert sum(share.streams for share in outcome.shares) == len(loads.streams("realistic").split(","))


def test_a_stream_on_two_shards_or_on_none_is_found() -> None:
    streams = loads.streams("trades").split(",")
    halves = [SimpleNamespace(streams=streams[:3]), SimpleNamespace(streams=streams[2:4])]
    assert shards._overlap(halves, "trades") == f"subscribed to so often: {{{streams[2]!r}: 2, {streams[4]!r}: 0}}"
