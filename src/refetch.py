"""How each kind of gap is asked for over REST: which endpoint, how many rows an answer, what it weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.streams import KLINE_INTERVALS
from src.binance_rest import (
    AGGREGATES_WEIGHT,
    KLINES_WEIGHT,
    MOST_ROWS,
    TRADES_WEIGHT,
    Foreign,
    Malformed,
    Refused,
)
from src.rest_events import (
    Origin,
    WrongShape,
    aggregate_events,
    bar_interval,
    kline_events,
    snapshot_event,
    trade_events,
)

if TYPE_CHECKING:
    from src.binance_rest import BinanceRest
    from src.events import Event, Topics
    from src.holes import Gap, Interval
    from src.telemetry import Telemetry

WEIGHTS = {"aggregate_trade": AGGREGATES_WEIGHT, "trade": TRADES_WEIGHT, "kline": KLINES_WEIGHT}
"""What one answer weighs, by the event types that can be had again."""
_SETTLED_MS = 5_000
"""How old the end of a bar has to be for the bar to be final although no later one is there yet."""
_INTERVAL_MS = {
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
    "M": 28 * 86_400_000,
}


def refetchable(gap: Gap) -> bool:
    """Whether REST has it: depth is not kept, and of a bar the stream has to tell the interval."""
    known = gap.event_type != "kline" or bar_interval(gap.stream)[0] in KLINE_INTERVALS
    return gap.event_type in WEIGHTS and known


def answers_needed(gap: Gap, missing: list[Interval]) -> int:
    """Return how many answers hold what is missing, at the least."""
    step = _bar_ms(gap.stream) if gap.event_type == "kline" else 1
    rows = [-(-(last - first + 1) // step) for first, last in missing]
    return sum(-(-count // MOST_ROWS) for count in rows)


def _bar_ms(stream: str) -> int:
    interval = bar_interval(stream)[0]
    return int(interval[:-1]) * _INTERVAL_MS[interval[-1]]


class Refetch:
    """Asks for what is missing and gives events; raises a `RestError`. The weight has been reserved already."""

    def __init__(self, rest: BinanceRest, topics: Topics, telemetry: Telemetry) -> None:
        self._rest = rest
        self._topics = topics
        self._telemetry = telemetry

    def page(self, gap: Gap, interval: Interval) -> list[Event]:
        """Ask for the first ids of an interval, an answer's worth; what comes may begin and end beyond it."""
        origin = Origin(gap.stream, gap.symbol, gap.event_type)
        try:
            if gap.event_type == "kline":
                return self._bars(origin, interval)
            return self._numbered(origin, interval)
        except WrongShape as error:
            raise self._malformed(gap.event_type, error) from error

    def snapshot(self, stream: str, symbol: str, levels: int) -> Event:
        """Ask for the order book."""
        answer = self._rest.depth(symbol, levels, reserved=True)
        try:
            return snapshot_event(answer.body, stream, symbol, self._topics, answer.received_ms)
        except WrongShape as error:
            raise self._malformed("depth", error) from error

    def _numbered(self, origin: Origin, interval: Interval) -> list[Event]:
        first, last = interval
        limit = min(MOST_ROWS, last - first + 1)
        if origin.event_type == "trade":
            answer = self._rest.trades(origin.symbol, first, limit, reserved=True)
            events = trade_events(answer.body, origin, self._topics, answer.received_ms)
        else:
            answer = self._rest.aggregates(origin.symbol, first, limit, reserved=True)
            events = aggregate_events(answer.body, origin, self._topics, answer.received_ms)
        if events and not first <= events[0].first_id <= last + 1:  # what is right behind the gap has come
            raise WrongShape(f"asked from {first} on, got {events[0].first_id}")
        return events

    def _bars(self, origin: Origin, interval: Interval) -> list[Event]:
        """Return closed bars only: a later one follows, or they ended a while ago by the exchange's clock."""
        first, last = interval
        kind, zone = bar_interval(origin.stream)
        answer = self._rest.klines(origin.symbol, kind, (first, last + 1), zone, reserved=True)
        bars = kline_events(answer.body, origin, self._topics, answer.received_ms)
        if (
            bars
            and bars[-1].first_id <= last
            and bars[-1].last_id + _SETTLED_MS > self._time_ms(answer.received_ms)
        ):
            bars.pop()
        return bars

    def _time_ms(self, ours: int) -> int:
        """Return the exchange's time; ours where it does not serve its own."""
        try:
            return self._rest.time_ms()
        except (Refused, Malformed, Foreign):
            return ours

    def _malformed(self, asked: str, error: WrongShape) -> Malformed:
        malformed = Malformed(f"{asked}: {error}")
        self._telemetry.rest_failed(asked, malformed.reason, malformed)
        return malformed
