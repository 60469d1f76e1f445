"""Layouts in words, from a compiled object's type information (BTF): what two versions of the program agree on."""

from __future__ import annotations

from typing import Any

from msocks.datapath.splice import _libbpf

ffi, lib = _libbpf.ffi, _libbpf.lib

# BTF_KIND_* of linux/btf.h
_POINTER, _ARRAY, _STRUCT, _UNION = 2, 3, 4, 5
_QUALIFIERS = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type tag


def describe(types: Any, number: int) -> str:
    """A type in words: names, offsets and sizes of all that is in it. Equal words, equal memory.

    Args:
        types: libbpf's ``struct btf *``.
        number: The type's; 0 is void.
    """
    found = lib.btf__type_by_id(types, number)
    while number and lib.btf_kind(found) in _QUALIFIERS:
        number = found.type
        found = lib.btf__type_by_id(types, number)
    if not number:
        return "void"
    match lib.btf_kind(found):
        case kind if kind in (_STRUCT, _UNION):
            members = lib.btf_members(found)
            inside = (
                f"{ffi.string(lib.btf__name_by_offset(types, members[index].name_off)).decode()}"
                f"@{lib.btf_member_bit_offset(found, index)}:{describe(types, members[index].type)}"
                for index in range(lib.btf_vlen(found))
            )
            return f"{{{' '.join(inside)}}}{found.size}"
        case kind if kind == _ARRAY:
            array = lib.btf_array(found)
            return f"{describe(types, array.type)}[{array.nelems}]"
        case kind if kind == _POINTER:
            return "pointer"
        case _:
            return f"{lib.btf__resolve_size(types, number)}"
