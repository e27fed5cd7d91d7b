"""The settings: environment over `.env` over defaults, frozen, in sections, checked before anything is opened.

`load_settings()` returns them or raises `SettingsError` with one readable line per fault. Names, defaults
and meanings are the contract with the user; `.env.example` and README.md list them.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from config import shards
from config import streams as names
from config.tls import TlsUnusable, tls_context

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], NoDecode]

_ENCODING = "utf-8-sig"  # some editors start `.env` with a byte order mark, which would hide its first variable
_SHOWN = 200  # characters of a wrong value

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_WINDOW = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d-(?:[01]\d|2[0-3]):[0-5]\d")
_SHORTEST_WINDOW = 600  # seconds
_LIVE_HOSTS = frozenset(
    (
        *("stream.binance.com", "data-stream.binance.vision"),
        *("api.binance.com", "api-gcp.binance.com", "data-api.binance.vision"),
        *(f"api{number}.binance.com" for number in range(1, 5)),
    )
)
"""Where Binance's live market is, by its documentation; its testnet and its demo mode are elsewhere."""
_PATH = re.compile(r"[A-Za-z0-9/._~%+-]*")
_ENDPOINT = re.compile(r"(?:[\w.\-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")


class SettingsError(Exception):
    """The configuration is wrong; `faults` holds one line each: variable, value, what is allowed."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class _Section(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file_encoding=_ENCODING,
        str_strip_whitespace=True,
        hide_input_in_errors=True,
    )
    prefix: ClassVar[str] = ""

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Map each environment variable of this section to its field."""
        return {(cls.prefix + field).upper(): field for field in cls.model_fields}


def _listed(value: object) -> object:
    """Split `A,B` or the JSON list `["A","B"]`; blanks fall away, order stays, repeats are dropped."""
    if not isinstance(value, str):
        return value
    try:
        parts = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    except (ValueError, RecursionError):
        parts = [None]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError('must be names separated by commas, or a JSON list of them such as ["A","B"]')
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _refuse(faults: list[str | None], allowed: str) -> None:
    found = [fault for fault in faults if fault]
    if found:
        raise ValueError(f"{'; '.join(found)}; allowed: {allowed}")


class BinanceConfig(_Section):
    """What is read from the exchange, and where."""

    prefix = "BINANCE_"
    model_config = SettingsConfigDict(env_prefix="BINANCE_")

    symbols: Names = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "ADAUSDT", "XRPUSDT")
    stream_types: Names = ("aggTrade", "depth@100ms", "trade", "kline_1m")
    streams: Names = ()
    ws_base_url: str = "wss://stream.binance.com:9443/ws"
    rest_base_url: str = "https://api.binance.com"
    listing_interval_seconds: Seconds = 86_400.0

    _split = field_validator("symbols", "stream_types", "streams", mode="before")(_listed)

    @field_validator("symbols")
    @classmethod
    def _check_symbols(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        _refuse([names.fault_in_choice(symbol) for symbol in symbols], names.ALLOWED_CHOICE)
        left_out = {symbol.upper() for symbol in symbols if symbol.startswith("-")}
        if all(symbol.startswith("-") or f"-{symbol.upper()}" in left_out for symbol in symbols):
            raise ValueError(f"must name at least one symbol: {names.ALLOWED_CHOICE}")
        return tuple(dict.fromkeys(symbol.upper() for symbol in symbols))

    @field_validator("stream_types")
    @classmethod
    def _check_stream_types(cls, stream_types: tuple[str, ...]) -> tuple[str, ...]:
        _refuse([names.fault_in_stream_type(stream_type) for stream_type in stream_types], names.ALLOWED_TYPES)
        if not stream_types:
            raise ValueError(f"must name at least one stream type: {names.ALLOWED_TYPES}")
        return stream_types

    @field_validator("streams")
    @classmethod
    def _check_streams(cls, streams: tuple[str, ...]) -> tuple[str, ...]:
        _refuse([names.fault_in_stream(stream) for stream in streams], names.ALLOWED_STREAMS)
        return streams

    @field_validator("ws_base_url")
    @classmethod
    def _check_ws_base_url(cls, url: str) -> str:
        if not _PATH.fullmatch(_checked_url(url, ("ws", "wss")).path):
            raise ValueError(
                "must be an address that may end in /ws or /stream, its path of letters, digits and . _ ~ % + -; "
                "streams go into BINANCE_STREAMS"
            )
        return url

    @field_validator("rest_base_url")
    @classmethod
    def _check_rest_base_url(cls, url: str) -> str:
        _checked_url(url, ("http", "https"))
        url = url.rstrip("/")
        for ending in ("/api", "/api/v3"):
            if url.endswith(ending):
                base = url.removesuffix(ending)
                raise ValueError(f"must not end in {ending}: write {base}; the service appends /api/v3 itself")
        return url

    @property
    def half_live(self) -> bool:
        """Whether only one of the two addresses is the live exchange's: REST would then tell of another market."""
        hosts = (urlsplit(url).hostname for url in (self.ws_base_url, self.rest_base_url))
        return sum(host in _LIVE_HOSTS for host in hosts) == 1

    @property
    def needs_listing(self) -> bool:
        """Whether only the exchange can tell which symbols are meant."""
        return not self.streams and any(symbol.split(":")[0] == names.ALL for symbol in self.symbols)

    def stream_names(self, symbols: tuple[str, ...]) -> tuple[str, ...]:
        """Every stream to subscribe to: `streams` when given, else every one of these symbols with every type."""
        return self.streams or tuple(
            f"{symbol.lower()}@{stream_type}" for symbol in symbols for stream_type in self.stream_types
        )

    def named_streams(self) -> tuple[str, ...]:
        """Every stream that can be told without the exchange."""
        excluded = {symbol[1:] for symbol in self.symbols if symbol.startswith("-")}
        named = (symbol for symbol in self.symbols if symbol.split(":")[0] != names.ALL)
        return self.stream_names(
            tuple(symbol for symbol in named if not symbol.startswith("-") and symbol not in excluded)
        )

    def combined_url(self) -> str:
        """Return the exchange's combined endpoint: only there each frame names its stream.

        What stands before `/ws` or `/stream`, as a proxy may want it, stays.
        """
        parts = urlsplit(self.ws_base_url)
        before = re.sub(r"/(?:ws|stream)$", "", parts.path.rstrip("/")).rstrip("/")
        return f"{parts.scheme}://{parts.netloc}{before}/stream"


def _is_endpoint(server: str) -> bool:
    found = _ENDPOINT.fullmatch(server)
    return found is not None and 0 < int(found[1]) <= 65_535  # noqa: PLR2004 - the highest port


def _checked_url(url: str, schemes: tuple[str, ...]) -> Any:  # noqa: ANN401 - SplitResult, see urlsplit
    allowed = " or ".join(f"{scheme}://host[:port]" for scheme in schemes)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        usable = usable and not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"must be a URL like {allowed}, without user, query or fragment")
    return parts


def _needed() -> Any:  # noqa: ANN401 - like pydantic's Field
    """Return a default of None that is checked too: what is set elsewhere may ask for a value."""
    return Field(default=None, validate_default=True)


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


class KafkaConfig(_Section):
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

    _split = field_validator("bootstrap_servers", mode="before")(_listed)

    @field_validator("bootstrap_servers")
    @classmethod
    def _check_bootstrap_servers(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [server for server in servers if not _is_endpoint(server)]
        if wrong or not servers:
            named = [_without_secrets(server) for server in wrong]
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

    @field_validator("compression", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("acks", mode="before")
    @classmethod
    def _acks(cls, value: object) -> object:
        return "all" if str(value) == "-1" else str(value).lower()

    @field_validator("security_protocol", "sasl_mechanism", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

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


class ConnectionConfig(_Section):
    """How the exchange connection is kept, and when the buffer is flushed."""

    prefix = "CONNECTION_"
    model_config = SettingsConfigDict(env_prefix="CONNECTION_")

    reconnect_interval: Seconds = 5.0
    max_reconnect_interval: Seconds = 300.0
    max_retries: Annotated[int, Field(ge=0)] = 5
    batch_size: Positive = 100
    batch_timeout_seconds: Seconds = 5.0
    timeout_seconds: Seconds = 10.0
    silence_timeout_seconds: Seconds = 30.0
    stream_silence_timeout_seconds: Seconds = 30.0
    stream_silence_times: Annotated[float, Field(ge=2, le=10_000, allow_inf_nan=False)] = 20.0
    rotate_after_seconds: Annotated[float, Field(gt=0, le=86_100, allow_inf_nan=False)] = 82_800.0
    rotate_window: str | None = None
    rotate_overlap_seconds: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 60.0
    standby: bool = False

    @field_validator("rotate_window")
    @classmethod
    def _check_rotate_window(cls, window: str | None) -> str | None:
        if window and not (_WINDOW.fullmatch(window) and _seconds_of_day(window)):
            raise ValueError("must be two times of the day in UTC at least 10 minutes apart, such as 03:00-04:00")
        return window

    @property
    def window(self) -> tuple[int, int] | None:
        """When connections are replaced: from and to, in seconds of the day in UTC; None at any time."""
        return _seconds_of_day(self.rotate_window) if self.rotate_window else None


def _seconds_of_day(window: str) -> tuple[int, int] | None:
    """Read `HH:MM-HH:MM`, which may go over midnight; None when it is shorter than ten minutes."""
    start, end = (60 * (60 * int(time[:2]) + int(time[3:])) for time in window.split("-"))
    return (start, end) if (end - start) % 86_400 >= _SHORTEST_WINDOW else None


class BackfillConfig(_Section):
    """How what was missed is fetched over REST, and how long live events wait for it."""

    prefix = "BACKFILL_"
    model_config = SettingsConfigDict(env_prefix="BACKFILL_")

    enabled: bool = True
    weight_per_minute: Annotated[int, Field(ge=300, le=6000)] = 3000
    max_wait_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 10.0
    max_held_events: Annotated[int, Field(ge=0, le=10_000_000)] = 50_000
    snapshot_levels: Literal[100, 500, 1000, 5000] = 1000
    snapshot_interval_seconds: Seconds = 3600.0

    @field_validator("snapshot_levels", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


class DeliveryConfig(_Section):
    """The bound on what is accepted for Kafka and not acknowledged yet; memory stays below it."""

    prefix = "DELIVERY_"
    model_config = SettingsConfigDict(env_prefix="DELIVERY_")

    max_in_flight_records: Positive = 100_000
    max_in_flight_bytes: Positive = 32 * 1024 * 1024


class SpoolConfig(_Section):
    """Where events go while Kafka does not take them, and how much of the disk they may have."""

    prefix = "SPOOL_"
    model_config = SettingsConfigDict(env_prefix="SPOOL_")

    path: Path = Path("data/spool")
    max_bytes: Positive = 10 * 1024**3
    min_free_bytes: Annotated[int, Field(ge=0)] = 1024**3
    fsync: Literal["normal", "full"] = "normal"

    @field_validator("fsync", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


class ResumeConfig(_Section):
    """How a run goes on where the one before has ended."""

    checkpoint_interval_seconds: Seconds = 10.0
    resume_timeout_seconds: Seconds = 30.0


class ShardConfig(_Section):
    """This instance's share of the streams, where several instances divide them among each other."""

    prefix = "SHARD_"
    model_config = SettingsConfigDict(env_prefix="SHARD_")

    count: Annotated[int, Field(gt=0, le=shards.MOST)] = 1
    index: Annotated[int, Field(ge=0)] = 0

    @field_validator("index")
    @classmethod
    def _check_index(cls, index: int, info: ValidationInfo) -> int:
        count = info.data.get("count", shards.MOST)
        if index >= count:
            raise ValueError(f"must be less than SHARD_COUNT ({count}); the first shard is 0")
        return index


class LoggingConfig(_Section):
    """What is logged, and in which form."""

    prefix = "LOG_"
    model_config = SettingsConfigDict(env_prefix="LOG_")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "text"] = "json"

    @field_validator("level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


class MonitoringConfig(_Section):
    """Where the HTTP endpoints listen; port 0 turns them off."""

    prefix = "MONITORING_"
    model_config = SettingsConfigDict(env_prefix="MONITORING_")

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000


class ServiceConfig(_Section):
    """The main thread's own clock."""

    metrics_interval_seconds: Seconds = 30.0
    shutdown_timeout_seconds: Seconds = 25.0


class Settings(_Section):
    """All sections."""

    binance: BinanceConfig = Field(default_factory=BinanceConfig)
    kafka: KafkaConfig = Field(default_factory=KafkaConfig)
    connection: ConnectionConfig = Field(default_factory=ConnectionConfig)
    backfill: BackfillConfig = Field(default_factory=BackfillConfig)
    delivery: DeliveryConfig = Field(default_factory=DeliveryConfig)
    spool: SpoolConfig = Field(default_factory=SpoolConfig)
    resume: ResumeConfig = Field(default_factory=ResumeConfig)
    shard: ShardConfig = Field(default_factory=ShardConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    monitoring: MonitoringConfig = Field(default_factory=MonitoringConfig)
    service: ServiceConfig = Field(default_factory=ServiceConfig)

    def streams(self) -> tuple[str, ...]:
        """Return the streams that are named and that this instance subscribes to: its shard's share of all."""
        return shards.share(self.binance.named_streams(), self.shard.index, self.shard.count)

    def share_fault(self) -> str | None:
        """Say that this shard has no stream: such an instance would look alive and do nothing."""
        if self.streams() or self.binance.needs_listing:
            return None
        most = shards.most_shards(self.binance.named_streams(), below=self.shard.count)
        return (
            f"SHARD_COUNT='{self.shard.count}': leaves shard {self.shard.index} without a stream, since the name "
            "of a symbol decides on its shard; "
            f"must be at most {most} for these streams, or there must be more symbols"
        )


SECTIONS: dict[str, type[_Section]] = {
    "binance": BinanceConfig,
    "kafka": KafkaConfig,
    "connection": ConnectionConfig,
    "backfill": BackfillConfig,
    "delivery": DeliveryConfig,
    "spool": SpoolConfig,
    "resume": ResumeConfig,
    "shard": ShardConfig,
    "logging": LoggingConfig,
    "monitoring": MonitoringConfig,
    "service": ServiceConfig,
}


def known_variables() -> dict[str, tuple[type[_Section], str]]:
    """Map every environment variable to its section class and field."""
    return {name: (section, field) for section in SECTIONS.values() for name, field in section.variables().items()}


def load_settings(env_file: str | None = ".env") -> Settings:
    """Read and check all settings; raise `SettingsError` with every fault at once."""
    _check_env_file(env_file)
    given = _given(env_file)
    sections: dict[str, Any] = {}
    faults: list[str] = []
    for name, section in SECTIONS.items():
        try:
            sections[name] = section(_env_file=env_file)
        except ValidationError as error:
            faults += _faults(section, error, given)
    faults += _tls_faults(sections.get("kafka"), given)
    if faults:
        raise SettingsError(faults)
    sections["spool"] = _own_spool(sections["spool"], sections["shard"])
    return Settings.model_construct(**sections)


RELOADED = frozenset({"BINANCE_SYMBOLS", "BINANCE_STREAM_TYPES", "BINANCE_STREAMS"})
"""What a running service takes over from settings that have changed."""


def changed_variables(before: Settings, after: Settings) -> list[str]:
    """Name the variables whose values differ."""
    return [
        variable
        for name, section in SECTIONS.items()
        for variable, field in section.variables().items()
        if getattr(getattr(before, name), field) != getattr(getattr(after, name), field)
    ]


def unknown_variables(env_file: str | None = ".env") -> dict[str, str | None]:
    """Find set variables that carry one of our prefixes but no known name, each with the nearest known one.

    Others use some of the prefixes as well; with these only what looks like one of ours is meant for us.
    """
    known = known_variables()
    prefixes = (
        *("BACKFILL_", "BINANCE_", "KAFKA_", "CONNECTION_", "DELIVERY_", "MONITORING_", "SPOOL_", "SHARD_"),
        *("CHECKPOINT_", "RESUME_"),
    )
    of_others_too = ("LOG_", "METRICS_", "SHUTDOWN_")
    # Kubernetes gives each pod KAFKA_SERVICE_HOST, KAFKA_PORT_9092_TCP_ADDR and the like for a service "kafka",
    # and KAFKA_PORT=tcp://10.0.0.1:9092.
    injected = re.compile(
        r"\w+(_SERVICE_(HOST|PORT)(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*|\w+_PORT=(tcp|udp|sctp)://.*",
        re.DOTALL,
    )
    unknown = [
        name
        for name, value in sorted(_given(env_file).items())
        if name.startswith((*prefixes, *of_others_too)) and name not in known
        if not injected.fullmatch(f"{name}={value}")
    ]
    nearest: dict[str, str | None] = {}
    for name in unknown:
        shared = name.startswith(of_others_too)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75 if shared else 0.6)
        if near or not shared:
            nearest[name] = near[0] if near else None
    return nearest


def _check_env_file(env_file: str | None) -> None:
    """Refuse what python-dotenv would read past with a warning, or raise for."""
    if not env_file or not Path(env_file).is_file():
        return
    try:
        with Path(env_file).open(encoding=_ENCODING) as lines:
            wrong = [binding.original.line for binding in parse_stream(lines) if binding.error]
    except (OSError, UnicodeError) as error:
        raise SettingsError([f"{env_file}: must be a text file in UTF-8 that can be read: {error}"]) from None
    if wrong:
        raise SettingsError([f"{env_file} line {line}: must be NAME=value or a # comment" for line in wrong])


def _given(env_file: str | None) -> dict[str, str]:
    """Return what is set, by upper-case name; an empty value counts as not set."""
    from_file = dotenv_values(env_file, encoding=_ENCODING) if env_file and Path(env_file).is_file() else {}
    given = {name.upper(): value for name, value in from_file.items() if value}
    return given | {name.upper(): value for name, value in os.environ.items() if value}


def _faults(section: type[_Section], error: ValidationError, given: dict[str, str]) -> list[str]:
    faults = []
    for details in error.errors(include_url=False):
        field = str(details["loc"][0])
        variable, allowed = (section.prefix + field).upper(), _allowed(section, field, details["msg"])
        other = details.get("ctx", {}).get("other")
        if other and variable not in given:  # what was set is the other one
            variable, allowed = other, allowed.replace(other, variable)
        faults.append(f"{variable}={_shown(variable, given)}: {allowed}")
    return faults


def _own_spool(spool: SpoolConfig, shard: ShardConfig) -> SpoolConfig:
    """Give each of several shards a folder of its own in SPOOL_PATH."""
    return spool.model_copy(update={"path": shards.spool_folder(spool.path, shard.index, shard.count)})


def _tls_faults(kafka: KafkaConfig | None, given: dict[str, str]) -> list[str]:
    """Load certificates and keys once, so that a wrong one is told at the start."""
    if kafka is None or not kafka.security_protocol.endswith("SSL"):
        return []
    try:
        tls_context(kafka)
    except TlsUnusable as error:
        return [f"{error.variable}={_shown(error.variable, given)}: {error.allowed}"]
    return []


def _shown(variable: str, given: dict[str, str]) -> str:
    """Quote a wrong value in one line, without what is secret in it or may be."""
    value = given.get(variable, "")
    secret_file = variable.endswith("_FILE") and not value.startswith(
        ("/", ".")
    )  # the secret instead of its file?
    if secret_file or variable.endswith("PASSWORD"):
        return "***"
    if variable.endswith(("_URL", "_SERVERS")):
        value = _without_secrets(value)
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")


def _without_secrets(address: str) -> str:
    """Hide the user and the password of addresses, and keys in their query."""
    address = re.sub(r"//[^/,]*@", "//***@", address)
    address = re.sub(r"(^|,)(\w+://|(?!\w+://))[^,]*:[^,]*@", r"\1\2***@", address)  # `@` is in streams too
    return re.sub(r"(?i)((?:key|token|secret|password|signature)=)[^&#]*", r"\1***", address)


def _allowed(section: type[_Section], field: str, message: str) -> str:
    """Say in words of our own what a number or a flag may be; for the rest the message says it."""
    declared = section.model_fields[field]
    if message.startswith("Value error, "):  # of a check of our own
        return message.removeprefix("Value error, ")
    if declared.annotation is bool:
        return "must be true or false"
    if declared.annotation not in (int, float):
        message = message.replace("String should have", "must have")
        return message.replace("Input should be", "must be")
    words = {"gt": "greater than", "ge": "at least", "le": "at most"}
    bounds = [
        f"{word} {getattr(limit, name)}"
        for limit in declared.metadata
        for name, word in words.items()
        if getattr(limit, name, None) is not None
    ]
    kind = "a whole number" if declared.annotation is int else "a number"
    return f"must be {kind} {' and '.join(bounds)}"
