"""Klines: bars of one second kept for every symbol, and their roll-up into any interval and UTC offset."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

SECOND_MS = 1_000
MINUTE_MS = 60_000
DAY_MS = 86_400_000

INTERVAL_MS = {
    "1s": SECOND_MS,
    "1m": MINUTE_MS,
    "3m": 3 * MINUTE_MS,
    "5m": 5 * MINUTE_MS,
    "15m": 15 * MINUTE_MS,
    "30m": 30 * MINUTE_MS,
    "1h": 60 * MINUTE_MS,
    "2h": 120 * MINUTE_MS,
    "4h": 240 * MINUTE_MS,
    "6h": 360 * MINUTE_MS,
    "8h": 480 * MINUTE_MS,
    "12h": 720 * MINUTE_MS,
    "1d": DAY_MS,
    "3d": 3 * DAY_MS,
    "1w": 7 * DAY_MS,
    "1M": 0,
}
"""Every interval the exchange knows; a calendar month has no fixed length."""

_FIRST_MONDAY_MS = 4 * DAY_MS
_MONTHS = 12


def open_time(time: int, interval: str, offset: int = 0) -> int:
    """Find the opening time of the bar that holds `time`; `offset` is the distance to UTC in ms."""
    local = time + offset
    if interval == "1M":
        moment = datetime.fromtimestamp(local // 1000, UTC)
        opening = datetime(moment.year, moment.month, 1, tzinfo=UTC)
        return int(opening.timestamp()) * 1000 - offset
    length = INTERVAL_MS[interval]
    start = _FIRST_MONDAY_MS if interval == "1w" else 0
    return (local - start) // length * length + start - offset


def next_open(opening: int, interval: str, offset: int = 0) -> int:
    """Find the opening time of the following bar."""
    if interval != "1M":
        return opening + INTERVAL_MS[interval]
    moment = datetime.fromtimestamp((opening + offset) // 1000, UTC)
    year, month = divmod(moment.year * _MONTHS + moment.month, _MONTHS)
    return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * 1000 - offset


class Bar:
    """One bar. Prices in ticks, `volume` in lots, `quote` in ticks times lots; `taker_*` is taker buys."""

    __slots__ = (
        "close",
        "count",
        "first",
        "high",
        "last",
        "low",
        "open",
        "opening",
        "quote",
        "taker_quote",
        "taker_volume",
        "volume",
    )

    def __init__(self, opening: int, price: int) -> None:
        self.opening = opening
        self.open = self.high = self.low = self.close = price
        self.volume = self.quote = self.taker_volume = self.taker_quote = self.count = 0
        self.first = self.last = -1

    def absorb(self, later: Bar) -> None:
        """Add a bar that follows in time; an empty one changes nothing."""
        if not later.count:
            return
        if not self.count:
            self.open, self.high, self.low, self.first = later.open, later.high, later.low, later.first
        self.high = max(self.high, later.high)
        self.low = min(self.low, later.low)
        self.close, self.last = later.close, later.last
        self.volume += later.volume
        self.quote += later.quote
        self.taker_volume += later.taker_volume
        self.taker_quote += later.taker_quote
        self.count += later.count

    def copy(self) -> Bar:
        """Copy the bar as it stands now."""
        twin = Bar.__new__(Bar)
        for field in Bar.__slots__:
            setattr(twin, field, getattr(self, field))
        return twin


class Series:
    """Bars of one interval and offset, fed with finer ones in order of time; no interval is left out."""

    def __init__(self, interval: str, offset: int, time: int, price: int, keep: int) -> None:
        self.interval = interval
        self.offset = offset
        self.current = Bar(open_time(time, interval, offset), price)
        self.closed: deque[Bar] = deque(maxlen=keep)
        self.closed_count = 0
        self._end = next_open(self.current.opening, interval, offset)

    def add(self, finer: Bar) -> None:
        """Take in a finer bar that is complete."""
        self.advance(finer.opening)
        self.current.absorb(finer)

    def advance(self, time: int) -> None:
        """Close every bar that ended at or before `time`."""
        while time >= self._end:
            self.closed.append(self.current)
            self.closed_count += 1
            self.current = Bar(self._end, self.current.close)
            self._end = next_open(self._end, self.interval, self.offset)


class BarHistory:
    """All bars of one symbol: seconds and minutes are kept, other intervals are rolled up when wanted."""

    def __init__(self, time: int, price: int, keep_seconds: int, keep_minutes: int) -> None:
        self.second = Bar(open_time(time, "1s"), price)
        self.second_end = self.second.opening + SECOND_MS
        self._started = (time, price)
        self._keep = keep_minutes
        self._seconds: deque[Bar] = deque(maxlen=keep_seconds)
        self._minutes = Series("1m", 0, time, price, keep_minutes)
        self._series: dict[tuple[str, int], Series] = {("1m", 0): self._minutes}

    def roll(self, time: int) -> None:
        """Close the running second when `time` lies behind it."""
        if time < self.second_end:
            return
        ended = self.second
        if ended.count:
            self._seconds.append(ended)
            for series in self._series.values():
                series.add(ended)
        self.second = Bar(open_time(time, "1s"), ended.close)
        self.second_end = self.second.opening + SECOND_MS
        for series in self._series.values():
            series.advance(self.second.opening)

    def series(self, interval: str, offset: int = 0) -> Series:
        """Return the running series of an interval, started from what is known when it is first wanted."""
        key = (interval, offset)
        if key not in self._series:
            self._series[key] = self._rolled_up(interval, offset)
        return self._series[key]

    def running(self, series: Series) -> Bar:
        """Return the open bar of a series with the running second in it."""
        bar = series.current.copy()
        bar.absorb(self.second)
        return bar

    def window(self, since: int) -> Bar:
        """One bar over the minutes that opened at or after `since`, up to now."""
        series = self._minutes
        chosen = [bar for bar in series.closed if bar.opening >= since]
        total = Bar(since, chosen[0].open if chosen else series.current.open)
        for bar in (*chosen, self.running(series)):
            total.absorb(bar)
        return total

    def klines(self, interval: str, offset: int) -> list[Bar]:
        """All known bars of an interval, oldest first, the open one last."""
        series = self._rolled_up(interval, offset)
        return [*series.closed, self.running(series)]

    def _rolled_up(self, interval: str, offset: int) -> Series:
        finer = self._finer_than(interval)
        time, price = (finer[0].opening, finer[0].open) if finer else self._started
        series = Series(interval, offset, time, price, self._keep)
        for bar in finer:
            series.add(bar)
        series.advance(self.second.opening)
        return series

    def _finer_than(self, interval: str) -> list[Bar]:
        if interval == "1s":
            return list(self._seconds)
        return [*self._minutes.closed, self._minutes.current]
