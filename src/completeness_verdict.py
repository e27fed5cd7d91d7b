"""The verdict on a completeness report, and its shapes for people and for programs."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from src.completeness_report import BAR, DEPTH
from src.flow import iso
from src.terminal_parts import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from src.completeness_report import CompletenessReport, ConnectionReport, StreamReport
    from src.holes import Interval

_HOLES_SHOWN = 5  # of one stream
_ENDS = {
    True: "the service was stopped",
    False: "no service has written to the ledger since, as one that runs does every hour",
}


class Verdict(NamedTuple):
    """What is wrong in all; nothing when all of it is 0."""

    missing: int
    """Ids of trades and aggregate trades that were given up, dropped, or are unexplained."""
    holes: int
    bars: int
    open: int
    unbridged: int
    """Holes in depth that no snapshot has followed."""
    unreadable: int
    bridged: int
    """Holes in depth that a snapshot has followed: no fault."""
    untold: int
    """Ids that no record tells of: no fault, and nothing known."""
    dead_letters: int
    """Trades, aggregate trades and bars that Kafka has refused: not in their topics, and not lost."""
    records: int
    unknown_since: str | None
    """When the ledger ended, if that is longer ago than it can be while a service runs."""
    stopped: bool
    """Whether it ended with a stop in order."""

    @property
    def complete(self) -> bool:
        """Whether every id up to the last that any service has told of is in Kafka, as far as the ledger tells."""
        counted = (self.missing, self.bars, self.open, self.unbridged, self.dead_letters, self.unreadable)
        return self.records > 0 and not any(counted) and self.unknown_since is None

    def __str__(self) -> str:
        faults = [
            "no record: nothing is known" * (not self.records),
            f"nothing is known since {self.unknown_since}: {_ENDS[self.stopped]}" * bool(self.unknown_since),
            f"{self.missing} ids missing in {_holes(self.holes)}" * bool(self.missing),
            f"{self.bars} bars missing" * bool(self.bars),
            f"{_count(self.open, 'gap')} still open" * bool(self.open),
            f"{_holes(self.unbridged)} in depth without a snapshot" * bool(self.unbridged),
            f"{_count(self.dead_letters, 'dead letter')}, see dead_letters.py" * bool(self.dead_letters),
            f"{_count(self.unreadable, 'record')} not readable" * bool(self.unreadable),
        ]
        remarks = [
            f"{_holes(self.bridged)} in depth, each followed by a snapshot" * bool(self.bridged),
            f"{self.untold} ids that no record tells of" * bool(self.untold),
        ]
        said = "; ".join(fault for fault in faults if fault) or "complete"
        return "; ".join([said, *(remark for remark in remarks if remark)])


def verdict(report: CompletenessReport) -> Verdict:
    """Sum up a report."""
    streams = list(report.streams.values())
    trades = [each for each in streams if each.event_type not in (BAR, DEPTH)]
    depth = [each for each in streams if each.event_type == DEPTH]
    holes = sum(sum(bool(hole.given_up) for hole in each.holes.values()) for each in depth)
    unbridged = sum(each.unbridged for each in depth)
    dropped = sum(len(each.drops_ms) for each in depth)
    return Verdict(
        missing=sum(each.count(each.missing) + each.unexplained for each in trades),
        holes=sum(len(each.missing) + bool(each.unexplained) for each in trades),
        bars=sum(each.count(each.missing) for each in streams if each.event_type == BAR),
        open=sum(len(each.open_holes) for each in streams),
        unbridged=unbridged,
        unreadable=report.unreadable,
        bridged=holes + dropped - unbridged,
        untold=sum(each.untold for each in trades),
        dead_letters=sum(each.count(each.dead_letters) for each in streams if each.event_type != DEPTH),
        records=report.records,
        unknown_since=iso(report.silent_since_ms),
        stopped=report.stopped,
    )


def as_json(report: CompletenessReport) -> dict[str, Any]:
    """Return a report as JSON takes it."""
    found = verdict(report)
    return {
        "complete": found.complete,
        "verdict": str(found),
        **found._asdict(),
        "from": iso(report.first_ms),
        "to": iso(report.last_ms),
        "streams": [_stream_as_json(report.streams[name]) for name in sorted(report.streams)],
        "connections": [_connection_as_json(report.connections[key]) for key in sorted(report.connections)],
    }


def _stream_as_json(stream: StreamReport) -> dict[str, Any]:
    ids = stream.ids
    return {
        "stream": stream.stream,
        "symbol": stream.symbol,
        "event_type": stream.event_type,
        "first": ids[0][0] if ids else None,
        "last": ids[-1][1] if ids else None,
        "expected": stream.count(ids),
        "received": stream.received - stream.duplicates,
        "duplicates": stream.duplicates,
        "backfilled": stream.backfilled,
        "missing": stream.count(stream.missing),
        "missing_ids": stream.missing,
        "reasons": stream.reasons,
        "dead_letters": stream.count(stream.dead_letters),
        "dead_letter_ids": stream.dead_letters,
        "gaps": len(stream.holes),
        "open": [{"gap": hole.gap, "since": iso(hole.opened_ms), "left": hole.left} for hole in stream.open_holes],
        "order_given_up": stream.order_given_up,
        "renumbered": stream.renumbered,
        "snapshots": len(stream.snapshots_ms),
        "unexplained": stream.unexplained,
        "untold": stream.untold,
    }


def _connection_as_json(connection: ConnectionReport) -> dict[str, Any]:
    return {
        "instance": connection.instance,
        "connection": connection.connection,
        "opened": connection.opened,
        "closed": [
            {"code": code, "cause": cause, "reason": reason, "times": times}
            for (code, cause, reason), times in connection.closed.most_common()
        ],
        "rotated": dict(connection.rotated),
        "seconds": {
            "shortest": min(connection.seconds, default=None),
            "median": round(median(connection.seconds), 3) if connection.seconds else None,
            "longest": max(connection.seconds, default=None),
        },
    }


# For people


def drawn(report: CompletenessReport) -> RenderableType:
    """Draw a report for a terminal."""
    told = as_json(report)
    span = (
        f"{told['records']} records, {told['from']} to {told['to']}" if report.records else "the ledger is empty"
    )
    parts: list[RenderableType] = [Text(span, style="dim"), _stream_table(told["streams"])]
    parts += [Text(line) for stream in told["streams"] for line in _holes_of(stream)]
    if told["connections"]:
        parts.append(_connection_table(told["connections"]))
    parts.append(Text(told["verdict"], style="bold green" if told["complete"] else "bold red"))
    return Group(*parts)


def _stream_table(streams: list[dict[str, Any]]) -> Table:
    names = ("first", "last", "expected", "received", "backfilled", "missing", "open", "order given up")
    table = _table("stream", *names)
    for told in streams:
        counted = told["event_type"] != DEPTH  # of depth the ids of an update are several, so events are not ids
        shown = [told["first"], told["last"], told["expected"] if counted else "-", told["received"]]
        shown += [told["backfilled"], told["missing"], len(told["open"]), told["order_given_up"]]
        table.add_row(Text(told["stream"]), *("-" if each is None else str(each) for each in shown))
    return table


def _holes_of(stream: dict[str, Any]) -> list[str]:
    """Say in a line each what is not there."""
    why = ", ".join(f"{count} {reason}" for reason, count in stream["reasons"].items())
    lines = [f"{stream['stream']}: {each['gap']} open since {each['since']}" for each in stream["open"]]
    if stream["missing_ids"]:
        lines.append(f"{stream['stream']}: missing {_some(stream['missing_ids'])} ({why})")
    if stream["dead_letter_ids"]:
        lines.append(f"{stream['stream']}: dead letters {_some(stream['dead_letter_ids'])}")
    if stream["unexplained"]:
        lines.append(f"{stream['stream']}: {stream['unexplained']} ids neither came nor are in a gap")
    return lines


def _some(ids: Sequence[Interval]) -> str:
    more = f" and {len(ids) - _HOLES_SHOWN} more" if len(ids) > _HOLES_SHOWN else ""
    return ", ".join(f"{first}..{last}" for first, last in ids[:_HOLES_SHOWN]) + more


def _connection_table(connections: list[dict[str, Any]]) -> Table:
    table = _table("connection", "opened", "longest s", "median s", "rotated", "closed by")
    for told in connections:
        closed = [
            f"{each['times']}x {each['code'] or each['cause']} {clean(each['reason'])}".strip()
            for each in told["closed"]
        ]
        rotated = ", ".join(f"{times}x {cause}" for cause, times in told["rotated"].items())
        seconds = told["seconds"]
        shown = [told["opened"], seconds["longest"], seconds["median"], rotated or "-", "\n".join(closed) or "-"]
        name = f"{told['instance']} {told['connection']}"
        table.add_row(Text(name), *(Text("-" if each is None else str(each)) for each in shown))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", overflow="fold")  # in a narrow place on two lines, never cut
    return table


def _holes(count: int) -> str:
    return _count(count, "hole")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
