"""Shared fixtures; each part's own fixtures stand in a plugin module beside its tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# What the tests ask is on this machine, whatever proxy it has.
os.environ["no_proxy"] = ",".join(
    ["127.0.0.1", "localhost", os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")]
)

pytest_plugins = [f"tests.{part}_fixtures" for part in ("broker", "exchange", "line", "service")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shutdowns", type=int, default=20, help="how many shutdowns under load to try (default: 20)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `slow` unless `-m` names that marker."""
    if "slow" not in config.getoption("-m"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
