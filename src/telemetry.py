"""Every counter, every metric name, every log line that repeats. One method an occurrence: it counts and logs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from src.catalogue import COUNTERS, GAUGES, REASONS
from src.flow import Flow, iso
from src.logger import get_logger
from src.lost import DEAD_LETTER, ids_of
from src.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from src.events import Decoded, Event
    from src.holes import Gap
    from src.lost import Ids

_NAMED = 100  # streams in one log line
_READS_NOTED = 256
_MANY_AT_ONCE = 64
"""After so many reads from the socket, or one with so many events, these are counted, whoever asks or not."""
_ON_DISK = {"messages_spooled", "messages_dead_lettered"}
_UNDELIVERED = ("messages_dropped", "messages_spooled", "messages_dead_lettered", "kafka_failed", "mirror_failed")


class Telemetry:
    """Counts under one lock, so that a snapshot is one instant and the equation of the contract holds in it.

    received + recovered + backfilled = skipped + duplicate + buffered + in flight + spooled + produced + failed
    + dead-lettered + dropped + already delivered, in events after array splitting.
    """

    def __init__(self, connections: int = 1, repeat_seconds: float = 60.0) -> None:
        self._log = get_logger("service")
        self._lock = threading.Lock()  # guards all counts and _flow
        self._flow = Flow()
        self._reads: list[tuple[list[Event], int]] = []
        """Events of reads from the socket, and when, ms; noted without the lock, counted and taken out under it.

        Appending and cutting off the front are each one step of the interpreter. A read is noted before its events
        can move on, and whoever tells a count counts the reads first: so the equation holds in what is told.
        """
        self._counts: Counter[str] = Counter()
        self._by_reason: dict[str, Counter[str]] = {name: Counter() for name in REASONS}
        self._dropped_by_symbol: Counter[str] = Counter()
        self._by_endpoint: Counter[str] = Counter()
        self._lines = set(range(connections))
        self._open: set[tuple[int, int]] = set()  # line and slot
        self._last_message_ms: int | None = None
        self._repeats = Repeats(repeat_seconds)
        self.tell_dropped: Callable[[Ids, str], None] = _nobody_asked
        """Who is told which ids are not in Kafka, and why."""

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
        """Whether every stream is read: each line has an open connection, and there is one at all."""
        with self._lock:
            return self._all_open()

    def _all_open(self) -> bool:
        return bool(self._lines) and self._lines <= {line for line, _ in self._open}

    def _metrics(self) -> dict[str, Any]:
        self._count_reads()
        metrics: dict[str, Any] = {name: self._counts[name] for name in (*COUNTERS, *GAUGES)}
        metrics["connected"] = self._all_open()
        metrics["connections_open"] = len(self._open)
        metrics["last_message_time"] = iso(self._last_message_ms)
        for name in REASONS:
            metrics[f"{name}_by_reason"] = dict(self._by_reason[name])
        metrics["messages_dropped_by_symbol"] = dict(self._dropped_by_symbol)
        metrics["rest_requests_by_endpoint"] = dict(self._by_endpoint)
        metrics["producer"] = {
            "messages_sent": metrics["kafka_produced"],
            "messages_failed": metrics["kafka_failed"],
            "bytes_sent": metrics["bytes_sent"],
        }
        return metrics

    # Between the exchange and the buffer

    def received(self, decoded: Decoded, at_ms: int) -> None:
        """Count what one read from the socket held; its events are buffered from here on.

        A few events are only noted here: a thread that has just been woken finds the caches cold, and counting is
        several times cheaper for many reads at a flush.
        """
        if decoded.events:
            self._reads.append((decoded.events, at_ms))
            if len(decoded.events) >= _MANY_AT_ONCE or len(self._reads) >= _READS_NOTED:
                with self._lock:
                    self._count_reads()
        skipped, unenriched = decoded.skipped, decoded.unenriched
        if not (skipped or unenriched or decoded.replies):
            return
        with self._lock:
            counts = self._counts
            counts["messages_received"] += len(skipped)
            counts["messages_skipped"] += len(skipped)
            counts["enrichment_failures"] += len(unenriched)
            counts["control_messages"] += len(decoded.replies)
            for part in skipped:
                self._by_reason["messages_skipped"][part.reason] += 1
        for part in skipped:
            self._warn("frame_skipped", part.reason, sample=part.sample.decode("utf-8", "backslashreplace"))
        for error in unenriched:
            self._warn("enrichment_failed", error)

    def _count_reads(self) -> None:
        """Count what was noted; under the lock."""
        if not self._reads:
            return
        reads = self._reads[:]
        del self._reads[: len(reads)]  # more may have been noted meanwhile
        count = sum(len(events) for events, _ in reads)
        self._counts["messages_received"] += count
        self._counts["messages_buffered"] += count
        self._last_message_ms = reads[-1][1]
        self._flow.received(reads)

    def duplicates(self, events: int) -> None:
        """Count events that were left out because they had been there."""
        self._move(events, "messages_buffered", "messages_duplicate")

    # What was missed, over REST

    def backfilled(self, events: int) -> None:
        """Count events that came over REST and were wanted; they are buffered from here on."""
        with self._lock:
            self._counts["messages_backfilled"] += events
            self._counts["messages_buffered"] += events

    def misnumbered(self, events: int) -> None:
        """Count events whose ids the events behind them gave the lie; they are left out and fetched anew."""
        self._move(events, "messages_buffered", "messages_skipped")
        with self._lock:
            self._by_reason["messages_skipped"]["misnumbered"] += events
        self._warn("events_misnumbered", "misnumbered", events)

    def saved_by_standby(self, events: int) -> None:
        """Count events that only one of two connections for the same streams brought."""
        self._count("messages_saved_by_standby", events)

    def snapshot_delayed(self, stream: str, reason: str) -> None:
        """Log that updates of a book pass without the snapshot that belongs before them; it comes later."""
        self._warn("snapshot_delayed", reason, stream=stream)

    def snapshot_taken(self, stream: str, last_update_id: int) -> None:
        """Count a snapshot of an order book that is on its way to the depth topic."""
        self._count("snapshots_taken")
        self._log.info("snapshot_taken", stream=stream, last_update_id=last_update_id)

    def rest_requested(self, endpoint: str) -> None:
        """Count a request to the exchange's REST interface."""
        with self._lock:
            self._counts["rest_requests"] += 1
            self._by_endpoint[endpoint] += 1

    def rest_weight(self, used: int) -> None:
        """Take note of the weight that the exchange says was used in this minute."""
        with self._lock:
            self._counts["rest_weight_used"] = used

    def rest_failed(self, endpoint: str, reason: str, error: BaseException) -> None:
        """Count a request that brought nothing usable; what it was for is asked for again."""
        with self._lock:
            self._counts["rest_failures"] += 1
            self._by_reason["rest_failures"][reason] += 1
        self._warn("rest_failed", reason, endpoint=endpoint, error=str(error))

    # Between the buffer and Kafka

    def flushed(self, events: Sequence[Event]) -> None:
        """Take note of a batch that left the buffer, numbered, on its way to Kafka or to the disk."""
        now_ms = _now_ms()
        with self._lock:
            self._count_reads()
            self._counts["buffer_flushes"] += 1
            self._flow.flushed(events, now_ms)

    def offered(self, events: int, was: str = "buffered") -> None:
        """Count events as in flight before the producer has them: they may be acknowledged at any moment then."""
        self._move(events, f"messages_{was}", "messages_in_flight")

    def handed_over(self, events: int, refused: int = 0, was: str = "buffered") -> None:
        """Count what the producer took of events that were offered; what it refused is where it was."""
        with self._lock:
            counts = self._counts
            counts["messages_processed"] += events
            counts["messages_in_flight"] -= refused
            counts[f"messages_{was}"] += refused

    def spooled(self, events: int) -> None:
        """Count events written to disk instead of being handed to the producer."""
        self._move(events, "messages_buffered", "messages_spooled")

    def returned(self, events: int, possible_duplicates: int) -> None:
        """Count events that came back from the producer and are on disk, to be sent again."""
        self._move(events, "messages_in_flight", "messages_spooled")
        with self._lock:
            self._counts["possible_duplicates"] += possible_duplicates

    def recovered(self, events: int) -> None:
        """Count what an earlier run has left on disk."""
        with self._lock:
            self._counts["messages_recovered"] += events
            self._counts["messages_spooled"] += events
        self._log.info("spool_recovered", events=events)

    def sent_before(self, possible_duplicates: int) -> None:
        """Count what a killed run may have sent of what is sent from disk now."""
        with self._lock:
            self._counts["possible_duplicates"] += possible_duplicates

    def already_delivered(self, events: int) -> None:
        """Count what an earlier run has left on disk although Kafka has it: sent, and killed before the answer."""
        if events:
            self._move(events, "messages_spooled", "messages_already_delivered")
            self._log.info("spool_already_delivered", events=events)

    def spool_redirected(self, events: int) -> None:
        """Log that what an earlier run has left was meant for topics of other settings."""
        self._log.warning(
            "spool_redirected", events=events, reason="their topics are not in the settings any more"
        )

    def spool_taken_over(self, folder: str, events: int, reason: str) -> None:
        """Log what was found in the spool of a shard that is gone; the reason says why some stayed there."""
        if reason:
            self._log.warning("spool_left_behind", folder=folder, taken_over=events, reason=reason)
        elif events:
            self._log.info("spool_taken_over", folder=folder, events=events)

    def dropped(self, events: Sequence[Event], reason: str, was: str = "buffered", error: str = "") -> None:
        """Count events that are lost, by reason and by symbol."""
        if not events:
            return
        self.tell_dropped(ids_of(events), reason)
        symbols = Counter((event.route.key or b"").decode("utf-8", "replace") for event in events)
        with self._lock:
            self._counts[f"messages_{was}"] -= len(events)
            self._counts["messages_dropped"] += len(events)
            self._by_reason["messages_dropped"][reason] += len(events)
            self._dropped_by_symbol.update(symbols)
        self._error("events_dropped", reason, count=len(events), symbols=dict(symbols.most_common(5)), error=error)

    def dead_lettered(self, events: Sequence[Event], reason: str, error: str, was: str = "in_flight") -> None:
        """Count events that Kafka will never take, and tell their ids: they are not where they were meant for."""
        self.tell_dropped(ids_of(events), DEAD_LETTER)
        self._move(len(events), f"messages_{was}", "messages_dead_lettered")
        topic = events[0].route.topic
        self._error("events_dead_lettered", reason, count=len(events), topic=topic, error=error)

    def aside_topic_unavailable(self, topic: str, error: BaseException) -> None:
        """Log that records for a topic beside the data's stay on disk; the data flows."""
        self._warn("aside_topic_unavailable", type(error).__name__, topic=topic, error=str(error))

    def aside_record_refused(self, topic: str, error: BaseException) -> None:
        """Log that a topic beside the data's did not take a record; its sender keeps it."""
        self._warn("aside_record_refused", type(error).__name__, topic=topic, error=str(error))

    # The gap ledger

    def gap_opened(self, gap: Gap, gaps_open: int) -> None:
        """Count ids that are missing from a stream."""
        self._count_gap("gaps_opened", gaps_open)
        self._warn("gap_opened", gap.cause, stream=gap.stream, first=gap.first, last=gap.last)

    def gap_filled(self, gap: Gap, events: int, gaps_open: int) -> None:
        """Count a gap that waits for nothing any more."""
        self._count_gap("gaps_filled", gaps_open)
        if (counted := self._repeats.add(("gap_filled", ""), 1)) is not None:
            told = {"stream": gap.stream, "first": gap.first, "last": gap.last, "events": events}
            self._log.info("gap_filled", count=counted, **told)

    def gap_unfillable(self, gap: Gap, ids: int, reason: str, gaps_open: int) -> None:
        """Count ids that will not come; `ids` is 0 for bars, whose gaps are stretches of time."""
        depth = gap.event_type == "depth_update"  # a snapshot makes up for it
        self._count_gap("depth_gaps" if depth else "gaps_unfillable", gaps_open)
        self._count("ids_missing", 0 if depth else ids)
        say = self._warn if depth else self._error
        say("gap_unfillable", reason, stream=gap.stream, first=gap.first, last=gap.last, ids=ids)

    def order_given_up(self, gap: Gap, reason: str) -> None:
        """Count a gap that live events of its symbol wait for no more; what fills it comes out of order."""
        self._count("order_given_up")
        self._warn("order_given_up", reason, stream=gap.stream, first=gap.first, last=gap.last)

    def renumbered(self, stream: str, expected: int, got: int) -> None:
        """Log that the exchange counts a stream anew."""
        self._warn("stream_renumbered", stream, expected=expected, got=got)

    def ledger_record_written(self) -> None:
        """Count a record of the ledger that Kafka acknowledged."""
        self._count("ledger_records")

    def ledger_backlog(self, records: int) -> None:
        """Take note of how many records of the ledger are not in Kafka."""
        with self._lock:
            self._counts["ledger_backlog"] = records

    def ledger_records_lost(self, records: int, reason: str) -> None:
        """Count records of the ledger that found no place."""
        self._count("ledger_records_lost", records)
        self._error("ledger_records_lost", reason, count=records)

    def ledger_disk_failing(self, error: str) -> None:
        """Log that the ledger's file does not take or give something; its records stay in memory."""
        self._error("ledger_disk_failing", "disk", error=error)

    def ledger_damaged(self, path: str) -> None:
        """Log that the ledger's file was found damaged and set aside."""
        self._log.error("ledger_damaged", set_aside_as=path)

    def _count_gap(self, name: str, gaps_open: int) -> None:
        with self._lock:
            self._counts[name] += 1
            self._counts["gaps_open"] = gaps_open

    def not_secured(self, events: int, error: str) -> None:
        """Log that what is in flight could not be written to disk as well; it may still be acknowledged."""
        self._error("in_flight_not_secured", "disk", count=events, error=error)

    def spool_failing(self, error: str) -> None:
        """Log that the disk did not give or delete what it holds; it is tried again."""
        self._error("spool_failing", "disk", error=error)

    def spool_damaged(self, path: str) -> None:
        """Log that a file was found damaged and set aside."""
        self._log.error("spool_damaged", set_aside_as=path)

    def lost_on_disk(self, ids: Ids) -> None:
        """Count what lay in a file that was set aside, these ids of it."""
        self.tell_dropped(ids, "spool_damaged")
        with self._lock:
            lost = self._counts["messages_spooled"]
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
            self._count_reads()
            buffered, in_flight = self._counts["messages_buffered"], self._counts["messages_in_flight"]
            for count, where in ((buffered, "messages_buffered"), (in_flight, "messages_in_flight")):
                self._counts[where] -= count
                self._counts["messages_dropped"] += count
                if count:
                    self._by_reason["messages_dropped"]["stage_failed"] += count
        if buffered or in_flight:
            self._error("events_dropped", "stage_failed", count=buffered + in_flight)

    def _move(self, events: int, source: str, target: str) -> None:
        with self._lock:
            self._counts[source] -= events
            self._counts[target] += events

    def acknowledged(self, events: Sequence[Event], size: int) -> None:
        """Count events whose records Kafka acknowledged, `size` bytes of values in all."""
        now_ms = _now_ms()
        with self._lock:
            counts = self._counts
            counts["messages_in_flight"] -= len(events)
            counts["kafka_produced"] += len(events)
            counts["bytes_sent"] += size
            self._flow.acknowledged(events, now_ms)

    def producer_broken_off(self, error: BaseException, check: str | None = None) -> None:
        """Log that the producer lost a record and is replaced; everything unacknowledged is sent again."""
        self._count("producer_break_offs")
        self._warn("producer_broken_off", type(error).__name__, error=str(error), check=check)

    def mirrored(self, copies: int) -> None:
        """Count acknowledged copies to the raw topic, apart from the events themselves."""
        with self._lock:
            self._counts["mirror_produced"] += copies

    def mirror_failed(self, copies: int, reason: str) -> None:
        """Count copies to the raw topic that are not there, and are not sent again."""
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

    def lines_changed(self, lines: Iterable[int]) -> None:
        """Take note of which lines there are; each is to have an open connection."""
        with self._lock:
            self._lines = set(lines)

    def connection_attempt(self, connection: int, slot: int, url: str, *, again: bool) -> None:
        """Count a try to connect."""
        with self._lock:
            self._counts["connection_attempts"] += 1
            self._counts["reconnect_count"] += again
        self._log.info("connection_attempted", connection=connection, slot=slot, url=url)

    def connection_opened(self, connection: int, slot: int, streams: int) -> None:
        """Log a completed handshake; subscribing follows."""
        with self._lock:
            self._open.add((connection, slot))
        self._log.info("connection_opened", connection=connection, slot=slot, streams=streams)

    def combined_endpoint_missing(self, connection: int, url: str, instead: str, error: Exception) -> None:
        """Log where the server is asked instead; frames may not name their streams there."""
        event, reason = "combined_endpoint_missing", "nothing is served there"
        self._warn(event, reason, connection=connection, url=url, instead=instead, error=str(error))

    def connection_closed(self, connection: int, slot: int) -> None:
        """Note the end that was asked for."""
        with self._lock:
            self._open.discard((connection, slot))
        self._log.info("connection_closed", connection=connection, slot=slot)

    def goodbye_unanswered(self, connection: int, error: BaseException) -> None:
        """Log that the exchange did not answer our close frame; what it still sent may be lost."""
        self._count("goodbyes_unanswered")
        self._log.warning("goodbye_unanswered", connection=connection, error=str(error) or type(error).__name__)

    def connection_failed(
        self, connection: int, slot: int, error: BaseException, cause: str, failures: int
    ) -> None:
        """Count a connection that could not be opened or was lost, by cause; `failures` in a row so far."""
        with self._lock:
            was_open = (connection, slot) in self._open
            self._open.discard((connection, slot))
            self._counts["connection_failures"] += 1
            self._by_reason["connection_failures"][cause] += 1
        event = "connection_lost" if was_open else "connection_failed"
        told = f"{type(error).__name__}: {error}".removesuffix(": ")
        self._log.warning(event, connection=connection, slot=slot, error=told, failures_in_a_row=failures)

    def reconnect_scheduled(self, connection: int, attempt: int, delay: float) -> None:
        """Log the wait before the next attempt."""
        self._log.info("reconnect_scheduled", connection=connection, attempt=attempt, delay_seconds=delay)

    def subscribed(self, connection: int, slot: int, streams: int) -> None:
        """Log that the exchange confirmed a SUBSCRIBE."""
        self._log.info("subscription_confirmed", connection=connection, slot=slot, streams=streams)

    def unsubscribed(self, connection: int, slot: int, streams: int) -> None:
        """Log that the exchange confirmed an UNSUBSCRIBE."""
        self._log.info("unsubscription_confirmed", connection=connection, slot=slot, streams=streams)

    def streams_changed(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Log how many streams are read from here on, and how many no more, with the first of their names."""
        counts = {"streams_added": len(added), "streams_removed": len(removed)}
        self._log.info("streams_changed", **counts, added=list(added[:_NAMED]), removed=list(removed[:_NAMED]))

    def listing_read(self, symbols: int, trading: int) -> None:
        """Log that the exchange has said what it lists."""
        self._log.info("listing_read", symbols=symbols, trading=trading)

    def listing_unavailable(self, error: BaseException, *, waiting: bool) -> None:
        """Log that it has not, once until it does; names are read all the same, `ALL` has to wait."""
        effect = "streams cannot be chosen yet" if waiting else "symbols are not checked"
        self._log.warning("listing_unavailable", error=str(error), effect=effect)

    def listing_taken_from_disk(self, symbols: int, age: float) -> None:
        """Log that the listing of an earlier run stands in for today's."""
        self._log.warning("listing_taken_from_disk", symbols=symbols, age_seconds=round(age))

    def symbols_checked(self, unknown: dict[str, str | None], not_trading: dict[str, str]) -> None:
        """Log symbols in the settings that bring nothing, for ever or for now."""
        for symbol, nearest in unknown.items():
            self._log.warning("symbol_unknown", symbol=symbol, nearest=nearest)
        for symbol, status in not_trading.items():
            self._log.warning("symbol_not_trading", symbol=symbol, status=status)

    def settings_reread(self, needs_restart: Sequence[str]) -> None:
        """Log that SIGHUP was obeyed, and which changed settings only a restart takes over."""
        if needs_restart:
            self._log.warning("settings_reread", needs_restart=list(needs_restart))
        else:
            self._log.info("settings_reread")

    def settings_refused(self, faults: Sequence[str]) -> None:
        """Log each fault of settings that were read again; those in use stay."""
        for fault in faults:
            self._log.error("settings_refused", fault=fault)

    def streams_silent(self, connection: int, streams: Sequence[str], remedy: str) -> None:
        """Log streams that bring nothing although they used to, and what is done about it."""
        self._count("streams_fallen_silent", len(streams) if remedy == "resubscribe" else 0)
        self._log.warning(
            "streams_silent",
            connection=connection,
            streams=list(streams[:_NAMED]),
            count=len(streams),
            remedy=remedy,
        )

    def rotation_started(self, connection: int, cause: str) -> None:
        """Log that a connection is going to be replaced; data flows meanwhile."""
        self._log.info("rotation_started", connection=connection, cause=cause)

    def rotation_cancelled(self, connection: int, cause: str) -> None:
        """Log that the connection was lost before the one in its place was open: it is opened anew instead."""
        self._log.warning("rotation_cancelled", connection=connection, cause=cause)

    def rotated(self, connection: int, cause: str, seconds: float, missing: Sequence[str], slot: int) -> None:
        """Count a connection that was replaced; `missing` streams flowed on the old one and not on the new."""
        self._count("rotations")
        log = self._log.warning if missing else self._log.info
        shown = {"streams_missing": list(missing)} if missing else {}
        log(
            "connection_rotated", connection=connection, slot=slot, cause=cause, seconds=round(seconds, 3), **shown
        )

    def subscription_unconfirmed(self, connection: int, streams: list[str]) -> None:
        """Log a SUBSCRIBE that got no answer; data may come all the same."""
        self._count("streams_unconfirmed", len(streams))
        self._log.warning("subscription_unconfirmed", connection=connection, streams=streams)

    def exchange_error(self, connection: int, error: str, streams: Sequence[str]) -> None:
        """Log an error frame of the exchange, with the streams that it is about; they are tried again."""
        self._count("exchange_errors")
        self._count("streams_refused", len(streams))
        self._log.error("exchange_error", connection=connection, error=error, streams=list(streams) or None)

    # From run to run

    def positions_found(self, **found: object) -> None:
        """Log where the streams stand in Kafka and on disk: streams, missing ids, records read, seconds."""
        self._log.info("positions_found", **found)

    def resume_failed(self, error: BaseException) -> None:
        """Log that Kafka could not be read; it is tried again, the data flows."""
        self._warn("resume_failed", type(error).__name__, error=str(error))

    def resuming_later(self) -> None:
        """Log that the connections are opened before the positions are known."""
        self._log.warning("resuming_later", effect="live events come first, what is missing is filled in later")

    def checkpoint_written(self, streams: int) -> None:
        """Count a checkpoint; `streams` have moved since the one before."""
        self._count("checkpoints_written")
        self._log.debug("checkpoint_written", streams=streams)

    def checkpoint_failed(self, error: BaseException) -> None:
        """Log that no checkpoint could be written; the next one is tried after the usual interval."""
        self._warn("checkpoint_failed", type(error).__name__, error=str(error))

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

    def undelivered(self) -> int:
        """Log and return how many events, and copies of them, are not in Kafka at the end, by where they are."""
        metrics = self.snapshot()
        left = {name: metrics[name] for name in _UNDELIVERED if metrics[name]}
        if left:
            lost = set(left) - _ON_DISK
            log = self._log.error if lost else self._log.warning
            log("events_undelivered", **left)
        return sum(left.values())

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


def _nobody_asked(ids: Ids, reason: str) -> None:
    """Stand in until somebody asks."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
