"""Which share of the streams falls to which shard: by a hash of the symbol, so without coordination.

All streams of a symbol stay together; a stream of all symbols goes by its own name. The shard with the highest
hash of its number and the symbol takes it (rendezvous hashing): no other symbol has a say in it, and one shard
more takes its symbols from all the others and moves no symbol between those.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

from config.streams import stream_symbol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST = 256
"""Shards at most."""


def shard_of(stream: str, count: int) -> int:
    """Return the number of the shard, from 0, that reads a stream such as `btcusdt@aggTrade`."""
    return _shard(stream_symbol(stream) or stream, count)


@lru_cache(maxsize=10_000)
def _shard(name: str, count: int) -> int:
    return max(range(count), key=lambda shard: _claim(shard, name))


def _claim(shard: int, name: str) -> bytes:
    return hashlib.blake2b(f"{shard}:{name}".encode(), digest_size=8).digest()


def share(streams: Sequence[str], index: int, count: int) -> tuple[str, ...]:
    """Return the streams of one shard, in their order."""
    return tuple(stream for stream in streams if shard_of(stream, count) == index)


def most_shards(streams: Sequence[str], below: int) -> int:
    """Return the largest number of shards under `below` that all have a stream."""
    highest = dict.fromkeys((stream_symbol(stream) or stream for stream in streams), b"")
    owners: dict[str, int] = {}
    most = 1
    for shard in range(below - 1):
        for name in highest:
            if (claim := _claim(shard, name)) > highest[name]:
                highest[name], owners[name] = claim, shard
        if len(set(owners.values())) == shard + 1:
            most = shard + 1
    return most


def spool_folder(base: Path, index: int, count: int) -> Path:
    """Return the folder of a shard's spool; the only shard has the base itself."""
    return base / f"shard-{index}" if count > 1 else base


def spool_folders(own: Path, count: int) -> list[Path]:
    """Return every folder of the same base where a shard of today or of other settings may have its spool."""
    base = own.parent if count > 1 else own
    return [base, *sorted(base.glob("shard-*"), key=lambda folder: (len(folder.name), folder.name))]
