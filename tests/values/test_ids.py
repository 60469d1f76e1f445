from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.values.ids import AssociationId, SessionId, matching, printed_forms

VALUES = st.binary(min_size=16, max_size=16).filter(any)
# Few different bytes, so that long common prefixes occur.
SIMILAR = st.lists(st.sampled_from([0, 1, 16]), min_size=16, max_size=16).filter(any).map(bytes)


@given(VALUES)
def test_hexadecimal_round_trip(value: bytes):
    for kind in (SessionId, AssociationId):
        assert kind.from_hex(kind(value).hex()) == kind(value)
        assert kind(value).hex() in repr(kind(value))
        assert str(kind(value)) == kind(value).short == value.hex()[:8]


def test_a_session_is_not_an_association():
    either: set[object] = {SessionId(b"x" * 16), AssociationId(b"x" * 16)}
    assert len(either) == 2


def test_generated_identifiers_differ():
    assert len({SessionId.generate() for _ in range(100)}) == 100


@pytest.mark.parametrize("value", [b"", b"x" * 15, b"x" * 17, bytes(16)])
def test_other_lengths_and_zero_are_no_identifiers(value):
    with pytest.raises(ValueError, match="identifier"):
        SessionId(value)


@pytest.mark.parametrize("text", ["", "00" * 16, "x" * 32, "ab " * 16, "ab" * 17])
def test_other_texts_are_no_identifiers(text):
    with pytest.raises(ValueError, match=r"identifier|hexadecimal"):
        SessionId.from_hex(text)


@given(st.sets(st.one_of(SIMILAR, VALUES).map(SessionId), max_size=20))
def test_printed_forms_are_short_and_name_one_identifier_each(ids: set[SessionId]):
    forms = printed_forms(ids)
    assert set(forms) == ids
    for each, form in forms.items():
        assert matching(form, ids) == [each]
        assert matching(form.upper(), ids) == [each]
        assert len(form) >= 8
        if len(form) > 8:
            assert len(matching(form[:-1], ids)) > 1


def test_an_empty_prefix_matches_nothing():
    assert matching("", [SessionId(b"x" * 16)]) == []
