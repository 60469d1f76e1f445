"""Writing results down: a page of Markdown, and the raw rounds as JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.provenance import ROOT

PAGES = ROOT / "docs" / "benchmarks"


def origin(provenance: dict[str, Any], raw: str) -> str:
    """The paragraph that says where the figures of a page come from."""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return "\n".join([
        "```sh",
        provenance["command"],
        "```",
        "",
        f"- Date: {provenance['date']}",
        f"- Commit: `{provenance['commit']}`" + (" (with changes)" if provenance["commit"].endswith("+") else ""),
        f"- Kernel: Linux {provenance['kernel']}; {provenance['processors']} x {provenance['processor']}",
        f"- Versions: {versions}",
        f"- Every round: [{raw}]({raw})",
    ])  # fmt: skip


def publish(
    directory: Path, name: str, raw: dict[str, Any], page: str, drawings: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write DIRECTORY/NAME.md and DIRECTORY/data/NAME.json, and the page's drawings, by the names of their files."""
    write_raw(directory, name, raw)
    write_page(directory, name, page)
    for file, drawing in drawings.items():
        (directory / file).write_text(drawing)


def write_raw(directory: Path, name: str, raw: dict[str, Any]) -> None:
    """Write DIRECTORY/data/NAME.json."""
    data = directory / "data" / f"{name}.json"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps({"schema": 1, **raw}, indent=1, allow_nan=False) + "\n")
    print(f"\nWritten: {data}")


def read_raw(directory: Path, name: str) -> dict[str, Any] | None:
    """What `write_raw` wrote, if it has."""
    data = directory / "data" / f"{name}.json"
    if not data.exists():
        return None
    raw: dict[str, Any] = json.loads(data.read_text())
    return raw


def write_page(directory: Path, name: str, page: str) -> None:
    """Write DIRECTORY/NAME.md."""
    (directory / f"{name}.md").write_text(page.rstrip() + "\n")
    print(f"Written: {directory / name}.md")
