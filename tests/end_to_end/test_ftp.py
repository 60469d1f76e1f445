"""Debian's FTP client in active mode, by Dante's client library, while its network changes (`--soak` only).

The server connects to where the client says that it listens, which is a port of the proxy.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from pathlib import Path

from tests.end_to_end.conftest import PORT
from tests.end_to_end.splice_fixtures import spliced_field

from msocks_lab import CutMode, LinkConfig

FTP_PORT = 2121
SIZE = 16_000_000
LINKS = (LinkConfig("wifi", rtt_ms=5, rate_mbit=50), LinkConfig("lte", rtt_ms=20, rate_mbit=50))
SOCKS = f"""
errorlog: stderr
resolveprotocol: fake
route {{
    from: 0.0.0.0/0 to: 0.0.0.0/0 via: 127.0.0.1 port = {PORT}
    proxyprotocol: socks_v5
    method: none
}}
"""


def test_an_active_ftp_client_downloads_while_its_network_changes() -> None:
    with spliced_field(*LINKS) as field:
        source, got, socks = (field.directory / name for name in ("source", "got", "socks.conf"))
        source.write_bytes(secrets.token_bytes(SIZE))
        socks.write_text(SOCKS)
        script = str(Path(__file__).with_name("ftp_server.py"))
        field.lab.server.popen([sys.executable, script, str(FTP_PORT), str(source)])
        field.lab.server.wait_listening(FTP_PORT)
        commands = f"printf 'user someone something\\nbinary\\nget source {got}\\nquit\\n'"
        client = f"{commands} | socksify tnftp -A -n -v {field.lab.server.ipv4} {FTP_PORT}"
        process = field.lab.mobile.popen(["sh", "-c", client], env={"SOCKS_CONF": str(socks)})
        field.wait_until(lambda: got.exists() and got.stat().st_size > 2_000_000, timeout=30)
        before = field.lab.link("lte").counters()
        field.lab.link("wifi").cut(CutMode.CARRIER)
        assert process.wait(60) == 0, process.tail()
        assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
        assert field.lab.link("lte").counters().since(before).bytes_down > 2_000_000
        (control, data) = field.flows()
        assert (control["destination"], control["datapath"]) == (f"{field.lab.server.ipv4}:{FTP_PORT}", "splice")
        assert (data["datapath"], data["datapath_reason"]) == ("relay", "accepted")
        assert data["bytes_down"] == SIZE
