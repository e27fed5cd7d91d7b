"""Ways into an Apache Kafka beside its plain one: TLS, and logins with a password."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sandbox.brokers.probe import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


@dataclass(frozen=True)
class Listener:
    """A listener on 127.0.0.1 with a port of its own.

    `certificate` is a PEM file of an unencrypted PKCS #8 key, its certificate and the chain, for SSL and SASL_SSL;
    with `client_authority`, a PEM file too, clients must show a certificate of that authority. SASL listeners take
    PLAIN with the passwords in `users`, and SCRAM with what was set by `alter_user_scram_credentials`.
    `host` is what clients are told to connect to.
    """

    protocol: Literal["SSL", "SASL_PLAINTEXT", "SASL_SSL"]
    certificate: Path | None = None
    client_authority: Path | None = None
    users: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)

    @property
    def bootstrap_servers(self) -> str:
        """`HOST:PORT`, as Kafka clients take it."""
        return f"{self.host}:{self.port}"


def listening(
    plain_port: int, listeners: Sequence[Listener], controller_port: int | None = None
) -> dict[str, object]:
    """Return the properties of a broker's listeners: the plain one, which brokers use too, and the others."""
    addresses = {"PLAINTEXT": f"PLAINTEXT://127.0.0.1:{plain_port}"}
    advertised = dict(addresses)
    protocols = {"PLAINTEXT": "PLAINTEXT"}
    properties: dict[str, object] = {}
    for number, listener in enumerate(listeners):
        name = f"SECURE{number}"
        addresses[name] = f"{name}://127.0.0.1:{listener.port}"
        advertised[name] = f"{name}://{listener.bootstrap_servers}"
        protocols[name] = listener.protocol
        properties |= {f"listener.name.{name.lower()}.{key}": value for key, value in _own(listener).items()}
    if controller_port is not None:
        addresses["CONTROLLER"] = f"CONTROLLER://127.0.0.1:{controller_port}"
        protocols["CONTROLLER"] = "PLAINTEXT"
        properties["controller.listener.names"] = "CONTROLLER"
    return properties | {
        "listeners": ",".join(addresses.values()),
        "advertised.listeners": ",".join(advertised.values()),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "inter.broker.listener.name": "PLAINTEXT",
    }


def _own(listener: Listener) -> dict[str, object]:
    """Return the properties of one listener, without their common prefix."""
    own: dict[str, object] = {}
    if listener.certificate is not None:
        own |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": listener.certificate}
    if listener.client_authority is not None:
        own |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": listener.client_authority}
        own |= {"ssl.client.auth": "required"}
    if listener.protocol.startswith("SASL_"):
        users = "".join(f' user_{user}="{password}"' for user, password in listener.users.items())
        own |= {
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "plain.sasl.jaas.config": f"{_PLAIN} required{users};",
            "scram-sha-256.sasl.jaas.config": f"{_SCRAM} required;",
            "scram-sha-512.sasl.jaas.config": f"{_SCRAM} required;",
        }
    return own
