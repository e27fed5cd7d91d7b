"""How this process shares out its memory between its threads."""

from __future__ import annotations

import contextlib
import ctypes

_M_ARENA_MAX = -8  # malloc.h of glibc
_ARENAS = 2


def limit_arenas() -> bool:
    """Let all threads allocate from two arenas, before any is started; False where the C library has none.

    glibc gives each thread its own and does not return what was freed in it: events are made on one thread
    and freed on another, which cost 40 of 210 MB at the in-flight bound.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # musl, Windows
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS))
    return False
