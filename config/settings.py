"""The settings: environment over `.env` over defaults, frozen, in sections, checked before anything is opened.

`load_settings()` returns them or raises `SettingsError` with one readable line per fault. Names, defaults
and meanings are the contract with the user; `.env.example` and README.md list them.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from config import shards
from config.binance import BinanceConfig
from config.environment import check_env_file, given_variables
from config.faults import SettingsError, section_faults, shown
from config.kafka import KafkaConfig
from config.section import Positive, Seconds, Section, lowered, uppered
from config.tls import TlsUnusable, tls_context

_WINDOW = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d-(?:[01]\d|2[0-3]):[0-5]\d")
_SHORTEST_WINDOW = 600  # seconds


class ConnectionConfig(Section):
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


class BackfillConfig(Section):
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


class DeliveryConfig(Section):
    """The bound on what is accepted for Kafka and not acknowledged yet; memory stays below it."""

    prefix = "DELIVERY_"
    model_config = SettingsConfigDict(env_prefix="DELIVERY_")

    max_in_flight_records: Positive = 100_000
    max_in_flight_bytes: Positive = 32 * 1024 * 1024


class SpoolConfig(Section):
    """Where events go while Kafka does not take them, and how much of the disk they may have."""

    prefix = "SPOOL_"
    model_config = SettingsConfigDict(env_prefix="SPOOL_")

    path: Path = Path("data/spool")
    max_bytes: Positive = 10 * 1024**3
    min_free_bytes: Annotated[int, Field(ge=0)] = 1024**3
    fsync: Literal["normal", "full"] = "normal"

    _lower = field_validator("fsync", mode="before")(lowered)


class ResumeConfig(Section):
    """How a run goes on where the one before has ended."""

    checkpoint_interval_seconds: Seconds = 10.0
    resume_timeout_seconds: Seconds = 30.0


class ShardConfig(Section):
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


class LoggingConfig(Section):
    """What is logged, and in which form."""

    prefix = "LOG_"
    model_config = SettingsConfigDict(env_prefix="LOG_")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "text"] = "json"

    _upper = field_validator("level", mode="before")(uppered)

    _lower = field_validator("format", mode="before")(lowered)


class MonitoringConfig(Section):
    """Where the HTTP endpoints listen; port 0 turns them off."""

    prefix = "MONITORING_"
    model_config = SettingsConfigDict(env_prefix="MONITORING_")

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000


class ServiceConfig(Section):
    """The main thread's own clock."""

    metrics_interval_seconds: Seconds = 30.0
    shutdown_timeout_seconds: Seconds = 25.0


class Settings(Section):
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


SECTIONS = cast(
    "dict[str, type[Section]]", {name: field.annotation for name, field in Settings.model_fields.items()}
)


def known_variables() -> dict[str, tuple[type[Section], str]]:
    """Map every environment variable to its section class and field."""
    return {name: (section, field) for section in SECTIONS.values() for name, field in section.variables().items()}


def load_settings(env_file: str | None = ".env") -> Settings:
    """Read and check all settings; raise `SettingsError` with every fault at once."""
    check_env_file(env_file)
    given = given_variables(env_file)
    sections: dict[str, Any] = {}
    faults: list[str] = []
    for name, section in SECTIONS.items():
        try:
            sections[name] = section(_env_file=env_file)
        except ValidationError as error:
            faults += section_faults(section, error, given)
    faults += _tls_faults(sections.get("kafka"), given)
    if faults:
        raise SettingsError(faults)
    sections["spool"] = _own_spool(sections["spool"], sections["shard"])
    return Settings.model_construct(**sections)


def _tls_faults(kafka: KafkaConfig | None, given: dict[str, str]) -> list[str]:
    """Load certificates and keys once, so that a wrong one is told at the start."""
    if kafka is None or not kafka.security_protocol.endswith("SSL"):
        return []
    try:
        tls_context(kafka)
    except TlsUnusable as error:
        return [f"{error.variable}={shown(error.variable, given)}: {error.allowed}"]
    return []


def _own_spool(spool: SpoolConfig, shard: ShardConfig) -> SpoolConfig:
    """Give each of several shards a folder of its own in SPOOL_PATH."""
    return spool.model_copy(update={"path": shards.spool_folder(spool.path, shard.index, shard.count)})


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
    prefixes = tuple({name.partition("_")[0] + "_" for name in known})
    of_others_too = ("LOG_", "METRICS_", "SHUTDOWN_")
    # Kubernetes gives each pod KAFKA_SERVICE_HOST, KAFKA_PORT_9092_TCP_ADDR and the like for a service "kafka",
    # and KAFKA_PORT=tcp://10.0.0.1:9092.
    injected = re.compile(
        r"\w+(_SERVICE_(HOST|PORT)(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*|\w+_PORT=(tcp|udp|sctp)://.*",
        re.DOTALL,
    )
    unknown = [
        name
        for name, value in sorted(given_variables(env_file).items())
        if name.startswith(prefixes) and name not in known
        if not injected.fullmatch(f"{name}={value}")
    ]
    nearest: dict[str, str | None] = {}
    for name in unknown:
        shared = name.startswith(of_others_too)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75 if shared else 0.6)
        if near or not shared:
            nearest[name] = near[0] if near else None
    return nearest
