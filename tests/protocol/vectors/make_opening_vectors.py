"""Writes the test vectors of SOCKS5, the first bytes, and the replay window, beside this file, when it is run.

A second encoder, written from the tables of docs/reference/protocol.md with the standard library alone, so that the
vectors do not repeat the mistakes of the code that is tested with them. It imports nothing of msocks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Case = dict[str, Any]


def socks5() -> Case:
    """What a server with the methods none and username/password gets; "answers" is what it sends before its reply."""
    name = b"server.example"
    no_authentication, password = "050100", "05020002"
    to_name = "05010003" + bytes([len(name)]).hex() + name.hex() + "01bb"
    to_ipv4, to_ipv6 = "05010001c000020a0016", "0501000420010db8" + "00" * 11 + "1001bb"
    credentials = "01" + "05" + b"alice".hex() + "06" + b"secret".hex()

    def valid(title: str, data: str, answers: str, command: str, destination: str, trailing: str = "") -> Case:
        events: list[Case] = [{"event": "command", "command": command, "destination": destination}]
        if credentials in data:
            events.insert(0, {"event": "password", "username": b"alice".hex(), "password": b"secret".hex()})
        return {"name": title, "bytes": data + trailing, "answers": answers, "events": events, "trailing": trailing}

    def invalid(title: str, data: str, answers: str, error: str) -> Case:
        return {"name": title, "bytes": data, "answers": answers, "error": error}

    refused = "00" + "01" + "00" * 6
    return {
        "valid": [
            valid("CONNECT to a name", no_authentication + to_name, "0500", "CONNECT", "server.example:443"),
            valid("CONNECT to an IPv4 address", no_authentication + to_ipv4, "0500", "CONNECT", "192.0.2.10:22"),
            valid("CONNECT to an IPv6 address", no_authentication + to_ipv6, "0500", "CONNECT", "[2001:db8::10]:443"),
            valid("username and password", password + credentials + to_ipv4, "05020100", "CONNECT", "192.0.2.10:22"),
            valid(
                "bytes of the application at once",
                no_authentication + to_ipv4,
                "0500",
                "CONNECT",
                "192.0.2.10:22",
                b"SSH-2.0-x\r\n".hex(),
            ),
            valid("BIND", no_authentication + to_ipv4.replace("0501", "0502", 1), "0500", "BIND", "192.0.2.10:22"),
            valid("UDP ASSOCIATE", no_authentication + "05030001" + "00" * 6, "0500", "UDP_ASSOCIATE", "0.0.0.0:0"),
            valid(
                "a name that is an address",
                no_authentication + "05010003" + "09" + b"192.0.2.1".hex() + "0050",
                "0500",
                "CONNECT",
                "192.0.2.1:80",
            ),
        ],
        "invalid": [
            invalid("SOCKS4", "0401", "", "version"),
            invalid("HTTP", b"GET / HTTP/1.1\r\n".hex(), "", "version"),
            invalid("no methods", "0500", "05ff", "method"),
            invalid("only GSSAPI", "050101", "05ff", "method"),
            invalid("only the private method", "05018d", "05ff", "method"),
            invalid("version 5 of the password message", password + "05", "05020101", "version"),
            invalid("version 4 of the request", no_authentication + "04", "0500" + "0501" + refused, "version"),
            invalid("command 0x04", no_authentication + "0504", "0500" + "0507" + refused, "command"),
            invalid("address type 0x02", no_authentication + "05010002", "0500" + "0508" + refused, "type"),
            invalid("name of no bytes", no_authentication + "0501000300", "0500" + "0501" + refused, "length"),
            invalid(
                "name with a space",
                no_authentication + "0501000303" + b"a b".hex() + "0050",
                "0500" + "0501" + refused,
                "address",
            ),
        ],
    }


def greetings() -> list[Case]:
    def case(data: str, announcement: str) -> Case:
        return {"bytes": data, "announcement": announcement}

    return [
        case("", "UNDECIDED"),
        case("16", "TLS"),
        case("160301", "TLS"),
        case("05", "UNDECIDED"),
        case("0501", "UNDECIDED"),
        case("05018d", "LEG"),
        case("05018d01", "LEG"),
        case("050100", "SOCKS5"),
        case("0502", "SOCKS5"),
        case("05028d00", "SOCKS5"),
        case("0500", "SOCKS5"),
        case("04", "UNKNOWN"),
        case("47", "UNKNOWN"),
        case("00", "UNKNOWN"),
    ]


def replay() -> list[Case]:
    """Leg numbers in order of arrival at a window of 4096, and the verdict for each."""
    arrivals = [
        (5000, "FRESH"),
        (5000, "REPLAYED"),
        (4999, "FRESH"),
        (4999, "REPLAYED"),
        (905, "FRESH"),
        (904, "TOO_OLD"),
        (905, "REPLAYED"),
        (5001, "FRESH"),
        (905, "TOO_OLD"),
        (906, "FRESH"),
        (9096, "FRESH"),
        (5001, "REPLAYED"),
        (5000, "TOO_OLD"),
        (5002, "FRESH"),
        (2**64 - 1, "FRESH"),
        (9096, "TOO_OLD"),
        (2**64 - 1, "REPLAYED"),
        (2**64 - 4096, "FRESH"),
        (2**64 - 4097, "TOO_OLD"),
    ]
    return [{"number": number, "verdict": verdict} for number, verdict in arrivals]


def files() -> dict[str, str]:
    """File name to content."""
    contents: dict[str, Any] = {
        "socks5.json": socks5(),
        "greeting.json": greetings(),
        "replay.json": replay(),
    }
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in contents.items()}


if __name__ == "__main__":
    for file_name, text in files().items():
        Path(__file__).with_name(file_name).write_text(text)
