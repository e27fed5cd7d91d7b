"""Why Kafka cannot be reached, in one line, and which settings to look at.

kafka-python's constructors try again until their time is over and then tell only that; what each attempt
failed of stands in its log alone (3.0.12, `kafka.net.manager`). So it is read there.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    RequestTimedOutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from config.tls import TlsUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Read = Callable[[Any], tuple[bytes, Any]]

_LOGGER = "kafka.net.manager"
_NAMED_BY_ANOTHER = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_UNTRUSTED = (2, 18, 19, 20, 21)  # X509_V_ERR_*: no issuer, or one that is not trusted
_REVOKED = (3, 23)
_OWN_CERTIFICATE = (
    "CERTIFICATE_REQUIRED",
    "ALERT_BAD_CERT",
    "UNKNOWN_CA",
    "ALERT_UNSUPPORTED_CERT",
    "CERTIFICATE_",
)

_REACH = "KAFKA_BOOTSTRAP_SERVERS, KAFKA_SECURITY_PROTOCOL, and that the brokers run"
_LOGIN = "KAFKA_SASL_PLAIN_USERNAME, its password, KAFKA_SASL_MECHANISM, and that the brokers know this user"
_MECHANISM = "KAFKA_SASL_MECHANISM"
_LISTENER = "KAFKA_SECURITY_PROTOCOL, and the port in KAFKA_BOOTSTRAP_SERVERS"
_RIGHTS = "the rights (ACLs) of this user"
_AUTHORITY = "KAFKA_SSL_CAFILE: it must hold the authority that signed the brokers' certificates"
_HOST = "that the brokers' certificate names the host of KAFKA_BOOTSTRAP_SERVERS and of advertised.listeners"
_VALIDITY = "the brokers' certificate: its dates, what it is for, and this machine's clock"
_REVOCATION = "the brokers' certificate, and that KAFKA_SSL_CRLFILE is the newest list of its authority"
_CLIENT = (
    "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE: the brokers want a certificate of an authority that they trust"
)
_PROTOCOL = "KAFKA_SECURITY_PROTOCOL (does this listener speak TLS?) and KAFKA_SSL_CIPHERS"

_REFUSALS = {
    SaslAuthenticationFailedError: ("the brokers refuse the login", _LOGIN),
    UnsupportedSaslMechanismError: ("the brokers do not offer this SASL mechanism", _MECHANISM),
    IllegalSaslStateError: ("this listener takes no login", _LISTENER),
    AuthorizationError: ("the brokers refuse this user", _RIGHTS),
}


class NotConnectedError(KafkaError):  # type: ignore[misc] # kafka-python has no types
    """Kafka cannot be reached; the message is one line with the cause, `check` says what to look at."""

    def __init__(self, cause: str, check: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.check = check

    def __str__(self) -> str:
        return self.cause


def check_of(error: BaseException) -> str | None:
    """Return what to look at when a broker refuses something to this user, else None."""
    return _RIGHTS if isinstance(error, AuthorizationError) else None


@contextmanager
def causes_named() -> Iterator[None]:
    """Turn a failure to reach Kafka inside the block into a `NotConnectedError`; let every other error pass."""
    _hear_last_words()
    failures = _Failures()
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(failures)
    try:
        yield
    except (KafkaTimeoutError, KafkaConnectionError) as error:
        raise _named(failures.cause or error) from error
    except (*_REFUSALS, OSError, TlsUnusable) as error:
        raise _named(error) from error
    finally:
        logger.removeHandler(failures)


def _hear_last_words() -> None:
    """Mend kafka-python 3.0.12, which throws away what it has read when the end of the stream comes with it.

    Brokers refuse a login like that, in one go; with TLS or a busy machine the reason was nearly always lost.
    A version that reads in another way is left as it is.
    """
    for transport in (KafkaTCPTransport, KafkaSSLTransport):
        read = getattr(transport, "_sock_recv", None)
        if read is not None and not hasattr(read, "__wrapped__"):
            transport._sock_recv = _data_before_the_end(read)  # noqa: SLF001


def _data_before_the_end(read: _Read) -> _Read:
    @wraps(read)
    def sock_recv(transport: Any) -> tuple[bytes, Any]:  # noqa: ANN401 - kafka-python has no types
        data, error = read(transport)
        return data, None if data else error  # the end is read again, and then alone

    return sock_recv


class _Failures(logging.Handler):
    """Keeps why a connection failed: the last refusal, else the last failure that is no time-out."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._refusal: BaseException | None = None
        self._failure: BaseException | None = None

    @property
    def cause(self) -> BaseException | None:
        return self._refusal or self._failure

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, BaseException):
                self._note(argument)

    def _note(self, error: BaseException) -> None:
        if any(isinstance(one, (ssl.SSLError, *_REFUSALS)) for one in _chain(error)):
            self._refusal = error
        elif not isinstance(error, (KafkaTimeoutError, RequestTimedOutError)):
            self._failure = error


def _named(error: BaseException) -> NotConnectedError:
    below = list(_chain(error))
    for kind, name in ((TlsUnusable, _of_settings), (ssl.SSLError, _of_tls), (OSError, _of_network)):
        for one in below:
            if isinstance(one, kind):
                return name(one)
    return _of_broker(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Return an error and what it was made from."""
    while error is not None:
        yield error
        inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else None
        error = inner or error.__cause__ or error.__context__


def _of_tls(error: BaseException) -> NotConnectedError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotConnectedError(
            f"the brokers' certificate is refused: {error.verify_message}", _check_of_peer(error)
        )
    reason = str(getattr(error, "reason", None) or error)
    check = _CLIENT if any(name in reason for name in _OWN_CERTIFICATE) else _PROTOCOL
    return NotConnectedError(f"TLS failed: {reason.lower().replace('_', ' ')}", check)


def _check_of_peer(error: ssl.SSLCertVerificationError) -> str:
    for codes, check in ((_NAMED_BY_ANOTHER, _HOST), (_UNTRUSTED, _AUTHORITY), (_REVOKED, _REVOCATION)):
        if error.verify_code in codes:
            return check
    return _VALIDITY


def _of_network(error: BaseException) -> NotConnectedError:
    return NotConnectedError(_one_line(error), _REACH)


def _of_settings(error: BaseException) -> NotConnectedError:
    return NotConnectedError(_one_line(error), "that file")


def _of_broker(error: BaseException) -> NotConnectedError:
    for kind, (refusal, check) in _REFUSALS.items():
        if isinstance(error, kind):
            said = _one_line(error).rpartition("Error: ")[2]
            return NotConnectedError(f"{refusal}: {said}", check)
    return NotConnectedError(_one_line(error), _REACH)


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split()).removeprefix(f"{type(error).__name__}: ")
    if numbered := re.fullmatch(r"(\d+) E[A-Z]+", said):  # how kafka-python tells an error of a socket
        return os.strerror(int(numbered[1])).lower()
    return said or type(error).__name__
