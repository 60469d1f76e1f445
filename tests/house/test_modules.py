"""Rooms of one job each: how large a module may be, what it may be called, what it may import."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
MODULES = sorted(SOURCE.rglob("*.py"))
C_FILES = sorted([*SOURCE.rglob("*.c"), *SOURCE.rglob("*.h")])
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LONGEST_MODULE = 400  # lines
NAMES_THAT_SAY_NOTHING = {
    "base",
    "common",
    "helper",
    "helpers",
    "lib",
    "misc",
    "shared",
    "tools",
    "util",
    "utils",
}
IMPORTED_AS = {"python-socks": "python_socks", "pysocks": "socks"}


def imported_packages(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(name), level=0):
                yield name.partition(".")[0]


def test_there_are_modules():
    assert {module.relative_to(SOURCE).parts[0] for module in MODULES} == {"msocks", "msocks_lab"}
    assert C_FILES


@pytest.mark.parametrize("module", [*MODULES, *C_FILES], ids=lambda module: str(module.relative_to(SOURCE)))
def test_module_has_a_size_and_a_name(module: Path):
    lines = module.read_text().count("\n")
    assert lines <= LONGEST_MODULE, f"{lines} lines: find the second job in it and give that a module of its own"
    assert module.stem not in NAMES_THAT_SAY_NOTHING
    assert module.parent.name not in NAMES_THAT_SAY_NOTHING


def test_every_library_that_the_packages_import_is_declared():
    declared = {
        re.split(r"[^A-Za-z0-9_-]", requirement, maxsplit=1)[0].lower()
        for requirement in PYPROJECT["project"]["dependencies"]
    }
    known = sys.stdlib_module_names | declared | {"msocks", "msocks_lab"}
    undeclared = {
        (str(module.relative_to(ROOT)), package)
        for module in MODULES
        for package in imported_packages(module)
        if package not in known
    }
    assert not undeclared


def test_the_sans_io_rule_covers_every_layer_below_input_and_output():
    """import-linter cannot name a package that does not exist, so a new one could be forgotten."""
    contracts = {contract["id"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
    layers = [re.findall(r"\w+", layer) for layer in contracts["layers"]["layers"]]
    first_with_io = next(number for number, layer in enumerate(layers) if "transport" in layer)
    pure = {f"msocks.{name}" for layer in layers[first_with_io + 1 :] for name in layer}
    present = {
        name for name in pure if any((SOURCE / name.replace(".", "/")).with_suffix(s).exists() for s in ("", ".py"))
    }
    assert present == set(contracts["sans-io"]["source_modules"])
