"""Writes the test vectors of UDP, SOCKS5's and that of UDP flows, beside this file, when it is run.

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
QUERY = bytes.fromhex("beef01000001000000000000")
Case = dict[str, Any]
TYPES = {"attach": 3, "state": 4, "up": 5, "down": 6, "detach": 7}


def mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def socks_address(endpoint: str) -> bytes:
    """ATYP, address, port."""
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    try:
        address = ip_address(host)
    except ValueError:
        return bytes((3, len(host))) + host.encode() + int(port).to_bytes(2, "big")
    return bytes((1 if address.version == 4 else 4,)) + address.packed + int(port).to_bytes(2, "big")


def altered(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    changed = bytearray(data)
    for at, new in changes:
        changed[at : at + len(new)] = new
    return bytes(changed)


def socks() -> Case:
    def case(endpoint: str, payload: bytes, fragment: int = 0) -> Case:
        data = bytes((0, 0, fragment)) + socks_address(endpoint) + payload
        return {"endpoint": endpoint, "payload": payload.hex(), "fragment": fragment, "bytes": data.hex()}

    def invalid(name: str, data: bytes, error: str) -> Case:
        return {"name": name, "bytes": data.hex(), "error": error}

    good = bytes(3) + socks_address("192.0.2.1:53") + QUERY
    return {
        "valid": [
            case("192.0.2.1:53", QUERY),
            case("[2001:db8::1]:123", bytes(48)),
            case("dns.example:53", QUERY),
            case("192.0.2.1:53", b""),
            case("192.0.2.1:53", QUERY, 1),
            case("192.0.2.1:53", QUERY, 0x82),
        ],
        "invalid": [
            invalid("nothing", b"", "length"),
            invalid("three bytes", bytes(3), "length"),
            invalid("address cut short", good[:9], "length"),
            invalid("name cut short", bytes(3) + b"\x03\x0adns", "length"),
            invalid("name of no bytes", bytes(3) + b"\x03\x00\x00\x35", "length"),
            invalid("address type 2", altered(good, (3, b"\x02")), "type"),
            invalid("malformed name", bytes(3) + b"\x03\x02..\x00\x35", "address"),
        ],
    }


def udp_keys() -> tuple[bytes, bytes]:
    return mac(KEY_UP, b"msocks udp v1"), mac(KEY_DOWN, b"msocks udp v1")


def unsigned(kind: str, flow: int, generation: int, number: int, body: bytes) -> bytes:
    return struct.pack(">BBH16sIIQ", 1, TYPES[kind], 0, ASSOCIATION, flow, generation, number) + body


def flows() -> Case:
    up, down = udp_keys()

    def case(kind: str, flow: int, generation: int, number: int, **more: Any) -> Case:
        match kind:
            case "up" | "down":
                body = socks_address(more["endpoint"]) + bytes.fromhex(more["payload"])
            case "state":
                body = struct.pack(">BBH", more["status"], 0, 0)
            case _:
                body = bytes(4)
        data = unsigned(kind, flow, generation, number, body)
        fields = {"association": ASSOCIATION.hex(), "flow": flow, "generation": generation, "number": number} | more
        tag = mac(down if kind in ("state", "down") else up, data)[:16]
        return {"type": kind, "fields": fields, "bytes": (data + tag).hex()}

    def invalid(name: str, data: bytes, error: str) -> Case:
        return {"name": name, "bytes": (data + mac(up, data)[:16]).hex(), "error": error}

    attach = unsigned("attach", 1, 1, 0, bytes(4))
    datagram = unsigned("up", 1, 1, 1, socks_address("192.0.2.1:53") + QUERY)
    most = 2**32 - 1
    return {
        "key_up": KEY_UP.hex(),
        "key_down": KEY_DOWN.hex(),
        "udp_key_up": up.hex(),
        "udp_key_down": down.hex(),
        "valid": [
            case("attach", 1, 1, 0),
            case("attach", most, most, 2**64 - 1),
            case("state", 1, 1, 0, status=0),
            case("state", 1, 1, 0, status=1),
            case("state", 1, 1, 0, status=2),
            case("up", 1, 1, 1, endpoint="192.0.2.1:53", payload=QUERY.hex()),
            case("up", 1, 2, 2, endpoint="[2001:db8::1]:123", payload=bytes(48).hex()),
            case("up", 1, 2, 3, endpoint="dns.example:53", payload=""),
            case("down", 1, 1, 0, endpoint="192.0.2.1:53", payload=QUERY.hex()),
            case("down", 1, 1, 1, endpoint="[2001:db8::1]:123", payload=""),
            case("detach", 1, 3, 4),
        ],
        "lenient": [
            {
                "name": "an unknown status reads as ENDED",
                "bytes": ((data := unsigned("state", 1, 1, 0, b"\x7f\0\0\0")) + mac(down, data)[:16]).hex(),
                "status": 1,
            },
        ],
        "forged": [
            {"name": "MAC with the leg key", "bytes": (datagram + mac(KEY_UP, datagram)[:16]).hex()},
            {
                "name": "MAC with the probe key",
                "bytes": (datagram + mac(mac(KEY_UP, b"msocks probe v1"), datagram)[:16]).hex(),
            },
            {"name": "MAC with the key of the other direction", "bytes": (attach + mac(down, attach)[:16]).hex()},
        ],
        "invalid": [
            invalid("no body", unsigned("up", 1, 1, 1, b""), "length"),
            invalid("header cut short", attach[:35], "length"),
            invalid("attach one byte short", attach[:-1], "length"),
            invalid("attach one byte long", attach + b"\0", "length"),
            invalid("detach of a datagram's length", altered(datagram, (1, b"\x07")), "length"),
            invalid("address cut short", datagram[:41], "length"),
            invalid("version 2", altered(attach, (0, b"\x02")), "version"),
            invalid("type 8", altered(attach, (1, b"\x08")), "type"),
            invalid("type of a probe", altered(attach, (1, b"\x01")), "type"),
            invalid("reserved bytes not zero", altered(attach, (3, b"\x01")), "field"),
            invalid("association id of zeros", altered(attach, (4, bytes(16))), "field"),
            invalid("flow 0", altered(attach, (20, bytes(4))), "field"),
            invalid("generation 0", altered(attach, (24, bytes(4))), "field"),
            invalid("attach with a status", altered(attach, (36, b"\x01")), "field"),
            invalid("state with a reserved byte", altered(attach, (1, b"\x04"), (37, b"\x01")), "field"),
            invalid("address type 2", altered(datagram, (36, b"\x02")), "type"),
            invalid("malformed name", unsigned("up", 1, 1, 1, b"\x03\x02..\x00\x35"), "address"),
            invalid("source that is a name", unsigned("down", 1, 1, 1, socks_address("dns.example:53")), "address"),
        ],
    }


def files() -> dict[str, str]:
    """File name to content."""
    contents: dict[str, Any] = {"socks5_udp.json": socks(), "udp_flow.json": flows()}
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in contents.items()}


if __name__ == "__main__":
    for file_name, text in files().items():
        Path(__file__).with_name(file_name).write_text(text)
