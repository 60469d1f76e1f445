"""The bytes of the proxy's reply on an MSOCKS leg, and a decoder that never reads too far.

A reply is the method selection ``05 8D``, 72 bytes, and 32 bytes of HMAC-SHA-256 over the request's MAC and all of the
reply before it. The application's bytes follow without framing.
"""

from __future__ import annotations

import hmac
import struct

from msocks.errors import ProtocolError, ProtocolFault
from msocks.protocol.fields import (
    FIXED_ADDRESS_BYTES,
    decode_fixed_address,
    decode_offset,
    encode_fixed_address,
    require,
)
from msocks.protocol.leg import (
    LEG_VERSION,
    UNVERIFIABLE_STATUSES,
    DatapathKind,
    DatapathReason,
    LegReply,
    LegStatus,
    ReceivedReply,
)
from msocks.protocol.leg_wire import (
    DOWN_FIN,
    MAC_BYTES,
    UP_FIN,
    MessageBuffer,
    check_key,
    leg_mac,
    pack_fins,
    unpack_fin,
)
from msocks.protocol.socks5_wire import VERSION, Method

# version, status, SOCKS reply, flags, datapath, its reason, 2 reserved, generation, bound, D, U, FINs, clock
_REPLY = struct.Struct(f">BBBBBB2xI{FIXED_ADDRESS_BYTES}sQQQQQ")

METHOD_SELECTED = bytes((VERSION, Method.MSOCKS_LEG))
METHOD_REFUSED = bytes((VERSION, Method.NO_ACCEPTABLE))
REPLY_BYTES = len(METHOD_SELECTED) + _REPLY.size + MAC_BYTES
"""Size of a whole reply, method selection and MAC included."""

_NO_MAC = bytes(MAC_BYTES)

_STATUSES = frozenset(LegStatus)
_DATAPATHS = frozenset(DatapathKind)
_DATAPATH_REASONS = frozenset(DatapathReason)


def encode_reply(reply: LegReply, request_mac: bytes, key_down: bytes | None) -> bytes:
    """Method selection, reply and MAC: the proxy's only words on a leg.

    Args:
        reply: What to say.
        request_mac: The 32 bytes at the end of the request.
        key_down: The association's proxy-to-client key; None for the statuses in `UNVERIFIABLE_STATUSES`, and only for
            them: the MAC is all zero then.

    Raises:
        ValueError: Status and key do not go together, or the request's MAC has another length.
    """
    if (key_down is None) is not (reply.status in UNVERIFIABLE_STATUSES):
        raise ValueError(f"{reply.status.name} is answered {'with' if key_down is None else 'without'} a MAC")
    if len(request_mac) != MAC_BYTES:
        raise ValueError(f"a MAC has {MAC_BYTES} bytes, not {len(request_mac)}")
    flags, down_fin_at, up_fin_at = pack_fins(reply.down_fin_at, reply.up_fin_at)
    unsigned = METHOD_SELECTED + _REPLY.pack(
        LEG_VERSION,
        reply.status,
        reply.socks_reply,
        flags,
        reply.datapath,
        reply.datapath_reason,
        reply.generation,
        encode_fixed_address(reply.bound),
        reply.down_from,
        reply.up_acked,
        down_fin_at,
        up_fin_at,
        reply.proxy_ms,
    )
    return unsigned + (_NO_MAC if key_down is None else leg_mac(key_down, request_mac, unsigned))


class LegReplyDecoder:
    """Reads the proxy's answer to one request from a byte stream.

    `bytes_needed` and `take_trailing` are as in `msocks.protocol.leg_request_codec.LegRequestDecoder`.
    """

    __slots__ = ("_buffer", "_key_down", "_request_mac")

    def __init__(self, request: bytes, key_down: bytes) -> None:
        """Prepare for the answer to `request`.

        Args:
            request: The request as `encode_request` gave it.
            key_down: The association's proxy-to-client key, 32 bytes.

        Raises:
            ValueError: The key has not 32 bytes.
        """
        self._buffer = MessageBuffer("reply")
        self._request_mac = request[-MAC_BYTES:]
        self._key_down = check_key(key_down)

    @property
    def bytes_needed(self) -> int:
        """How many bytes the reply lacks; 0 once it is complete."""
        return 0 if self._buffer.complete else REPLY_BYTES - len(self._buffer)

    def receive(self, data: bytes) -> ReceivedReply | None:
        """Take bytes from the connection; return the reply with the bytes that complete it.

        Raises:
            ProtocolError: The answer is malformed, or declines the method (reason METHOD). Nothing authenticates that,
                so it says no more of the session than a broken connection would. The decoder must not be used any more.
            InvalidState: The reply is complete already; what comes now is the application's.
        """
        self._buffer.feed(data)
        self._check_start()
        if len(self._buffer) < REPLY_BYTES:
            return None
        message = self._buffer.take(REPLY_BYTES)
        unsigned, mac = message[:-MAC_BYTES], message[-MAC_BYTES:]
        verified = hmac.compare_digest(mac, leg_mac(self._key_down, self._request_mac, unsigned))
        return ReceivedReply(_decode_reply(unsigned), verified)

    def take_trailing(self) -> bytes:
        """The application's bytes that came with the reply; empty when asked again.

        Raises:
            InvalidState: The reply is not complete.
        """
        return self._buffer.take_trailing()

    def _check_start(self) -> None:
        selection = self._buffer[: len(METHOD_SELECTED)]
        if not METHOD_SELECTED.startswith(selection):
            what = "declines MSOCKS legs" if selection == METHOD_REFUSED else "does not speak MSOCKS"
            raise ProtocolError(
                ProtocolFault.METHOD,
                f"what answers at the proxy's address {what}",
                remedy="check the address in the access link; a captive portal may answer in the proxy's place",
            )
        version = self._buffer.byte_at(len(METHOD_SELECTED))
        if version not in (None, LEG_VERSION):
            raise ProtocolError(ProtocolFault.VERSION, f"the leg version {version} is not spoken here")


def _decode_reply(unsigned: bytes) -> LegReply:
    body = unsigned[len(METHOD_SELECTED) :]
    (
        _,
        status,
        socks_reply,
        flags,
        datapath,
        reason,
        generation,
        bound,
        down_from,
        up_acked,
        down_fin_at,
        up_fin_at,
        proxy_ms,
    ) = _REPLY.unpack(body)
    require(status in _STATUSES, f"the status {status:#04x} is not defined")
    require((status == LegStatus.REFUSED) is (socks_reply != 0), "the status and the SOCKS reply code disagree")
    require(flags & ~(DOWN_FIN | UP_FIN) == 0, f"the flags {flags:#04x} are not defined")
    require(datapath in _DATAPATHS, f"the datapath {datapath} is not defined")
    require(not any(body[6:8]), "reserved bytes of a reply are not zero")
    known = reason in _DATAPATH_REASONS
    return LegReply(
        status=LegStatus(status),
        socks_reply=socks_reply,
        generation=generation,
        down_from=decode_offset(down_from, "D"),
        up_acked=decode_offset(up_acked, "U"),
        down_fin_at=unpack_fin(flags, DOWN_FIN, down_fin_at, "down_fin_at"),
        up_fin_at=unpack_fin(flags, UP_FIN, up_fin_at, "up_fin_at"),
        bound=decode_fixed_address(bound),
        datapath=DatapathKind(datapath),
        datapath_reason=DatapathReason(reason) if known else DatapathReason.UNSPECIFIED,
        proxy_ms=proxy_ms,
    )
