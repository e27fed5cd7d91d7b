"""The gap ledger: what was missing from the streams, what became of it, and what the connections went through.

Each record is one JSON object in the topic KAFKA_TOPIC_GAPS, keyed by symbol or by connection;
`docs/schemas/gap-ledger.schema.json` says what is in it.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from src.events import PIPELINE_VERSION
from src.flow import iso
from src.holes import joined, without
from src.outbox import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from src.holes import Gap, Interval
    from src.lost import Ids
    from src.telemetry import Telemetry

HOUR_MS = 3_600_000
_BAR = "kline"
_LONGEST_TEXT = 500  # of what the other side said
_INTERVALS = 1_000  # of one record
_encode = msgspec.json.Encoder().encode


class Tally(Protocol):
    """What one counted stream brought in a time; `last` is below `first` when nothing came."""

    @property
    def stream(self) -> str: ...  # noqa: D102
    @property
    def symbol(self) -> str: ...  # noqa: D102
    @property
    def event_type(self) -> str: ...  # noqa: D102
    @property
    def first(self) -> int: ...  # noqa: D102
    @property
    def last(self) -> int: ...  # noqa: D102
    @property
    def received(self) -> int: ...  # noqa: D102
    @property
    def backfilled(self) -> int: ...  # noqa: D102
    @property
    def duplicates(self) -> int: ...  # noqa: D102
    @property
    def missing(self) -> int: ...  # noqa: D102


class Ledger:
    """Writes down what happened, one record each; any thread may call, and no method waits.

    A record's `id` is its own: one that is in Kafka twice, as an answer got lost, is known by it.
    """

    def __init__(self, post: Callable[[Note], None], telemetry: Telemetry, instance: str | None = None) -> None:
        self._post = post
        self._telemetry = telemetry
        self._instance = instance or socket.gethostname()
        self._run = f"{self._instance}-{_now_ms()}"
        self._numbers = itertools.count(1)
        self._lock = (
            threading.Lock()
        )  # guards the two below, and that records are posted in the order of their ids
        self._open: dict[str, list[Interval]] = {}
        """What is still missing of each gap, by the gap's id."""
        self._connected_at: dict[int, float] = {}

    # Gaps

    def gap_opened(self, gap: Gap) -> None:
        """Write that ids are missing."""
        with self._lock:
            self._open[gap.id] = [(gap.first, gap.last)]
            self._write("opened", gap.symbol, **_of(gap))
            gaps_open = len(self._open)
        self._telemetry.gap_opened(gap, gaps_open)

    def gap_filled(self, gap: Gap, count: int) -> None:
        """Write that a gap waits for nothing any more: `count` events came for it, the rest was given up."""
        with self._lock:
            self._open.pop(gap.id, None)
            self._write("filled", gap.symbol, **_of(gap), events=count, seconds=_seconds_since(gap.opened_ms))
            gaps_open = len(self._open)
        self._telemetry.gap_filled(gap, count, gaps_open)

    def gap_unfillable(self, gap: Gap, missing: Sequence[Interval], reason: str) -> None:
        """Write that these ids of a gap will not come; `reason` is a short_snake_word."""
        with self._lock:
            left = self._open.get(gap.id, [])
            for first, last in missing:
                left = without(left, first, last)
            if left:
                self._open[gap.id] = left
            else:
                self._open.pop(gap.id, None)
            for some in _batched(missing):
                self._write("unfillable", gap.symbol, **_of(gap), missing=some, reason=reason)
            gaps_open = len(self._open)
        ids = 0 if gap.event_type == _BAR else sum(last - first + 1 for first, last in missing)
        self._telemetry.gap_unfillable(gap, ids, reason, gaps_open)

    def order_given_up(self, gap: Gap, reason: str) -> None:
        """Write that live events of the symbol pass before what is missing."""
        with self._lock:
            self._write("order_given_up", gap.symbol, **_of(gap), reason=reason)
        self._telemetry.order_given_up(gap, reason)

    def dropped(self, lost: Ids, reason: str) -> None:
        """Write which ids came and are not in Kafka; `reason` as in the metrics, or `DEAD_LETTER`."""
        with self._lock:
            for (stream, symbol, event_type, _), ids in lost.items():
                told = {"stream": stream, "event_type": event_type, "symbol": symbol, "reason": reason}
                for some in _batched(joined(ids)):
                    self._write("dropped", symbol, **told, missing=some)

    def resent(self, ids: Ids) -> None:
        """Write which ids are where they were meant for after all: they were dead letters, and sent again."""
        with self._lock:
            for (stream, symbol, event_type, _), intervals in ids.items():
                told = {"stream": stream, "event_type": event_type, "symbol": symbol}
                for some in _batched(joined(intervals)):
                    self._write("resent", symbol, **told, ids=some)

    def renumbered(self, stream: str, symbol: str, expected: int, got: int) -> None:
        """Write that the exchange counts a stream anew."""
        with self._lock:
            self._write("renumbered", symbol, stream=stream, symbol=symbol, expected=expected, got=got)
        self._telemetry.renumbered(stream, expected, got)

    def snapshot_taken(self, stream: str, symbol: str, last_update_id: int) -> None:
        """Write that a snapshot of the order book went into the depth topic."""
        with self._lock:
            self._write("snapshot_taken", symbol, stream=stream, symbol=symbol, last_update_id=last_update_id)

    def hour(self, tally: Tally, hour_ms: int, *, partial: bool = False) -> None:
        """Write what a stream brought in the hour that began at `hour_ms`; `partial` at a stop."""
        came = tally.first <= tally.last
        told = {
            "stream": tally.stream,
            "event_type": tally.event_type,
            "symbol": tally.symbol,
            "hour": iso(hour_ms),
            "hour_ms": hour_ms,
            "first_id": tally.first if came else None,
            "last_id": tally.last if came else None,
            "expected": tally.last - tally.first + 1 if came else 0,
            "received": tally.received,
            "backfilled": tally.backfilled,
            "duplicates": tally.duplicates,
            "missing": tally.missing,
            "partial": partial,
        }
        with self._lock:
            self._write("hour", tally.symbol, **told)

    def quiet(self, hour_ms: int, *, partial: bool = False) -> None:
        """Write that no stream has brought an id yet, in the hour that began at `hour_ms`: a sign of life."""
        with self._lock:
            self._write("quiet", "streams", hour=iso(hour_ms), hour_ms=hour_ms, partial=partial)

    # Connections

    def connection_opened(self, connection: int, streams: int) -> None:
        """Write that a connection was opened, for so many streams."""
        with self._lock:
            self._connected_at[connection] = time.monotonic()
            self._write("connection_opened", _key(connection), connection=connection, streams=streams)

    def connection_closed(self, connection: int, code: int | None, reason: str, cause: str) -> None:
        """Write that a connection ended or could not be opened.

        `code` is that of the close frame, None without one; `reason` what the other side or the network said;
        `cause` ours, a short_snake_word.
        """
        with self._lock:
            opened_at = self._connected_at.pop(connection, None)
            self._write(
                "connection_closed",
                _key(connection),
                connection=connection,
                code=code,
                reason=reason[:_LONGEST_TEXT],
                cause=cause,
                seconds=None if opened_at is None else round(time.monotonic() - opened_at, 3),
            )

    def connection_rotated(self, old: int, new: int, cause: str) -> None:
        """Write that a connection took another's place without a gap; `cause` is a short_snake_word."""
        with self._lock:
            self._write("connection_rotated", _key(old), **{"from": old, "to": new, "cause": cause})

    def streams_changed(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Write which streams were added and removed at run time."""
        with self._lock:
            self._write("streams_changed", "streams", added=list(added), removed=list(removed))

    def _write(self, kind: str, key: str, **told: Any) -> None:  # noqa: ANN401 - JSON may be anything
        now_ms = _now_ms()
        record = {
            "type": kind,
            "id": f"{self._run}-{next(self._numbers)}",
            "at": iso(now_ms),
            "at_ms": now_ms,
            "instance": self._instance,
            "pipeline_version": PIPELINE_VERSION,
            **told,
        }
        self._post(Note(key.encode(), _encode(record), now_ms))


class Hours:
    """Writes the hour records when an hour has passed, and what there is of one at the stop. For one thread.

    There is one at least, so that a ledger without any tells that no service runs.
    """

    def __init__(self, ledger: Ledger, tallies: Callable[[], Iterable[Tally]], now_ms: int) -> None:
        self._ledger = ledger
        self._tallies = tallies
        self._hour_ms = _hour_of(now_ms)

    def tick(self, now_ms: int) -> None:
        """Write the records of the hour that has passed; a few times a second."""
        if _hour_of(now_ms) != self._hour_ms:
            self._report(partial=False)
            self._hour_ms = _hour_of(now_ms)

    def finish(self) -> None:
        """Write what there is of this hour; when nothing comes any more."""
        self._report(partial=True)

    def _report(self, *, partial: bool) -> None:
        tallies = list(self._tallies())
        for tally in tallies:
            self._ledger.hour(tally, self._hour_ms, partial=partial)
        if not tallies:
            self._ledger.quiet(self._hour_ms, partial=partial)


def _of(gap: Gap) -> dict[str, Any]:
    return {"gap": gap.id, **gap._asdict()}


def _batched(intervals: Sequence[Interval]) -> list[Sequence[Interval]]:
    """Cut a long list, so that no record grows too large for Kafka."""
    return [intervals[start : start + _INTERVALS] for start in range(0, len(intervals), _INTERVALS)]


def _key(connection: int) -> str:
    return f"connection-{connection}"


def _hour_of(now_ms: int) -> int:
    return now_ms - now_ms % HOUR_MS


def _seconds_since(epoch_ms: int) -> float:
    return max(0.0, (_now_ms() - epoch_ms) / 1000)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
