"""The rule of `tests/conftest.py`, tried on a suite that breaks it in every way there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent.parent / "conftest.py"

EXCUSES = {
    "skip_mark": "@pytest.mark.skip(reason='too slow')\ndef test_it(): pass",
    "skip_call": "def test_it(): pytest.skip('too slow')",
    "skip_in_a_fixture": "@pytest.fixture\ndef f(): pytest.skip('too slow')\ndef test_it(f): pass",
    "skip_of_a_module": "pytest.skip('too slow', allow_module_level=True)",
    "missing_import": "pytest.importorskip('no_such_module', reason='too slow')",
    "skip_in_unittest": "import unittest\nclass T(unittest.TestCase):\n"
    "    def test_it(self): self.skipTest('too slow')",
    "xfail_mark": "@pytest.mark.xfail(reason='too slow')\ndef test_it(): assert False",
    "xfail_call": "def test_it(): pytest.xfail('too slow')",
    "unexpected_pass": "@pytest.mark.xfail(reason='too slow')\ndef test_it(): pass",
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run over a module for each excuse, and one that has none."""
    directory = tmp_path_factory.mktemp("suite")
    shutil.copy(CONFTEST, directory / "conftest.py")
    for name, body in (EXCUSES | {"honest": "def test_it(): pass"}).items():
        (directory / f"test_{name}.py").write_text(f"import pytest\n{body}\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(directory)]
    command += ["--continue-on-collection-errors", "-rA"]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", EXCUSES)
def test_an_excuse_is_a_failure_that_names_its_reason(suite: subprocess.CompletedProcess[str], name: str):
    verdict = re.search(rf"^(FAILED|ERROR) test_{name}\.py\S*(.*)$", suite.stdout, re.MULTILINE)
    assert verdict, suite.stdout
    assert "too slow" in verdict[2], suite.stdout


def test_make_soak_runs_what_is_long():
    root = CONFTEST.parents[1]
    recipe = re.search(r"^soak:.*\n((?:\t.*\n)+)", (root / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    long = {
        path.relative_to(root / "tests").parts[0]
        for path in (root / "tests").rglob("test_*.py")
        if re.search(r"mark[.]long\b", path.read_text())
    }
    assert "end_to_end" in long
    assert long <= set(re.findall(r"\btests/(\w+)", recipe[1]))


def test_the_run_fails_and_its_closing_line_says_so(suite: subprocess.CompletedProcess[str]):
    assert suite.returncode == 1, suite.stdout
    assert re.search(r"=+ 5 failed, 1 passed, 4 errors in .* =+\n$", suite.stdout), suite.stdout
    assert "PASSED test_honest.py::test_it" in suite.stdout
