"""A real browser loads a page through the agent, and its network goes in the middle of it (`--soak` only)."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.end_to_end.conftest import LTE, PORT, WIFI, Field
from tests.end_to_end.web_page import PART_BYTES, PARTS, checksum, part

from msocks_lab import CutMode

WEB_PORT = 7080


def test_chromium_loads_a_page_while_its_network_changes(make_field: Callable[..., Field], tmp_path: Path) -> None:
    field = make_field(WIFI, LTE)
    field.start_proxy()
    field.start_agent("wifi", "lte")
    web = field.lab.server.popen([sys.executable, str(Path(__file__).with_name("web_page.py")), str(WEB_PORT)])
    field.lab.server.wait_listening(WEB_PORT)

    def requests() -> list[dict[str, Any]]:
        return [json.loads(line) for line in web.output().splitlines() if line.startswith("{")]

    chromium = shutil.which("chromium")
    assert chromium, "install it: tools/install soak"
    profile = tmp_path / "profile"
    profile.mkdir()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
    options += [f"--user-data-dir={profile}", f"--proxy-server=socks5://127.0.0.1:{PORT}"]
    field.lab.mobile.popen(
        [chromium, *options, f"http://server:{WEB_PORT}/"], env={"HOME": str(profile)}, unprivileged=True
    )
    field.wait_until(lambda: carried(field, "wifi") > PART_BYTES, timeout=40)
    field.lab.link("wifi").cut(CutMode.CARRIER)
    assert not any("report" in request for request in requests()), "it had loaded before the network changed"
    field.wait_until(lambda: any("report" in request for request in requests()), timeout=40)
    assert carried(field, "lte") > PART_BYTES
    seen = requests()
    (report,) = (request["report"] for request in seen if "report" in request)
    assert report == [{"bytes": PART_BYTES, "sum": checksum(part(number))} for number in range(PARTS)]
    fetched = sorted(request["path"] for request in seen if request["path"].startswith("/part/"))
    assert fetched == [f"/part/{number}" for number in range(PARTS)], "a part was asked for again"
    assert not any(request.get("range") for request in seen)


def carried(field: Field, link: str) -> int:
    """Bytes that have come over a link, by the mobile's interface."""
    return field.lab.link(link).counters().bytes_down
