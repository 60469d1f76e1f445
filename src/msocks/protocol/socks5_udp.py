"""Datagrams between a SOCKS5 client and its UDP relay (RFC 1928 section 7), and whose datagrams the relay takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from msocks.errors import ProtocolError, ProtocolFault
from msocks.protocol.fields import require
from msocks.protocol.socks5_wire import address_size, decode_address, encode_address
from msocks.values.endpoint import Address, Endpoint

_PREFIX_BYTES = 3  # RSV, RSV, FRAG


@dataclass(frozen=True, slots=True)
class UdpDatagram:
    """A datagram with its header.

    Attributes:
        endpoint: From the client: where to. To the client: where from.
        payload: The application's bytes, any number.
        fragment: FRAG: 0 for a datagram that stands alone.
    """

    endpoint: Endpoint
    payload: bytes = field(repr=False)
    fragment: int = 0


def encode_udp(endpoint: Endpoint, payload: bytes) -> bytes:
    """The datagram of a relay or a client, never a fragment."""
    return bytes(_PREFIX_BYTES) + encode_address(endpoint) + payload


def decode_udp(datagram: bytes) -> UdpDatagram:
    """Read a datagram. As in a request, the reserved bytes are not looked at.

    Raises:
        ProtocolError: It is too short for its header, its address type is not defined, or its name is no host name.
    """
    require(len(datagram) > _PREFIX_BYTES, "a SOCKS datagram has no header", ProtocolFault.LENGTH)
    endpoint, size = take_address(datagram, _PREFIX_BYTES)
    return UdpDatagram(endpoint, datagram[_PREFIX_BYTES + size :], datagram[2])


def take_address(datagram: bytes, offset: int) -> tuple[Endpoint, int]:
    """The endpoint that begins at `offset` of a whole datagram (ATYP, address, port), and its size in bytes.

    Raises:
        ProtocolError: It is cut short, of an undefined type, or its name is no host name.
    """
    size = address_size(datagram, offset)
    if size is None or len(datagram) < offset + size:
        raise ProtocolError(ProtocolFault.LENGTH, "a datagram is too short for its address")
    return decode_address(datagram[offset : offset + size]), size


class ClientGate:
    """Takes the datagrams of one client, and of nobody else.

    RFC 1928 section 7 has a relay drop what comes from another *address* than the client's; that is the one from which
    its TCP connection comes. The *port* is the one that the request named, if it named one together with that address:
    behind a NAT the client knows neither, and sends zeros or what it takes for its own. Otherwise the first datagram
    tells the port, and no other one counts after it.
    """

    __slots__ = ("_address", "_port")

    def __init__(self, peer: Address, announced: Endpoint) -> None:
        """
        Args:
            peer: Where the client's TCP connection comes from.
            announced: DST.ADDR and DST.PORT of its UDP ASSOCIATE.
        """
        self._address = peer
        self._port = announced.port if announced.address == peer else 0

    @property
    def client(self) -> Endpoint | None:
        """Where datagrams for the client go; None as long as that is not known."""
        return Endpoint(self._address, self._port) if self._port else None

    def admits(self, source: Endpoint) -> bool:
        """Whether a datagram from `source` is the client's."""
        if source.address != self._address or not source.port:
            return False
        if not self._port:
            self._port = source.port
        return source.port == self._port
