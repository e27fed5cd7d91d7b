"""Several instances divide the streams: without overlap, without a gap, and whatever else is on the list."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.faults import SettingsError
from config.settings import Settings, ShardConfig, SpoolConfig, load_settings
from config.shards import most_shards, shard_of, share, spool_folder, spool_folders
from src.events import Event, Route
from src.other_shards import take_over
from src.spool import FILE, Spool
from tests.broker_fixtures import read_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from tests.broker_fixtures import Topics
    from tests.service_fixtures import StartService

DEFAULT = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "ADAUSDT", "XRPUSDT")
symbols = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12)
lists = st.lists(symbols, min_size=1, max_size=30, unique=True)
ROUTE = Route("trade", "trades", b"BTCUSDT", b"", 0, b"")


@pytest.fixture
def market(exchange_factory: Callable[..., Exchange]) -> Exchange:
    """Start a market at 500 messages a second."""
    return exchange_factory(rate=500)


def streams_of(names: list[str]) -> tuple[str, ...]:
    return tuple(f"{name}@{kind}" for name in names for kind in ("aggTrade", "depth@100ms", "kline_1m"))


@given(lists, st.integers(1, 8))
def test_the_shares_of_all_shards_are_all_streams_and_none_twice(names: list[str], count: int) -> None:
    streams = (*streams_of(names), "!miniTicker@arr", "!ticker_1h@arr")
    shares = [share(streams, index, count) for index in range(count)]
    assert sorted(stream for part in shares for stream in part) == sorted(streams)


@given(symbols, st.integers(1, 8))
def test_all_streams_of_a_symbol_are_on_one_shard(name: str, count: int) -> None:
    assert len({shard_of(stream, count) for stream in streams_of([name])}) == 1


@given(lists, lists, st.integers(1, 8))
def test_a_changed_list_moves_no_symbol(names: list[str], more: list[str], count: int) -> None:
    before = {index: set(share(streams_of(names), index, count)) for index in range(count)}
    after = {index: set(share(streams_of(names + more), index, count)) for index in range(count)}
    assert all(before[index] <= after[index] for index in range(count))


@given(symbols, st.integers(1, 8))
def test_one_shard_more_takes_symbols_and_moves_none_between_the_others(name: str, count: int) -> None:
    [stream] = streams_of([name])[:1]
    assert shard_of(stream, count + 1) in (shard_of(stream, count), count)


def test_the_shards_are_those_of_every_machine_and_every_version() -> None:
    assert [shard_of(f"{name.lower()}@trade", 2) for name in DEFAULT] == [1, 0, 0, 0, 1]
    assert [shard_of(f"{name.lower()}@trade", 3) for name in DEFAULT] == [1, 0, 0, 2, 2]
    assert shard_of("!miniTicker@arr", 7) == 5


def test_many_symbols_fall_evenly_on_the_shards() -> None:
    found = Counter(shard_of(f"coin{number}usdt@trade", 4) for number in range(2_000))
    assert all(400 < found[index] < 600 for index in range(4))


@given(lists, st.integers(2, 12))
def test_the_most_shards_that_are_proposed_all_have_a_stream(names: list[str], below: int) -> None:
    streams = streams_of(names)
    most = most_shards(streams, below)
    assert 1 <= most < below
    assert all(share(streams, index, most) for index in range(most))
    assert not any(all(share(streams, index, more) for index in range(more)) for more in range(most + 1, below))


def test_without_shards_everything_is_as_it_was() -> None:
    settings = load_settings(env_file=None)
    assert settings.streams() == settings.binance.named_streams()
    assert settings.share_fault() is None
    assert settings.spool.path == Path("data/spool")


@pytest.mark.parametrize(
    ("index", "count", "fault"),
    [
        ("2", "2", "SHARD_INDEX='2': must be less than SHARD_COUNT (2); the first shard is 0"),
        ("1", "", "SHARD_INDEX='1': must be less than SHARD_COUNT (1); the first shard is 0"),
        ("-1", "2", "SHARD_INDEX='-1': must be a whole number at least 0"),
        ("0", "0", "SHARD_COUNT='0': must be a whole number greater than 0 and at most 256"),
    ],
)
def test_a_wrong_shard_is_one_line(index: str, count: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARD_INDEX", index)
    monkeypatch.setenv("SHARD_COUNT", count)
    with pytest.raises(SettingsError) as refused:
        load_settings(env_file=None)
    assert refused.value.faults == [fault]


def test_a_shard_without_streams_ends_with_2_and_the_count_that_would_do(start_service: StartService) -> None:
    streams = "btcusdt@trade,btcusdt@aggTrade"
    empty = 1 - shard_of("btcusdt@trade", 2)
    service = start_service("ws://127.0.0.1:9", None, BINANCE_STREAMS=streams, SHARD_COUNT=2, SHARD_INDEX=empty)
    assert service.wait() == 2
    assert service.errors == (
        f"SHARD_COUNT='2': leaves shard {empty} without a stream, since the name of a symbol decides on its shard;"
        " must be at most 1 for these streams, or there must be more symbols\n"
    )


def test_each_of_several_shards_has_a_spool_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPOOL_PATH", str(tmp_path))
    monkeypatch.setenv("SHARD_COUNT", "12")
    paths = []
    for index in ("2", "10"):
        monkeypatch.setenv("SHARD_INDEX", index)
        paths.append(load_settings(env_file=None).spool.path)
        paths[-1].mkdir()
    assert paths == [tmp_path / "shard-2", tmp_path / "shard-10"]
    assert spool_folders(paths[0], 12) == spool_folders(tmp_path, 1) == [tmp_path, *paths]


@pytest.mark.kafka
def test_two_shards_read_every_stream_once(market: Exchange, topics: Topics, start_service: StartService) -> None:
    shards = [start_service(market.ws_url, topics, SHARD_COUNT=2, SHARD_INDEX=index) for index in (0, 1)]
    for service in shards:
        service.ready()
    for index, service in enumerate(shards):
        service.wait_for(lambda each=service: each.status()["kafka_produced"] > 100, "it flows")
        started, status = service.events("service_started")[0], service.status()
        assert (started["shard_index"], started["shard_count"]) == (index, 2)
        assert (status["shard_index"], status["shard_count"]) == (index, 2)
        assert f"binance_ingestion_shard_index {index}.0" in service.get("/metrics")[1].decode()
    shares = [set(service.status()["symbols"]) for service in shards]
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == set(DEFAULT)
    assert [service.stop() for service in shards] == [0, 0]
    sent = int(market.command("sent")["total"]["events"])
    assert len(read_all(topics.bootstrap_servers, *topics.names)) == sent
    assert sum(service.final["kafka_produced"] for service in shards) == sent


# When the number of shards changes


def left(folder: Path, values: list[bytes]) -> None:
    """Leave events on disk as a stopped shard does."""
    with closing(Spool(SpoolConfig(path=folder, min_free_bytes=0))) as spool:
        start = spool.last_seq + 1
        spool.append([Event(ROUTE, value, 1, number) for number, value in enumerate(values, start)])


def settings_of(base: Path, index: int, count: int, **spool: object) -> Settings:
    path = spool_folder(base, index, count)
    return Settings.model_construct(
        shard=ShardConfig(index=index, count=count),
        spool=SpoolConfig(**({"path": path, "min_free_bytes": 0} | spool)),
    )


def values_in(folder: Path) -> list[bytes]:
    with closing(Spool(SpoolConfig(path=folder, min_free_bytes=0))) as spool:
        return [event.value for event in spool.read(0, 10_000)]


@pytest.mark.parametrize(
    ("was", "count", "expected"),
    [
        (["."], 2, [b"own", b"."]),  # one became two
        (["shard-0", "shard-1"], 1, [b"own", b"shard-0", b"shard-1"]),  # two became one
        (["shard-1", "shard-2"], 2, [b"own", b"shard-2"]),  # three became two
    ],
)
def test_the_first_shard_takes_over_what_shards_that_are_gone_have_left(
    was: list[str], count: int, expected: list[bytes], tmp_path: Path
) -> None:
    for name in was:
        left(tmp_path / name, [name.encode()] * 2_500)
    settings = settings_of(tmp_path, 0, count)
    left(settings.spool.path, [b"own"])
    gone = [value.decode() for value in expected[1:]]
    with closing(Spool(settings.spool)) as spool:
        assert [tuple(each) for each in take_over(spool, settings)] == [(tmp_path / n, 2_500, "") for n in gone]
        assert spool.count == 1 + 2_500 * len(gone)
        assert [tuple(each) for each in take_over(spool, settings)] == [(tmp_path / name, 0, "") for name in gone]
        read = [event.value for event in spool.read(0, 10_000)]
    assert list(dict.fromkeys(read)) == expected
    assert all(not values_in(tmp_path / name) for name in gone)


def test_another_shard_leaves_them_alone(tmp_path: Path) -> None:
    left(tmp_path, [b"left"])
    settings = settings_of(tmp_path, 1, 2)
    with closing(Spool(settings.spool)) as spool:
        assert list(take_over(spool, settings)) == []
    assert values_in(tmp_path) == [b"left"]


def test_a_spool_that_is_still_worked_on_is_left_with_a_reason(tmp_path: Path) -> None:
    left(tmp_path, [b"left"])
    settings = settings_of(tmp_path, 0, 2)
    with closing(Spool(SpoolConfig(path=tmp_path, min_free_bytes=0))), closing(Spool(settings.spool)) as spool:
        (found,) = take_over(spool, settings)
    assert (found.events, found.reason) == (0, f"{tmp_path}: another process works on this spool")


def test_a_folder_that_may_not_be_looked_into_is_left_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "shard-5" / "lock").mkdir(parents=True)
    settings = settings_of(tmp_path, 0, 1)
    with closing(Spool(settings.spool)) as spool, monkeypatch.context() as patched:
        patched.setattr(Path, "exists", forbid)
        (found,) = take_over(spool, settings)
    assert tuple(found) == (tmp_path / "shard-5", 0, f"{tmp_path / 'shard-5'}: Is a directory")


def test_what_does_not_fit_stays_where_it_is(tmp_path: Path) -> None:
    left(tmp_path, [b"x" * 100] * 10)
    settings = settings_of(tmp_path, 0, 2, max_bytes=500)
    with closing(Spool(settings.spool)) as spool:
        (found,) = take_over(spool, settings)
        assert (found.events, spool.count) == (0, 0)
    assert "SPOOL_MAX_BYTES" in found.reason
    assert len(values_in(tmp_path)) == 10


def test_what_may_have_been_sent_there_may_have_been_sent_here(tmp_path: Path) -> None:
    left(tmp_path, [b"left"] * 4_000)
    with closing(Spool(SpoolConfig(path=tmp_path, min_free_bytes=0))) as spool:
        spool.sending(100)
    settings = settings_of(tmp_path, 0, 2)
    with closing(Spool(settings.spool)) as spool:
        assert [each.events for each in take_over(spool, settings)] == [4_000]
        assert 100 <= spool.count_sent() < 4_000


def test_what_is_damaged_there_stays_as_a_dead_letter_and_the_rest_is_taken_over(tmp_path: Path) -> None:
    left(tmp_path, [b"left"] * 10)
    with closing(sqlite3.connect(tmp_path / FILE)) as database, database:
        database.execute("UPDATE events SET value = x'00' WHERE seq = 4")
    settings = settings_of(tmp_path, 0, 2)
    with closing(Spool(settings.spool)) as spool:
        (found,) = take_over(spool, settings)
        assert (found.events, spool.count) == (9, 9)
        assert found.reason == "1 dead letters: the disk gave back other bytes than were written"
    with closing(Spool(SpoolConfig(path=tmp_path, min_free_bytes=0))) as gone:
        assert gone.count == 0
        assert [letter.reason for letter in gone.dead_letters()] == ["ChecksumMismatch"]


def on_disk(folder: Path) -> int:
    """Count the events of a spool that another process may be working on."""
    with closing(sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True)) as database:
        ((count,),) = database.execute("SELECT events FROM totals")
        return int(count)


def test_a_stop_while_much_is_taken_over_is_obeyed_and_the_next_start_goes_on(
    start_service: StartService, tmp_path: Path
) -> None:
    much = 300_000
    gone = tmp_path / "shard-1"
    with closing(Spool(SpoolConfig(path=gone, min_free_bytes=0))) as spool:
        for start in range(1, much, 10_000):
            spool.append([Event(ROUTE, b"left", 1, number) for number in range(start, start + 10_000)])
    settings = {"SPOOL_PATH": tmp_path, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", "SHUTDOWN_TIMEOUT_SECONDS": 3}
    stopped = start_service("ws://127.0.0.1:9", **settings)
    stopped.wait_for(lambda: on_disk(gone) < much, "some of it taken over")
    assert stopped.stop() == 1
    assert on_disk(tmp_path) + on_disk(gone) == much
    assert on_disk(gone) > 0
    assert (
        stopped.final["messages_spooled"]
        == on_disk(tmp_path)
        == stopped.events("spool_left_behind")[0]["taken_over"]
    )
    after = start_service("ws://127.0.0.1:9", **settings)
    after.logged("service_started")
    assert after.stop() == 1
    assert after.final["messages_spooled"] == on_disk(tmp_path) == much
    assert on_disk(gone) == 0


@pytest.mark.kafka
def test_what_one_instance_has_left_is_delivered_by_the_first_of_two(
    market: Exchange, topics: Topics, start_service: StartService, tmp_path: Path
) -> None:
    kept = {"SPOOL_PATH": tmp_path / "kept", "SHUTDOWN_TIMEOUT_SECONDS": 3}
    before = start_service(market.ws_url, topics, **(kept | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}))
    before.logged("service_metrics")
    before.wait_for(lambda: before.status()["messages_received"] > 200, "reading goes on")
    assert before.stop() == 1
    after = start_service(market.ws_url, topics, **kept, SHARD_COUNT=2, SHARD_INDEX=0)
    taken = after.logged("spool_taken_over")
    after.logged("service_metrics")
    assert taken["events"] == before.final["messages_spooled"]
    after.wait_for(lambda: after.status()["kafka_produced"] > taken["events"], "what was left is delivered")
    assert after.stop() == 0
    assert after.final["messages_recovered"] == taken["events"]
    assert (tmp_path / "kept" / "shard-0" / FILE).exists()
