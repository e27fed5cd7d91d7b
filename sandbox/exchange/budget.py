"""The request budget of an IP: weight a minute, then 429, then 418 until a ban ends (protocol section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.exchange.settings import RestRules

_MINUTE_MS = 60_000


@dataclass(frozen=True)
class Refusal:
    """A status that is not 200, with what it tells the client."""

    status: int
    retry_after_s: int
    message: str


class Budget:
    """Counts weight in whole minutes of the exchange's clock; every client is the same IP here."""

    def __init__(self, rules: RestRules) -> None:
        self._rules = rules
        self._minute = 0
        self._refusals = 0
        self._banned_until_ms = 0
        self.used = 0

    def charge(self, weight: int, now_ms: int) -> Refusal | None:
        """Count a request; None when it may be answered."""
        if now_ms < self._banned_until_ms:
            return self._banned(now_ms)
        minute = now_ms // _MINUTE_MS
        if minute != self._minute:
            self._minute, self.used, self._refusals = minute, 0, 0
        self.used += weight
        if self.used <= self._rules.weight_per_minute:
            return None
        self._refusals += 1
        if self._refusals > self._rules.refusals_before_ban:
            self._banned_until_ms = now_ms + int(self._rules.ban_s * 1000)
            return self._banned(now_ms)
        limit = self._rules.weight_per_minute
        return Refusal(
            429,
            (_MINUTE_MS - now_ms % _MINUTE_MS) // 1000 + 1,
            f"Too much request weight used; current limit is {limit} request weight per 1 MINUTE. "
            "Please use WebSocket Streams for live updates to avoid polling the API.",
        )

    def forgive(self) -> None:
        """Begin anew: nothing used, nobody banned."""
        self.used = self._refusals = self._banned_until_ms = 0

    def _banned(self, now_ms: int) -> Refusal:
        return Refusal(
            418,
            -(-(self._banned_until_ms - now_ms) // 1000),
            f"Way too much request weight used; IP banned until {self._banned_until_ms}. "
            "Please use WebSocket Streams for live updates to avoid bans.",
        )
