"""The documentation names everything that the code has, and its links lead somewhere."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from fastapi.routing import iter_route_contexts
from prometheus_client import REGISTRY

from api.app import ROUTES
from docs import references
from infra.cli import app as commands
from shared.db.tables.base import Base
from shared.dicom.conformance import SERVICES, STORAGE
from shared.dicom.header import DECODABLE
from shared.errors import Rejected
from shared.settings import PREFIX, ROOT, Settings


def documents() -> list[Path]:
    """Every Markdown file that is part of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """The Python files below these folders, parsed."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def visible(of: typer.Typer, name: str) -> Iterator[str]:
    """The names of all commands of an application that --help lists."""
    for one in of.registered_commands:
        if not one.hidden:
            assert one.callback is not None
            yield f"{name} {one.name or one.callback.__name__.replace('_', '-')}"
    for group in of.registered_groups:
        assert group.typer_instance is not None
        if group.hidden is True:  # an old name of another one
            continue
        yield from visible(group.typer_instance, f"{name} {group.name}" if isinstance(group.name, str) else name)


def test_every_setting_is_named() -> None:
    """Each with its description; a secret's default is no secret."""
    page = references.settings_page()
    for name, field in Settings.model_fields.items():
        assert f"| `{PREFIX}{name.upper()}` |" in page
        assert str(field.description) in page
    secrets = [line for line in page.splitlines() if line.endswith("| yes |")]
    assert {"OSTEON_IDENTITY_KEY", "OSTEON_SESSION_SECRET"} <= set(re.findall(r"OSTEON_\w+", "\n".join(secrets)))


def test_sections_of_docstrings_are_not_shown_to_users() -> None:
    """Typer and FastAPI publish docstrings: arguments of what they call are described in `Annotated` instead."""
    for page in (references.cli_page(), references.api_page()):
        assert not re.search(r"\b(Args|Returns|Yields|Raises):", page)


def test_every_command_is_named() -> None:
    """Each under a heading of its own, with all that --help says of it, and none that is hidden."""
    page = references.cli_page()
    headings = set(re.findall(r"^##+ (osteon.*)$", page, re.MULTILINE))
    wanted = set(visible(commands, "osteon"))
    assert len(wanted) > 20
    assert wanted - headings == set()
    for name, command in references.command_tree():
        first = (command.help or "").strip().splitlines()[0]
        assert first in page, name
        for parameter in command.params:
            assert getattr(parameter, "hidden", False) or all(
                one in page for one in parameter.opts if one.startswith("--")
            )


def test_every_operation_is_named() -> None:
    """Each route that stands in openapi.json, and each of its schemas."""
    page = references.api_page()
    wanted = {
        f"### {method} {route.path}"
        for route in iter_route_contexts(ROUTES.routes)
        if getattr(route.original_route, "include_in_schema", False) and "api.pages" not in route.endpoint.__module__
        for method in route.methods or ()
    }
    assert len(wanted) > 40
    assert wanted - set(page.splitlines()) == set()
    document = references.openapi()
    assert [name for name in document["components"]["schemas"] if f"\n### {name}\n" not in page] == []
    undescribed = [
        (path, one["name"])
        for path, operations in document["paths"].items()
        for operation in operations.values()
        for one in operation.get("parameters", ())
        if not one.get("description")
    ]
    assert undescribed == []


def test_everything_in_the_api_is_described() -> None:
    """Each field of a request or a response, each parameter, and each object: its own description or an example."""
    document = references.openapi()
    bodies = {
        f"{method} {path} {kind}": content.get("schema", {})
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    }
    fields = [
        (name, field, value)
        for name, model in (document["components"]["schemas"] | bodies).items()
        for field, value in model.get("properties", {}).items()
    ]
    assert len(fields) > 500
    assert [(name, field) for name, field, value in fields if not value.get("description")] == []
    # a description that explains null is one of a field that can be null
    null = {"type": "null"}
    explained = [(name, field, value) for name, field, value in fields if re.search(r"\bnull: ", value["description"])]
    assert len(explained) > 20
    wrong = [(name, field) for name, field, value in explained if null not in value.get("anyOf", [])]
    assert wrong == []
    told = ("description", "example", "examples")
    models = document["components"]["schemas"].items()
    assert [name for name, model in models if not any(model.get(one) for one in told)] == []


def test_the_conformance_statement_has_every_table() -> None:
    """Each class, syntax, failure and resource of the code, and nothing that it cannot name."""
    page = references.conformance_page()
    uids = {*STORAGE, *DECODABLE, *(one.sop_class_uid for one in SERVICES)}
    assert [uid for uid in uids if f"| `{uid}` |" not in page] == []
    assert re.findall(r"^\| [\d.]+ \| `[\d.]+` \|", page, re.MULTILINE) == []
    failures = {kind.failure for kind in references.rejections_below(Rejected)}
    assert [code for code in failures if f"| {code:04X} |" not in page] == []
    paths = [path for path in references.openapi()["paths"] if path.startswith("/dicom-web/")]
    assert len(paths) > 10
    assert [path for path in paths if f" {path}` |" not in page] == []
    store = page.partition("### Status of a C-STORE")[2].partition("###")[0]
    assert "| A901 |" not in store, "there is no address of a study in an association"


def test_every_metric_is_named() -> None:
    """What the processes register, what they make of rows, and what dashboard and alerts ask for."""
    page = references.metrics_page()
    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    registered = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for metric in REGISTRY.collect()
        if metric.name.startswith("osteon_")
    }
    of_rows = set(
        re.findall(
            r'"(osteon_(?:queue|studies|workers|drift|backfill|night|api_spool|store)\w*)"',
            (ROOT / "api/operations/metrics.py").read_text(),
        )
    )
    assert len(of_rows) >= 10
    assert (registered | of_rows) - named == set()
    asked = " ".join((ROOT / name).read_text() for name in ("infra/grafana/osteon.json", "infra/prometheus/alerts.yml"))
    used = set(re.findall(r"\bosteon_(?:api|worker|queue|studies|workers|drift|backfill|store)\w*", asked))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} - named == set()


def test_every_table_is_named() -> None:
    """Each with its columns, constraints and indexes."""
    page = references.database_page()
    written = {
        node.value.value
        for _, tree in sources("shared/db/tables")
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and any(isinstance(target, ast.Name) and target.id == "__tablename__" for target in node.targets)
    }
    assert len(written) > 20
    parts = dict(zip(*[iter(re.split(r"^## (\w+)$", page, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert written - set(parts) == set()
    for name, table in Base.metadata.tables.items():
        for one in (*table.columns, *table.indexes):
            assert f"| `{one.name}` |" in parts[name]
        for constraint in table.constraints:
            assert str(constraint.name) in parts[name]


def test_every_code_is_named() -> None:
    """Each enum of codes in shared and api, and each reason for which a file is rejected."""
    page = references.codes_page()
    for path, tree in sources("shared", "api"):
        for node in tree.body:
            if (
                isinstance(node, ast.ClassDef)
                and not {"model", "pixels"} & set(path.parts)
                and any(isinstance(base, ast.Name) and base.id == "StrEnum" for base in node.bases)
            ):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                assert f"### {module.removesuffix('.__init__')}.{node.name}\n" in page
    reasons = [kind.reason for kind in Rejected.__subclasses__()]
    assert len(reasons) > 10
    assert [reason for reason in reasons if f"| `{reason}` |" not in page] == []
    for enum in references.codes():
        if enum.__name__.endswith("Reason"):
            assert set(references.words(enum)) == set(enum), enum


def test_decisions_are_numbered_and_dated() -> None:
    """Without a gap, with a date and a status; one that is superseded is so by a record that says it supersedes it."""
    decisions = references.decisions()
    assert [int(number) for number, *_ in decisions] == list(range(1, len(decisions) + 1))
    of = {number: (status, name) for number, _, status, _, name in decisions}
    for number, (status, name) in of.items():
        assert int(name[:4]) == int(number)
        if status.startswith("superseded"):
            (later,) = re.fullmatch(r"superseded by \[(\d+)\]\([\w.-]+\)", status).groups()  # type: ignore[union-attr]
            assert f"supersedes [{number}]({name})" in of[later][0]


def test_a_decision_has_a_plain_title() -> None:
    """A sentence that says what was decided, in words that need no glossary."""
    house = re.compile(r"publisher|\bdesk\b|portion|precedence|stands? |reading room|truth|\?$", re.IGNORECASE)
    titles = [title for *_, title, _ in references.decisions()]
    assert [title for title in titles if house.search(title) or not title[0].isupper()] == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    """Every link within the repository leads to a file, a folder, or a page that the site generates."""
    generated = {
        ROOT / "docs" / references.GENERATED / name for name in (*references.PAGES, *references.ROOTED.values())
    }
    for _, target, _ in references.LINK.findall(path.read_text()):
        place = Path(path.parent, target).resolve()
        assert place.exists() or place in generated, target


def test_pages_are_written_once(tmp_path: Path) -> None:
    """Writing again changes no file; a page that is no longer made goes."""
    references.write(tmp_path)
    (tmp_path / "old.md").write_text("# Old\n")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    references.write(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == {
        name: at for name, at in before.items() if name != "old.md"
    }
