"""ARCHITECTURE.md names the modules that there are, and the layers that import-linter keeps."""

import ast
import re
import tomllib
from collections import Counter
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


def test_a_name_of_a_module_is_given_once() -> None:
    """A second value for a constant would be the first one's, too: benchmarks/predict.py once measured 12 files for 500."""
    twice = []
    for path in (path for name in (*PACKAGES, "tests", "samples") for path in (ROOT / name).rglob("*.py")):
        given: list[str] = []
        for statement in ast.parse(path.read_text()).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            if isinstance(statement, ast.AnnAssign) and statement.value is not None:
                targets = [statement.target]
            given += [target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()]
        twice += [f"{path.relative_to(ROOT)}: {name}" for name, times in Counter(given).items() if times > 1]
    assert not twice
