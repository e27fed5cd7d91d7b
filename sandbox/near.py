"""HTTP to programs on this machine, whatever proxy the machine has."""

from __future__ import annotations

from urllib.request import ProxyHandler, build_opener

_OPENER = build_opener(ProxyHandler({}))


def ask(url: str, timeout: float) -> bytes:
    """Return the body of the answer; OSError when there is none, or an error (`urllib.error.HTTPError`)."""
    with _OPENER.open(url, timeout=timeout) as answer:
        return bytes(answer.read())
