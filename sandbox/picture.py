"""`python -m sandbox.picture --url http://127.0.0.1:8000`: draws a running service into `docs/monitoring.svg`.

The picture of the terminal view in the README; `make demo` says the address of a service to watch.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

from rich.console import Console

from src.terminal_history import History, UnreachableError, fetch
from src.terminal_view import Screen

SHOWN_URL = "http://127.0.0.1:8000"


def picture(history: History, at: float, width: int, height: int) -> str:
    """Return the view as an SVG, as a terminal of this size would show it."""
    console = Console(
        record=True, file=io.StringIO(), width=width, height=height, force_terminal=True, color_system="truecolor"
    )
    console.print(Screen(history, SHOWN_URL, at).draw(width, height))
    return console.export_svg(title="python monitoring.py")


def main() -> int:
    """Watch, draw, return 0; 1 when the service does not answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default=SHOWN_URL)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch (default: 60)")
    parser.add_argument("--width", type=int, default=120)
    parser.add_argument("--height", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("docs/monitoring.svg"))
    asked = parser.parse_args()
    history = History(window=asked.seconds)
    until = time.monotonic() + asked.seconds
    try:
        while time.monotonic() < until:
            history.read(fetch(asked.url), time.monotonic())
            time.sleep(0.5)
    except UnreachableError as error:
        sys.stderr.write(f"unreachable {asked.url}: {error}\n")
        return 1
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(picture(history, time.monotonic(), asked.width, asked.height))
    sys.stdout.write(f"{asked.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
