"""The vector files are what their makers write, and their makers know nothing of the code that is tested with them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

VECTORS = Path(__file__).parent / "vectors"
MAKERS = sorted(VECTORS.glob("make_*.py"))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.stem)
def test_the_files_are_up_to_date(maker: Path):
    for name, text in runpy.run_path(str(maker))["files"]().items():
        assert (VECTORS / name).read_text() == text, f"run {maker.name}"


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.stem)
def test_a_maker_imports_nothing_of_msocks(maker: Path):
    assert "import msocks" not in maker.read_text()
    assert "from msocks" not in maker.read_text()


def test_every_file_has_a_maker():
    made = {name for maker in MAKERS for name in runpy.run_path(str(maker))["files"]()}
    assert made == {path.name for path in VECTORS.glob("*.json")}
