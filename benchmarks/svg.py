"""Plots as SVG, written by hand: horizontal bars and lines over time, one panel below the other."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WIDTH = 900
LEFT = 310
RIGHT = 110
ROW = 24
LINES_HEIGHT = 190
MOST_POINTS = 800
COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#718096")


class Bar(NamedTuple):
    """A bar with what stands left and right of it."""

    label: str
    value: float
    text: str
    color: int = 0


class Panel(NamedTuple):
    """A drawn panel and how high it is."""

    content: str
    height: int


def bars(title: str, rows: Sequence[Bar], *, logarithmic: bool = False) -> Panel:
    """Draw one bar a row; on a logarithmic scale from a tenth of the smallest value on."""
    largest = max((row.value for row in rows), default=1.0) or 1.0
    smallest = min((row.value for row in rows if row.value > 0), default=1.0) / 10
    parts = [_text(10, 22, title, "bold")]
    for number, row in enumerate(rows):
        y = 36 + number * ROW
        share = row.value / largest
        if logarithmic and row.value > 0:
            share = math.log(row.value / smallest) / math.log(largest / smallest)
        width = max(1.0, share * (WIDTH - LEFT - RIGHT))
        color = COLORS[row.color % len(COLORS)]
        parts.append(_text(LEFT - 8, y + 14, row.label, anchor="end"))
        parts.append(f'<rect x="{LEFT}" y="{y + 2}" width="{width:.1f}" height="{ROW - 7}" fill="{color}"/>')
        parts.append(_text(LEFT + width + 6, y + 14, row.text))
    return Panel("".join(parts), 48 + len(rows) * ROW)


def line(title: str, points: Sequence[tuple[float, float]], unit: str, color: int = 0) -> Panel:
    """Draw a value over time in seconds, the axis from zero; of very many points the largest of each stretch."""
    points = thinned(points)
    last = max((x for x, _ in points), default=1.0) or 1.0
    top = max((y for _, y in points), default=1.0) * 1.1 or 1.0
    width, height = WIDTH - 90, LINES_HEIGHT - 60
    path = " ".join(f"{70 + x / last * width:.1f},{36 + height - y / top * height:.1f}" for x, y in points)
    grid = []
    for share in (0.0, 0.5, 1.0):
        y = 36 + height * (1 - share)
        grid.append(f'<line x1="70" x2="{70 + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e8f0"/>')
        grid.append(_text(64, y + 4, f"{top * share:.3g}", anchor="end"))
    drawn = f'<polyline points="{path}" fill="none" stroke="{COLORS[color % len(COLORS)]}" stroke-width="1.5"/>'
    ends = _text(70, LINES_HEIGHT - 8, "0 s") + _text(70 + width, LINES_HEIGHT - 8, f"{last:.0f} s", anchor="end")
    return Panel(_text(10, 22, f"{title} ({unit})", "bold") + "".join(grid) + drawn + ends, LINES_HEIGHT + 8)


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return at most a plot's width of points: of each stretch the one with the largest value."""
    step = -(-len(points) // MOST_POINTS)
    if step <= 1:
        return points
    stretches = [points[start : start + step] for start in range(0, len(points), step)]
    return [max(stretch, key=lambda point: point[1]) for stretch in stretches]


def write(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels, one below the other."""
    parts, y = [], 0
    for panel in panels:
        parts.append(f'<g transform="translate(0 {y})">{panel.content}</g>')
        y += panel.height
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _text(x: float, y: float, text: str, weight: str = "normal", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'
