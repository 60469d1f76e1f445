"""A DNS client of other people's making (dnspython) behind a SOCKS client of other people's making (PySocks).

    python dns_client.py SOCKS_HOST:PORT SERVER [USER PASSWORD]

It asks for the names that come on its standard input, one line each, over one UDP association, and prints a line of
JSON for each: the addresses, or the error.
"""

from __future__ import annotations

import json
import socket
import sys

import dns.exception
import dns.message
import dns.query
import socks

_TIMEOUT_S = 1.0
_TRIES = 5


def main() -> None:
    proxy, server, *credentials = sys.argv[1:]
    host, _, port = proxy.rpartition(":")
    user, password = credentials or (None, None)
    with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.set_proxy(socks.SOCKS5, host, int(port), username=user, password=password)
        sock.bind(("", 0))  # this is when PySocks asks for the association
        sock.setblocking(False)
        for line in sys.stdin:
            print(json.dumps(ask(sock, server, line.strip())), flush=True)


def ask(sock: socket.socket, server: str, name: str) -> dict[str, object]:
    for _ in range(_TRIES):
        query = dns.message.make_query(name, "A")
        try:
            answer = dns.query.udp(query, server, timeout=_TIMEOUT_S, sock=sock, ignore_unexpected=True)
        except dns.exception.Timeout:
            continue
        return {"name": name, "addresses": [str(record) for each in answer.answer for record in each]}
    return {"name": name, "error": "no answer"}


if __name__ == "__main__":
    main()
