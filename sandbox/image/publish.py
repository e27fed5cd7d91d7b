"""Publish ports as Docker's proxy does: `python -m sandbox.image.publish 127.0.0.1:9092=198.18.7.10:9092`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial

_CHUNK = 65_536


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def _connected(host: str, port: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
    except OSError:
        writer.close()
        return
    await asyncio.gather(_relay(reader, inner_writer), _relay(inner_reader, writer))


async def _publish(pairs: list[str]) -> None:
    for pair in pairs:
        outer, _, inner = pair.partition("=")
        host, _, port = outer.rpartition(":")
        inner_host, _, inner_port = inner.rpartition(":")
        await asyncio.start_server(partial(_connected, inner_host, inner_port), host, int(port))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_publish(sys.argv[1:]))
