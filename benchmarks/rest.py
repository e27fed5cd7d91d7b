"""The exchange's REST side, as little of it as is asked for: the symbols, and order books that are empty yet."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from benchmarks.loads import SYMBOLS

LIVE = "/live"
"""Before the path of those who ask for a snapshot of a running market; the others ask before the first update."""
_SYMBOLS = [
    {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": symbol[:-4],
        "quoteAsset": symbol[-4:],
        "filters": [{"filterType": "PRICE_FILTER", "tickSize": "0.01000000"}],
    }
    for symbol in SYMBOLS
]
_ANSWERS = {
    "/api/v3/exchangeInfo": {"timezone": "UTC", "symbols": _SYMBOLS},
    "/api/v3/depth": {"lastUpdateId": 0, "bids": [], "asks": []},  # so the load's first update, 1, follows it
    # To whoever asks while updates are coming a snapshot is newer than they are, as the exchange's are.
    f"{LIVE}/api/v3/depth": {"lastUpdateId": 10**15, "bids": [], "asks": []},
    f"{LIVE}/api/v3/exchangeInfo": {"timezone": "UTC", "symbols": _SYMBOLS},
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer one request."""
        answer = _ANSWERS.get(self.path.partition("?")[0])
        body = json.dumps({} if answer is None else answer).encode()
        self.send_response(200 if answer is not None else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class RestServer:
    """Serves while the `with` block lasts."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="rest", daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
