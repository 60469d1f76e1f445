"""The proxy's key. Clients know it by its pin, not by who signed it: its certificate is self-signed and never ends."""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from msocks.store.state_directory import StateDirectory, StoreError

_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "msocks proxy")])
# RFC 5280 section 4.1.2.5: a certificate that has no well-defined end.
_NEVER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_SINCE_EVER = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class ProxyIdentity:
    """The proxy's key pair.

    Attributes:
        path: A PEM file of private key (ECDSA P-256) and certificate, as `ssl.SSLContext.load_cert_chain` takes it.
        pin: SHA-256 of the public key (DER SubjectPublicKeyInfo), 32 bytes; it stands in every access link.
    """

    path: Path
    pin: bytes

    @classmethod
    def load_or_create(cls, state: StateDirectory) -> Self:
        """The key in the state directory; where there is none, a new one.

        Two processes that do this at the same time get the same key.

        Raises:
            StoreError: The file is there and cannot be read as a key.
        """
        if not state.identity.exists():
            _create(state.identity)
        try:
            pem = state.identity.read_bytes()
            certificate = x509.load_pem_x509_certificate(pem)
            key = serialization.load_pem_private_key(pem, None)
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(
                f"the proxy's key {state.identity} cannot be read: {error}",
                remedy="restore it from a backup; without it every access link must be made anew "
                "(move the file away, and run `msocks user add` again)",
            ) from None
        public = _spki(certificate.public_key())
        if _spki(key.public_key()) != public:
            raise StoreError(
                f"key and certificate in {state.identity} do not belong together", remedy="restore it from a backup"
            )
        digest = hashes.Hash(hashes.SHA256())
        digest.update(public)
        return cls(state.identity, digest.finalize())


def _spki(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise StoreError("the proxy's key is not an elliptic curve key", remedy="restore it from a backup")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _create(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_SINCE_EVER)
        .not_valid_after(_NEVER)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    # mkstemp gives mode 0600; link() neither shows a half-written file nor replaces one that came first.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".identity-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
