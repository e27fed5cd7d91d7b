"""Parameters of a REST request, and the exchange's words for those that are wrong (its errors.md)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sandbox.exchange.bars import INTERVAL_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.exchange.listing import Listing

_NUMBER = re.compile(r"[0-9]{1,20}", re.ASCII)
_ZONE = re.compile(r"([+-]?)(\d{1,2})(?::([0-5]\d))?", re.ASCII)
_MICROSECONDS_FROM = 10**14
_EARLIEST_ZONE_MIN, _LATEST_ZONE_MIN = -12 * 60, 14 * 60
_MINUTE_MS = 60_000


class ApiError(Exception):
    """A request that the exchange refuses, with its code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Query:
    """Typed reading of a query string."""

    def __init__(self, given: Mapping[str, str], listings: Mapping[str, Listing]) -> None:
        self._given = given
        self._listings = listings

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def text(self, name: str) -> str | None:
        """Read a parameter as it is."""
        return self._given.get(name)

    def only(self, *names: str) -> None:
        """Refuse parameters that the endpoint does not know."""
        known = sum(name in names for name in self._given)
        if known < len(self._given):
            raise ApiError(
                -1104,
                f"Not all sent parameters were read; read '{known}' parameter(s) "
                f"but was sent '{len(self._given)}'.",
            )

    def listing(self) -> Listing:
        """Find the listing that the mandatory `symbol` names."""
        name = self.mandatory("symbol")
        if re.search(r"[a-z]", name):
            raise ApiError(
                -1100,
                "Illegal characters found in parameter 'symbol'; legal range is '^[\\w\\-._&&[^a-z]]{1,50}$'.",
            )
        if name not in self._listings:
            raise ApiError(-1121, "Invalid symbol.")
        return self._listings[name]

    def mandatory(self, name: str) -> str:
        """Read a parameter that has to be there."""
        value = self._given.get(name, "")
        if not value:
            raise ApiError(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
        return value

    def number(self, name: str) -> int | None:
        """Read a number that is not negative."""
        value = self._given.get(name)
        if value is None:
            return None
        if not _NUMBER.fullmatch(value):
            raise ApiError(
                -1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'."
            )
        return int(value)

    def time(self, name: str) -> int | None:
        """Read a time in ms; microseconds are accepted too."""
        value = self.number(name)
        return value // 1000 if value is not None and value >= _MICROSECONDS_FROM else value

    def limit(self, default: int, most: int) -> int:
        """Read how many rows are wanted; more than the most gives the most."""
        value = self.number("limit")
        if value == 0:
            raise ApiError(-1130, "Data sent for parameter 'limit' is not valid.")
        return min(default if value is None else value, most)

    def interval(self) -> str:
        """Read a kline interval."""
        value = self.mandatory("interval")
        if value not in INTERVAL_MS:
            raise ApiError(-1120, "Invalid interval.")
        return value

    def zone_ms(self) -> int:
        """Read `timeZone`, from -12:00 to +14:00, as ms ahead of UTC."""
        match = _ZONE.fullmatch(self._given.get("timeZone", "0"))
        minutes = 0
        if match is not None:
            minutes = int(match[2]) * 60 + int(match[3] or 0)
            minutes = -minutes if match[1] == "-" else minutes
        if match is None or not _EARLIEST_ZONE_MIN <= minutes <= _LATEST_ZONE_MIN:
            raise ApiError(-1130, "Data sent for parameter 'timeZone' is not valid.")
        return minutes * _MINUTE_MS
