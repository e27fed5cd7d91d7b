"""The requests that keep one connection subscribed to what is wanted: paced, answered, checked, tried again.

What the exchange allows and does (Binance web-socket-streams.md, and seen on the wire): 5 messages a second from
us, pongs included; a SUBSCRIBE of more than 4,096 bytes stays unanswered; a name that does not exist is confirmed.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from src.events import Reply

SUBSCRIBE_BYTES = 4_000  # frames over 4,096 bytes were seen to stay unanswered
SUBSCRIBE_STREAMS = 100
SUBSCRIBE_INTERVAL = 0.35
"""Seconds between our requests: 5 messages a second are allowed and pongs count; this leaves room for two."""
SUBSCRIBE, UNSUBSCRIBE, LIST = "SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS"
_LARGEST_ID = 2**31


def subscribe_groups(streams: Iterable[str]) -> list[tuple[str, ...]]:
    """Split stream names so that each group's request stays within the exchange's limits."""
    groups: list[list[str]] = []
    for stream in streams:
        candidate = [*groups[-1], stream] if groups else [stream]
        too_long = len(encoded(UNSUBSCRIBE, candidate, _LARGEST_ID)) > SUBSCRIBE_BYTES
        if not groups or len(candidate) > SUBSCRIBE_STREAMS or too_long:
            groups.append([stream])
        else:
            groups[-1] = candidate
    return [tuple(group) for group in groups]


def encoded(method: str, streams: Iterable[str], request_id: int) -> bytes:
    """Write a request as the exchange takes it."""
    request = {"method": method, "params": list(streams), "id": request_id}
    if method == LIST:
        del request["params"]
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()


class Outcome(NamedTuple):
    """What an answer of the exchange, or its absence, says about streams."""

    subscribed: tuple[str, ...] = ()
    unsubscribed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = ()
    """Asked for twice without an answer and, as far as could be found out, not subscribed; said once each."""


NOTHING = Outcome()


class _Request(NamedTuple):
    method: str
    streams: tuple[str, ...] = ()
    sent: int = 0
    """How often it was sent before."""
    anew: bool = False
    """Whether this is the first half of subscribing again to what is wanted all the time."""


class Subscriptions:
    """What one connection is to be subscribed to, and the requests that make it so.

    A request that is not answered in time is sent once more; after that the exchange is asked what it has
    subscribed us to, and what is missing there is asked for again. What it refuses is tried again with a delay
    that doubles up to a cap. `change` and `renew` may be called by any thread, all else by the reading thread.
    """

    def __init__(self, streams: Iterable[str], timeout: float, retry_first: float, retry_cap: float) -> None:
        self._wanted = dict.fromkeys(streams)
        self._timeout = timeout
        self._retry = (retry_first, retry_cap)
        self._changes: deque[tuple[str, tuple[str, ...]]] = deque()  # how other threads reach this one
        self._next_id = 1
        self.start_over(0.0)

    def start_over(self, now: float) -> None:
        """Plan all requests anew, for a new connection."""
        self._unsent: deque[_Request] = deque()
        self._take_changes()
        self._unsent = deque(_Request(SUBSCRIBE, group) for group in subscribe_groups(self._wanted))
        self._later: list[tuple[float, _Request]] = []
        self._unanswered: dict[int, tuple[float, _Request]] = {}  # by id: when overdue
        self._doubtful: dict[str, None] = {}
        self._named: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._send_at = now

    def change(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Want other streams from here on; only the difference is asked for."""
        self._changes.append((UNSUBSCRIBE, tuple(remove)))
        self._changes.append((SUBSCRIBE, tuple(add)))

    def renew(self, streams: Iterable[str]) -> None:
        """Unsubscribe and subscribe again to streams that bring nothing any more."""
        self._changes.append(("", tuple(streams)))

    @property
    def settled(self) -> bool:
        """Whether the exchange has answered for every stream; what it refused is tried again later."""
        return not (self._changes or self._unsent or self._unanswered or self._doubtful)

    @property
    def at_rest(self) -> bool:
        """Whether neither `due` nor `overdue` will have anything until something is changed or renewed."""
        return not (self._changes or self._unsent or self._unanswered or self._later)

    def __len__(self) -> int:
        return len(self._wanted)

    def first_group(self) -> tuple[str, ...]:
        """Return as many of the streams as one request holds."""
        return next(iter(subscribe_groups(self._wanted)), ())

    def due(self, now: float) -> bytes | None:
        """Return the next request when its time has come."""
        if self._changes:
            self._take_changes()
        if now < self._send_at or not (self._unsent or self._later):
            return None
        while (request := self._next(now)) is not None:
            if not (streams := self._still_meant(request)) and request.method != LIST:
                continue
            request_id, self._next_id = self._next_id, self._next_id + 1
            sent = request._replace(streams=streams, sent=request.sent + 1)
            self._unanswered[request_id] = (now + self._timeout, sent)
            self._send_at = now + SUBSCRIBE_INTERVAL
            return encoded(request.method, streams, request_id)
        return None

    def next_at(self) -> float:
        """Return when `due` or `overdue` will have something, on the clock that they are asked with."""
        if not (self._unsent or self._later or self._unanswered):
            return float("inf")
        send_at = self._send_at if self._unsent else float("inf")
        later = (max(at, self._send_at) for at, _ in self._later)
        return min([send_at, *later, *(overdue_at for overdue_at, _ in self._unanswered.values())])

    def answered(self, reply: Reply, now: float) -> Outcome:
        """Take note of an answer; say what it means for which streams."""
        _, request = self._unanswered.pop(reply.id, (0.0, None)) if isinstance(reply.id, int) else (0.0, None)
        if request is None:
            return NOTHING
        if reply.error is not None:
            return self._refused(request, now)
        if request.method == LIST:
            return self._compared(reply.result, now)
        for stream in request.streams:
            self._doubtful.pop(stream, None)
            self._failures.pop(stream, None)
        if request.method == SUBSCRIBE:
            return Outcome(subscribed=request.streams)
        return NOTHING if request.anew else Outcome(unsubscribed=request.streams)

    def overdue(self, now: float) -> Outcome:
        """Look after requests that were not answered in time; say which streams are to be given up for now."""
        if not self._unanswered:
            return NOTHING
        late = [key for key, (overdue_at, _) in self._unanswered.items() if now >= overdue_at]
        unconfirmed: tuple[str, ...] = ()
        for request in [self._unanswered.pop(key)[1] for key in late]:
            if request.method == LIST:
                unconfirmed += self._give_up(now)
            elif request.sent == 1 and not request.anew:
                self._unsent.append(request)
            elif not request.anew:
                self._doubtful.update(dict.fromkeys(request.streams))
                self._check()
        return Outcome(unconfirmed=unconfirmed) if unconfirmed else NOTHING

    def _next(self, now: float) -> _Request | None:
        if self._unsent:
            return self._unsent.popleft()
        for place, (at, request) in enumerate(self._later):
            if at <= now:
                del self._later[place]
                return request
        return None

    def _still_meant(self, request: _Request) -> tuple[str, ...]:
        """Leave out what was changed again since."""
        wanted, meant = self._wanted, request.method == SUBSCRIBE or request.anew
        return tuple(stream for stream in request.streams if (stream in wanted) == meant)

    def _take_changes(self) -> None:
        while self._changes:
            method, streams = self._changes.popleft()
            if not method:
                self._plan(UNSUBSCRIBE, [each for each in streams if each in self._wanted], anew=True)
                self._plan(SUBSCRIBE, [each for each in streams if each in self._wanted])
            elif method == UNSUBSCRIBE:
                gone = [each for each in streams if each in self._wanted]
                for each in gone:
                    del self._wanted[each]
                self._plan(UNSUBSCRIBE, gone)
            else:
                new = [each for each in streams if each not in self._wanted]
                self._wanted.update(dict.fromkeys(new))
                self._plan(SUBSCRIBE, new)

    def _plan(self, method: str, streams: Iterable[str], *, anew: bool = False) -> None:
        self._unsent.extend(_Request(method, group, anew=anew) for group in subscribe_groups(streams))

    def _check(self) -> None:
        requests = (*self._unsent, *(request for _, request in self._later))
        waiting = (*requests, *(request for _, request in self._unanswered.values()))
        if all(request.method != LIST for request in waiting):
            self._unsent.append(_Request(LIST))

    def _refused(self, request: _Request, now: float) -> Outcome:
        """Try again later, except to unsubscribe from what is wanted: it may have been subscribed to since."""
        if request.method == LIST:
            return Outcome(unconfirmed=self._give_up(now))
        if not request.anew:
            self._try_later(request, now)
        return Outcome(refused=request.streams)

    def _give_up(self, now: float) -> tuple[str, ...]:
        """Ask later for what even the list does not tell of; return those that are to be named."""
        doubtful = tuple(self._doubtful)
        self._doubtful.clear()
        for group in subscribe_groups(doubtful):
            self._try_later(_Request(SUBSCRIBE, group), now)
        return self._unnamed(doubtful)

    def _compared(self, listed: object, now: float) -> Outcome:
        """Compare what the exchange says it has subscribed us to with what was asked for in doubt."""
        has = set(listed) if isinstance(listed, list) else set()
        doubtful = tuple(self._doubtful)
        self._doubtful.clear()
        there = tuple(stream for stream in doubtful if stream in has and stream in self._wanted)
        missing = tuple(stream for stream in doubtful if stream not in has and stream in self._wanted)
        self._plan(UNSUBSCRIBE, (stream for stream in doubtful if stream in has and stream not in self._wanted))
        for group in subscribe_groups(missing):
            self._try_later(_Request(SUBSCRIBE, group), now)
        return Outcome(subscribed=there, unconfirmed=self._unnamed(missing))

    def _try_later(self, request: _Request, now: float) -> None:
        first, cap = self._retry
        failures = max((self._failures[stream] for stream in request.streams), default=0)
        self._failures.update(request.streams)
        delay = min(first * 2 ** min(failures, 63), cap)
        self._later.append((now + delay, request._replace(sent=0)))

    def _unnamed(self, streams: tuple[str, ...]) -> tuple[str, ...]:
        named = tuple(stream for stream in streams if stream not in self._named)
        self._named.update(named)
        return named
