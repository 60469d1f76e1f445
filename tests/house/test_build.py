"""The build hook compiles in place, says what it lacks, and leaves the splice out only when told to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPLICE = "msocks/datapath/splice"
BUILT = {f"{SPLICE}/_libbpf.abi3.so", f"{SPLICE}/_splice.bpf.o", "msocks/interception/_interception.bpf.o"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a build needs of the sources, with nothing compiled."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.o"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree)
    return tree


def build(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", *arguments]
    variables = {name: value for name, value in os.environ.items() if name not in ("MSOCKS_WITHOUT_SPLICE", "CLANG")}
    return subprocess.run(
        command, cwd=tree, env=variables | environment, capture_output=True, text=True, timeout=100, check=False
    )


def wheel_of(tree: Path) -> tuple[str, set[str]]:
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return wheel.name, set(archive.namelist())


def test_a_wheel_made_of_the_sdist_has_what_was_compiled_and_not_its_sources(tree: Path):
    done = build(tree)  # the sdist, and the wheel from it
    assert done.returncode == 0, done.stdout + done.stderr
    name, files = wheel_of(tree)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert name.endswith(f"-cp311-abi3-{platform}.whl")
    assert files >= BUILT
    assert not [file for file in files if file.endswith((".c", ".h", ".cdef"))]


def test_the_same_sources_give_the_same_files(tree: Path):
    compiled = []
    for _ in range(2):
        subprocess.run([sys.executable, "hatch_build.py"], cwd=tree, timeout=60, check=True)
        compiled.append({name: (tree / "src" / name).read_bytes() for name in BUILT})
    assert compiled[0] == compiled[1]
    # Nothing of where they were made.
    assert not [name for name, content in compiled[0].items() if str(tree).encode() in content]


def test_the_choice_of_a_wheel_without_the_splice(tree: Path):
    done = build(tree, "--wheel", MSOCKS_WITHOUT_SPLICE="1", PATH="/nonexistent")
    assert done.returncode == 0, done.stdout + done.stderr
    name, files = wheel_of(tree)
    assert name.endswith("-py3-none-any.whl")
    assert not files & BUILT
    assert f"{SPLICE}/feature_probe.py" in files


def test_without_a_compiler_the_build_fails_and_says_what_to_do(tree: Path):
    done = build(tree, "--wheel", CLANG="/nonexistent/clang")
    assert done.returncode != 0
    for text in ("/nonexistent/clang was not found", "apt-get install clang-19", "MSOCKS_WITHOUT_SPLICE=1"):
        assert text in done.stdout + done.stderr
    assert not list((tree / "dist").glob("*.whl"))


def test_a_mistake_in_the_source_fails_the_build_and_keeps_what_was_there(tree: Path):
    source = tree / "src" / SPLICE / "bpf" / "splice.bpf.c"
    earlier = tree / "src" / SPLICE / "_splice.bpf.o"
    earlier.write_bytes(b"earlier")
    source.write_text(source.read_text() + "\nint unfinished(\n")
    done = subprocess.run(
        [sys.executable, "hatch_build.py", "object"], cwd=tree, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "splice.bpf.c" in done.stderr
    assert "clang" in done.stderr
    assert "Traceback" not in done.stderr
    assert earlier.read_bytes() == b"earlier"
    assert not list(earlier.parent.glob("._*"))
