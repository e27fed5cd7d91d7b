"""Faults of open connections, of one to come, or of all: what each does, and to whom."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Any

from sandbox.exchange import frames
from sandbox.exchange.tamper import MODES, Tamper

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange.core import Core
    from sandbox.exchange.session import Session

Answer = dict[str, Any]
Target = str | int
Frame = str | dict[str, str]


class ControlError(Exception):
    """A command that cannot be carried out, and why."""


class Faults:
    """Every method is called in the exchange's event loop and says what it did.

    `target` is `"all"` open connections, the id of one, or `"next"`: the next `connections` ones to open.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def cut(self, target: Target = "all", connections: int = 1) -> Answer:
        """Reset TCP at once, without a close frame."""
        return self._apply("cut", target, connections, lambda session: session.cut())

    def close(
        self,
        target: Target = "all",
        connections: int = 1,
        code: int | None = 1000,
        reason: str = "",
    ) -> Answer:
        """Send a close frame; `code` null sends one without a body."""
        text = reason.encode()
        return self._apply("close", target, connections, lambda session: session.close(code, text))

    def mute(self, target: Target = "all", connections: int = 1, seconds: float | None = None) -> Answer:
        """Send neither data nor pings, for good unless `seconds` is given."""
        now = self._core.now
        return self._apply("mute", target, connections, lambda session: session.mute(now(), seconds))

    def half_open(self, target: Target = "all", connections: int = 1, seconds: float | None = None) -> Answer:
        """Keep the socket, but neither read, nor write, nor answer a close."""
        now = self._core.now
        return self._apply("half_open", target, connections, lambda session: session.half_open(now(), seconds))

    def resume(self, target: Target = "all", connections: int = 1) -> Answer:
        """End `mute`, `half_open` and `slow`."""

        def act(session: Session) -> None:
            session.outbox.delay_s = session.outbox.bytes_per_s = 0.0
            session.resume()

        return self._apply("resume", target, connections, act)

    def slow(
        self,
        target: Target = "all",
        connections: int = 1,
        delay_s: float = 0.0,
        bytes_per_s: float = 0.0,
    ) -> Answer:
        """Hold everything back by `delay_s`, or let only so many bytes a second pass."""

        def act(session: Session) -> None:
            session.outbox.delay_s, session.outbox.bytes_per_s = delay_s, bytes_per_s

        return self._apply("slow", target, connections, act)

    def malformed(
        self, target: Target = "all", connections: int = 1, text: str = '{"e":"trade","E":17,'
    ) -> Answer:
        """Send a text frame that is no JSON."""
        return self.inject(target, connections, [text])

    def invalid_utf8(self, target: Target = "all", connections: int = 1) -> Answer:
        """Send a text frame whose JSON string holds bytes that are no UTF-8."""
        block = frames.text_frame(b'{"e":"trade","s":"BTC\xff\xfeUSDT"}')
        return self._apply("invalid_utf8", target, connections, lambda session: self._spoil(session, block, 1))

    def inject(
        self,
        target: Target = "all",
        connections: int = 1,
        frames_: list[Frame] | None = None,
        opcode: str = "text",
        fragments: int = 1,
    ) -> Answer:
        """Send arbitrary messages, each cut into `fragments` frames; they do not count as data."""
        codes = {"text": frames.TEXT, "binary": frames.BINARY, "ping": frames.PING, "pong": frames.PONG}
        if opcode not in codes:
            raise ControlError(f"opcode: {opcode!r} is none of {', '.join(codes)}")
        payloads = [payload_from(each) for each in frames_ or []]
        block = b"".join(frames.fragments(payload, codes[opcode], max(fragments, 1)) for payload in payloads)
        count = len(payloads)
        return self._apply("inject", target, connections, lambda session: self._spoil(session, block, count))

    def tamper(  # noqa: PLR0913, PLR0917 - one fault's own choices
        self,
        stream: str,
        mode: str,
        target: Target = "all",
        connections: int = 1,
        count: int = 1,
        offset: int = 1000,
    ) -> Answer:
        """Alter the ids of the next `count` frames of a stream: wrong, repeated, missing, out_of_order."""
        if mode not in MODES:
            raise ControlError(f"mode: {mode!r} is none of {', '.join(MODES)}")
        return self._apply(
            "tamper",
            target,
            connections,
            lambda session: session.tamper_with(stream, Tamper(mode, count, offset)),
        )

    def silence(
        self, stream: str, target: Target = "all", connections: int = 1, *, for_good: bool = False
    ) -> Answer:
        """Bring nothing of one stream on a connection, until it is subscribed to again there, or for good."""
        return self._apply(
            "silence", target, connections, lambda session: session.silence(stream, for_good=for_good)
        )

    def ignore(self, count: int = 1, target: Target = "all", connections: int = 1) -> Answer:
        """Lose the next `count` requests of a connection: they change nothing and are not answered."""
        return self._apply("ignore", target, connections, lambda session: session.ignore_requests(count))

    def shutdown(
        self, target: Target = "all", connections: int = 1, cut_after_s: float | None = None, code: int = 1001
    ) -> Answer:
        """Send `serverShutdown`, and close with `code` after `cut_after_s` when that is given."""
        core = self._core

        def act(session: Session) -> None:
            session.shutdown_notice(core.pump.now_ms(), core.now())
            if cut_after_s is not None:
                asyncio.get_running_loop().call_later(cut_after_s, session.close, code)

        return self._apply("shutdown", target, connections, act)

    def _apply(self, name: str, target: Target, connections: int, act: Callable[[Session], None]) -> Answer:
        if target == "next":
            self._core.arrivals.greet_next(connections, act)
            return {"fault": name, "connections": [], "armed": connections}
        reached = self.sessions(target)
        for session in reached:
            act(session)
        return {"fault": name, "connections": [session.id for session in reached], "armed": 0}

    def sessions(self, target: Target) -> list[Session]:
        """Find the connections that a target names."""
        if target == "all":
            return list(self._core.sessions.values())
        if not isinstance(target, int) or target not in self._core.sessions:
            raise ControlError(f'target: {target!r} is not "all", "next" or the id of an open connection')
        return [self._core.sessions[target]]

    def _spoil(self, session: Session, block: bytes, count: int) -> None:
        if session.send_uncounted(block, self._core.now()):
            session.record.malformed_frames += count


def payload_from(item: Frame) -> bytes:
    """Read a frame of a command: a text, or bytes as base64."""
    if isinstance(item, str):
        return item.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(item["base64"], validate=True)
    except (KeyError, TypeError, binascii.Error):
        raise ControlError('frames: each one is a text or {"base64": …}') from None
