"""TLS and logins to Kafka, what is said when they fail, and that no secret gets out.

What needs no broker runs by default; the rest runs on Apache Kafka (`make test-kafka`), through listeners
with certificates that are made here.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, ScramMechanism, UserScramCredentialUpsertion
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from config.faults import SettingsError
from config.settings import load_settings
from sandbox.brokers import Kafka3, Kafka4, Listener
from src.kafka_causes import causes_named
from tests.broker_fixtures import Topics, fresh_topics, read_all
from tests.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.exchange import Exchange
    from tests.service_fixtures import ServiceProcess, StartService

ROOT = Path(__file__).parents[1]
LIMIT = 60.0
KEY_PASSWORD = "tell-nobody-key"  # noqa: S105 - made up, as the others
PLAIN_PASSWORD = "tell-nobody-plain"  # noqa: S105
SCRAM_PASSWORD = "tell-nobody-scram"  # noqa: S105
WRONG_PASSWORD = "tell-nobody-wrong"  # noqa: S105
SECRETS = (KEY_PASSWORD, PLAIN_PASSWORD, SCRAM_PASSWORD, WRONG_PASSWORD)
SCRAMS = (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

Variables = dict[str, str]


def assert_no_secret(text: str) -> None:
    assert "PRIVATE KEY" not in text
    for secret in SECRETS:
        for form in (secret, base64.b64encode(secret.encode()).decode()[:-4], secret.encode().hex()):
            assert form not in text, text[max(0, text.index(form) - 500) : text.index(form) + 200]


# Without a broker: a TLS server of this process in its place


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@contextmanager
def tls_server(authority: Authority, host: str = "127.0.0.1") -> Iterator[tuple[str, list[str]]]:
    """Serve TLS with a certificate for a host; give the address, and what clients have agreed on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.keystore(host))
    context.set_ciphers("ALL")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    agreed: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=_serve, args=(listener, context, agreed))
        serving.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", agreed
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()


def _serve(listener: socket.socket, context: ssl.SSLContext, agreed: list[str]) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        try:
            with context.wrap_socket(peer, server_side=True) as secured:
                agreed.append(str((secured.cipher() or ("",))[0]))
        except OSError:
            peer.close()


class Cause(NamedTuple):
    said: str
    check: str


LIST = ("list", "--place=topic")
"""What `dead_letters.py` is asked for."""

WHY_NOT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from config.kafka import KafkaConfig
from src.kafka_causes import NotConnectedError, causes_named
from src.kafka_producer import open_producer
try:
    with causes_named():
        open_producer(KafkaConfig(**json.loads(sys.argv[1])), bootstrap_timeout_ms=500)
except NotConnectedError as error:
    print(json.dumps([str(error), error.check]))
"""


def why_not(server: str, **options: str | Path) -> Cause:
    """Return why no producer could be opened; in a process, whose end closes what kafka-python leaves open."""
    settings = json.dumps(options | {"bootstrap_servers": server}, default=str)
    command = [sys.executable, "-c", WHY_NOT, settings]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert ran.stdout, ran.stderr
    cause = Cause(*json.loads(ran.stdout))
    assert "\n" not in cause.said
    return cause


def test_a_certificate_of_an_unknown_authority_is_named_as_the_cause(ours: Authority, tmp_path: Path) -> None:
    with tls_server(ours) as (server, _):
        cause = why_not(server, security_protocol="SSL", ssl_cafile=Authority(tmp_path / "theirs").file)
    assert cause.said == "the brokers' certificate is refused: unable to get local issuer certificate"
    assert cause.check.startswith("KAFKA_SSL_CAFILE: ")


def test_dead_letters_names_the_cause_too(ours: Authority, tmp_path: Path) -> None:
    theirs = Authority(tmp_path / "theirs").file
    with tls_server(ours) as (server, _):
        settings = {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": str(theirs)}
        ran = run("dead_letters.py", settings | {"KAFKA_BOOTSTRAP_SERVERS": server}, *LIST, "--wait=1")
    said = f"no connection to Kafka at {server}: the brokers' certificate is refused: unable to get local issuer"
    (line,) = ran.stderr.splitlines()
    assert ran.returncode == 1
    assert line.startswith(f"dead_letters: {said}")
    assert "; check KAFKA_SSL_CAFILE: " in line


def test_a_certificate_for_another_host_is_named_as_the_cause(ours: Authority) -> None:
    with tls_server(ours, "kafka.example") as (server, _):
        cause = why_not(server, security_protocol="SSL", ssl_cafile=ours.file)
    assert "certificate is not valid for '127.0.0.1'" in cause.said
    assert "KAFKA_BOOTSTRAP_SERVERS" in cause.check


def test_a_revoked_certificate_is_refused_and_one_that_is_not_revoked_is_not(ours: Authority) -> None:
    with tls_server(ours) as (server, agreed):
        options = {"security_protocol": "SSL", "ssl_cafile": ours.file}
        cause = why_not(server, **options, ssl_crlfile=ours.revoke(ours.served))
        assert (cause.said, agreed) == ("the brokers' certificate is refused: certificate revoked", [])
        assert "KAFKA_SSL_CRLFILE" in cause.check
        why_not(server, **options, ssl_crlfile=ours.revoke(None))
        assert agreed


def test_the_list_of_ciphers_is_used(ours: Authority) -> None:
    with tls_server(ours) as (server, agreed):
        chosen = "ECDHE-ECDSA-AES128-SHA256"
        why_not(server, security_protocol="SSL", ssl_cafile=ours.file, ssl_ciphers=chosen)
    assert set(agreed) == {chosen}


def test_a_server_that_does_not_speak_tls_is_named_as_the_cause() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                peer.close()

        answering = threading.Thread(target=answer)
        answering.start()
        cause = why_not(f"127.0.0.1:{listener.getsockname()[1]}", security_protocol="SSL")
        listener.shutdown(socket.SHUT_RDWR)
        answering.join()
    assert cause.said.startswith("TLS failed: ")
    assert cause.check.startswith("KAFKA_SECURITY_PROTOCOL")


def test_what_a_broker_says_last_is_read_although_the_end_of_the_stream_comes_with_it() -> None:
    with causes_named():
        pass
    for transport in (KafkaTCPTransport, KafkaSSLTransport):
        here, there = socket.socketpair()
        with here, there:
            here.settimeout(0)
            there.sendall(b"refused")
            there.shutdown(socket.SHUT_WR)
            reading = transport.__new__(transport)
            reading._sock, reading._closed = here, False
            assert reading._sock_recv() == (b"refused", None)
            assert str(reading._sock_recv()[1]) == "KafkaConnectionError: socket disconnected"


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), causes_named():
        raise ZeroDivisionError


# Certificates and keys that cannot be used are told at the start


@dataclass
class Files:
    """What a wrong setting may point at, by name."""

    folder: Path

    def __post_init__(self) -> None:
        authority = Authority(self.folder / "files")
        self.ca = authority.file
        self.cert, self.key = authority.issue("client.example", KEY_PASSWORD)
        _, self.other = authority.issue("other.example")
        self.none = self.folder / "none.pem"
        self.none.write_text("nothing\n", encoding="utf-8")

    def fill(self, template: Variables) -> Variables:
        return {name: value.format(**vars(self)) for name, value in template.items()}


OWN = {"CERTFILE": "{cert}", "KEYFILE": "{key}"}
UNUSABLE: list[tuple[Variables, str]] = [
    ({"CAFILE": "{none}"}, "KAFKA_SSL_CAFILE='{none}': must be a file of certificates in PEM form"),
    (
        {"CRLFILE": "{none}"},
        "KAFKA_SSL_CRLFILE='{none}': must be a file of revoked certificates (CRL) in PEM form",
    ),
    ({"CRLFILE": "{ca}"}, "KAFKA_SSL_CRLFILE='{ca}': must be a file of revoked certificates (CRL) in PEM form"),
    ({"CIPHERS": "none"}, "KAFKA_SSL_CIPHERS='none': must be a cipher list that OpenSSL knows"),
    (OWN, "KAFKA_SSL_PASSWORD=***: must be set: the key in KAFKA_SSL_KEYFILE is encrypted"),
    (
        OWN | {"PASSWORD": WRONG_PASSWORD},
        "KAFKA_SSL_PASSWORD=***: must be the password of the key in KAFKA_SSL_KEYFILE",
    ),
    (
        OWN | {"PASSWORD": "x" * 2000},
        "KAFKA_SSL_PASSWORD=***: must be the password of the key in KAFKA_SSL_KEYFILE",
    ),
    (
        {"CERTFILE": "{cert}", "KEYFILE": "{other}"},
        "KAFKA_SSL_KEYFILE='{other}': must be the key of the certificate in KAFKA_SSL_CERTFILE",
    ),
    (
        {"CERTFILE": "{cert}"},
        "KAFKA_SSL_CERTFILE='{cert}': must hold a certificate in PEM form, and its key as well",
    ),
    ({"KEYFILE": "{other}"}, "KAFKA_SSL_CERTFILE='': must be set too when KAFKA_SSL_KEYFILE is"),
    (
        {"CERTFILE": "{none}", "KEYFILE": "{other}"},
        "KAFKA_SSL_CERTFILE='{none}': and KAFKA_SSL_KEYFILE must hold a certificate and a key in PEM form",
    ),
]


@pytest.mark.parametrize(("given", "fault"), UNUSABLE)
def test_a_certificate_a_key_or_a_password_that_cannot_be_used_is_one_fault(
    given: Variables, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SSL")
    for name, value in files.fill(given).items():
        monkeypatch.setenv(f"KAFKA_SSL_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.faults == [fault.format(**vars(files))]


@pytest.mark.parametrize("program", ["main.py", "setup_kafka.py", "consumer_example.py", "dead_letters.py"])
def test_a_wrong_key_password_ends_each_program_with_one_line_and_without_asking_for_another(
    program: str, tmp_path: Path
) -> None:
    settings = {f"KAFKA_SSL_{name}": value for name, value in Files(tmp_path).fill(OWN).items()}
    settings |= {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_PASSWORD": WRONG_PASSWORD, "LOG_LEVEL": "DEBUG"}
    ran = run(program, settings, *(LIST if program == "dead_letters.py" else ()))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "KAFKA_SSL_PASSWORD=***: must be the password of the key in KAFKA_SSL_KEYFILE\n"


def run(program: str, settings: Variables, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
    return subprocess.run(
        [sys.executable, ROOT / program, *arguments],
        cwd=ROOT / "tests",  # where no .env of the user is
        env=inherited | settings,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


# On Apache Kafka


class Secured:
    """An Apache Kafka with a listener of each kind, and the settings that open them."""

    def __init__(self, kind: type[Kafka3 | Kafka4], folder: Path) -> None:
        self.authority, self.stranger = Authority(folder / "authority"), Authority(folder / "stranger")
        keystore = self.authority.keystore("127.0.0.1")
        users = {"me": PLAIN_PASSWORD}
        self.listeners = {
            "tls": Listener("SSL", keystore),
            "mutual": Listener("SSL", keystore, client_authority=self.authority.file),
            "misnamed": Listener("SSL", self.authority.keystore("kafka.example")),
            "login": Listener("SASL_PLAINTEXT", users=users),
            "tls_login": Listener("SASL_SSL", keystore, users=users),
        }
        self.broker = kind(folder / "broker", None, tuple(self.listeners.values()))
        self._folder = folder

    def set_scram_password(self, user: str, password: str) -> None:
        with KafkaAdminClient(bootstrap_servers=self.broker.bootstrap_servers) as admin:
            for mechanism in SCRAMS:  # Kafka takes one of a user at a time
                admin.alter_user_scram_credentials([UserScramCredentialUpsertion(user, mechanism, password)])

    def topics(self, listener: str) -> Topics:
        """Create topics over the plain listener; give them with the address of another."""
        made = fresh_topics(self.broker.bootstrap_servers)
        return Topics(made.raw, made.trades, made.depth, self.listeners[listener].bootstrap_servers)

    def protocol(self, listener: str, authority: Authority | None = None) -> Variables:
        protocol = self.listeners[listener].protocol
        trusted = (authority or self.authority).file
        return {"KAFKA_SECURITY_PROTOCOL": protocol} | (
            {"KAFKA_SSL_CAFILE": str(trusted)} if protocol.endswith("SSL") else {}
        )

    def certificate(self, authority: Authority | None = None) -> Variables:
        """Return a client's certificate and its encrypted key, whose password stands in a file."""
        certificate, key = (authority or self.authority).issue("client.example", KEY_PASSWORD)
        return {
            "KAFKA_SSL_CERTFILE": str(certificate),
            "KAFKA_SSL_KEYFILE": str(key),
            "KAFKA_SSL_PASSWORD_FILE": self.file(KEY_PASSWORD),
        }

    def login(self, mechanism: str, password: str | None = None, user: str = "me") -> Variables:
        right = PLAIN_PASSWORD if mechanism == "PLAIN" else SCRAM_PASSWORD
        return {
            "KAFKA_SASL_MECHANISM": mechanism,
            "KAFKA_SASL_PLAIN_USERNAME": user,
            "KAFKA_SASL_PLAIN_PASSWORD": password or right,
        }

    def file(self, content: str) -> str:
        path = self._folder / f"secret-{uuid.uuid4().hex}"
        path.write_text(f"{content}\n", encoding="utf-8")
        return str(path)

    def way(self, name: str) -> tuple[str, Variables]:
        """Return the listener and the settings of a way in, such as `tls_login SCRAM-SHA-256`."""
        listener, _, mechanism = name.partition(" ")
        settings = self.protocol(listener)
        if listener == "mutual":
            settings |= self.certificate()
        if mechanism:
            settings |= self.login(mechanism)
        return listener, settings


@pytest.fixture(scope="module")
def secured(broker_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    kinds: dict[str, type[Kafka3 | Kafka4]] = {"kafka3": Kafka3, "kafka4": Kafka4}
    if broker_name not in kinds:
        pytest.skip(
            f"the broker {broker_name!r} has no TLS and no logins; make test-kafka runs this on Apache Kafka"
        )
    made = Secured(kinds[broker_name], tmp_path_factory.mktemp("secured"))
    with made.broker:
        made.set_scram_password("me", SCRAM_PASSWORD)
        yield made


@pytest.fixture
def market(exchange_factory: Callable[..., Exchange]) -> Exchange:
    return exchange_factory(rate=100)


def everything_said(service: ServiceProcess) -> str:
    """All that a service has put out: its log, stderr, and what its endpoints answer."""
    return json.dumps(service.lines) + "".join(service.not_json) + service.errors


def answers(service: ServiceProcess) -> str:
    return "".join(service.get(path)[1].decode() for path in ("/status", "/metrics", "/ready", "/health"))


WAYS = [
    *("tls", "mutual"),
    *(f"{listener} {mechanism}" for listener in ("login", "tls_login") for mechanism in MECHANISMS),
]


@pytest.mark.kafka
@pytest.mark.parametrize("way", WAYS)
def test_the_service_delivers_through_every_way_in_and_tells_no_secret_even_at_debug(
    way: str, secured: Secured, market: Exchange, start_service: StartService
) -> None:
    listener, settings = secured.way(way)
    topics = secured.topics(listener)
    service = start_service(market.ws_url, topics, **settings, LOG_LEVEL="DEBUG")
    service.ready(within=LIMIT)
    service.wait_for(lambda: service.status()["kafka_produced"] > 50, "50 delivered")
    said = answers(service)
    assert service.stop() == 0
    said += everything_said(service)
    assert_no_secret(said)
    assert "kafka.net" in said  # so the library's lines were there to look at
    records = read_all(secured.broker.bootstrap_servers, *topics.names)
    assert len(records) == service.final["kafka_produced"] == service.final["messages_received"]


@pytest.mark.kafka
@pytest.mark.parametrize("way", ["mutual", "login PLAIN", "tls_login SCRAM-SHA-512"])
def test_the_scripts_take_the_same_settings(way: str, secured: Secured) -> None:
    listener, settings = secured.way(way)
    if "KAFKA_SASL_PLAIN_PASSWORD" in settings:
        settings["KAFKA_SASL_PASSWORD_FILE"] = secured.file(settings.pop("KAFKA_SASL_PLAIN_PASSWORD"))
    else:
        settings["KAFKA_SSL_CIPHERS"] = "ECDHE+AESGCM"
    unique = uuid.uuid4().hex[:12]
    servers = secured.listeners[listener].bootstrap_servers
    settings |= Topics(f"raw-{unique}", f"trades-{unique}", f"depth-{unique}", servers).environment
    made = run("setup_kafka.py", settings, "--wait=20")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.count(": created (") == 6
    send(secured.broker.bootstrap_servers, f"trades-{unique}", b'{"event_type":"trade"}')
    arguments = ("--json", "--from-beginning", "--max-messages=1", f"--seconds={LIMIT / 2}", f"--group={unique}")
    read = run("consumer_example.py", settings, *arguments)
    assert (read.returncode, read.stdout) == (0, '{"event_type":"trade"}\n')
    assert "reading 9 partitions" in read.stderr
    assert_no_secret(made.stdout + read.stdout + read.stderr)


def send(bootstrap_servers: str, topic: str, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers)
    try:
        producer.send(topic, value).get(timeout=LIMIT)
    finally:
        producer.close()


def wrong(secured: Secured, what: str) -> tuple[str, Variables]:
    """Return the listener and the settings of something that the brokers or we must refuse."""
    return {
        "authority": lambda: ("tls", secured.protocol("tls", secured.stranger)),
        "host": lambda: ("misnamed", secured.protocol("misnamed")),
        "no certificate": lambda: ("mutual", secured.protocol("mutual")),
        "certificate": lambda: ("mutual", secured.protocol("mutual") | secured.certificate(secured.stranger)),
        "password": lambda: ("tls_login", secured.protocol("tls_login") | secured.login("PLAIN", WRONG_PASSWORD)),
        "user": lambda: ("login", secured.protocol("login") | secured.login("SCRAM-SHA-256", user="nobody")),
        "login": lambda: ("tls", secured.protocol("tls_login") | secured.login("PLAIN")),
        "plain": lambda: ("login", {"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}),
        "tls": lambda: ("login", secured.protocol("tls")),
    }[what]()


REFUSED = {
    "authority": ("the brokers' certificate is refused: unable to get local issuer", "KAFKA_SSL_CAFILE: "),
    "host": ("certificate is not valid for '127.0.0.1'", "that the brokers' certificate names the host"),
    "no certificate": ("TLS failed: ", "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE"),
    "password": ("the brokers refuse the login", "KAFKA_SASL_PLAIN_USERNAME, its password"),
    "certificate": ("TLS failed: ", "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE"),
    "user": ("the brokers refuse the login", "KAFKA_SASL_PLAIN_USERNAME, its password"),
    "login": ("this listener takes no login", "KAFKA_SECURITY_PROTOCOL"),
    "plain": ("", "KAFKA_BOOTSTRAP_SERVERS, KAFKA_SECURITY_PROTOCOL"),
    "tls": ("TLS failed: ", "KAFKA_SECURITY_PROTOCOL"),
}


@pytest.mark.kafka
@pytest.mark.parametrize("what", ["authority", "host", "no certificate", "password"])
def test_the_service_names_what_is_refused_keeps_trying_and_spools(
    what: str, secured: Secured, market: Exchange, start_service: StartService
) -> None:
    listener, settings = wrong(secured, what)
    service = start_service(market.ws_url, secured.topics(listener), **settings, LOG_LEVEL="DEBUG")
    cause, check = REFUSED[what]
    line = service.logged("kafka_unavailable", within=LIMIT)
    assert cause in line["reason"]
    assert line["check"].startswith(check)
    service.wait_for(lambda: service.status()["messages_spooled"] > 0, "spooled")
    assert service.get("/ready")[0] == 503
    assert "not connected to Kafka" in service.get("/ready")[1].decode()
    said = answers(service)
    assert service.stop() == 1
    assert service.final["messages_received"] == service.final["messages_spooled"] > 0
    assert_no_secret(said + everything_said(service))


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("what", "program"),
    [
        *((what, "setup_kafka.py") for what in REFUSED),
        *((what, "consumer_example.py") for what in ("authority", "password", "plain")),
        *((what, "dead_letters.py") for what in ("authority", "password", "plain")),
    ],
)
def test_the_scripts_say_in_one_line_what_is_refused(what: str, program: str, secured: Secured) -> None:
    listener, settings = wrong(secured, what)
    settings |= {"KAFKA_BOOTSTRAP_SERVERS": secured.listeners[listener].bootstrap_servers}
    cause, check = REFUSED[what]
    ran = run(program, settings, *(LIST if program == "dead_letters.py" else ()), "--wait=1")
    (line,) = ran.stderr.splitlines()
    assert ran.returncode == 1
    assert cause in line
    assert f"; check {check}" in line
    assert_no_secret(ran.stdout + ran.stderr)


@pytest.mark.kafka
def test_the_service_goes_on_when_the_password_is_mended_at_the_brokers(
    secured: Secured, market: Exchange, start_service: StartService
) -> None:
    secured.set_scram_password("late", WRONG_PASSWORD)
    settings = secured.protocol("tls_login") | secured.login("SCRAM-SHA-512", user="late")
    topics = secured.topics("tls_login")
    service = start_service(market.ws_url, topics, **settings)
    assert "refuse the login" in service.logged("kafka_unavailable", within=LIMIT)["reason"]
    service.wait_for(lambda: service.status()["messages_spooled"] > 0, "spooled")
    secured.set_scram_password("late", SCRAM_PASSWORD)
    service.ready(within=LIMIT)
    service.wait_for(lambda: not service.status()["messages_spooled"], "the spool sent", within=LIMIT)
    assert service.stop() == 0
    records = read_all(secured.broker.bootstrap_servers, *topics.names)
    assert len(records) == service.final["kafka_produced"] == service.final["messages_received"]
    assert_no_secret(everything_said(service))
