"""The peer's own virtual environment below build/, made on demand: it must not meet the service's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.children import ROOT

REQUIREMENTS = Path(__file__).with_name("peer-requirements.txt")
FOLDER = ROOT / "build" / "peer"


def python() -> Path:
    """Return the environment's interpreter; install what is missing first (half a minute, once)."""
    interpreter = FOLDER / "bin" / "python"
    stamp = FOLDER / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != REQUIREMENTS.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
        stamp.write_text(REQUIREMENTS.read_text())
    return interpreter


def version() -> str:
    """Return what is measured, as `cryptofeed 2.4.1`."""
    lines = REQUIREMENTS.read_text().splitlines()
    return next(line.replace("==", " ") for line in lines if line.startswith("cryptofeed"))
