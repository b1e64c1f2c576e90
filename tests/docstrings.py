"""python -m tests.docstrings [PATH...]: does each public function describe its arguments, its result and its errors?

pydoclint compares arguments and results with the code where a docstring has a section, and skips a docstring without sections.
`missing` finds the functions that must have sections:

- A function with more than one argument has `Args`.
- A docstring of more than one line has `Args`, `Returns` or `Yields`, and `Raises`, as far as there is something to describe.
- `Raises` names each class that the function itself raises. It may also name what the function passes on, which pydoclint forbids:
  so pydoclint does not check it.

A docstring of one line is enough for a function with at most one argument. Not checked are private and nested functions, special
methods, and what a framework calls (`FRAMEWORK`): FastAPI and Typer show the descriptions in `Annotated` to users. A method that
overrides another may say only "See `Base.method`.".
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("api", "benchmarks", "docs", "infra", "shared", "training", "worker")  # not tests, samples, migrations
OVERRIDES = re.compile(r"See `[\w.]+`\.")
# decorators that hand a function to FastAPI, Starlette or Typer, or declare a type alone
FRAMEWORK = re.compile(
    r"\.(get|post|put|patch|delete|head|route|websocket|middleware|exception_handler|command|callback)\(|overload$"
)
DESCRIBED_ERROR = re.compile(r"^    (?:\w+\.)*(\w+):", re.MULTILINE)
SECTION = re.compile(r"^(Args|Returns|Yields|Raises):$", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def checked() -> list[Path]:
    """List the modules of PACKAGES."""
    files = (file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))
    return sorted(file for file in files if "_build" not in file.parts)  # the site holds copies of modules


def missing(source: str) -> Iterator[tuple[int, str]]:
    """Find the public functions whose docstrings need sections and have none.

    Args:
        source: text of a Python module.

    Yields:
        Line number of the function, and a sentence with its name that says what to add.
    """
    for function in _public(ast.parse(source)):
        docstring = ast.get_docstring(function)
        if docstring is None or OVERRIDES.fullmatch(docstring) or _called_by_framework(function):
            continue  # ruff finds a docstring that is missing (D102, D103)
        sections = set(SECTION.findall(docstring))
        count = len(_arguments(function))
        if count > 1 and "Args" not in sections:
            yield function.lineno, f"{function.name} has {count} arguments: describe them under Args"
        elif "\n" in docstring and not sections and (wanted := list(_wanted(function))):
            yield function.lineno, f"{function.name} has a long docstring: add {', '.join(wanted)}, or write one line"
        elif "\n" in docstring:
            described = set(DESCRIBED_ERROR.findall(docstring.partition("Raises:\n")[2]))
            for error in sorted(_raised(function) - described):
                yield function.lineno, f"{function.name} raises {error}: say when under Raises"


def _public(tree: ast.Module | ast.ClassDef) -> Iterator[Function]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node


def _called_by_framework(function: Function) -> bool:
    return any(FRAMEWORK.search(ast.unparse(decorator)) for decorator in function.decorator_list)


def _arguments(function: Function) -> list[str]:
    of = function.args
    named = [argument.arg for argument in chain(of.posonlyargs, of.args, of.kwonlyargs)]
    if named and named[0] in {"self", "cls"}:
        named = named[1:]
    return named + [argument.arg for argument in (of.vararg, of.kwarg) if argument]


def _wanted(function: Function) -> Iterator[str]:
    if _arguments(function):
        yield "Args"
    own = list(_own_nodes(function))
    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in own):
        yield "Yields"
    elif function.returns is not None and ast.unparse(function.returns) not in {"None", "NoReturn", "Never"}:
        yield "Returns"
    if _raised(function):
        yield "Raises"


def _raised(function: Function) -> set[str]:
    raised = [node.exc for node in _own_nodes(function) if isinstance(node, ast.Raise) and node.exc]
    names = [ast.unparse(error.func if isinstance(error, ast.Call) else error) for error in raised]
    classes = [name.rpartition(".")[2] for name in names]
    return {name for name in classes if name[0].isupper()}  # others are variables: an error that was caught


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a function without the functions and classes that it defines."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield child
            yield from _own_nodes(child)


def main(paths: Sequence[str]) -> int:
    """Check folders or files, all of `checked` if none are named; return 1 if something is missing, else 0."""
    named = chain.from_iterable([p] if (p := ROOT / path).is_file() else p.rglob("*.py") for path in paths)
    files = sorted(named) if paths else checked()
    found = 0
    for file in files:
        for line, problem in missing(file.read_text()):
            print(f"{file.relative_to(ROOT)}:{line}: {problem}")
            found += 1
    relative = [str(file.relative_to(ROOT)) for file in files]
    sections = subprocess.run([sys.executable, "-m", "pydoclint.main", "--quiet", *relative], cwd=ROOT, check=False)
    return 1 if found or sections.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
