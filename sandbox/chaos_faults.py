"""What can go wrong with the exchange. Each fault lasts until `over`, also for connections that open meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from sandbox.exchange import Exchange

STREAM_TYPES = "trade,aggTrade,depth@100ms,kline_1s"
_TRADED = ("btcusdt", "ethusdt", "bnbusdt")
_ALL = 0
"""Connections to come: each one, until `over`."""
_MANY = 10_000
"""Answers of REST: more than there will be."""
_FAR = 10**15
WRONG_BY = 1000


class Fault(NamedTuple):
    """How it begins, and between how many seconds it lasts."""

    begin: Callable[[Exchange, Random], object]
    seconds: tuple[float, float] = (0.5, 1.5)


def over(exchange: Exchange) -> None:
    """End whatever goes on; what is cut or closed stays so."""
    exchange.accept()
    exchange.disarm()
    exchange.resume()
    exchange.rest(delay_s=0.0, lag_s=0.0, forgive=True)


def _nothing(_: Exchange, __: Random) -> None:
    pass


def _cut(exchange: Exchange, _: Random) -> None:
    exchange.cut()


def _cut_again_and_again(exchange: Exchange, chance: Random) -> None:
    exchange.after(chance.randrange(50, 1000), "cut", "next", connections=_ALL)
    exchange.cut()


def _cut_while_subscribing(exchange: Exchange, _: Random) -> None:
    exchange.after(0, "cut", "next", connections=_ALL)
    exchange.cut()


def _cut_while_filling(exchange: Exchange, chance: Random) -> None:
    exchange.rest(delay_s=0.3)
    _cut_again_and_again(exchange, chance)


def _closed(exchange: Exchange, chance: Random) -> None:
    exchange.close(code=chance.choice((1000, 1001, 1008, 1011, None)))


def _silent(command: str) -> Callable[[Exchange, Random], None]:
    def begin(exchange: Exchange, _: Random) -> None:
        exchange.command(command, "next", connections=_ALL)
        exchange.command(command)

    return begin


def _slow(exchange: Exchange, _: Random) -> None:
    exchange.slow("next", connections=_ALL, delay_s=0.4)
    exchange.slow(delay_s=0.4)


def _refused(exchange: Exchange, _: Random) -> None:
    exchange.refuse()
    exchange.cut()


def _stalled(exchange: Exchange, _: Random) -> None:
    exchange.stall_handshake(_ALL)
    exchange.cut()


def _handshake(status: int, **more: Any) -> Callable[[Exchange, Random], None]:  # noqa: ANN401 - as the command takes it
    def begin(exchange: Exchange, _: Random) -> None:
        exchange.handshake_status(status, connections=_ALL, **more)
        exchange.cut()

    return begin


def _banned(exchange: Exchange, _: Random) -> None:
    exchange.handshake_status(418, connections=_ALL, retry_after_s=1)
    exchange.rest(status=418, retry_after_s=2, count=_MANY)
    exchange.cut()


def _requests_lost(exchange: Exchange, _: Random) -> None:
    exchange.ignore(1, "next", connections=_ALL)
    exchange.cut()


def _shutdown(exchange: Exchange, chance: Random) -> None:
    exchange.shutdown(cut_after_s=chance.uniform(0.3, 2.0))


def _cut_while_rotating(exchange: Exchange, chance: Random) -> None:
    exchange.shutdown(cut_after_s=chance.uniform(0.1, 0.5))
    exchange.after(chance.randrange(500), "cut", "next", connections=1)


def _mute_while_rotating(exchange: Exchange, chance: Random) -> None:
    exchange.mute("next", connections=_ALL)
    exchange.shutdown(cut_after_s=chance.uniform(0.5, 1.0))


def _malformed(exchange: Exchange, _: Random) -> None:
    for target in ("next", "all"):
        exchange.malformed(target)
        exchange.invalid_utf8(target)


def _tampered(mode: str) -> Callable[[Exchange, Random], None]:
    """Alter ids on the connections that are open and those that open; REST takes its time to repair it."""

    def begin(exchange: Exchange, chance: Random) -> None:
        exchange.rest(delay_s=0.3)
        stream = f"{chance.choice(_TRADED)}@{chance.choice(('trade', 'aggTrade'))}"
        count = chance.choice((1, 3))
        exchange.tamper(stream, mode, "next", connections=_ALL, count=count, offset=WRONG_BY)
        exchange.tamper(stream, mode, count=count, offset=WRONG_BY)

    return begin


def _rest(**fault: Any) -> Callable[[Exchange, Random], None]:  # noqa: ANN401 - as the command takes it
    """Let REST fail while something is missing."""

    def begin(exchange: Exchange, _: Random) -> None:
        exchange.rest(count=_MANY, **fault)
        exchange.cut()

    return begin


def _rows(number: int) -> str:
    """Write an answer for trades and aggregates alike, with an id that nobody asked for."""
    trade = {"id": number, "price": "1.0", "qty": "1.0", "time": 1_700_000_000_000, "isBuyerMaker": True}
    aggregate = {"a": number, "p": "1.0", "q": "1.0", "f": number, "l": number, "T": 1_700_000_000_000, "m": True}
    return json.dumps([trade | aggregate])


_LONG = (2.5, 4.0)  # the service notices silence after 2 s
FAULTS = {
    "none": Fault(_nothing),
    "cut": Fault(_cut),
    "cuts": Fault(_cut_again_and_again, (1.0, 3.0)),
    "cut subscribing": Fault(_cut_while_subscribing, (1.0, 3.0)),
    "cut filling": Fault(_cut_while_filling, (1.0, 3.0)),
    "closed": Fault(_closed),
    "mute": Fault(_silent("mute")),
    "mute for long": Fault(_silent("mute"), _LONG),
    "half open": Fault(_silent("half_open")),
    "half open, long": Fault(_silent("half_open"), _LONG),
    "slow": Fault(_slow),
    "refused": Fault(_refused, (1.0, 3.0)),
    "handshake stalls": Fault(_stalled, _LONG),
    "handshake 503": Fault(_handshake(503)),
    "handshake 429": Fault(_handshake(429, retry_after_s=1)),
    "banned": Fault(_banned, (1.0, 3.0)),
    "requests lost": Fault(_requests_lost, _LONG),
    "shutdown": Fault(_shutdown, (1.0, 3.0)),
    "shutdown, cut": Fault(_cut_while_rotating),
    "shutdown, mute": Fault(_mute_while_rotating, _LONG),
    "malformed": Fault(_malformed),
    "wrong ids": Fault(_tampered("wrong")),
    "repeated ids": Fault(_tampered("repeated")),
    "missing ids": Fault(_tampered("missing")),
    "disordered ids": Fault(_tampered("out_of_order")),
    "REST slow": Fault(_rest(delay_s=0.5), (1.0, 3.0)),
    "REST behind": Fault(_rest(lag_s=1.0), (1.0, 3.0)),
    "REST 500": Fault(_rest(status=500), (1.0, 3.0)),
    "REST 429": Fault(_rest(status=429, retry_after_s=2), (1.0, 3.0)),
    "REST 418": Fault(_rest(status=418, retry_after_s=2), (1.0, 3.0)),
    "REST no JSON": Fault(_rest(body="<html>busy</html>"), (1.0, 3.0)),
    "REST other shape": Fault(_rest(body='{"code":0,"msg":"ok"}'), (1.0, 3.0)),
    "REST empty": Fault(_rest(body="[]"), (1.0, 3.0)),
    "REST no body": Fault(_rest(body=""), (1.0, 3.0)),
    "REST older ids": Fault(_rest(body=_rows(1)), (1.0, 3.0)),
    "REST later ids": Fault(_rest(body=_rows(_FAR)), (1.0, 3.0)),
}
