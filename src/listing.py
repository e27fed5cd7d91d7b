"""What the exchange lists: read at the start and daily, compared with the names in the settings, chosen from."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any

from src.backoff import Backoff
from src.binance_rest import Closed, RestError
from src.selection import Faults, Listed, alive, chosen, faults, symbols_of
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from config.binance import BinanceConfig
    from src.telemetry import Telemetry

FILE = "listing.json"
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0


class Listing:
    """Keeps the streams in step with the settings and with what the exchange lists; on a thread of its own.

    `apply` is called with all streams that are to be read, whenever they may have changed. Names need no
    listing: they are read from the start, and only checked against it. A choice such as `ALL:USDT` waits for
    the first reading; while REST is away the listing of an earlier run, kept in `folder`, stands in for it.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it stands between
        self,
        config: BinanceConfig,
        read: Callable[[], list[Listed]],
        apply: Callable[[Sequence[str]], None],
        folder: Path,
        telemetry: Telemetry,
        on_exit: Callable[[Worker], None],
    ) -> None:
        self._read = read
        self._apply = apply
        self._path = folder / FILE
        self._telemetry = telemetry
        self._backoff = Backoff(_FIRST_WAIT, _LONGEST_WAIT, 0)
        self._changed = threading.Condition()  # guards the three below
        self._config = config
        self._due = True
        self._stopped = False
        self._listing: dict[str, Listed] = {}
        self._alive: tuple[str, ...] = ()
        self._faults = Faults({}, {})
        self._worker = Worker("exchange-listing", self._run, on_exit)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def choose(self, config: BinanceConfig) -> None:
        """Read the streams of other settings from here on; returns at once."""
        with self._changed:
            self._config, self._due = config, True
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread as soon as it is not asking the exchange; returns at once."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread."""
        self._worker.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._worker.alive

    @property
    def waiting(self) -> bool:
        """Whether streams cannot be chosen before the listing is read."""
        return self._config.needs_listing and not self._listing

    def state(self) -> dict[str, Any]:
        """Return what `/status` shows of the names in the settings."""
        unknown, not_trading = self._faults
        shown = {name: "unknown" + (f", nearest {near}" if near else "") for name, near in unknown.items()}
        return {
            "symbols_unknown": len(unknown),
            "symbols_not_trading": len(not_trading),
            "symbol_faults": shown | not_trading,
        }

    def _run(self) -> None:
        read_at = time.monotonic()
        while True:
            if time.monotonic() >= read_at:
                read_at = time.monotonic() + self._refresh()
            with self._changed:
                if self._stopped:
                    return
                config, due, self._due = self._config, self._due, False
            if due:
                self._settle(config)
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._stopped, max(0.0, read_at - time.monotonic()))

    def _refresh(self) -> float:
        """Ask the exchange; return the seconds to wait before the next time."""
        try:
            listed = self._read()
        except Closed:
            return _LONGEST_WAIT
        except RestError as error:
            self._unavailable(error)
            return self._backoff.lost()
        self._backoff.succeeded()
        self._take(listed)
        self._keep(listed)
        self._telemetry.listing_read(len(listed), len(self._alive))
        return self._config.listing_interval_seconds

    def _unavailable(self, error: RestError) -> None:
        first = not self._backoff.attempt
        if first:
            self._telemetry.listing_unavailable(error, waiting=self.waiting)
        if first and self.waiting and (kept := self._kept()):
            self._telemetry.listing_taken_from_disk(len(kept), time.time() - self._path.stat().st_mtime)
            self._take(kept)

    def _take(self, listed: list[Listed]) -> None:
        before = {name for name, each in self._listing.items() if each.status == "TRADING"}
        self._listing = {each.name: each for each in listed}
        self._alive = alive(self._listing, before)
        with self._changed:
            self._due = True

    def _settle(self, config: BinanceConfig) -> None:
        if self._listing or not config.needs_listing:
            symbols = chosen(config.symbols, self._listing, self._alive)
            self._apply(config.stream_names(symbols))
        if self._listing:
            self._faults = faults(symbols_of(config.named_streams()), self._listing)
            self._telemetry.symbols_checked(self._faults.unknown, self._faults.not_trading)

    def _keep(self, listed: list[Listed]) -> None:
        """Write the listing down for a start without REST; one that cannot be written is only missed then."""
        partly = self._path.with_suffix(".part")
        with contextlib.suppress(OSError):
            partly.write_text(json.dumps(listed, ensure_ascii=False), encoding="utf-8")
            partly.replace(self._path)

    def _kept(self) -> list[Listed]:
        try:
            return [Listed(*row) for row in json.loads(self._path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            return []
