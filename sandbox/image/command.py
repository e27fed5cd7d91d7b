"""Run a program of the system and say in one error what went wrong."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LAST_LINES = 20


class ImageError(Exception):
    """An image could not be built, inspected or run; the message says why and what helps."""


def run(*command: str, timeout: float = 60.0, folder: Path | None = None) -> str:
    """Return what a program printed; raises `ImageError` with the end of its output when it fails."""
    program = command[0]
    if shutil.which(program) is None:
        raise ImageError(f"`{program}` is not on the PATH; Debian and Ubuntu: apt-get install {program}")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ImageError(f"`{' '.join(command)}` did not end within {timeout:g} s") from None
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_LAST_LINES:])
        raise ImageError(f"`{' '.join(command)}` failed with {done.returncode}:\n{said}")
    return done.stdout
