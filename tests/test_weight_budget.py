"""The budget of request weight: our own share a minute, what the exchange says of all, pauses for everybody."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from src.weight_budget import WeightBudget
from tests.exchange_fixtures import eventually


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def spend(budget: WeightBudget, weight: int, used: int | None = None) -> None:
    assert budget.reserve(weight) == 0
    budget.answered(weight, used)


def test_what_is_ours_is_granted_up_to_the_settings_and_again_when_it_is_a_minute_old() -> None:
    clock = Clock()
    budget = WeightBudget(100, now=clock)
    spend(budget, 60)
    clock.now += 20
    spend(budget, 40)
    assert budget.reserve(1) == 40
    clock.now += 39.9
    assert budget.reserve(1) > 0
    clock.now += 0.2
    assert budget.reserve(60) == 0
    assert budget.reserve(1) > 0


def test_a_request_counts_from_its_answer_on_since_the_exchange_may_count_it_as_late_as_that() -> None:
    clock = Clock()
    budget = WeightBudget(100, now=clock)
    assert budget.reserve(100) == 0
    clock.now += 50
    assert budget.reserve(1) > 0
    budget.answered(100)
    clock.now += 59
    assert budget.reserve(1) == 1
    clock.now += 1
    assert budget.reserve(100) == 0


@given(st.lists(st.tuples(st.sampled_from([2, 4, 25, 50]), st.floats(0, 40)), max_size=200))
def test_no_sixty_seconds_hold_more_than_the_settings_allow(steps: list[tuple[int, float]]) -> None:
    clock = Clock()
    budget = WeightBudget(300, now=clock)
    spent: list[tuple[float, int]] = []
    for weight, delay in steps:
        clock.now += delay
        if budget.reserve(weight) == 0:
            budget.answered(weight)
            spent.append((clock.now, weight))
    for start, _ in spent:
        assert sum(weight for at, weight in spent if start <= at < start + 60) <= 300


def test_what_others_behind_the_same_ip_use_counts_against_the_limit_of_all() -> None:
    clock = Clock()
    budget = WeightBudget(3000, limit=6000, now=clock)
    spend(budget, 25, used=5_650)
    spend(budget, 25)
    assert budget.reserve(25) == 0
    assert budget.reserve(25) == 60
    clock.now += 60.1
    assert budget.reserve(25) == 0


def test_the_limit_that_the_exchange_names_takes_the_place_of_the_usual_one() -> None:
    clock = Clock()
    budget = WeightBudget(3000, now=clock)
    spend(budget, 4, used=900)
    budget.learn_limit(1_000)
    assert budget.reserve(100) > 0
    budget.learn_limit(2_000)
    assert budget.reserve(100) == 0


def test_a_pause_holds_for_everybody_and_a_shorter_one_does_not_end_it() -> None:
    clock = Clock()
    budget = WeightBudget(3000, now=clock)
    budget.pause(120)
    budget.pause(5)
    assert budget.reserve(1) == 120
    assert budget.wait_for(3) == 120
    clock.now += 120
    assert budget.reserve(1) == 0


def test_the_wait_for_more_than_a_minutes_worth_counts_whole_minutes() -> None:
    clock = Clock()
    budget = WeightBudget(100, now=clock)
    assert budget.wait_for(100) == 0
    assert budget.wait_for(101) == 60
    assert budget.wait_for(1_000) == 9 * 60
    assert budget.wait_for(100, share=0.5) == 60


def test_a_share_of_the_budget_is_left_for_what_is_urgent() -> None:
    budget = WeightBudget(100, now=Clock())
    assert budget.reserve(75, share=0.75) == 0
    assert budget.reserve(1, share=0.75) > 0
    assert budget.reserve(25) == 0


def test_what_was_reserved_and_not_used_is_there_for_others() -> None:
    budget = WeightBudget(100, now=Clock())
    assert budget.reserve(100) == 0
    assert budget.reserve(50) > 0
    budget.release(100)
    assert budget.reserve(50) == 0


def test_a_request_heavier_than_the_whole_share_goes_when_nothing_else_has_gone() -> None:
    clock = Clock()
    budget = WeightBudget(100, now=clock)
    assert budget.reserve(250) == 0
    budget.answered(250)
    assert budget.reserve(250) == 60


def test_whoever_waits_goes_on_as_soon_as_there_is_room() -> None:
    budget = WeightBudget(100)
    assert budget.acquire(100)
    granted: list[bool] = []
    waiting = threading.Thread(target=lambda: granted.append(budget.acquire(60)))
    waiting.start()
    budget.release(100)
    waiting.join(3)
    assert granted == [True]


def test_closing_ends_every_wait_at_once_and_nothing_is_granted_any_more() -> None:
    budget = WeightBudget(100)
    budget.pause(3_600)
    granted: list[bool] = []
    threads = [threading.Thread(target=lambda: granted.append(budget.acquire(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: all(thread.is_alive() for thread in threads))
    closed_at = time.monotonic()
    budget.close()
    for thread in threads:
        thread.join(20)
    assert time.monotonic() - closed_at < 10
    assert granted == [False] * 4
    assert not budget.acquire(1)
