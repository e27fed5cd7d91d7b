"""The TLS context of the connection to Kafka, made from the files that the settings name."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from config.kafka import KafkaConfig


class TlsUnusable(Exception):  # noqa: N818 - named after the fact
    """A file, a password or a list of ciphers cannot be used; tells which setting, and what is allowed."""

    def __init__(self, variable: str, allowed: str) -> None:
        super().__init__(f"{variable}: {allowed}")
        self.variable = variable
        self.allowed = allowed


def tls_context(kafka: KafkaConfig) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and newer that verifies the broker; raises `TlsUnusable`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = kafka.ssl_check_hostname
    if kafka.ssl_cafile is None:
        context.load_default_certs()
    else:
        _load_authorities(context, kafka.ssl_cafile)
    if kafka.ssl_crlfile is not None:
        _load_revocations(context, kafka.ssl_crlfile)
    if kafka.ssl_ciphers is not None:
        _set_ciphers(context, kafka.ssl_ciphers)
    if kafka.ssl_certfile is not None:
        password = kafka.ssl_password.get_secret_value() if kafka.ssl_password is not None else None
        _load_own(context, kafka.ssl_certfile, kafka.ssl_keyfile, password)
    elif kafka.ssl_keyfile is not None:
        raise TlsUnusable("KAFKA_SSL_CERTFILE", "must be set too when KAFKA_SSL_KEYFILE is")
    return context


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except OSError:
        raise TlsUnusable("KAFKA_SSL_CAFILE", "must be a file of certificates in PEM form") from None


def _load_revocations(context: ssl.SSLContext, path: Path) -> None:
    known = context.cert_store_stats()["crl"]
    try:
        context.load_verify_locations(path)  # takes lists of revoked certificates as well
    except OSError:
        known = -1
    if known in (-1, context.cert_store_stats()["crl"]):
        raise TlsUnusable("KAFKA_SSL_CRLFILE", "must be a file of revoked certificates (CRL) in PEM form")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _set_ciphers(context: ssl.SSLContext, ciphers: str) -> None:
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        raise TlsUnusable("KAFKA_SSL_CIPHERS", "must be a cipher list that OpenSSL knows") from None


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path | None, password: str | None) -> None:
    asked = []

    def answer() -> str:  # without it OpenSSL would ask at the terminal, and wait
        asked.append(True)
        return password or ""

    try:
        context.load_cert_chain(certificate, key, password=answer)
    except (OSError, ValueError) as error:
        raise _unusable_own(error, key, encrypted=bool(asked), password=password) from None


def _unusable_own(error: Exception, key: Path | None, *, encrypted: bool, password: str | None) -> TlsUnusable:
    holder = "KAFKA_SSL_CERTFILE" if key is None else "KAFKA_SSL_KEYFILE"
    if encrypted and password is None:
        return TlsUnusable("KAFKA_SSL_PASSWORD", f"must be set: the key in {holder} is encrypted")
    if encrypted:
        return TlsUnusable("KAFKA_SSL_PASSWORD", f"must be the password of the key in {holder}")
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return TlsUnusable("KAFKA_SSL_KEYFILE", "must be the key of the certificate in KAFKA_SSL_CERTFILE")
    if key is None:
        return TlsUnusable("KAFKA_SSL_CERTFILE", "must hold a certificate in PEM form, and its key as well")
    return TlsUnusable("KAFKA_SSL_CERTFILE", "and KAFKA_SSL_KEYFILE must hold a certificate and a key in PEM form")
