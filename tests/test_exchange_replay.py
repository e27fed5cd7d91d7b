"""Recordings are replayed verbatim: at their own pace, faster, or as fast as the client reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.exchange.counter import CountingClient
from tests.exchange_fixtures import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from tests.exchange_fixtures import Client, ExchangeProcess

RECORDINGS = Path(__file__).resolve().parents[2] / "shared/binance/frames"
STREAMS = ("btcusdt@trade", "ethusdt@trade")


def recorded(folder: Path, times: list[str] | None, count: int = 40) -> tuple[Path, list[str]]:
    frames = [
        f'{{"stream":"{STREAMS[number % 2]}","data":{{"e":"trade", "t":{number},"p":"0.1000","x":"é"}}}}'
        for number in range(count)
    ]
    path = folder / "recording.jsonl"
    path.write_text("\n".join(frames) + "\n")
    if times is not None:
        path.with_suffix(".recv_ts").write_text("\n".join(times) + "\n")
    return path, frames


def test_as_fast_as_possible_every_byte_is_the_recorded_one(
    tmp_path: Path, exchange: Exchange, connect: Callable[[str], Client]
) -> None:
    path, frames = recorded(tmp_path, None)
    client = connect(f"{exchange.ws_url}/{'/'.join(STREAMS)}")
    answer = exchange.replay(str(path), speed=0)
    assert answer == {"replay": str(path), "frames": 40, "speed": 0, "repeat": 1}
    assert [client.text() for _ in frames] == frames
    exchange.replay(str(path), speed=0, repeat=3)
    assert [client.text() for _ in frames * 3] == frames * 3
    tally = exchange.sent(1)["streams"]["ethusdt@trade"]
    assert (tally["count"], tally["first_id"], tally["last_id"]) == (80, 1, 39)


@pytest.mark.parametrize("unit", ["seconds", "nanoseconds"])
@pytest.mark.parametrize("speed", [1, 4])
def test_the_pace_is_the_recorded_one_or_a_multiple(
    unit: str, speed: float, tmp_path: Path, exchange: Exchange, connect: Callable[[str], Client]
) -> None:
    steps = [number * 0.015 for number in range(40)]
    if unit == "seconds":
        times = [f"{1_617_566_591.326123 + step:.6f}" for step in steps]
    else:
        times = [str(1_723_161_253_937_085_768 + int(step * 1e9)) for step in steps]
    path, frames = recorded(tmp_path, times)
    client = connect(f"{exchange.ws_url}/{'/'.join(STREAMS)}")

    def replayed() -> float:
        began = time.monotonic()
        exchange.replay(str(path), speed=speed)
        assert [client.text() for _ in frames] == frames
        return time.monotonic() - began

    passed = min(replayed() for _ in range(3))  # the machine may stand still in one of them
    assert steps[-1] / speed - 0.01 <= passed < steps[-1] / speed + 0.3


def test_a_connection_gets_what_it_subscribed_to_unless_told_otherwise(
    tmp_path: Path, exchange: Exchange, connect: Callable[[str], Client]
) -> None:
    path, frames = recorded(tmp_path, None)
    half, none = connect(f"{exchange.ws_url}/{STREAMS[1]}"), connect(exchange.ws_url)
    exchange.replay(str(path), speed=0)
    assert [half.text() for _ in frames[1::2]] == frames[1::2]
    exchange.replay(str(path), speed=0, to_all=True)
    assert [none.text() for _ in frames] == frames


def test_a_replay_may_wait_for_the_first_subscription(
    tmp_path: Path, exchange_process: Callable[..., ExchangeProcess], connect: Callable[[str], Client]
) -> None:
    path, frames = recorded(tmp_path, None)
    process = exchange_process("--rate", "0", "--replay", str(path), "--replay-speed", "0")
    client = connect(process.started["ws"])
    client.subscribe(*STREAMS)
    assert [client.text() for _ in frames] == frames


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recordings beside the repository")
@pytest.mark.parametrize("name", ["spot_20210404_btc_eth_dot", "spot_btc_eth_20240808_interleaved_12k"])
def test_real_recordings_arrive_whole(name: str, exchange: Exchange) -> None:
    path = RECORDINGS / f"{name}.jsonl"
    frames = [line for line in path.read_bytes().split(b"\n") if line]
    client = CountingClient(exchange.ws_url)
    exchange.replay(str(path), speed=0, to_all=True)
    while client.counted.frames < len(frames):
        assert client.read()
    assert client.counted.size == sum(map(len, frames))
    client.close()
    eventually(lambda: not exchange.connections()[0]["open"])
    assert exchange.sent()["total"]["count"] == len(frames)
