"""Shared fixtures; each part's own fixtures stand in a plugin module beside its tests."""

from __future__ import annotations

pytest_plugins = ["tests.broker_fixtures", "tests.exchange_fixtures"]
