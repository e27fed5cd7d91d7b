"""The running service: composes the parts, starts them, waits, stops them in the direction of flow.

Exit codes: 0 stopped on request with everything delivered, 1 gave up or something is undelivered,
2 configuration.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from config import shards
from config.faults import SettingsError
from config.settings import RELOADED, Settings, changed_variables, load_settings, unknown_variables
from src import signals
from src.backfill import Backfill
from src.binance_client import GaveUp
from src.binance_rest import BinanceRest
from src.buffer import Buffer
from src.continuity import Continuity
from src.deadline import Deadline
from src.decoder import EventDecoder
from src.delivery import Delivery
from src.endpoints import Endpoints, View
from src.events import PIPELINE_VERSION
from src.ledger import Hours, Ledger
from src.line import Parts, Slot
from src.lines import Lines
from src.listing import Listing
from src.logger import configure_logging, end_logging, get_logger
from src.lost import Lost
from src.memory import limit_arenas
from src.other_shards import take_over
from src.outbox import Outbox
from src.pipeline import Pipeline
from src.spool import Spool, SpoolUnusable
from src.telemetry import Telemetry
from src.weight_budget import WeightBudget

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0.12 warns when imported on 3.11
    from src.checkpoints import CheckpointWriter
    from src.kafka_producer import KafkaSink, topic_names
    from src.resume import Resume

_STALLED_SECONDS = 5.0
_LISTING_SECONDS = 1.0
_LOOK_SECONDS = 0.02

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.binance import BinanceConfig
    from src.worker import Worker


class Service:
    """All parts of one running service, composed from its settings.

    Raises `SpoolUnusable` when what is on disk cannot be made ready to be sent.
    """

    def __init__(self, settings: Settings, spool: Spool) -> None:
        self._settings = settings
        self._failed: list[Worker] = []
        self._stopping = False
        self._telemetry = Telemetry(connections=0)
        self._sink = KafkaSink(settings.kafka, settings.delivery, self._telemetry, self._worker_ended)
        self._spool = spool
        for left in take_over(spool, settings, signals.stop_pending):
            self._telemetry.spool_taken_over(str(left.folder), left.events, left.reason)
        if redirected := spool.redirect(topic_names(settings.kafka), signals.stop_pending):
            self._telemetry.spool_redirected(redirected)
        refetchable = settings.kafka.topic_trades
        buffer = Buffer(settings.connection.batch_size, settings.connection.batch_timeout_seconds)
        topics = topic_names(settings.kafka)
        rest = BinanceRest(
            settings.binance.rest_base_url, WeightBudget(settings.backfill.weight_per_minute), self._telemetry
        )
        backfill = Backfill(settings.backfill, rest, topics, self._telemetry, self._worker_ended)
        outbox = Outbox(
            settings.spool.path, settings.kafka.topic_gaps, self._sink, self._telemetry, self._worker_ended
        )
        self._ledger = Ledger(outbox.post, self._telemetry)
        self._telemetry.tell_dropped = self._ledger.dropped
        self._lost = Lost()
        continuity = Continuity(
            buffer,
            backfill,
            self._ledger,
            self._telemetry,
            settings.backfill,
            standby=settings.connection.standby,
            lost=self._lost,
        )
        backfill.attach(continuity)
        delivery = Delivery(self._sink, self._spool, refetchable, self._telemetry, self._worker_ended, self._lost)
        resume = self._resume(delivery, continuity)
        self._pipeline = Pipeline(
            lambda read: Lines(settings.streams(), self._parts(read)),
            continuity,
            backfill,
            buffer,
            delivery,
            resume,
            self._checkpoints(delivery, continuity, resume),
            Hours(self._ledger, continuity.tallies, time.time_ns() // 1_000_000),
            outbox,
            self._telemetry,
            self._worker_ended,
        )
        self._listing = Listing(
            settings.binance,
            rest.listed,
            self._read_streams,
            settings.spool.path,
            self._telemetry,
            self._worker_ended,
        )
        self._endpoints = self._open_endpoints()

    def run(self) -> int:
        """Serve until a signal or the end of a worker; return the exit code."""
        self._telemetry.started(
            version=PIPELINE_VERSION,
            streams=len(self._pipeline.lines.streams),
            shard_index=self._settings.shard.index,
            shard_count=self._settings.shard.count,
            url=self._settings.binance.combined_url(),
            rest_url=self._settings.binance.rest_base_url,
            kafka=self._settings.kafka.bootstrap_servers,
            monitoring_port=self._endpoints.port if self._endpoints else None,
        )
        cause = None
        while cause is None and signals.stop_pending():  # what is on disk may not be ready to be read
            cause = self._cause_to_stop(signal.sigwaitinfo(signals.RECEIVED))
        if cause is not None:
            if self._spool.count:
                self._telemetry.recovered(self._spool.count)
            return self._stop(cause)
        self._start()
        while cause is None and not self._pipeline.may_open_lines:
            cause = self._cause_to_stop(signal.sigtimedwait(signals.RECEIVED, _LOOK_SECONDS))
        if cause is None:
            self._pipeline.open_lines()
        while cause is None:
            cause = self._cause_to_stop(signal.sigwaitinfo(signals.RECEIVED))
        signal.setitimer(signal.ITIMER_REAL, 0)
        return self._stop(cause)

    def _start(self) -> None:
        if self._endpoints:
            self._endpoints.start()
        self._pipeline.start()
        self._listing.start()
        interval = self._settings.service.metrics_interval_seconds
        signal.setitimer(signal.ITIMER_REAL, interval, interval)  # raises METRICS_DUE

    def _cause_to_stop(self, received: signal.struct_siginfo | None) -> str | None:
        number = received.si_signo if received is not None else None
        if number in signals.STOP:
            return signal.Signals(number).name
        if number == signals.METRICS_DUE:
            self._telemetry.reported()
        elif number == signals.RELOAD:
            self._reload()
        return f"{self._failed[0].name} ended" if self._failed else None

    def _reload(self) -> None:
        """Read the settings again; take over which streams are meant, and say what else has changed."""
        try:
            settings = load_settings()
        except SettingsError as error:
            self._telemetry.settings_refused(error.faults)
            return
        if fault := self._settings.model_copy(update={"binance": settings.binance}).share_fault():
            self._telemetry.settings_refused([fault])
            return
        changed = changed_variables(self._settings, settings)
        self._telemetry.settings_reread([name for name in changed if name not in RELOADED])
        _warn_of_unknown_variables()
        self._listing.choose(settings.binance)

    def _read_streams(self, streams: Sequence[str]) -> None:
        """Read of these streams exactly our share from here on; runs on the thread of the listing."""
        shard = self._settings.shard
        added, removed = self._pipeline.change(shards.share(streams, shard.index, shard.count))
        if added or removed:
            self._telemetry.streams_changed(added, removed)
            self._ledger.streams_changed(added, removed)

    def _stop(self, cause: str) -> int:
        self._stopping = True
        self._telemetry.stopping(cause)
        self._listing.close()
        self._pipeline.stop(Deadline(self._settings.service.shutdown_timeout_seconds))
        self._listing.join(_LISTING_SECONDS)
        if self._endpoints:
            self._endpoints.stop()
        for worker in self._failed:
            self._explain(worker)
        undelivered = self._telemetry.undelivered()
        self._telemetry.reported(final=True)
        exit_code = 1 if undelivered or self._failed else 0
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

    def _parts(self, read: Callable[[Slot], None]) -> Parts:
        settings = self._settings
        return Parts(
            settings.binance.combined_url(),
            settings.binance.fallback_url,
            settings.connection,
            EventDecoder(topic_names(settings.kafka)),
            self._telemetry,
            self._ledger,
            read,
            self._worker_ended,
        )

    def _resume(self, delivery: Delivery, continuity: Continuity) -> Resume:
        return Resume(
            self._settings.kafka,
            topic_names(self._settings.kafka),
            self._settings.resume.resume_timeout_seconds,
            self._spool,
            delivery,
            continuity,
            self._telemetry,
            self._worker_ended,
            lambda: self._sink.ready,
            self._is_ours,
        )

    def _checkpoints(self, delivery: Delivery, continuity: Continuity, resume: Resume) -> CheckpointWriter:
        return CheckpointWriter(
            self._settings.kafka,
            self._settings.resume.checkpoint_interval_seconds,
            self._sink,
            delivery,
            continuity,
            self._telemetry,
            self._worker_ended,
            lambda: resume.done,
            self._lost,
            f"{self._settings.shard.index}/{self._settings.shard.count}",
        )

    def _is_ours(self, stream: str) -> bool:
        """Whether our shard reads this stream, or would."""
        shard = self._settings.shard
        return shards.shard_of(stream, shard.count) == shard.index

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
            "shard_index": self._settings.shard.index,
            "shard_count": self._settings.shard.count,
            "kafka_connected": self._sink.ready,
            "kafka_stalled_seconds": round(in_flight.stalled_seconds, 3),
            "in_flight_records_limit": in_flight.max_records,
            "in_flight_bytes": in_flight.bytes,
            "in_flight_bytes_limit": in_flight.max_bytes,
            "spool_bytes": self._spool.bytes,
            "spool_bytes_limit": self._spool.max_bytes,
            "spool_room_bytes": self._spool.room,
        }
        return self._telemetry.status() | self._pipeline.state() | self._listing.state() | state

    def _unready(self) -> list[str]:
        stalled = self._sink.in_flight.stalled_seconds
        reasons = {
            "stopping": self._stopping,
            "the exchange's list of symbols has not been read yet": self._listing.waiting,
            "not connected to the exchange": not self._telemetry.connected,
            "not connected to Kafka": not self._sink.ready,
            f"Kafka has acknowledged nothing for {stalled:.0f} s": stalled > _STALLED_SECONDS,
            "the spool takes no more: events are lost": self._spool.refusing,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def _alive(self) -> bool:
        """Whether every thread works, or ends because it was asked to."""
        return not self._failed and (self._stopping or (self._pipeline.alive and self._listing.alive))


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
        return _refused(settings, error)
    limit_arenas()
    configure_logging(settings.logging.level, settings.logging.format)
    _warn_of_unknown_variables()
    _warn_of_two_markets(settings.binance)
    try:
        service = Service(settings, spool)
    except SpoolUnusable as error:
        end_logging()
        return _refused(settings, error)
    exit_code = service.run()
    end_logging()
    return exit_code


def _refused(settings: Settings, error: SpoolUnusable) -> int:
    sys.stderr.write(f"SPOOL_PATH={str(settings.spool.path)!r}: {error}; {error.fix}\n")
    return 2


def _warn_of_unknown_variables() -> None:
    for variable, nearest in unknown_variables().items():
        get_logger("settings").warning("unknown_variable", variable=variable, nearest=nearest)


def _warn_of_two_markets(binance: BinanceConfig) -> None:
    if binance.half_live:
        get_logger("settings").warning(
            "addresses_of_two_markets",
            ws_base_url=binance.ws_base_url,
            rest_base_url=binance.rest_base_url,
            fix="set BINANCE_WS_BASE_URL and BINANCE_REST_BASE_URL to the same exchange",
        )
