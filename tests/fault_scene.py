"""A broker, an exchange that records what it sends, a spool, and the runs of the service on them."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

from sandbox.completeness import STREAM_TYPES, Findings, Lines
from tests.broker_fixtures import fresh_topics, read_all
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.brokers import Broker, Cluster
    from sandbox.exchange import Exchange
    from tests.service_fixtures import ServiceProcess, StartService

RATE = 5000
SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT")
MEMORY_MB = 200


class Scene:
    """One broker, one exchange, one spool, and the runs of the service on them."""

    def __init__(
        self,
        exchange: Exchange,
        broker: Broker | Cluster,
        start: StartService,
        folder: Path,
        *,
        replication: int = 1,
    ) -> None:
        self.exchange = exchange
        self.broker: Any = broker
        self.topics = fresh_topics(broker.bootstrap_servers, replication=replication)
        self.spool = folder / "scene-spool"
        self.service: ServiceProcess
        self.memory_mb = 0.0
        self._start = start

    def start(self, **variables: Any) -> ServiceProcess:
        """Start the service on the same spool as every run of this scene."""
        settings = {
            "BINANCE_SYMBOLS": ",".join(SYMBOLS),
            "BINANCE_STREAM_TYPES": STREAM_TYPES,
            "CONNECTION_RECONNECT_INTERVAL": 0.2,
            "SPOOL_PATH": self.spool,
        }
        self.service = self._start(self.exchange.ws_url, self.topics, **(settings | variables))
        return self.service

    def flows(self) -> None:
        """Wait until the service is ready and events arrive in Kafka."""
        self.service.ready()
        before = self["kafka_produced"]
        self.service.wait_for(lambda: self["kafka_produced"] > before + 1000, "it flows")

    def __getitem__(self, name: str) -> Any:
        return self.service.status()[name]

    def goes_on_reading_for(self, seconds: float) -> None:
        """Check for so long that reading keeps up, memory stays bounded and the equation holds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            before = self["messages_received"]
            self.service.wait_for(lambda before=before: self["messages_received"] > before, "reading goes on", 10)
            assert balanced(self.service.status())
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))

    def drained(self, within: float = 60.0) -> None:
        """Wait until nothing is on disk any more."""
        self.service.wait_for(lambda: not self["messages_spooled"], "drained", within)

    def stop(self, expected: int = 0, number: int = signal.SIGTERM) -> dict[str, Any]:
        """Stop the service; return its last metrics, exact."""
        self.memory_mb = max(self.memory_mb, peak_memory_mb(self.service.pid))
        code = self.service.stop(number)
        final = self.service.final
        assert code == expected, final
        assert balanced(final)
        assert final["messages_in_flight"] == final["messages_buffered"] == 0
        assert self.memory_mb < MEMORY_MB
        return final

    def kill(self) -> dict[str, Any]:
        """End the service by SIGKILL; return its metrics of a moment before."""
        status = self.service.status()
        self.memory_mb = max(self.memory_mb, peak_memory_mb(self.service.pid))
        self.service.send(signal.SIGKILL)
        self.service.wait()
        return status

    def lines(self) -> Lines:
        return Lines(
            one.value or b"" for one in read_all(self.topics.bootstrap_servers, *self.topics.names, timeout=60)
        )

    def sent(self, connection: int | None = None) -> dict[str, Any]:
        return self.exchange.command("sent", connection)["streams"]

    def all_there(self, possible_duplicates: int) -> Findings:
        """Check that everything sent is in Kafka as promised."""
        findings = self.lines().compared(self.sent())
        assert findings.faults == []
        assert findings.duplicates <= possible_duplicates
        said = f"{findings}, duplicates possible {possible_duplicates}, memory peak {self.memory_mb:.0f} MB"
        print(said)  # noqa: T201 - shown with -rA
        return findings


def peak_memory_mb(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
