from __future__ import annotations

import ctypes

import pytest

from msocks.datapath.splice import layout, libbpf
from msocks.datapath.splice.loader import OBJECT


@pytest.mark.parametrize("name", layout.STRUCTURES)
def test_both_halves_lay_a_structure_out_alike(name: str):
    here = layout.STRUCTURES[name]
    size, members = libbpf.structure(OBJECT, name)
    assert ctypes.sizeof(here) == size
    assert {field[0]: getattr(here, field[0]).offset for field in here._fields_} == members
