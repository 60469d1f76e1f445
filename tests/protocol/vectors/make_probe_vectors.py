"""Writes the test vectors of the path probes, beside this file, when it is run.

A second encoder, written from the tables of docs/reference/protocol.md with the standard library alone, so that the
vectors do not repeat the mistakes of the code that is tested with them. It imports nothing of msocks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from ipaddress import ip_address
from pathlib import Path
from typing import Any

KEY_UP = bytes(range(0x20))
KEY_DOWN = bytes(range(0x20, 0x40))
ASSOCIATION = bytes(range(0xA0, 0xB0))
SESSION = bytes(range(0xC0, 0xD0))
Case = dict[str, Any]


def mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def split_endpoint(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def fixed_address(endpoint: str | None) -> bytes:
    """20 bytes: type, 0, port, address padded to 16."""
    if endpoint is None:
        return bytes(20)
    host, port = split_endpoint(endpoint)
    address = ip_address(host)
    return struct.pack(">BBH16s", 1 if address.version == 4 else 4, 0, port, address.packed)


def altered(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    changed = bytearray(data)
    for at, new in changes:
        changed[at : at + len(new)] = new
    return bytes(changed)


def probe_keys() -> tuple[bytes, bytes]:
    return mac(KEY_UP, b"msocks probe v1"), mac(KEY_DOWN, b"msocks probe v1")


def probe_unsigned(kind: int, sequence: int, time: int, observed: str | None) -> bytes:
    return struct.pack(">BBH16sQQ20s", 1, kind, 0, ASSOCIATION, sequence, time, fixed_address(observed))


def position_unsigned(kind: int, sequence: int, offset: int) -> bytes:
    return struct.pack(">BBH16sQ16sQI", 1, kind, 0, ASSOCIATION, sequence, SESSION, offset, 0)


def probes() -> Case:
    up, down = probe_keys()

    def case(name: str, sequence: int, time: int, observed: str | None = None) -> Case:
        unsigned = probe_unsigned(1 if observed is None else 2, sequence, time, observed)
        tag = mac(up if observed is None else down, unsigned)[:16]
        fields: Case = {"association": ASSOCIATION.hex(), "sequence": sequence, "time": time}
        if observed is not None:
            fields["observed"] = observed
        return {"name": name, "fields": fields, "bytes": (unsigned + tag).hex()}

    def position(name: str, sequence: int, received: int | None = None) -> Case:
        unsigned = position_unsigned(8 if received is None else 9, sequence, received or 0)
        tag = mac(up if received is None else down, unsigned)[:16]
        fields: Case = {"association": ASSOCIATION.hex(), "sequence": sequence, "session": SESSION.hex()}
        if received is not None:
            fields["received"] = received
        return {"name": name, "fields": fields, "bytes": (unsigned + tag).hex()}

    def invalid(name: str, data: bytes, error: str) -> Case:
        return {"name": name, "bytes": (data + mac(up, data)[:16]).hex(), "error": error}

    good, answer = probe_unsigned(1, 1, 2, None), probe_unsigned(2, 1, 2, "192.0.2.7:40000")
    query, at = position_unsigned(8, 1, 0), position_unsigned(9, 1, 5)
    forged = good + mac(KEY_UP, good)[:16]
    return {
        "key_up": KEY_UP.hex(),
        "key_down": KEY_DOWN.hex(),
        "probe_key_up": up.hex(),
        "probe_key_down": down.hex(),
        "valid": [
            case("probe", 1, 123_456_789),
            case("probe with the largest numbers", 2**64 - 1, 2**64 - 1),
            case("answer over IPv4", 1, 123_456_789, "192.0.2.7:40000"),
            case("answer over IPv6", 1, 123_456_789, "[2001:db8::7]:40000"),
        ],
        "positions": [
            position("position query", 7),
            position("position of nothing", 7, 0),
            position("largest position", 2**64 - 1, 2**63 - 1),
        ],
        "forged": [{"name": "MAC with the leg key", "bytes": forged.hex()}],
        "invalid": [
            invalid("one byte short", good[:-1], "length"),
            invalid("one byte long", good + b"\0", "length"),
            invalid("version 2", altered(good, (0, b"\x02")), "version"),
            invalid("type 0", altered(good, (1, b"\x00")), "type"),
            invalid("type 3", altered(good, (1, b"\x03")), "type"),
            invalid("reserved bytes not zero", altered(good, (3, b"\x01")), "field"),
            invalid("association id of zeros", altered(good, (4, bytes(16))), "field"),
            invalid("probe with an address", altered(answer, (1, b"\x01")), "field"),
            invalid("answer without an address", altered(good, (1, b"\x02")), "field"),
            invalid("type 10", altered(query, (1, b"\x0a")), "type"),
            invalid("position query with an offset", altered(at, (1, b"\x08")), "field"),
            invalid("position beyond 2^63", altered(at, (44, b"\x80")), "field"),
            invalid("position with bytes behind it", altered(at, (55, b"\x01")), "field"),
            invalid("session id of zeros", altered(query, (28, bytes(16))), "field"),
            invalid("address type 2", altered(answer, (36, b"\x02")), "address"),
        ],
    }


def files() -> dict[str, str]:
    """File name to content."""
    contents: dict[str, Any] = {
        "probe.json": probes(),
    }
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in contents.items()}


if __name__ == "__main__":
    for file_name, text in files().items():
        Path(__file__).with_name(file_name).write_text(text)
