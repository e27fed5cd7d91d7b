"""Shared fixtures; each part's own fixtures stand in a plugin module beside its tests."""

from __future__ import annotations

import gc
import os
from collections import Counter
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from pathlib import Path

# What the tests ask is on this machine, whatever proxy it has.
os.environ["no_proxy"] = ",".join(
    ["127.0.0.1", "localhost", os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")]
)

# An example takes as long as it does: a busy machine may stand still in any.
hypothesis.settings.register_profile("any time", deadline=None)
hypothesis.settings.load_profile("any time")

pytest_plugins = [f"tests.{part}_fixtures" for part in ("broker", "exchange", "line", "service")]

_WAITED_FOR = {"exchange_factory", "exchange_process", "own_broker_factory", "start_service"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shutdowns", type=int, default=20, help="how many shutdowns under load to try (default: 20)"
    )
    parser.addoption(
        "--shutdown-rate", type=float, default=4_000, help="at how many messages a second (default: 4000)"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `slow` unless `-m` names that marker; order the rest for several processes (-n)."""
    if "slow" not in config.getoption("-m"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    if config.getoption("--brokers") == "embedded":  # others are started by the file, and dear
        items[:] = in_turn(items)


def in_turn(items: list[pytest.Item]) -> list[pytest.Item]:
    """Let what waits for others begin first, one test of each file in turn.

    The short ones at the end fill what the long ones leave, and those under load, which stand in one file, do not
    all run at the same time.
    """
    so_far: Counter[Path] = Counter()
    turns: dict[pytest.Item, int] = {}
    for item in items:
        turns[item] = so_far[item.path]
        so_far[item.path] += 1
    waiting = [item for item in items if _waits(item)]
    others = [item for item in items if not _waits(item)]
    return sorted(waiting, key=lambda item: turns[item]) + others


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep what stays until the end out of every look for garbage."""
    gc.freeze()


def _waits(item: pytest.Item) -> bool:
    return "kafka" in item.keywords or not _WAITED_FOR.isdisjoint(getattr(item, "fixturenames", ()))
