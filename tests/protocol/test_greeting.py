from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from msocks.protocol.greeting import LEG_GREETING, LONGEST_LOOK, Announcement, classify

# Bytes that matter are likely.
STARTS = st.lists(st.sampled_from([0x05, 0x01, 0x8D, 0x16, 0x02, 0x00]) | st.integers(0, 255), max_size=6).map(bytes)


@given(STARTS)
def test_a_decision_never_changes_and_comes_within_three_bytes(start: bytes):
    verdicts = [classify(start[:size]) for size in range(len(start) + 1)]
    decided = [verdict for verdict in verdicts if verdict is not Announcement.UNDECIDED]
    assert len(set(decided)) <= 1
    assert all(verdict is not Announcement.UNDECIDED for verdict in verdicts[LONGEST_LOOK:])


@given(STARTS)
def test_only_the_private_method_alone_is_a_leg(start: bytes):
    assert (classify(start) is Announcement.LEG) is start.startswith(LEG_GREETING)


def test_vectors(vectors):
    for case in vectors("greeting.json"):
        assert classify(bytes.fromhex(case["bytes"])).name == case["announcement"], case
