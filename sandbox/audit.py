"""`python -m sandbox.audit`: known vulnerabilities of what is installed here, with pip-audit.

Its data comes over the network. Where that cannot be reached within a minute, this says so and passes.
Exit codes: 0 nothing known, or the data could not be reached; 1 something is known.
"""
# ruff: noqa: T201 - a command speaks to its user

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_COMMAND = ("-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "10")
_SECONDS = 60.0


def main(command: tuple[str, ...] = _COMMAND, seconds: float = _SECONDS) -> int:
    """Run the audit and return the exit code."""
    try:
        ran = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return _skipped(f"no answer within {seconds:g} s")
    try:
        packages = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):  # pip-audit writes JSON only when it got its data
        return _skipped((ran.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:300])
    return _told(packages)


def _told(packages: list[dict[str, Any]]) -> int:
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):  # an index that serves packages only: it says of each that there is none
        return _skipped("it has none of the packages that are installed here")
    known = [(package, flaw) for package in packages for flaw in package.get("vulns", ())]
    for package, flaw in known:
        mended = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {flaw['id']}, mended in {mended}")
    if skipped:
        print(f"audit: not checked: {', '.join(skipped)}")
    if not known:
        print(f"audit: nothing known of {len(packages) - len(skipped)} packages")
    return 1 if known else 0


def _skipped(reason: str) -> int:
    print(f"audit: skipped, the vulnerability data could not be reached: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
