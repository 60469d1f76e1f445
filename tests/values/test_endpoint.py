from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import AddressError, ConfigurationError
from msocks.values.endpoint import Endpoint, check_name, parse_host, parse_port


@given(st.from_type(Endpoint))
def test_what_is_printed_is_read_again(endpoint: Endpoint):
    assert Endpoint.parse(str(endpoint)) == endpoint


@given(st.text(max_size=300))
def test_any_text_is_an_endpoint_or_a_defined_error(text: str):
    try:
        endpoint = Endpoint.parse(text)
    except AddressError:
        return
    assert Endpoint.parse(str(endpoint)) == endpoint


def test_a_long_text_makes_no_long_message():
    with pytest.raises(AddressError) as caught:
        Endpoint.parse("x" * 100_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:80", IPv4Address("192.0.2.1"), 80),
        ("[2001:db8::1]:443", IPv6Address("2001:db8::1"), 443),
        ("Example.ORG.:1", "Example.ORG.", 1),
        ("_dns.example:0", "_dns.example", 0),
        ("bücher.example:65535", "xn--bcher-kva.example", 65535),
        ("127.1:80", "127.1", 80),
    ],
)
def test_endpoints_as_people_write_them(text, host, port):
    assert Endpoint.parse(text) == Endpoint(host, port)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("example.org", "has no port"),
        ("", "has no port"),
        (":80", "the host name is empty"),
        ("example.org:", "is not a port number"),
        ("example.org:65536", "is not a port number"),
        ("example.org:-1", "is not a port number"),
        ("example.org:+80", "is not a port number"),
        ("example.org:٨٠", "is not a port number"),
        ("2001:db8::1:80", "is ambiguous"),
        ("[2001:db8::1]", "is not an endpoint"),
        ("[2001:db8::1]80", "is not an endpoint"),
        ("[2001:db8::1:80", "is not an endpoint"),
        ("[192.0.2.1]:80", "needs no brackets"),
        ("[fe80::1%eth0]:80", "has a zone"),
        ("a b:80", "is not a host name"),
        ("a..b:80", "is not a host name"),
        (".a:80", "is not a host name"),
        ("a\0b:80", "is not a host name"),
        ("user@host:80", "is not a host name"),
        ("x" * 64 + ":80", "is not a host name"),
        (".".join(["x" * 50] * 6) + ":80", "has 305 bytes, more than 255"),
        ("\udc80:80", "is not a host name"),
    ],
)
def test_what_is_no_endpoint_is_told_why(text, complaint):
    with pytest.raises(AddressError, match=complaint):
        Endpoint.parse(text)


def test_a_name_is_never_an_address():
    for text in ("192.0.2.1", "::1"):
        with pytest.raises(AddressError):
            check_name(text)
        with pytest.raises(AddressError):
            Endpoint(text, 80)
        assert not isinstance(parse_host(text), str)


def test_the_longest_name_has_255_bytes():
    name = ".".join(["x" * 63] * 4)
    assert len(name) == 255
    assert check_name(name) == name
    with pytest.raises(AddressError, match="has 256 bytes"):
        check_name(name + ".")


def test_a_name_in_full_width_digits_is_the_address_it_resolves_to():
    assert parse_host("１２７.0.0.1") == IPv4Address("127.0.0.1")


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_has_16_bits(port):
    with pytest.raises(AddressError):
        Endpoint("a", port)
    with pytest.raises(AddressError):
        parse_port(str(port))


def test_an_address_with_a_zone_is_refused():
    with pytest.raises(AddressError, match="zone"):
        Endpoint(IPv6Address("fe80::1%3"), 80)


def test_an_address_error_is_a_value_error_too():
    assert issubclass(AddressError, ConfigurationError)
    assert issubclass(AddressError, ValueError)


def test_address_is_none_for_a_name():
    assert Endpoint("a.example", 1).address is None
    assert Endpoint(IPv4Address(1), 1).address == IPv4Address(1)


@pytest.mark.parametrize(
    ("sockaddr", "printed"),
    [
        (("192.0.2.1", 80), "192.0.2.1:80"),
        (("2001:db8::1", 80, 0, 0), "[2001:db8::1]:80"),
        (("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1:80"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1]:80"),
    ],
)
def test_socket_addresses(sockaddr, printed):
    assert str(Endpoint.from_sockaddr(sockaddr)) == printed
