"""When connections are replaced, and which streams count as silent: pure rules, with times made up."""

from __future__ import annotations

import random

import pytest

from src.rotation import LIFETIME, Overlap, due
from src.silence import Silence

HOUR, DAY = 3_600.0, 86_400.0
AFTER = 23 * HOUR
NIGHT = (3 * 3600, 4 * 3600)


def test_without_a_window_the_age_decides() -> None:
    assert due(AFTER - 1, AFTER, None, 0) is None
    assert due(AFTER, AFTER, None, 0) == "age"


def rotations(opened: float, window: tuple[int, int], days: int) -> list[float]:
    """Live through some days in steps of ten seconds; return when the connection was replaced."""
    found = []
    now = opened
    while now < days * DAY:
        now += 10
        assert now - opened < LIFETIME, "the exchange was first"
        if due(now - opened, AFTER, window, now % DAY):
            found.append(now)
            opened = now
    return found


@pytest.mark.parametrize("window", [NIGHT, (23 * 3600 + 1800, 1800), (600, 1200)])
@pytest.mark.parametrize("opened", [0.0, 2.9 * HOUR, 3.2 * HOUR, 4.1 * HOUR, 12 * HOUR, 23.7 * HOUR])
def test_with_a_window_every_rotation_of_a_month_falls_into_it_once_or_twice_a_day(
    opened: float, window: tuple[int, int]
) -> None:
    found = rotations(opened, window, 30)
    length = (window[1] - window[0]) % DAY
    assert all((at - window[0]) % DAY < length for at in found[1:])
    assert 28 <= len(found) <= 60
    assert len(found) <= 45 or length == 600, "a long window needs few days with two"


def test_a_connection_that_would_not_live_to_see_the_window_is_replaced_before_its_end() -> None:
    assert due(LIFETIME - 301, AFTER, NIGHT, 12 * HOUR) is None
    assert due(LIFETIME - 300, AFTER, NIGHT, 12 * HOUR) == "age"
    assert due(12 * HOUR, AFTER, NIGHT, 3.9 * HOUR) == "window"


def test_an_overlap_ends_when_every_active_stream_is_on_the_new_connection() -> None:
    overlap = Overlap(100.0, {"a", "b"}, 60.0)
    assert not overlap.over({"a", "b"}, {"a"}, 100.1)
    assert overlap.over({"a"}, {"a", "b"}, 100.1)


def test_an_overlap_ends_after_a_sixth_of_its_bound_when_the_rest_is_quiet_and_never_lasts_longer_than_it() -> (
    None
):
    overlap = Overlap(100.0, {"a", "b", "quiet"}, 60.0)
    assert not overlap.over({"a"}, {"a"}, 109.9)
    assert overlap.over({"a"}, {"a"}, 110.0)
    assert not overlap.over({"a", "b"}, {"a"}, 159.9)
    assert overlap.missing({"a", "b"}, {"a"}) == {"b"}
    assert overlap.over({"a", "b"}, {"a"}, 160.0)


class Market:
    """One stream that is looked at once a second."""

    def __init__(self, at_least: float = 30.0, times: float = 20.0) -> None:
        self.silence = Silence(at_least, times)
        self.count = 0
        self.now = 0.0
        self.silent: list[float] = []
        self.unhelped: list[float] = []

    def second(self, events: int = 0, *, watched: bool = True) -> None:
        self.now += 1
        self.count += events
        if self.count:
            fallen = self.silence.look({"a": self.count}, {"a"} if watched else set(), self.now)
            self.silent += [self.now] * len(fallen.silent)
            self.unhelped += [self.now] * len(fallen.unhelped)


def test_a_busy_stream_is_silent_after_the_shortest_time_and_reported_again_after_as_long() -> None:
    market = Market()
    for _ in range(60):
        market.second(50)
    for _ in range(300):
        market.second()
    assert (market.silent, market.unhelped) == ([90.0], [120.0])
    assert market.silence.silent == 1
    market.second(1)
    assert market.silence.silent == 0


def test_a_slow_stream_has_twenty_times_its_own_interval() -> None:
    market = Market()
    for _ in range(30):
        for _ in range(9):
            market.second()
        market.second(1)
    last = market.now
    for _ in range(500):
        market.second()
    assert [pytest.approx(200, abs=10)] == [at - last for at in market.silent]


def test_a_stream_with_natural_pauses_is_left_alone_in_them() -> None:
    market = Market()
    chance = random.Random(7)
    for _ in range(200):
        for _ in range(20):
            market.second(chance.randrange(1, 5))
        for _ in range(chance.randrange(20, 29)):
            market.second()
    assert market.silent == []


def test_a_pause_that_nothing_could_end_counts_as_natural_from_then_on() -> None:
    market = Market()
    for _ in range(3):
        for _ in range(100):
            market.second(5)
        for _ in range(120):
            market.second()
    assert len(market.silent) == len(market.unhelped) == 1


def test_a_stream_that_has_brought_little_has_no_pace_yet() -> None:
    market = Market()
    for _ in range(9):
        market.second(1)
    for _ in range(1_000):
        market.second()
    assert market.silent == []


def test_a_connection_that_is_not_there_excuses_its_streams() -> None:
    market = Market()
    for _ in range(60):
        market.second(50)
    for _ in range(500):
        market.second(watched=False)
    for _ in range(29):
        market.second()
    assert market.silent == []
    market.second()
    assert len(market.silent) == 1
