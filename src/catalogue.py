"""The names of all metrics and what they mean; `deploy/OBSERVABILITY.md` is held against what is served."""

from __future__ import annotations

from src.flow import LEGS

PREFIX = "binance_ingestion_"
"""Of every name in `/metrics`; counters end in `_total` there."""

COUNTERS = {
    "messages_received": "events read from the exchange, after array splitting",
    "messages_processed": "events handed to the producer",
    "messages_skipped": "frames or array elements that are no event",
    "messages_dropped": "events lost; the reasons say how: the disk, a thread that died, too late at a stop",
    "messages_duplicate": "events that had been there, by their ids, and were left out",
    "messages_backfilled": "events fetched over REST that the streams had left out, and snapshots of order books",
    "messages_saved_by_standby": "events that only one of two connections for the same streams brought",
    "messages_dead_lettered": "events that Kafka will never take, set aside with the reason",
    "messages_recovered": "events that an earlier run had left on disk",
    "messages_already_delivered": "events left on disk by an earlier run that Kafka had: not sent again",
    "checkpoints_written": "checkpoints of where the streams stand",
    "possible_duplicates": "events sent again that may be there already: an answer was lost, or a run killed",
    "kafka_produced": "events acknowledged by Kafka",
    "kafka_failed": "events that Kafka did not take",
    "bytes_sent": "bytes of acknowledged record values, before compression",
    "buffer_flushes": "batches that left the buffer, for the producer or for the disk",
    "enrichment_failures": "events sent to the raw topic as they came",
    "control_messages": "subscription replies and exchange errors",
    "connection_attempts": "connections tried",
    "connection_failures": "connections that failed or were lost",
    "reconnect_count": "connection attempts after the first of each connection",
    "goodbyes_unanswered": "connections whose end the exchange did not confirm; what it still sent may be lost",
    "streams_unconfirmed": "streams whose SUBSCRIBE got no answer in time",
    "streams_refused": "streams whose SUBSCRIBE the exchange refused",
    "streams_fallen_silent": "streams that brought nothing far beyond their own usual pace",
    "rotations": "connections replaced without a gap before the exchange ended them",
    "exchange_errors": "error frames of the exchange",
    "kafka_connection_failures": "tries to reach Kafka or to create its topics that failed",
    "producer_break_offs": "producers replaced because a record was lost",
    "mirror_produced": "copies to the raw topic acknowledged by Kafka",
    "mirror_failed": "copies to the raw topic that Kafka did not take and does not get again",
    "rest_requests": "requests to the exchange's REST interface",
    "rest_failures": "REST requests that brought nothing usable",
    "snapshots_taken": "order book snapshots that went into the depth topic",
    "gaps_opened": "times that ids were found missing from a stream",
    "gaps_filled": "gaps that were filled",
    "gaps_unfillable": "times that missing ids were given up, depth aside",
    "depth_gaps": "gaps in depth, each followed by a snapshot of the order book",
    "ids_missing": "ids of trades and aggregate trades that were given up",
    "order_given_up": "gaps that live events of the symbol did not wait for",
    "ledger_records": "records of the gap ledger acknowledged by Kafka",
    "ledger_records_lost": "records of the gap ledger that found no place",
}
GAUGES = {
    "messages_buffered": "events in the buffer, or waiting behind a gap that is being filled",
    "messages_spooled": "events on disk, to be sent when Kafka takes them",
    "messages_in_flight": "events handed to the producer and not acknowledged yet",
    "rest_weight_used": "request weight of this minute by all behind our IP, as the exchange last told it",
    "connected": "1 when there is an open connection for every stream; subscribing may still go on",
    "gaps_open": "gaps that are neither filled nor given up",
    "ledger_backlog": "records of the gap ledger that are not in Kafka yet",
}
REASONS = {
    "messages_skipped": ("malformed_json", "invalid_utf8", "nested_too_deep", "not_an_object", "misnumbered"),
    "messages_dropped": ("spool_full", "spool_failed", "spool_damaged", "stage_failed", "read_after_shutdown"),
    "kafka_failed": (),
    "connection_failures": ("closed", "silent", "not_opened", "timeout", "other"),
    "rest_failures": ("unreachable", "refused", "limited", "malformed"),
}
"""Counters that are also kept by reason, with the reasons known: `/metrics` shows these from the start, at 0,
since Prometheus takes no notice of a series that begins with its first loss."""
ENDPOINTS = ("aggTrades", "historicalTrades", "klines", "depth", "exchangeInfo", "time")
"""Of the REST interface; `rest_requests` is also kept by endpoint."""
STATE = {
    "ready": "1 when /ready answers 200",
    "kafka_connected": "1 when records can flow to Kafka",
    "spooling": "1 while events go to Kafka by way of the disk",
    "connections": "connections to the exchange that there should be",
    "connection_age_seconds": "seconds since the oldest open connection was opened",
    "connections_open": "connections to the exchange that are open",
    "connection_failures_in_a_row": "failed attempts since the last frame, of the connection that has most",
    "streams": "streams that are subscribed to",
    "symbols_unknown": "symbols in the settings that the exchange does not list",
    "symbols_not_trading": "symbols in the settings that are not traded now",
    "streams_silent": "streams that bring nothing far beyond their own usual pace",
    "shard_index": "which shard of the streams this instance reads, from 0",
    "shard_count": "shards that all streams are divided into",
    "kafka_stalled_seconds": "how long Kafka has acknowledged nothing although something is in flight",
    "messages_held": "events that wait behind a gap; among the buffered ones",
    "buffer_capacity": "events that the buffer holds at most",
    "in_flight_records_limit": "bound on events that are not acknowledged",
    "in_flight_bytes": "bytes of the record values that are not acknowledged",
    "in_flight_bytes_limit": "bound on these bytes",
    "spool_bytes": "bytes of the events on disk",
    "spool_bytes_limit": "bound on these bytes",
    "spool_room_bytes": "bytes that the spool still takes: to its bound, or to the floor of free disk space",
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
    "rest_requests_by_endpoint": "requests to the exchange's REST interface, by endpoint",
    "messages_dropped_by_symbol": "events lost, by symbol where it is known",
    "latency_seconds": "; ".join(f"{leg}: {meaning}" for leg, meaning in LEGS.items()),
}
