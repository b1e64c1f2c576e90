"""Which internals of its libraries this code overrides or takes, found by reading it. Nothing of ours is imported.

An override: a name in the body of a class of ours that a class of a library has too, unless that one is abstract. Taken: a
name that such a class takes from itself and a library's class sets; and an attribute with a leading underscore, of
anything, that no code of ours defines.
"""

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.settings import ROOT

PACKAGES = ("api", "benchmarks", "infra", "migrations", "samples", "shared", "tests", "training", "worker")
LIBRARIES = (
    "celery",
    "fastapi",
    "flower",
    "h11",
    "kombu",
    "pebble",
    "pynetdicom",
    "sqlalchemy",
    "starlette",
    "uvicorn",
    "xdist",
)
CONTRACTS = "tests.unit.test_internals"  # which looks at internals, and needs no contract for it
DOCUMENTED = {"_asdict", "_exit", "_fields", "_make", "_mapping", "_replace"}  # of os, namedtuple and SQLAlchemy's Row
OURS = re.compile(
    r"(?:\b(?:def|class|import|as|for)\s+|^\s*|\bself\.)(_[a-z]\w*)(?=\(|\s*:|\s*=[^=]|,| in |$)", re.MULTILINE
)
OF_ANOTHER = re.compile(r"(?<!\bself)(?<!\bcls)(?<!\bsuper\(\))\._[a-z]")
A_CLASS = re.compile(r"^\s*class \w+\(", re.MULTILINE)


@dataclass(frozen=True)
class Class:
    """A class statement, with its bases by their full names."""

    module: str
    node: ast.ClassDef
    bases: tuple[str, ...]


def sources() -> dict[str, str]:
    """The text of every module of ours, by name."""
    paths: Iterable[Path] = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text() for path in paths}


@functools.cache
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


def _imported(tree: ast.Module) -> dict[str, str]:
    """What each imported name is, in full."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.asname or one.name.partition(".")[0]: (one.asname and one.name) or one.name.partition(".")[0]
                      for one in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return names


def classes(texts: dict[str, str]) -> Iterator[Class]:
    """Every class with a base."""
    for module, text in texts.items():
        if not A_CLASS.search(text):
            continue
        tree = _tree(text)
        names = _imported(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.bases:
                written = (ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases)
                parts = (base.partition(".") for base in written)
                yield Class(
                    module,
                    node,
                    tuple(names.get(first, f"{module}.{first}") + dot + rest for first, dot, rest in parts),
                )


def _above(one: Class, known: dict[str, list[Class]], seen: tuple[str, ...] = ()) -> tuple[list[type], set[str]]:
    """The classes of libraries that it inherits from, and names that classes of ours between define or take already."""
    found: list[type] = []
    between: set[str] = set()
    for base in one.bases:
        name = base.rpartition(".")[2]
        if base.partition(".")[0] in LIBRARIES:
            found.append(_named(base))
        elif base.partition(".")[0] in PACKAGES and name not in seen:
            for ours in known.get(name, []):
                classes, names = _above(ours, known, (*seen, name))
                found += classes
                between |= names | set(_body(ours.node)) | _own_names(ours.node)
    return found, between


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _body(node: ast.ClassDef) -> dict[str, ast.stmt]:
    """Names that a class's body gives a value."""
    names: dict[str, ast.stmt] = {}
    for line in node.body:
        if isinstance(line, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names[line.name] = line
        elif isinstance(line, ast.Assign):
            names |= {target.id: line for target in line.targets if isinstance(target, ast.Name)}
        elif isinstance(line, ast.AnnAssign) and line.value is not None and isinstance(line.target, ast.Name):
            names[line.target.id] = line
    return names


def _of_library(base: type, name: str) -> Any:
    """What the library's own classes have under a name; None for what they have not, or have to be filled in."""
    for one in base.__mro__:
        if one.__module__.partition(".")[0] in LIBRARIES and name in vars(one):
            found = vars(one)[name]
            return None if getattr(found, "__isabstractmethod__", False) else found
    return None


def _own_names(node: ast.ClassDef) -> set[str]:
    """Names that the class takes from itself or from what it inherits."""
    taken = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute):
            of = ast.unparse(each.value)
            taken |= {each.attr} if of in ("self", "cls", "super()") else set()
    return taken


@functools.cache
def _text_of(base: type) -> str:
    return "\n".join(inspect.getsource(one) for one in base.__mro__ if one.__module__.partition(".")[0] in LIBRARIES)


def overrides_and_taken(texts: dict[str, str]) -> dict[str, str]:
    """module.Class.name of each, to the library that it is of."""
    every = list(classes(texts))
    known: dict[str, list[Class]] = {}
    for one in every:
        known.setdefault(one.node.name, []).append(one)
    found: dict[str, str] = {}
    for one in every:
        bases, between = _above(one, known)
        for base in bases:
            library, body = base.__module__.partition(".")[0], _body(one.node)
            names = {name for name in body if _of_library(base, name) is not None}
            names |= {
                name
                for name in _own_names(one.node) - set(body)
                if hasattr(base, name) or re.search(rf"\bself\.{name}\b|^    {name}:", _text_of(base), re.MULTILINE)
            }
            names -= between
            found |= {f"{one.module}.{one.node.name}.{name}": library for name in names}
    return found


def privates(texts: dict[str, str]) -> set[str]:
    """`module: ._name` of each attribute with a leading underscore that is somebody else's."""
    ours = {name for text in texts.values() for name in OURS.findall(text)} | DOCUMENTED
    found = set()
    for module, text in texts.items():
        if module != CONTRACTS and OF_ANOTHER.search(text):
            for node in ast.walk(_tree(text)):
                private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__")
                if private and node.attr not in ours and ast.unparse(node.value) not in ("self", "cls", "super()"):  # type: ignore[attr-defined]
                    found.add(f"{module}: .{node.attr}")  # type: ignore[attr-defined]
    return found
