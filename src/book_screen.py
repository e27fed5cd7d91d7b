"""Where a consumer shows an order book: live in a terminal, a line a second in a pipe, or once."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from rich.live import Live

from src.book_picture import BookPicture
from src.consumer_screen import console_on
from src.order_book import NotDepth, OrderBook, State

if TYPE_CHECKING:
    from src.consumer_events import Event
    from src.consumer_statistics import Statistics

_REDRAWN_AFTER, _LINE_AFTER = 0.2, 1.0


class BookScreen:
    """Rebuilds the book of one symbol from what it is shown, and shows that; `once` only at the end."""

    def __init__(self, symbol: str, levels: int, *, once: bool, as_json: bool) -> None:
        self.book = OrderBook()
        self._symbol = symbol
        self._levels = levels
        self._once = once
        self._as_json = as_json
        self._console = console_on(sys.stdout)
        self._remarks = console_on(sys.stderr)
        self._live: Live | None = None
        self._due = 0.0
        self._said = ""

    @property
    def known(self) -> bool:
        """Whether there is a book to show."""
        return self.book.state is State.LIVE

    def event(self, event: Event) -> None:
        """Let the book take an event."""
        try:
            self.book.take(event.fields)
        except NotDepth as error:
            self.remark(f"malformed {event.type}: {error}")

    def malformed(self, where: str, value: bytes | None) -> None:
        """Say that a record's value is no JSON object."""
        self.remark(f"malformed value at {where}: {(value or b'')[:60]!r}")

    def remark(self, line: str) -> None:
        """Say something about the run itself: on stderr, or below the book."""
        self._said = line
        if self._live is None:
            self._remarks.print(line, markup=False, highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """Show the book if that is due."""
        if self._once or time.monotonic() < self._due:
            return
        drawable = self._console.is_terminal and not self._console.is_dumb_terminal
        self._due = time.monotonic() + (_REDRAWN_AFTER if drawable else _LINE_AFTER)
        if drawable:
            self._draw()
        else:
            sys.stdout.write(f"{self._picture.line}\n")
            sys.stdout.flush()

    def end(self, statistics: Statistics) -> None:
        """Leave the terminal as it was; print the book if it was asked for once, else what was seen in sum."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if not self._once:
            self._console.print(self._summary(statistics), markup=False, highlight=False, soft_wrap=True)
        elif not self.known:
            self.remark(f"consumer_example: no book of {self._symbol}: {self.book.state.value}")
        elif self._as_json:
            sys.stdout.write(json.dumps(self._picture.json) + "\n")
        else:
            self._console.print(self._picture.draw(self._console))
        sys.stdout.flush()

    def _draw(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, screen=True, auto_refresh=False)
            self._live.start()
        self._live.update(self._picture.draw(self._console, self._said), refresh=True)

    def _summary(self, statistics: Statistics) -> str:
        malformed = f", {statistics.malformed} malformed" if statistics.malformed else ""
        return f"{self._symbol}: {self._picture.counts}; {self.book.state.value}{malformed}"

    @property
    def _picture(self) -> BookPicture:
        return BookPicture(self._symbol, self.book, self._levels, time.time() * 1000)
