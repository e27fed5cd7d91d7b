"""Build the container image without a Docker engine: `python -m sandbox.image`; prints one JSON line.

Exit codes: 0 built, 1 not.
"""

from __future__ import annotations

import argparse
import json
import sys

from sandbox.image.build import build
from sandbox.image.command import ImageError

DEFAULT_TAG = "localhost/binance-ingestion:latest"


def main() -> int:
    """Build, say what was built, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.image", description=__doc__)
    parser.add_argument("--tag", default=DEFAULT_TAG, help=f"the image's name (default: {DEFAULT_TAG})")
    asked = parser.parse_args()
    try:
        built = build(asked.tag)
    except ImageError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command speaks to its user
        return 1
    print(json.dumps({"event": "image_built"} | built._asdict()))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
