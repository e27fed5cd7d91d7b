"""The spool keeps events in order, within its limits, through crashes; what is damaged is set aside."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.settings import SpoolConfig
from src import spool_file
from src.events import Event, Route, Topics
from src.spool import FILE, Spool, SpoolDamaged, SpoolFailed, SpoolFull, SpoolUnusable
from src.spool_file import SpoolFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
OVERHEAD = 80
ROUTES = [
    Route(kind, topic, key, b"", 0, b"")
    for kind, topic in (("trade", "trades"), ("depth_update", "depth"), ("kline", "raw"))
    for key in (b"BTCUSDT", b"ETHUSDT", None, "比特币USDT".encode())
]


def config(path: Path, **more: Any) -> SpoolConfig:
    return SpoolConfig(**({"path": path, "min_free_bytes": 0} | more))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(config(tmp_path))) as opened:
        yield opened


def event(number: int, size: int = 10, route: Route | None = None) -> Event:
    value = b"%d " % number + b"." * size
    return Event(route or ROUTES[number % len(ROUTES)], value, 1_700_000_000_000 + number, number)


def events(first: int, last: int, **more: Any) -> list[Event]:
    return [event(number, **more) for number in range(first, last + 1)]


def content(items: Sequence[Event]) -> list[tuple[int, str, str, bytes | None, bytes, int]]:
    return [
        (one.seq, one.route.event_type, one.route.topic, one.route.key, one.value, one.timestamp_ms)
        for one in items
    ]


def everything(spool: Spool) -> list[Event]:
    return spool.read(0, 1_000_000)


def sizes(items: Sequence[Event]) -> int:
    return sum(len(one.value) + OVERHEAD for one in items)


def sql(folder: Path, *statements: str) -> None:
    """Do something to the file behind the spool's back."""
    with closing(sqlite3.connect(folder / FILE)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


# What it keeps


def test_what_was_appended_is_read_back_as_it_was_in_order_also_after_reopening(tmp_path: Path) -> None:
    written = events(1, 2000)
    with closing(Spool(config(tmp_path))) as spool:
        for start in range(0, 2000, 100):
            spool.append(written[start : start + 100])
        assert content(everything(spool)) == content(written)
        assert content(spool.read(1500, 10)) == content(written[1500:1510])
    with closing(Spool(config(tmp_path))) as spool:
        assert content(everything(spool)) == content(written)
        assert (spool.count, spool.bytes, spool.last_seq) == (2000, sizes(written), 2000)
        assert spool.damaged is None


def test_events_of_topics_that_are_not_in_the_settings_any_more_go_to_those_in_their_place(spool: Spool) -> None:
    kinds = {"trade": "old-trades", "depth_update": "depth", "kline": "old-raw", "unenriched": "old-raw"}
    routes = [Route(kind, topic, b"BTCUSDT", b"", 0, b"") for kind, topic in kinds.items()]
    spool.append([event(number, route=route) for number, route in enumerate(routes, 1)])
    assert spool.redirect(Topics("trades", "depth", "raw")) == 3
    assert [each.route.topic for each in everything(spool)] == ["trades", "depth", "raw", "raw"]
    assert spool.redirect(Topics("trades", "depth", "raw")) == 0


def test_a_stop_while_much_is_redirected_leaves_all_of_it_as_it_was_and_the_next_start_does_it(
    spool: Spool,
) -> None:
    old = Route("trade", "old-trades", b"BTCUSDT", b"", 0, b"")
    for start in range(1, 50_000, 10_000):
        spool.append([Event(old, b"x", 1, number) for number in range(start, start + 10_000)])
    assert spool.redirect(Topics("trades", "depth", "raw"), lambda: True) == 0
    assert spool.redirect(Topics("trades", "depth", "raw")) == 50_000
    assert {each.route.topic for each in everything(spool)} == {"trades"}


def test_damage_that_shows_when_events_are_redirected_is_set_aside_as_at_the_start(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 20_000, size=500))
    with closing(Spool(config(tmp_path))) as spool:
        flip_bytes_of_pages(tmp_path / FILE)
        assert spool.redirect(Topics("new", "depth", "raw")) == 0
        assert spool.damaged is not None
        assert (spool.count, everything(spool)) == (0, [])


def test_events_that_are_there_already_stay_and_count_once(spool: Spool) -> None:
    spool.append(events(1, 10))
    spool.append(events(5, 15))
    spool.append(events(1, 3))
    assert content(everything(spool)) == content(events(1, 15))
    assert (spool.count, spool.bytes) == (15, sizes(events(1, 15)))


def test_an_event_that_is_given_twice_at_once_is_kept_once(spool: Spool) -> None:
    spool.append([*events(1, 10), *events(8, 10)])
    assert content(everything(spool)) == content(events(1, 10))
    assert (spool.count, spool.bytes) == (10, sizes(events(1, 10)))


def test_earlier_events_may_come_later(spool: Spool) -> None:
    spool.append(events(100, 110))
    spool.append(events(20, 30))
    assert content(everything(spool)) == content([*events(20, 30), *events(100, 110)])
    assert spool.last_seq == 110


numbers = st.lists(st.integers(1, 60), min_size=1, max_size=30)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), numbers),
        st.tuples(st.just("remove"), numbers),
        st.tuples(st.just("bury"), numbers),
        st.tuples(
            st.just("evict"),
            st.tuples(st.sampled_from(["trades", "depth"]), st.integers(1, 600), st.integers(0, 60)),
        ),
        st.tuples(st.just("reopen"), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(steps=operations)
def test_counts_bytes_and_contents_are_exact_whatever_happens(  # noqa: C901, PLR0912 - one branch a verb
    steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model")
    spool = Spool(config(folder, max_bytes=2500))
    model: dict[int, Event] = {}
    dead: list[Event] = []
    try:
        for name, argument in steps:
            if name == "append":
                offered = [event(number) for number in sorted(argument)]
                new = {one.seq: one for one in offered if one.seq not in model}
                if sizes([*model.values(), *new.values(), *dead]) > 2500 and new:
                    with pytest.raises(SpoolFull):
                        spool.append(offered)
                else:
                    spool.append(offered)
                    model |= new
            elif name == "remove":
                spool.remove(argument)
                for number in argument:
                    model.pop(number, None)
            elif name == "bury":
                buried = [event(number) for number in dict.fromkeys(argument)]
                absent = [one for one in buried if one.seq not in model]
                if absent and sizes([*model.values(), *dead, *absent]) > 2500:
                    with pytest.raises(SpoolFull):
                        spool.bury(buried, "TooLarge", "no")
                else:
                    spool.bury(buried, "TooLarge", "no")
                    dead += buried
                    for one in buried:
                        model.pop(one.seq, None)
            elif name == "evict":
                topic, size, after = argument
                victims = []
                for one in sorted(model.values(), key=lambda one: one.seq):
                    if one.route.topic == topic and one.seq > after and sizes(victims) < size:
                        victims.append(one)
                assert content(spool.evict(topic, size, after)) == content(victims)
                for one in victims:
                    del model[one.seq]
            else:
                spool.close()
                spool = Spool(config(folder, max_bytes=2500))
            assert (spool.count, spool.bytes) == (len(model), sizes(list(model.values())))
            assert content(everything(spool)) == content([model[number] for number in sorted(model)])
            assert [letter.value for letter in spool.dead_letters()] == [one.value for one in dead]
    finally:
        spool.close()


def test_a_dead_letter_keeps_reason_place_and_bytes_until_it_is_discarded(spool: Spool) -> None:
    spool.append(events(1, 3))
    spool.bury([event(2)], "MessageSizeTooLargeError", "the broker said so")
    (letter,) = spool.dead_letters()
    one = event(2)
    assert letter[2:] == (
        "MessageSizeTooLargeError", "the broker said so", one.route.topic, one.route.key,
        one.route.event_type, one.timestamp_ms, one.value,
    )  # fmt: skip
    assert abs(letter.died_ms - time.time() * 1000) < 60_000
    assert [each.seq for each in everything(spool)] == [1, 3]
    spool.discard_dead_letter(letter.id)
    assert spool.dead_letters() == []


# Limits


def test_beyond_its_bytes_it_takes_none_of_a_batch_and_room_made_is_room_again(tmp_path: Path) -> None:
    limit = sizes(events(1, 100)) - 1
    with closing(Spool(config(tmp_path, max_bytes=limit))) as spool:
        with pytest.raises(SpoolFull, match="SPOOL_MAX_BYTES"):
            spool.append(events(1, 100))
        assert (spool.count, spool.bytes, everything(spool)) == (0, 0, [])
        assert spool.refusing
        spool.append(events(1, 99))
        with pytest.raises(SpoolFull):
            spool.append(events(100, 100))
        spool.remove([50])
        spool.append(events(100, 100))
        assert spool.count == 99


def test_the_limit_holds_over_a_full_loop_of_writing_and_removing(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path, max_bytes=200_000))) as spool:
        number, refused = 1, 0
        for _ in range(400):
            try:
                spool.append(events(number, number + 49))
            except SpoolFull:
                refused += 1
                spool.remove([one.seq for one in spool.read(0, 300)])
            number += 50
            assert spool.bytes <= 200_000
        assert refused > 10
        assert content(everything(spool)) == content([event(one.seq) for one in everything(spool)])
        spool.remove([one.seq for one in everything(spool)])
        assert (spool.count, spool.bytes) == (0, 0)


def test_the_floor_of_free_disk_space_is_kept(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path, min_free_bytes=10**18))) as spool:
        with pytest.raises(SpoolFull, match="SPOOL_MIN_FREE_BYTES"):
            spool.append(events(1, 10))
        assert (spool.count, everything(spool)) == (0, [])


def test_room_within_the_file_is_used_below_the_floor_of_free_disk_space(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 2000, size=500))
        spool.remove(range(1, 2001))
    size = (tmp_path / FILE).stat().st_size
    with closing(Spool(config(tmp_path, min_free_bytes=10**18))) as spool:
        room = spool.room
        assert size / 2 < room <= size
        spool.append(events(2001, 2500, size=500))
        assert spool.count == 500
        assert spool.room < room
        refused = ""
        for first in range(2501, 10_001, 100):
            try:
                spool.append(events(first, first + 99, size=500))
            except SpoolFull as error:
                refused = str(error)
        assert "SPOOL_MIN_FREE_BYTES" in refused
        assert 500 < spool.count < 2500
    assert (tmp_path / FILE).stat().st_size <= size


def test_the_room_is_the_lesser_of_its_own_limit_and_what_the_disk_has_above_the_floor(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path, max_bytes=10_000))) as spool:
        assert spool.room == 10_000
        spool.append(events(1, 10))
        assert spool.room == 10_000 - spool.bytes
    with closing(Spool(config(tmp_path, min_free_bytes=10**18))) as spool:
        assert spool.room == 0


def test_what_is_there_already_is_no_reason_to_refuse(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 10))
    with closing(Spool(config(tmp_path, min_free_bytes=10**18, max_bytes=1))) as spool:
        spool.append(events(3, 7))
        assert spool.count == 10


def test_evicting_takes_the_oldest_of_the_topic_after_what_was_sent(spool: Spool) -> None:
    trade, depth = ROUTES[0], ROUTES[4]
    spool.append([event(number, route=trade if number % 2 else depth) for number in range(1, 101)])
    gone = spool.evict("trades", 3 * (OVERHEAD + 12), 10)
    assert [one.seq for one in gone] == [11, 13, 15]
    assert spool.count == 97
    assert [one.seq for one in spool.evict("trades", 10**9, 80)] == list(range(81, 100, 2))
    assert spool.evict("trades", 10**9, 80) == []
    spool.append([event(85, route=trade)])
    assert [one.seq for one in spool.evict("trades", 10**9, 80)] == [85], "what came back may go as well"


def test_evicting_stays_fast_when_there_is_nothing_left_to_evict(spool: Spool) -> None:
    depth, trade = ROUTES[4], ROUTES[0]
    for start in range(1, 100_001, 10_000):
        spool.append(events(start, start + 9_999, size=600, route=depth))
    spool.append(events(100_001, 100_010, route=trade))
    spool.evict("trades", 1, 0)
    started = time.process_time()
    for _ in range(100):
        spool.evict("trades", 10_000, 0)
    assert time.process_time() - started < 0.5, "each one looked through everything"


# A disk that fails


class _Limited:
    """A limit on the size of files that this process writes, as a full disk would be one."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_a_disk_that_is_full_fails_the_append_and_harms_nothing(spool: Spool) -> None:
    number, failed = 1, 0
    with _Limited(600_000):
        while failed < 3:
            try:
                spool.append(events(number, number + 99, size=200))
                number += 100
            except SpoolFailed:
                failed += 1
            assert number < 20_000
    assert spool.count == number - 1
    assert content(everything(spool)) == content(events(1, number - 1, size=200))
    assert spool.bytes == sizes(everything(spool))
    spool.append(events(number, number + 99, size=200))
    assert spool.count == number + 99


def test_a_removal_that_fails_half_way_is_none_and_counts_stay_exact(spool: Spool, tmp_path: Path) -> None:
    spool.append(events(1, 1500))
    sql(
        tmp_path,
        "CREATE TRIGGER broken BEFORE DELETE ON events WHEN OLD.seq = 1200"
        " BEGIN SELECT RAISE(ABORT, 'broken'); END",
    )
    with pytest.raises(SpoolFailed, match="broken"):
        spool.remove(range(1, 1501))
    assert (spool.count, spool.bytes) == (1500, sizes(events(1, 1500)))
    sql(tmp_path, "DROP TRIGGER broken")
    spool.remove(range(1, 1501))
    assert (spool.count, spool.bytes) == (0, 0)


def test_an_event_is_either_alive_or_buried_when_burying_fails(spool: Spool, tmp_path: Path) -> None:
    spool.append(events(1, 10))
    sql(tmp_path, "CREATE TRIGGER broken BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'broken'); END")
    with pytest.raises(SpoolFailed, match="broken"):
        spool.bury(events(4, 5), "TooLarge", "")
    assert spool.dead_letters() == []
    assert spool.count == 10
    sql(tmp_path, "DROP TRIGGER broken")
    spool.bury(events(4, 5), "TooLarge", "")
    assert [letter.value for letter in spool.dead_letters()] == [event(4).value, event(5).value]
    assert (spool.count, spool.bytes) == (8, sizes([*events(1, 3), *events(6, 10)]))


# What may have been sent, and what remains of an outage


def test_which_events_may_have_been_sent_survives_a_restart_until_it_is_settled(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 10))
        assert spool.count_sent() == 0
        spool.sending(5)
        spool.sending(3)
        spool.append([event(8)], sent=True)
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.count_sent() == 5
        spool.remove([1, 2])
        assert spool.count_sent() == 3
        spool.append([event(12)], sent=True)
        assert spool.count_sent() == 9
        spool.nothing_sent()
        assert spool.count_sent() == 0
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.count_sent() == 0


def test_numbers_that_are_given_out_anew_do_not_count_as_sent(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 100), sent=True)
        spool.remove(range(4, 101))
    with closing(Spool(config(tmp_path))) as spool:
        assert (spool.last_seq, spool.count_sent()) == (3, 3)
        spool.append(events(4, 50))
        assert spool.count_sent() == 3
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.count_sent() == 3


@pytest.mark.parametrize("reopened", [False, True])
def test_an_empty_spool_gives_the_disk_back(reopened: bool, tmp_path: Path) -> None:  # noqa: FBT001
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 5_000, size=2000))
        spool.bury([event(1)], "TooLarge", "no")
        spool.shrink()
        assert spool.count == 4_999, "not while something is there"
        spool.remove(range(1, 5_001))
        if not reopened:
            spool.shrink()
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000
    with closing(Spool(config(tmp_path))) as spool:
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000
        assert [letter.value for letter in spool.dead_letters()] == [event(1).value]
        spool.append(events(20_000, 20_010))
        assert content(everything(spool)) == content(events(20_000, 20_010))


def test_below_the_floor_of_free_disk_space_an_empty_spool_keeps_its_room(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 10_000, size=2000))
        spool.remove(range(1, 10_001))
    with closing(Spool(config(tmp_path, min_free_bytes=10**18))) as spool:
        spool.shrink()
        assert spool.room > 10_000_000
        spool.append(events(10_001, 12_000, size=2000))
        assert spool.count == 2_000


def test_what_is_read_twice_is_named_once_when_it_is_spoiled(tmp_path: Path, spool: Spool) -> None:
    spool.append(events(1, 10))
    sql(tmp_path, "UPDATE events SET value = x'00' WHERE seq IN (4, 5)")
    assert len(everything(spool)) == len(everything(spool)) == 8
    spool.remove([5])
    assert [one.seq for one in spool.take_spoiled()] == [4]


def test_events_that_came_before_the_topics_were_told_are_redirected_all_the_same(tmp_path: Path) -> None:
    topics = Topics("new", "depth", "raw")
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.redirect(topics) == 0
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 10))
        assert spool.redirect(topics) > 0
        assert len(everything(spool)) == 10
        assert spool.take_spoiled() == []


def test_dead_letters_count_towards_the_bound_until_they_are_discarded(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path, max_bytes=sizes(events(1, 10))))) as spool:
        spool.bury(events(1, 8), "TooLarge", "no")
        with pytest.raises(SpoolFull):
            spool.append(events(9, 12))
        with pytest.raises(SpoolFull):
            spool.bury(events(9, 12), "TooLarge", "no")
        assert len(spool.dead_letters()) == 8
        spool.append(events(9, 10))
        spool.bury(events(9, 10), "TooLarge", "no")
        assert len(spool.dead_letters()) == 10
    with closing(Spool(config(tmp_path, max_bytes=sizes(events(1, 10))))) as spool:
        with pytest.raises(SpoolFull):
            spool.append([event(20)])
        spool.discard_dead_letter(spool.dead_letters()[-1].id)
        spool.append([event(10)])


# Damage


def filled(folder: Path) -> Path:
    with closing(Spool(config(folder))) as spool:
        spool.append(events(1, 5000, size=100))
    return folder / FILE


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_within_a_page(path: Path) -> None:
    os.truncate(path, 10_000)


def overwrite_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"not a database at all" * 5)


def flip_bytes_of_pages(path: Path) -> None:
    chance = random.Random(7)
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(chance.randbytes(16))  # the headers of the tree's pages


def replace_by_text(path: Path) -> None:
    path.write_text("seq,topic,value\n" * 1000)


@pytest.mark.parametrize(
    "damage", [cut_short, cut_within_a_page, overwrite_header, flip_bytes_of_pages, replace_by_text]
)
def test_a_damaged_file_is_set_aside_whole_and_named_and_work_goes_on(damage: Any, tmp_path: Path) -> None:
    path = filled(tmp_path)
    damage(path)
    contents = path.read_bytes()
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.damaged is not None
        assert spool.damaged.read_bytes() == contents
        assert spool.damaged.parent == tmp_path
        assert spool.count == 0
        spool.append(events(1, 10))
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.damaged is None
        assert content(everything(spool)) == content(events(1, 10))
    assert len(list(tmp_path.glob("*damaged*"))) == 1


@pytest.mark.parametrize("damage", [cut_short, flip_bytes_of_pages])
def test_a_damaged_file_that_is_too_large_for_a_full_check_is_set_aside_as_well(
    damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "_CHECKED_BYTES", 0)
    damage(filled(tmp_path))
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.damaged is not None
        assert spool.count == 0


def test_an_event_that_is_not_as_it_was_written_is_left_out_and_named(tmp_path: Path, spool: Spool) -> None:
    spool.append(events(1, 10))
    sql(tmp_path, "UPDATE events SET value = x'00' WHERE seq = 4", "UPDATE events SET key = x'00' WHERE seq > 8")
    assert [one.seq for one in spool.read(0, 6)] == [1, 2, 3, 5, 6]
    assert [one.seq for one in spool.read(7, 1)] == [8]
    assert spool.read(8, 1) == []
    assert [one.seq for one in spool.take_spoiled()] == [4, 9, 10]
    assert spool.take_spoiled() == []
    assert spool.count == 10


def test_bits_that_flip_in_the_names_of_a_row_harm_that_row_alone(tmp_path: Path, spool: Spool) -> None:
    spool.redirect(Topics("trades", "depth", "raw"))
    spool.append(events(1, 10))
    sql(
        tmp_path,
        "UPDATE events SET topic = CAST(x'ff41' AS TEXT) WHERE seq = 2",
        "UPDATE events SET value = CAST(x'ff41' AS TEXT) WHERE seq = 3",
        "UPDATE events SET topic = 'other' WHERE seq = 4",
    )
    assert [one.seq for one in everything(spool)] == [1, *range(5, 11)]
    assert [one.seq for one in spool.take_spoiled()] == [2, 3, 4]


def test_damage_that_the_start_has_not_seen_shows_when_it_is_read(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 20_000, size=500))
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.damaged is None
        flip_bytes_of_pages(tmp_path / FILE)
        with pytest.raises(SpoolDamaged):
            everything(spool)
        spool.replace()
        assert spool.damaged is not None
        assert (spool.count, everything(spool)) == (0, [])
        spool.append(events(1, 10))
        assert content(everything(spool)) == content(events(1, 10))


REFUSING = "CREATE TRIGGER full BEFORE INSERT ON totals BEGIN SELECT RAISE(FAIL, 'the disk is full'); END;"


@pytest.mark.parametrize("lacking", ["nonsense", f"{spool_file._SCHEMA} {REFUSING}"])
def test_while_no_new_file_can_be_begun_the_spool_says_so_and_the_damaged_one_is_set_aside_once(
    lacking: str, tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = spool_file._SCHEMA
    spool.append(events(1, 100))
    monkeypatch.setattr(spool_file, "_SCHEMA", lacking)
    for _ in range(3):
        with pytest.raises(SpoolFailed):
            spool.replace()
        assert (spool.count, spool.bytes, spool.last_seq) == (0, 0, 0)
        for use in (lambda: spool.append(events(101, 110)), lambda: spool.read(0, 1), lambda: spool.remove([1])):
            with pytest.raises(SpoolDamaged, match="a new file could not be begun"):
                use()
    monkeypatch.setattr(spool_file, "_SCHEMA", f"{good} DROP TRIGGER IF EXISTS full;")
    spool.replace()
    spool.append(events(101, 110))
    assert content(everything(spool)) == content(events(101, 110))
    assert [spool.damaged] == list(tmp_path.glob("*damaged*"))
    with closing(sqlite3.connect(spool.damaged or "")) as aside:
        assert aside.execute("SELECT COUNT(*) FROM events").fetchone() == (100,)


def test_a_spool_without_a_file_can_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Spool(config(tmp_path))) as spool, monkeypatch.context() as patched:
        patched.setattr(spool_file, "_SCHEMA", "nonsense")
        with pytest.raises(SpoolFailed):
            spool.replace()
    with closing(Spool(config(tmp_path))) as after:
        assert after.count == 0


def test_a_start_that_finds_damage_and_cannot_begin_anew_says_that_the_spool_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_damage(_: Spool) -> None:
        raise SpoolDamaged("database disk image is malformed")

    monkeypatch.setattr(Spool, "_begin", find_damage)
    with pytest.raises(SpoolUnusable, match="malformed"):
        Spool(config(tmp_path))


def test_the_check_at_the_start_ends_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Spool(config(tmp_path))) as spool:
        for start in range(1, 100_001, 50_000):
            spool.append(events(start, start + 49_999, size=500))
    with closing(SpoolFile(tmp_path, "normal")) as file:
        assert file.checked
    monkeypatch.setattr(spool_file, "CHECK_SECONDS", 0.005)
    for _ in range(50):  # on a busy machine even this time may be enough
        with closing(SpoolFile(tmp_path, "normal")) as file:
            assert file.damaged is None
            if not file.checked:
                return
    pytest.fail("the whole file was read each time")


def test_a_file_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    sql(
        tmp_path,
        "CREATE TABLE events"
        " (seq INTEGER PRIMARY KEY, topic TEXT, key BLOB, event_type TEXT, timestamp_ms INTEGER, value BLOB)",
        "INSERT INTO events VALUES (7, 'trades', x'41', 'trade', 5, x'4242')",
        "INSERT INTO events VALUES (9, 'trades', x'41', 'trade', 6, x'43')",
    )
    with closing(Spool(config(tmp_path))) as spool:
        assert (spool.count, spool.bytes, spool.last_seq) == (2, 3 + 2 * OVERHEAD, 9)
        spool.append(events(10, 12))
        assert [one.value for one in everything(spool)] == [b"BB", b"C", *(one.value for one in events(10, 12))]
    with closing(Spool(config(tmp_path))) as spool:
        assert (spool.count, spool.take_spoiled()) == (5, [])


def test_a_second_damaged_file_does_not_replace_the_first(tmp_path: Path) -> None:
    named = set()
    for _ in range(3):
        overwrite_header(filled(tmp_path))
        with closing(Spool(config(tmp_path))) as spool:
            assert spool.damaged is not None
            named.add(spool.damaged)
            spool.append(events(1, 10))
    assert len(named) == 3
    assert all(path.exists() for path in named)


def test_a_journal_without_its_file_harms_nothing(tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.rename(tmp_path / "elsewhere")
    (tmp_path / f"{FILE}-wal").write_bytes(b"\x37\x7f\x06\x82" + b"x" * 5000)
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 10))
        assert spool.count == 10


# Crashes and neighbours

WRITER = """
import sys
from tests.test_spool import Path, Spool, config, events
spool = Spool(config(Path(sys.argv[1])))
number = spool.last_seq + 1
while True:
    spool.append(events(number, number + 49, size=300))
    number += 50
    if number % 1000 == 1 and number > 3000:
        spool.remove(range(number - 3000, number - 2500))
    print(number - 1, flush=True)
"""


def test_kill_9_of_a_writer_loses_nothing_that_append_returned_from(tmp_path: Path) -> None:
    chance = random.Random(11)
    said = 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert writer.stdout
        for _ in range(chance.randint(20, 150)):
            line = writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        for more in [line, *writer.stdout.read().split(b"\n")]:
            said = max(said, int(more or 0))
        writer.wait()
        writer.stdout.close()
        with closing(Spool(config(tmp_path))) as spool:
            assert spool.damaged is None
            kept = everything(spool)
            there = {one.seq for one in kept}
            must_be_there = {one for one in range(1, said + 1) if one > said - 2400 or not removed(one)}
            assert must_be_there <= there
            assert content(kept) == content([event(one.seq, size=300) for one in kept])
            assert said <= spool.last_seq <= said + 50
            assert (spool.count, spool.bytes) == (len(kept), sizes(kept))


def removed(number: int) -> bool:
    """Whether the writer removes this one, at least 2500 later."""
    return number % 1000 <= 500 and number % 1000 != 0


def test_a_second_process_is_told_to_keep_off_and_the_first_is_unharmed(tmp_path: Path, spool: Spool) -> None:
    spool.append(events(1, 10))
    script = f"from tests.test_spool import *\nSpool(config(Path({str(tmp_path)!r})))"
    second = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert second.returncode == 1
    assert "SpoolUnusable" in second.stderr
    assert "another process" in second.stderr
    spool.append(events(11, 20))
    assert spool.count == 20


def test_the_place_of_a_process_that_is_just_stopping_is_waited_for(tmp_path: Path) -> None:
    script = (
        f"from tests.test_spool import *\nspool = Spool(config(Path({str(tmp_path)!r})))\n"
        "spool.append(events(1, 10)); print('open', flush=True); time.sleep(1.0); spool.close()"
    )
    first = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    assert first.stdout
    assert first.stdout.readline() == b"open\n"
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.count == 10
    assert first.wait(10) == 0
    first.stdout.close()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolUnusable, match="file"):
        Spool(config(tmp_path / "file"))


def test_reopening_goes_on_with_the_sequence_of_what_is_there(tmp_path: Path) -> None:
    with closing(Spool(config(tmp_path))) as spool:
        spool.append(events(1, 100))
        spool.remove(range(1, 91))
    with closing(Spool(config(tmp_path))) as spool:
        assert spool.last_seq == 100
        spool.append(events(101, 110))
        assert [one.seq for one in everything(spool)] == list(range(91, 111))
