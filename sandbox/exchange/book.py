"""An order book of integer prices and quantities that remembers what changed since it was last asked."""

from __future__ import annotations

Level = tuple[int, int]
Changes = dict[int, int]


class Side:
    """One side of the book. `step` points away from the best price: -1 for bids, +1 for asks."""

    __slots__ = ("best", "changed", "changed_slow", "levels", "step")

    def __init__(self, best: int, step: int) -> None:
        self.best = best
        self.step = step
        self.levels: dict[int, int] = {}
        self.changed: Changes = {}
        self.changed_slow: Changes = {}

    def set(self, price: int, quantity: int) -> None:
        """Give a level its absolute quantity; 0 removes it. The caller keeps the side from running empty."""
        self.changed[price] = quantity
        if quantity:
            self.levels[price] = quantity
            if (price - self.best) * self.step < 0:
                self.best = price
        elif self.levels.pop(price, 0) and price == self.best:
            self.best = self._next_best(price)

    def top(self, limit: int) -> list[Level]:
        """Read the best levels, best first."""
        levels = self.levels
        if limit > 20:  # noqa: PLR2004 - walking is cheaper than sorting for the short books only
            return [(price, levels[price]) for price in self._sorted(levels)[:limit]]
        found = []
        price = self.best
        for _ in range(limit * 64):
            if price in levels:
                found.append((price, levels[price]))
                if len(found) == limit:
                    return found
            price += self.step
        return [(price, levels[price]) for price in self._sorted(levels)[:limit]]

    def take_fast(self) -> list[Level]:
        """Take the changes since the last call, best first; they stay noted for `take_slow`."""
        changed, self.changed = self.changed, {}
        self.changed_slow.update(changed)
        return [(price, changed[price]) for price in self._sorted(changed)]

    def take_slow(self) -> list[Level]:
        """Take the changes since the last call of this method, whatever `take_fast` took in between."""
        changed = self.changed_slow
        self.changed_slow = {}
        changed.update(self.changed)
        return [(price, changed[price]) for price in self._sorted(changed)]

    def worst(self, beyond: int) -> list[int]:
        """Name the prices of the levels behind the best `beyond` ones."""
        if len(self.levels) <= beyond:
            return []
        return self._sorted(self.levels)[beyond:]

    def _sorted(self, prices: dict[int, int]) -> list[int]:
        return sorted(prices, reverse=self.step < 0)

    def _next_best(self, price: int) -> int:
        levels = self.levels
        for _ in range(512):
            price += self.step
            if price in levels:
                return price
        return max(levels) if self.step < 0 else min(levels)


class Book:
    """Both sides and the update id: every single change of a level is one id."""

    __slots__ = ("asks", "bids", "fast_id", "slow_id", "update_id")

    def __init__(self, middle: int, first_id: int) -> None:
        self.bids = Side(middle, -1)
        self.asks = Side(middle + 1, +1)
        self.update_id = self.fast_id = self.slow_id = first_id

    def set(self, side: Side, price: int, quantity: int) -> None:
        """Change one level and step the update id."""
        self.update_id += 1
        side.set(price, quantity)

    def settle(self) -> None:
        """Forget which levels changed: the book as it stands is where the streams begin."""
        for side in (self.bids, self.asks):
            side.changed, side.changed_slow = {}, {}
        self.fast_id = self.slow_id = self.update_id

    def take_fast(self) -> tuple[int, int, list[Level], list[Level]] | None:
        """First id, last id, bids, asks since the last call (100 ms streams), or None for a quiet book."""
        if self.update_id == self.fast_id:
            return None
        first, self.fast_id = self.fast_id + 1, self.update_id
        return first, self.update_id, self.bids.take_fast(), self.asks.take_fast()

    def take_slow(self) -> tuple[int, int, list[Level], list[Level]] | None:
        """Take the same for the 1000 ms streams, which have a chain of ids of their own."""
        if self.update_id == self.slow_id:
            return None
        first, self.slow_id = self.slow_id + 1, self.update_id
        return first, self.update_id, self.bids.take_slow(), self.asks.take_slow()
