"""The running service: composes the parts, starts them, waits, stops them in the direction of flow.

Exit codes: 0 stopped on request with everything delivered, 1 gave up or something is undelivered,
2 configuration.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

from config.settings import Settings, SettingsError, load_settings, unknown_variables
from src import signals
from src.binance_client import BinanceConnection, GaveUp, spread
from src.buffer import Buffer
from src.deadline import Deadline
from src.delivery import Delivery
from src.endpoints import Endpoints, View
from src.events import PIPELINE_VERSION, EventDecoder
from src.left_behind import take_over
from src.logger import configure_logging, get_logger
from src.memory import limit_arenas
from src.pipeline import Pipeline
from src.spool import Spool, SpoolUnusable
from src.telemetry import Telemetry

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0.12 warns when imported on 3.11
    from src.kafka_producer import KafkaSink, topic_names

_STALLED_SECONDS = 5.0

if TYPE_CHECKING:
    from src.worker import Worker


class Service:
    """All parts of one running service, composed from its settings."""

    def __init__(self, settings: Settings, spool: Spool) -> None:
        streams = settings.streams()
        groups = spread(streams)
        self._settings = settings
        self._streams = len(streams)
        self._failed: list[Worker] = []
        self._stopping = False
        self._telemetry = Telemetry(connections=len(groups))
        self._sink = KafkaSink(settings.kafka, settings.delivery, self._telemetry, self._worker_ended)
        self._spool = spool
        for left in take_over(spool, settings):
            self._telemetry.spool_taken_over(str(left.folder), left.events, left.reason)
        if redirected := spool.redirect(topic_names(settings.kafka)):
            self._telemetry.spool_redirected(redirected)
        refetchable = settings.kafka.topic_trades
        self._pipeline = Pipeline(
            [self._source(number, group) for number, group in enumerate(groups)],
            Buffer(settings.connection.batch_size, settings.connection.batch_timeout_seconds),
            Delivery(self._sink, self._spool, refetchable, self._telemetry, self._worker_ended),
            self._telemetry,
            self._worker_ended,
        )
        self._endpoints = self._open_endpoints()

    def run(self) -> int:
        """Serve until a signal or the end of a worker; return the exit code."""
        self._telemetry.started(
            version=PIPELINE_VERSION,
            streams=self._streams,
            shard_index=self._settings.shard.index,
            shard_count=self._settings.shard.count,
            url=self._settings.binance.combined_url(),
            kafka=self._settings.kafka.bootstrap_servers,
            monitoring_port=self._endpoints.port if self._endpoints else None,
        )
        if self._endpoints:
            self._endpoints.start()
        self._pipeline.start()
        interval = self._settings.service.metrics_interval_seconds
        signal.setitimer(signal.ITIMER_REAL, interval, interval)  # raises METRICS_DUE
        cause = self._wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return self._stop(cause)

    def _wait(self) -> str:
        while True:
            received = signal.sigwait(signals.RECEIVED)
            if received in signals.STOP:
                return signal.Signals(received).name
            if received == signals.METRICS_DUE:
                self._telemetry.reported()
            elif self._failed:
                return f"{self._failed[0].name} ended"

    def _stop(self, cause: str) -> int:
        self._stopping = True
        self._telemetry.stopping(cause)
        self._pipeline.stop(Deadline(self._settings.service.shutdown_timeout_seconds))
        if self._endpoints:
            self._endpoints.stop()
        for worker in self._failed:
            self._explain(worker)
        metrics = self._telemetry.reported(final=True)
        undelivered = (
            "messages_dropped",
            "messages_spooled",
            "messages_dead_lettered",
            "kafka_failed",
            "mirror_failed",
        )
        exit_code = 1 if any(metrics[name] for name in undelivered) or self._failed else 0
        self._telemetry.stopped(exit_code)
        return exit_code

    def _explain(self, worker: Worker) -> None:
        if isinstance(worker.failure, GaveUp):
            self._telemetry.gave_up(worker.failure)
        elif worker.failure is not None:
            self._telemetry.worker_failed(worker.name, worker.failure)

    def _worker_ended(self, worker: Worker) -> None:
        """Wake the main thread; runs on the thread that ends."""
        if worker.failure is not None:
            self._failed.append(worker)
            os.kill(os.getpid(), signals.WORKER_ENDED)

    def _source(self, number: int, streams: tuple[str, ...]) -> tuple[BinanceConnection, EventDecoder]:
        settings = self._settings
        url = settings.binance.combined_url()
        connection = BinanceConnection(number, url, streams, settings.connection, self._telemetry)
        return connection, EventDecoder(topic_names(settings.kafka))

    def _open_endpoints(self) -> Endpoints | None:
        host, port = self._settings.monitoring.host, self._settings.monitoring.port
        if not port:
            return None
        view = View(status=self._status, unready=self._unready, alive=self._alive)
        try:
            return Endpoints(host, port, view, self._worker_ended)
        except OSError as error:
            self._telemetry.monitoring_unavailable(host, port, error)
            return None

    def _status(self) -> dict[str, Any]:
        in_flight = self._sink.in_flight
        state = {
            "version": PIPELINE_VERSION,
            "streams": self._streams,
            "shard_index": self._settings.shard.index,
            "shard_count": self._settings.shard.count,
            "kafka_connected": self._sink.ready,
            "kafka_stalled_seconds": round(in_flight.stalled_seconds, 3),
            "in_flight_records_limit": in_flight.max_records,
            "in_flight_bytes": in_flight.bytes,
            "in_flight_bytes_limit": in_flight.max_bytes,
            "spool_bytes": self._spool.bytes,
            "spool_bytes_limit": self._spool.max_bytes,
        }
        return self._telemetry.status() | self._pipeline.state() | state

    def _unready(self) -> list[str]:
        stalled = self._sink.in_flight.stalled_seconds
        reasons = {
            "stopping": self._stopping,
            "not connected to the exchange": not self._telemetry.connected,
            "not connected to Kafka": not self._sink.ready,
            f"Kafka has acknowledged nothing for {stalled:.0f} s": stalled > _STALLED_SECONDS,
            "the spool takes no more: events are lost": self._spool.refusing,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def _alive(self) -> bool:
        """Whether every thread works, or ends because it was asked to."""
        return not self._failed and (self._stopping or self._pipeline.alive)


def serve() -> int:
    """Read the settings, run the service, return the exit code; the signals are blocked already."""
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
        return 2
    if fault := settings.share_fault():
        sys.stderr.write(f"{fault}\n")
        return 2
    try:
        spool = Spool(settings.spool)
    except SpoolUnusable as error:
        sys.stderr.write(
            f"SPOOL_PATH={str(settings.spool.path)!r}: a folder that this process can use alone; {error}\n"
        )
        return 2
    limit_arenas()
    configure_logging(settings.logging.level, settings.logging.format)
    for variable, nearest in unknown_variables().items():
        get_logger("settings").warning("unknown_variable", variable=variable, nearest=nearest)
    return Service(settings, spool).run()
