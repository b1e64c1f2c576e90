"""What contributors are told is true, and what they may forget is noticed."""

import re
import tomllib
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from starlette.routing import Match

import shared
from api import pages
from api.pages.render import ROOMS
from shared.settings import OTHERS, ROOT, Settings
from tests.unit.training.test_adapters import TREES
from training.datasets import ADAPTERS, LAYOUTS
from training.export import SOURCES

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
DOCUMENTS = ["CONTRIBUTING.md", "README.md", "SECURITY.md", ".github/pull_request_template.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
JOBS = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
MIGRATIONS = sorted((ROOT / "migrations/versions").glob("*.py"))
TEMPLATES = sorted((ROOT / "api/pages/templates").glob("*.html"))
CODE = [path for folder in ("api", "worker", "shared", "infra", "training") for path in (ROOT / folder).rglob("*.py")]
VARIABLE = re.compile(r"\bOSTEON_[A-Z_]*[A-Z]\b")


def marked(text: str) -> str:
    """What stands in a document as code: spans and blocks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def targets(text: str) -> set[str]:
    """The targets that commands in a text make."""
    words = " ".join(re.findall(r"\bmake ((?:[a-z-]+ ?)+)", text)).split()
    return set(words) & {word for word in words if not word.startswith("-")}


def commands(job: dict[str, Any]) -> str:
    """What the steps of a job run."""
    return "\n".join(step.get("run", "") for step in job["steps"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name: str) -> None:
    """Every target that a document names is one of the Makefile's."""
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets(marked((ROOT / name).read_text())) <= known


def test_paths_exist() -> None:
    """Every file that CONTRIBUTING names is there; a word in capitals is to be replaced by the reader."""
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)+)`", CONTRIBUTING) + re.findall(r"\]\(([^)#:]+)", CONTRIBUTING)
    named = [path for path in named if not re.search(r"\b[A-Z]{4}\b|NNNN", path) and not path.startswith(".osteon")]
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_tests_that_notice_are_there() -> None:
    """The tests that CONTRIBUTING names by their function exist in the file beside it."""
    for function, path in re.findall(r"`(test_\w+)` in `([\w/]+\.py)`", CONTRIBUTING):
        assert f"def {function}(" in (ROOT / path).read_text()


def test_the_forge_runs_what_ci_runs() -> None:
    """The workflow makes every target of .ci/run, and installs every system package of it before."""
    ci = (ROOT / ".ci/run").read_text()
    named = targets(ci) | set(" ".join(re.findall(r"^for target in (.*);", ci, re.MULTILINE)).split())
    long = set(JOBS["long"]["strategy"]["matrix"]["target"])
    assert {"check", "test"} < named
    assert named <= long | targets("\n".join(map(commands, JOBS.values())))
    packages = set(" ".join(re.findall(r"apt-get install -y -qq ([\w -]+)\)", ci)).split())
    assert "chromium" in packages
    for job in ("test", "long"):
        assert packages <= set(commands(JOBS[job]).split())


def test_the_matrix_is_what_the_package_promises() -> None:
    """From the oldest Python allowed on without a gap, those of the classifiers where there are any; PostgreSQL from 15 on."""
    matrix = JOBS["test"]["strategy"]["matrix"]
    oldest = int(PROJECT["requires-python"].removeprefix(">=3."))
    assert matrix["python"] == [f"3.{minor}" for minor in range(oldest, oldest + len(matrix["python"]))]
    classified = [line.rpartition(" ")[2] for line in PROJECT.get("classifiers", ()) if ":: Python :: 3." in line]
    assert classified in ([], matrix["python"])
    description = str(Settings.model_fields["database_url"].description)
    assert matrix["postgres"][0] == re.findall(r"PostgreSQL (\d+)", description)[0]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_do_little_and_run_what_was_reviewed(path: Path) -> None:
    """No right but to read the code; every action is named by a full commit, with its version beside it."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    assert {str(job["permissions"]) for job in workflow["jobs"].values()} == {"{'contents': 'read'}"}
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use) for use in uses)


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff names the version that the package has."""
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == shared.__version__


# -- what a migration, a data set, a page or a setting needs ---------------------------------------------------------


def test_migrations_follow_each_other() -> None:
    """The file's number is the revision, and each stands on the one before."""
    before = "None"
    for path in MIGRATIONS:
        text, number = path.read_text(), path.name[:4]
        found = dict(re.findall(r"^(revision|down_revision) = ['\"]?(\w+)", text, re.MULTILINE))
        assert found == {"revision": number, "down_revision": before}
        before = number


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.stem)
def test_a_step_outside_its_transaction_is_cut_off_in_a_test(path: Path) -> None:
    """What builds indexes concurrently, on tables that may be full, is among the interrupted upgrades of the tests."""
    if path.name < "0004":  # from before that was asked for
        return
    cut_off = (ROOT / "tests/integration/test_migrations.py").read_text()
    builds = all(word in path.read_text() for word in ("autocommit_block", "create_index"))
    assert not builds or f'"{path.name[:4]}", "ix_' in cut_off


def test_a_data_set_is_complete() -> None:
    """Each adapter has its layout told, its citation in the model card, and a tree to test it with."""
    assert set(SOURCES) == set(ADAPTERS)
    assert set(TREES) | {"dicom"} == set(ADAPTERS)
    assert [kind for kind in ADAPTERS if not re.search(rf"\b{kind}\b", LAYOUTS)] == []


def served(path: str, method: str = "GET") -> bool:
    """Whether some page, or paper, answers there."""
    scope = {"type": "http", "path": re.sub(r"{\w+}", str(UUID(int=0)), path), "method": method, "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in (*pages.router.routes, *pages.papers.routes))


def test_a_page_is_served() -> None:
    """Every route in a module of pages is part of the application, and every entry of the navigation leads to one."""
    for path in (ROOT / "api/pages").glob("*.py"):
        for method, route in re.findall(r'@router\.(get|post)\(\s*"([^"]+)"', path.read_text()):
            assert served(route, method.upper()), path.name
    assert [path for path, _, _ in ROOMS if not served(path)] == []
    assert not served("/nowhere")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_links_files_that_are_there(path: Path) -> None:
    """What a page links from /static exists and carries its version, for browsers keep it for a year."""
    for name, version in re.findall(r'/static/([\w.-]+)((?:\?v=\{\{ ASSETS \}\})?)"', path.read_text()):
        assert (ROOT / "api/pages/static" / name).is_file()
        assert version, name


def test_a_setting_says_what_it_is() -> None:
    """The description of each stands in shared/settings.py."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_variables_are_settings_or_told() -> None:
    """Every OSTEON_ variable in the code is a setting, or stands in CONTRIBUTING's table; and none there is gone."""
    settings = {f"OSTEON_{name.upper()}" for name in Settings.model_fields}
    table = {
        name for line in CONTRIBUTING.splitlines() if line.startswith("| `OSTEON_") for name in VARIABLE.findall(line)
    }
    assert table == OTHERS
    used = {name for path in CODE for name in VARIABLE.findall(path.read_text())}
    assert used - settings - table - {"OSTEON_KEY"} == set()
    tests = {name for path in (ROOT / "tests").rglob("*.py") for name in VARIABLE.findall(path.read_text())}
    assert {name for name in table if not name.startswith("OSTEON_KEY_")} <= used | tests
