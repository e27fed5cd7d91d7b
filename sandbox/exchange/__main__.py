"""`python -m sandbox.exchange`: the exchange as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from typing import Any

from sandbox.exchange.application import build
from sandbox.exchange.faults import ControlError
from sandbox.exchange.settings import SLOW_CLIENT_POLICIES, Limits, Mix, RestRules, Settings, SettingsError
from sandbox.exchange.symbols import symbol_names

_DEFAULTS = Settings()


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; 0 then, 2 for a wrong setting."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        settings = _settings(chosen)
    except SettingsError as error:
        parser.error(str(error))
    replay = (
        {
            "path": chosen.replay,
            "speed": chosen.replay_speed,
            "repeat": chosen.replay_repeat,
            "to_all": chosen.replay_to_all,
        }
        if chosen.replay
        else {}
    )
    return asyncio.run(_serve(settings, replay))


async def _serve(settings: Settings, replay: dict[str, Any]) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    core, control, public, private = build(settings)
    try:
        if replay:
            control.replay(on_subscribe=True, **replay)
        await core.start(public, private)
    except ControlError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}\n")
        await core.stop()
        return 1
    base = f"{settings.host}:{core.port}"
    started = {
        "event": "exchange_started",
        "ws": f"ws://{base}/ws",
        "stream": f"ws://{base}/stream",
        "rest": f"http://{base}",
        "control": f"http://{settings.host}:{core.control_port}",
        "seed": settings.seed,
        "rate": settings.rate,
        "symbols": len(settings.symbols),
    }
    sys.stdout.write(json.dumps(started) + "\n")
    sys.stdout.flush()
    waits = [asyncio.ensure_future(event.wait()) for event in (stopped, core.failed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await core.stop()
    return 1 if core.failure is not None else 0


def _settings(chosen: argparse.Namespace) -> Settings:
    limits = Limits(
        ping_interval_s=chosen.ping_interval,
        pong_timeout_s=chosen.pong_timeout,
        lifetime_s=chosen.lifetime,
        shutdown_notice_s=chosen.shutdown_notice,
        frames_per_second=chosen.client_frames_per_second,
        streams=chosen.streams_per_connection,
        subscribe_frame_bytes=chosen.subscribe_frame_bytes,
        close_timeout_s=chosen.close_timeout,
        unsent_bytes=chosen.unsent_bytes,
        slow_client=chosen.slow_client,
    )
    rest = RestRules(
        weight_per_minute=chosen.rest_weight,
        refusals_before_ban=chosen.rest_refusals_before_ban,
        ban_s=chosen.rest_ban,
        lag_s=chosen.rest_lag,
    )
    return Settings(
        host=chosen.host,
        port=chosen.port,
        control_port=chosen.control_port,
        seed=chosen.seed,
        rate=chosen.rate,
        mix=Mix.parse(chosen.mix),
        depth_levels=chosen.depth_levels,
        symbols=symbol_names(chosen.symbols),
        status=chosen.status,
        start_ms=chosen.start_ms,
        tick_ms=chosen.tick_ms,
        history=chosen.history,
        block_trade_interval_s=chosen.block_trade_interval,
        limits=limits,
        rest=rest,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.exchange",
        description="A simulated Binance Spot exchange for development, tests and benchmarks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _add_market(parser.add_argument_group("market"))
    _add_network(parser.add_argument_group("network"))
    _add_replay(parser.add_argument_group("replay, begun at the first subscription"))
    _add_rules(parser.add_argument_group("rules of the exchange, times in seconds"))
    return parser


def _add_market(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    mix = ",".join(f"{kind}={share:g}" for kind, share in vars(_DEFAULTS.mix).items())
    add("--seed", type=int, default=_DEFAULTS.seed, help="same seed, same market")
    add("--rate", type=float, default=100.0, help="messages a second; 0: only what is commanded")
    add("--mix", default=mix, metavar="KIND=SHARE,…", help="kinds not named get no share")
    add("--depth-levels", type=int, default=_DEFAULTS.depth_levels, help="changes for each depth message")
    add("--symbols", default=",".join(_DEFAULTS.symbols), help="names, or how many")
    add("--status", default=_DEFAULTS.status, help="what exchangeInfo says of the symbols")
    add("--start-ms", type=int, default=None, help="the market's first moment, epoch ms; none: now")
    add("--tick-ms", type=int, default=_DEFAULTS.tick_ms, help="how often the market moves")
    add("--history", type=int, default=_DEFAULTS.history, help="trades kept for each symbol")
    add("--block-trade-interval", type=float, default=_DEFAULTS.block_trade_interval_s, help="0: none")


def _add_network(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", default=_DEFAULTS.host, help="address to listen on")
    add("--port", type=int, default=9443, help="WebSocket, REST and control; 0: a free one")
    add("--control-port", type=int, default=0, help="REST and control, open even while refusing; 0: a free one")


def _add_replay(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--replay", default="", metavar="FILE", help="a .jsonl of raw frames, .recv_ts beside it")
    add("--replay-speed", type=float, default=1.0, help="1: its own pace, 10: ten times; 0: as fast as it is read")
    add("--replay-repeat", type=int, default=1, help="how often; ids come again")
    add("--replay-to-all", action="store_true", help="whatever the connections subscribed to")


def _add_rules(group: argparse._ArgumentGroup) -> None:
    limits, rest, add = _DEFAULTS.limits, _DEFAULTS.rest, group.add_argument
    add("--ping-interval", type=float, default=limits.ping_interval_s, help="server pings")
    add("--pong-timeout", type=float, default=limits.pong_timeout_s, help="without the matching pong: 1008")
    add("--lifetime", type=float, default=limits.lifetime_s, help="of a connection")
    add("--shutdown-notice", type=float, default=limits.shutdown_notice_s, help="serverShutdown before its end")
    add("--client-frames-per-second", type=int, default=limits.frames_per_second, help="more: 1008")
    add("--streams-per-connection", type=int, default=limits.streams, help="more: error 4")
    add("--subscribe-frame-bytes", type=int, default=limits.subscribe_frame_bytes, help="longer: no answer")
    add("--close-timeout", type=float, default=limits.close_timeout_s, help="wait for the client's close frame")
    add("--unsent-bytes", type=int, default=limits.unsent_bytes, help="bound on what a client has not read")
    add(
        "--slow-client",
        choices=SLOW_CLIENT_POLICIES,
        default=limits.slow_client,
        help="at that bound; wait: before",
    )
    add("--rest-weight", type=int, default=rest.weight_per_minute, help="a minute, then 429")
    add("--rest-refusals-before-ban", type=int, default=rest.refusals_before_ban, help="429s before 418")
    add("--rest-ban", type=float, default=rest.ban_s, help="length of a ban")
    add("--rest-lag", type=float, default=rest.lag_s, help="how far trades and klines lag behind the streams")


if __name__ == "__main__":
    sys.exit(main())
