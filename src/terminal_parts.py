"""The pieces that the terminal view is put together from: tables that give way, sparklines, quantiles, sizes."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from src.terminal_history import History

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
_LEGS = {
    "exchange_to_read": "to read",
    "read_to_flush": "to flush",
    "flush_to_ack": "to ack",
    "exchange_to_ack": "in all",
}
_STALE_SECONDS, _OLD_SECONDS = 10.0, 60.0
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0


def grid() -> Table:
    """Make a table of labels, numbers, and what stands beside them and gives way to them."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=10, style="dim", no_wrap=True)
    table.add_column(min_width=10, justify="right", no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="crop")
    return table


def columns(*names: str) -> Table:
    """Make a table with a head; the first column takes the room that the others leave, and gives way to them."""
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text(names[0]), no_wrap=True, ratio=1)
    for name in names[1:]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def sparkline(values: Sequence[float | None], bars: str) -> str:
    """Draw values between 0 and their greatest; a space where there is none."""
    step = max((value for value in values if value is not None), default=0.0) / (len(bars) - 1)
    return "".join(" " if value is None else bars[round(value / step) if step else 0] for value in values)


def symbol_table(history: History, now: datetime, rows: int, *, ascii_only: bool) -> Table:
    """List symbols, busiest first: price with its direction, age of the last event, events a second."""
    seconds, before = history.recently
    symbols = history.status.get("symbols", {})
    earlier = before.get("symbols", {})
    busiest = sorted(symbols, key=lambda name: -symbols[name]["events"])
    table = columns("symbol", "price", "last", "rate")
    for name in _first(busiest, rows, table, unit="symbols"):
        was = earlier.get(name, {})
        gained = symbols[name]["events"] - was.get("events", 0)
        age = (now - datetime.fromisoformat(symbols[name]["last_event_time"])).total_seconds()
        table.add_row(
            Text(clean(name), style="bold"),
            _priced(symbols[name].get("price"), was.get("price"), "+-" if ascii_only else "▲▼"),
            Text(duration(max(0.0, age)), style=_age_style(age)),
            Text(f"{gained / seconds:,.1f}/s" if seconds else "-"),
        )
    return table


def kind_table(history: History, rows: int) -> Table:
    """List event types, busiest first: received and produced a second."""
    seconds, before = history.recently
    earlier = {(kind["event_type"], kind["topic"]): kind for kind in before.get("kinds", [])}
    kinds = sorted(history.status.get("kinds", []), key=lambda kind: -kind["received"])
    table = columns("type", "received", "produced")
    for kind in _first(kinds, rows, table, unit="types"):
        was = earlier.get((kind["event_type"], kind["topic"]), {})
        gained = [kind[way] - was.get(way, 0) for way in ("received", "produced")]
        table.add_row(
            Text(clean(kind["event_type"])),
            *(Text(f"{each / seconds:,.1f}/s" if seconds else "-") for each in gained),
        )
    return table


def lag_table(history: History) -> Table:
    """List the legs of the way with the median and the 99th percentile of the last readings."""
    table = columns("leg", "median", "99 %")
    for leg, shown in lags(history).items():
        table.add_row(leg, *shown)
    return table


def lags(history: History) -> dict[str, tuple[str, str]]:
    """Return the median and the 99th percentile of the last readings, by leg."""
    _, before = history.recently
    latency = history.status.get("latency", {})
    earlier = before.get("latency", {}).get("legs", {}) if before is not history.status else {}
    found = {}
    for leg, histogram in latency.get("legs", {}).items():
        was = earlier.get(leg, {}).get("counts", [0] * len(histogram["counts"]))
        counts = [count - then for count, then in zip(histogram["counts"], was, strict=True)]
        shares = [quantile(latency["bounds_ms"], counts, share) for share in (0.5, 0.99)]
        median, most = ("-" if share is None else duration(share / 1000) for share in shares)
        found[clean(_LEGS.get(leg, leg))] = median, most
    return found


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Return the value below which `share` of what was counted lies, interpolated; None of nothing."""
    wanted = sum(counts) * share
    if not wanted:
        return None
    below = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and wanted <= count:
            return below + (bound - below) * wanted / count
        wanted, below = wanted - count, bound
    return below


def _first(found: Sequence[Any], rows: int, table: Table, *, unit: str) -> Sequence[Any]:
    """Return as many as there is room for; the table's end says how many are left out, where it has two lines."""
    if len(found) <= rows or rows == 1:
        return found[:rows]
    kept = max(0, rows - 1)
    table.caption = Text(f"and {len(found) - kept} more {unit}", style="dim", no_wrap=True)
    table.caption_justify = "left"
    return found[:kept]


def _priced(price: str | None, was: str | None, arrows: str) -> Text:
    if price is None:
        return Text("-", style="dim")
    shown = clean(price)
    if "." in shown:
        shown = shown.rstrip("0").rstrip(".")
    try:
        step = float(price) - float(was) if was is not None else 0.0
    except ValueError:
        step = 0.0
    if not step:
        return Text(f"{shown}  ")
    return Text(f"{shown} {arrows[step < 0]}", style="green" if step > 0 else "red")


def _age_style(seconds: float) -> str:
    return "bold red" if seconds > _OLD_SECONDS else "yellow" if seconds > _STALE_SECONDS else ""


def duration(seconds: float) -> str:
    """Write a duration in few letters."""
    if seconds < 0.9995:  # noqa: PLR2004 - rounds to a second
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, size in ((_MINUTE, "s", 1.0), (_HOUR, "min", _MINUTE), (_DAY, "h", _HOUR)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / _DAY:,.0f} d"


def clean(text: object) -> str:
    """Replace what a terminal would obey instead of showing."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def size(count: float) -> str:
    """Write a number of bytes in few letters."""
    if count < 1000:  # noqa: PLR2004
        return f"{count:,.0f} B"
    power = min(4, (len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:,.1f} {' kMGT'[power]}B"
