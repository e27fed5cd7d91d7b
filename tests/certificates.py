"""Authorities, certificates, encrypted keys and lists of revoked certificates, as PEM files made for a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


class Authority:
    """One certificate authority, with its files in one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.file = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(str(self.file))
        self.served: Path | None = None  # the certificate of the last keystore

    def issue(self, host: str, password: str | None = None) -> tuple[Path, Path]:
        """Return the files of a certificate for a host and of its key, in PKCS #8, encrypted when asked."""
        certificate, key = (self._folder / f"{host}{kind}.pem" for kind in ("", "-key"))
        issued = self._authority.issue_cert(host, key_type=trustme.KeyType.ECDSA)
        certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        plain = _key(issued.private_key_pem.bytes())
        key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return certificate, key

    def keystore(self, host: str) -> Path:
        """Return a file of a key and its certificate, as a broker takes it."""
        certificate, key = self.issue(host)
        self.served = certificate
        both = self._folder / f"{host}-keystore.pem"
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        return both

    def revoke(self, certificate: Path | None) -> Path:
        """Return a list of revoked certificates: this one, or none."""
        authority = x509.load_pem_x509_certificate(self.file.read_bytes())
        now = datetime.now(UTC)
        crl = x509.CertificateRevocationListBuilder().issuer_name(authority.subject)
        crl = crl.last_update(now - timedelta(hours=1)).next_update(now + timedelta(days=1))
        if certificate is not None:
            serial = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            crl = crl.add_revoked_certificate(revoked.build())
        signed = crl.sign(_key(self._authority.private_key_pem.bytes()), hashes.SHA256())
        file = self._folder / "revoked.pem"
        file.write_bytes(signed.public_bytes(Encoding.PEM))
        return file


def _key(pem: bytes) -> EllipticCurvePrivateKey:
    return load_pem_private_key(pem, None)  # type: ignore[return-value]
