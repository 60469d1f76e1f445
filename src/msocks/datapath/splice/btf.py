"""Reads a compiled object's type information (BTF): layouts, in words that two versions of the program can compare."""

from __future__ import annotations

from typing import Any

from msocks.datapath.splice import _libbpf

ffi, lib = _libbpf.ffi, _libbpf.lib

# BTF_KIND_* of linux/btf.h
_POINTER, _ARRAY, _STRUCT, _UNION, _SECTION = 2, 3, 4, 5, 15
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
            fields = lib.btf_members(found)
            inside = (
                f"{_name(types, fields[index].name_off)}"
                f"@{lib.btf_member_bit_offset(found, index)}:{describe(types, fields[index].type)}"
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


def members(types: Any, name: str) -> tuple[int, dict[str, int]]:
    """Size of a structure, and the offset of each member in bytes. Raises KeyError."""
    found = _find(types, name, _STRUCT)
    inside = lib.btf_members(found)
    return int(found.size), {
        _name(types, inside[index].name_off): int(lib.btf_member_bit_offset(found, index) // 8)
        for index in range(lib.btf_vlen(found))
    }


def variable(types: Any, section: str, name: str) -> tuple[int, int]:
    """Offset and size of a global variable in a section, in bytes. Raises KeyError."""
    found = _find(types, section, _SECTION)
    places = lib.btf_var_secinfos(found)
    for index in range(lib.btf_vlen(found)):
        place = places[index]
        if _name(types, lib.btf__type_by_id(types, place.type).name_off) == name:
            return int(place.offset), int(place.size)
    raise KeyError(name)


def _find(types: Any, name: str, kind: int) -> Any:
    number = lib.btf__find_by_name_kind(types, name.encode(), kind)
    if number < 0:
        raise KeyError(name)
    return lib.btf__type_by_id(types, number)


def _name(types: Any, offset: int) -> str:
    return str(ffi.string(lib.btf__name_by_offset(types, offset)).decode())
