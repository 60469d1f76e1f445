"""Access links: all that a user needs to use a proxy, in one line.

``msocks://USER:SECRET@HOST:PORT?pin=PIN&address=HOST:PORT&address=...``

USER is percent-encoded UTF-8; SECRET and PIN are 32 bytes each in base64url without padding (RFC 4648 section 5); the
proxy's first address stands in the authority, further ones (another family, another uplink) as ``address``.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote, unquote

from msocks.errors import AccessLinkError, AddressError, ConfigurationError
from msocks.values.endpoint import Endpoint
from msocks.values.user_name import check_user_name

SECRET_BYTES = 32
PIN_BYTES = 32
MAX_ADDRESSES = 16

_SCHEME = "msocks"
_BASE64URL_32 = re.compile(r"[A-Za-z0-9_-]{43}")
_ASK = "ask the proxy's operator for a new access link (`msocks user add`)"


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode("ascii")


def _decode(text: str, part: str) -> bytes:
    if _BASE64URL_32.fullmatch(text) is None:
        raise AccessLinkError(
            f"the access link's {part} is not 43 characters of base64url",
            remedy=f"it may have been cut off in copying; otherwise {_ASK}",
        )
    value = base64.urlsafe_b64decode(text + "=")
    if _encode(value) != text:
        raise AccessLinkError(f"the access link's {part} is not canonical base64url", remedy=_ASK)
    return value


def _endpoint(text: str) -> Endpoint:
    try:
        endpoint = Endpoint.parse(text)
    except AddressError as error:
        raise AccessLinkError(f"the access link's address is wrong: {error.what}", remedy=error.remedy) from None
    return endpoint


@dataclass(frozen=True, slots=True)
class AccessLink:
    """A user's access to one proxy.

    Attributes:
        user: The user's name (see `msocks.values.user_name`).
        secret: 32 random bytes; whoever has them is the user. Not shown by repr(), but by str().
        addresses: The proxy's addresses, 1 to 16, distinct, ports not zero; the first is preferred.
        pin: SHA-256 of the proxy's public key (the DER SubjectPublicKeyInfo, RFC 5280 section 4.1).

    Raises:
        AccessLinkError: A field is outside its rules.
    """

    user: str
    secret: bytes = field(repr=False)
    addresses: tuple[Endpoint, ...]
    pin: bytes

    def __post_init__(self) -> None:
        try:
            check_user_name(self.user)
        except ConfigurationError as error:
            raise AccessLinkError(error.what, remedy=error.remedy) from None
        if len(self.secret) != SECRET_BYTES:
            raise AccessLinkError(f"the secret has {len(self.secret)} bytes, not {SECRET_BYTES}", remedy=_ASK)
        if len(self.pin) != PIN_BYTES:
            raise AccessLinkError(f"the pin has {len(self.pin)} bytes, not {PIN_BYTES}", remedy=_ASK)
        if not 1 <= len(self.addresses) <= MAX_ADDRESSES:
            raise AccessLinkError(
                f"an access link has 1 to {MAX_ADDRESSES} addresses, not {len(self.addresses)}",
                remedy="give the address that clients shall connect to",
            )
        for endpoint in self.addresses:
            if endpoint.port == 0:
                raise AccessLinkError(f"the address {endpoint} has no usable port", remedy="use a port from 1 to 65535")
        if len(set(self.addresses)) != len(self.addresses):
            raise AccessLinkError("the access link names an address twice", remedy="leave one out")

    def __str__(self) -> str:
        """The link itself, secret included: for the user's eyes and files, never for a log."""
        first, *others = self.addresses
        query = [f"pin={_encode(self.pin)}"]
        query += [f"address={quote(str(endpoint), safe=':')}" for endpoint in others]
        return f"{_SCHEME}://{quote(self.user, safe='')}:{_encode(self.secret)}@{first}?{'&'.join(query)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an access link; white space around it is ignored.

        Raises:
            AccessLinkError: The text is not one. The message names the part that is wrong and never the secret.
        """
        text = text.strip()
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() != _SCHEME:
            raise AccessLinkError(
                "this is not an access link: it does not begin with msocks://",
                remedy="an access link looks like msocks://USER:SECRET@HOST:PORT?pin=PIN",
            )
        if not rest.isascii() or not rest.isprintable() or " " in rest:
            raise AccessLinkError(
                "the access link has characters that no link can have",
                remedy="it may have been broken over several lines in copying",
            )
        if "#" in rest:
            raise AccessLinkError("the access link has a fragment (#...)", remedy="remove it")
        authority, _, query = rest.partition("?")
        identity, at, address = authority.removesuffix("/").rpartition("@")
        user, colon, secret = identity.partition(":")
        if not at or not colon:
            raise AccessLinkError("the access link has no USER:SECRET@ before the address", remedy=_ASK)
        if "/" in address:
            raise AccessLinkError("the access link has a path", remedy="remove what stands between the port and ?")
        pin, others = cls._parse_query(query)
        return cls(
            user=_unquote(user, "user name"),
            secret=_decode(secret, "secret"),
            addresses=(_endpoint(address), *others),
            pin=pin,
        )

    @staticmethod
    def _parse_query(query: str) -> tuple[bytes, list[Endpoint]]:
        pin: bytes | None = None
        others: list[Endpoint] = []
        for parameter in query.split("&") if query else []:
            key, _, value = parameter.partition("=")
            match key:
                case "pin" if pin is None:
                    pin = _decode(value, "pin")
                case "pin":
                    raise AccessLinkError("the access link has two pins", remedy=_ASK)
                case "address":
                    others.append(_endpoint(_unquote(value, "address")))
                case _:
                    raise AccessLinkError(
                        f"the access link has the unknown parameter {key[:40]!r}",
                        remedy="it may be misspelt, or made for a newer msocks",
                    )
        if pin is None:
            raise AccessLinkError(
                "the access link has no pin, so the proxy could not be told from an impostor", remedy=_ASK
            )
        return pin, others


def _unquote(text: str, part: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise AccessLinkError(f"the access link's {part} is not percent-encoded UTF-8", remedy=_ASK) from None
