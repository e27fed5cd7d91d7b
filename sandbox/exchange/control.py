"""Faults and questions on command. The HTTP endpoints and the Python methods both end here."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.exchange import frames, payloads
from sandbox.exchange.faults import ControlError, Faults, payload_from
from sandbox.exchange.listing import AggregateEvent, TradeEvent
from sandbox.exchange.record import Tally, by_kind, stream_label
from sandbox.exchange.replay import Pace, Recording, Replay, ReplayError
from sandbox.exchange.rest import Forced
from sandbox.exchange.settings import SYMBOL_STATUSES, Mix, SettingsError
from sandbox.exchange.tamper import tally_of

if TYPE_CHECKING:
    from sandbox.exchange.core import Core
    from sandbox.exchange.faults import Answer, Frame, Target
    from sandbox.exchange.rest import Rest
    from sandbox.exchange.session import Session

COMMANDS = (
    "cut",
    "close",
    "mute",
    "half_open",
    "resume",
    "slow",
    "malformed",
    "invalid_utf8",
    "inject",
    "tamper",
    "silence",
    "ignore",
    "shutdown",
    "stall_handshake",
    "handshake_status",
    "refuse",
    "accept",
    "disarm",
    "after",
    "send",
    "burst",
    "rate",
    "status",
    "list_symbol",
    "rest",
    "replay",
)

TARGETED = ("cut", "close", "mute", "half_open", "slow", "malformed", "invalid_utf8", "shutdown")
"""Faults that `after` can wait with."""
_AT_ANY_TIME = 2**62


class Control(Faults):
    """The faults of connections, and everything else that can be commanded or asked."""

    def __init__(self, core: Core, rest: Rest) -> None:
        super().__init__(core)
        self._rest = rest

    def stall_handshake(self, connections: int = 1) -> Answer:
        """Accept TCP for the next connections and say nothing; 0 is until `disarm`."""
        self._core.arrivals.stall(connections)
        return {"fault": "stall_handshake", "armed": connections}

    def handshake_status(
        self, status: int = 503, connections: int = 1, retry_after_s: int | None = None
    ) -> Answer:
        """Answer the next handshakes with an HTTP status; 0 is until `disarm`."""
        self._core.arrivals.refuse(connections, status, retry_after_s)
        return {"fault": "handshake_status", "status": status, "armed": connections}

    async def refuse(self, seconds: float | None = None) -> Answer:
        """Close the listener: TCP connections are refused until `accept`, or for `seconds`."""
        await self._core.close_door()
        if seconds is not None:
            self._core.spawn(self._accept_later(seconds))
        return {"fault": "refuse", "port": self._core.port, "seconds": seconds}

    async def accept(self) -> Answer:
        """Listen again on the same port."""
        await self._core.open_door()
        return {"accepting": True, "port": self._core.port}

    def disarm(self) -> Answer:
        """Forget what is armed for connections to come, and drop stalled handshakes."""
        return {"disarmed": self._core.arrivals.disarm()}

    def after(
        self,
        frames: int,
        command: str,
        target: Target = "all",
        connections: int = 1,
        arguments: Answer | None = None,
    ) -> Answer:
        """Carry out a fault on a connection once it was sent so many more data frames (whole ticks)."""
        if command not in TARGETED:
            raise ControlError(f"command: {command!r} is none of {', '.join(TARGETED)}")
        fault, more = getattr(self, command), arguments or {}

        def act(session: Session) -> None:
            session.when_sent(frames, lambda: fault(target=session.id, **more))

        return self._apply(f"{command} after {frames} frames", target, connections, act)

    def send(
        self,
        stream: str,
        frames_: list[Frame],
        target: Target = "subscribers",
        *,
        wrap: bool = False,
        opcode: str = "text",
    ) -> Answer:
        """Send exact frames as data of a stream, to its subscribers or to a target.

        A frame is a text, or `{"base64": …}`. `wrap` puts the combined wrapper around it where the
        connection has it; without, the bytes go out as they are.
        """
        code = frames.BINARY if opcode == "binary" else frames.TEXT
        payloads = [payload_from(each) for each in frames_]
        reached = []
        for session in self._receivers(stream, target):
            block, tally = b"", Tally()
            for payload in payloads:
                wrapped = b'{"stream":"%b","data":%b}' % (stream.encode(), payload)
                block += frames.frame(wrapped if wrap and session.combined else payload, code)
                tally.add(tally_of(payload))
            if session.send_data(block, stream, tally, self._core.now()):
                reached.append(session.id)
        return {"sent": len(payloads), "stream": stream, "connections": reached}

    def burst(self, count: int, symbol: str | None = None) -> Answer:
        """Let the market make `count` messages now; with a symbol: that many single-fill taker orders."""
        if symbol is not None and symbol.upper() not in self._core.market.by_name:
            raise ControlError(f"symbol: {symbol!r} is not listed")
        self._core.pump.burst(count, symbol.upper() if symbol else None)
        return {"burst": count, "symbol": symbol}

    def rate(self, rate: float, mix: str | None = None) -> Answer:
        """Trade at another rate, and with another mix where one is given."""
        if not 0 <= rate < float("inf"):
            raise ControlError(f"rate: a number from 0 on, not {rate}")
        try:
            self._core.market.plan(rate, Mix.parse(mix) if mix else self._core.market.mix)
        except SettingsError as error:
            raise ControlError(str(error)) from None
        return {"rate": rate, "mix": mix}

    def status(self, status: str) -> Answer:
        """Set what exchangeInfo says of all symbols; during BREAK no market data is made."""
        if status not in SYMBOL_STATUSES:
            raise ControlError(f"status: {status!r} is none of {', '.join(SYMBOL_STATUSES)}")
        self._core.status = status
        self._core.pump.halted = status == "BREAK"
        return {"status": status}

    def list_symbol(self, symbol: str, status: str | None = "TRADING") -> Answer:
        """Set what exchangeInfo says of one symbol; null: that it does not list it. Its market goes on."""
        if symbol not in self._core.market.by_name:
            raise ControlError(f"symbol: {symbol!r} is none of this exchange")
        self._core.unlisted.discard(symbol)
        if status is None:
            self._core.unlisted.add(symbol)
        else:
            self._core.statuses[symbol] = status
        return {"symbol": symbol, "status": status}

    def rest(  # noqa: PLR0913 - one command, many faults
        self,
        status: int | None = None,
        count: int = 1,
        delay_s: float | None = None,
        lag_s: float | None = None,
        *,
        body: str | None = None,
        retry_after_s: int | None = None,
        forgive: bool = False,
    ) -> Answer:
        """Answer the next `count` REST requests so; delay all, let history lag, forgive weights.

        An answer with a body and no status has 200, one without a body is an error of the exchange.
        """
        rest = self._rest
        if status is not None or body is not None:
            rest.forced += [Forced(200 if status is None else status, body, retry_after_s)] * count
        rest.delay_s = rest.delay_s if delay_s is None else delay_s
        rest.lag_s = rest.lag_s if lag_s is None else lag_s
        if forgive:
            rest.budget.forgive()
            rest.forced.clear()
        return {"forced": len(rest.forced), "delay_s": rest.delay_s, "lag_s": rest.lag_s}

    def replay(
        self,
        path: str,
        speed: float = 1.0,
        repeat: int = 1,
        *,
        to_all: bool = False,
        on_subscribe: bool = False,
    ) -> Answer:
        """Replay a recording, now or from the first subscription on; `speed` 0 is as fast as it is read."""
        core = self._core
        try:
            recording = Recording.load(Path(path))
            replay = Replay(recording, Pace(speed, repeat, to_all), lambda: list(core.sessions.values()))
        except ReplayError as error:
            raise ControlError(str(error)) from None
        if on_subscribe:
            core.on_subscribed.append(lambda: core.spawn(replay.run()))
        else:
            core.spawn(replay.run())
        return {"replay": path, "frames": len(recording.frames), "speed": speed, "repeat": repeat}

    def connections(self) -> Answer:
        """Every connection's record."""
        core = self._core
        return {
            "connections": [record.as_json() for record in core.ledger.connections()],
            "opened": core.ledger.opened,
            "stalled_handshakes": core.arrivals.stalled,
            "skipped_ms": core.pump.skipped_ms,
        }

    def sent(self, connection: int | None = None, stream: str | None = None, kind: str | None = None) -> Answer:
        """Totals per stream and per kind, of one connection or of all."""
        totals = self._core.ledger.sent(connection)
        chosen = {
            name: tally
            for name, tally in totals.items()
            if stream in (None, name) and kind in (None, stream_label(name))
        }
        whole = Tally()
        for tally in chosen.values():
            whole.add(Tally(tally.frames, tally.events, tally.bytes))
        return {
            "streams": {name: tally.as_json() for name, tally in sorted(chosen.items())},
            "kinds": {name: _plain(tally) for name, tally in sorted(by_kind(chosen).items())},
            "total": _plain(whole),
        }

    def market(self) -> Answer:
        """Tell, by symbol, the ids that the market has come to, whether or not somebody was connected."""
        return {
            listing.spec.name: {
                "trade": listing.tape.next_trade - 1,
                "aggTrade": listing.tape.next_aggregate - 1,
                "depth": listing.book.update_id,
            }
            for listing in self._core.market.listings
        }

    def history(self, symbol: str, stream: str, first: int) -> Answer:
        """Tell what `<symbol>@<stream>` has carried, or would have, from an id on; trade or aggTrade."""
        if symbol not in self._core.market.by_name:
            raise ControlError(f"symbol: {symbol!r} is not listed")
        listing = self._core.market.by_name[symbol]
        tape = listing.tape
        if stream == "trade":
            trades = tape.trades(first, tape.next_trade, _AT_ANY_TIME)
            texts = [payloads.trade(listing, TradeEvent(0, *each)) for each in trades]
        elif stream == "aggTrade":
            aggregates = tape.aggregates(first, tape.next_aggregate, _AT_ANY_TIME)
            texts = [payloads.agg_trade(listing, AggregateEvent(0, *each)) for each in aggregates]
        else:
            raise ControlError(f"stream: {stream!r} is neither trade nor aggTrade")
        return {"events": [json.loads(text) for text in texts]}

    def book(self, symbol: str, levels: int) -> Answer:
        """Tell the order book as `depth` over REST does, without its weight."""
        if symbol not in self._core.market.by_name:
            raise ControlError(f"symbol: {symbol!r} is not listed")
        listing = self._core.market.by_name[symbol]
        answer: Answer = json.loads(payloads.partial_depth(listing, listing.book.update_id, levels))
        return answer

    def _receivers(self, stream: str, target: Target) -> list[Session]:
        if target == "subscribers":
            return [each for each in self._core.sessions.values() if stream in each.subscriptions]
        return self.sessions(target)

    async def _accept_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._core.open_door()


def _plain(tally: Tally) -> Answer:
    return {"count": tally.frames, "events": tally.events, "bytes": tally.bytes}
