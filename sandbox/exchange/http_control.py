"""`/control/…` over HTTP: the JSON body of a command becomes the arguments of the method of that name."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sandbox.exchange.control import COMMANDS, Control
from sandbox.exchange.faults import ControlError

if TYPE_CHECKING:
    from collections.abc import Callable

_INTEGERS = frozenset({"connection", "first", "levels"})


def control_routes(control: Control) -> list[web.RouteDef]:
    """Every command as POST, the record as GET."""
    commands = [
        web.post(f"/control/{name.replace('_', '-')}", partial(_command, getattr(control, name)))
        for name in COMMANDS
    ]
    return [
        *commands,
        web.get("/control/connections", partial(_question, control.connections)),
        web.get("/control/sent", partial(_question, control.sent)),
        web.get("/control/market", partial(_question, control.market)),
        web.get("/control/history", partial(_question, control.history)),
        web.get("/control/book", partial(_question, control.book)),
    ]


async def _command(method: Callable[..., Any], request: web.Request) -> web.Response:
    try:
        body = await request.json() if request.can_read_body else {}
    except ValueError:
        return _refused("the body is not JSON")
    if not isinstance(body, dict):
        return _refused("the body is not a JSON object")
    if "frames" in body and "frames_" in inspect.signature(method).parameters:
        body["frames_"] = body.pop("frames")
    return await _call(method, body)


async def _question(method: Callable[..., Any], request: web.Request) -> web.Response:
    try:
        query = {name: int(text) if name in _INTEGERS else text for name, text in request.query.items()}
    except ValueError as error:
        return _refused(str(error))
    return await _call(method, query)


async def _call(method: Callable[..., Any], arguments: dict[str, Any]) -> web.Response:
    try:
        bound = inspect.signature(method).bind(**arguments)
    except TypeError as error:
        return _refused(str(error))
    try:
        answer = method(*bound.args, **bound.kwargs)
        if inspect.isawaitable(answer):
            answer = await answer
    except (ControlError, TypeError, ValueError) as error:
        return _refused(str(error))
    return web.json_response(answer)


def _refused(reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=400)
