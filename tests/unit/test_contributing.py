"""What contributors are told is true, and what they may forget is noticed."""

import dataclasses
import json
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from starlette.routing import Match

import shared
from api import pages
from api.pages.render import NAVIGATION, STATIC_DIR, modules
from api.schemas import FindingView
from infra.predict import COLUMNS
from shared.db.tables import FindingRow
from shared.domain.findings import Finding
from shared.settings import OTHERS, RENAMED, ROOT, Settings
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
    """The workflow makes every target of .ci/run, and installs every system package of it before.

    Node.js is for `make check`, and the forge's own machines have it; and for the tests of systems, which fetch OHIF.
    """
    ci = (ROOT / ".ci/run").read_text()
    named = targets(ci) | set(" ".join(re.findall(r"^for target in (.*);", ci, re.MULTILINE)).split())
    long = set(JOBS["long"]["strategy"]["matrix"]["target"])
    assert {"check", "test"} < named
    assert named <= long | targets("\n".join(map(commands, JOBS.values())))
    packages = set(" ".join(re.findall(r"apt-get install -y -qq ([\w -]+)\)", ci)).split())
    assert {"chromium", "nodejs", "npm"} < packages
    packages -= {"nodejs", "npm", "--no-install-recommends"}
    assert "container" not in JOBS["check"]
    for job in ("test", "long"):
        assert packages <= set(commands(JOBS[job]).split())
    assert "npm" in commands(JOBS["long"]).split()


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


def test_every_dependency_stands_with_its_licence() -> None:
    """Each package that pyproject.toml asks for is in a table of THIRD_PARTY.md."""
    asked = [line for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()) for line in lines]
    names = {re.match(r"[\w-]+", line)[0] for line in asked} - {"osteon"}  # type: ignore[index]
    table = [line.split("|")[1] for line in (ROOT / "THIRD_PARTY.md").read_text().splitlines() if line.startswith("| ")]
    told = set(re.findall(r"[\w-]+", " ".join(table)))
    assert names - told == set()


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


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ([column.name for column in FindingRow.__table__.columns], {"extent": "severity"}),
        (FindingView.model_fields, {"extent": "severity", "heatmap": "heatmap_url"}),
        # predict draws a heatmap into a file, with the field as it lies
        (COLUMNS, {"extent": "severity", "heatmap": "file", "field": "file"}),
    ],
    ids=["table", "API", "predict"],
)
def test_a_field_of_a_finding_is_told_everywhere(there: Collection[str], instead: dict[str, str]) -> None:
    """What the model finds is a column of `findings`, a field of the API's response and of `osteon predict`."""
    names = {instead.get(field.name, field.name) for field in dataclasses.fields(Finding)}
    assert names - set(there) == set()


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
    assert [path for path, _, _ in NAVIGATION if not served(path)] == []
    assert not served("/nowhere")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_links_files_that_are_there(path: Path) -> None:
    """Styles and scripts exist, and none is linked by an address without the digest of the folder."""
    text = path.read_text()
    linked = re.findall(r'\{\{ STATIC \}\}/([\w./-]+)"', text) + re.findall(r'\{\{ script\("([\w./-]+)"\) \}\}', text)
    assert [name for name in linked if not (STATIC_DIR / name).is_file()] == []
    assert '"/static' not in text
    assert "<script" not in text


def test_every_script_is_part_of_a_page() -> None:
    """What a page loads names all that it imports, each after what it imports itself; no script is left over."""
    text = "\n".join(path.read_text() for path in TEMPLATES)
    entries = set(re.findall(r'\{\{ script\("([\w./-]+)"\) \}\}', text))
    assert entries == {"page.js", "worklist.js", "study.js", "operations.js", "notices.js", "send.js"}
    assert "{{ theme_script }}" in (ROOT / "api/pages/templates/base.html").read_text()
    loaded = {"theme.js", *(name for entry in entries for name in modules(entry))}
    assert loaded == {str(path.relative_to(STATIC_DIR)) for path in STATIC_DIR.rglob("*.js")}
    for name in loaded:
        imported = re.findall(r'\bfrom "([^"]+)"|^import "([^"]+)"', (STATIC_DIR / name).read_text(), re.MULTILINE)
        here = {str((STATIC_DIR / name).parent.joinpath(a or b).resolve().relative_to(STATIC_DIR)) for a, b in imported}
        assert here <= set(modules(name)), name


def test_packages_of_npm_are_locked_by_hash_alone() -> None:
    """Each is of one version and known by its content; no registry is named, for everybody has their own."""
    package, lock = (json.loads((ROOT / name).read_text()) for name in ("package.json", "package-lock.json"))
    assert package["private"] is True
    assert "dependencies" not in package  # browsers get our files and nothing else
    assert [wish for wish in package["devDependencies"].values() if not re.fullmatch(r"\d+\.\d+\.\d+", wish)] == []
    installed = {name: one for name, one in lock["packages"].items() if name}
    assert len(installed) > len(package["devDependencies"])
    assert [name for name, one in installed.items() if not one["integrity"].startswith("sha512-")] == []
    assert [name for name, one in installed.items() if "resolved" in one] == []
    assert lock["packages"][""]["devDependencies"] == package["devDependencies"]
    oldest = package["engines"]["node"].removeprefix(">=")
    assert f"Node.js {oldest} or newer" in CONTRIBUTING
    assert f"Node.js {oldest} or newer" in (ROOT / "Makefile").read_text()


def test_a_setting_says_what_it_is() -> None:
    """The description of each stands in shared/settings.py."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_variables_are_settings_or_told() -> None:
    """Every OSTEON_ variable in the code is a setting, now or before, or in CONTRIBUTING's table; none there is gone."""
    settings = {f"OSTEON_{name.upper()}" for name in Settings.model_fields}
    assert set(RENAMED.values()) <= settings
    table = {
        name for line in CONTRIBUTING.splitlines() if line.startswith("| `OSTEON_") for name in VARIABLE.findall(line)
    }
    assert table == OTHERS
    used = {name for path in CODE for name in VARIABLE.findall(path.read_text())}
    assert used - settings - RENAMED.keys() - table - {"OSTEON_KEY"} == set()
    tests = {name for path in (ROOT / "tests").rglob("*.py") for name in VARIABLE.findall(path.read_text())}
    assert {name for name in table if not name.startswith("OSTEON_KEY_")} <= used | tests
