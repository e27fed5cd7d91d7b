"""Two faults of the simulated exchange: one stream falls silent, requests are lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.exchange_fixtures import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from tests.exchange_fixtures import Client

TWO = ("btcusdt@trade", "btcusdt@aggTrade")


@pytest.mark.parametrize(("for_good", "back"), [(False, True), (True, False)])
def test_a_stream_is_silent_until_it_is_subscribed_to_again_or_for_good(
    exchange: Exchange, connect: Callable[[str], Client], *, for_good: bool, back: bool
) -> None:
    client = connect(exchange.ws_url)
    client.subscribe(*TWO)
    exchange.silence("btcusdt@trade", for_good=for_good)
    exchange.burst(3, "BTCUSDT")
    eventually(lambda: exchange.sent(1)["streams"]["btcusdt@aggTrade"]["count"] == 3)
    assert "btcusdt@trade" not in exchange.sent(1)["streams"]
    assert exchange.connections()[0]["subscriptions"] == list(TWO)
    client.ask("UNSUBSCRIBE", ["btcusdt@trade"])
    client.ask("SUBSCRIBE", ["btcusdt@trade"])
    exchange.burst(2, "BTCUSDT")
    eventually(lambda: exchange.sent(1)["streams"]["btcusdt@aggTrade"]["count"] == 5)
    assert ("btcusdt@trade" in exchange.sent(1)["streams"]) == back


def test_a_lost_request_changes_nothing_and_the_next_one_is_answered(
    exchange: Exchange, connect: Callable[[str], Client]
) -> None:
    client = connect(exchange.ws_url)
    exchange.ignore(1)
    client.socket.send('{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}')
    assert client.ask("LIST_SUBSCRIPTIONS", number=2) == {"result": [], "id": 2}
