"""The lock is complete, exact, hashed, and names no index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def logical_lines(lock: Path) -> list[str]:
    return re.sub(r"(?m)^\s*#.*\n?", "", lock.read_text().replace("\\\n", " ")).splitlines()


def name_of(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_is_an_exact_version_with_hashes_and_nothing_else(lock: Path):
    assert "://" not in lock.read_text()
    lines = logical_lines(lock)
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", line), line


def test_every_declared_dependency_is_locked():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = {name_of(requirement) for requirement in pyproject["project"]["dependencies"]}
    for group in pyproject["dependency-groups"].values():
        declared |= {name_of(requirement) for requirement in group if isinstance(requirement, str)}
    locked = {name_of(line) for lock in LOCKS for line in logical_lines(lock)}
    assert declared <= locked, f"run make lock: {declared - locked}"
