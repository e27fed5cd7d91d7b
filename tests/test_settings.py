"""Settings: where a value comes from, what is refused and how, and that `.env.example` is the whole truth."""

from __future__ import annotations

import os
import re
import ssl
from collections import Counter
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from config.faults import SettingsError
from config.settings import SECTIONS, Settings, known_variables, load_settings, unknown_variables

EXAMPLE = Path(__file__).resolve().parents[1] / ".env.example"
DEFAULTS: dict[str, object] = {
    "BINANCE_SYMBOLS": ("BTCUSDT", "ETHUSDT", "BNBUSDT", "ADAUSDT", "XRPUSDT"),
    "BINANCE_STREAM_TYPES": ("aggTrade", "depth@100ms", "trade", "kline_1m"),
    "BINANCE_STREAMS": (),
    "BINANCE_WS_BASE_URL": "wss://stream.binance.com:9443/ws",
    "BINANCE_REST_BASE_URL": "https://api.binance.com",
    "BINANCE_LISTING_INTERVAL_SECONDS": 86_400,
    "KAFKA_BOOTSTRAP_SERVERS": ("localhost:9092",),
    "KAFKA_TOPIC_RAW_EVENTS": "binance-raw-events",
    "KAFKA_TOPIC_TRADES": "binance-trades",
    "KAFKA_TOPIC_DEPTH": "binance-depth",
    "KAFKA_TOPIC_DEAD_LETTERS": "binance-dead-letters",
    "KAFKA_TOPIC_GAPS": "binance-gaps",
    "KAFKA_TOPIC_CHECKPOINTS": "binance-checkpoints",
    "KAFKA_MIRROR_RAW_EVENTS": False,
    "KAFKA_PARTITIONS": 3,
    "KAFKA_REPLICATION_FACTOR": 1,
    "KAFKA_COMPRESSION": "snappy",
    "KAFKA_BATCH_SIZE": 16384,
    "KAFKA_LINGER_MS": 10,
    "KAFKA_RETRIES": 3,
    "KAFKA_MAX_IN_FLIGHT": 5,
    "KAFKA_ACKS": "all",
    "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
    "KAFKA_SASL_MECHANISM": None,
    "KAFKA_SASL_PLAIN_USERNAME_FILE": None,
    "KAFKA_SASL_PLAIN_USERNAME": None,
    "KAFKA_SASL_PLAIN_PASSWORD_FILE": None,
    "KAFKA_SASL_PASSWORD_FILE": None,
    "KAFKA_SASL_PLAIN_PASSWORD": None,
    "KAFKA_SASL_KERBEROS_SERVICE_NAME": None,
    "KAFKA_SASL_KERBEROS_DOMAIN_NAME": None,
    "KAFKA_SSL_CHECK_HOSTNAME": True,
    "KAFKA_SSL_CAFILE": None,
    "KAFKA_SSL_CERTFILE": None,
    "KAFKA_SSL_KEYFILE": None,
    "KAFKA_SSL_CRLFILE": None,
    "KAFKA_SSL_PASSWORD_FILE": None,
    "KAFKA_SSL_PASSWORD": None,
    "KAFKA_SSL_CIPHERS": None,
    "CONNECTION_RECONNECT_INTERVAL": 5,
    "CONNECTION_MAX_RECONNECT_INTERVAL": 300,
    "CONNECTION_MAX_RETRIES": 5,
    "CONNECTION_BATCH_SIZE": 100,
    "CONNECTION_BATCH_TIMEOUT_SECONDS": 5,
    "CONNECTION_TIMEOUT_SECONDS": 10,
    "CONNECTION_SILENCE_TIMEOUT_SECONDS": 30,
    "CONNECTION_STREAM_SILENCE_TIMEOUT_SECONDS": 30,
    "CONNECTION_STREAM_SILENCE_TIMES": 20,
    "CONNECTION_ROTATE_AFTER_SECONDS": 82_800,
    "CONNECTION_ROTATE_WINDOW": None,
    "CONNECTION_ROTATE_OVERLAP_SECONDS": 60,
    "CONNECTION_STANDBY": False,
    "BACKFILL_ENABLED": True,
    "BACKFILL_WEIGHT_PER_MINUTE": 3000,
    "BACKFILL_MAX_WAIT_SECONDS": 10,
    "BACKFILL_MAX_HELD_EVENTS": 50_000,
    "BACKFILL_SNAPSHOT_LEVELS": 1000,
    "BACKFILL_SNAPSHOT_INTERVAL_SECONDS": 3600,
    "DELIVERY_MAX_IN_FLIGHT_RECORDS": 100_000,
    "DELIVERY_MAX_IN_FLIGHT_BYTES": 33_554_432,
    "SPOOL_PATH": Path("data/spool"),
    "SPOOL_MAX_BYTES": 10 * 1024**3,
    "SPOOL_MIN_FREE_BYTES": 1024**3,
    "SPOOL_FSYNC": "normal",
    "CHECKPOINT_INTERVAL_SECONDS": 10,
    "RESUME_TIMEOUT_SECONDS": 30,
    "SHARD_INDEX": 0,
    "SHARD_COUNT": 1,
    "LOG_LEVEL": "INFO",
    "LOG_FORMAT": "json",
    "METRICS_INTERVAL_SECONDS": 30,
    "SHUTDOWN_TIMEOUT_SECONDS": 25,
    "MONITORING_HOST": "127.0.0.1",
    "MONITORING_PORT": 8000,
}
"""The contract's table, as far as its capabilities exist."""
SECRET_FILES = {
    "KAFKA_SASL_PLAIN_USERNAME_FILE": "KAFKA_SASL_PLAIN_USERNAME",
    "KAFKA_SASL_PLAIN_PASSWORD_FILE": "KAFKA_SASL_PLAIN_PASSWORD",
    "KAFKA_SASL_PASSWORD_FILE": "KAFKA_SASL_PLAIN_PASSWORD",
    "KAFKA_SSL_PASSWORD_FILE": "KAFKA_SSL_PASSWORD",
}
"""Each file with the setting that it stands for; not both may be set."""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith(
            (
                *("BACKFILL_", "BINANCE_", "KAFKA_", "CONNECTION_", "DELIVERY_", "SPOOL_", "SHARD_", "LOG_"),
                "MONITORING_",
            )
        ):
            monkeypatch.delenv(name)
    for name in ("METRICS_INTERVAL_SECONDS", "SHUTDOWN_TIMEOUT_SECONDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def value_of(settings: Settings, variable: str) -> object:
    section, field = known_variables()[variable]
    (part,) = (part for name in SECTIONS if isinstance(part := getattr(settings, name), section))
    value = getattr(part, field)
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def faults() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return caught.value.faults


# Where a value comes from


def test_every_default_is_the_contracts() -> None:
    settings = load_settings()
    assert {variable: value_of(settings, variable) for variable in known_variables()} == DEFAULTS


PARSED = [
    ("BINANCE_SYMBOLS", "btcusdt, ETHusdt ,,btcusdt,BTCUSDT", ("BTCUSDT", "ETHUSDT")),
    ("BINANCE_SYMBOLS", '["solusdt", "BTCUSDT"]', ("SOLUSDT", "BTCUSDT")),
    ("BINANCE_SYMBOLS", "这是测试币456", ("这是测试币456",)),
    ("BINANCE_STREAM_TYPES", "bookTicker,kline_1M@+08:00", ("bookTicker", "kline_1M@+08:00")),
    ("BINANCE_STREAMS", "btcusdt@aggTrade,!miniTicker@arr", ("btcusdt@aggTrade", "!miniTicker@arr")),
    ("BINANCE_STREAMS", ' ["btcusdt@depth@100ms"] ', ("btcusdt@depth@100ms",)),
    ("BINANCE_STREAMS", "[]", ()),
    ("BINANCE_WS_BASE_URL", "ws://127.0.0.1:1234", "ws://127.0.0.1:1234"),
    (
        "BINANCE_WS_BASE_URL",
        "wss://data-stream.binance.vision/stream/",
        "wss://data-stream.binance.vision/stream/",
    ),
    ("BINANCE_REST_BASE_URL", "https://data-api.binance.vision/", "https://data-api.binance.vision"),
    ("BINANCE_REST_BASE_URL", "http://proxy/api/binance", "http://proxy/api/binance"),
    ("KAFKA_BOOTSTRAP_SERVERS", " a:1 , b-c.d_e:65535,[::1]:9092", ("a:1", "b-c.d_e:65535", "[::1]:9092")),
    ("KAFKA_BOOTSTRAP_SERVERS", '["a:1","b:2"]', ("a:1", "b:2")),
    ("KAFKA_TOPIC_DEPTH", "a.B_c-9", "a.B_c-9"),
    ("KAFKA_MIRROR_RAW_EVENTS", "TRUE", True),
    ("KAFKA_MIRROR_RAW_EVENTS", "1", True),
    ("KAFKA_COMPRESSION", "ZSTD", "zstd"),
    ("KAFKA_ACKS", "-1", "all"),
    ("KAFKA_ACKS", "ALL", "all"),
    ("KAFKA_ACKS", "1", "1"),
    ("KAFKA_SECURITY_PROTOCOL", "ssl", "SSL"),
    ("KAFKA_SASL_MECHANISM", "scram-sha-512", "SCRAM-SHA-512"),
    ("KAFKA_SASL_PLAIN_PASSWORD", ' "blanks stay" ', ' "blanks stay" '),
    ("KAFKA_SSL_PASSWORD", " x ", " x "),
    ("KAFKA_SSL_CHECK_HOSTNAME", "false", False),
    ("KAFKA_SSL_CIPHERS", "ECDHE+AESGCM", "ECDHE+AESGCM"),
    ("CONNECTION_RECONNECT_INTERVAL", "0.05", 0.05),
    ("CONNECTION_MAX_RETRIES", "0", 0),
    ("BACKFILL_ENABLED", "false", False),
    ("BACKFILL_WEIGHT_PER_MINUTE", "300", 300),
    ("BACKFILL_MAX_WAIT_SECONDS", "0", 0),
    ("BACKFILL_SNAPSHOT_LEVELS", "5000", 5000),
    ("SPOOL_PATH", "/srv/spool", Path("/srv/spool")),
    ("SPOOL_MIN_FREE_BYTES", "0", 0),
    ("SPOOL_FSYNC", "FULL", "full"),
    ("LOG_LEVEL", "debug", "DEBUG"),
    ("LOG_FORMAT", "Text", "text"),
    ("MONITORING_PORT", " 0 ", 0),
    ("SHUTDOWN_TIMEOUT_SECONDS", "1.5", 1.5),
]


@pytest.mark.parametrize(("variable", "given", "parsed"), PARSED)
def test_a_value_is_read_from_the_environment(
    variable: str, given: str, parsed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, given)
    settings = load_settings()
    others = {name: value for name, value in DEFAULTS.items() if name != variable}
    assert value_of(settings, variable) == parsed
    assert {name: value_of(settings, name) for name in others} == others


def test_every_variable_is_read_from_the_environment_and_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path("own.pem")
    own.touch()
    given = {name: str(value + 1) for name, value in DEFAULTS.items() if type(value) is int and value != 5}
    given |= {"CONNECTION_MAX_RETRIES": "6", "KAFKA_MAX_IN_FLIGHT": "4", "CONNECTION_RECONNECT_INTERVAL": "6"}
    given |= {"CONNECTION_STANDBY": "true", "CONNECTION_ROTATE_WINDOW": "03:00-04:00"}
    given |= {"CONNECTION_BATCH_TIMEOUT_SECONDS": "6", "KAFKA_TOPIC_DEPTH": "d", "KAFKA_TOPIC_TRADES": "t"}
    given |= {
        "KAFKA_TOPIC_RAW_EVENTS": "r",
        "KAFKA_TOPIC_DEAD_LETTERS": "l",
        "KAFKA_TOPIC_GAPS": "g",
        "KAFKA_TOPIC_CHECKPOINTS": "c",
        "SPOOL_PATH": "elsewhere",
        "MONITORING_HOST": "::1",
        "LOG_FORMAT": "text",
    }
    given |= {
        f"KAFKA_SASL_{name}": "x" for name in ("KERBEROS_SERVICE_NAME", "KERBEROS_DOMAIN_NAME", "PLAIN_USERNAME")
    }
    given |= {f"KAFKA_SSL_{name}FILE": str(own) for name in ("CA", "CERT", "KEY", "CRL")}
    given |= {variable: text for variable, text, parsed in PARSED if parsed}
    for name in ("KAFKA_SSL_CHECK_HOSTNAME", "SHUTDOWN_TIMEOUT_SECONDS", "CONNECTION_RECONNECT_INTERVAL"):
        given[name] = {"KAFKA_SSL_CHECK_HOSTNAME": "false"}.get(name, "7")
    given["BACKFILL_ENABLED"] = "false"
    given["KAFKA_SECURITY_PROTOCOL"] = "sasl_plaintext"  # with TLS the files would have to be real ones
    assert given.keys() == DEFAULTS.keys() - SECRET_FILES.keys()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    from_environment = load_settings(None)
    for name in given:
        monkeypatch.delenv(name)
    Path(".env").write_text("".join(f"{name}='{value}'\n" for name, value in given.items()), encoding="utf-8")
    from_file = load_settings()
    for name in given:
        default = DEFAULTS[name]
        assert value_of(from_environment, name) != default, name
        assert value_of(from_file, name) == value_of(from_environment, name), name


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("KAFKA_PARTITIONS=7\nKAFKA_RETRIES=8\nLOG_LEVEL=ERROR\n", encoding="utf-8")
    monkeypatch.setenv("KAFKA_PARTITIONS", "9")
    settings = load_settings()
    assert (settings.kafka.partitions, settings.kafka.retries, settings.kafka.linger_ms) == (9, 8, 10)
    assert settings.logging.level == "ERROR"


def test_an_empty_value_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("KAFKA_PARTITIONS=7\nKAFKA_RETRIES=\nLOG_LEVEL\n", encoding="utf-8")
    monkeypatch.setenv("KAFKA_PARTITIONS", "")
    settings = load_settings()
    assert (settings.kafka.partitions, settings.kafka.retries, settings.logging.level) == (7, 3, "INFO")


def test_the_file_may_be_written_in_any_usual_way() -> None:
    text = "\ufeffBINANCE_SYMBOLS=ethusdt\r\nexport LOG_LEVEL='debug' # why\r\n"
    text += "\r\n#KAFKA_RETRIES=9\r\nkafka_partitions = 4\r\n"
    Path(".env").write_bytes(text.encode())
    settings = load_settings()
    assert settings.binance.symbols == ("ETHUSDT",)
    assert (settings.logging.level, settings.kafka.retries, settings.kafka.partitions) == ("DEBUG", 3, 4)
    assert unknown_variables() == {}


def test_a_file_that_is_not_there_is_no_fault() -> None:
    assert load_settings("nowhere/.env") == load_settings(None)


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.kafka = settings.kafka  # type: ignore[misc]
    for name, section in SECTIONS.items():
        with pytest.raises(ValidationError):
            setattr(getattr(settings, name), next(iter(section.model_fields)), 1)


def test_every_symbol_is_read_with_every_type_unless_streams_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINANCE_SYMBOLS", "BTCUSDT,ethusdt")
    monkeypatch.setenv("BINANCE_STREAM_TYPES", "trade,depth@100ms")
    expected = ("btcusdt@trade", "btcusdt@depth@100ms", "ethusdt@trade", "ethusdt@depth@100ms")
    assert load_settings().binance.named_streams() == expected
    monkeypatch.setenv("BINANCE_STREAMS", "bnbusdt@bookTicker")
    assert load_settings().binance.named_streams() == ("bnbusdt@bookTicker",)


def test_all_of_a_market_can_be_chosen_and_names_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINANCE_SYMBOLS", "all:usdt, BTCEUR, -dogeusdt, ETHEUR, -ETHEUR")
    monkeypatch.setenv("BINANCE_STREAM_TYPES", "trade")
    config = load_settings().binance
    assert config.symbols == ("ALL:USDT", "BTCEUR", "-DOGEUSDT", "ETHEUR", "-ETHEUR")
    assert config.needs_listing
    assert config.named_streams() == ("btceur@trade",)
    monkeypatch.setenv("BINANCE_STREAMS", "btcusdt@trade")
    assert not load_settings().binance.needs_listing


@pytest.mark.parametrize(
    "choice", ["ALL:", "ALL:US-DT", "-", "-ALL", "--BTCUSDT", "-BTCUSDT", "BTC:USDT", "-ALL:USDT", "A,-a"]
)
def test_a_choice_that_means_nothing_is_refused(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINANCE_SYMBOLS", choice)
    (fault,) = faults()
    assert "ALL:<quote asset>" in fault


@pytest.mark.parametrize(
    ("window", "seconds"),
    [("03:00-04:00", (10_800, 14_400)), ("23:50-00:10", (85_800, 600)), ("00:00-23:59", (0, 86_340))],
)
def test_a_daily_window_is_read(window: str, seconds: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONNECTION_ROTATE_WINDOW", window)
    assert load_settings().connection.window == seconds


@pytest.mark.parametrize("window", ["3:00-4:00", "03:00", "03:00-03:09", "24:00-01:00", "03:00-04:60", "noon"])
def test_a_window_that_is_none_or_too_short_is_refused(window: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONNECTION_ROTATE_WINDOW", window)
    (fault,) = faults()
    assert fault.startswith(f"CONNECTION_ROTATE_WINDOW='{window}': must be two times")


@pytest.mark.parametrize("ending", ["", "/", "/ws", "/ws/", "/stream"])
def test_any_base_url_leads_to_the_combined_endpoint(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINANCE_WS_BASE_URL", f"wss://stream.binance.com:9443{ending}")
    assert load_settings().binance.combined_url() == "wss://stream.binance.com:9443/stream"


@pytest.mark.parametrize("ending", ["", "/", "/ws", "/ws/", "/stream"])
def test_a_path_before_the_ending_of_the_base_url_is_kept(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINANCE_WS_BASE_URL", f"ws://127.0.0.1:9000/fake/my-proxy_1.0{ending}")
    assert load_settings().binance.combined_url() == "ws://127.0.0.1:9000/fake/my-proxy_1.0/stream"


def test_a_host_is_never_taken_for_the_ending_of_the_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("ws", "stream"):
        monkeypatch.setenv("BINANCE_WS_BASE_URL", f"ws://{host}")
        assert load_settings().binance.combined_url() == f"ws://{host}/stream"


@pytest.mark.parametrize(
    ("url", "fallback"),
    [
        ("wss://stream.binance.com:9443/ws", None),
        ("wss://data-stream.binance.vision", None),
        ("ws://127.0.0.1:9443/ws", "ws://127.0.0.1:9443/ws"),
        ("wss://proxy.example/binance/ws", "wss://proxy.example/binance/ws"),
    ],
)
def test_only_a_host_that_is_not_the_live_exchanges_may_lack_the_combined_endpoint(
    url: str, fallback: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BINANCE_WS_BASE_URL", url)
    assert load_settings().binance.fallback_url == fallback


@pytest.mark.parametrize(
    ("ws_base_url", "rest_base_url", "half_live"),
    [
        ("wss://stream.binance.com:9443/ws", "https://api.binance.com", False),
        ("wss://data-stream.binance.vision/stream", "https://api.binance.com", False),
        ("wss://stream.binance.com:443", "https://data-api.binance.vision", False),
        ("wss://STREAM.binance.com:9443/ws", "https://api3.binance.com", False),
        ("wss://stream.testnet.binance.vision/ws", "https://testnet.binance.vision", False),
        ("ws://127.0.0.1:9443/ws", "http://127.0.0.1:9443", False),
        ("ws://127.0.0.1:9443/ws", "https://api.binance.com", True),
        ("wss://stream.testnet.binance.vision/ws", "https://api.binance.com", True),
        ("wss://stream.binance.com:9443/ws", "https://testnet.binance.vision", True),
    ],
)
def test_two_addresses_of_which_one_is_the_live_exchange_are_noticed(
    ws_base_url: str, rest_base_url: str, *, half_live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BINANCE_WS_BASE_URL", ws_base_url)
    monkeypatch.setenv("BINANCE_REST_BASE_URL", rest_base_url)
    assert load_settings().binance.half_live is half_live


# What is refused

NUMBERS = "must be a whole number greater than 0"
PORTS = "must be a whole number at least 0 and at most 65535"
SECONDS = "must be a number greater than 0 and at most 604800"
WRONG = [
    ("BINANCE_SYMBOLS", '["BTCUSDT"', "JSON list"),
    ("BINANCE_SYMBOLS", '["BTCUSDT",1]', "JSON list"),
    ("BINANCE_SYMBOLS", "[" * 5000, "JSON list"),
    ("BINANCE_SYMBOLS", '[["BTCUSDT"]]', "JSON list"),
    ("BINANCE_SYMBOLS", "[]", "at least one symbol: letters and digits"),
    ("BINANCE_SYMBOLS", ",", "at least one symbol"),
    (
        "BINANCE_SYMBOLS",
        "BTC/USDT",
        "'BTC/USDT' is not a symbol, did you mean 'BTCUSDT'?; allowed: letters and digits",
    ),
    ("BINANCE_SYMBOLS", "BTCUSDT;ETHUSDT", "is not a symbol"),
    ("BINANCE_STREAM_TYPES", "trades", "did you mean 'trade'?; allowed: aggTrade, trade"),
    ("BINANCE_STREAM_TYPES", "[]", "at least one stream type: aggTrade, trade"),
    ("BINANCE_STREAMS", "BTCUSDT@trade", "did you mean 'btcusdt@trade'?; allowed: !miniTicker@arr"),
    ("BINANCE_STREAMS", "!ticker@arr", "retired by the exchange on 2026-03-26; allowed: !miniTicker@arr"),
    ("BINANCE_WS_BASE_URL", "https://stream.binance.com", "ws://host[:port] or wss://host[:port]"),
    ("BINANCE_WS_BASE_URL", "wss://:9443", "wss://host[:port]"),
    ("BINANCE_WS_BASE_URL", "wss://host:99999", "wss://host[:port]"),
    ("BINANCE_WS_BASE_URL", "wss://host:0", "wss://host[:port]"),
    ("BINANCE_WS_BASE_URL", "wss://[::1", "wss://host[:port]"),
    ("BINANCE_WS_BASE_URL", "stream.binance.com:9443", "wss://host[:port]"),
    ("BINANCE_WS_BASE_URL", "wss://host/ws/btcusdt@trade", "streams go into BINANCE_STREAMS"),
    ("BINANCE_WS_BASE_URL", "wss://host/!miniTicker@arr/ws", "streams go into BINANCE_STREAMS"),
    ("BINANCE_WS_BASE_URL", "wss://host/a b/ws", "letters, digits and . _ ~ % + -"),
    ("BINANCE_WS_BASE_URL", "wss://host/stream?streams=btcusdt@trade", "without user, query or fragment"),
    ("BINANCE_REST_BASE_URL", "ftp://host", "http://host[:port] or https://host[:port]"),
    ("BINANCE_REST_BASE_URL", "https://host#x", "without user, query or fragment"),
    ("BINANCE_REST_BASE_URL", "https://testnet.binance.vision/api", "write https://testnet.binance.vision; "),
    ("BINANCE_REST_BASE_URL", "https://api.binance.com/api/v3/", "must not end in /api/v3: "),
    (
        "KAFKA_BOOTSTRAP_SERVERS",
        "localhost",
        "must be host:port, one or several separated by commas; not ['localhost']",
    ),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:1,b:65536", "not ['b:65536']"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:0", "host:port"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:1 b:2", "host:port"),
    ("KAFKA_BOOTSTRAP_SERVERS", "PLAINTEXT://a:1", "host:port"),
    ("KAFKA_BOOTSTRAP_SERVERS", ",", "host:port"),
    ("KAFKA_TOPIC_TRADES", "a b", "1 to 249 of the characters a-z A-Z 0-9 . _ -"),
    ("KAFKA_TOPIC_RAW_EVENTS", "..", "1 to 249"),
    ("KAFKA_TOPIC_DEPTH", "x" * 250, "1 to 249"),
    ("KAFKA_TOPIC_GAPS", "binance-dead-letters", "of its own, not that of KAFKA_TOPIC_DEAD_LETTERS"),
    ("KAFKA_TOPIC_CHECKPOINTS", "binance-dead-letters", "of its own, not that of KAFKA_TOPIC_DEAD_LETTERS"),
    ("KAFKA_MIRROR_RAW_EVENTS", "maybe", "must be true or false"),
    ("KAFKA_SSL_CHECK_HOSTNAME", "2", "must be true or false"),
    ("KAFKA_PARTITIONS", "three", f"{NUMBERS} and at most 10000"),
    ("KAFKA_PARTITIONS", "0", f"{NUMBERS} and at most 10000"),
    ("KAFKA_PARTITIONS", "9" * 5000, f"{NUMBERS} and at most 10000"),
    ("KAFKA_REPLICATION_FACTOR", "101", f"{NUMBERS} and at most 100"),
    ("KAFKA_COMPRESSION", "zip", "must be 'gzip', 'snappy', 'lz4', 'zstd' or 'none'"),
    ("KAFKA_BATCH_SIZE", "1.5", f"{NUMBERS} and at most 1000000"),
    ("KAFKA_LINGER_MS", "-1", "must be a whole number at least 0 and at most 60000"),
    ("KAFKA_RETRIES", "-1", "must be a whole number at least 0 and at most 2147483647"),
    ("KAFKA_MAX_IN_FLIGHT", "6", f"{NUMBERS} and at most 5"),
    ("KAFKA_ACKS", "2", "must be 'all', '1' or '0'"),
    ("KAFKA_SECURITY_PROTOCOL", "TLS", "must be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'"),
    ("KAFKA_SASL_MECHANISM", "MD5", "must be 'PLAIN', 'GSSAPI', 'SCRAM-SHA-256' or 'SCRAM-SHA-512'"),
    ("KAFKA_SSL_CAFILE", "nowhere.pem", "must be the path of a file that exists and can be read"),
    ("KAFKA_SSL_KEYFILE", "/", "must be the path of a file that exists and can be read"),
    ("CONNECTION_RECONNECT_INTERVAL", "nan", SECONDS),
    ("CONNECTION_MAX_RECONNECT_INTERVAL", "inf", SECONDS),
    ("CONNECTION_MAX_RETRIES", "1.5", "must be a whole number at least 0"),
    ("CONNECTION_BATCH_SIZE", "0", NUMBERS),
    ("CONNECTION_BATCH_TIMEOUT_SECONDS", "0", SECONDS),
    ("CONNECTION_TIMEOUT_SECONDS", "10s", SECONDS),
    ("CONNECTION_SILENCE_TIMEOUT_SECONDS", "-1", SECONDS),
    ("DELIVERY_MAX_IN_FLIGHT_RECORDS", "0", NUMBERS),
    ("DELIVERY_MAX_IN_FLIGHT_BYTES", "100MB", NUMBERS),
    ("SPOOL_MAX_BYTES", "0", NUMBERS),
    ("SPOOL_MIN_FREE_BYTES", "-1", "must be a whole number at least 0"),
    ("SPOOL_FSYNC", "off", "must be 'normal' or 'full'"),
    ("LOG_LEVEL", "LOUD", "must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ("LOG_FORMAT", "xml", "must be 'json' or 'text'"),
    ("METRICS_INTERVAL_SECONDS", "1e99", SECONDS),
    ("SHUTDOWN_TIMEOUT_SECONDS", "0", SECONDS),
    ("MONITORING_HOST", " ", "must have at least 1 character"),
    ("MONITORING_PORT", "70000", PORTS),
    ("MONITORING_PORT", "tcp://10.0.0.1:8000", PORTS),
]


@pytest.mark.parametrize(("variable", "given", "allowed"), WRONG)
@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_wrong_value_gives_one_line_with_variable_value_and_what_is_allowed(
    variable: str, given: str, allowed: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "file":
        Path(".env").write_text(f"{variable}='{given}'\n", encoding="utf-8")
    else:
        monkeypatch.setenv(variable, given)
    (line,) = faults()
    shown = given if len(given) <= 200 else given[:200] + "…"
    assert line.startswith(f"{variable}={shown!r}: ")
    assert allowed in line
    assert "\n" not in line
    assert len(line) < 1000


def test_all_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {variable: given for variable, given, _ in WRONG}
    for variable, given in wrong.items():
        monkeypatch.setenv(variable, given)
    assert sorted(line.partition("=")[0] for line in faults()) == sorted(wrong)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).count("\n") == len(wrong) - 1
    assert caught.value.__cause__ is None


def test_a_topic_that_two_variables_name_is_blamed_on_the_one_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "must be a topic of its own, not that of"
    monkeypatch.setenv("KAFKA_TOPIC_TRADES", "binance-gaps")
    assert faults() == [f"KAFKA_TOPIC_TRADES='binance-gaps': {words} KAFKA_TOPIC_GAPS"]
    monkeypatch.setenv("KAFKA_TOPIC_GAPS", "binance-gaps")
    assert faults() == [f"KAFKA_TOPIC_GAPS='binance-gaps': {words} KAFKA_TOPIC_TRADES"]
    monkeypatch.setenv("KAFKA_TOPIC_GAPS", "gaps")
    load_settings()


def test_line_breaks_in_a_value_do_not_break_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "a\nb\x1b[31m")
    assert faults() == ["LOG_LEVEL='a\\nb\\x1b[31m': must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"]


def test_sasl_says_everything_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "sasl_ssl")
    (line,) = faults()
    assert line.startswith("KAFKA_SASL_MECHANISM='': must be one of PLAIN, GSSAPI, SCRAM-SHA-256, SCRAM-SHA-512 ")
    assert line.endswith("when KAFKA_SECURITY_PROTOCOL is SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_MECHANISM", "plain")
    assert faults() == [
        "KAFKA_SASL_PLAIN_USERNAME='': must be set when KAFKA_SASL_MECHANISM is PLAIN",
        "KAFKA_SASL_PLAIN_PASSWORD=***: must be set when KAFKA_SASL_MECHANISM is PLAIN",
    ]
    monkeypatch.setenv("KAFKA_SASL_PLAIN_USERNAME", "me")
    monkeypatch.setenv("KAFKA_SASL_PLAIN_PASSWORD", "tell-nobody")
    monkeypatch.setenv("KAFKA_PARTITIONS", "x")
    assert [line.partition("=")[0] for line in faults()] == ["KAFKA_PARTITIONS"]
    monkeypatch.setenv("KAFKA_PARTITIONS", "3")
    load_settings()
    monkeypatch.setenv("KAFKA_SASL_MECHANISM", "GSSAPI")
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"KAFKA_SASL_PLAIN_{name}")
    load_settings()


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("KAFKA_SASL_PLAIN_PASSWORD", "KAFKA_SSL_PASSWORD"):
        monkeypatch.setenv(variable, "tell-nobody")
    assert "tell-nobody" not in repr(load_settings())
    assert "tell-nobody" not in load_settings().model_dump_json()
    assert load_settings().kafka.client_options()["sasl_plain_password"] == "tell-nobody"  # noqa: S105 - made up
    Path(".env").write_text('KAFKA_SSL_PASSWORD="tell-nobody\n', encoding="utf-8")
    assert faults() == [".env line 1: must be NAME=value or a # comment"]


@pytest.mark.parametrize(
    ("variable", "given", "shown"),
    [
        ("BINANCE_REST_BASE_URL", "https://me:tell-nobody@host", "https://***@host"),
        ("BINANCE_REST_BASE_URL", "https://me:tell/nobody@host", "https://***@host"),
        ("BINANCE_WS_BASE_URL", "wss://host/ws?api_key=tell-nobody&x=1", "wss://host/ws?api_key=***&x=1"),
        ("KAFKA_BOOTSTRAP_SERVERS", "me:tell-nobody@a:1,b:2", "***@a:1,b:2"),
        ("KAFKA_BOOTSTRAP_SERVERS", "a:1,SASL_SSL://me:tell-nobody@b:2", "a:1,SASL_SSL://***@b:2"),
    ],
)
def test_a_password_in_an_address_is_not_shown(
    variable: str, given: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, given)
    (line,) = faults()
    assert line.startswith(f"{variable}={shown!r}: ")
    assert not re.search("tell.nobody", line)


@pytest.mark.parametrize(("variable", "stands_for"), SECRET_FILES.items())
@pytest.mark.parametrize(
    ("content", "read"), [(b"tell-nobody\n", "tell-nobody"), (b" tell \r\n", " tell "), ("ü".encode(), "ü")]
)
def test_a_secret_may_stand_in_a_file(
    variable: str, stands_for: str, content: bytes, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("secret").write_bytes(content)
    monkeypatch.setenv(variable, "secret")
    settings = load_settings()
    assert value_of(settings, stands_for) == (read.strip() if stands_for.endswith("USERNAME") else read)
    if stands_for.endswith("PASSWORD"):
        assert read.strip() not in repr(settings) + settings.model_dump_json()


@pytest.mark.parametrize(("variable", "stands_for"), SECRET_FILES.items())
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"tell\nnobody\n", b"tell\0nobody", b"tell-nobody\xff", b"x" * 1025]
)
def test_a_file_that_holds_no_secret_is_one_fault_without_its_content(
    variable: str, stands_for: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("secret").write_bytes(content)
    monkeypatch.setenv(variable, "secret")
    (line,) = faults()
    assert line.startswith(f"{stands_for}=")
    assert f"{variable} must name a file with one line of text in UTF-8, 1 to 1024 bytes" in line
    assert "nobody" not in line


@pytest.mark.parametrize("variable", SECRET_FILES)
def test_a_file_that_is_not_there_is_one_fault_and_a_secret_in_its_place_is_not_shown(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
    monkeypatch.setenv("KAFKA_SASL_MECHANISM", "PLAIN")
    for needed in {"KAFKA_SASL_PLAIN_USERNAME", "KAFKA_SASL_PLAIN_PASSWORD"} - {SECRET_FILES[variable]}:
        monkeypatch.setenv(needed, "x")
    needs = "must be the path of a file that exists and can be read"
    for given, shown in (("/run/secrets/nowhere", "'/run/secrets/nowhere'"), ("tell-nobody", "***")):
        monkeypatch.setenv(variable, given)
        assert faults() == [f"{variable}={shown}: {needs}"]


@pytest.mark.parametrize(("variable", "stands_for"), SECRET_FILES.items())
def test_a_secret_and_its_file_cannot_both_be_set(
    variable: str, stands_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("secret").write_text("tell-nobody", encoding="utf-8")
    monkeypatch.setenv(variable, "secret")
    monkeypatch.setenv(stands_for, "me")
    (line,) = faults()
    assert line.endswith(f": must not be set together with {variable}")
    assert "tell-nobody" not in line


def test_two_files_for_one_secret_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("secret").write_text("tell-nobody", encoding="utf-8")
    for variable in ("KAFKA_SASL_PLAIN_PASSWORD_FILE", "KAFKA_SASL_PASSWORD_FILE"):
        monkeypatch.setenv(variable, "secret")
    (line,) = faults()
    assert line.startswith("KAFKA_SASL_PLAIN_PASSWORD=***: must come from one file, not from ")
    assert line.endswith("KAFKA_SASL_PLAIN_PASSWORD_FILE and KAFKA_SASL_PASSWORD_FILE")


def test_client_options_are_what_kafka_python_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_MECHANISM", "PLAIN")
    monkeypatch.setenv("KAFKA_SASL_PLAIN_USERNAME", "me")
    monkeypatch.setenv("KAFKA_SASL_PLAIN_PASSWORD", " secret ")
    options = load_settings().kafka.client_options()
    context = options.pop("ssl_context")
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert options == {
        "bootstrap_servers": ["localhost:9092"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "me",
        "sasl_plain_password": " secret ",
    }


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("KAFKA_PARTITIONS=3\n".encode("utf-16"), ".env: must be a text file in UTF-8 that can be read"),
        (b"# caf\xe9\n", ".env: must be a text file in UTF-8 that can be read"),
        (b"LOG_LEVEL=INFO\nKAFKA PARTITIONS=3\n", ".env line 2: must be NAME=value or a # comment"),
        (b"LOG_LEVEL: INFO\n", ".env line 1: must be NAME=value or a # comment"),
    ],
)
def test_a_file_that_cannot_be_read_right_is_refused(content: bytes, fault: str) -> None:
    Path(".env").write_bytes(content)
    (line,) = faults()
    assert line.startswith(fault)


def test_unknown_variables_are_named_with_the_nearest_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("KAFKA_BOOTSTRAP_SERVER=a:1\nUNRELATED=1\n", encoding="utf-8")
    for name in (
        "BINANCE_SYMBOL",
        "CONNECTION_MAX_RETRY",
        "KAFKA_XYZZY",
        "MONITORING_PROT",
        "binance_stream_type",
    ):
        monkeypatch.setenv(name, "1")
    for name in ("LOG_LEVELS", "LOG_FMT", "METRICS_INTERVAL", "SHUTDOWN_TIMEOUT_SECS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SYMBOLS", "1")
    monkeypatch.setenv("KAFKA_PARTITONS", "")
    assert unknown_variables() == {
        "BINANCE_STREAM_TYPE": "BINANCE_STREAM_TYPES",
        "BINANCE_SYMBOL": "BINANCE_SYMBOLS",
        "CONNECTION_MAX_RETRY": "CONNECTION_MAX_RETRIES",
        "KAFKA_BOOTSTRAP_SERVER": "KAFKA_BOOTSTRAP_SERVERS",
        "KAFKA_XYZZY": None,
        "LOG_FMT": "LOG_FORMAT",
        "LOG_LEVELS": "LOG_LEVEL",
        "METRICS_INTERVAL": "METRICS_INTERVAL_SECONDS",
        "MONITORING_PROT": "MONITORING_PORT",
        "SHUTDOWN_TIMEOUT_SECS": "SHUTDOWN_TIMEOUT_SECONDS",
    }


@pytest.mark.parametrize(
    "name",
    [
        *("METRICS_SERVER_SERVICE_HOST", "METRICS_SERVER_SERVICE_PORT_HTTPS", "METRICS_PORT_8000_TCP"),
        *("METRICS_PORT_8000_TCP_ADDR", "LOG_AGENT_PORT", "LOG_GROUP", "LOG_STREAM_NAME", "LOG_DIR"),
        *("METRICS_ENABLED", "SHUTDOWN_HOOK"),
    ],
)
def test_what_others_set_under_a_prefix_that_is_not_ours_alone_is_not_unknown(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:8000")
    assert unknown_variables() == {}


def test_what_kubernetes_sets_for_a_service_named_kafka_is_not_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_PLAIN",
        "PORT",
        "PORT_9092_TCP",
        "PORT_9092_TCP_ADDR",
    ):
        monkeypatch.setenv(f"KAFKA_{name}", "tcp://10.0.0.1:9092")
    assert unknown_variables() == {}
    load_settings()


@pytest.mark.parametrize("name", ["KAFKA_PORT", "KAFKA_BROKER_PORT", "BINANCE_PORT"])
def test_a_port_that_kubernetes_would_not_write_so_is_unknown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "9092")
    assert unknown_variables().keys() == {name}
    for url in ("tcp://10.0.0.1:9092", "udp://10.0.0.1:9092"):
        monkeypatch.setenv(name, url)
        assert unknown_variables() == {}


# .env.example


def written(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_the_example_holds_every_variable_once_with_its_default_and_a_comment() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assignments = [
        (lines[at - 1], *line.split("=", 1)) for at, line in enumerate(lines) if re.match(r"\w+=", line)
    ]
    assert {name: value for _, name, value in assignments} == {name: written(DEFAULTS[name]) for name in DEFAULTS}
    assert max(Counter(name for _, name, _ in assignments).values()) == 1
    assert all(comment.startswith("# ") for comment, _, _ in assignments)
    assert all(line.startswith(("#", *DEFAULTS)) or not line for line in lines)


def test_the_example_taken_as_it_is_changes_nothing() -> None:
    assert load_settings(str(EXAMPLE)) == load_settings(None)
    assert unknown_variables(str(EXAMPLE)) == {}
