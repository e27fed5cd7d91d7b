"""Shared fixtures; each part's own fixtures stand in a plugin module beside its tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

pytest_plugins = [f"tests.{part}_fixtures" for part in ("broker", "exchange", "line", "service")]

_WAITED_FOR = {"exchange_factory", "exchange_process", "own_broker_factory", "start_service"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shutdowns", type=int, default=20, help="how many shutdowns under load to try (default: 20)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `slow` unless `-m` names that marker; let what waits for others begin first.

    Where several processes run the tests (-n), the short ones at the end fill what the long ones leave.
    """
    if "slow" not in config.getoption("-m"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    items.sort(key=lambda item: not _waits(item))


def _waits(item: pytest.Item) -> bool:
    return "kafka" in item.keywords or not _WAITED_FOR.isdisjoint(getattr(item, "fixturenames", ()))
