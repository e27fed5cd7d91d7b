"""The names of all metrics and what they mean; `deploy/OBSERVABILITY.md` is held against what is served."""

from __future__ import annotations

from src.flow import LEGS

PREFIX = "binance_ingestion_"
"""Of every name in `/metrics`; counters end in `_total` there."""

COUNTERS = {
    "messages_received": "events read from the exchange, after array splitting",
    "messages_processed": "events handed to the producer",
    "messages_skipped": "frames or array elements that are no event",
    "messages_dropped": "events lost because the disk did not take them",
    "messages_dead_lettered": "events that Kafka will never take, set aside with the reason",
    "messages_recovered": "events that an earlier run had left on disk",
    "possible_duplicates": "events sent again that may be there already: an answer was lost, or a run killed",
    "kafka_produced": "events acknowledged by Kafka",
    "kafka_failed": "events that Kafka did not take",
    "bytes_sent": "bytes of acknowledged record values, before compression",
    "buffer_flushes": "batches handed from the buffer to the producer",
    "enrichment_failures": "events sent to the raw topic as they came",
    "control_messages": "subscription replies and exchange errors",
    "connection_attempts": "connections tried",
    "connection_failures": "connections that failed or were lost",
    "reconnect_count": "connection attempts after the first of each connection",
    "goodbyes_unanswered": "connections whose end the exchange did not confirm; what it still sent may be lost",
    "streams_unconfirmed": "streams whose SUBSCRIBE got no answer in time",
    "streams_refused": "streams whose SUBSCRIBE the exchange refused",
    "exchange_errors": "error frames of the exchange",
    "kafka_connection_failures": "tries to reach Kafka or to create its topics that failed",
    "producer_break_offs": "producers replaced because a record was lost",
    "mirror_produced": "copies to the raw topic acknowledged by Kafka",
    "mirror_failed": "copies to the raw topic that Kafka did not take",
}
GAUGES = {
    "messages_buffered": "events in the buffer",
    "messages_spooled": "events on disk, to be sent when Kafka takes them",
    "messages_in_flight": "events handed to the producer and not acknowledged yet",
    "connected": "1 when every connection to the exchange is open",
}
REASONS = {
    "messages_skipped": ("malformed_json", "invalid_utf8", "nested_too_deep", "not_an_object"),
    "messages_dropped": ("spool_full", "spool_failed", "spool_damaged", "stage_failed", "read_after_shutdown"),
    "kafka_failed": (),
    "connection_failures": ("closed", "silent", "not_opened", "timeout", "other"),
}
"""Counters that are also kept by reason, with the reasons known: `/metrics` shows these from the start, at 0,
since Prometheus takes no notice of a series that begins with its first loss."""
STATE = {
    "ready": "1 when /ready answers 200",
    "kafka_connected": "1 when records can flow to Kafka",
    "spooling": "1 while events go to Kafka by way of the disk",
    "connections": "connections to the exchange that there should be",
    "connections_open": "connections to the exchange that are open",
    "connection_failures_in_a_row": "failed attempts since the last frame, of the connection that has most",
    "streams": "streams that are subscribed to",
    "kafka_stalled_seconds": "how long Kafka has acknowledged nothing although something is in flight",
    "buffer_capacity": "events that the buffer holds at most",
    "in_flight_records_limit": "bound on events that are not acknowledged",
    "in_flight_bytes": "bytes of the record values that are not acknowledged",
    "in_flight_bytes_limit": "bound on these bytes",
    "spool_bytes": "bytes of the events on disk",
    "spool_bytes_limit": "bound on these bytes",
}
"""Gauges of the service as a whole; `/status` shows them under the same names."""
TIMES = {
    "last_message_timestamp_seconds": "when the last event was read, seconds since the epoch",
    "started_timestamp_seconds": "when the service started, seconds since the epoch",
}
LABELLED = {
    "info": "the version of the service",
    "events_received": "events read from the exchange, by event type and topic",
    "events_produced": "events acknowledged by Kafka, by event type and topic",
    "symbol_events": "events read from the exchange, by symbol",
    "symbol_last_event_timestamp_seconds": "event time of the symbol's last event, seconds since the epoch",
    "symbol_price": "last price that an event of the symbol named",
    "messages_dropped_by_symbol": "events lost because the disk did not take them, by symbol",
    "latency_seconds": "; ".join(f"{leg}: {meaning}" for leg, meaning in LEGS.items()),
}
