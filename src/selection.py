"""Which symbols a choice such as `ALL:USDT,-DOGEUSDT,BTCEUR` comes to, and what is wrong with names. Pure."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, NamedTuple

from config.streams import ALL, stream_symbol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

TRADING = "TRADING"


class Listed(NamedTuple):
    """A symbol as the exchange lists it (Binance rest-api.md, exchangeInfo)."""

    name: str
    status: str
    base: str
    quote: str


class Faults(NamedTuple):
    """What is wrong with the names that a person wrote."""

    unknown: dict[str, str | None]
    """Each with the nearest name that is listed."""
    not_trading: dict[str, str]
    """Each with its status."""


def chosen(choice: Iterable[str], listing: Mapping[str, Listed], alive: Collection[str]) -> tuple[str, ...]:
    """Return the symbols: those named, and of the `alive` ones those that `ALL` or `ALL:<quote>` means."""
    found: dict[str, None] = {}
    excluded = {token[1:] for token in choice if token.startswith("-")}
    for token in choice:
        kind, _, quote = token.partition(":")
        if kind == ALL:
            found |= dict.fromkeys(name for name in alive if quote in ("", listing[name].quote))
        elif not token.startswith("-"):
            found[token] = None
    return tuple(name for name in found if name not in excluded)


def alive(listing: Mapping[str, Listed], before: Collection[str]) -> tuple[str, ...]:
    """Return what is traded now, or was at the last reading and is listed still: a pause is no end."""
    return tuple(name for name, listed in listing.items() if listed.status == TRADING or name in before)


def symbols_of(streams: Iterable[str]) -> tuple[str, ...]:
    """Return the symbols of streams, each once."""
    named = (stream_symbol(stream) for stream in streams)
    return tuple(dict.fromkeys(symbol for symbol in named if symbol is not None))


def faults(names: Iterable[str], listing: Mapping[str, Listed]) -> Faults:
    """Compare names with the listing: those that stay silent for ever, and those that do for now."""
    found = Faults({}, {})
    for name in names:
        listed = listing.get(name)
        if listed is None:
            near = difflib.get_close_matches(name, listing, n=1, cutoff=0.6)
            found.unknown[name] = near[0] if near else None
        elif listed.status != TRADING:
            found.not_trading[name] = listed.status
    return found
