"""The audit of dependencies: what it makes of pip-audit's answer, and of none."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from sandbox.audit import main

CLEAN: dict[str, Any] = {"name": "good", "version": "1.0", "vulns": []}
FLAW = {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"], "aliases": [], "description": "bad"}
FLAWED: dict[str, Any] = {"name": "bad", "version": "1.0", "vulns": [FLAW]}


def answering(*packages: dict[str, Any]) -> tuple[str, str]:
    """Return what stands in for pip-audit: it prints its JSON, and ends with 1 when something is known."""
    said = json.dumps({"dependencies": packages, "fixes": []})
    return "-c", f"print({said!r}); raise SystemExit({int(FLAWED in packages)})"


def test_nothing_known_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(answering(CLEAN)) == 0
    assert capsys.readouterr().out == "audit: nothing known of 1 packages\n"


def test_a_known_vulnerability_fails_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(answering(CLEAN, FLAWED)) == 1
    assert capsys.readouterr().out == "audit: bad 1.0: PYSEC-1, mended in 1.1, 2.0\n"


def test_what_was_not_checked_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(answering(CLEAN, {"name": "own", "skip_reason": "not on the index"})) == 0
    assert "audit: not checked: own\n" in capsys.readouterr().out


def test_an_index_that_has_none_of_the_packages_counts_as_not_reached(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(answering({"name": "own", "skip_reason": "not on the index"})) == 0
    assert capsys.readouterr().out.startswith("audit: skipped, the vulnerability data could not be reached: ")


@pytest.mark.parametrize(
    "failing",
    [
        "raise SystemExit('ERROR:pip_audit._cli: Connection refused')",
        "print('a proxy says'); raise SystemExit('Connection refused')",
        "import sys; print('null'); sys.exit('Connection refused')",
    ],
)
def test_data_that_cannot_be_reached_is_told_and_passes(failing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("-c", failing)) == 0
    said = capsys.readouterr().out
    assert said.startswith("audit: skipped, the vulnerability data could not be reached: ")
    assert "Connection refused" in said


def test_silence_is_not_waited_for_longer_than_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert main(("-c", "import time; time.sleep(60)"), seconds=0.3) == 0
    assert time.monotonic() - began < 10
    assert "no answer within 0.3 s" in capsys.readouterr().out
