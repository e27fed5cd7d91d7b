"""The Binance ingestion service: `python main.py`, configured by environment variables and `.env`."""

import gc
import sys

from src import signals


def main() -> int:
    """Run until stopped; return 0 everything delivered, 1 gave up or something undelivered, 2 configuration."""
    signals.block()  # first of all: a stop during the imports below waits until it can be obeyed
    gc.disable()  # what the imports make stays: looking through it, now and at the exit, is a fifth of a short run
    from src.service import serve  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    return serve()


if __name__ == "__main__":
    sys.exit(main())
