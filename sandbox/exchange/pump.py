"""The pump: turns passing time into ticks of the market and hands what they yield to the connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandbox.exchange.feed import Feed
    from sandbox.exchange.market import Market
    from sandbox.exchange.session import Session

_MOST_TICKS_BEHIND = 40
_MOST_TICKS_AT_ONCE = 4
_WAIT_ABOVE_BYTES = 512 * 1024


class Pump:
    """Market time is the start plus the time that passed; a tick that cannot be made in time is left out.

    When the machine is too slow, or the policy is to wait for slow clients, time goes on and the rate drops:
    `skipped_ms` says by how much.
    """

    def __init__(
        self,
        market: Market,
        feed: Feed,
        sessions: Callable[[], Iterable[Session]],
        tick_ms: int,
        *,
        waits: bool,
    ) -> None:
        self._market = market
        self._feed = feed
        self._sessions = sessions
        self._tick_ms = tick_ms
        self._waits = waits
        self._began = 0.0
        self._ticked_ms = 0
        self.skipped_ms = 0
        self.halted = False

    def now_ms(self) -> int:
        """Market time, between ticks too."""
        passed = asyncio.get_running_loop().time() - self._began if self._began else 0.0
        return self._market.started_ms + int(passed * 1000)

    async def run(self) -> None:
        """Tick until cancelled."""
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        while True:
            self._catch_up(loop.time())
            next_tick = self._began + (self._ticked_ms + self._tick_ms) / 1000
            await asyncio.sleep(max(next_tick - loop.time(), 0))

    def deliver(self, now: float) -> None:
        """Write what was gathered for each connection and count it."""
        for session in self._sessions():
            session.flush(now)
        self._feed.settle()
        for session in self._sessions():
            session.fire()

    def burst(self, count: int, symbol: str | None) -> None:
        """Make `count` messages at once: taker orders of one symbol, or one tick of the whole market."""
        if symbol is not None:
            self._market.burst(symbol, count, self._feed.emit)
            self._market.flush_depth(self._market.listings.index(self._market.by_name[symbol]), self._feed.emit)
        else:
            self._market.tick(self._market.now_ms, self._feed.emit, extra=count)
        self.deliver(asyncio.get_running_loop().time())

    def _catch_up(self, now: float) -> None:
        passed_ms = int((now - self._began) * 1000)
        due = (passed_ms - self._ticked_ms) // self._tick_ms
        left_out = due if due and (self.halted or self._must_wait()) else max(due - _MOST_TICKS_BEHIND, 0)
        self._ticked_ms += left_out * self._tick_ms
        self.skipped_ms += left_out * self._tick_ms
        for _ in range(min(due - left_out, _MOST_TICKS_AT_ONCE)):
            self._ticked_ms += self._tick_ms
            self._market.tick(self._market.started_ms + self._ticked_ms, self._feed.emit)
        if self._market.rate and due:
            self._feed.push_clocked(self._market.now_ms)
        for session in self._sessions():
            session.pass_time(now, self._market.now_ms)
        self.deliver(now)

    def _must_wait(self) -> bool:
        return self._waits and any(
            session.speaking and session.outbox.backlog > _WAIT_ABOVE_BYTES for session in self._sessions()
        )
