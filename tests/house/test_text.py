"""The project speaks of itself alone: no path of somebody's machine, no package index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

BUILT = {
    ".git",
    ".hypothesis",
    ".import_linter_cache",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".tools",
}
BUILT |= {".venv", "__pycache__", "_build", "build", "dist"}

# Written so that this file does not find itself.
MACHINE_PATHS = r"(?<![\w.])/(?:wor[k]|roo[t]|User[s]|home/(?!alice\b))(?:/|\b)"
INDEX_HOSTS = r"py[p]i\.org|python[h]osted\.org|registry\.np[m]js|deb\.de[b]ian\.org|security\.de[b]ian\.org"
FORBIDDEN = re.compile(f"{MACHINE_PATHS}|{INDEX_HOSTS}")


def texts(directory: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(directory.iterdir()):
        if path.name in BUILT:  # ".git" is a file where several working trees share one repository
            continue
        if path.is_dir() and not path.is_symlink():
            yield from texts(path)
        elif path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                yield path, content.decode()


def test_the_pattern_finds_what_it_is_for():
    for text in (
        "cd /wor" + "k/main",
        "open('/roo" + "t/.ssh')",
        "https://py" + "pi.org/simple",
        "/home/" + "bob/x",
    ):
        assert FORBIDDEN.search(text), text
    for text in ("a network/link", "./work/x", "/home/alice/msocks", "docs.python.org", "root/leaf"):
        assert not FORBIDDEN.search(text), text


def test_no_text_names_a_machine_path_or_a_package_index():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in texts(ROOT)
        for number, line in enumerate(text.splitlines(), start=1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)
