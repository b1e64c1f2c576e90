"""ARCHITECTURE.md names the modules that there are, and the layers that import-linter keeps."""

import re
import tomllib
from pathlib import Path

import pytest

from shared.settings import ROOT

TEXT = (ROOT / "ARCHITECTURE.md").read_text()
ROWS = dict(re.findall(r"^\| \*\*([\w/]+)/\*\* \| (.*) \|$", TEXT, re.MULTILINE))
PACKAGES = ("api", "benchmarks", "infra", "shared", "training", "worker")
FOLDERS = sorted({path.parent.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py")})
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_table_names_each_module(folder: Path) -> None:
    """Every Python file stands in the row of its folder, and that row names no other as one of its modules."""
    modules = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", "__main__"}
    named = set(re.findall(r"`([a-z_0-9]+)`", ROWS.get(str(folder), "")))
    assert named == modules


def test_the_layers_are_those_of_the_contracts() -> None:
    """Each list of layers in pyproject.toml stands in ARCHITECTURE.md line by line, below its package."""
    for contract in CONTRACTS:
        if contract["type"] == "layers":
            head = "".join(f"{name}\n" for name in contract.get("containers", ()))
            lines = "".join(f"{'  ' if head else ''}{line}\n" for line in contract["layers"])
            assert f"\n{head}{lines}" in TEXT, contract["name"]
