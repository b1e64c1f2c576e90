"""Pages that are generated from the code: settings, commands, API, DICOM, metrics, codes, tables, decisions.

`make docs` writes them into docs/generated, which is not committed. `python -m docs.references DIR` writes them alone.
"""

import ast
import functools
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from fastapi import FastAPI
from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr
from pydantic_core import PydanticUndefined
from pydicom.uid import UID
from pynetdicom import sop_class
from sqlalchemy import CheckConstraint, Dialect, ForeignKeyConstraint, Index, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import ColumnCollectionConstraint, CreateIndex

import api
import shared
import worker.metrics
from api import request_metrics
from api.app import ROUTES
from api.dicomweb import frames, rendered, search, search_results, store
from api.dicomweb.addresses import DICOMWEB
from api.dicomweb.documents import PDF
from api.errors import handle_errors
from api.listener import admission, association, responses, server, tls
from api.listener import metrics as listener_metrics
from api.operations import metrics
from infra.cli import app as commands
from shared import errors
from shared.db.tables.base import Base
from shared.dicom import commitment, conformance
from shared.dicom.image import EXPLICIT_LE
from shared.domain import findings
from shared.domain.peers import OUR_TITLE
from shared.logs import EVENTS
from shared.queries.qido import KEYS, Level
from shared.settings import PREFIX, ROOT, Settings

DOCS = ROOT / "docs"
GENERATED = "generated"
# documents at the top of the repository, and where the site shows them
ROOTED = {
    "ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md", "benchmarks/RESULTS.md": "benchmarks.md", "training/LOG.md": "training-log.md",
    "training/bundles/second-look.md": "model-card.md", "tests/README.md": "tests.md",
}  # fmt: skip
PAGE_OF = {**ROOTED, "docs/adr": "decisions.md"}
DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own
HEAVY = ("shared.model", "shared.pixels")  # need torch: they hold no codes that are stored
LOGGING = ("api", "infra", "migrations", "shared", "training", "worker")  # folders whose code may log
LOGS = re.compile(r"log\.(debug|info|warning|error|exception|critical|log)")
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s#:]+)((?:#[^)\s]*)?)\)")  # text, path, anchor of a link within the repository
_MEMBER = re.compile(r"^    ([A-Z][A-Z_0-9]*) = .*?#\s*(.*)$", re.MULTILINE)


def write(folder: Path) -> None:
    """Write every page into `folder`; an unchanged one keeps its time, so that Sphinx does not read it again."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {name: page() for name, page in PAGES.items()}
    pages |= {name: rooted(source) for source, name in ROOTED.items()}
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()


def rooted(source: str) -> str:
    """Turn a document of the repository into a page among the generated ones."""
    return linked((ROOT / source).read_text(encoding="utf-8"), (ROOT / source).parent, DOCS / GENERATED)


def linked(text: str, place: Path, shown: Path) -> str:
    """Change a document's links so that they lead to pages where there are pages.

    What else lies outside docs is a file to download; a folder, or a document that is no page, is named only.

    Args:
        text: Markdown.
        place: folder of the document, which its links are relative to.
        shown: folder of the page.

    Returns:
        Markdown of the page.
    """

    def moved(link: re.Match[str]) -> str:
        words, path, anchor = link.groups()
        target = (place / path).resolve()
        inside = os.path.relpath(target, ROOT)
        page = DOCS / GENERATED / PAGE_OF[inside] if inside in PAGE_OF else target
        if not page.is_relative_to(DOCS) and (page.is_dir() or page.suffix == ".md"):
            return words
        return f"[{words}]({os.path.relpath(page, shown)}{anchor})"

    return LINK.sub(moved, text)


# -- pieces of Markdown ------------------------------------------------------------------------------------------------


def _cell(text: object) -> str:
    """Write one cell of a table: on one line, without what would end it or be taken for HTML."""
    pieces = " ".join(str(text).split()).replace("|", "\\|").split("`")
    return "`".join(piece if number % 2 else piece.replace("<", "&lt;") for number, piece in enumerate(pieces))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table, or nothing if there are no rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def _code(text: object) -> str:
    """Mark as code; an empty text stays empty."""
    return f"`{text}`" if str(text) else ""


def _page(title: str, *parts: str) -> str:
    """Write a page of these parts, with a blank line between them."""
    return "\n\n".join([f"# {title}", *(part.strip("\n") for part in parts if part.strip())]) + "\n"


# -- settings ----------------------------------------------------------------------------------------------------------


@functools.cache
def settings_page() -> str:
    """Every field of Settings: variable, type, default, meaning, and whether it is a secret."""
    rows = []
    for name, field in Settings.model_fields.items():
        secret = field.annotation is SecretStr
        kind, default = _type(field.annotation), _code(_default(field.default))
        rows.append((_code(f"{PREFIX}{name.upper()}"), field.description, default, kind, "yes" if secret else ""))
    return _page(
        "Settings",
        "Every setting is an environment variable. A variable that begins with `OSTEON_` and that nothing reads is an "
        "error. The unit is part of the name: `_s` seconds, `_ms` milliseconds, `_bytes` bytes.",
        _table(("variable", "meaning", "default", "type", "secret"), rows),
    )


def _type(annotation: object) -> str:
    """Name a type as "int", "path or none", "text"."""
    names: dict[object, str] = {
        int: "int",
        float: "float",
        bool: "true or false",
        str: "text",
        SecretStr: "text",
        Path: "path",
    }
    parts = getattr(annotation, "__args__", (annotation,))
    return " or ".join("none" if part is type(None) else names.get(part, str(part)) for part in parts)


def _default(value: object) -> str:
    """Write a default as it would stand in the environment."""
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path) and value.is_relative_to(ROOT):
        return value.relative_to(ROOT).as_posix()
    return str(value)


# -- commands ----------------------------------------------------------------------------------------------------------


def command_tree() -> Iterator[tuple[str, Any]]:
    """Every command of `osteon` with its full name, groups before what is in them; hidden ones are left out."""
    yield from _commands("osteon", typer.main.get_command(commands))


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - typer keeps its click to itself
    if command.hidden:
        return
    yield name, command
    for word, below in getattr(command, "commands", {}).items():
        yield from _commands(f"{name} {word}", below)


@functools.cache
def cli_page() -> str:
    """Every command: usage, help, arguments and options, as --help prints them."""
    parts = []
    for name, command in command_tree():
        context = command.context_class(command, info_name=name)
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        rows = []
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None:
                rows.append((_code(record[0]), record[1]))
        parts += [
            f"{'##' if name.count(' ') < 2 else '###'} {name}",
            f"```text\n{usage}\n```",
            inspect.cleandoc(command.help or ""),
            _table(("argument or option", "meaning"), rows),
        ]
    return _page(
        "Command line",
        "`osteon COMMAND --help` says the same. Commands that call an API take its address from `OSTEON_API_URL` and "
        "the key from `OSTEON_KEY`, or from their options.",
        *parts,
    )


# -- the API -----------------------------------------------------------------------------------------------------------


@functools.cache
def openapi() -> dict[str, Any]:
    """The API's document, with its errors, made without a database."""
    app = FastAPI(title="Osteon", version=shared.__version__)
    app.router.routes.extend(ROUTES.routes)
    handle_errors(app)
    return app.openapi()


@functools.cache
def api_page() -> str:
    """Every operation of openapi.json with parameters, bodies and responses, then the schemas."""
    document = openapi()
    tags: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["other"])[0]
            tags.setdefault(tag, []).append(_operation(method.upper(), path, operation))
    schemas = [
        _schema(name, schema) for name, schema in sorted(document.get("components", {}).get("schemas", {}).items())
    ]
    return _page(
        "HTTP API",
        "A running API serves the same as `/openapi.json`, and as a page with examples at `/docs`. Show a key in each "
        "request: `Authorization: Bearer osk_…`. Every error is a problem document (RFC 9457, "
        "`application/problem+json`).",
        *(part for tag, parts in tags.items() for part in (f"## {tag}", *parts)),
        "## Schemas",
        *schemas,
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = [
        (_code(one["name"]), one["in"], _shape(one.get("schema", {})), "yes" if one.get("required") else "",
         _meaning(one.get("description", ""), one.get("schema", {})))
        for one in operation.get("parameters", ())
    ]  # fmt: skip
    contents = {
        kind: one.get("schema", {}) for kind, one in operation.get("requestBody", {}).get("content", {}).items()
    }
    bodies = [(_code(kind), _shape(schema)) for kind, schema in contents.items()]
    fields = [row for schema in contents.values() for row in _fields(schema)]
    responses = []
    for status, response in operation.get("responses", {}).items():
        shapes = {_shape(content.get("schema", {})) for content in response.get("content", {}).values()} - {""}
        responses.append((status, response.get("description", ""), ", ".join(sorted(shapes))))
    return "\n\n".join(
        part.strip("\n")
        for part in (
            f"### {method} {path}",
            "Deprecated: it will be removed." if operation.get("deprecated") else "",
            operation.get("description") or operation.get("summary", ""),
            _table(("parameter", "in", "type", "required", "meaning"), parameters),
            _table(("body", "schema"), bodies),
            _table(("field of the body", "type", "required", "meaning"), fields),
            _table(("status", "meaning", "schema"), responses),
        )
        if part.strip()
    )


def _shape(schema: Mapping[str, Any]) -> str:
    """A schema in few words, with a link where it has a name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_anchor(name)})"
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(_shape(one) for one in schema[word]))
    if "enum" in schema:
        return ", ".join(_code(one) for one in schema["enum"])
    if "const" in schema:
        return _code(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_shape(schema.get('items', {})) or 'anything'}"
    kind = schema.get("type", "")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _anchor(heading: str) -> str:
    """Make the anchor of a heading as MyST does, which is as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _meaning(text: str, schema: Mapping[str, Any]) -> str:
    """The description, and the default where there is one."""
    default = schema.get("default")
    return text if default in (None, "", [], False) else f"{text} (default {_code(default)})".strip()


def _fields(schema: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, type, whether it is required, and meaning of each field that a schema lists itself."""
    required = set(schema.get("required", ()))
    return [
        (_code(field), _shape(one), "yes" if field in required else "", _meaning(one.get("description", ""), one))
        for field, one in schema.get("properties", {}).items()
    ]


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    return "\n\n".join(
        part
        for part in (
            f"### {name}",
            schema.get("description", ""),
            _table(("field", "type", "always there", "meaning"), _fields(schema)) or _shape(schema),
        )
        if part.strip()
    )


# -- DICOM conformance -------------------------------------------------------------------------------------------------

NOT_THERE = (
    "C-FIND, C-MOVE, C-GET, worklist, performed procedure steps, printing", "UPS-RS, WADO-URI, storage media",
)  # fmt: skip


def name_of(uid: str) -> str:
    """The name of a UID in PS3.6; what is newer than pydicom's dictionary has the name that pynetdicom gives it."""
    named = UID(uid).name
    if named != uid:
        return named
    keyword = next((one for one, value in vars(sop_class).items() if value == uid), uid)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", keyword)


@functools.cache
def conformance_page() -> str:
    """The tables of a DICOM conformance statement, in the order of PS3.2 Annex N (2024)."""
    return _page(
        "DICOM conformance",
        "Which DICOM services Osteon offers, and in which forms. The tables follow the order of the template in PS3.2 "
        "Annex N (edition 2024); the template's fixed texts are not repeated. A test proposes every storage SOP class "
        "in every transfer syntax to the listener and compares what is accepted with these tables. "
        "**Research use only, not for clinical decisions.**",
        "## Overview",
        _table(("service", "Osteon is", "notes"), list(_overview())),
        f"Not there: {'; '.join(NOT_THERE)}.",
        "## Implementation model",
        "`osteon dicom` accepts associations and opens none to store; `osteon deliver` opens them to store results. "
        "DICOMweb is part of the HTTP API. What comes goes to one intake, with the same rules for duplicates, "
        "corrections, conflicts.",
        "## DIMSE services",
        _table(("SOP class", "UID", "role", "offered"), list(_services())),
        "### Storage SOP classes",
        "All as SCP. *analysed*: single images can be kept only, by colour, modality or origin. *kept*: stored, never "
        "analysed. Transfer syntaxes: *all* of the next table, or *uncompressed* ones alone.",
        _table(("SOP class", "UID", "what becomes of it", "transfer syntaxes"), list(_storage_classes())),
        "### Transfer syntaxes",
        "Of several that a sender proposes in one presentation context, a lossless compressed one is accepted first, "
        "then the sender's first. What cannot be decoded is not accepted: the sender transcodes, or does not send.",
        _table(("transfer syntax", "UID", "all", "uncompressed"), list(_syntaxes())),
        f"Verification and storage commitment: {', '.join(map(name_of, conformance.MESSAGE_SYNTAXES))}.",
        "### Storage commitment as SCU",
        "An N-ACTION names the objects of one delivery that were stored. An N-EVENT-REPORT is taken from the "
        "destination, with reversed roles (role selection) or without. Its answer:",
        _table(("status", "meaning"), _hexadecimal(_report_statuses())),
        "### Status of a C-STORE",
        "Error Comment (0000,0902) says why in at most 64 characters, Offending Element (0000,0901) which attribute.",
        _table(("status", "meaning"), _hexadecimal(_store_statuses())),
        "### Rejected associations",
        _table(("result, source, reason", "meaning"), list(_rejections())),
        "## DICOM web services",
        f"Below `{DICOMWEB}` of the HTTP API, by `http` or behind a proxy by `https`.",
        _table(("resource", "operation", "answers"), list(_resources())),
        "### Store (STOW-RS)",
        _table(("status", "meaning"), _statuses(store.RESPONSES)),
        "Failure Reason (0008,1197) of an instance that is not stored:",
        _table(("failure reason", "meaning"), _hexadecimal(_failures("api.listener"))),
        "### Search (QIDO-RS)",
        "*match*: found by it. *always*: part of every result of this level, empty or left out if nobody knows it. "
        "*asked*: returned where `includefield` names it.",
        _table(("attribute", "level", "match", "returned"), list(_query_attributes())),
        f"A response has at most {search.MAX_RESULTS} results. Retrieve URL, Specific Character Set (ISO_IR 192) and "
        "Instance Availability are always returned.",
        "### Retrieve (WADO-RS)",
        "Objects and frames come in the transfer syntax that is stored. Frames of a compressed object come also as "
        f"{name_of(EXPLICIT_LE)}.",
        _table(("stored transfer syntax", "media type of its frames"), _frame_types()),
        f"Rendered: {', '.join(map(_code, rendered.KINDS))}, 1024 pixels a side at most; an encapsulated PDF as "
        f"{_code(PDF)}.",
        "## Configuration",
        _table(("what", "value", "setting"), list(_configuration())),
        "## Network communication",
        _table(("what", "value"), list(_network())),
        "## Security",
        _table(("what", "profile"), list(_security())),
    )


def _overview() -> Iterator[tuple[str, str, str]]:
    yield "Verification", "SCP", "C-ECHO"
    yield "Storage", "SCP", f"{len(conformance.STORAGE)} SOP classes, C-STORE"
    yield "Storage commitment, push model", "SCP", "`OSTEON_DICOM_COMMITMENT`, off by default, and by peer"
    yield "Verification, storage of results, query of studies", "SCU", "at destinations of results; C-FIND at peers"
    yield (
        "Storage commitment, push model", "SCU",
        "at destinations with `confirm`; reports come over the association of the request or to `osteon dicom`",
    )  # fmt: skip
    yield "Studies service: store, search, retrieve", "origin server", "STOW-RS, QIDO-RS, WADO-RS"


def _services() -> Iterator[tuple[str, str, str, str]]:
    for one in conformance.SERVICES:
        asked = "used at destinations" + ("" if one.by_default else " with `confirm`")
        offered = "yes" if one.by_default else "if `OSTEON_DICOM_COMMITMENT` is set and the peer may ask"
        offered = asked if one.role is conformance.Role.SCU else offered
        yield name_of(one.sop_class_uid), _code(one.sop_class_uid), one.role.value, offered


def _report_statuses() -> dict[int, str]:
    return {
        commitment.TAKEN: "Taken; the same report again as well.",
        commitment.PROCESSING_FAILURE: "The database does not answer: come again.",
        commitment.NO_SUCH_INSTANCE: "Not the well-known instance of the service.",
        commitment.NO_SUCH_EVENT: "An Event Type ID other than 1 and 2.",
        commitment.INVALID_ARGUMENT: "A Transaction UID that this destination was not asked by, or a damaged report.",
    }


def _storage_classes() -> Iterator[tuple[str, str, str, str]]:
    for one in conformance.STORAGE.values():
        syntaxes = "uncompressed" if set(one.transfer_syntaxes) == {*conformance.NATIVE_SYNTAXES} else "all"
        yield name_of(one.uid), _code(one.uid), one.handling.value, syntaxes


def _syntaxes() -> Iterator[tuple[str, str, str, str]]:
    native = conformance.NATIVE_SYNTAXES
    for uid in (*conformance.LOSSLESS_SYNTAXES, *native, *conformance.OTHER_SYNTAXES):
        yield name_of(uid), _code(uid), "yes", "yes" if uid in native else ""


def _hexadecimal(words: Mapping[int, str]) -> list[tuple[str, str]]:
    return [(f"{code:04X}", text) for code, text in sorted(words.items())]


def _failures(but: str) -> dict[int, str]:
    """Words of each failure reason, without those of a package."""
    found: dict[int, dict[str, None]] = {}
    kinds: list[type[errors.Rejected]] = [errors.Rejected, *rejections_below(errors.Rejected)]
    for kind in kinds:
        if not kind.__module__.startswith(but):
            words = "It is not accepted for another reason." if kind is errors.Rejected else inspect.getdoc(kind) or ""
            found.setdefault(kind.failure, {})[words] = None
    return {code: " ".join(words) for code, words in found.items()}


def _store_statuses() -> dict[int, str]:
    failures = _failures("api.dicomweb")
    return failures | {
        responses.SUCCESS: (
            "Bytes and row are durable, or were before; also what an administrator decides on later: another header, "
            "other pixels or another patient under a known UID."
        ),
        responses.OUT_OF_RESOURCES: (
            "No room, a quota, or a part does not answer: send again. " + failures[responses.OUT_OF_RESOURCES]
        ),
        responses.FAILED: "An unexpected error; the log has it.",
        responses.NOT_SUPPORTED: (
            "The SOP class is not that of the presentation context. " + failures[responses.NOT_SUPPORTED]
        ),
    }


def _rejections() -> Iterator[tuple[str, str]]:
    for rejection, meaning in (
        (
            admission.UNKNOWN_CALLING,
            "rejected permanently: no peer calls like this, or from there; see *Refused callers*",
        ),
        (admission.UNKNOWN_CALLED, "rejected permanently: the peer is known, and calls Osteon by another AE title"),
        (admission.CONGESTED, "rejected for now: no room, Postgres does not answer, or the listener stops"),
        (admission.LIMIT_EXCEEDED, "rejected for now: too many associations, of this peer or in all"),
    ):
        yield ", ".join(map(str, rejection)), meaning


def _resources() -> Iterator[tuple[str, str, str]]:
    for path, operations in openapi()["paths"].items():
        for method, operation in operations.items():
            if path.startswith(f"{DICOMWEB}/"):
                kinds = dict.fromkeys(
                    kind for response in operation["responses"].values() for kind in response.get("content", {})
                )
                media_types = ", ".join(_code(kind) for kind in kinds if kind != "application/problem+json")
                yield _code(f"{method.upper()} {path}"), operation["summary"], media_types


def _statuses(responses: Mapping[int | str, Mapping[str, Any]]) -> list[tuple[int | str, str]]:
    return [(status, response["description"]) for status, response in responses.items()]


def _query_attributes() -> Iterator[tuple[str, str, str, str]]:
    for level in Level:
        below = frozenset[str]().union(*(KEYS[one] for one in Level if one < level))
        always, more = search_results.ALWAYS[level], search_results.MORE[level]
        for name in sorted(always | more | (KEYS[level] - below)):
            returned = "always" if name in always else "asked" if name in more else ""
            yield _code(name), level.name.lower(), "yes" if name in KEYS[level] else "", returned


def _frame_types() -> list[tuple[str, str]]:
    return [(name_of(uid), _code(kind)) for uid, kind in frames.IMAGE_TYPES.items()]


def _configuration() -> Iterator[tuple[str, object, str]]:
    fields = Settings.model_fields
    yield "AE title", f"{OUR_TITLE}, or another for each peer", "called title of a peer"
    for what, name in (
        ("address", "dicom_host"), ("port", "dicom_port"), ("port for TLS", "dicom_tls_port"),
        ("associations at a time", "dicom_associations"), ("of one peer", "dicom_associations_per_peer"),
        ("silence before an abort, seconds", "dicom_idle_s"),
        ("bytes of an object", "max_file_bytes"), ("frames of an image", "max_frames"),
    ):  # fmt: skip
        yield what, _default(fields[name].default), _code(f"{PREFIX}{name.upper()}")


def _network() -> Iterator[tuple[str, object]]:
    yield "application context", _code("1.2.840.10008.3.1.1.1")
    yield "Implementation Class UID", _code(conformance.IMPLEMENTATION_CLASS_UID)
    yield "Implementation Version Name", _code(conformance.IMPLEMENTATION_VERSION)
    yield "largest PDU that is asked for, bytes", association.ASKED_PDU_BYTES
    yield "largest PDU that is taken, bytes", association.MAX_PDU_BYTES
    yield "asynchronous operations", "one at a time"
    yield "extended negotiation, user identity", "not supported; ignored"
    yield "wait for an association request, seconds", f"{server.ACSE_S:g}"
    yield "longest wait for a C-STORE's status, seconds", f"{server.ANSWER_S:g}"
    yield "character sets", "those of PS3.3 C.12.1.1.2; DICOM JSON and XML are in ISO_IR 192"


def _security() -> Iterator[tuple[str, str]]:
    yield "TLS for associations", f"PS3.15 B.12 (BCP 195): TLS 1.2 and 1.3, {_code(tls.CIPHERS)}; mutual if asked"
    yield "who may associate", "calling and called AE title; an address, a network, or a certificate's fingerprint"
    yield (
        "who may use DICOMweb",
        "`Authorization: Bearer` with a key; to store: submitter, to search and retrieve: radiologist",
    )
    yield "audit trail", "reads of identities, searches, admissions and changes of peers; not in the form of PS3.15 A.5"


# -- metrics -----------------------------------------------------------------------------------------------------------


def metric_rows() -> dict[str, list[tuple[str, str, str, str]]]:
    """Name, type, labels and help of each metric, by the process that exports it."""
    of_api = [
        *_observed(request_metrics),
        *((name, "gauge", ", ".join(labels), text) for name, (text, labels) in metrics.GAUGES.items()),
        *((f"{name}_total", "counter", "site, peer", text) for name, (text, _) in metrics.COUNTERS.items()),
    ]
    return {
        "API": of_api,
        "Worker": list(_observed(worker.metrics)),
        "DICOM listener": list(_observed(listener_metrics)),
    }


def _observed(module: ModuleType) -> Iterator[tuple[str, str, str, str]]:
    for one in vars(module).values():
        if isinstance(one, MetricWrapperBase):
            (metric,) = one.describe()
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            yield name, metric.type, ", ".join(one._labelnames), metric.documentation  # noqa: SLF001 - nothing public tells them


@functools.cache
def metrics_page() -> str:
    """Every metric of the API, of a worker and of the DICOM listener."""
    parts = []
    for process, rows in metric_rows().items():
        cells = [(_code(name), kind, _code(labels), text) for name, kind, labels, text in rows]
        parts += [f"## {process}", _table(("name", "type", "labels", "meaning"), cells)]
    return _page(
        "Metrics",
        "`GET /metrics` of the API wants `OSTEON_METRICS_TOKEN` or an operator's key. A worker serves its own metrics "
        "on `OSTEON_WORKER_METRICS_PORT`, the DICOM listener on `OSTEON_DICOM_METRICS_PORT`: numbers alone, without a "
        "key, on the loopback address by default; 0 turns them off. Python's own metrics of the process stand beside "
        "these.",
        *parts,
    )


# -- log events --------------------------------------------------------------------------------------------------------


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Find the calls that write log lines: the module that has each, and the call."""
    for folder in LOGGING:
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and LOGS.fullmatch(ast.unparse(node.func)):
                    yield module, node


def event_of(call: ast.Call) -> str | None:
    """The event that a call logs; None if it is no literal, or has values beside it that are not named."""
    texts = call.args[1:] if ast.unparse(call.func).endswith(".log") else call.args
    if len(texts) == 1 and isinstance(texts[0], ast.Constant) and isinstance(texts[0].value, str):
        return texts[0].value
    return None


def level_of(call: ast.Call) -> str:
    """The level that a call logs at, as the lines have it; of one that chooses, each that it names."""
    name = ast.unparse(call.func).rpartition(".")[2]
    if name != "log":
        return "error" if name == "exception" else name
    return ", ".join(sorted({found.lower() for found in re.findall(r"logging\.([A-Z]+)", ast.unparse(call.args[0]))}))


@functools.cache
def logs_page() -> str:
    """Every event: its name, where it is logged, at which level, with which fields, and what it means."""
    rows = []
    calls = list(log_calls())
    for event, meaning in sorted(EVENTS.items()):
        its_own = [(module, call) for module, call in calls if event_of(call) == event]
        levels = dict.fromkeys(chain.from_iterable(level_of(call).split(", ") for _, call in its_own))
        fields = dict.fromkeys(
            one.arg for _, call in its_own for one in call.keywords if one.arg and one.arg != "exc_info"
        )
        where = dict.fromkeys(_code(module) for module, _ in its_own)
        names = ", ".join(map(_code, fields))
        rows.append((_code(event), ", ".join(levels), names, meaning, ", ".join(where)))
    return _page(
        "Log events",
        "Each line is one JSON object with `time`, `level`, `logger`, `message` and the fields of its event. `message` "
        "is the event's name, always the same text, so that a search or an alert can ask for it. Lines that are "
        "written for one analysis or image also have `analysis`, `study`, `attempt` or `instance`. A line about an "
        "error that nobody foresaw has `error`, the class, and `trace`. `why` is a sentence that names the part and "
        "the setting to check. Names are part of the interface: the changelog tells of a change. Libraries' lines "
        "(uvicorn, Celery) have texts of their own.",
        _table(("message", "level", "fields", "meaning", "logger"), rows),
    )


# -- codes -------------------------------------------------------------------------------------------------------------


@functools.cache
def modules() -> list[ModuleType]:
    """The modules of shared and api that may define codes."""
    return [
        importlib.import_module(found.name)
        for package in (shared, api)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not found.name.startswith(HEAVY)
    ]


def codes() -> list[type[StrEnum]]:
    """Every enum of codes, each once, in the order of their modules."""
    found: dict[str, type[StrEnum]] = {}
    for module in modules():
        for one in vars(module).values():
            if inspect.isclass(one) and issubclass(one, StrEnum) and one.__module__ == module.__name__:
                found[f"{module.__name__}.{one.__name__}"] = one
    return list(found.values())


def words(enum: type[StrEnum]) -> dict[str, str]:
    """What people read for each code, from the fullest table of words; nothing where the code itself is shown."""
    if enum is findings.Assessment:
        return {}
    if enum is findings.AbstentionReason:
        return {
            code: findings.abstention_words(code, "1" if "unread" in code else "") for code in findings.AbstentionReason
        }
    tables = [
        {str(code): text for code, text in table.items()}
        for module in modules()
        for table in vars(module).values()
        if isinstance(table, dict) and all(isinstance(code, enum) and type(text) is str for code, text in table.items())
    ]
    fullest = max(tables, key=len, default={})
    return fullest if len(fullest) * 2 > len(enum) else {}  # a table of a few codes says something else of them


@functools.cache
def codes_page() -> str:
    """Why files are rejected, with DICOM's failure reason, then every enum of codes with its words."""
    rejections = [(_code(one.reason), f"{one.failure:04X}", str(one())) for one in rejections_below(errors.Rejected)]
    parts = []
    for enum in codes():
        meanings = words(enum)
        meant = dict(_MEMBER.findall(inspect.getsource(enum)))
        rows = [
            (_code(code.value), meanings.get(code.value, ""), meant.get(name, ""))
            for name, code in enum.__members__.items()
        ]
        head = ("code", "words shown", "meaning")
        columns = [column for column in zip(head, *rows, strict=True) if any(column[1:])]  # without a column of nothing
        titles, *lines = zip(*columns, strict=True)
        parts += [f"### {enum.__module__}.{enum.__name__}", inspect.cleandoc(enum.__doc__ or ""), _table(titles, lines)]
    return _page(
        "Reason codes",
        "Codes are stored and compared; words are made where they are shown. Programs should compare codes.",
        "## Why a file is rejected",
        "`reason` of a receipt, with the DICOM Failure Reason (0008,1197).",
        _table(("reason", "DICOM", "words"), rejections),
        "## All other codes",
        *parts,
    )


def rejections_below(kind: type[errors.Rejected]) -> Iterator[type[errors.Rejected]]:
    """All classes that derive from one, at any depth."""
    for one in kind.__subclasses__():
        yield one
        yield from rejections_below(one)


# -- the database ------------------------------------------------------------------------------------------------------


@functools.cache
def database_page() -> str:
    """Every table: what it is for, columns, constraints and indexes."""
    classes = {mapper.local_table: mapper.class_ for mapper in Base.registry.mappers}
    parts = []
    for table in sorted(Base.metadata.tables.values(), key=lambda one: one.name):
        owner = classes.get(table)
        parts += [f"## {table.name}", inspect.cleandoc(owner.__doc__ or "") if owner else "", _columns(table)]
        parts += [_constraints(table), _indexes(table)]
    return _page(
        "Database schema",
        "PostgreSQL 15 or newer. Alembic's migrations lead to exactly these tables; a test compares them. Every time "
        "is `timestamp with time zone`, every id a UUID that Osteon makes.",
        *parts,
    )


def _columns(table: Table) -> str:
    rows = []
    for column in table.columns:
        kind = column.type.compile(dialect=DIALECT)
        default = column.server_default
        text = (
            str(getattr(getattr(default, "arg", ""), "text", getattr(default, "arg", "")))
            if default is not None
            else ""
        )
        rows.append((_code(column.name), kind, "yes" if column.nullable else "", _code(text)))
    return _table(("column", "type", "may be null", "server default"), rows)


def _constraints(table: Table) -> str:
    rows = []
    for one in sorted(table.constraints, key=lambda one: (type(one).__name__, str(one.name))):
        if isinstance(one, CheckConstraint):
            rule = f"check {one.sqltext}"
        elif isinstance(one, ForeignKeyConstraint):
            targets = ", ".join(element.target_fullname for element in one.elements)
            rule = f"{', '.join(one.column_keys)} references {targets}" + (
                f" on delete {one.ondelete}" if one.ondelete else ""
            )
        else:
            assert isinstance(one, ColumnCollectionConstraint)
            kind = "unique" if isinstance(one, UniqueConstraint) else "primary key"
            rule = f"{kind} ({', '.join(column.name for column in one.columns)})"
        rows.append((_code(one.name or ""), _code(" ".join(rule.split()))))
    return _table(("constraint", "rule"), rows)


def _indexes(table: Table) -> str:
    rows = [
        (_code(one.name or ""), _code(_definition(one))) for one in sorted(table.indexes, key=lambda one: str(one.name))
    ]
    return _table(("index", "definition"), rows)


def _definition(index: Index) -> str:
    made = str(CreateIndex(index).compile(dialect=DIALECT))
    return ("unique " if index.unique else "") + " ".join(made.partition(" ON ")[2].split())


# -- decisions ---------------------------------------------------------------------------------------------------------


def decisions() -> list[tuple[str, str, str, str, str]]:
    """List number, date, status, title and file of each record in docs/adr; raises ValueError for one without them."""
    found = []
    for path in sorted((DOCS / "adr").glob("[0-9]*.md")):
        text = path.read_text(encoding="utf-8")
        head = re.match(r"# (\d+)\. (.+)\n\n(\d{4}-\d\d-\d\d) · ((?:accepted|superseded).*)\n", text)
        if head is None:
            raise ValueError(f"{path.name} must begin with '# NUMBER. Title', a blank line, and 'DATE · status'")
        found.append((head[1], head[3], head[4], head[2], path.name))
    return found


@functools.cache
def decisions_page() -> str:
    """The list of decision records."""
    rows = [
        (number, date, LINK.sub(r"[\1](../adr/\2)", status), f"[{title}](../adr/{name})")
        for number, date, status, title, name in decisions()
    ]
    pages = "\n".join(f"../adr/{name}" for *_, name in decisions())
    return _page(
        "Decisions",
        "Each record says what was decided, why, and what was rejected. An accepted record is not rewritten: a later "
        "one supersedes it.",
        _table(("number", "date", "status", "title"), rows),
        f"```{{toctree}}\n:hidden:\n\n{pages}\n```",
    )


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "cli.md": cli_page,
    "api.md": api_page,
    "conformance.md": conformance_page,
    "metrics.md": metrics_page,
    "logs.md": logs_page,
    "codes.md": codes_page,
    "database.md": database_page,
    "decisions.md": decisions_page,
}

if __name__ == "__main__":
    write(Path(sys.argv[1]))
