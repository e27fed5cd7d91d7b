"""The load generator: a WebSocket server that sends frames encoded beforehand, in blocks, at a steady rate.

`python -m benchmarks.load --rate 20000 --seconds 10 --mix trades` prints one JSON line with its URL, waits
for one client to send something (its SUBSCRIBE), sends `rate * seconds` frames, answers a close frame, and
prints a second JSON line: frames sent, seconds taken, how far it fell behind at worst. Its sends block when
the client does not read: then it falls behind, and says so. Frames carry ids that count up by one.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import socket
import sys
import time
from functools import cache

from sandbox.exchange.frames import close_frame, text_frame

STARTED_MS = int(time.time() * 1000)  # Kafka's retention goes by event time: an old one is deleted at once
SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "ADAUSDT", "XRPUSDT")
TICK = 0.005
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


def trade(number: int) -> bytes:
    """Return an aggTrade frame as the combined endpoint sends it, some 200 bytes."""
    symbol = SYMBOLS[number % len(SYMBOLS)]
    now = STARTED_MS + number // 100
    return (
        b'{"stream":"%b@aggTrade","data":{"e":"aggTrade","E":%d,"s":"%b","a":%d,"p":"61837.63000000",'
        b'"q":"0.02000000","f":%d,"l":%d,"T":%d,"m":true,"M":true}}'
        % (symbol.lower().encode(), now, symbol.encode(), number, number, number, now)
    )


def depth(number: int, levels: int) -> bytes:
    """Return a depthUpdate frame with that many changed levels; its `u` is the frame's number."""
    symbol = SYMBOLS[number % len(SYMBOLS)]
    bids, asks = _levels(levels - levels // 2), _levels(levels // 2)
    return (
        b'{"stream":"%b@depth@100ms","data":{"e":"depthUpdate","E":%d,"s":"%b","U":%d,"u":%d,"b":[%b],"a":[%b]}}'
        % (symbol.lower().encode(), STARTED_MS + number // 100, symbol.encode(), number, number, bids, asks)
    )


@cache
def _levels(count: int) -> bytes:
    return b",".join(b'["%d.%02d000000","%d.12345000"]' % (61000 + i, i % 100, i) for i in range(count))


def frames(count: int, mix: str) -> list[bytes]:
    """Encode `count` WebSocket frames: aggTrade only, or 60 % depth of recorded sizes and 40 % trades."""
    if mix == "trades":
        return [text_frame(trade(number)) for number in range(count)]
    chooser = random.Random(7)
    sizes = [chooser.choice((2, 5, 10, 20, 30, 40, 60)) for _ in range(1000)]  # 1.1 KB on average, as recorded
    kinds = [chooser.random() < 0.6 for _ in range(1000)]  # noqa: PLR2004
    return [
        text_frame(depth(number, sizes[number % 1000]) if kinds[number % 1000] else trade(number))
        for number in range(count)
    ]


def serve(encoded: list[bytes], rate: float) -> dict[str, float]:
    """Wait for one client, send everything at `rate` frames a second, say goodbye; return what happened."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}/ws"
    _say(event="load_started", ws=url, frames=len(encoded))
    client, _ = listener.accept()
    listener.close()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    _shake_hands(client)
    client.recv(65536)  # the SUBSCRIBE
    client.sendall(text_frame(b'{"result":null,"id":1}'))
    time.sleep(1.0)  # Kafka's side of the service opens meanwhile
    _say(event="load_sending", at=time.time())
    started_at = time.monotonic()
    behind = _send(client, encoded, rate)
    seconds = time.monotonic() - started_at
    _wait_for_goodbye(client)
    return {"frames": len(encoded), "seconds": round(seconds, 3), "behind_seconds": round(behind, 3)}


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _shake_hands(client: socket.socket) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        request += client.recv(65536)
    headers = dict(line.split(b": ", 1) for line in request.split(b"\r\n")[1:] if b": " in line)
    accept = base64.b64encode(hashlib.sha1(headers[b"Sec-WebSocket-Key"] + _GUID).digest())  # noqa: S324 - RFC 6455
    client.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def _send(client: socket.socket, encoded: list[bytes], rate: float) -> float:
    """Send what is due at each tick in one block; return by how many seconds it was late at worst."""
    started_at, sent, behind = time.monotonic(), 0, 0.0
    while sent < len(encoded):
        due = min(int((time.monotonic() - started_at) * rate), len(encoded))
        if due > sent:
            client.sendall(b"".join(encoded[sent:due]))
            behind = max(behind, time.monotonic() - started_at - due / rate)
            sent = due
        time.sleep(TICK)
    return behind


def _wait_for_goodbye(client: socket.socket) -> None:
    """Answer the client's close frame; anything else that it sends is ignored."""
    client.settimeout(120.0)
    while received := client.recv(65536):
        if received[0] & 0x0F == 0x8:  # noqa: PLR2004 - the opcode of a close frame
            client.sendall(close_frame(1000))
            break
    client.close()


def main() -> None:
    """Read the arguments and serve once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=20_000, help="frames a second")
    parser.add_argument("--seconds", type=float, default=10, help="for how long")
    parser.add_argument("--mix", choices=("trades", "realistic"), default="trades")
    arguments = parser.parse_args()
    report = serve(frames(int(arguments.rate * arguments.seconds), arguments.mix), arguments.rate)
    _say(event="load_finished", **report)


if __name__ == "__main__":
    main()
