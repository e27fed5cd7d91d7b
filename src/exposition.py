"""`/metrics`: what `/status` shows, in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import accumulate
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from src.catalogue import COUNTERS, ENDPOINTS, GAUGES, LABELLED, PREFIX, REASONS, STATE, TIMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

_Samples = Iterable[tuple[Sequence[str], float]]


class Exposition(Collector):
    """Gives Prometheus the numbers of one instant; what a status does not hold is left out."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering asks for no status."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        status = self._status()
        for name, meaning in COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, meaning, value=float(status[name]))
        for name, meaning in (GAUGES | STATE).items():
            if name in status:
                yield GaugeMetricFamily(PREFIX + name, meaning, value=float(status[name]))
        yield from _times(status)
        for name, reasons in REASONS.items():
            counts = dict.fromkeys(reasons, 0) | status[f"{name}_by_reason"]
            yield _counter(f"{name}_by_reason", COUNTERS[name], ("reason",), _by_name(counts))
        requests = dict.fromkeys(ENDPOINTS, 0) | status["rest_requests_by_endpoint"]
        yield _counter("rest_requests_by_endpoint", None, ("endpoint",), _by_name(requests))
        dropped = dict.fromkeys(status["symbols"], 0) | status["messages_dropped_by_symbol"]
        yield _counter("messages_dropped_by_symbol", None, ("symbol",), _by_name(dropped))
        yield _gauge("info", ("version",), [((str(status.get("version", "")),), 1.0)])
        yield from _kinds(status["kinds"])
        yield from _symbols(status["symbols"])
        yield _latency(status["latency"])


def _times(status: dict[str, Any]) -> Iterator[Metric]:
    moments = {"last_message_timestamp_seconds": "last_message_time", "started_timestamp_seconds": "started_at"}
    for name, field in moments.items():
        if status[field]:
            yield GaugeMetricFamily(PREFIX + name, TIMES[name], value=_seconds(status[field]))


def _kinds(kinds: list[dict[str, Any]]) -> Iterator[Metric]:
    for way in ("received", "produced"):
        counts = [((kind["event_type"], kind["topic"]), float(kind[way])) for kind in kinds]
        yield _counter(f"events_{way}", None, ("event_type", "topic"), counts)


def _symbols(symbols: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    label = ("symbol",)
    yield _counter(
        "symbol_events", None, label, [((name,), float(each["events"])) for name, each in symbols.items()]
    )
    times = [((name,), _seconds(each["last_event_time"])) for name, each in symbols.items()]
    yield _gauge("symbol_last_event_timestamp_seconds", label, times)
    prices = {name: _number(each["price"]) for name, each in symbols.items()}
    yield _gauge("symbol_price", label, [((name,), price) for name, price in prices.items() if isfinite(price)])


def _latency(latency: dict[str, Any]) -> Metric:
    name = "latency_seconds"
    family = HistogramMetricFamily(PREFIX + name, LABELLED[name], labels=["leg"])
    bounds = [*(str(bound / 1000) for bound in latency["bounds_ms"]), "+Inf"]
    for leg, histogram in latency["legs"].items():
        buckets = list(zip(bounds, map(float, accumulate(histogram["counts"])), strict=True))
        family.add_metric([leg], buckets=buckets, sum_value=histogram["sum_ms"] / 1000)
    return family


def _counter(name: str, meaning: str | None, labels: tuple[str, ...], samples: _Samples) -> Metric:
    family = CounterMetricFamily(PREFIX + name, meaning or LABELLED[name], labels=labels)
    for values, count in samples:
        family.add_metric(values, count)
    return family


def _gauge(name: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, LABELLED[name], labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _by_name(numbers: dict[str, Any]) -> _Samples:
    return [((name,), float(number)) for name, number in numbers.items()]


def _number(price: str | None) -> float:
    """Read a price as the exchange wrote it, which may be any text; nan where it is none."""
    try:
        return float(price or nan)
    except ValueError:
        return nan


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
