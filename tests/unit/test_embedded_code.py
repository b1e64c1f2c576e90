"""Programs that stand as text in benchmarks and tests, and names given to monkeypatch: what they import is there."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("api", "benchmarks", "infra", "samples", "shared", "tests", "training", "worker")
IMPORT = re.compile(rf"(?:^|[\n;])[ \t]*from ((?:{'|'.join(OURS)})[\w.]*) import ([\w, ]+)")
MODULES = re.compile(rf"(?:^|[\n;])[ \t]*import ((?:{'|'.join(OURS)})\b[\w., ]*)")
MADE_UP = {"api.made.Channel"}  # of a test of what finds overridden names
NAME = re.compile(rf"(?:{'|'.join(OURS)})(?:\.\w+)+")


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text of a module; what f-strings compute is left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values)


def patched(tree: ast.AST) -> Iterator[str]:
    """The names that are given to setattr as one text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and NAME.fullmatch(first.value):
                yield first.value


def there(name: str) -> bool:
    """Whether a dotted name is a module, or can be reached from one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in OURS:
                return True  # it is there, and imports a package of an extra that is not installed here
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def missing(source: str) -> list[str]:
    """What the texts of a module name and nobody has."""
    tree = ast.parse(source)
    names = set(patched(tree))
    for text in texts(tree):
        for module, imported in IMPORT.findall(text):
            names |= {f"{module}.{one.split()[0]}" for one in imported.split(",") if one.strip()}
        for modules in MODULES.findall(text):
            names |= {one.split()[0] for one in modules.split(",") if one.strip()}
    return sorted(name for name in names - MADE_UP if not there(name))


@pytest.mark.parametrize("folder", ["benchmarks", "tests"])
def test_what_texts_import_is_there(folder: str) -> None:
    """No checker reads these programs, and each runs only where it is measured."""
    wrong = {
        path.relative_to(ROOT).as_posix(): names
        for path in (ROOT / folder).rglob("*.py")
        if (names := missing(path.read_text(encoding="utf-8"))) and path.name != Path(__file__).name
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source",
    [
        'RUN = """\n    from shared.errors import Nothing\n"""',
        'RUN = f"import worker.nothing; {0}"',
        'RUN = "import sys, os; from api.nothing import app"',
        'patch.setattr("shared.errors.Nothing.more", 1)',
    ],
)
def test_what_is_not_there_is_found(source: str) -> None:
    """In texts, f-strings, behind a semicolon, and in names of what is patched."""
    assert len(missing(source)) == 1
