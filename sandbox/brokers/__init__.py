"""Real Kafka brokers on this machine, without Docker: one embedded, and Apache Kafka in two generations."""

from __future__ import annotations

from sandbox.brokers.broker import Broker
from sandbox.brokers.child import BrokerError
from sandbox.brokers.embedded import EmbeddedBroker
from sandbox.brokers.probe import free_port

BROKERS: dict[str, type[Broker]] = {"embedded": EmbeddedBroker}
"""The brokers by the name that the command line and the tests use."""

__all__ = ["BROKERS", "Broker", "BrokerError", "EmbeddedBroker", "free_port"]
