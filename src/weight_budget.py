"""How much may be asked of the exchange's REST interface: its weights a minute, and the pauses that it orders.

The limit holds for an IP and counts in whole minutes of the exchange's clock, which may differ from ours. So our
own share is kept in any 60 s, whole minute or not (Binance rest-api.md, "IP Limits").
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW = 60.0
USUAL_LIMIT = 6000
_HEADROOM = 0.95
"""Of the limit of the whole IP: others use it too, and the last answer may be older than their last request."""
_LOOK_AGAIN = 5.0


class WeightBudget:
    """Grants weight to all who ask; thread-safe.

    `per_minute` is what we may use ourselves. The exchange tells with every answer how much the IP has used,
    others included, and nothing is granted that would go beyond the limit of all. A refusal pauses everybody.
    """

    def __init__(
        self, per_minute: int, limit: int = USUAL_LIMIT, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_minute = per_minute
        self._limit = limit
        self._now = now
        self._changed = threading.Condition()  # guards everything below
        self._under_way = 0
        self._spent: deque[tuple[float, int]] = deque()
        self._sum = 0
        """Of the weights in `_spent`."""
        self._used_by_all = 0
        self._told_at = now() - _WINDOW
        self._since_told = 0
        """Of our own, answered since without a word about it."""
        self._paused_until = 0.0
        self._closed = False

    def acquire(self, weight: int) -> bool:
        """Wait until a request of this weight may leave; return False once closed. Follow it by `answered`."""
        with self._changed:
            while not self._closed:
                wait = self._wait_for(weight, self._per_minute)
                if not wait:
                    self._under_way += weight
                    return True
                self._changed.wait(min(wait, _LOOK_AGAIN))
            return False

    def reserve(self, weight: int, share: float = 1.0) -> float:
        """Grant weight without waiting, out of a share of the budget; return 0, or the seconds to try again after.

        Follow it by `answered`, or by `release` when nothing was asked.
        """
        with self._changed:
            wait = self._wait_for(weight, max(1, int(self._per_minute * share)))
            if not wait:
                self._under_way += weight
            return wait

    def release(self, weight: int) -> None:
        """Take back what was reserved and not used."""
        with self._changed:
            self._under_way -= weight
            self._changed.notify_all()

    def answered(self, weight: int, used: int | None = None) -> None:
        """Take note of the end of a request, whatever it was; `used` is what the exchange says of the minute.

        It counts from here on, since it is not known when it was counted there.
        """
        with self._changed:
            now = self._now()
            self._under_way -= weight
            self._spent.append((now, weight))
            self._sum += weight
            self._since_told += weight
            if used is not None:
                self._used_by_all, self._told_at, self._since_told = used, now, 0
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Grant nothing for so long: the exchange has said so."""
        with self._changed:
            self._paused_until = max(self._paused_until, self._now() + seconds)

    def learn_limit(self, limit: int) -> None:
        """Take over the limit of the IP that the exchange names."""
        with self._changed:
            self._limit = limit
            self._changed.notify_all()

    def wait_for(self, weight: int, share: float = 1.0) -> float:
        """Return the seconds until `weight`, however much, could all be granted out of a share of the budget."""
        with self._changed:
            per_minute = max(1, int(self._per_minute * share))
            whole, rest = divmod(weight, per_minute)
            if whole and not rest:
                whole, rest = whole - 1, per_minute
            return self._wait_for(rest, per_minute) + whole * _WINDOW

    def close(self) -> None:
        """Let everybody who waits go, with nothing; return at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_for(self, weight: int, per_minute: int) -> float:
        now = self._now()
        while self._spent and self._spent[0][0] <= now - _WINDOW:
            self._sum -= self._spent.popleft()[1]
        wait = max(0.0, self._paused_until - now)
        return max(wait, self._until_ours(weight, per_minute, now), self._until_all(weight, now))

    def _until_ours(self, weight: int, per_minute: int, now: float) -> float:
        """Return the seconds until enough of ours is a minute old; what is too heavy goes when all of it is."""
        excess = self._sum + self._under_way + weight - per_minute
        if excess <= 0 or not (self._sum or self._under_way):
            return 0.0
        for spent_at, amount in self._spent:
            excess -= amount
            if excess <= 0:
                return spent_at + _WINDOW - now
        return self._spent[-1][0] + _WINDOW - now if self._spent else _LOOK_AGAIN

    def _until_all(self, weight: int, now: float) -> float:
        """Return the seconds until what the exchange has told is of an earlier minute for certain."""
        left = self._told_at + _WINDOW - now
        if left <= 0:
            return 0.0
        used = self._used_by_all + self._since_told + self._under_way
        return left if used + weight > self._limit * _HEADROOM else 0.0
