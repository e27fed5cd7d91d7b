"""The section KAFKA_: the brokers, the topics, how the producer delivers, and how a client logs in."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import SettingsConfigDict

from config.faults import without_secrets
from config.section import Names, Section, listed, lowered, uppered
from config.tls import tls_context

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_ENDPOINT = re.compile(r"(?:[\w.\-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")
_MECHANISMS = "PLAIN, GSSAPI, SCRAM-SHA-256, SCRAM-SHA-512"
_SASL_OPTIONS = (
    *("sasl_mechanism", "sasl_plain_username", "sasl_plain_password"),
    *("sasl_kerberos_service_name", "sasl_kerberos_domain_name"),
)
_FROM_FILES: dict[str, tuple[str, ...]] = {
    "sasl_plain_username": ("sasl_plain_username_file",),
    "sasl_plain_password": ("sasl_plain_password_file", "sasl_password_file"),
    "ssl_password": ("ssl_password_file",),
}
"""What may stand in a file instead, and the settings that name the file."""
_FILES = tuple(field for fields in _FROM_FILES.values() for field in fields)
_OWN_TOPICS = ("topic_dead_letters", "topic_gaps", "topic_checkpoints")
"""What is no data: each has a topic for itself, while the data may share one."""
_LONGEST_SECRET = 1024  # bytes, as OpenSSL takes at most


def _needed() -> Any:  # noqa: ANN401 - like pydantic's Field
    """Return a default of None that is checked too: what is set elsewhere may ask for a value."""
    return Field(default=None, validate_default=True)


class KafkaConfig(Section):
    """The brokers, the topics, and how the producer delivers."""

    prefix = "KAFKA_"
    model_config = SettingsConfigDict(env_prefix="KAFKA_")

    bootstrap_servers: Names = ("localhost:9092",)
    topic_raw_events: str = "binance-raw-events"
    topic_trades: str = "binance-trades"
    topic_depth: str = "binance-depth"
    topic_dead_letters: str = "binance-dead-letters"
    topic_gaps: str = "binance-gaps"
    topic_checkpoints: str = "binance-checkpoints"
    mirror_raw_events: bool = False
    partitions: Annotated[int, Field(gt=0, le=10_000)] = 3
    replication_factor: Annotated[int, Field(gt=0, le=100)] = 1
    compression: Literal["gzip", "snappy", "lz4", "zstd", "none"] = "snappy"
    batch_size: Annotated[int, Field(gt=0, le=1_000_000)] = 16384
    linger_ms: Annotated[int, Field(ge=0, le=60_000)] = 10
    retries: Annotated[int, Field(ge=0, le=2**31 - 1)] = 3
    max_in_flight: Annotated[int, Field(gt=0, le=5)] = 5
    acks: Literal["all", "1", "0"] = "all"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "GSSAPI", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = _needed()
    sasl_plain_username_file: Path | None = None
    sasl_plain_username: str | None = _needed()
    sasl_plain_password_file: Path | None = None
    sasl_password_file: Path | None = None
    sasl_plain_password: SecretStr | None = _needed()
    sasl_kerberos_service_name: str | None = None
    sasl_kerberos_domain_name: str | None = None
    ssl_check_hostname: bool = True
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_crlfile: Path | None = None
    ssl_password_file: Path | None = None
    ssl_password: SecretStr | None = _needed()
    ssl_ciphers: str | None = None

    _split = field_validator("bootstrap_servers", mode="before")(listed)

    @field_validator("bootstrap_servers")
    @classmethod
    def _check_bootstrap_servers(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [server for server in servers if not _is_endpoint(server)]
        if wrong or not servers:
            named = [without_secrets(server) for server in wrong]
            raise ValueError(f"must be host:port, one or several separated by commas; not {named or 'empty'}")
        return servers

    @field_validator("topic_raw_events", "topic_trades", "topic_depth", *_OWN_TOPICS)
    @classmethod
    def _check_topic(cls, topic: str) -> str:
        if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
            raise ValueError("must be 1 to 249 of the characters a-z A-Z 0-9 . _ -")
        return topic

    @field_validator(*_OWN_TOPICS)
    @classmethod
    def _check_apart(cls, topic: str, info: ValidationInfo) -> str:
        for field, value in info.data.items():
            if field.startswith("topic_") and value == topic:
                words = "must be a topic of its own, not that of {other}"
                raise PydanticCustomError("shared", words, {"other": f"KAFKA_{field}".upper()})
        return topic

    _lower = field_validator("compression", mode="before")(lowered)

    @field_validator("acks", mode="before")
    @classmethod
    def _acks(cls, value: object) -> object:
        return "all" if str(value) == "-1" else str(value).lower()

    _upper = field_validator("security_protocol", "sasl_mechanism", mode="before")(uppered)

    @field_validator("sasl_plain_password", "ssl_password", mode="before")
    @classmethod
    def _keep_blanks(cls, value: object) -> object:
        return SecretStr(value) if isinstance(value, str) else value

    @field_validator(*_FROM_FILES, mode="before")
    @classmethod
    def _read_from_file(cls, value: object, info: ValidationInfo) -> object:
        # Runs before the one above: of several such validators pydantic calls the last one first.
        files = [field for field in _FROM_FILES[str(info.field_name)] if info.data.get(field)]
        variables = [f"KAFKA_{field}".upper() for field in files]
        if value and files:
            raise ValueError(f"must not be set together with {' and '.join(variables)}")
        if len(files) > 1:
            raise ValueError(f"must come from one file, not from {' and '.join(variables)}")
        return _content(info.data[files[0]], variables[0]) if files else value

    @field_validator("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile", *_FILES)
    @classmethod
    def _check_file(cls, path: Path | None) -> Path | None:
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            raise ValueError("must be the path of a file that exists and can be read")
        return path

    @field_validator("sasl_mechanism")
    @classmethod
    def _check_sasl_mechanism(cls, mechanism: str | None, info: ValidationInfo) -> str | None:
        protocol = info.data.get("security_protocol", "")
        if mechanism is None and protocol.startswith("SASL_"):
            raise ValueError(f"must be one of {_MECHANISMS} when KAFKA_SECURITY_PROTOCOL is {protocol}")
        return mechanism

    @field_validator("sasl_plain_username", "sasl_plain_password")
    @classmethod
    def _check_credentials(cls, given: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
        mechanism, protocol = info.data.get("sasl_mechanism"), info.data.get("security_protocol", "")
        if any(field not in info.data for field in _FROM_FILES[str(info.field_name)]):
            return given  # its file is not usable, which is said already
        if not given and mechanism not in (None, "GSSAPI") and protocol.startswith("SASL_"):
            raise ValueError(f"must be set when KAFKA_SASL_MECHANISM is {mechanism}")
        return given

    def client_options(self) -> dict[str, Any]:
        """Return the connection arguments that every kafka-python client takes, secrets in the clear.

        TLS comes as a context of our own, made anew from the files: kafka-python 3.0.12 ignores a list of ciphers,
        fails with a list of revoked certificates, and asks at the terminal for a password that is not given.
        Raises `TlsUnusable` when a file has become unusable since the settings were checked.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.bootstrap_servers),
            "security_protocol": self.security_protocol,
        }
        for field in _SASL_OPTIONS:
            value = getattr(self, field)
            if value is not None:
                options[field] = value.get_secret_value() if isinstance(value, SecretStr) else value
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = tls_context(self)
        return options


def _is_endpoint(server: str) -> bool:
    found = _ENDPOINT.fullmatch(server)
    return found is not None and 0 < int(found[1]) <= 65_535  # noqa: PLR2004 - the highest port


def _content(path: Path, variable: str) -> str:
    """Return what a file holds, without the line break at its end; never tells it in an error."""
    try:
        with path.open("rb") as opened:
            content = opened.read(_LONGEST_SECRET + 3).decode()
    except (OSError, UnicodeError):
        content = ""
    content = content.removesuffix("\n").removesuffix("\r")
    if not content or len(content.encode()) > _LONGEST_SECRET or re.search(r"[\0\r\n]", content):
        raise ValueError(
            f"{variable} must name a file with one line of text in UTF-8, 1 to {_LONGEST_SECRET} bytes"
        )
    return content
