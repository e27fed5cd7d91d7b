"""Every counter, every metric name, every log line that repeats. One method an occurrence: it counts and logs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from src.catalogue import COUNTERS, GAUGES, REASONS
from src.flow import Flow, iso
from src.logger import get_logger
from src.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from src.events import Decoded, Event

_CONNECTION_REASONS = {
    "WentSilent": "silent",
    "ConnectionLost": "closed",
    "NotOpened": "not_opened",
    "TimeoutError": "timeout",
}


class Telemetry:
    """Counts under one lock, so that a snapshot is one instant and the equation of the contract holds in it.

    received + recovered = skipped + buffered + in flight + spooled + produced + failed + dead-lettered + dropped,
    in events after array splitting.
    """

    def __init__(self, connections: int = 1, repeat_seconds: float = 60.0) -> None:
        self._log = get_logger("service")
        self._lock = threading.Lock()  # guards all counts and _flow
        self._flow = Flow()
        self._counts: Counter[str] = Counter()
        self._by_reason: dict[str, Counter[str]] = {name: Counter() for name in REASONS}
        self._dropped_by_symbol: Counter[str] = Counter()
        self._connections = connections
        self._open: set[int] = set()
        self._last_message_ms: int | None = None
        self._repeats = Repeats(repeat_seconds)

    def snapshot(self) -> dict[str, Any]:
        """Return every metric of this instant, flat, as `service_metrics` shows them."""
        with self._lock:
            return self._metrics()

    def status(self) -> dict[str, Any]:
        """Return the snapshot and, of the same instant, what flows by kind and symbol, and the latencies."""
        with self._lock:
            metrics, flow = self._metrics(), self._flow.read()
        return metrics | flow.shown()

    @property
    def connected(self) -> bool:
        """Whether every connection to the exchange is open."""
        with self._lock:
            return len(self._open) == self._connections

    def _metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {name: self._counts[name] for name in (*COUNTERS, *GAUGES)}
        metrics["connected"] = len(self._open) == self._connections
        metrics["connections_open"] = len(self._open)
        metrics["last_message_time"] = iso(self._last_message_ms)
        for name in REASONS:
            metrics[f"{name}_by_reason"] = dict(self._by_reason[name])
        metrics["messages_dropped_by_symbol"] = dict(self._dropped_by_symbol)
        metrics["producer"] = {
            "messages_sent": metrics["kafka_produced"],
            "messages_failed": metrics["kafka_failed"],
            "bytes_sent": metrics["bytes_sent"],
        }
        return metrics

    # Between the exchange and the buffer

    def received(self, decoded: Decoded, at_ms: int) -> None:
        """Count what one read from the socket held; its events are buffered from here on."""
        events, skipped = len(decoded.events), decoded.skipped
        with self._lock:
            counts = self._counts
            counts["messages_received"] += events + len(skipped)
            counts["messages_buffered"] += events
            counts["messages_skipped"] += len(skipped)
            counts["enrichment_failures"] += len(decoded.unenriched)
            counts["control_messages"] += len(decoded.replies)
            if events:
                self._last_message_ms = at_ms
                self._flow.received(decoded.events, at_ms)
            for part in skipped:
                self._by_reason["messages_skipped"][part.reason] += 1
        for part in skipped:
            self._warn("frame_skipped", part.reason, sample=part.sample.decode("utf-8", "backslashreplace"))
        for error in decoded.unenriched:
            self._warn("enrichment_failed", error)

    # Between the buffer and Kafka

    def flushed(self, events: Sequence[Event]) -> None:
        """Take note of a batch that left the buffer, numbered, on its way to Kafka or to the disk."""
        now_ms = _now_ms()
        with self._lock:
            self._flow.flushed(events, now_ms)

    def handed_over(self, events: int) -> None:
        """Count one flush of the buffer: `events` of it are in flight from here on."""
        with self._lock:
            counts = self._counts
            counts["messages_buffered"] -= events
            counts["messages_in_flight"] += events
            counts["messages_processed"] += events
            counts["buffer_flushes"] += 1

    def spooled(self, events: int) -> None:
        """Count events written to disk instead of being handed to the producer."""
        self._move(events, "messages_buffered", "messages_spooled")

    def resumed(self, events: int) -> None:
        """Count events handed to the producer from disk."""
        self._move(events, "messages_spooled", "messages_in_flight", also="messages_processed")

    def returned(self, events: int, possible_duplicates: int) -> None:
        """Count events that came back from the producer and are on disk, to be sent again."""
        self._move(events, "messages_in_flight", "messages_spooled")
        with self._lock:
            self._counts["possible_duplicates"] += possible_duplicates

    def recovered(self, events: int, possible_duplicates: int = 0) -> None:
        """Count what an earlier run has left on disk, and how much of it that run may have sent."""
        with self._lock:
            self._counts["messages_recovered"] += events
            self._counts["messages_spooled"] += events
            self._counts["possible_duplicates"] += possible_duplicates
        self._log.info("spool_recovered", events=events)

    def spool_redirected(self, events: int) -> None:
        """Log that what an earlier run has left was meant for topics of other settings."""
        self._log.warning(
            "spool_redirected", events=events, reason="their topics are not in the settings any more"
        )

    def dropped(self, events: Sequence[Event], reason: str, was: str = "buffered", error: str = "") -> None:
        """Count events that are lost, by reason and by symbol."""
        if not events:
            return
        symbols = Counter((event.route.key or b"").decode() for event in events)
        with self._lock:
            self._counts[f"messages_{was}"] -= len(events)
            self._counts["messages_dropped"] += len(events)
            self._by_reason["messages_dropped"][reason] += len(events)
            self._dropped_by_symbol.update(symbols)
        self._error("events_dropped", reason, count=len(events), symbols=dict(symbols.most_common(5)), error=error)

    def dead_lettered(self, events: Sequence[Event], reason: str, error: str, was: str = "in_flight") -> None:
        """Count events that Kafka will never take."""
        self._move(len(events), f"messages_{was}", "messages_dead_lettered")
        topic = events[0].route.topic
        self._error("events_dead_lettered", reason, count=len(events), topic=topic, error=error)

    def dead_letter_refused(self, error: BaseException) -> None:
        """Log that the topic of the dead letters did not take one either; it stays in the table."""
        self._warn("dead_letter_refused", type(error).__name__, error=str(error))

    def dead_letter_topic_unavailable(self, topic: str, error: BaseException) -> None:
        """Log that dead letters stay in their table; the data flows."""
        self._warn("dead_letter_topic_unavailable", type(error).__name__, topic=topic, error=str(error))

    def not_secured(self, events: int, error: str) -> None:
        """Log that what is in flight could not be written to disk as well; it may still be acknowledged."""
        self._error("in_flight_not_secured", "disk", count=events, error=error)

    def spool_failing(self, error: str) -> None:
        """Log that the disk did not give or delete what it holds; it is tried again."""
        self._error("spool_failing", "disk", error=error)

    def spool_damaged(self, path: str) -> None:
        """Log that a file was found damaged and set aside."""
        self._log.error("spool_damaged", set_aside_as=path)

    def lost_on_disk(self, resuming: int) -> None:
        """Count what lay in a file that was set aside; `resuming` events of it were read before."""
        with self._lock:
            lost = self._counts["messages_spooled"] - resuming
            self._counts["messages_spooled"] -= lost
            self._counts["messages_dropped"] += lost
            if lost:
                self._by_reason["messages_dropped"]["spool_damaged"] += lost
        if lost:
            self._error("events_dropped", "spool_damaged", count=lost)

    def spooling_started(self) -> None:
        """Log that events go to disk from here on."""
        self._log.warning("spooling_started")

    def spooling_ended(self) -> None:
        """Log that the disk is empty and events go straight to Kafka again."""
        self._log.info("spooling_ended")

    def left_behind(self) -> None:
        """Count what a thread that died has left in memory; nothing after an orderly end."""
        with self._lock:
            buffered, in_flight = self._counts["messages_buffered"], self._counts["messages_in_flight"]
            for count, where in ((buffered, "messages_buffered"), (in_flight, "messages_in_flight")):
                self._counts[where] -= count
                self._counts["messages_dropped"] += count
                if count:
                    self._by_reason["messages_dropped"]["stage_failed"] += count
        if buffered or in_flight:
            self._error("events_dropped", "stage_failed", count=buffered + in_flight)

    def _move(self, events: int, source: str, target: str, also: str | None = None) -> None:
        with self._lock:
            self._counts[source] -= events
            self._counts[target] += events
            if also:
                self._counts[also] += events

    def acknowledged(self, events: Sequence[Event], size: int) -> None:
        """Count events whose records Kafka acknowledged, `size` bytes of values in all."""
        now_ms = _now_ms()
        with self._lock:
            counts = self._counts
            counts["messages_in_flight"] -= len(events)
            counts["kafka_produced"] += len(events)
            counts["bytes_sent"] += size
            self._flow.acknowledged(events, now_ms)

    def producer_broken_off(self, error: BaseException) -> None:
        """Log that the producer lost a record and is replaced; everything unacknowledged is sent again."""
        self._count("producer_break_offs")
        self._warn("producer_broken_off", type(error).__name__, error=str(error))

    def mirrored(self, copies: int) -> None:
        """Count acknowledged copies to the raw topic, apart from the events themselves."""
        with self._lock:
            self._counts["mirror_produced"] += copies

    def mirror_failed(self, copies: int, reason: str) -> None:
        """Count copies to the raw topic that are not there."""
        with self._lock:
            self._counts["mirror_failed"] += copies
        self._error("mirror_failed", reason, count=copies)

    def topics_created(self, names: list[str]) -> None:
        """Log topics that were missing."""
        self._log.info("topics_created", topics=names)

    def kafka_connected(self, partitions: dict[str, int], *, batchwise: bool) -> None:
        """Log that records flow: partitions by topic, and whether whole batches are appended at once."""
        self._log.info("kafka_connected", partitions=partitions, batchwise=batchwise)
        if not batchwise:
            self._log.warning("kafka_library_changed", effect="records are sent one by one, slower")

    def kafka_unavailable(
        self, error: BaseException, bootstrap_servers: Sequence[str], check: str | None = None
    ) -> None:
        """Log that the brokers or a topic cannot be reached; events wait meanwhile."""
        self._count("kafka_connection_failures")
        cause = f"{type(error).__name__}: {error}"
        self._warn("kafka_unavailable", cause, check=check, bootstrap_servers=bootstrap_servers)

    # The connection to the exchange

    def connection_attempt(self, connection: int, url: str, *, again: bool) -> None:
        """Count a try to connect."""
        with self._lock:
            self._counts["connection_attempts"] += 1
            self._counts["reconnect_count"] += again
        self._log.info("connection_attempted", connection=connection, url=url)

    def connection_opened(self, connection: int, streams: int) -> None:
        """Log a completed handshake; subscribing follows."""
        with self._lock:
            self._open.add(connection)
        self._log.info("connection_opened", connection=connection, streams=streams)

    def connection_closed(self, connection: int) -> None:
        """Note the end that was asked for."""
        with self._lock:
            self._open.discard(connection)
        self._log.info("connection_closed", connection=connection)

    def goodbye_unanswered(self, connection: int, error: BaseException) -> None:
        """Log that the exchange did not answer our close frame; what it still sent may be lost."""
        self._count("goodbyes_unanswered")
        self._log.warning("goodbye_unanswered", connection=connection, error=str(error) or type(error).__name__)

    def connection_failed(self, connection: int, error: BaseException, failures: int) -> None:
        """Count a connection that could not be opened or was lost; `failures` in a row so far."""
        reason = _CONNECTION_REASONS.get(type(error).__name__, "other")
        with self._lock:
            was_open = connection in self._open
            self._open.discard(connection)
            self._counts["connection_failures"] += 1
            self._by_reason["connection_failures"][reason] += 1
        event = "connection_lost" if was_open else "connection_failed"
        cause = f"{type(error).__name__}: {error}".removesuffix(": ")
        self._log.warning(event, connection=connection, error=cause, failures_in_a_row=failures)

    def reconnect_scheduled(self, connection: int, attempt: int, delay: float) -> None:
        """Log the wait before the next attempt."""
        self._log.info("reconnect_scheduled", connection=connection, attempt=attempt, delay_seconds=delay)

    def subscribed(self, connection: int, streams: int) -> None:
        """Log that the exchange confirmed a SUBSCRIBE."""
        self._log.info("subscription_confirmed", connection=connection, streams=streams)

    def subscription_unconfirmed(self, connection: int, streams: list[str]) -> None:
        """Log a SUBSCRIBE that got no answer; data may come all the same."""
        self._count("streams_unconfirmed", len(streams))
        self._log.warning("subscription_unconfirmed", connection=connection, streams=streams)

    def exchange_error(self, connection: int, error: str, streams: list[str] | None) -> None:
        """Log an error frame of the exchange, with the streams that it is about."""
        self._count("exchange_errors")
        self._count("streams_refused", len(streams or ()))
        self._log.error("exchange_error", connection=connection, error=error, streams=streams)

    # The service itself

    def started(self, **settings: object) -> None:
        """Log what the service set out to do."""
        self._log.info("service_started", **settings)

    def worker_failed(self, name: str, error: BaseException) -> None:
        """Log why a thread ended that should not have."""
        self._log.error("worker_failed", worker=name, exc_info=error)

    def gave_up(self, error: BaseException) -> None:
        """Log that the exchange could not be reached as often as the settings allow."""
        self._log.error("gave_up", error=str(error))

    def monitoring_unavailable(self, host: str, port: int, error: OSError) -> None:
        """Log that the HTTP endpoints could not be opened; the data flows all the same."""
        fix = "set MONITORING_PORT to a free port, or to 0"
        self._log.error("monitoring_unavailable", host=host, port=port, error=str(error), fix=fix)

    def stopping(self, cause: str) -> None:
        """Log why the service stops."""
        self._log.info("service_stopping", cause=cause)

    def stopped(self, exit_code: int) -> None:
        """Log the end; the last line of the service."""
        self._log.info("service_stopped", exit_code=exit_code)

    def reported(self, *, final: bool = False) -> dict[str, Any]:
        """Log and return the snapshot."""
        metrics = self.snapshot()
        self._log.info("service_metrics", **metrics, **({"final": True} if final else {}))
        return metrics

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] += by

    def _warn(self, event: str, reason: str, count: int = 1, **context: object) -> None:
        if (counted := self._repeats.add((event, reason), count)) is not None:
            self._log.warning(event, reason=reason, count=counted, **context)

    def _error(self, event: str, reason: str, count: int = 1, **context: object) -> None:
        if (counted := self._repeats.add((event, reason), count)) is not None:
            self._log.error(event, reason=reason, count=counted, **context)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
