"""The control messages that a client may send on its connection, and the exchange's answers to them.

Answers are never wrapped, errors are nested as seen on the wire (protocol section 3).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_INT64 = 2**63
_TEXT_ID = re.compile(r"[0-9A-Za-z]{1,36}")


class Subscriber(Protocol):
    """A connection as its control messages see it."""

    combined: bool
    stream_limit: int
    subscriptions: dict[str, None]

    def subscribe(self, names: list[str]) -> None:
        """Add streams."""

    def unsubscribe(self, names: list[str]) -> None:
        """Remove streams."""

    def set_combined(self, *, combined: bool) -> None:
        """Wrap data frames, or not."""


class MalformedRequestError(Exception):
    """The text is no control message at all: the exchange closes the connection without an answer."""


class _RefusedError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Request:
    """A control message that could be read."""

    body: dict[str, Any]
    length: int

    @classmethod
    def parse(cls, text: bytes) -> Request:
        """Read a text frame."""
        try:
            body = json.loads(text.decode())
        except ValueError:
            raise MalformedRequestError from None
        if not isinstance(body, dict):
            raise MalformedRequestError
        return cls(body, len(text))

    @property
    def is_subscribe(self) -> bool:
        """Whether it asks for streams."""
        return self.body.get("method") == "SUBSCRIBE"

    def answer(self, subscriber: Subscriber) -> bytes:
        """Do what it asks and write the reply."""
        number = self.body.get("id")
        try:
            if not _is_id(number):
                number = None
                raise _RefusedError(2, "Invalid request: request ID must be an unsigned integer")  # noqa: TRY301
            reply: dict[str, Any] = {"result": self._do(subscriber)}
        except _RefusedError as refusal:
            reply = {"error": {"code": refusal.code, "msg": str(refusal)}}
        reply["id"] = number
        return json.dumps(reply, separators=(",", ":"), ensure_ascii=False).encode()

    def _do(self, subscriber: Subscriber) -> Any:  # noqa: ANN401 - a result is null, a list, or a property
        method = self.body.get("method")
        if "method" not in self.body:
            raise _RefusedError(2, f"Invalid request: missing field `method` at line 1 column {self.length}")
        if method not in _METHODS:
            known = ", ".join(f"`{name}`" for name in _METHODS)
            raise _RefusedError(2, f"Invalid request: unknown variant `{method}`, expected one of {known}")
        if method == "LIST_SUBSCRIPTIONS":
            return list(subscriber.subscriptions)
        if method in {"SUBSCRIBE", "UNSUBSCRIBE"}:
            return self._change_streams(subscriber)
        return self._property(subscriber)

    def _change_streams(self, subscriber: Subscriber) -> None:
        names = self.body.get("params")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _RefusedError(2, "Invalid request: params must be an array of stream names")
        if self.body["method"] == "UNSUBSCRIBE":
            subscriber.unsubscribe(names)
            return
        if len(subscriber.subscriptions.keys() | set(names)) > subscriber.stream_limit:
            raise _RefusedError(4, "Too many subscriptions")
        subscriber.subscribe(names)

    def _property(self, subscriber: Subscriber) -> bool | None:
        params = self.body.get("params")
        wanted = 2 if self.body["method"] == "SET_PROPERTY" else 1
        if not isinstance(params, list) or not params or not isinstance(params[0], str):
            raise _RefusedError(2, "Invalid request: property name must be a string")
        if len(params) > wanted:
            raise _RefusedError(2, "Invalid request: too many parameters")
        if params[0] != "combined":
            raise _RefusedError(0, "Unknown property")
        if wanted == 1:
            return subscriber.combined
        if len(params) < wanted or not isinstance(params[1], bool):
            raise _RefusedError(1, "Invalid value type: expected Boolean")
        subscriber.set_combined(combined=params[1])
        return None


def _is_id(number: object) -> bool:
    if isinstance(number, bool):
        return False
    if isinstance(number, int):
        return -_INT64 <= number < _INT64
    return number is None or (isinstance(number, str) and _TEXT_ID.fullmatch(number) is not None)
