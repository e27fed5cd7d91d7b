"""Compares what is in Kafka with the exchange's own record: complete, in order, how often twice.

For the streams that carry ids of their own: trade, aggTrade, depth@100ms and bookTicker.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STREAM_TYPES = "trade,aggTrade,depth@100ms,bookTicker"
_STREAMS = {
    "trade": ("trade", "t"),
    "aggregate_trade": ("aggTrade", "a"),
    "depth_update": ("depth@100ms", "u"),
    "book_ticker": ("bookTicker", "u"),
}


@dataclass
class Findings:
    """What a comparison has found; `faults` is empty when everything sent is there and in order."""

    sent: int = 0
    delivered: int = 0
    """Different events."""
    duplicates: int = 0
    faults: list[str] = field(default_factory=list)


class Lines:
    """The ids of the events in Kafka by stream, in the order of their offsets."""

    def __init__(self, values: Iterable[bytes]) -> None:
        self.ids: dict[str, list[int]] = defaultdict(list)
        for value in values:
            event = json.loads(value)
            kind, name = _STREAMS[event["event_type"]]
            self.ids[f"{event['s'].lower()}@{kind}"].append(int(event[name]))

    def compared(self, sent: Mapping[str, Mapping[str, Any]]) -> Findings:
        """Compare with the tallies by stream that the exchange gives for `sent`."""
        findings = Findings()
        for stream, tally in sent.items():
            ids = self.ids.get(stream, [])
            different = list(dict.fromkeys(ids))
            findings.sent += tally["events"]
            findings.delivered += len(different)
            findings.duplicates += len(ids) - len(different)
            if different != sorted(different):
                at = next(here for here in range(1, len(different)) if different[here] < different[here - 1])
                findings.faults.append(f"{stream}: {different[at]} after {different[at - 1]}")
            if len(different) != tally["events"]:
                findings.faults.append(f"{stream}: {tally['events']} sent, {len(different)} there")
            elif different and different[-1] != tally["last_id"]:
                findings.faults.append(f"{stream}: not the ids that were sent")
        findings.faults += [f"{stream}: was not sent" for stream in self.ids if stream not in sent]
        return findings

    def lost_at_the_end(self, sent: Mapping[str, Mapping[str, Any]]) -> int:
        """Return how many of the last trades of one connection are missing; raise when others are, too."""
        lost = 0
        for stream, tally in sent.items():
            if not stream.endswith("rade") or tally["first_id"] is None:
                continue
            first, last = tally["first_id"], tally["last_id"]
            there = {number for number in self.ids.get(stream, ()) if first <= number <= last}
            up_to = max(there, default=first - 1)
            if len(there) != up_to - first + 1:
                raise AssertionError(f"{stream}: {up_to - first + 1 - len(there)} missing in the midst")
            lost += last - up_to
        return lost
