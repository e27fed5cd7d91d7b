"""How an order book looks: in a terminal of any size, in one line, as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from src.order_book import State
from src.terminal_parts import clean, duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from decimal import Decimal

    from rich.console import Console, RenderableType

    from src.order_book import Level, OrderBook

    _Row = tuple[Text, Text]

_PADDING = 2
_HEAD = 1  # line of a table's column names
_FEWEST = 4  # lines of the table, before something gives way to it
_ALL = 1_000_000
_BID, _ASK, _UNCERTAIN = "green", "red", "dim"
_STYLES = {State.WAITING: "bold yellow", State.LIVE: "bold green", State.BROKEN: "bold red"}
_NOTE = "dim: beyond the snapshot, where levels that have not changed since are not known"


class BookPicture:
    """Shows the book of one symbol at a moment, `now_ms` by this machine's clock."""

    def __init__(self, symbol: str, book: OrderBook, levels: int, now_ms: float) -> None:
        self._symbol = clean(symbol)
        self._book = book
        self._now_ms = now_ms
        self._bids, self._asks = book.bids(levels), book.asks(levels)

    def draw(self, console: Console, said: str = "") -> RenderableType:
        """Return what there is room for: bids beside asks, or below them where the terminal is narrow."""
        head = [self._state(), *self._spread(), Text("")]
        room = _ALL if not console.is_terminal else console.height - 1 - _lines(head, console)
        foot = self._foot(console, room - _FEWEST, said)
        room -= _lines(foot, console) + _HEAD
        bids, asks = _rows(self._bids, _BID), _rows(self._asks, _ASK)
        if _width(bids) + _width(asks) + _PADDING <= console.width:
            table = _beside(bids[: max(1, room)], asks[: max(1, room)])
        else:
            each = max(1, (room - 1) // 2)
            table = _below(bids[:each], asks[:each])
        return Group(*head, table, *foot)

    def _foot(self, console: Console, room: int, said: str) -> list[Text]:
        """Return the counts, and what else there is room for."""
        foot = [Text(""), Text(self.counts, style="dim")]
        for more in filter(None, (self._note(), clean(said))):
            if _lines([*foot, Text(more)], console) <= room:
                foot.append(Text(more, style="dim"))
        return foot if _lines(foot, console) <= room else []

    @property
    def line(self) -> str:
        """What matters in one line, without control sequences."""
        now = datetime.fromtimestamp(self._now_ms / 1000, UTC).strftime("%H:%M:%S")
        best = [
            f"{name} {_short([side[0].price])[0]} x {_short([side[0].quantity])[0]}"
            for name, side in (("bid", self._bids), ("ask", self._asks))
            if side
        ]
        return "  ".join([now, self._state().plain, *best, *(text.plain for text in self._spread()), self.counts])

    @property
    def counts(self) -> str:
        """What was read so far, and how much of the book is known."""
        book = self._book
        taken = f"{book.updates:,} updates, {book.snapshots:,} snapshots, {book.breaks:,} breaks"
        bids, asks = book.sizes
        return f"{taken}, crossed {book.crossed:,}; {bids:,} bids and {asks:,} asks known"

    @property
    def json(self) -> dict[str, Any]:
        """The book for scripts, prices and quantities in the exchange's own digits."""
        book = self._book
        counts = {"updates": book.updates, "snapshots": book.snapshots, "breaks": book.breaks}
        head = {"symbol": self._symbol, "state": book.state.name.lower(), "lastUpdateId": book.update_id}
        sides = {
            name: [[level.price, level.quantity] for level in side]
            for name, side in (("bids", self._bids), ("asks", self._asks))
        }
        return head | {"time": book.time_ms} | counts | {"crossed": book.crossed} | sides

    def _state(self) -> Text:
        book = self._book
        text = Text(f"{self._symbol}  ", style="bold")
        text.append(book.state.value.upper() if book.state is State.LIVE else self._unknown(), _STYLES[book.state])
        if book.state is State.LIVE:
            age = duration(max(0.0, (self._now_ms - book.time_ms) / 1000))
            text.append(f"  #{book.update_id}  last update {age} ago", style="not bold")
        return text

    def _unknown(self) -> str:
        book = self._book
        if book.state is State.WAITING:
            return "WAITING for a snapshot"
        since = datetime.fromtimestamp(book.time_ms / 1000, UTC).strftime("%H:%M:%S")
        why = "updates {} to {} are missing".format(*book.missing) if book.missing else "the exchange counts anew"
        return f"BROKEN since {since} UTC: {why}; waiting for a snapshot"

    def _spread(self) -> list[Text]:
        if (best := self._book.best) is None:
            return []
        bid, ask = best
        return [Text(f"spread {_plain(ask - bid)}  mid {_plain((bid + ask) / 2)}")]

    def _note(self) -> str:
        return "" if all(level.certain for level in (*self._bids, *self._asks)) else _NOTE


def _lines(texts: Iterable[Text], console: Console) -> int:
    return sum(len(text.wrap(console, console.width)) for text in texts)


def _rows(levels: Sequence[Level], style: str) -> list[_Row]:
    prices = _short([level.price for level in levels])
    quantities = _short([level.quantity for level in levels])
    return [
        (Text(clean(price), style=style if level.certain else _UNCERTAIN), Text(clean(quantity)))
        for level, price, quantity in zip(levels, prices, quantities, strict=True)
    ]


def _width(rows: Iterable[_Row]) -> int:
    return max((max(8, len(price)) + max(8, len(quantity)) + _PADDING for price, quantity in rows), default=16)


def _beside(bids: Sequence[_Row], asks: Sequence[_Row]) -> Table:
    table = _table("bids", "", "asks", "")
    nothing = Text(""), Text("")
    for place in range(max(len(bids), len(asks))):
        price, quantity = bids[place] if place < len(bids) else nothing
        table.add_row(quantity, price, *(asks[place] if place < len(asks) else nothing))
    return table


def _below(bids: Sequence[_Row], asks: Sequence[_Row]) -> Table:
    table = _table("price", "quantity")
    for row in reversed(asks):
        table.add_row(*row)
    table.add_row("", "")
    for row in bids:
        table.add_row(*row)
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, _PADDING, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True, overflow="crop", min_width=8)
    return table


def _short(numbers: Sequence[str]) -> list[str]:
    """Leave out the trailing zeros that all have."""
    wholes, fractions = (
        zip(*(number.partition(".")[::2] for number in numbers), strict=True) if numbers else ((), ())
    )
    digits = max((len(fraction.rstrip("0")) for fraction in fractions), default=0)
    pairs = zip(wholes, fractions, strict=True)
    return [f"{whole}.{fraction[:digits]:0<{digits}}" if digits else whole for whole, fraction in pairs]


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
