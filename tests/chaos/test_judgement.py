"""Who judges a storm: nothing of the product, and he says how the same storm is played again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chaos.plan import Kind, Transfer
from chaos.traffic import Session, Traffic

from chaos import main

ROOT = Path(__file__).parent.parent.parent
SENT = 5000


def test_the_judge_imports_nothing_of_the_product():
    script = "import sys, chaos.main; print([name for name in sys.modules if name.partition('.')[0] == 'msocks'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_seed_that_fails_is_printed_as_the_command_that_plays_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    played: list[tuple[Any, ...]] = []

    def storm(*arguments: Any) -> dict[str, Any]:
        played.append(arguments)
        return {"seed": arguments[0], "disturbances": {}, "sessions": [], "bytes": 0, "problems": ["3-1: lost"]}

    monkeypatch.setattr("chaos.main.storm.run", storm)
    words = ["--minutes", "0", "--seed", "77", "--seconds", "12.5", "--sessions", "3", "--datapath", "relay"]
    output = ["--output", str(tmp_path / "first.json")]
    monkeypatch.setattr("sys.argv", ["main.py", *words, *output])
    assert main.main() == 1
    said = capsys.readouterr().out
    assert "FAILED: 3-1: lost" in said
    assert "Failed seeds: 77" in said
    again = said.partition("chaos/main.py ")[2].splitlines()[0].split()
    monkeypatch.setattr("sys.argv", ["main.py", *again, *output])
    assert main.main() == 1
    assert played[0] == played[1]


def judged(directory: Path, transfer: Transfer, result: dict[str, Any], record: dict[str, Any] | None) -> str:
    """What is said of a session whose client and server say that."""
    lab: Any = SimpleNamespace(directory=directory)
    client: Any = SimpleNamespace(communicate=lambda: (json.dumps({"received": 0, **result}), ""))
    if record is not None:
        (directory / "0-1.json").write_text(json.dumps(record))
    traffic = Traffic(lab, 1, 1)
    traffic._judge(Session("0-1", transfer, client, 0.0))
    traffic.finish(-2.0)
    return traffic.ended[0].problem


def served(*, error: str = "", count: int = SENT) -> dict[str, Any]:
    return {"error": error, "receipt": {"bytes": count, "error": ""}}


RESET = {"error": "[Errno 104] Connection reset by peer", "receipt": None}
UPLOAD = Transfer(Kind.UPLOAD, 1, upload=SENT)
TRIPS = Transfer(Kind.EXCHANGE, 1, round_trips=10, interval=0.1)
RESET_BY_CLIENT = Transfer(Kind.CLIENT_RESETS, 1, download=SENT, reset_after=SENT // 2)
RESET_BY_SERVER = Transfer(Kind.SERVER_RESETS, 1, download=SENT, abort_after=SENT // 2)


@pytest.mark.parametrize(
    ("transfer", "error", "record", "problem"),
    [
        (UPLOAD, "", served(), ""),
        (UPLOAD, "TransferError: Byte 9 of pattern 1 is wrong", served(), "Byte 9"),
        (UPLOAD, "", served(count=SENT - 1), "got 4999 of 5000 bytes"),
        (UPLOAD, "", RESET, "the server: [Errno 104]"),
        (UPLOAD, "", None, "has not seen its end"),
        (TRIPS, "", served(count=640), ""),
        (TRIPS, "", served(count=630), "got 630 of 640 bytes"),
        (TRIPS, "", RESET, "the server: [Errno 104]"),
        (RESET_BY_CLIENT, "", RESET, ""),
        (RESET_BY_CLIENT, "", served(), "saw an end in order"),
        (RESET_BY_SERVER, "ConnectionResetError: [Errno 104]", None, ""),
        (RESET_BY_SERVER, "", None, "saw an end without error"),
        (RESET_BY_SERVER, "TransferError: The stream ended", None, "saw TransferError"),
    ],
)
def test_a_session_is_as_it_had_to_be_only_where_both_ends_say_so(
    tmp_path: Path, transfer: Transfer, error: str, record: dict[str, Any] | None, problem: str
):
    said = judged(tmp_path, transfer, {"error": error}, record)
    assert problem in said
    assert bool(said) == bool(problem)
