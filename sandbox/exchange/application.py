"""The one place that constructs: settings in, an exchange ready to start out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from sandbox.exchange.control import Control
from sandbox.exchange.core import Core
from sandbox.exchange.http_control import control_routes
from sandbox.exchange.rest import Rest

if TYPE_CHECKING:
    from sandbox.exchange.settings import Settings

_LARGEST_COMMAND = 64 * 1024 * 1024


def build(settings: Settings) -> tuple[Core, Control, web.Application, web.Application]:
    """Return the exchange, its commands, and the web applications of its public and its control port."""
    core = Core(settings)
    rest = Rest(core)
    control = Control(core, rest)
    applications = []
    for _ in range(2):
        application = web.Application(client_max_size=_LARGEST_COMMAND)
        application.add_routes(control_routes(control))
        application.add_routes(rest.routes())
        applications.append(application)
    return core, control, applications[0], applications[1]
