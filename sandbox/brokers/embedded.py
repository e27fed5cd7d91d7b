"""The embedded broker: noida-db from PyPI, one small native program that speaks the Kafka protocol.

Ready in a tenth of a second, for development, demo and tests; not for production: it keeps all records in
memory and writes the whole of them to one JSON file, a second or so after something changed. A record that it
acknowledged less than two seconds ago is lost when it is killed, and long runs grow. It deletes what is past a
topic's retention within seconds. (Seen with 0.2.3.)
"""

from __future__ import annotations

import os
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from sandbox.brokers.broker import Broker
from sandbox.brokers.child import BrokerError, Child
from sandbox.brokers.probe import kafka_answers

_QUIET_SECONDS = 2.0
_POLL_SECONDS = 0.05


class EmbeddedBroker(Broker):
    """noida-db with only its Kafka service; the log is `broker.log` in the folder, the data below `data`."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder, port)
        answers = partial(kafka_answers, self.port)
        self._broker = Child("the embedded broker", self._command, log=folder / "broker.log", answers=answers)

    def wait_until_durable(self) -> None:
        """Wait until its data file has not changed for 2 s: it is written about 1 s after the last change."""
        called = time.time()
        while time.time() - max(called, self._written_at()) < _QUIET_SECONDS:
            time.sleep(_POLL_SECONDS)

    def _written_at(self) -> float:
        try:
            return (self.folder / "data" / "kafka.json").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _children(self) -> tuple[Child, ...]:
        return (self._broker,)

    def _command(self) -> list[str]:
        data = ["--data-dir", str(self.folder / "data")]
        return [str(_binary()), "start", "--only", "kafka", "--kafka-port", str(self.port), *data]

    def _prepare(self) -> None:
        """Nothing: it makes its folders itself."""


def _binary() -> Path:
    # The program itself, not the console script of the same name: the script runs it as a child and does not
    # pass signals on, so stopping the script would leave the broker running.
    spec = find_spec("noida_db")
    if spec is None or spec.origin is None:
        raise BrokerError("the package noida-db is not installed: pip install -r requirements-sandbox.txt")
    binary = Path(spec.origin).with_name("noida-db.exe" if os.name == "nt" else "noida-db")
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    return binary
