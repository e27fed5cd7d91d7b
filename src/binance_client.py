"""The exchange's side: one connection that stays subscribed for as long as it is wanted.

What holds towards the exchange (Binance web-socket-streams.md): pings are answered, at most 5 messages a
second leave, at most 1024 streams share a connection; after a reconnect everything is subscribed again.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import quote

import msgspec
from websocket import WebSocketException

from src.backoff import Backoff
from src.deadline import Deadline
from src.read_ahead import ConnectionLost, Woken
from src.subscriptions import NOTHING, Outcome, Subscriptions
from src.websocket_wire import FrameReader, NoEndpoint, NotOpened, WentSilent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from config.settings import ConnectionConfig
    from src.events import Reply
    from src.telemetry import Telemetry

MAX_STREAMS = 1024
GOODBYE_SECONDS = 3.0
"""How long the exchange may take to answer our close frame."""
_LOOK_SECONDS = 0.5  # how soon a change of the streams is noticed while nothing arrives

_Lost = (ConnectionLost, WebSocketException, OSError)  # TimeoutError is an OSError


class Chunk(msgspec.Struct, gc=False):
    """What one read from the socket brought."""

    frames: list[bytes]
    received_ms: int
    """When it was read, ms since the epoch."""


class GaveUp(Exception):  # noqa: N818 - named after the fact
    """As many connection attempts in a row failed as the settings allow."""


class End(NamedTuple):
    """How a connection ended: what the exchange's close frame said, if one came, and our word for it."""

    code: int | None
    reason: str
    cause: str
    """`closed`, `silent`, `not_opened`, `timeout`, `other`, or `retired` when this service ended it."""


class Owner(Protocol):
    """Who has a connection, and perhaps another one for the same streams; called on the reading thread."""

    def opened(self, slot: int) -> None:
        """Take note that the connection is open; nothing was read from it yet."""

    def ended(self, slot: int, end: End) -> None:
        """Take note that it is open no more, or could not be opened."""

    def may_give_up(self, slot: int) -> bool:
        """Say whether no other connection is left to wait for."""


class Alone:
    """The owner of a connection that stands for itself."""

    def opened(self, slot: int) -> None:
        """Do nothing."""

    def ended(self, slot: int, end: End) -> None:
        """Do nothing."""

    def may_give_up(self, slot: int) -> bool:  # noqa: ARG002 - the owner's interface
        """There is no other."""
        return True


class BinanceConnection:
    """One subscribed connection that is replaced whenever it is lost, while wanted, until closed or given up.

    `chunks` and `replied` run on the reading thread; all else may be called from any other. What the exchange
    put on the wire before it answered our close frame is still read and given out. Each attempt begins with `url`,
    the combined endpoint; only where nothing is served there does it go on with `base_url`, and only where nothing
    is there either with addresses that name streams.
    """

    def __init__(  # noqa: PLR0913 - what one connection needs
        self,
        number: int,
        url: str,
        streams: Iterable[str],
        settings: ConnectionConfig,
        telemetry: Telemetry,
        *,
        base_url: str | None = None,
        slot: int = 0,
        owner: Owner | None = None,
        wanted: bool = True,
    ) -> None:
        self._number, self._slot = number, slot
        self._url = url
        self._base_url = base_url
        self._settings = settings
        self._telemetry = telemetry
        self._owner = owner or Alone()
        first, cap = settings.reconnect_interval, settings.max_reconnect_interval
        self._backoff = Backoff(first, cap, settings.max_retries)
        self._subscriptions = Subscriptions(streams, settings.timeout_seconds, first, cap)
        self._state = threading.Condition()  # guards the four below
        self._closing = False
        self._wanted = wanted
        self._tried = False
        self._reader: FrameReader | None = None
        self.opened_at: float | None = None
        """When the connection was opened, on the monotonic clock; None while it is not open."""

    def chunks(self) -> Iterator[Chunk]:
        """Yield what arrives while wanted, until closed; raise `GaveUp` after too many failures in a row.

        The first frame of a connection, whatever it is, starts the count of failures anew.
        """
        while (again := self._until_wanted()) is not None:
            self._telemetry.connection_attempt(self._number, self._slot, self._url, again=again)
            worked = False
            try:
                for chunk in self._one_attempt():
                    if not worked:
                        worked = True
                        self._backoff.succeeded()
                    if chunk.frames:
                        yield chunk
            except _Lost as error:
                if self.wanted:
                    self._wait_after(error, worked=worked)

    def replied(self, reply: Reply) -> None:
        """Take note of a reply or error of the exchange; called on the reading thread."""
        outcome = self._subscriptions.answered(reply, time.monotonic())
        if reply.error is not None:
            self._telemetry.exchange_error(self._number, reply.error, outcome.refused)
        self._tell(outcome)

    def activate(self) -> None:
        """Connect, and stay connected until `retire`."""
        with self._state:
            if not self._wanted:
                self._wanted, self._tried = True, False
                self._backoff.succeeded()
            self._state.notify_all()

    def retire(self) -> None:
        """Say goodbye to the exchange and wait to be wanted again; returns at once."""
        with self._state:
            self._wanted = False
            self._end_reading()

    def close(self) -> None:
        """Ask the reading thread to say goodbye to the exchange and end; returns at once."""
        with self._state:
            self._closing = True
            self._end_reading()

    def change(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Read other streams from here on; on an open connection only the difference is asked for."""
        self._subscriptions.change(add, remove)

    def renew(self, streams: Iterable[str]) -> None:
        """Subscribe anew to streams that bring nothing any more."""
        self._subscriptions.renew(streams)

    @property
    def wanted(self) -> bool:
        """Whether it is to be open."""
        return self._wanted and not self._closing

    @property
    def open(self) -> bool:
        """Whether it is open; subscribing may still go on."""
        return self.opened_at is not None

    @property
    def subscribed(self) -> bool:
        """Whether it is open and the exchange has answered for every stream."""
        return self.open and self._subscriptions.settled

    @property
    def failures_in_a_row(self) -> int:
        """How often connecting has failed since a connection last brought a frame."""
        return self._backoff.failures

    @property
    def exhausted(self) -> bool:
        """Whether connecting has failed as often in a row as the settings allow."""
        return self._backoff.exhausted

    def _until_wanted(self) -> bool | None:
        """Wait; return whether this is another attempt of the same connection, None once closed."""
        with self._state:
            self._state.wait_for(lambda: self._wanted or self._closing)
            again, self._tried = self._tried, True
            return None if self._closing else again

    def _end_reading(self) -> None:
        if self._reader is not None:
            self._reader.wake()
        self._state.notify_all()

    def _one_attempt(self) -> Iterator[Chunk]:
        addresses = self._addresses()
        for url, instead in zip(addresses, [*addresses[1:], None], strict=True):
            try:
                yield from self._one_connection(url)
            except NoEndpoint as error:
                if instead is None:
                    raise
                self._telemetry.combined_endpoint_missing(self._number, url, instead, error)
            else:
                return

    def _addresses(self) -> list[str]:
        """Return where to go in turn; only a server that is not Binance's lacks the first."""
        if self._base_url is None:
            return [self._url]
        named = "/".join(quote(stream, safe="!@+:") for stream in self._subscriptions.first_group())
        combined, raw = f"{self._url}?streams={named}", f"{self._url.removesuffix('/stream')}/ws/{named}"
        return list(dict.fromkeys([self._url, self._base_url, *([combined, raw] if named else [])]))

    def _one_connection(self, url: str) -> Iterator[Chunk]:
        reader, cause = FrameReader(), ""
        with self._state:
            self._reader = reader
        try:
            if not self.wanted:
                return
            reader.open(url, Deadline(self._settings.timeout_seconds))
            opened_at = time.monotonic()
            self._subscriptions.start_over(opened_at)  # first: an open connection without plans passes for settled
            self.opened_at = opened_at
            self._owner.opened(self._slot)
            self._telemetry.connection_opened(self._number, self._slot, len(self._subscriptions))
            yield from self._read(reader)
        except Woken:
            cause = "retired"
            yield from self._read_to_the_end(reader)
        except _Lost as error:
            cause = _cause_of(error)
            raise
        finally:
            with self._state:
                self._reader = None
            reader.release()
            self.opened_at = None
            if cause:
                self._owner.ended(self._slot, End(reader.close_code, reader.close_text, cause))
            if cause == "retired" or not self.wanted:
                self._telemetry.connection_closed(self._number, self._slot)

    def _read(self, reader: FrameReader) -> Iterator[Chunk]:
        silence = self._settings.silence_timeout_seconds
        subscriptions = self._subscriptions
        heard_at = now = time.monotonic()
        while True:
            look_at = now + _LOOK_SECONDS
            if not subscriptions.at_rest:
                if (request := subscriptions.due(now)) is not None:
                    reader.request(request, now + self._settings.timeout_seconds)
                if (outcome := subscriptions.overdue(now)) is not NOTHING:
                    self._tell(outcome)
                look_at = min(look_at, subscriptions.next_at())
            try:
                frames, closed = reader.read(min(heard_at + silence, look_at))
            except TimeoutError:
                if (now := time.monotonic()) - heard_at >= silence:
                    raise WentSilent(f"no frame of any kind for {silence:g} s") from None
                continue
            heard_at = now = time.monotonic()
            if closed:
                raise ConnectionLost(reader.close_reason())
            yield Chunk(frames, time.time_ns() // 1_000_000)

    def _tell(self, outcome: Outcome) -> None:
        if outcome.subscribed:
            self._telemetry.subscribed(self._number, self._slot, len(outcome.subscribed))
        if outcome.unsubscribed:
            self._telemetry.unsubscribed(self._number, self._slot, len(outcome.unsubscribed))
        if outcome.unconfirmed:
            self._telemetry.subscription_unconfirmed(self._number, list(outcome.unconfirmed))

    def _read_to_the_end(self, reader: FrameReader) -> Iterator[Chunk]:
        """Say goodbye, then give out what was on the way until the exchange answers or hangs up."""
        if not reader.connected:
            return
        wait_until = time.monotonic() + GOODBYE_SECONDS
        try:
            reader.say_goodbye(wait_until)
            while True:
                frames, closed = reader.read(wait_until)
                yield Chunk(frames, time.time_ns() // 1_000_000)
                if closed:
                    return
                if time.monotonic() >= wait_until:
                    raise ConnectionLost("the exchange went on sending")
        except _Lost as error:
            self._telemetry.goodbye_unanswered(self._number, error)

    def _wait_after(self, error: Exception, *, worked: bool) -> None:
        """Wait as long as the backoff and the exchange say; a connection that had worked is no failed attempt."""
        delay = self._backoff.lost() if worked else self._backoff.failed()
        failures = self._backoff.failures
        self._telemetry.connection_failed(self._number, self._slot, error, _cause_of(error), failures)
        if delay is None:
            if self._owner.may_give_up(self._slot):
                raise GaveUp(f"{self._backoff.failures} connection attempts in a row failed: {error}") from error
            delay = self._backoff.lost()
        if isinstance(error, NotOpened):
            delay = max(delay, error.retry_after)
        self._telemetry.reconnect_scheduled(self._number, self._backoff.attempt, delay)
        with self._state:
            self._state.wait_for(lambda: not self.wanted, delay)


def _cause_of(error: Exception) -> str:
    """Say in a word how a connection was lost, or not opened."""
    return str(getattr(error, "cause", "timeout" if isinstance(error, TimeoutError) else "other"))
