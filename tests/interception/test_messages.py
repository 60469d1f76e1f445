"""What a keeper and the agent say survives the wire, and nothing else is taken for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.errors import ConfigurationError
from msocks.interception.messages import Connect, Reach, Ready, Refuse, Refused, Router, Run, decode, encode
from msocks.values.origin import Wish

KINDS = (Run, Router, Ready, Refused, Connect, Refuse, Reach)
text, number = st.text(max_size=40), st.integers(0, 2**64 - 1)
wishes = st.builds(Wish, st.none() | text, st.lists(text, max_size=3).map(tuple), st.none() | text)
messages = (
    st.builds(Run, st.none() | text, wishes, st.booleans())
    | st.builds(Router, st.none() | text, st.booleans())
    | st.builds(Reach, st.booleans())
    | st.builds(Ready, number, number, number, st.lists(text, max_size=3).map(tuple))
    | st.builds(Refused, text, text)
    | st.builds(Connect, number, text, text, number, number, text)
    | st.builds(Refuse, number, number)
)


@given(messages)
def test_every_message_comes_back(message: Run | Router | Ready | Refused | Connect | Refuse | Reach):
    assert decode(encode(message), *KINDS) == message
    others = [kind for kind in KINDS if not isinstance(message, kind)]
    with pytest.raises(ConfigurationError, match="nothing that"):
        decode(encode(message), *others)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    ["tag", "wish", "cookie", "errno", "local", "destination", "pid", "uid", "process", "port4", "reach", "usable"]
)
nearly = st.builds(
    lambda say, values: json.dumps({**values, "say": say}).encode(),
    st.sampled_from(["run", "router", "reach", "connect", "refuse", "ready", "x"]) | json_values,
    st.dictionaries(fields, json_values, max_size=8),
)


@given(st.binary(max_size=60) | nearly)
def test_nonsense_is_refused_or_well_formed(packet: bytes):
    try:
        message = decode(packet, *KINDS)
    except ConfigurationError:
        return
    assert decode(encode(message), *KINDS) == message


def test_a_field_that_is_not_known_is_passed_over():
    assert decode(b'{"say": "refuse", "cookie": 1, "errno": 111, "later": true}', Refuse) == Refuse(1, 111)
