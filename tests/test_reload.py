"""SIGHUP on the real process: other streams by the difference, other settings named, faulty ones refused."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from config.shards import shard_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.exchange import Exchange
    from tests.broker_fixtures import Topics
    from tests.service_fixtures import ServiceProcess, StartService

pytestmark = pytest.mark.kafka

TYPES = "BINANCE_STREAM_TYPES=trade,aggTrade\n"


@pytest.fixture
def market(exchange_factory: Callable[..., Exchange]) -> Exchange:
    """Start a market at 200 messages a second."""
    return exchange_factory(rate=200, symbols=("BTCUSDT", "ETHUSDT", "BNBUSDT"))


def subscriptions(exchange: Exchange) -> list[set[str]]:
    return [set(each["subscriptions"]) for each in exchange.connections() if each["open"]]


def write(folder: Path, text: str) -> None:
    (folder / ".env").write_text(text)


def both(*symbols: str) -> set[str]:
    return {f"{symbol}@{kind}" for symbol in symbols for kind in ("trade", "aggTrade")}


@pytest.fixture
def service(market: Exchange, topics: Topics, start_service: StartService, tmp_path: Path) -> ServiceProcess:
    """Start a service that has its streams from a file."""
    write(tmp_path, TYPES + "BINANCE_SYMBOLS=BTCUSDT,ETHUSDT\n")
    running = start_service(market.ws_url, topics, cwd=tmp_path, BINANCE_REST_BASE_URL=market.rest_url)
    running.ready()
    running.wait_for(lambda: subscriptions(market) == [both("btcusdt", "ethusdt")], "subscribed")
    return running


def changes(service: ServiceProcess) -> list[tuple[list[str], list[str]]]:
    return [(line["added"], line["removed"]) for line in service.events("streams_changed")]


def test_sighup_adds_and_removes_streams_by_the_difference(
    market: Exchange, service: ServiceProcess, tmp_path: Path
) -> None:
    before = market.connections()[0]["client_frames"]
    write(tmp_path, TYPES + "BINANCE_SYMBOLS=ETHUSDT,BNBUSDT\n")
    service.send(signal.SIGHUP)
    service.wait_for(lambda: subscriptions(market) == [both("ethusdt", "bnbusdt")], "changed")
    assert changes(service) == [(["bnbusdt@trade", "bnbusdt@aggTrade"], ["btcusdt@trade", "btcusdt@aggTrade"])]
    (record,) = market.connections()
    assert record["client_frames"] - before == 2
    service.wait_for(lambda: "BNBUSDT" in service.status()["symbols"], "data of the new symbol")
    assert service.status()["streams"] == 4
    assert service.stop() == 0
    assert service.final["kafka_produced"] == service.final["messages_received"] + service.final[
        "messages_backfilled"
    ] - service.final.get("messages_duplicate", 0)


def test_of_a_book_that_is_not_read_any_more_no_snapshot_is_asked_for(
    market: Exchange, topics: Topics, start_service: StartService, tmp_path: Path
) -> None:
    depth = "BINANCE_STREAM_TYPES=depth@100ms\n"
    write(tmp_path, depth + "BINANCE_SYMBOLS=BTCUSDT,ETHUSDT\n")
    service = start_service(
        market.ws_url, topics, cwd=tmp_path, BACKFILL_ENABLED="true", BACKFILL_SNAPSHOT_INTERVAL_SECONDS=0.3
    )

    def taken(symbol: str) -> int:
        return sum(line["stream"].startswith(symbol) for line in service.events("snapshot_taken"))

    service.wait_for(lambda: taken("btcusdt") > 1 and taken("ethusdt") > 1, "snapshots")
    write(tmp_path, depth + "BINANCE_SYMBOLS=ETHUSDT\n")
    service.send(signal.SIGHUP)
    service.logged("streams_changed")
    before, others = taken("btcusdt"), taken("ethusdt")
    service.wait_for(lambda: taken("ethusdt") > others + 4, "more snapshots of the other book")
    assert taken("btcusdt") <= before + 1, "one was under way"
    assert service.stop() == 0


def test_what_only_a_restart_takes_over_is_named(service: ServiceProcess, tmp_path: Path) -> None:
    text = (
        TYPES + "BINANCE_SYMBOLS=BTCUSDT,ETHUSDT\nKAFKA_LINGER_MS=20\nCONNECTION_STANDBY=true\nKAFKA_LINGERS=1\n"
    )
    write(tmp_path, text)
    service.send(signal.SIGHUP)
    line = service.logged("settings_reread")
    assert line["needs_restart"] == ["KAFKA_LINGER_MS", "CONNECTION_STANDBY"]
    assert service.logged("unknown_variable")["variable"] == "KAFKA_LINGERS"
    assert changes(service) == []


def test_faulty_settings_are_named_fault_by_fault_and_change_nothing(
    market: Exchange, service: ServiceProcess, tmp_path: Path
) -> None:
    write(tmp_path, "BINANCE_STREAM_TYPES=trades\nBINANCE_SYMBOLS=BNBUSDT\nKAFKA_ACKS=7\n")
    service.send(signal.SIGHUP)
    service.logged("settings_refused", count=2)
    assert [line["fault"].split("=")[0] for line in service.events("settings_refused")] == [
        "BINANCE_STREAM_TYPES",
        "KAFKA_ACKS",
    ]
    write(tmp_path, TYPES + "BINANCE_SYMBOLS=BTCUSDT\n")
    service.send(signal.SIGHUP)
    service.wait_for(lambda: subscriptions(market) == [both("btcusdt")], "changed")
    assert changes(service) == [([], ["ethusdt@trade", "ethusdt@aggTrade"])]


def test_streams_that_leave_the_shard_without_one_are_refused_as_at_a_start(
    market: Exchange, topics: Topics, start_service: StartService, tmp_path: Path
) -> None:
    index = shard_of("btcusdt@trade", 2)
    other = next(name for name in ("ethusdt", "bnbusdt") if shard_of(f"{name}@trade", 2) != index)
    write(tmp_path, TYPES + f"BINANCE_SYMBOLS=BTCUSDT,{other}\n")
    service = start_service(market.ws_url, topics, cwd=tmp_path, SHARD_COUNT=2, SHARD_INDEX=index)
    service.ready()
    service.wait_for(lambda: subscriptions(market) == [both("btcusdt")], "subscribed")
    write(tmp_path, TYPES + f"BINANCE_SYMBOLS={other}\nSHARD_COUNT=1\nKAFKA_LINGER_MS=20\n")
    service.send(signal.SIGHUP)
    fault = service.logged("settings_refused")["fault"]
    assert fault.startswith(f"SHARD_COUNT='2': leaves shard {index} without a stream")
    assert "at most 1 for these streams" in fault
    assert subscriptions(market) == [both("btcusdt")]
    assert service.get("/ready")[0] == 200
    assert not service.events("settings_reread")
    assert service.stop() == 0


def test_all_of_a_market_is_read_when_the_exchange_has_said_what_it_lists(
    market: Exchange, topics: Topics, start_service: StartService, tmp_path: Path
) -> None:
    market.rest(500, count=1)
    service = start_service(
        market.ws_url,
        topics,
        cwd=tmp_path,
        BINANCE_REST_BASE_URL=market.rest_url,
        BINANCE_SYMBOLS="ALL:USDT,-BNBUSDT",
        BINANCE_STREAM_TYPES="trade,aggTrade",
    )
    service.logged("listing_unavailable")
    status, body = service.get("/ready")
    assert status == 503
    assert b"list of symbols has not been read yet" in body
    service.ready()
    service.wait_for(lambda: subscriptions(market) == [both("btcusdt", "ethusdt")], "subscribed")
    assert service.stop() == 0


def test_sighup_while_starting_is_harmless(
    market: Exchange, topics: Topics, start_service: StartService, tmp_path: Path
) -> None:
    for _ in range(3):
        service = start_service(market.ws_url, topics, cwd=tmp_path, BINANCE_REST_BASE_URL=market.rest_url)
        service.wait_for(lambda: _blocks_sighup(service.pid), "python started")  # noqa: B023
        for _ in range(50):
            service.send(signal.SIGHUP)
        service.ready()
        service.logged("settings_reread")
        assert service.stop() == 0


def _blocks_sighup(pid: int) -> bool:
    """Whether the process got as far as blocking SIGHUP, its first act."""
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 - a file of the kernel
        mask = int(next(line.split()[1] for line in status if line.startswith("SigBlk")), 16)
    return bool(mask >> (signal.SIGHUP - 1) & 1)
