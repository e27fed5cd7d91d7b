"""The requests of one connection: paced, answered, checked, tried again; with a clock of the test's own."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from src.events import Reply
from src.subscriptions import SUBSCRIBE_INTERVAL, Outcome, Subscriptions


class Talk:
    """Asks every tenth of a second and keeps what is sent."""

    def __init__(self, *streams: str, timeout: float = 10.0) -> None:
        self.subscriptions = Subscriptions(streams, timeout, 5.0, 300.0)
        self.now = 100.0
        self.sent: list[tuple[float, dict[str, Any]]] = []
        self.unconfirmed: list[str] = []
        self.subscriptions.start_over(self.now)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now = round(self.now + 0.1, 3)
            if (request := self.subscriptions.due(self.now)) is not None:
                self.sent.append((self.now, json.loads(request)))
            self.unconfirmed += self.subscriptions.overdue(self.now).unconfirmed

    def answer(self, error: str | None = None, result: Any = None) -> Outcome:
        outcome = self.subscriptions.answered(Reply(self.sent[-1][1]["id"], error, result), self.now)
        self.unconfirmed += outcome.unconfirmed
        return outcome

    @property
    def asked(self) -> list[tuple[str, Any]]:
        return [(request["method"], request.get("params")) for _, request in self.sent]


def test_many_streams_are_asked_for_in_groups_a_third_of_a_second_apart() -> None:
    talk = Talk(*(f"s{number}@trade" for number in range(450)))
    talk.wait(3)
    assert [len(streams) for _, streams in talk.asked] == [100, 100, 100, 100, 50]
    times = [at for at, _ in talk.sent]
    assert min(after - before for before, after in pairwise(times)) >= SUBSCRIBE_INTERVAL
    assert not talk.subscriptions.settled


def test_it_is_settled_when_everything_is_answered() -> None:
    talk = Talk("a@trade")
    assert not talk.subscriptions.settled
    talk.wait(1)
    assert talk.answer() == Outcome(subscribed=("a@trade",))
    assert talk.subscriptions.settled


def test_a_change_asks_for_the_difference_and_what_is_taken_back_in_time_is_not_asked_for() -> None:
    talk = Talk("a@trade", "b@trade")
    talk.wait(1)
    talk.answer()
    talk.subscriptions.change(["c@trade"], ["a@trade"])
    talk.subscriptions.change(["d@trade"], ["c@trade"])
    talk.wait(2)
    assert talk.asked[1:] == [
        ("UNSUBSCRIBE", ["a@trade"]),
        ("UNSUBSCRIBE", ["c@trade"]),
        ("SUBSCRIBE", ["d@trade"]),
    ]
    assert len(talk.subscriptions) == 2


def test_renewing_unsubscribes_and_subscribes() -> None:
    talk = Talk("a@trade", "b@trade")
    talk.wait(1)
    talk.answer()
    talk.subscriptions.renew(["b@trade", "unknown@trade"])
    talk.wait(0.2)
    assert talk.answer() == Outcome()
    talk.wait(1)
    assert talk.answer() == Outcome(subscribed=("b@trade",))
    assert talk.asked[1:] == [("UNSUBSCRIBE", ["b@trade"]), ("SUBSCRIBE", ["b@trade"])]


def test_an_unanswered_request_is_sent_once_more_then_looked_up() -> None:
    talk = Talk("a@trade", "b@trade")
    talk.wait(21)
    assert talk.asked == [("SUBSCRIBE", ["a@trade", "b@trade"])] * 2 + [("LIST_SUBSCRIPTIONS", None)]
    outcome = talk.answer(result=["a@trade"])
    assert outcome == Outcome(subscribed=("a@trade",), unconfirmed=("b@trade",))
    assert talk.subscriptions.settled
    talk.wait(5.2)
    assert talk.asked[3:] == [("SUBSCRIBE", ["b@trade"])]
    assert talk.answer() == Outcome(subscribed=("b@trade",))


def test_an_exchange_that_answers_nothing_is_asked_for_ever_and_the_streams_are_named_once() -> None:
    talk = Talk("a@trade")
    talk.wait(600)
    methods = [method for method, _ in talk.asked]
    assert methods[:6] == ["SUBSCRIBE", "SUBSCRIBE", "LIST_SUBSCRIPTIONS"] * 2
    assert talk.unconfirmed == ["a@trade"]
    assert len(methods) < 40


def test_what_is_refused_is_tried_again_after_5_10_20_seconds_up_to_300() -> None:
    talk = Talk("a@trade")
    times = []
    for _ in range(9):
        before = len(talk.sent)
        while len(talk.sent) == before:
            talk.wait(0.1)
        times.append(talk.now)
        assert talk.answer(error="no") == Outcome(refused=("a@trade",))
        assert talk.subscriptions.settled
    waits = [round(after - before) for before, after in pairwise(times)]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]


def test_a_refused_stream_that_is_not_wanted_any_more_is_forgotten() -> None:
    talk = Talk("a@trade", "b@trade")
    talk.wait(1)
    talk.answer(error="no")
    talk.subscriptions.change([], ["a@trade"])
    talk.wait(0.5)
    assert talk.answer() == Outcome(unsubscribed=("a@trade",))
    talk.wait(5)
    assert talk.asked[1:] == [("UNSUBSCRIBE", ["a@trade"]), ("SUBSCRIBE", ["b@trade"])]


def test_a_lost_unsubscribe_is_found_in_the_list_and_sent_again() -> None:
    talk = Talk("a@trade", "b@trade")
    talk.wait(1)
    talk.answer()
    talk.subscriptions.change([], ["a@trade"])
    talk.wait(21)
    assert talk.asked[1:] == [("UNSUBSCRIBE", ["a@trade"])] * 2 + [("LIST_SUBSCRIPTIONS", None)]
    assert talk.answer(result=["a@trade", "b@trade"]) == Outcome()
    talk.wait(0.2)
    assert talk.asked[4:] == [("UNSUBSCRIBE", ["a@trade"])]
    assert talk.answer() == Outcome(unsubscribed=("a@trade",))
    assert talk.subscriptions.settled


def test_answers_to_nothing_that_was_asked_are_no_matter() -> None:
    talk = Talk("a@trade")
    for number in (77, "x", None):
        assert talk.subscriptions.answered(Reply(number, "error", None), talk.now) == Outcome()


def test_a_list_that_is_refused_is_no_help_and_the_streams_are_asked_for_later() -> None:
    talk = Talk("a@trade")
    talk.wait(21)
    assert talk.answer(error="no") == Outcome(unconfirmed=("a@trade",))
    talk.wait(5.2)
    assert talk.asked[3:] == [("SUBSCRIBE", ["a@trade"])]
    assert talk.answer() == Outcome(subscribed=("a@trade",))


def test_an_unsubscribe_that_is_refused_or_lost_while_renewing_is_not_sent_again_behind_the_subscribe() -> None:
    for answer in (True, False):
        talk = Talk("a@trade")
        talk.wait(1)
        talk.answer()
        talk.subscriptions.renew(["a@trade"])
        talk.wait(0.2)
        if answer:
            talk.answer(error="no")
        talk.wait(0.5)
        talk.answer()
        talk.wait(60)
        assert talk.asked[1:] == [("UNSUBSCRIBE", ["a@trade"]), ("SUBSCRIBE", ["a@trade"])]
        assert talk.subscriptions.settled
