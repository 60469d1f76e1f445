"""What starts on every ssh stays light: `msocks nc` is a ProxyCommand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

NEVER_AT_START = {
    "asyncio",
    "ssl",
    "http",
    "email",
    "urllib",
    "typing_extensions",
    "multiprocessing",
    "tomllib",
}

MOST_ADDED_BY_NC_S = 0.030

REPORT = """
import json, sys
before = set(sys.modules)
{action}
print(json.dumps(sorted(name.partition(".")[0] for name in set(sys.modules) - before)))
"""


def modules_loaded_by(action: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", REPORT.format(action=action)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_the_package_alone_loads_nothing_but_itself():
    assert modules_loaded_by("import msocks") == {"msocks"}


def test_the_entry_point_loads_the_standard_library_at_most():
    loaded = modules_loaded_by("import msocks.__main__")
    assert loaded - {"msocks"} <= sys.stdlib_module_names
    assert not loaded & NEVER_AT_START


def test_nc_loads_the_standard_library_at_most():
    """With no agent to talk to, `nc` runs through argument parsing, the failing connect, and its error."""
    loaded = modules_loaded_by(
        "import contextlib, os\n"
        "from msocks.__main__ import main\n"
        "os.environ['MSOCKS_CONTROL'] = '/nonexistent/control'\n"
        "sys.argv = ['msocks', 'nc', 'server.example', '22']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main()\n"
    )
    assert loaded - {"msocks"} <= sys.stdlib_module_names
    assert not loaded & NEVER_AT_START


def seconds(*argv: str) -> float:
    began = time.perf_counter()
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    return time.perf_counter() - began


def test_nc_adds_little_to_the_start_of_a_bare_interpreter():
    """The shortest of some runs of each, in turn: what it takes where nothing else has the processor."""
    msocks = Path(sys.executable).with_name("msocks")
    nc = [str(msocks), "nc", "--control", "/nonexistent/control", "server.example", "22"]
    pairs = [(seconds(sys.executable, "-c", ""), seconds(*nc)) for _ in range(20)]
    bare, whole = (min(column) for column in zip(*pairs, strict=True))
    assert whole - bare <= MOST_ADDED_BY_NC_S, f"a bare interpreter took {bare:.3f} s, nc {whole:.3f} s"
