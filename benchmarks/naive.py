"""The reference: the pipeline written the obvious way, with the libraries' defaults.

WebSocketApp callbacks, the standard library's json, one `KafkaProducer.send` an event, the producer settings that
the service has too. Takes the same variables as the service; SIGTERM flushes and ends it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import warnings

import websocket

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaProducer

EVENT_TYPES = {
    "aggTrade": "aggregate_trade",
    "trade": "trade",
    "depthUpdate": "depth_update",
    "kline": "kline",
    "24hrTicker": "ticker",
    "bookTicker": "book_ticker",
}
TOPICS = {
    "aggregate_trade": os.environ["KAFKA_TOPIC_TRADES"],
    "trade": os.environ["KAFKA_TOPIC_TRADES"],
    "depth_update": os.environ["KAFKA_TOPIC_DEPTH"],
}
RAW = os.environ["KAFKA_TOPIC_RAW_EVENTS"]


def main() -> None:
    """Read, enrich, send, until SIGTERM."""
    warnings.simplefilter("ignore", DeprecationWarning)  # of plain functions as serializers
    producer = KafkaProducer(
        bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        compression_type="snappy",
        batch_size=16384,
        linger_ms=10,
        acks="all",
        retries=3,
        value_serializer=lambda event: json.dumps(event).encode(),
        key_serializer=str.encode,
    )

    def on_open(app: websocket.WebSocketApp) -> None:
        streams = os.environ["BINANCE_STREAMS"].split(",")
        app.send(json.dumps({"method": "SUBSCRIBE", "params": streams, "id": 1}))

    def on_message(_app: websocket.WebSocketApp, message: str) -> None:
        frame = json.loads(message)
        event = frame.get("data")
        if event is None:
            return
        now = int(time.time() * 1000)
        event["ingestion_timestamp"] = now
        event["source"] = "binance_websocket"
        event["event_type"] = EVENT_TYPES[event.get("e", "bookTicker")]
        event["pipeline_version"] = "1.0.0"
        topic = TOPICS.get(event["event_type"], RAW)
        producer.send(topic, event, key=event["s"], timestamp_ms=event.get("E", now))

    app = websocket.WebSocketApp(
        os.environ["BINANCE_WS_BASE_URL"].replace("/ws", "/stream"), on_open=on_open, on_message=on_message
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=app.run_forever, daemon=True).start()
    signal.sigwait({signal.SIGTERM})
    app.close()
    producer.flush(30)
    producer.close(30)


if __name__ == "__main__":
    main()
