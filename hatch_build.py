"""Compiles what runs in the kernel, the splice and `msocks run`'s hooks: an eBPF object each, with clang; and the
extension module that loads them, cffi's on libbpf.

hatchling runs it for a wheel and for an editable install; a wheel made of an sdist is no different. The results lie in
the source tree, next to the modules that use them, and are never committed.

    python hatch_build.py           # compile all in place
    python hatch_build.py object    # the eBPF objects alone

With MSOCKS_WITHOUT_SPLICE=1 in the environment nothing is compiled and the wheel is pure Python: a proxy of it relays.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SPLICE = Path("src/msocks/datapath/splice")
INTERCEPTION = Path("src/msocks/interception")
# What is compiled, by what from.
OBJECTS = {
    SPLICE / "_splice.bpf.o": SPLICE / "bpf" / "splice.bpf.c",
    INTERCEPTION / "_interception.bpf.o": INTERCEPTION / "bpf" / "interception.bpf.c",
}
EXTENSION = SPLICE / "_libbpf.abi3.so"
MODULE = "msocks.datapath.splice._libbpf"
WITHOUT = "MSOCKS_WITHOUT_SPLICE"

# The stable ABI of the oldest Python that pyproject.toml allows.
OLDEST_PYTHON = "cp311"
OLDEST_CLANG = 14

_WAY_OUT = f"Or build without the kernel datapath, as a computer that runs no proxy may: {WITHOUT}=1"


class CannotBuild(Exception):
    """Something that the build needs is missing, or a compiler refused; the message has the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"\n\nThe splice cannot be built: {what}\n{remedy}\n{_WAY_OUT}\n")


class SpliceBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled files to a wheel, and says for which platform it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before hatchling collects the files."""
        if without_splice():
            if version == "editable":  # else what an earlier build left there is in no wheel: Git ignores it
                self.clean([])
            return
        build_objects()
        build_extension()
        build_data["artifacts"] += [f"/{built}" for built in (*OBJECTS, EXTENSION)]
        build_data["pure_python"] = False
        build_data["tag"] = f"{OLDEST_PYTHON}-abi3-{re.sub('[-.]', '_', sysconfig.get_platform())}"

    def clean(self, versions: list[str]) -> None:
        """Remove what was compiled."""
        del versions
        for built in (*OBJECTS, EXTENSION):
            (ROOT / built).unlink(missing_ok=True)


def without_splice() -> bool:
    """Whether the builder chose a wheel without the splice."""
    return os.environ.get(WITHOUT, "") not in ("", "0")


def build_objects() -> None:
    """Compile the eBPF objects; they keep their BTF, which the loader and the tests read.

    Raises:
        CannotBuild: There is no clang or there are no headers, or the source has errors, which clang has printed.
    """
    compiler = clang()
    _require_libbpf()
    multiarch = [f"-I{directory}" for directory in multiarch_headers()]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-sign-compare"]
    for built, source in OBJECTS.items():
        _compile(
            [compiler, "-O2", "-g", "-target", "bpf", "-mcpu=v3", *warnings, *multiarch, "-c", str(ROOT / source)],
            ROOT / built,
            # DWARF would have the paths of this machine in the wheel; BTF has file names alone.
            [f"-ffile-prefix-map={ROOT}/=", f"-fdebug-compilation-dir={source.parent}"],
        )


def build_extension() -> None:
    """Compile the extension module against the installed libbpf, for every Python from the oldest on.

    Raises:
        CannotBuild: cffi, libbpf, Python's headers or a compiler are missing, or the compiler refused.
    """
    compiler = clang()
    _require_libbpf()
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        raise CannotBuild(
            f"{sys.executable} has no headers ({include}/Python.h)",
            "Install them; on Debian: apt-get install python3-dev",
        )
    try:
        from cffi import FFI
    except ImportError:
        raise CannotBuild("the Python package cffi is missing", "Install it: pip install cffi") from None
    bindings = ROOT / SPLICE / "bindings"
    ffi = FFI()
    ffi.cdef((bindings / "libbpf.cdef").read_text())
    ffi.set_source(MODULE, "\n".join((bindings / name).read_text() for name in ("libbpf.c", "legs.c", "openings.c")))
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "_libbpf.c")
        with contextlib.redirect_stdout(None):
            ffi.emit_c_code(str(source))
        # What cffi writes is not ours to warn about.
        flags = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-w", "-Werror=implicit-function-declaration"]
        # Nothing of the temporary file's path, a symbol and a message have it: two builds give the same file.
        anonymous = [f"-ffile-prefix-map={directory}/=", "-Wl,--strip-all"]
        headers = [f"-I{include}", f"-I{ROOT / SPLICE / 'bpf'}"]
        _compile([compiler, *flags, *headers, str(source)], ROOT / EXTENSION, ["-lbpf", *anonymous])


def _compile(command: list[str], target: Path, tail: list[str]) -> None:
    """Run a compiler; `target` is replaced as a whole or stays as it was, also for a process that reads it."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        done = subprocess.run([*command, *tail, "-o", str(unfinished)], cwd=ROOT, check=False)
        if done.returncode != 0:
            raise CannotBuild(f"{command[0]} failed; its own message is above", "Command: " + " ".join(command))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def clang() -> str:
    """The newest clang there is, or the one that $CLANG names. Raises CannotBuild."""
    chosen = os.environ.get("CLANG")
    numbered = [f"clang-{version}" for version in range(40, OLDEST_CLANG - 1, -1)]
    for name in [chosen] if chosen else [*numbered, "clang"]:
        if path := shutil.which(name):
            return path
    raise CannotBuild(
        f"{chosen} was not found" if chosen else f"there is no clang ({OLDEST_CLANG} or newer)",
        "Install it; on Debian: apt-get install clang-19. Or name it: CLANG=/path/to/clang",
    )


def _require_libbpf() -> None:
    if not any(Path(prefix, "include/bpf/libbpf.h").exists() for prefix in ("/usr", "/usr/local")):
        raise CannotBuild(
            "the headers of libbpf are missing (bpf/libbpf.h)",
            "Install them; on Debian: apt-get install libbpf-dev; elsewhere the package may be named libbpf-devel",
        )


def multiarch_headers() -> list[Path]:
    """Where Debian keeps <asm/types.h>: clang looks there for the machine's own target, and not for eBPF."""
    names = {sysconfig.get_config_var("MULTIARCH"), f"{platform.machine()}-linux-gnu"}
    directories = [Path("/usr/include", name) for name in sorted(filter(None, names))]
    return [directory for directory in directories if (directory / "asm").is_dir()]


def main(arguments: list[str]) -> None:
    """Compile in place."""
    build_objects()
    if arguments != ["object"]:
        build_extension()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CannotBuild as error:
        sys.exit(str(error).strip())
