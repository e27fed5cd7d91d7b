"""What can be set about the exchange; `python -m sandbox.exchange --help` names the same things."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox.exchange.symbols import DEFAULT_SYMBOLS

SYMBOL_STATUSES = ("TRADING", "END_OF_DAY", "HALT", "BREAK", "CANCEL_ONLY")
SLOW_CLIENT_POLICIES = ("close", "wait")


class SettingsError(ValueError):
    """A setting has a value that the exchange cannot run with."""


@dataclass(frozen=True)
class Mix:
    """Shares of the message rate. Trades are the fills of aggregates, so their share is none or the larger."""

    trade: float = 45
    aggTrade: float = 35  # noqa: N815 - the exchange's own name of the stream
    depth: float = 10
    bookTicker: float = 10  # noqa: N815 - the exchange's own name of the stream

    def __post_init__(self) -> None:
        shares = (self.trade, self.aggTrade, self.depth, self.bookTicker)
        if min(shares) < 0 or not sum(shares):
            raise SettingsError("mix: shares are not negative and not all zero")
        if 0 < self.trade < self.aggTrade:
            raise SettingsError("mix: an aggregate has at least one trade: trade is 0 or at least aggTrade")

    @classmethod
    def parse(cls, text: str) -> Mix:
        """Read `trade=50,aggTrade=40,depth=10`; kinds that are not named get no share."""
        shares = dict.fromkeys(("trade", "aggTrade", "depth", "bookTicker"), 0.0)
        for part in text.split(","):
            kind, _, share = part.partition("=")
            if kind.strip() not in shares:
                raise SettingsError(f"mix: {kind.strip()!r} is none of {', '.join(shares)}")
            try:
                shares[kind.strip()] = float(share)
            except ValueError:
                raise SettingsError(f"mix: {part.strip()!r} is not KIND=NUMBER") from None
        return cls(**shares)


@dataclass(frozen=True)
class Limits:
    """The exchange's rules for a connection (protocol: ping 20 s, pong 1 min, 5 frames/s, 1024 streams)."""

    ping_interval_s: float = 20.0
    pong_timeout_s: float = 60.0
    lifetime_s: float = 86_400.0
    shutdown_notice_s: float = 10.0
    frames_per_second: int = 5
    streams: int = 1024
    subscribe_frame_bytes: int = 4096
    close_timeout_s: float = 2.0
    unsent_bytes: int = 16 * 1024 * 1024
    slow_client: str = "close"

    def __post_init__(self) -> None:
        for name in ("ping_interval_s", "pong_timeout_s", "lifetime_s", "close_timeout_s", "unsent_bytes"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name}: must be above 0")
        if self.slow_client not in SLOW_CLIENT_POLICIES:
            raise SettingsError(f"slow_client: {self.slow_client!r} is none of {SLOW_CLIENT_POLICIES}")


@dataclass(frozen=True)
class RestRules:
    """Weights a minute before 429, 429 answers before 418, both Retry-After, and how far REST lags."""

    weight_per_minute: int = 6000
    refusals_before_ban: int = 5
    ban_s: float = 120.0
    lag_s: float = 0.0


@dataclass(frozen=True)
class Settings:
    """Everything the exchange is started with. Times are seconds, `start_ms` is the market's first moment."""

    host: str = "127.0.0.1"
    port: int = 0
    control_port: int = 0
    seed: int = 7
    rate: float = 0.0
    mix: Mix = field(default_factory=Mix)
    depth_levels: int = 8
    symbols: tuple[str, ...] = DEFAULT_SYMBOLS
    status: str = "TRADING"
    start_ms: int | None = None
    tick_ms: int = 5
    history: int = 500_000
    block_trade_interval_s: float = 30.0
    limits: Limits = field(default_factory=Limits)
    rest: RestRules = field(default_factory=RestRules)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise SettingsError("rate: must not be negative")
        if not self.symbols or len(set(self.symbols)) != len(self.symbols):
            raise SettingsError("symbols: at least one, none twice")
        if self.status not in SYMBOL_STATUSES:
            raise SettingsError(f"status: {self.status!r} is none of {', '.join(SYMBOL_STATUSES)}")
        if not 1 <= self.tick_ms <= 1000:  # noqa: PLR2004 - a tick is part of a second
            raise SettingsError("tick_ms: must be 1 to 1000")
        if self.depth_levels < 1 or self.history < 1:
            raise SettingsError("depth_levels, history: must be above 0")
