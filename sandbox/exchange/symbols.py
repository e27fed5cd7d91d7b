"""The symbols that the simulated exchange lists: their scales, first prices and names."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

NON_ASCII_SYMBOL = "这是测试币456"
"""A real symbol of the exchange's testnet; symbols may carry any UTF-8 since December 2025."""

EXCHANGE_DECIMALS = 8


@dataclass(frozen=True)
class SymbolSpec:
    """One listed symbol. Prices are counted in ticks, quantities in lots, both as integers."""

    name: str
    first_price: int
    price_decimals: int
    lot_decimals: int
    typical_lots: int

    @property
    def stream_name(self) -> str:
        """The symbol as stream names carry it."""
        return self.name.lower()


class DecimalText(dict[int, str]):
    """Integers of one scale as the exchange writes them, eight decimals; a bounded cache that fills itself."""

    LIMIT = 200_000

    def __init__(self, decimals: int) -> None:
        super().__init__()
        self.decimals = decimals

    def __missing__(self, value: int) -> str:
        if len(self) >= self.LIMIT:
            self.clear()
        text = self[value] = decimal_text(value, self.decimals)
        return text


def decimal_text(value: int, decimals: int, places: int = EXCHANGE_DECIMALS) -> str:
    """Write an integer scaled by `decimals` with `places` decimals, digits beyond cut off."""
    if decimals > places:
        value //= 10 ** (decimals - places)
        decimals = places
    sign = "-" if value < 0 else ""
    whole, fraction = divmod(abs(value), 10**decimals)
    digits = f"{fraction:0{decimals}d}" if decimals else ""
    return f"{sign}{whole}.{digits}{'0' * (places - decimals)}"


_LISTED = {
    "BTCUSDT": (6_183_763, 2, 5, 20_000),
    "ETHUSDT": (268_380, 2, 4, 30_000),
    "BNBUSDT": (57_530, 2, 3, 4_000),
    "ADAUSDT": (33_210, 5, 1, 9_000),
    "XRPUSDT": (51_230, 5, 0, 800),
}

DEFAULT_SYMBOLS = tuple(_LISTED)


def symbol_spec(name: str) -> SymbolSpec:
    """Describe a symbol; one that is not among the defaults gets a market derived from its name."""
    if name in _LISTED:
        return SymbolSpec(name, *_LISTED[name])
    shade = zlib.crc32(name.encode())
    return SymbolSpec(name, 20_000 + shade % 900_000, 4, 2, 500 + shade % 5_000)


def symbol_names(wanted: str) -> tuple[str, ...]:
    """Read `--symbols`: names separated by commas, or a count (the defaults first, then synthetic ones)."""
    if wanted.isascii() and wanted.isdigit():
        count = int(wanted)
        synthetic = tuple(f"SYM{number:04d}USDT" for number in range(len(DEFAULT_SYMBOLS), count))
        return (DEFAULT_SYMBOLS + synthetic)[:count]
    return tuple(name.strip().upper() for name in wanted.split(",") if name.strip())
