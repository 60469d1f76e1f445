"""Writes the test vectors of the control channel, beside this file, when it is run.

A second encoder, written from the tables of docs/reference/protocol.md with the standard library alone, so that the
vectors do not repeat the mistakes of the code that is tested with them. It imports nothing of msocks.
"""

from __future__ import annotations

import json
import struct
from ipaddress import ip_address
from pathlib import Path
from typing import Any

KEY_UP = bytes(range(0x20))
KEY_DOWN = bytes(range(0x20, 0x40))
OTHER_KEY = bytes(range(0x80, 0xA0))
ASSOCIATION = bytes(range(0xA0, 0xB0))
SESSION = bytes(range(0x50, 0x60))
Case = dict[str, Any]


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


def fixed_host(endpoint: str) -> bytes:
    """260 bytes: type, length, port, host padded to 256."""
    host, port = split_endpoint(endpoint)
    try:
        address = ip_address(host)
    except ValueError:
        return struct.pack(">BBH256s", 3, len(host), port, host.encode("ascii"))
    return struct.pack(">BBH256s", 1 if address.version == 4 else 4, len(address.packed), port, address.packed)


def altered(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    changed = bytearray(data)
    for at, new in changes:
        changed[at : at + len(new)] = new
    return bytes(changed)


def text8(text: str) -> bytes:
    return struct.pack(">B", len(text.encode())) + text.encode()


def frame(kind: int, body: bytes) -> bytes:
    return struct.pack(">HB", len(body), kind) + body


def control_body(fields: Case) -> tuple[int, bytes]:
    session = bytes.fromhex(fields.get("session", ""))
    match fields["type"]:
        case "HELLO":
            fixed = struct.pack(">B16s32sH", 1, ASSOCIATION, bytes.fromhex(fields["secret"]), fields["smallest_mtu"])
            texts = ("user", "link", "agent_name", "agent_version")
            return 0x01, fixed + b"".join(text8(fields[name]) for name in texts)
        case "WELCOME":
            numbers = (fields["proxy_ms"], fields["detach_grace_s"], fields["max_sessions"])
            fixed = struct.pack(">B16s32s32sQII", 1, ASSOCIATION, KEY_UP, KEY_DOWN, *numbers)
            return 0x02, fixed + fixed_address(fields["observed"]) + text8(fields["server_version"])
        case "REFUSED":
            text = fields["text"].encode()
            return 0x03, struct.pack(">BH", fields["code"], len(text)) + text
        case "PING":
            return 0x04, struct.pack(">QQ", fields["nonce"], fields["time"])
        case "PONG":
            return 0x05, struct.pack(">QQ", fields["nonce"], fields["time"])
        case "LEG_ACCEPTED":
            return 0x06, session + struct.pack(">IQ", fields["generation"], fields["leg_number"])
        case "SESSION_ENDED":
            return 0x07, session + struct.pack(">B", fields["reason"])
        case "PARK":
            listed = [
                bytes.fromhex(leg["session"]) + struct.pack(">IQ", leg["generation"], leg["received"])
                for leg in fields["legs"]
            ]
            return 0x08, struct.pack(">H", len(listed)) + b"".join(listed)
        case "PARKED":
            listed = [
                bytes.fromhex(each["session"]) + struct.pack(">I", each["generation"]) for each in fields["sessions"]
            ]
            return 0x09, struct.pack(">H", len(listed)) + b"".join(listed)
        case "RECEIVED":
            listed = [
                bytes.fromhex(each["session"])
                + struct.pack(">IQB", each["generation"], each["received"], each["at_end"] | each["middlebox"] << 1)
                for each in fields["streams"]
            ]
            return 0x10, struct.pack(">H", len(listed)) + b"".join(listed)
        case "DRAIN":
            return 0x0A, fixed_host(fields["endpoint"])
        case "GOODBYE":
            return 0x0B, b""
        case "LISTEN":
            head = struct.pack(">IBH", fields["number"], fields["once"], fields["port"])
            return 0x11, head + fixed_host(fields["peer"])
        case "LISTENING":
            text = fields["text"].encode()
            head = struct.pack(">IB", fields["number"], fields["status"]) + fixed_address(fields["bound"])
            return 0x12, head + struct.pack(">H", len(text)) + text
        case "INCOMING":
            ends = fixed_address(fields["peer"]) + fixed_address(fields["bound"])
            return 0x13, struct.pack(">I", fields["number"]) + session + ends
        case "UNLISTEN":
            return 0x14, struct.pack(">I", fields["number"])
    raise ValueError(fields["type"])


def control() -> Case:
    other_session = bytes(range(0x60, 0x70)).hex()
    hello: Case = {
        "type": "HELLO",
        "association": ASSOCIATION.hex(),
        "secret": OTHER_KEY.hex(),
        "smallest_mtu": 1400,
        "user": "alicé",
        "link": "wlan0",
        "agent_name": "msocks",
        "agent_version": "1.0",
    }
    welcome: Case = {
        "type": "WELCOME",
        "association": ASSOCIATION.hex(),
        "key_up": KEY_UP.hex(),
        "key_down": KEY_DOWN.hex(),
        "proxy_ms": 1_000_000,
        "detach_grace_s": 86400,
        "max_sessions": 100,
        "observed": "192.0.2.7:40000",
        "server_version": "1.0",
    }
    stream = {"session": SESSION.hex(), "generation": 2, "received": 1000, "at_end": False, "middlebox": False}
    listen: Case = {"type": "LISTEN", "number": 3, "once": False, "port": 2222, "peer": "0.0.0.0:0"}
    listening: Case = {"type": "LISTENING", "number": 3, "status": 0, "bound": "192.0.2.1:2222", "text": ""}
    incoming: Case = {
        "type": "INCOMING",
        "number": 3,
        "session": SESSION.hex(),
        "peer": "198.51.100.7:40000",
        "bound": "192.0.2.1:2222",
    }
    messages: list[Case] = [
        hello,
        {**hello, "link": "", "agent_name": "", "agent_version": "", "smallest_mtu": 0},
        welcome,
        {**welcome, "observed": "[2001:db8::7]:40000", "max_sessions": 0},
        {"type": "REFUSED", "code": 2, "text": "no such user, or the secret is wrong"},
        {"type": "REFUSED", "code": 4, "text": ""},
        {"type": "PING", "nonce": 1, "time": 2},
        {"type": "PONG", "nonce": 2**64 - 1, "time": 2**64 - 1},
        {"type": "LEG_ACCEPTED", "session": SESSION.hex(), "generation": 2, "leg_number": 7},
        {"type": "SESSION_ENDED", "session": SESSION.hex(), "reason": 1},
        {"type": "PARK", "legs": [{"session": SESSION.hex(), "generation": 2, "received": 1000}]},
        {
            "type": "PARK",
            "legs": [
                {"session": SESSION.hex(), "generation": 2, "received": 1000},
                {"session": other_session, "generation": 1, "received": 2**63 - 1},
            ],
        },
        {"type": "PARKED", "sessions": []},
        {"type": "PARKED", "sessions": [{"session": SESSION.hex(), "generation": 2}]},
        {"type": "RECEIVED", "streams": []},
        {"type": "RECEIVED", "streams": [stream]},
        {
            "type": "RECEIVED",
            "streams": [
                {**stream, "middlebox": True},
                {**stream, "session": other_session, "generation": 2**32 - 1, "received": 2**63 - 1, "at_end": True},
            ],
        },
        {"type": "DRAIN", "endpoint": "proxy2.example:443"},
        {"type": "GOODBYE"},
        listen,
        {**listen, "once": True, "port": 0, "peer": "ftp.example:21"},
        {**listen, "number": 2**32 - 1, "port": 65535, "peer": "[2001:db8::7]:0"},
        listening,
        {**listening, "status": 1, "bound": None, "text": "ask the operator: häh?"},
        incoming,
        {**incoming, "peer": "[2001:db8::7]:40000", "bound": "[2001:db8::1]:2222"},
        {"type": "UNLISTEN", "number": 3},
    ]
    bodies = {fields["type"]: control_body(fields) for fields in reversed(messages)}
    hello_body, park_body = bodies["HELLO"][1], bodies["PARK"][1]
    welcome_body = bodies["WELCOME"][1]
    received_body = control_body({"type": "RECEIVED", "streams": [stream]})[1]
    listen_body, listening_body, incoming_body = (control_body(each)[1] for each in (listen, listening, incoming))
    user_at = 1 + 16 + 32 + 2
    lenient = [
        ("WELCOME with bytes of a later version behind it", frame(0x02, welcome_body + b"later"), welcome),
        ("GOODBYE with bytes of a later version behind it", frame(0x0B, b"later"), {"type": "GOODBYE"}),
        (
            "unknown reason of an end",
            frame(0x07, SESSION + b"\xff"),
            {
                "type": "SESSION_ENDED",
                "session": SESSION.hex(),
                "reason": 0,
            },
        ),
        (
            "unknown flags in a RECEIVED",
            frame(0x10, b"\0\x01" + SESSION + struct.pack(">IQB", 2, 1000, 0xFC)),
            {"type": "RECEIVED", "streams": [stream]},
        ),
        ("unknown flags in a LISTEN", frame(0x11, altered(listen_body, (4, b"\xfe"))), listen),
        (
            "unknown status in a LISTENING",
            frame(0x12, b"\0\0\0\x03\xff" + bytes(22)),
            {**listening, "status": 4, "bound": None},
        ),
        ("unknown refusal code", frame(0x03, b"\xff\0\0"), {"type": "REFUSED", "code": 0, "text": ""}),
    ]
    invalid = [
        ("frame of 16385 bytes", struct.pack(">HB", 16385, 4), "length"),
        ("empty HELLO", frame(0x01, b""), "length"),
        ("HELLO one byte short", frame(0x01, hello_body[:-1]), "length"),
        ("HELLO with an association id of zeros", frame(0x01, altered(hello_body, (1, bytes(16)))), "field"),
        ("HELLO without a user", frame(0x01, hello_body[:user_at] + bytes(4)), "field"),
        ("HELLO with a user of 65 bytes", frame(0x01, hello_body[:user_at] + b"\x41" + b"a" * 65 + bytes(3)), "field"),
        ("HELLO with a user that is not UTF-8", frame(0x01, hello_body[:user_at] + b"\x01\xff" + bytes(3)), "field"),
        ("HELLO with a line feed in a text", frame(0x01, hello_body[:user_at] + b"\x01a\x01\n" + bytes(2)), "field"),
        ("WELCOME with equal keys", frame(0x02, altered(welcome_body, (49, KEY_UP))), "field"),
        ("WELCOME without an address", frame(0x02, altered(welcome_body, (97, bytes(20)))), "field"),
        ("WELCOME with a name for an address", frame(0x02, altered(welcome_body, (97, b"\x03"))), "address"),
        ("REFUSED with a text of 1025 bytes", frame(0x03, struct.pack(">BH", 1, 1025) + b"a" * 1025), "length"),
        ("PING of 15 bytes", frame(0x04, bytes(15)), "length"),
        ("LEG_ACCEPTED with a session id of zeros", frame(0x06, bytes(28)), "field"),
        ("PARK of no session", frame(0x08, bytes(2)), "field"),
        ("PARK of 513 sessions", frame(0x08, struct.pack(">H", 513) + park_body[2:30] * 513), "field"),
        ("PARK that lists more than it has", frame(0x08, b"\0\x03" + park_body[2:]), "length"),
        ("PARK with R above 2^63-1", frame(0x08, altered(park_body, (22, b"\x80"))), "field"),
        ("PARKED of 513 sessions", frame(0x09, struct.pack(">H", 513)), "field"),
        ("RECEIVED of 513 sessions", frame(0x10, struct.pack(">H", 513)), "field"),
        ("RECEIVED that lists more than it has", frame(0x10, b"\0\x02" + received_body[2:31]), "length"),
        ("RECEIVED beyond 2^63-1", frame(0x10, altered(received_body, (22, b"\x80"))), "field"),
        ("LISTEN with the number 0", frame(0x11, altered(listen_body, (0, bytes(4)))), "field"),
        ("LISTEN one byte short", frame(0x11, listen_body[:-1]), "length"),
        ("LISTEN for a malformed name", frame(0x11, listen_body[:7] + fixed_host("a..b:1")), "address"),
        ("LISTENING that is open nowhere", frame(0x12, altered(listening_body, (5, bytes(20)))), "field"),
        ("LISTENING that is refused somewhere", frame(0x12, altered(listening_body, (4, b"\x01"))), "field"),
        ("LISTENING with a text of 1025 bytes", frame(0x12, listening_body[:25] + b"\x04\x01" + b"a" * 1025), "length"),
        ("LISTENING with a line feed", frame(0x12, listening_body[:25] + b"\0\x01\n"), "field"),
        ("INCOMING without a peer", frame(0x13, altered(incoming_body, (20, bytes(20)))), "field"),
        ("INCOMING with a session id of zeros", frame(0x13, altered(incoming_body, (4, bytes(16)))), "field"),
        ("UNLISTEN with the number 0", frame(0x14, bytes(4)), "field"),
        ("DRAIN one byte short", frame(0x0A, fixed_host("a.example:1")[:-1]), "length"),
        ("DRAIN to a malformed name", frame(0x0A, fixed_host("a..b:1")), "address"),
    ]
    return {
        "valid": [
            {"name": f"{fields['type']} {number}", "fields": fields, "bytes": frame(*control_body(fields)).hex()}
            for number, fields in enumerate(messages)
        ],
        "lenient": [{"name": name, "bytes": data.hex(), "fields": fields} for name, data, fields in lenient],
        "ignored": [
            {"name": "unknown type, empty", "bytes": frame(0x7F, b"").hex()},
            {"name": "unknown type of the largest size", "bytes": (frame(0xFF, bytes(16384))).hex()},
        ],
        "invalid": [{"name": name, "bytes": data.hex(), "error": error} for name, data, error in invalid],
    }


def files() -> dict[str, str]:
    """File name to content."""
    contents: dict[str, Any] = {
        "control.json": control(),
    }
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in contents.items()}


if __name__ == "__main__":
    for file_name, text in files().items():
        Path(__file__).with_name(file_name).write_text(text)
