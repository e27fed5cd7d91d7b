"""Real Kafka brokers on this machine, without Docker: one embedded, and Apache Kafka in two generations.

with EmbeddedBroker(folder) as broker:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)

`Cluster` is three Apache Kafka 4 that replicate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.brokers.apache import Kafka3, Kafka4
from sandbox.brokers.broker import Broker
from sandbox.brokers.child import BrokerError
from sandbox.brokers.cluster import Cluster
from sandbox.brokers.embedded import EmbeddedBroker
from sandbox.brokers.listener import Listener
from sandbox.brokers.maven import fetched
from sandbox.brokers.probe import free_port

if TYPE_CHECKING:
    from pathlib import Path

BROKERS: dict[str, type[Broker]] = {"embedded": EmbeddedBroker, "kafka4": Kafka4, "kafka3": Kafka3}
"""The brokers by the name that the command line and the tests use."""


def fetch_all() -> list[Path]:
    """Download both Apache Kafkas unless they are there, and return their folders of jars."""
    return [fetched("kafka4"), fetched("kafka3")]


__all__ = [
    "BROKERS",
    "Broker",
    "BrokerError",
    "Cluster",
    "EmbeddedBroker",
    "Kafka3",
    "Kafka4",
    "Listener",
    "fetch_all",
    "free_port",
]
