from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import AccessLinkError, ConfigurationError
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint

SECRET = bytes(range(32))
PIN = bytes(range(32, 64))
SECRET_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
PIN_TEXT = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8"
LINK = f"msocks://alice:{SECRET_TEXT}@proxy.example:443?pin={PIN_TEXT}"
ENDPOINT = Endpoint("proxy.example", 443)


def test_a_link_byte_for_byte():
    link = AccessLink("alice", SECRET, (ENDPOINT,), PIN)
    assert str(link) == LINK
    assert AccessLink.parse(LINK) == link


def test_a_link_with_several_addresses():
    text = LINK + "&address=%5B2001:db8::1%5D:8443&address=192.0.2.7:443"
    link = AccessLink.parse(text)
    assert link.addresses == (ENDPOINT, Endpoint.parse("[2001:db8::1]:8443"), Endpoint.parse("192.0.2.7:443"))
    assert str(link) == text


@given(st.from_type(AccessLink))
def test_what_is_printed_is_read_again(link: AccessLink):
    text = str(link)
    assert AccessLink.parse(text) == link
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text


@given(st.from_type(AccessLink), st.binary(min_size=32, max_size=32))
def test_repr_does_not_depend_on_the_secret(link: AccessLink, another: bytes):
    assert repr(replace(link, secret=another)) == repr(link)


@given(st.one_of(st.text(max_size=200), st.text(max_size=200).map(LINK.__add__)))
def test_any_text_is_a_link_or_a_defined_error(text: str):
    try:
        link = AccessLink.parse(text)
    except AccessLinkError:
        return
    assert AccessLink.parse(str(link)) == link


def test_forms_that_copying_produces_are_accepted():
    expected = AccessLink.parse(LINK)
    assert AccessLink.parse(f"  {LINK}\n") == expected
    assert AccessLink.parse(LINK.replace("msocks://", "MSOCKS://")) == expected
    assert AccessLink.parse(LINK.replace("?pin", "/?pin")) == expected
    assert AccessLink.parse(LINK + "&address=[2001:db8::1]:443").addresses[1] == Endpoint.parse("[2001:db8::1]:443")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "does not begin with msocks://"),
        ("https://example.org", "does not begin with msocks://"),
        ("msocks:alice", "does not begin with msocks://"),
        (LINK.replace("alice", "al ice"), "characters that no link can have"),
        (LINK.replace("alice", "al\nice"), "characters that no link can have"),
        (LINK.replace("alice", "alicé"), "characters that no link can have"),
        (LINK + "#x", "has a fragment"),
        (LINK.replace("alice:", ""), "no USER:SECRET@"),
        (LINK.replace("alice:" + SECRET_TEXT + "@", ""), "no USER:SECRET@"),
        (LINK.replace("alice", ""), "the user name has 0 bytes"),
        (LINK.replace("alice", "a" * 65), "the user name has 65 bytes"),
        (LINK.replace("alice", "a%20b"), "white space"),
        (LINK.replace("alice", "%ff"), "not percent-encoded UTF-8"),
        (LINK.replace(SECRET_TEXT, SECRET_TEXT[:-1]), "secret is not 43 characters"),
        (LINK.replace(SECRET_TEXT, SECRET_TEXT[:-1] + "="), "secret is not 43 characters"),
        (LINK.replace(SECRET_TEXT, SECRET_TEXT[:-1] + "9"), "secret is not canonical"),
        (LINK.replace(":443", ""), "address is wrong: .* has no port"),
        (LINK.replace(":443", ":0"), "has no usable port"),
        (LINK.replace(":443", ":443/path"), "has a path"),
        (LINK.replace("proxy.example", "2001:db8::1"), "address is wrong: .* is ambiguous"),
        (LINK + "&address=x", "address is wrong: 'x' has no port"),
        (LINK + "&address=%ff:1", "not percent-encoded UTF-8"),
        (LINK + "&address=proxy.example:443", "names an address twice"),
        (LINK + "".join(f"&address=h:{port}" for port in range(1, 17)), "1 to 16 addresses, not 17"),
        (LINK + "&adress=h:1", "unknown parameter 'adress'"),
        (LINK + "&", "unknown parameter ''"),
        (LINK + f"&pin={PIN_TEXT}", "two pins"),
        (LINK.replace(PIN_TEXT, PIN_TEXT[1:]), "pin is not 43 characters"),
        (LINK.replace(f"?pin={PIN_TEXT}", ""), "has no pin"),
        (LINK.replace(f"pin={PIN_TEXT}", ""), "has no pin"),
    ],
)
def test_what_is_no_link_is_told_why(text, complaint):
    with pytest.raises(AccessLinkError, match=complaint) as caught:
        AccessLink.parse(text)
    assert caught.value.remedy
    assert SECRET_TEXT not in str(caught.value)


@pytest.mark.parametrize(
    ("secret", "addresses", "pin", "complaint"),
    [
        (SECRET[1:], (ENDPOINT,), PIN, "secret has 31 bytes"),
        (SECRET, (ENDPOINT,), PIN + b"x", "pin has 33 bytes"),
        (SECRET, (), PIN, "1 to 16 addresses, not 0"),
        (SECRET, (Endpoint(IPv4Address("192.0.2.1"), 0),), PIN, "no usable port"),
    ],
)
def test_a_link_is_checked_when_made(secret, addresses, pin, complaint):
    with pytest.raises(AccessLinkError, match=complaint):
        AccessLink("alice", secret, addresses, pin)


def test_a_wrong_link_is_a_configuration_error():
    assert issubclass(AccessLinkError, ConfigurationError)
