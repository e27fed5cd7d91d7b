"""What the exchange lists: names checked, `ALL` resolved, new listings added, gone ones left out, REST away."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from config.binance import BinanceConfig
from src import listing
from src.binance_rest import BinanceRest
from src.listing import FILE, Listing
from src.selection import Listed, alive, chosen, faults
from src.telemetry import Telemetry
from src.weight_budget import WeightBudget
from tests.exchange_fixtures import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sandbox.exchange import Exchange
    from src.worker import Worker

SYMBOLS = ("BTCUSDT", "ETHUSDT", "ETHBTC", "DOGEUSDT")


def listing_of(**statuses: str) -> dict[str, Listed]:
    return {name: Listed(name, status, name[:-4], name[-4:]) for name, status in statuses.items()}


def test_a_choice_comes_to_names_quotes_and_what_is_left_out() -> None:
    listing = listing_of(BTCUSDT="TRADING", ETHUSDT="TRADING", BTCEURO="TRADING", OLDUSDT="BREAK")
    trading = alive(listing, ())
    assert chosen(("ALL",), listing, trading) == ("BTCUSDT", "ETHUSDT", "BTCEURO")
    assert chosen(("ALL:USDT", "BTCEURO", "XUSDT"), listing, trading) == ("BTCUSDT", "ETHUSDT", "BTCEURO", "XUSDT")
    assert chosen(("-ETHUSDT", "ALL:USDT"), listing, trading) == ("BTCUSDT",)
    assert chosen(("ALL:XYZ",), listing, trading) == ()


def test_a_symbol_that_pauses_stays_until_the_second_reading_and_one_that_is_gone_does_not() -> None:
    assert alive(listing_of(BTCUSDT="BREAK", ETHUSDT="HALT"), {"BTCUSDT", "GONEUSDT"}) == ("BTCUSDT",)


def test_names_that_bring_nothing_are_told_with_the_nearest_one() -> None:
    listing = listing_of(BTCUSDT="TRADING", ETHUSDT="BREAK")
    found = faults(("BTCUSDT", "BTCUSD", "ETHUSDT", "QQQQ"), listing)
    assert found == ({"BTCUSD": "BTCUSDT", "QQQQ": None}, {"ETHUSDT": "BREAK"})


class Choosing:
    """A listing on the exchange's REST, with what it chose."""

    def __init__(self, rest_url: str, folder: Path, **binance: Any) -> None:
        self.telemetry = Telemetry(connections=0)
        self.applied: list[tuple[str, ...]] = []
        self.ended: list[Worker] = []
        self.rest = BinanceRest(rest_url, WeightBudget(6000), self.telemetry)
        settings: dict[str, Any] = {"stream_types": ("trade",), "listing_interval_seconds": 0.3}
        self.listing = Listing(
            BinanceConfig(**(settings | binance)),
            self.rest.listed,
            self.apply,
            folder,
            self.telemetry,
            self.ended.append,
        )

    def apply(self, streams: Sequence[str]) -> None:
        if not self.applied or self.applied[-1] != tuple(streams):
            self.applied.append(tuple(streams))

    def stop(self) -> None:
        self.listing.close()
        self.rest.close()
        self.listing.join(5)
        assert not self.listing.alive
        assert all(worker.failure is None for worker in self.ended)


@pytest.fixture
def choose(tmp_path: Path) -> Iterator[Callable[..., Choosing]]:
    """Start a listing; whatever a test leaves running is stopped at its end."""
    with ExitStack() as stack:

        def started(rest_url: str, **binance: Any) -> Choosing:
            choosing = Choosing(rest_url, tmp_path, **binance)
            choosing.listing.start()
            stack.callback(choosing.stop)
            return choosing

        yield started


@pytest.fixture
def market(exchange_factory: Callable[..., Exchange]) -> Exchange:
    """Start an exchange that lists four symbols."""
    return exchange_factory(symbols=SYMBOLS)


def of(lines: list[Any], event: str) -> list[Any]:
    return [line for line in list(lines) if line["event"] == event]


def test_new_listings_are_read_and_gone_ones_are_not(market: Exchange, choose: Callable[..., Choosing]) -> None:
    market.list_symbol("ETHUSDT", None)
    choosing = choose(market.rest_url, symbols=("ALL:USDT", "-DOGEUSDT"))
    eventually(lambda: choosing.applied == [("btcusdt@trade",)])
    market.list_symbol("ETHUSDT")
    eventually(lambda: choosing.applied[1:] == [("btcusdt@trade", "ethusdt@trade")])
    market.list_symbol("BTCUSDT", None)
    eventually(lambda: choosing.applied[2:] == [("ethusdt@trade",)])
    market.list_symbol("ETHUSDT", "BREAK")
    eventually(lambda: choosing.applied[3:] == [()])


def test_names_are_applied_before_the_listing_is_there_and_checked_when_it_is(
    market: Exchange, choose: Callable[..., Choosing], logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_FIRST_WAIT", 0.5)
    market.rest(503, count=1)
    market.list_symbol("ETHUSDT", "HALT")
    choosing = choose(market.rest_url, symbols=("BTCUSDT", "ETHUSDT", "DOGEUSD"))
    eventually(lambda: choosing.applied == [("btcusdt@trade", "ethusdt@trade", "dogeusd@trade")])
    (line,) = eventually(lambda: of(logged, "listing_unavailable"))
    assert (line["log_level"], line["effect"]) == ("warning", "symbols are not checked")
    eventually(lambda: of(logged, "symbol_unknown"))
    assert {key: of(logged, "symbol_unknown")[0][key] for key in ("symbol", "nearest", "log_level")} == {
        "symbol": "DOGEUSD",
        "nearest": "DOGEUSDT",
        "log_level": "warning",
    }
    (halted, *_) = of(logged, "symbol_not_trading")
    assert (halted["symbol"], halted["status"]) == ("ETHUSDT", "HALT")
    assert choosing.listing.state() == {
        "symbols_unknown": 1,
        "symbols_not_trading": 1,
        "symbol_faults": {"DOGEUSD": "unknown, nearest DOGEUSDT", "ETHUSDT": "HALT"},
    }
    assert len(choosing.applied) == 1


def test_the_symbols_of_exact_streams_are_checked_too(
    market: Exchange, choose: Callable[..., Choosing], logged: list[Any]
) -> None:
    choose(market.rest_url, streams=("btcusdt@trade", "nopeusdt@depth@100ms", "!miniTicker@arr"))
    (line, *_) = eventually(lambda: of(logged, "symbol_unknown"))
    assert line["symbol"] == "NOPEUSDT"


def test_without_rest_the_listing_of_an_earlier_run_is_chosen_from(
    market: Exchange, choose: Callable[..., Choosing], logged: list[Any], tmp_path: Path
) -> None:
    first = choose(market.rest_url, symbols=("ALL:USDT",))
    eventually(lambda: first.applied)
    first.stop()
    yesterday = time.time() - 86_400
    os.utime(tmp_path / FILE, (yesterday, yesterday))
    market.rest(500, count=1_000)
    second = choose(market.rest_url, symbols=("ALL:USDT",))
    eventually(lambda: second.applied == first.applied)
    (line,) = of(logged, "listing_taken_from_disk")
    assert line["symbols"] == 4
    assert line["age_seconds"] == pytest.approx(86_400, abs=60)


@pytest.mark.parametrize("kept", [None, "", "[", "[1]", "{}", '[["BTCUSDT"]]'])
def test_without_rest_and_without_an_earlier_listing_the_choice_waits(
    market: Exchange, choose: Callable[..., Choosing], logged: list[Any], tmp_path: Path, kept: str | None
) -> None:
    if kept is not None:
        (tmp_path / FILE).write_text(kept)
    market.rest(500, count=1_000)
    choosing = choose(market.rest_url, symbols=("ALL:USDT",))
    (line,) = eventually(lambda: of(logged, "listing_unavailable"))
    assert line["effect"] == "streams cannot be chosen yet"
    assert choosing.listing.waiting
    assert choosing.applied == []
    began = time.monotonic()
    choosing.stop()
    assert time.monotonic() - began < 6


def test_other_settings_are_chosen_from_at_once(market: Exchange, choose: Callable[..., Choosing]) -> None:
    choosing = choose(market.rest_url, symbols=("ALL:USDT",), listing_interval_seconds=3600)
    eventually(lambda: choosing.applied)
    choosing.listing.choose(BinanceConfig(symbols=("ALL:BTC", "BTCUSDT"), stream_types=("aggTrade",)))
    eventually(lambda: choosing.applied[1:] == [("ethbtc@aggTrade", "btcusdt@aggTrade")])


def test_a_listing_is_kept_whole_or_not_at_all(
    market: Exchange, choose: Callable[..., Choosing], tmp_path: Path
) -> None:
    choose(market.rest_url, symbols=("ALL",))
    eventually((tmp_path / FILE).exists)
    assert [row[0] for row in json.loads((tmp_path / FILE).read_text())] == list(SYMBOLS)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
