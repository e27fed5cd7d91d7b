"""The exchange's REST interface: what can be asked, what it weighs, and in how many ways it can fail.

The only file that knows urllib3. Endpoints, weights, error bodies and headers: Binance rest-api.md, errors.md.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import DecodeError, HTTPError, ProtocolError, TimeoutError  # noqa: A004 - its own

from src.deadline import Deadline
from src.open_sockets import OpenSockets
from src.selection import Listed

if TYPE_CHECKING:
    from src.telemetry import Telemetry
    from src.weight_budget import WeightBudget

CONNECT_SECONDS = 3.0
TOTAL_SECONDS = 10.0
MOST_ROWS = 1000
"""Rows that one answer holds at most."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""exchangeInfo of all symbols has some 15 MB; no other answer comes near."""
AGGREGATES_WEIGHT, TRADES_WEIGHT, KLINES_WEIGHT = 4, 25, 2
_DEPTH_WEIGHTS = ((100, 5), (500, 25), (1000, 50), (5000, 250))
_INFO_WEIGHT, _TIME_WEIGHT = 20, 1
_USED = "X-MBX-USED-WEIGHT-1M"
_LIMITED = {429: 60.0, 418: 120.0}
"""Statuses that order a pause, and how long it is when they do not say."""
_LONGEST_PAUSE = 3 * 86_400.0
_TOO_MANY_REQUESTS = -1003
_INVALID_SYMBOL = frozenset({-1121, -1100})
_PASSING = frozenset({403, 408, 451})
"""Statuses below 500 that say nothing about the request: a firewall, a time-out, a place."""
_PASSING_CODES = frozenset({-1000, -1001, -1006, -1007, -1008, -1016})
"""The exchange's codes that say nothing about the request: unknown, disconnected, odd, late, busy, ending."""
_CHUNK = 64 * 1024


class RestError(Exception):
    """A request that brought nothing usable; `reason` is the short word that it is counted under."""

    reason = "other"


class Unreachable(RestError):  # noqa: N818 - these are named after the fact
    """The exchange did not answer: refused, reset, no such host, or not within the time."""

    reason = "unreachable"


class Foreign(Unreachable):
    """Somebody else answered, for the exchange gives every error a code: a proxy, a firewall, a page, a redirect.

    It speaks of this endpoint only: another one may well be served.
    """


class Refused(RestError):  # noqa: N818
    """The exchange answered that it does not serve this."""

    reason = "refused"

    def __init__(self, status: int, code: int | None, message: str) -> None:
        super().__init__(f"status {status}, code {code}: {message}")
        self.status = status
        self.code = code
        self.message = message

    @property
    def passing(self) -> bool:
        """Whether the same request may be served later."""
        own = self.status >= 500 or self.status in _PASSING  # noqa: PLR2004 - the server's own errors
        return own or self.code in _PASSING_CODES

    @property
    def invalid_symbol(self) -> bool:
        """Whether the exchange does not know the symbol."""
        return self.code in _INVALID_SYMBOL


class Limited(RestError):  # noqa: N818
    """Too much was asked, or the IP is banned; `retry_after` seconds from now it may be served."""

    reason = "limited"

    def __init__(self, status: int, retry_after: float, message: str) -> None:
        super().__init__(f"status {status}, retry after {retry_after:g} s: {message}")
        self.status = status
        self.retry_after = retry_after


class Malformed(RestError):  # noqa: N818
    """The answer is not what the endpoint answers: no JSON, cut off, too large, of another shape."""

    reason = "malformed"


class Closed(RestError):  # noqa: N818
    """This client was closed before the answer was there."""

    reason = "closed"


class Answer(NamedTuple):
    """The body of an answer with status 200."""

    body: bytes
    received_ms: int
    """When it was complete, ms since the epoch."""


class _ErrorBody(msgspec.Struct):
    code: int | None = None
    msg: str = ""


class _Symbol(msgspec.Struct):
    symbol: str
    status: str
    base: str = msgspec.field(default="", name="baseAsset")
    quote: str = msgspec.field(default="", name="quoteAsset")


class _Limit(msgspec.Struct):
    kind: str = msgspec.field(default="", name="rateLimitType")
    interval: str = ""
    count: int = msgspec.field(default=0, name="intervalNum")
    limit: int = 0


class _Info(msgspec.Struct):
    symbols: list[_Symbol]
    limits: list[_Limit] = msgspec.field(default_factory=list, name="rateLimits")


class _Time(msgspec.Struct):
    server_time: int = msgspec.field(name="serverTime")


_time = msgspec.json.Decoder(_Time).decode
_info = msgspec.json.Decoder(_Info).decode
_error_body = msgspec.json.Decoder(_ErrorBody).decode


class BinanceRest:
    """Asks the exchange, within the budget that all share; any number of threads may ask at a time.

    What is `reserved` has its weight in the budget already, everything else waits for it here. Every method raises
    a `RestError`. `close` ends what waits for the budget or for an answer at once, and what
    is just connecting within `CONNECT_SECONDS`.
    """

    def __init__(self, base_url: str, budget: WeightBudget, telemetry: Telemetry) -> None:
        self.budget = budget
        self._base = f"{base_url}/api/v3/"
        self._telemetry = telemetry
        self._sockets = OpenSockets()
        self._http = _pool(self._sockets)

    def aggregates(self, symbol: str, first: int, limit: int = MOST_ROWS, *, reserved: bool = False) -> Answer:
        """Ask for aggregate trades from an id on."""
        return self._get("aggTrades", AGGREGATES_WEIGHT, _rows(symbol, first, limit), reserved=reserved)

    def trades(self, symbol: str, first: int, limit: int = MOST_ROWS, *, reserved: bool = False) -> Answer:
        """Ask for trades from an id on."""
        return self._get("historicalTrades", TRADES_WEIGHT, _rows(symbol, first, limit), reserved=reserved)

    def klines(
        self, symbol: str, interval: str, times: tuple[int, int], zone: str = "", *, reserved: bool = False
    ) -> Answer:
        """Ask for the bars that open between two times; `zone` is their offset from UTC, such as `08:00`."""
        query: dict[str, str | int] = {"symbol": symbol, "interval": interval, "limit": MOST_ROWS}
        query |= {"startTime": times[0], "endTime": times[1]} | ({"timeZone": zone} if zone else {})
        return self._get("klines", KLINES_WEIGHT, query, reserved=reserved)

    def depth(self, symbol: str, levels: int, *, reserved: bool = False) -> Answer:
        """Ask for the order book, so many levels a side."""
        return self._get("depth", depth_weight(levels), {"symbol": symbol, "limit": levels}, reserved=reserved)

    def listed(self, symbols: tuple[str, ...] = ()) -> list[Listed]:
        """Ask what is traded, of all symbols unless some are named; build nothing else of an answer of 15 MB.

        The limit of weights is taken over from it.
        """
        named = json.dumps(symbols, ensure_ascii=False, separators=(",", ":"))
        answer = self._get("exchangeInfo", _INFO_WEIGHT, {"symbols": named} if symbols else {})
        try:
            info = _info(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._malformed("exchangeInfo", error) from error
        if not info.symbols:
            raise Malformed("exchangeInfo: no symbols")
        for limit in info.limits:
            if (
                limit.kind == "REQUEST_WEIGHT"
                and (limit.interval, limit.count) == ("MINUTE", 1)
                and limit.limit > 0
            ):
                self.budget.learn_limit(limit.limit)
        return [Listed(each.symbol, each.status, each.base, each.quote) for each in info.symbols]

    def time_ms(self) -> int:
        """Ask for the exchange's time, ms since the epoch."""
        try:
            return _time(self._get("time", _TIME_WEIGHT, {}).body).server_time
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._malformed("time", error) from error

    def close(self) -> None:
        """Ask nothing any more; wake every thread that waits here."""
        self.budget.close()
        self._sockets.shut()

    def _get(self, endpoint: str, weight: int, query: dict[str, str | int], *, reserved: bool = False) -> Answer:
        if not reserved and not self.budget.acquire(weight):
            raise Closed(endpoint)
        used = None
        try:
            self._telemetry.rest_requested(endpoint)
            response, body = self._exchange(endpoint, query)
            used = _number(response.headers.get(_USED))
            if response.status != 200:  # noqa: PLR2004 - all others carry no data
                raise self._refusal(endpoint, response, body)
            if not body:
                raise Malformed(f"{endpoint}: empty answer")
        except RestError as error:
            if self._sockets.shut_down:
                raise Closed(endpoint) from error
            self._telemetry.rest_failed(endpoint, error.reason, error)
            raise
        finally:
            self.budget.answered(weight, used)
            if used is not None:
                self._telemetry.rest_weight(used)
        return Answer(body, time.time_ns() // 1_000_000)

    def _exchange(self, endpoint: str, query: dict[str, str | int]) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        deadline = Deadline(TOTAL_SECONDS)
        try:
            response = self._ask(endpoint, query)
        except (HTTPError, OSError) as error:
            raise Unreachable(f"{endpoint}: {_cause(error)}") from error
        try:
            return response, _body(response, deadline, endpoint)
        except TimeoutError as error:
            raise Unreachable(f"{endpoint}: not answered within {TOTAL_SECONDS:g} s") from error
        except (ProtocolError, DecodeError) as error:
            raise Malformed(f"{endpoint}: {_cause(error)}") from error
        except (HTTPError, OSError) as error:
            raise Unreachable(f"{endpoint}: {_cause(error)}") from error
        finally:
            response.close() if self._sockets.shut_down else response.release_conn()

    def _ask(self, endpoint: str, query: dict[str, str | int]) -> urllib3.BaseHTTPResponse:
        """Send the request; once more when a connection kept from before turns out to be gone."""
        url, fields = self._base + endpoint, {name: str(value) for name, value in query.items()}
        try:
            return self._http.request("GET", url, fields=fields, preload_content=False, redirect=False)
        except ProtocolError:
            if self._sockets.shut_down:
                raise
            return self._http.request("GET", url, fields=fields, preload_content=False, redirect=False)

    def _refusal(self, endpoint: str, response: urllib3.BaseHTTPResponse, body: bytes) -> RestError:
        try:
            error = _error_body(body)
        except (msgspec.DecodeError, UnicodeError):
            error = _ErrorBody(None, body[:200].decode("utf-8", "backslashreplace"))
        status = response.status
        if status not in _LIMITED and error.code != _TOO_MANY_REQUESTS:
            coded = error.code is not None and error.code < 0  # 0 is no code of its errors.md
            if coded or status >= 500 or status == 408:  # noqa: PLR2004 - its servers' own, soon over
                return Refused(status, error.code, error.msg)
            return Foreign(f"{endpoint}: status {status} without a code of the exchange: {error.msg}")
        told = _number(response.headers.get("Retry-After"))
        seconds = _LIMITED.get(status, 60.0) if told is None else float(told)
        limited = Limited(status, min(seconds, _LONGEST_PAUSE), error.msg)
        self.budget.pause(limited.retry_after)
        return limited

    def _malformed(self, endpoint: str, error: Exception) -> Malformed:
        malformed = Malformed(f"{endpoint}: {error}")
        self._telemetry.rest_failed(endpoint, malformed.reason, malformed)
        return malformed


def depth_weight(levels: int) -> int:
    """Return what a snapshot of so many levels weighs."""
    return next(weight for most, weight in _DEPTH_WEIGHTS if levels <= most)


def _rows(symbol: str, first: int, limit: int) -> dict[str, str | int]:
    return {"symbol": symbol, "fromId": first, "limit": limit}


def _body(response: urllib3.BaseHTTPResponse, deadline: Deadline, endpoint: str) -> bytes:
    """Read the body, unpacked, while time and room last."""
    parts, size = [], 0
    while chunk := response.read(_CHUNK, decode_content=True):
        size += len(chunk)
        parts.append(chunk)
        if size > MAX_BODY_BYTES:
            raise _dropped(response, Malformed(f"{endpoint}: more than {MAX_BODY_BYTES} bytes"))
        if deadline.expired:
            raise _dropped(response, Unreachable(f"{endpoint}: not complete within {TOTAL_SECONDS:g} s"))
    return b"".join(parts)


def _dropped(response: urllib3.BaseHTTPResponse, error: RestError) -> RestError:
    response.close()
    return error


def _number(header: str | None) -> int | None:
    return int(header) if header and header.isascii() and header.isdigit() and len(header) < 10 else None  # noqa: PLR2004


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _pool(sockets: OpenSockets) -> urllib3.PoolManager:
    """Return a pool whose connections are known to `sockets`."""

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    manager = urllib3.PoolManager(
        maxsize=8,
        retries=False,
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, total=TOTAL_SECONDS),
        headers={"Accept-Encoding": "gzip", "User-Agent": "binance-ingestion"},
    )
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager
