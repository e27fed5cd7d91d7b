"""Faults in the ids of data frames: wrong, repeated, missing, out of order."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from sandbox.exchange.frames import text_frame
from sandbox.exchange.record import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = ("wrong", "repeated", "missing", "out_of_order")

_IDS = re.compile(rb'("(?:t|a|u|U|f|l|lastUpdateId)":)(\d+)')
_OWN_ID = re.compile(rb'"(?:t|a|u|lastUpdateId)":(\d+)')
_SHORT, _MEDIUM = 126, 127


class Tamper:
    """Alters the next `count` frames of one stream on one connection, then lets all pass."""

    def __init__(self, mode: str, count: int, offset: int) -> None:
        self.mode = mode
        self.left = count
        self._offset = offset
        self._kept: bytes | None = None
        self.difference = Tally()
        self.ids: list[int | None] = []

    @property
    def active(self) -> bool:
        """Whether there is still something to alter or to let go."""
        return self.left > 0 or self._kept is not None

    def pass_on(self, frame: bytes, onwards: Callable[[bytes], None]) -> None:
        """Put a frame, or what becomes of it, on its way."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            onwards(frame)
            onwards(kept)
            self._add(kept, +1)
            return
        if self.left <= 0:
            onwards(frame)
            return
        self.left -= 1
        payload = payload_of(frame)
        self.ids.append(own_id(payload))
        if self.mode == "missing":
            self._add(frame, -1)
        elif self.mode == "out_of_order":
            self._kept = frame
            self._add(frame, -1)
        elif self.mode == "repeated":
            onwards(frame)
            onwards(frame)
            self._add(frame, +1)
        else:
            onwards(text_frame(_IDS.sub(self._shift, payload)))

    def _shift(self, match: re.Match[bytes]) -> bytes:
        return match[1] + str(int(match[2]) + self._offset).encode()

    def _add(self, frame: bytes, sign: int) -> None:
        self.difference.add(Tally(sign, sign, sign * len(payload_of(frame))))


def payload_of(frame: bytes) -> bytes:
    """Take the payload out of an unmasked frame."""
    length = frame[1] & 0x7F
    head = 2 if length < _SHORT else 4 if length < _MEDIUM else 10
    return frame[head:]


def own_id(payload: bytes) -> int | None:
    """Find the id that continuity is judged by: trade, aggregate or final update id."""
    match = _OWN_ID.search(payload)
    return int(match[1]) if match else None


def tally_of(payload: bytes) -> Tally:
    """Count one payload: its events and, where it has one, its id."""
    try:
        body = json.loads(payload)
    except ValueError:
        body = None
    body = body.get("data", body) if isinstance(body, dict) else body
    events = len(body) if isinstance(body, list) else 1
    number = own_id(payload)
    return Tally(1, events, len(payload), number, number)
