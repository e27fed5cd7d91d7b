"""Small questions over TCP: which port is free, does a Kafka broker answer, does a ZooKeeper answer."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections import deque

_HOST = "127.0.0.1"
_TIMEOUT_SECONDS = 2.0
# Below 32768, where Linux takes the ports of outgoing connections from: a client that retries a stopped
# broker's port from that range can connect to itself and hold the port that the broker wants back.
_PORTS = range(20_000, 32_000)
_METADATA_V4_NO_TOPICS = struct.pack(">hhih", 3, 4, 1, -1) + struct.pack(">iB", 0, 0)


_CLAIMED_SECONDS = 60.0
"""By then whoever asked for a port listens on it."""
_claims: deque[tuple[float, int]] = deque()
"""Until when a port is claimed, and the descriptor that claims it."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now and that no outgoing connection will take.

    Nobody else is given it within the next minute, in no process of this machine.
    """
    while _claims and _claims[0][0] < time.monotonic():
        os.close(_claims.popleft()[1])
    for port in random.sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe, socket.socket(socket.AF_UNIX) as claim:
            claim.bind(f"\0free-port-{port}")  # Linux' abstract names end with their descriptor
            probe.bind((_HOST, port))
            _claims.append((time.monotonic() + _CLAIMED_SECONDS, claim.detach()))
            return port
    raise OSError("no free port on 127.0.0.1")


def is_taken(port: int) -> bool:
    """Whether something on 127.0.0.1 accepts connections on `port`."""
    with socket.socket() as probe:
        probe.settimeout(_TIMEOUT_SECONDS)
        return probe.connect_ex((_HOST, port)) == 0


def kafka_answers(port: int) -> bool:
    """Whether a broker on 127.0.0.1 answers and knows of a live broker.

    A listening socket says too little: a KRaft broker listens before its controller has let it in.
    """
    return live_brokers(port) > 0


def live_brokers(port: int) -> int:
    """Return how many brokers one on 127.0.0.1 knows of (Metadata request, version 4); 0 without an answer."""
    reply = _ask(port, struct.pack(">i", len(_METADATA_V4_NO_TOPICS)) + _METADATA_V4_NO_TOPICS, 16)
    if len(reply) < 16:  # noqa: PLR2004 - length, correlation id, throttle time, number of brokers
        return 0
    return int(struct.unpack_from(">i", reply, 12)[0])


def zookeeper_answers(port: int) -> bool:
    """Whether a ZooKeeper on 127.0.0.1 is up and remembers no broker.

    A broker that was killed stays registered until its session ends, and its successor with the same id would
    find the old entry (`NodeExists`) and give up.
    """
    dump = _ask(port, b"dump", 65_536)
    return dump.startswith(b"SessionTracker") and b"/brokers/ids/" not in dump


def _ask(port: int, question: bytes, length: int) -> bytes:
    """Send `question`; return the first `length` bytes of the answer, fewer when the peer ends or is silent."""
    answer = b""
    try:
        with socket.create_connection((_HOST, port), _TIMEOUT_SECONDS) as peer:
            peer.sendall(question)
            while len(answer) < length and (piece := peer.recv(length - len(answer))):
                answer += piece
    except OSError:
        return b""
    return answer
