"""TLS 1.3 as a machine without sockets: bytes in, plaintext and bytes out. For control channels, at both ends.

The proxy's key is pinned (see `msocks.values.access_link`), so nothing of the certificate but its key matters, and
neither names nor dates nor signers are checked.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from pathlib import Path

from msocks.errors import PinMismatch, ProtocolError, ProtocolFault

_READ_BYTES = 64 * 1024


def server_context(identity: Path) -> ssl.SSLContext:
    """The proxy's context: TLS 1.3 alone, no resumption (each channel authenticates anew).

    Args:
        identity: PEM file of private key and certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(identity)
    return context


def client_context() -> ssl.SSLContext:
    """The client's context: TLS 1.3 alone. `TlsMachine` compares the pin, which replaces all other checks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def public_key_pin(certificate: bytes) -> bytes:
    """SHA-256 of a DER certificate's SubjectPublicKeyInfo (RFC 5280 section 4.1): what access links call the pin.

    Raises:
        ProtocolError: The bytes are no certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except ValueError as error:
        raise ProtocolError(ProtocolFault.SYNTAX, f"the proxy's certificate cannot be read: {error}") from None
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


class TlsMachine:
    """One TLS connection. Feed `receive`, send what `outgoing` gives after every call.

    Attributes:
        established: Whether the handshake is done, and at the client the pin compared: only then is plaintext carried.
        closed: Whether the peer has said that nothing more follows (close_notify); an end without it is a broken
            connection.
    """

    def __init__(self, context: ssl.SSLContext, *, pin: bytes | None = None) -> None:
        """
        Args:
            context: From `server_context` or `client_context`.
            pin: At the client, the 32 bytes of the access link; None at the server.
        """
        self.established = False
        self.closed = False
        self._pin = pin
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=pin is None)

    def start(self) -> None:
        """Begin the handshake: the client speaks first."""
        self._handshake()

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the connection, return the plaintext that they complete.

        Raises:
            ProtocolError: The peer violates TLS, or does not speak TLS 1.3. `outgoing` may hold an alert to send.
            PinMismatch: The proxy's key is not the pinned one. Nothing of what was to be sent has been.
        """
        self._incoming.write(data)
        if not self.established and not self._handshake():
            return b""
        plaintext = bytearray()
        try:
            while not self.closed:
                chunk = self._tls.read(_READ_BYTES)
                if not chunk:
                    self.closed = True
                plaintext += chunk
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        except ssl.SSLError as error:
            raise _violation(error) from None
        return bytes(plaintext)

    def send(self, plaintext: bytes) -> None:
        """Encrypt; `outgoing` gives the result. Only after `established`."""
        if plaintext:
            self._tls.write(plaintext)

    def close(self) -> None:
        """Say that nothing more follows (close_notify)."""
        if self.established:
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # the peer's own close_notify is not waited for

    def outgoing(self) -> bytes:
        """Bytes for the connection; empty when asked again."""
        return self._outgoing.read()

    def _handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise _violation(error) from None
        if self._pin is not None:
            seen = public_key_pin(self._tls.getpeercert(binary_form=True) or b"")
            if not hmac.compare_digest(seen, self._pin):
                self._outgoing.read()
                raise PinMismatch(self._pin, seen)
        self.established = True
        return True


def _violation(error: ssl.SSLError) -> ProtocolError:
    return ProtocolError(ProtocolFault.SYNTAX, f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}")
