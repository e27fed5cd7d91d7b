"""Run one broker in the foreground, until Ctrl+C or SIGTERM: `python -m sandbox.brokers embedded --port 9092`.

Prints one JSON line when clients are answered. `cluster` is three Apache Kafka 4 that replicate, on the port and
the two after it. `fetch` downloads both Apache Kafkas instead.
Exit codes: 0 stopped on request, 1 the broker could not be fetched or started, or ended by itself.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from sandbox.brokers import BROKERS, Broker, BrokerError, Cluster, fetch_all

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_SECONDS = 0.5
_CLUSTER = "cluster"


def main() -> int:
    """Do what the command line asks and return the exit code."""
    asked = _command_line()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)  # a parent may have blocked them
    for number in _STOP_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        if asked.broker == "fetch":
            _say({"event": "fetched", "folders": [str(folder) for folder in fetch_all()]})
        else:
            _run(asked.broker, asked.port, asked.data_dir)
    except KeyboardInterrupt:
        return 0
    except BrokerError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _interrupt(*_: object) -> NoReturn:
    for number in _STOP_SIGNALS:  # stopping is already on its way and is not to be interrupted
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run(name: str, port: int | None, data_dir: Path | None) -> NoReturn:
    with ExitStack() as stack:
        folder = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}-")))
        made: Broker | Cluster = Cluster(folder, port) if name == _CLUSTER else BROKERS[name](folder, port)
        stack.enter_context(made)
        _say({"event": "broker_started", "bootstrap_servers": made.bootstrap_servers})
        _watch(made)


def _watch(broker: Broker | Cluster) -> NoReturn:
    while broker.running:
        time.sleep(_LOOK_EVERY_SECONDS)
    raise BrokerError(f"the broker ended by itself{broker.log_tail()}")


def _say(event: dict[str, str | list[str]]) -> None:
    print(json.dumps(event, separators=(",", ":")), flush=True)  # noqa: T201


def _command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.brokers", description=__doc__)
    parser.add_argument("broker", choices=[*BROKERS, _CLUSTER, "fetch"])
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="keeps data and log; without it they are in a temporary folder that is removed at the end",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
