"""Strategies for the plain values, so that tests say `st.from_type(Endpoint)`."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from msocks.errors import AddressError
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint, check_name


def is_name(text: str) -> bool:
    try:
        check_name(text)
    except AddressError:
        return False
    return True


LABELS = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=63)
NAMES = (
    st.builds(
        lambda labels, root: ".".join(labels) + root,
        st.lists(LABELS, min_size=1, max_size=5),
        st.sampled_from(["", "."]),
    )
    .map(lambda name: name[-255:].lstrip("."))
    .filter(is_name)
)
ADDRESSES = st.ip_addresses()
PORTS = st.integers(0, 65535)
USER_NAMES = (
    st.text(min_size=1, max_size=64)
    .filter(lambda name: name.isprintable() and not any(map(str.isspace, name)))
    .filter(lambda name: len(name.encode()) <= 64)
)

st.register_type_strategy(Endpoint, st.builds(Endpoint, st.one_of(ADDRESSES, NAMES), PORTS))
st.register_type_strategy(
    AccessLink,
    st.builds(
        AccessLink,
        user=USER_NAMES,
        secret=st.binary(min_size=32, max_size=32),
        addresses=st.lists(
            st.builds(Endpoint, st.one_of(ADDRESSES, NAMES), st.integers(1, 65535)),
            min_size=1,
            max_size=16,
            unique=True,
        ).map(tuple),
        pin=st.binary(min_size=32, max_size=32),
    ),
)
