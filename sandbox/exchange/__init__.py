"""A simulated Binance Spot exchange: WebSocket streams, REST, faults on command, and its own record."""

from sandbox.exchange.exchange import Exchange
from sandbox.exchange.settings import Limits, Mix, RestRules, Settings, SettingsError

__all__ = ["Exchange", "Limits", "Mix", "RestRules", "Settings", "SettingsError"]
