"""What a consumer has seen: counts, latencies, and whether ids follow one another, printed as tables."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from src.consumer_events import readable_ms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from src.consumer_events import Event

_BUSIEST = 15
_SHORTEST_FOR_A_RATE = 0.1


@dataclass
class Ids:
    """The ids of one stream in the order of arrival: the first, the last, and what is not in order."""

    first: int
    last: int
    missing: int = 0
    not_rising: int = 0

    def add(self, first: int, last: int) -> None:
        """Count an event that covers the ids `first` to `last`."""
        if first <= self.last:
            self.not_rising += 1
        self.missing += max(0, first - self.last - 1)
        self.last = max(self.last, last)

    @property
    def verdict(self) -> str:
        """Whether each id followed the one before it."""
        faults = {"missing": self.missing, "repeated or out of order": self.not_rising}
        return ", ".join(f"{count} {name}" for name, count in faults.items() if count) or "contiguous"


def ids_of(event: Event) -> tuple[int, int] | None:
    """Return the first and last id that an event covers; None for events that have none, and malformed ones."""
    names = {"trade": ("t", "t"), "aggregate_trade": ("a", "a"), "depth_update": ("U", "u")}.get(event.type)
    if names is None:
        return None
    first, last = (event.fields.get(name) for name in names)
    return (first, last) if isinstance(first, int) and isinstance(last, int) else None


@dataclass
class Latencies:
    """A distribution of durations in ms, kept to three digits, so that its size stays bounded."""

    counts: Counter[float] = field(default_factory=Counter)

    def add(self, duration: float | None) -> None:
        """Count one duration; None is no measurement."""
        if duration is not None:
            self.counts[float(f"{duration:.3g}")] += 1

    def percentiles(self, *wanted: float) -> Iterator[float | None]:
        """Return the durations below which the given shares (0 to 1) lie; None where nothing was measured."""
        ordered, total = sorted(self.counts.items()), self.counts.total()
        for share in wanted:
            seen, found = 0, None
            for duration, count in ordered:
                found = duration
                seen += count
                if seen >= share * total:
                    break
            yield found


@dataclass
class Statistics:
    """What was seen in this run."""

    by_type: Counter[str] = field(default_factory=Counter)
    by_symbol: Counter[str] = field(default_factory=Counter)
    ids: dict[tuple[str, str], Ids] = field(default_factory=dict)
    exchange: Latencies = field(default_factory=Latencies)
    ingestion: Latencies = field(default_factory=Latencies)
    malformed: int = 0
    other_symbols: int = 0
    first_at: float | None = None
    last_at: float = 0.0

    @property
    def shown(self) -> int:
        """The number of events that were shown."""
        return self.by_type.total()

    @property
    def records(self) -> int:
        """The number of records that were read, shown or not."""
        return self.shown + self.malformed + self.other_symbols

    def add(self, event: Event) -> None:
        """Count one event that is shown."""
        self.by_type[event.type] += 1
        self.by_symbol[event.symbol] += 1
        self.exchange.add(event.exchange_ms)
        self.ingestion.add(event.ingestion_ms)
        self.last_at = time.monotonic()
        self.first_at = self.last_at if self.first_at is None else self.first_at
        if covered := ids_of(event):
            stream = (event.symbol, event.type)
            if stream in self.ids:
                self.ids[stream].add(*covered)
            else:
                self.ids[stream] = Ids(*covered)

    def print_to(self, console: Console) -> None:
        """Print everything as plain tables."""
        seconds = self.last_at - self.first_at if self.first_at is not None else 0.0
        rate = f", {self.shown / seconds:,.1f} a second" if seconds >= _SHORTEST_FOR_A_RATE else ""
        console.print(
            f"\n{self.shown} events in {seconds:.1f} s{rate}; "
            f"{self.malformed} malformed, {self.other_symbols} of other symbols",
            markup=False,
            highlight=False,
        )
        if not self.shown:
            return
        console.print(_counts("type", self.by_type), _counts("symbol", self.by_symbol), self._latency_table())
        if self.ids:
            console.print(self._id_table())

    def _latency_table(self) -> Table:
        table = _table("latency", "p50", "p90", "p99", "max")
        for name, latencies in (("exchange to here", self.exchange), ("ingestion to here", self.ingestion)):
            table.add_row(name, *map(readable_ms, latencies.percentiles(0.5, 0.9, 0.99, 1.0)))
        return table

    def _id_table(self) -> Table:
        table = _table("ids of", "first", "last", "verdict")
        for (symbol, event_type), ids in sorted(self.ids.items()):
            table.add_row(Text(f"{symbol} {event_type}"), str(ids.first), str(ids.last), ids.verdict)
        return table


def _counts(name: str, counts: Counter[str]) -> Table:
    table = _table(name, "events")
    busiest = counts.most_common(_BUSIEST)
    for label, count in busiest:
        table.add_row(Text(label), str(count))
    if more := len(counts) - len(busiest):
        table.add_row(f"{more} more", str(counts.total() - sum(count for _, count in busiest)))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or column == "verdict" else "right")
    return table
