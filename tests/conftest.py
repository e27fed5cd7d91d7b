"""Shared fixtures; each part's own fixtures stand in a plugin module beside its tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["tests.broker_fixtures", "tests.exchange_fixtures", "tests.service_fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shutdowns", type=int, default=20, help="how many shutdowns under load to try (default: 20)"
    )
