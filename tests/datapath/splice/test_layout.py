"""``layout.py`` says what ``layout.h`` says, as the compiler has laid it out."""

from __future__ import annotations

import ctypes
import re
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from msocks.datapath.splice import events, layout
from msocks.datapath.splice.events import EventType
from msocks.datapath.splice.layout import STRUCTURES, DropReason, LegFlag, LegState, SessionFlag, SessionState
from msocks.datapath.splice.libbpf import structure
from msocks.datapath.splice.loader import OBJECT

HEADER = Path(layout.__file__).with_name("bpf") / "layout.h"
ENUMS: dict[str, type[IntEnum] | type[IntFlag]] = {
    "session_state": SessionState,
    "leg_state": LegState,
    "leg_flags": LegFlag,
    "session_flags": SessionFlag,
    "event_type": EventType,
    "drop_reason": DropReason,
}
NUMBERS = ["LAYOUT_VERSION", "MARK_OF_DAEMON", "LEGS", "EVENT_PACKET_BYTES", "HELD_PACKET_BYTES"]


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_has_the_size_and_the_offsets_of_the_compiled_object(name: str):
    made = STRUCTURES[name]
    size, offsets = structure(OBJECT, name)
    assert ctypes.sizeof(made) == size
    assert {field: getattr(made, field).offset for field, *_ in made._fields_} == offsets
    # Of members that follow each other, the sizes are the distances: none may be wider than its place.
    places = sorted(offsets.values())
    for field, *_ in made._fields_:
        after = next((place for place in places if place > offsets[field]), size)
        assert getattr(made, field).size <= after - offsets[field]


def source() -> str:
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def enumerated(name: str) -> dict[str, int]:
    found = re.search(rf"enum {name} {{(.*?)}}", source(), re.DOTALL)
    assert found
    members, following = {}, 0
    for member in filter(None, (part.strip() for part in found[1].split(","))):
        label, _, value = member.partition("=")
        if value:
            base, _, shift = value.partition("<<")
            following = int(base) << int(shift or 0)
        members[label.strip()] = following
        following += 1
    return members


@pytest.mark.parametrize("name", ENUMS)
def test_every_number_has_the_same_name(name: str):
    prefix = name.split("_", maxsplit=1)[0].upper()
    named = {f"{prefix}_{member.name}": int(member) for member in ENUMS[name]}
    known = enumerated(name)
    known.pop("DROP_REASONS", None)
    assert named == known


@pytest.mark.parametrize("name", NUMBERS)
def test_the_constants_are_the_same(name: str):
    found = re.search(rf"^#define {name} (\w+) *$", source(), re.MULTILINE)
    assert found
    assert (vars(layout) | vars(events))[name] == int(found[1], 0)
