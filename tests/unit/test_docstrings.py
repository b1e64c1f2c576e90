"""The rule for sections of docstrings: each kind of gap is found, and what is exempt is left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docstrings import PACKAGES, ROOT, checked, missing

GAPS = {
    "two arguments": ('def f(a, b):\n    """Do it."""', "f has 2 arguments: describe them under Args"),
    "two arguments of a method": (
        'class C:\n    def f(self, a, *, b=1):\n        """Do it."""',
        "f has 2 arguments: describe them under Args",
    ),
    "stars are arguments": ('async def f(*a, **b):\n    """Do it."""', "f has 2 arguments: describe them under Args"),
    "only the result": (
        'def f(a, b):\n    """Do it.\n\n    Returns:\n        More.\n    """',
        "f has 2 arguments: describe them under Args",
    ),
    "long without sections": (
        'def f(a) -> int:\n    """Do it.\n\n    And more.\n    """\n    raise OSError',
        "f has a long docstring: add Args, Returns, Raises, or write one line",
    ),
    "long generator": (
        'def f() -> Iterator[int]:\n    """Do it.\n\n    And more.\n    """\n    yield 1',
        "f has a long docstring: add Yields, or write one line",
    ),
    "an error that is not described": (
        'def f(a, b):\n    """Do it.\n\n    Args:\n        a: one.\n        b: two.\n    """\n    raise errors.Full("no")',
        "f raises Full: say when under Raises",
    ),
}
EXEMPT = {
    "one argument": 'def f(self, a) -> int:\n    """Do it."""\n    raise OSError',
    "private": 'def _f(a, b):\n    """Do it."""',
    "special": 'class C:\n    def __init__(self, a, b):\n        """Do it."""',
    "method of a private class": 'class _C:\n    def f(self, a, b):\n        """Do it."""',
    "nested": 'def f():\n    """Do it."""\n    def g(a, b):\n        """Do it."""\n        raise OSError',
    "route": '@router.post("/api/v1/studies", status_code=201)\ndef f(a, b):\n    """Do it."""',
    "command": '@app.command()\ndef f(a, b):\n    """Do it.\n\n    And more.\n    """',
    "override": 'class C:\n    def f(self, a, b):\n        """See `Base.f`."""',
    "passed on, or caught": (
        'def f(a, b):\n    """Do it.\n\n    Args:\n        a: one.\n        b: two.\n\n    Raises:\n        KeyError: g does.\n    """\n'
        "    try:\n        g(a)\n    except OSError as wrong:\n        raise\n    raise wrong"
    ),
}


@pytest.mark.parametrize("name", GAPS)
def test_a_gap_is_found(name: str) -> None:
    source, problem = GAPS[name]
    assert [found for _, found in missing(source)] == [problem]


@pytest.mark.parametrize("name", EXEMPT)
def test_what_is_exempt_is_left_alone(name: str) -> None:
    assert list(missing(EXEMPT[name])) == []


@pytest.mark.parametrize(
    ("args", "returns", "code"),
    [
        ("a: one.\n        b: two.", "Returns:\n        Three.", ""),
        ("a: one.", "Returns:\n        Three.", "DOC101"),
        ("a: one.\n        c: two.", "Returns:\n        Three.", "DOC103"),
        ("a: one.\n        b: two.", "", "DOC201"),
    ],
)
def test_pydoclint_compares_sections_with_the_code(tmp_path: Path, args: str, returns: str, code: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        f'def f(a: int, b: int) -> int:\n    """Do it.\n\n    Args:\n        {args}\n\n    {returns}\n    """\n    return 1\n'
    )
    command = [sys.executable, "-m", "pydoclint.main", "--quiet", "--config", str(ROOT / "pyproject.toml"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(code)
    assert code in done.stderr + done.stdout


def test_every_module_is_checked() -> None:
    """Packages are found by what they are, so that a new folder or module is checked too."""
    packages = {path.parent.name for path in ROOT.glob("*/*.py")} - {"migrations", "samples", "tests"}
    assert set(PACKAGES) == packages
    assert {file.relative_to(ROOT).parts[0] for file in checked()} == packages
