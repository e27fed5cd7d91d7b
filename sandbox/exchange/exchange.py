"""`Exchange`: the simulated exchange with its event loop in a thread of its own, for tests."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import TYPE_CHECKING, Any, Self

from sandbox.exchange.application import build
from sandbox.exchange.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from sandbox.exchange.core import Core
    from sandbox.exchange.faults import Answer, Frame, Target

_PATIENCE_S = 10.0


class Exchange:
    """Start, command, ask, stop. Commands are those of `Control`; they may come from any thread."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="simulated-exchange", daemon=True)
        self._core, self._control, self._public, self._private = build(self.settings)

    @property
    def core(self) -> Core:
        """The exchange itself; touch it only from its own loop."""
        return self._core

    @property
    def port(self) -> int:
        """The port of WebSocket and REST."""
        return self._core.port

    @property
    def ws_url(self) -> str:
        """The raw base, as `BINANCE_WS_BASE_URL` takes it."""
        return f"ws://{self.settings.host}:{self._core.port}/ws"

    @property
    def stream_url(self) -> str:
        """The combined base."""
        return f"ws://{self.settings.host}:{self._core.port}/stream"

    @property
    def rest_url(self) -> str:
        """The base of `/api/v3` and `/control`."""
        return f"http://{self.settings.host}:{self._core.port}"

    @property
    def control_url(self) -> str:
        """The same on a port that stays open while connections are refused."""
        return f"http://{self.settings.host}:{self._core.control_port}"

    def start(self) -> Self:
        """Listen; returns when clients may connect."""
        self._thread.start()
        try:
            self._await(self._core.start(self._public, self._private))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Cut all connections, close the listeners, end the thread. A second call does nothing."""
        if not self._thread.is_alive():
            return
        self._await(self._core.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def command(self, name: str, *arguments: Any, **named: Any) -> Answer:  # noqa: ANN401 - as the command takes it
        """Carry out a command, or ask a question, by name."""
        answer: Answer = self._await(self._call(name, *arguments, **named))
        return answer

    def cut(self, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Reset TCP at once."""
        return self.command("cut", target, **more)

    def close(self, target: Target = "all", *, code: int | None = 1000, reason: str = "", **more: Any) -> Answer:  # noqa: ANN401
        """Send a close frame."""
        return self.command("close", target, code=code, reason=reason, **more)

    def mute(self, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Send neither data nor pings."""
        return self.command("mute", target, **more)

    def half_open(self, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Neither read nor write."""
        return self.command("half_open", target, **more)

    def resume(self, target: Target = "all") -> Answer:
        """End `mute`, `half_open` and `slow`."""
        return self.command("resume", target)

    def slow(self, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Delay or throttle."""
        return self.command("slow", target, **more)

    def malformed(self, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Send a frame that is no JSON."""
        return self.command("malformed", target, **more)

    def invalid_utf8(self, target: Target = "all") -> Answer:
        """Send a text frame that is no UTF-8."""
        return self.command("invalid_utf8", target)

    def inject(self, frames: list[Frame], target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Send arbitrary messages that do not count as data."""
        return self.command("inject", target, frames_=frames, **more)

    def tamper(self, stream: str, mode: str, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Alter ids of the next frames of a stream."""
        return self.command("tamper", stream, mode, target, **more)

    def silence(self, stream: str, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Bring nothing of one stream."""
        return self.command("silence", stream, target, **more)

    def ignore(self, count: int, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Lose requests."""
        return self.command("ignore", count, target, **more)

    def shutdown(self, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Send `serverShutdown`."""
        return self.command("shutdown", target, **more)

    def stall_handshake(self, connections: int = 1) -> Answer:
        """Leave the next handshakes unanswered."""
        return self.command("stall_handshake", connections)

    def handshake_status(self, status: int, connections: int = 1, **more: Any) -> Answer:  # noqa: ANN401
        """Answer the next handshakes with an HTTP status."""
        return self.command("handshake_status", status, connections, **more)

    def refuse(self, seconds: float | None = None) -> Answer:
        """Refuse TCP connections."""
        return self.command("refuse", seconds)

    def accept(self) -> Answer:
        """Listen again."""
        return self.command("accept")

    def disarm(self) -> Answer:
        """Forget the faults that wait for connections."""
        return self.command("disarm")

    def after(self, frames: int, command: str, target: Target = "all", **more: Any) -> Answer:  # noqa: ANN401
        """Carry out a fault after so many more data frames."""
        return self.command("after", frames, command, target, **more)

    def send(self, stream: str, frames: list[Frame], **more: Any) -> Answer:  # noqa: ANN401
        """Send exact data frames of a stream."""
        return self.command("send", stream, frames, **more)

    def burst(self, count: int, symbol: str | None = None) -> Answer:
        """Make messages at once."""
        return self.command("burst", count, symbol)

    def rate(self, rate: float, mix: str | None = None) -> Answer:
        """Trade at another rate."""
        return self.command("rate", rate, mix)

    def status(self, status: str) -> Answer:
        """Set the status of all symbols."""
        return self.command("status", status)

    def list_symbol(self, symbol: str, status: str | None = "TRADING") -> Answer:
        """Set what exchangeInfo says of one symbol."""
        return self.command("list_symbol", symbol, status)

    def rest(self, status: int | None = None, **more: Any) -> Answer:  # noqa: ANN401
        """Let REST fail, wait, lag, or forgive."""
        return self.command("rest", status, **more)

    def replay(self, path: str, **more: Any) -> Answer:  # noqa: ANN401
        """Replay a recording."""
        return self.command("replay", path, **more)

    def connections(self) -> list[dict[str, Any]]:
        """Read the record of every connection."""
        known: list[dict[str, Any]] = self.command("connections")["connections"]
        return known

    def sent(self, connection: int | None = None, **more: Any) -> Answer:  # noqa: ANN401
        """Read the record's totals."""
        return self.command("sent", connection, **more)

    async def _call(self, name: str, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        if self._core.failure is not None:
            raise RuntimeError("the exchange has failed") from self._core.failure
        answer = getattr(self._control, name)(*arguments, **named)
        return await answer if inspect.isawaitable(answer) else answer

    def _await(self, work: Any) -> Any:  # noqa: ANN401
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()
