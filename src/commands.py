"""What the commands beside the service have in common: the words they take, and how they complain and end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.faults import SettingsError

DAY_SECONDS = 86_400.0


def seconds(shortest: float, longest: float) -> Callable[[str], float]:
    """Return a type for argparse: a number of seconds between two, so neither infinity nor NaN."""

    def number(text: str) -> float:
        value = float(text)
        if not shortest <= value <= longest:
            raise argparse.ArgumentTypeError(f"seconds between {shortest:g} and {longest:.0f}")
        return value

    number.__name__ = "number of seconds"  # argparse names the type so where `float` refuses
    return number


def positive(text: str) -> int:
    """Read a whole number from 1, as a type for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a number from 1")
    return number


def names(text: str) -> list[str]:
    """Read names, comma-separated, as a type for argparse."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("one name or several, comma-separated")
    return found


def refuse(error: SettingsError) -> int:
    """Print what is wrong with the configuration, one line a fault; return the exit code for it."""
    sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
    return 2


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line; its name when it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def forget_stdout() -> None:
    """Write to nowhere from now on: the reader has gone, as after `| head`.

    Python flushes stdout once more at exit and would complain.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Stop:
    """Takes SIGINT and SIGTERM: interrupts the connecting, which blocks, and asks what follows to end."""

    def __init__(self) -> None:
        self.asked = False
        self.interrupts = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.asked = True
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt
