"""Writes the test vectors of the MSOCKS leg, beside this file, when it is run.

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
OTHER_KEY = bytes(range(0x80, 0xA0))
ASSOCIATION = bytes(range(0xA0, 0xB0))
SESSION = bytes(range(0x50, 0x60))
GREETING = bytes.fromhex("05018d")
SELECTED = bytes.fromhex("058d")
EXPIRES_MS = 1_030_000
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


def fixed_host(endpoint: str) -> bytes:
    """260 bytes: type, length, port, host padded to 256."""
    host, port = split_endpoint(endpoint)
    try:
        address = ip_address(host)
    except ValueError:
        return struct.pack(">BBH256s", 3, len(host), port, host.encode("ascii"))
    return struct.pack(">BBH256s", 1 if address.version == 4 else 4, len(address.packed), port, address.packed)


def leg_header(command: int, flags: int, generation: int, number: int) -> bytes:
    return struct.pack(">BBHI16sQQ16s", 1, command, flags, generation, ASSOCIATION, number, EXPIRES_MS, SESSION)


def fins(fields: Case) -> tuple[int, int, int]:
    down, up = fields.get("down_fin_at"), fields.get("up_fin_at")
    return (1 if down is not None else 0) | (2 if up is not None else 0), down or 0, up or 0


COMMANDS = {"CONNECT": 0x01, "BIND": 0x02, "RECONNECT": 0x81, "QUERY": 0x82, "CLOSE": 0x83}
CLOSE_MODES = {"GRACEFUL": 1, "RESET": 2}


def request_unsigned(fields: Case) -> bytes:
    flags, down_fin, up_fin = fins(fields)
    flags |= 4 if fields.get("middlebox") else 0
    body = b""
    match fields["command"]:
        case "CONNECT" | "BIND":
            body = fixed_host(fields["destination"])
        case "RECONNECT":
            offsets = (fields["received"], fields["upstream_from"], down_fin, up_fin)
            body = struct.pack(">QQQQII", *offsets, fields.get("handover_from", 0), fields.get("first_flight", 0))
        case "CLOSE":
            body = struct.pack(">B7xQ", CLOSE_MODES[fields["mode"]], up_fin)
    command = COMMANDS[fields["command"]]
    return GREETING + leg_header(command, flags, fields["generation"], fields["leg_number"]) + body


def request_case(name: str, command: str, generation: int, leg_number: int, **specific: Any) -> Case:
    fields = {
        "command": command,
        "association": ASSOCIATION.hex(),
        "leg_number": leg_number,
        "expires_ms": EXPIRES_MS,
        "session": SESSION.hex(),
        "generation": generation,
        **specific,
    }
    unsigned = request_unsigned(fields)
    tag = mac(KEY_UP, unsigned)
    return {"name": name, "fields": fields, "mac": tag.hex(), "bytes": (unsigned + tag).hex()}


def leg_requests() -> list[Case]:
    long_name = ".".join(["x" * 63] * 4)
    return [
        request_case("CONNECT to a name", "CONNECT", 1, 1, destination="server.example:443"),
        request_case("CONNECT to an IPv4 address", "CONNECT", 1, 2, destination="192.0.2.10:22"),
        request_case("CONNECT to an IPv6 address", "CONNECT", 1, 3, destination="[2001:db8::10]:443"),
        request_case("CONNECT to the longest name", "CONNECT", 1, 4, destination=f"{long_name}:65535"),
        request_case("CONNECT repeated", "CONNECT", 2, 5, destination="server.example:443"),
        request_case("BIND", "BIND", 1, 6, destination="192.0.2.10:0"),
        request_case("RECONNECT", "RECONNECT", 2, 7, received=1000, upstream_from=500),
        request_case("RECONNECT before any byte", "RECONNECT", 2, 8, received=0, upstream_from=0),
        request_case(
            "RECONNECT after the server's FIN", "RECONNECT", 3, 9, received=1000, upstream_from=500, down_fin_at=1000
        ),
        request_case(
            "RECONNECT after the program's FIN", "RECONNECT", 3, 10, received=1000, upstream_from=500, up_fin_at=700
        ),
        request_case(
            "RECONNECT with both FINs of empty streams",
            "RECONNECT",
            4,
            11,
            received=0,
            upstream_from=0,
            down_fin_at=0,
            up_fin_at=0,
        ),
        request_case(
            "RECONNECT with the largest numbers",
            "RECONNECT",
            2**32 - 1,
            2**64 - 1,
            received=2**63 - 1,
            upstream_from=2**63 - 1,
            down_fin_at=2**63 - 1,
            up_fin_at=2**63 - 1,
            handover_from=2**32 - 1,
        ),
        request_case("QUERY", "QUERY", 3, 12),
        request_case("QUERY before any leg", "QUERY", 0, 13),
        request_case("CLOSE graceful", "CLOSE", 3, 14, mode="GRACEFUL", up_fin_at=700),
        request_case("CLOSE reset", "CLOSE", 3, 15, mode="RESET"),
        request_case("RECONNECT by handover", "RECONNECT", 3, 16, received=9, upstream_from=5, handover_from=2),
        request_case("CONNECT over a middlebox", "CONNECT", 1, 17, destination="server.example:443", middlebox=True),
        request_case("RECONNECT over a middlebox", "RECONNECT", 3, 18, received=9, upstream_from=5, middlebox=True),
        request_case(
            "RECONNECT with a first flight", "RECONNECT", 3, 19, received=9, upstream_from=20_000, first_flight=12_852
        ),
        request_case(
            "RECONNECT with a first flight of all there is, and its end",
            "RECONNECT",
            3,
            20,
            received=9,
            upstream_from=700,
            up_fin_at=1_400,
            first_flight=700,
        ),
    ]


def altered(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    changed = bytearray(data)
    for at, new in changes:
        changed[at : at + len(new)] = new
    return bytes(changed)


def invalid_requests() -> list[Case]:
    """Requests that are wrong although their MAC is right."""
    connect = request_unsigned(leg_requests()[0]["fields"])
    ipv4 = request_unsigned(leg_requests()[1]["fields"])
    reconnect = request_unsigned(leg_requests()[6]["fields"])
    query = request_unsigned(leg_requests()[12]["fields"])
    graceful = request_unsigned(leg_requests()[14]["fields"])
    reset = request_unsigned(leg_requests()[15]["fields"])
    body = 3 + 56

    def named(name: bytes) -> bytes:
        return connect[:body] + struct.pack(">BBH256s", 3, len(name), 443, name)

    cases = [
        ("greeting with another version", altered(connect, (0, b"\x04")), "method"),
        ("greeting with two methods", altered(connect, (1, b"\x02")), "method"),
        ("greeting with another method", altered(connect, (2, b"\x00")), "method"),
        ("leg version 2", altered(connect, (3, b"\x02")), "version"),
        ("command 0x03", altered(connect, (4, b"\x03")), "command"),
        ("flags on a CONNECT", altered(connect, (5, b"\x00\x01")), "field"),
        ("flags on a QUERY", altered(query, (5, b"\x00\x02")), "field"),
        ("undefined flag on a RECONNECT", altered(reconnect, (5, b"\x00\x08")), "field"),
        ("generation 0 on a CONNECT", altered(connect, (7, bytes(4))), "field"),
        ("generation 0 on a RECONNECT", altered(reconnect, (7, bytes(4))), "field"),
        ("association id of zeros", altered(connect, (11, bytes(16))), "field"),
        ("session id of zeros", altered(connect, (43, bytes(16))), "field"),
        ("host type 2", altered(connect, (body, b"\x02")), "address"),
        ("IPv4 address of five bytes", altered(ipv4, (body + 1, b"\x05")), "address"),
        ("IPv6 type with four bytes", altered(ipv4, (body, b"\x04")), "address"),
        ("padding of a host not zero", altered(ipv4, (body + 4 + 255, b"\x01")), "field"),
        ("empty name", named(b""), "address"),
        ("name with a space", named(b"a b"), "address"),
        ("name with NUL", named(b"a\0b"), "address"),
        ("name in UTF-8", named("bücher.example".encode()), "address"),
        ("name that is an IPv4 address", named(b"192.0.2.1"), "address"),
        ("R above 2^63-1", altered(reconnect, (body, b"\x80" + bytes(7))), "field"),
        ("A above 2^63-1", altered(reconnect, (body + 8, b"\x80" + bytes(7))), "field"),
        ("down_fin_at without its flag", altered(reconnect, (body + 23, b"\x01")), "field"),
        ("up_fin_at without its flag", altered(reconnect, (body + 31, b"\x01")), "field"),
        ("up_fin_at above 2^63-1", altered(reconnect, (5, b"\0\x02"), (body + 24, b"\x80" + bytes(7))), "field"),
        ("first flight longer than A", altered(reconnect, (body + 36, struct.pack(">I", 501))), "field"),
        ("first flight in a handover", altered(reconnect, (body + 35, b"\x01\0\0\0\x01")), "field"),
        (
            "upstream that ends within the first flight",
            altered(reconnect, (5, b"\0\x02"), (body + 24, struct.pack(">Q4xI", 510, 11))),
            "field",
        ),
        ("CLOSE mode 0", altered(graceful, (body, b"\x00")), "field"),
        ("CLOSE mode 3", altered(graceful, (body, b"\x03")), "field"),
        ("reserved bytes of a CLOSE not zero", altered(graceful, (body + 7, b"\x01")), "field"),
        ("CLOSE graceful without its flag", altered(graceful, (5, b"\0\0"), (body + 8, bytes(8))), "field"),
        ("CLOSE reset with the flag", altered(reset, (5, b"\0\x02")), "field"),
        ("CLOSE reset with an offset", altered(reset, (body + 15, b"\x01")), "field"),
    ]
    return [{"name": name, "bytes": (data + mac(KEY_UP, data)).hex(), "error": error} for name, data, error in cases]


def forged_requests() -> list[Case]:
    """Well-formed requests whose MAC is wrong under KEY_UP."""
    case = leg_requests()[6]
    data = bytes.fromhex(case["bytes"])
    unsigned = data[:-32]
    return [
        {"name": "MAC with the proxy's key", "bytes": (unsigned + mac(KEY_DOWN, unsigned)).hex()},
        {"name": "MAC with another association's key", "bytes": (unsigned + mac(OTHER_KEY, unsigned)).hex()},
        {"name": "MAC without the greeting", "bytes": (unsigned + mac(KEY_UP, unsigned[3:])).hex()},
        {"name": "one bit of the MAC changed", "bytes": altered(data, (len(data) - 1, bytes([data[-1] ^ 1]))).hex()},
        {"name": "one bit of R changed", "bytes": altered(data, (66, bytes([data[66] ^ 1]))).hex()},
        {"name": "MAC of zeros", "bytes": (unsigned + bytes(32)).hex()},
    ]


STATUSES = {
    "OK": 0x00,
    "UNKNOWN_ASSOCIATION": 0x01,
    "BAD_MAC": 0x02,
    "MALFORMED": 0x03,
    "REPLAYED": 0x04,
    "EXPIRED": 0x05,
    "STALE_GENERATION": 0x06,
    "BUSY": 0x07,
    "LIMIT": 0x08,
    "CANNOT_SPLICE": 0x09,
    "BAD_OFFSETS": 0x0A,
    "REFUSED": 0x0B,
    "UNKNOWN_SESSION": 0x0C,
    "ENDED_RESET": 0x0D,
    "ENDED_FIN": 0x0E,
    "ENDED_EXPIRED": 0x0F,
    "ENDED_CLOSED": 0x10,
    "ENDED_TIMED_OUT": 0x11,
    "ENDED_BYTES_LOST": 0x12,
    "LEG_GONE": 0x13,
}
UNMACED = {"UNKNOWN_ASSOCIATION", "BAD_MAC", "MALFORMED"}
ENDING = {"BAD_OFFSETS", "REFUSED", "UNKNOWN_SESSION"} | {name for name in STATUSES if name.startswith("ENDED")}
DATAPATHS = {"NONE": 0, "RELAY": 1, "SPLICE": 2}
REASONS = {"UNSPECIFIED": 0, "NO_PRIVILEGE": 3, "UNEQUAL_OPTIONS": 5, "TINY_WINDOW": 8}


def reply_unsigned(fields: Case) -> bytes:
    flags, down_fin, up_fin = fins(fields)
    return SELECTED + struct.pack(
        ">BBBBBB2xI20sQQQQQ",
        1,
        STATUSES[fields["status"]],
        fields.get("socks_reply", 0),
        flags,
        DATAPATHS[fields.get("datapath", "NONE")],
        REASONS[fields.get("datapath_reason", "UNSPECIFIED")],
        fields.get("generation", 0),
        fixed_address(fields.get("bound")),
        fields.get("down_from", 0),
        fields.get("up_acked", 0),
        down_fin,
        up_fin,
        fields.get("proxy_ms", 0),
    )


def reply_case(name: str, request: bytes, status: str, **specific: Any) -> Case:
    fields = {"status": status, **specific}
    unsigned = reply_unsigned(fields)
    maced = status not in UNMACED
    tag = mac(KEY_DOWN, request[-32:], unsigned) if maced else bytes(32)
    return {
        "name": name,
        "request": request.hex(),
        "fields": fields,
        "verified": maced,
        "ends_session": maced and status in ENDING,
        "bytes": (unsigned + tag).hex(),
    }


def leg_replies() -> list[Case]:
    requests = {case["name"]: bytes.fromhex(case["bytes"]) for case in leg_requests()}
    connect, reconnect = requests["CONNECT to a name"], requests["RECONNECT"]
    cases = [
        reply_case(
            "CONNECT succeeded in the relay",
            connect,
            "OK",
            generation=1,
            bound="198.51.100.1:40000",
            datapath="RELAY",
            datapath_reason="NO_PRIVILEGE",
            proxy_ms=1_000_020,
        ),
        reply_case(
            "CONNECT succeeded in the splice over IPv6",
            connect,
            "OK",
            generation=1,
            bound="[2001:db8:1::1]:40001",
            datapath="SPLICE",
            proxy_ms=1_000_020,
        ),
        reply_case(
            "RECONNECT succeeded",
            reconnect,
            "OK",
            generation=2,
            down_from=1200,
            up_acked=600,
            bound="198.51.100.1:40000",
            datapath="RELAY",
            datapath_reason="UNEQUAL_OPTIONS",
            proxy_ms=1_000_020,
        ),
        reply_case(
            "RECONNECT succeeded, both FINs known",
            reconnect,
            "OK",
            generation=2,
            down_from=1200,
            up_acked=700,
            down_fin_at=1500,
            up_fin_at=700,
            datapath="RELAY",
            datapath_reason="TINY_WINDOW",
            proxy_ms=1_000_020,
        ),
        reply_case(
            "the largest numbers",
            requests["RECONNECT with the largest numbers"],
            "OK",
            generation=2**32 - 1,
            down_from=2**63 - 1,
            up_acked=2**63 - 1,
            down_fin_at=2**63 - 1,
            up_fin_at=2**63 - 1,
            bound="[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
            datapath="SPLICE",
            proxy_ms=2**64 - 1,
        ),
        reply_case("destination refused", connect, "REFUSED", socks_reply=5, proxy_ms=1_000_020),
        reply_case("BIND not supported", requests["BIND"], "REFUSED", socks_reply=7, proxy_ms=1_000_020),
        reply_case("generation too low", reconnect, "STALE_GENERATION", generation=7, proxy_ms=1_000_020),
        reply_case("request too late, with the right clock", reconnect, "EXPIRED", proxy_ms=1_090_000),
    ]
    special = {"OK", "REFUSED", "STALE_GENERATION", "EXPIRED"}
    cases += [
        reply_case(f"status {name}", reconnect, name, proxy_ms=1_000_020) for name in STATUSES if name not in special
    ]
    return cases


def unverified_replies() -> list[Case]:
    """Replies that a client must not believe: forged, or moved from another request."""
    good = leg_replies()[2]
    request = bytes.fromhex(good["request"])
    unsigned = reply_unsigned({"status": "ENDED_RESET", "proxy_ms": 1})
    other = bytes.fromhex(leg_requests()[7]["bytes"])
    cases = [
        ("MAC of zeros", bytes(32)),
        ("MAC with the client's key", mac(KEY_UP, request[-32:], unsigned)),
        ("MAC over another request", mac(KEY_DOWN, other[-32:], unsigned)),
        ("MAC without the request", mac(KEY_DOWN, unsigned)),
        ("MAC without the method selection", mac(KEY_DOWN, request[-32:], unsigned[2:])),
    ]
    return [{"name": name, "request": good["request"], "bytes": (unsigned + tag).hex()} for name, tag in cases]


def invalid_replies() -> list[Case]:
    good = leg_replies()[2]
    request = bytes.fromhex(good["request"])
    unsigned = bytes.fromhex(good["bytes"])[:-32]
    cases = [
        ("method refused", bytes.fromhex("05ff"), "method"),
        ("another method", bytes.fromhex("0500"), "method"),
        ("HTTP", b"HTTP/1.1 200 OK\r\n", "method"),
        ("reply version 2", altered(unsigned, (2, b"\x02")), "version"),
        ("status 0x13", altered(unsigned, (3, b"\x14")), "field"),
        ("reply code with status OK", altered(unsigned, (4, b"\x01")), "field"),
        ("REFUSED without reply code", altered(unsigned, (3, b"\x0b")), "field"),
        ("undefined flag", altered(unsigned, (5, b"\x04")), "field"),
        ("datapath 3", altered(unsigned, (6, b"\x03")), "field"),
        ("reserved bytes not zero", altered(unsigned, (9, b"\x01")), "field"),
        ("bound address of type 3", altered(unsigned, (14, b"\x03")), "address"),
        ("bound address with reserved byte", altered(unsigned, (15, b"\x01")), "field"),
        ("bound IPv4 address with padding", altered(unsigned, (33, b"\x01")), "field"),
        ("absent address that is not zero", altered(unsigned, (14, b"\x00")), "field"),
        ("D above 2^63-1", altered(unsigned, (34, b"\x80")), "field"),
        ("U above 2^63-1", altered(unsigned, (42, b"\x80")), "field"),
        ("down_fin_at without its flag", altered(unsigned, (57, b"\x01")), "field"),
        ("up_fin_at without its flag", altered(unsigned, (65, b"\x01")), "field"),
    ]
    return [
        {
            "name": name,
            "request": good["request"],
            "bytes": (data + mac(KEY_DOWN, request[-32:], data) if len(data) == len(unsigned) else data).hex(),
            "error": error,
        }
        for name, data, error in cases
    ]


def files() -> dict[str, str]:
    """File name to content."""
    contents: dict[str, Any] = {
        "leg.json": {
            "key_up": KEY_UP.hex(),
            "key_down": KEY_DOWN.hex(),
            "requests": leg_requests(),
            "forged_requests": forged_requests(),
            "invalid_requests": invalid_requests(),
            "replies": leg_replies(),
            "unverified_replies": unverified_replies(),
            "invalid_replies": invalid_replies(),
        },
    }
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in contents.items()}


if __name__ == "__main__":
    for file_name, text in files().items():
        Path(__file__).with_name(file_name).write_text(text)
