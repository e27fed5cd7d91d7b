"""Events in the spools of shards that are gone: a changed SHARD_COUNT must not strand them on the disk."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from config.shards import spool_folder, spool_folders
from src.spool import FILE, SPOILED, Spool, SpoolFailed, SpoolFull, SpoolUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from config.settings import Settings

_AT_ONCE = 2_000


class TakenOver(NamedTuple):
    """What came of one folder: events that are in our spool now, and why others are not (empty: all are)."""

    folder: Path
    events: int
    reason: str


def take_over(
    spool: Spool, settings: Settings, stop_wanted: Callable[[], bool] = lambda: False
) -> Iterator[TakenOver]:
    """Move what shards that are gone have left behind what our own spool holds; shard 0 does it for all.

    An event is written here before it is deleted there, so a killed process may leave it in both. Dead letters
    stay where they are; `dead_letters.py` looks into every folder. Ends early when `stop_wanted` says so, and the
    next start goes on.
    """
    if settings.shard.index:
        return
    own, count = settings.spool.path, settings.shard.count
    base, *others = spool_folders(own, count)
    of_today = {spool_folder(base, index, count) for index in range(count)}
    for folder in (base, *others):
        if stop_wanted():
            return
        if folder not in of_today and _may_hold_a_spool(folder):
            try:
                left = Spool(settings.spool.model_copy(update={"path": folder}))
            except SpoolUnusable as error:  # as a rule its shard has not been stopped yet
                yield TakenOver(folder, 0, str(error))
                continue
            with closing(left):
                yield _moved(left, spool, folder, stop_wanted)


def _may_hold_a_spool(folder: Path) -> bool:
    try:
        return (folder / FILE).exists()
    except OSError:  # a folder that we may not look into; the spool says why
        return True


def _moved(left: Spool, spool: Spool, folder: Path, stop_wanted: Callable[[], bool]) -> TakenOver:
    moved = 0
    try:
        while events := left.read(0, _AT_ONCE):
            numbers = [event.seq for event in events]
            for number, event in enumerate(events, spool.last_seq + 1):
                event.seq = number
            spool.append(events, sent=numbers[0] <= left.sent_up_to)
            left.remove(numbers)
            moved += len(events)
            if stop_wanted():
                return TakenOver(folder, moved, "stopped before the end; the next start goes on")
        spoiled = left.take_spoiled()
        for event in spoiled:
            left.bury([event], *SPOILED)
    except (SpoolFull, SpoolFailed) as error:
        return TakenOver(folder, moved, str(error))
    return TakenOver(folder, moved, f"{len(spoiled)} dead letters: {SPOILED[1]}" if spoiled else "")
