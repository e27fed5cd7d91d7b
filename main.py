"""The Binance ingestion service: `python main.py`, configured by environment variables and `.env`."""

import gc
import signal
import sys

USAGE = """usage: python main.py

Reads Binance Spot market data and writes it to Apache Kafka, until SIGINT or SIGTERM stops it. It takes no
arguments: environment variables, or a file .env in the working folder, configure it. README.md explains
them, .env.example holds each with its default.

exit codes: 0 stopped on request and everything delivered; 1 gave up, or something undelivered; 2 the
configuration, the command line, or a system that it does not run on
"""
NOT_HERE = "main.py: runs on Linux; on macOS and Windows run it in the container, in WSL 2 or in a Linux machine\n"


def main() -> int:
    """Run until stopped; return 0 everything delivered, 1 gave up or something undelivered, 2 configuration."""
    if sys.argv[1:]:
        return _answer(sys.argv[1:])
    if not hasattr(signal, "sigtimedwait"):
        sys.stderr.write(NOT_HERE)
        return 2
    from src import signals  # noqa: PLC0415 - names signals that Windows lacks

    signals.block()  # first of all: a stop during the imports below waits until it can be obeyed
    gc.disable()  # what the imports make stays: looking through it, now and at the exit, is a fifth of a short run
    from src.service import serve  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    return serve()


def _answer(arguments: list[str]) -> int:
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(USAGE)
        return 0
    sys.stderr.write(f"main.py: takes no arguments, not {' '.join(arguments)!r}; see python main.py --help\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
