"""Who did it: every route and command that changes something lasting leaves exactly one event, or changes nothing.

A route or command that is in none of the tables below fails the test: who adds one says what it notes, or why nothing.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import typer
from alembic.script import ScriptDirectory
from fastapi.routing import iter_route_contexts
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, func, select, text
from sqlalchemy.orm import Session
from starlette.routing import Mount
from typer.testing import CliRunner, Result

from infra import cli, prepare
from shared.db.engine import Database
from shared.db.tables import AuditEventRow, Base, DeliveryRow, ResultSetRow, StudyRow
from shared.domain.peers import Caller
from shared.domain.security import EventKind, Subject, System
from shared.domain.study import StoredOnly
from shared.queries import refused_kinds
from shared.queries.access import Vault
from shared.queries.audit import difference
from shared.queries.models import add_bundle
from shared.queries.peers import callers, note_refused
from shared.settings import ROOT
from tests.conftest import InProcessApi
from tests.databases import run_sql
from tests.feedback_data import MANIFEST, analyse, study_file
from tests.integration.test_held_files import choose, image, sent, waiting
from worker.maintenance import backfill

SHIPPED = ROOT / "training/bundles/second-look.safetensors"
NO_PART = {"audit_events", "sessions", "key_addresses", "left_objects"}  # of what a request changed
REASON = {"reason": "wrong-patient"}
BOTH_MAY = ("/api/v1/keys", "/api/v1/dicom-", "/api/v1/destinations", "/api/v1/deliveries")  # admins and operators


@dataclass
class AuditedRequest:
    """A request that changes something, and the event that it must leave."""

    url: str
    kind: EventKind
    subject: tuple[Subject, str]
    changes: list[tuple[str, Any, Any]]  # name, before, after
    by: str = "admin"
    study: str | None = None
    send: dict[str, Any] = field(default_factory=dict)
    also: list[EventKind] = field(default_factory=list)  # of other things that it changes, too


# -- what there is to change


def little(name: str) -> bytes:
    """A bundle with the shipped one's manifest and next to no weights."""
    with SHIPPED.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        manifest = json.loads(json.loads(file.read(length))["__metadata__"]["manifest"])
    described = json.dumps(manifest | {"name": name})
    tensors = {"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}
    plain = json.dumps(tensors, separators=(",", ":")).encode()
    plain += b" " * (-len(plain) % 8)
    weights = hashlib.sha256(struct.pack("<Q", len(plain)) + plain + b"\0\0").hexdigest()
    told = {"manifest": described, "manifest_sha256": hashlib.sha256(described.encode()).hexdigest()}
    header = json.dumps({"__metadata__": told | {"weights_sha256": weights}, **tensors}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + b"\0\0"


def digest(content: bytes) -> dict[str, str]:
    sha256 = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return {"Content-Digest": f"sha-256=:{sha256}:"}


def a_study(api: InProcessApi, *, images: int = 1, aside: bool = False) -> str:
    """A study that was analysed; aside: of which nothing could be, so that it is in quarantine."""
    number = uuid4().int % 10**9
    response = api.post({f"{n}.dcm": study_file(number, n) for n in range(1, images + 1)})
    study = str(response.json()["studies"][0]["id"])
    analyse(api, study, unread=images if aside else 0)
    return study


def a_bundle(api: InProcessApi, *, shadow: bool = False) -> str:
    name = f"look-{uuid4().hex[:8]}"
    with api.database.transaction() as session:
        add_bundle(session, name, "0" * 64, MANIFEST)
    if shadow:
        assert api.http.post(f"/api/v1/bundles/{name}/shadow", headers=api.headers("operator")).status_code == 200
    return name


def a_key(api: InProcessApi) -> dict[str, Any]:
    wanted = {"name": f"ct {uuid4().hex[:8]}", "role": "submitter"}
    made: dict[str, Any] = api.http.post("/api/v1/keys", json=wanted, headers=api.headers()).json()
    return made


def a_held_file(api: InProcessApi, *, correction: bool = False) -> tuple[str, str]:
    """A held file's id and its study's: of another patient, or a corrected header."""
    number = uuid4().int % 10**9
    (first,) = sent(api, image(number))
    changed = {"PatientName": "DOE^JANET"} if correction else {"PatientName": "ROE^RICHARD", "PatientID": "0815"}
    sent(api, image(number, 1 if correction else 2, **changed))
    (held,) = [one for one in waiting(api) if one["study_id"] == first["study_id"]]
    return held["id"], first["study_id"]


def release(api: InProcessApi) -> AuditedRequest:
    study = a_study(api, aside=True)
    moved = [("status", "quarantined", "queued"), ("reason", "truncated-pixels", None), ("attempts", 1, 0)]
    return AuditedRequest(
        f"/api/v1/studies/{study}/release", EventKind.STUDY_RELEASED, (Subject.STUDY, study), moved, study=study
    )


def release_reason(api: InProcessApi) -> AuditedRequest:
    study = a_study(api, aside=True)
    (aside,) = api.http.get("/api/v1/quarantine", headers=api.headers()).json()["studies"]
    moved = [("status", "quarantined", "queued"), ("reason", "truncated-pixels", None), ("attempts", 1, 0)]
    body = {"json": {"reason": aside["reason"]}}
    return AuditedRequest(
        "/api/v1/quarantine/release", EventKind.STUDY_RELEASED, (Subject.STUDY, study), moved, study=study, send=body
    )


def dismiss(api: InProcessApi) -> AuditedRequest:
    study = a_study(api, aside=True)
    return AuditedRequest(
        f"/api/v1/quarantine/{study}/dismiss", EventKind.STUDY_DISMISSED, (Subject.STUDY, study),
        [("status", "quarantined", "dismissed")], study=study, send={"json": {"reason": "an old instance"}},
    )  # fmt: skip


def delete_aside(api: InProcessApi) -> AuditedRequest:
    study = a_study(api, aside=True)
    gone = [("status", "quarantined", None), ("images", 1, None)]
    body = {"json": {"reason": "an old instance"}}
    url = f"/api/v1/quarantine/{study}/delete"
    return AuditedRequest(url, EventKind.STUDY_DELETED, (Subject.STUDY, study), gone, study=study, send=body)


def delete_study(api: InProcessApi) -> AuditedRequest:
    study = a_study(api, images=2)
    gone = [("status", "analysed", None), ("images", 2, None)]
    url = f"/api/v1/studies/{study}?reason=wrong-patient"
    return AuditedRequest(url, EventKind.STUDY_DELETED, (Subject.STUDY, study), gone, study=study)


def delete_by_page(api: InProcessApi) -> AuditedRequest:
    study = a_study(api)
    gone = [("status", "analysed", None), ("images", 1, None)]
    url = f"/view/{study}/delete"
    return AuditedRequest(
        url, EventKind.STUDY_DELETED, (Subject.STUDY, study), gone, study=study, send={"data": REASON}
    )


def delete_image(api: InProcessApi) -> AuditedRequest:
    study = a_study(api, images=2)
    with api.database.transaction() as session:
        gone, uid = session.execute(
            text("SELECT id, sop_instance_uid FROM instances WHERE study_id = :study LIMIT 1"), {"study": study}
        ).one()
    moved = [("status", "analysed", "queued"), ("images", 2, 1)]
    url = f"/api/v1/studies/{study}/images/{uid}?reason=wrong-patient"
    return AuditedRequest(url, EventKind.IMAGE_DELETED, (Subject.IMAGE, str(gone)), moved, study=study)


def decided(decision: str, state: str, *, correction: bool = False) -> Callable[[InProcessApi], AuditedRequest]:
    def arranged(api: InProcessApi) -> AuditedRequest:
        held, study = a_held_file(api, correction=correction)
        return AuditedRequest(
            f"/api/v1/held-files/{held}/decision", EventKind.HELD_DECIDED, (Subject.HELD_FILE, held),
            [("state", "open", state)], study=study, send={"json": {"decision": decision, "reason": "console"}},
        )  # fmt: skip

    return arranged


def targets(api: InProcessApi) -> AuditedRequest:
    table = api.http.get("/api/v1/turnaround-targets", headers=api.headers()).json()["minutes"]
    table["positive severe"]["urgent"] -= 3
    return AuditedRequest(
        "/api/v1/turnaround-targets", EventKind.SETTING_CHANGED, (Subject.SETTING, "turnaround-targets"),
        [("table", "built-in", "chosen"), ("positive severe, urgent", 10, 7)], send={"json": {"minutes": table}},
    )  # fmt: skip


def refuse(_api: InProcessApi) -> AuditedRequest:
    kinds = {"not-an-image", "colour", "secondary-capture", "other-modality", "own-result"}
    return AuditedRequest(
        "/api/v1/refused-kinds", EventKind.SETTING_CHANGED, (Subject.SETTING, "refused-kinds"),
        [
            ("table", "built-in", "chosen"), ("colour", None, "refused"),
            *((kind, None, "kept") for kind in kinds - {"colour"}),
        ],
        send={"json": {"kinds": ["colour"]}},
    )  # fmt: skip


def choose_results(_api: InProcessApi) -> AuditedRequest:
    return AuditedRequest(
        "/api/v1/result-choices", EventKind.SETTING_CHANGED, (Subject.SETTING, "result-choices"),
        [("probability", "not-stated", "stated")],
        send={"json": {"states_probability": True, "capture_modality": "OT"}},
    )  # fmt: skip


def accept_check(_api: InProcessApi) -> AuditedRequest:
    return AuditedRequest(
        "/api/v1/checks", EventKind.SETTING_CHANGED, (Subject.SETTING, "check-expectation"),
        [("findings", "expected", "accepted")], by="operator", send={"json": {"accept": True}},
    )  # fmt: skip


def store(_api: InProcessApi) -> AuditedRequest:
    content = little(name := f"look-{uuid4().hex[:8]}")
    new = [("state", None, "available"), ("sha256", None, hashlib.sha256(content).hexdigest())]
    send = {"content": content, "headers": digest(content)}
    return AuditedRequest(
        "/api/v1/bundles", EventKind.MODEL_STORED, (Subject.MODEL, name), new, by="operator", send=send
    )


def shadow(api: InProcessApi) -> AuditedRequest:
    name = a_bundle(api)
    moved = [("state", "available", "shadow"), ("studies", None, 5)]
    url, send = f"/api/v1/bundles/{name}/shadow", {"json": {"limit": 5}}
    return AuditedRequest(url, EventKind.MODEL_SHADOWED, (Subject.MODEL, name), moved, by="operator", send=send)


def retire(api: InProcessApi) -> AuditedRequest:
    name = a_bundle(api, shadow=True)
    moved = [("state", "shadow", "available")]
    return AuditedRequest(
        f"/api/v1/bundles/{name}/retire", EventKind.MODEL_RETIRED, (Subject.MODEL, name), moved, by="operator"
    )


def activate(api: InProcessApi) -> AuditedRequest:
    first, name = a_bundle(api), a_bundle(api, shadow=True)
    assert api.http.post(f"/api/v1/bundles/{first}/activate", headers=api.headers("operator")).status_code == 200
    moved = [("active", first, name), ("state", "shadow", "active")]
    return AuditedRequest(
        f"/api/v1/bundles/{name}/activate", EventKind.MODEL_ACTIVATED, (Subject.MODEL, name), moved, by="operator"
    )


def make_key(_api: InProcessApi) -> AuditedRequest:
    made = [("state", None, "valid"), ("role", None, "submitter")]
    body = {"json": {"name": f"ct {uuid4().hex[:8]}", "role": "submitter"}}
    return AuditedRequest("/api/v1/keys", EventKind.KEY_MADE, (Subject.KEY, "?"), made, send=body)


def make_site(_api: InProcessApi) -> AuditedRequest:
    site = f"north {uuid4().hex[:8]}"
    made = [("state", None, "valid"), ("role", None, "admin, operator")]
    wanted = {"name": "ada", "role": "admin", "operates": True, "site": site, "new_site": True}
    return AuditedRequest(
        "/api/v1/keys", EventKind.KEY_MADE, (Subject.KEY, "?"), made, by="operator", send={"json": wanted},
        also=[EventKind.SITE_MADE],
    )  # fmt: skip


def revoke(api: InProcessApi) -> AuditedRequest:
    made = a_key(api)
    moved = [("state", "valid", "revoked")]
    return AuditedRequest(f"/api/v1/keys/{made['id']}/revoke", EventKind.KEY_REVOKED, (Subject.KEY, made["id"]), moved)


def a_peer(api: InProcessApi, *, disabled: bool = False) -> str:
    title, operator = f"CT{uuid4().hex[:8]}", api.headers("operator")  # there are several sites: operators decide
    made = api.http.post("/api/v1/dicom-peers", json={"calling_ae": title}, headers=operator).json()
    if disabled:
        assert api.http.post(f"/api/v1/dicom-peers/{made['id']}/disable", headers=operator).is_success
    return str(made["id"])


def admitted(title: str, address: str | None) -> list[tuple[str, Any, Any]]:
    return [
        ("state", None, "enabled"), ("calling_ae", None, title), ("called_ae", None, "OSTEON"),
        ("may_send", None, True), ("may_commit", None, False),
        *([("address", None, address)] if address else []),
    ]  # fmt: skip


def add_peer(_api: InProcessApi) -> AuditedRequest:
    title = f"CT{uuid4().hex[:8]}"
    body = {"json": {"calling_ae": title}}
    return AuditedRequest(
        "/api/v1/dicom-peers", EventKind.PEER_ADMITTED, (Subject.PEER, "?"), admitted(title, None), by="operator", send=body
    )  # fmt: skip


def admit_caller(api: InProcessApi) -> AuditedRequest:
    title = f"CT{uuid4().hex[:8]}"
    with api.database.transaction() as session:
        note_refused(session, Caller(title, "OSTEON", "10.1.2.3"))
        (row,) = [one for one in callers(session, None) if one.calling_ae == title]
    url = f"/api/v1/dicom-callers/{row.id}/admit"
    return AuditedRequest(
        url, EventKind.PEER_ADMITTED, (Subject.PEER, "?"), admitted(title, "10.1.2.3"), by="operator", send={"json": {}}
    )


def change_peer(api: InProcessApi) -> AuditedRequest:
    peer = a_peer(api)
    (row,) = [
        one for one in api.http.get("/api/v1/dicom-peers", headers=api.headers("operator")).json() if one["id"] == peer
    ]
    wanted = {"calling_ae": row["calling_ae"], "address": "10.1.2.0/24", "silent_after_h": 48, "issuer": "NORTH"}
    moved = [("address", None, "10.1.2.0/24"), ("silent_after_h", None, 48), ("issuer", None, "NORTH")]
    return AuditedRequest(
        f"/api/v1/dicom-peers/{peer}",
        EventKind.PEER_CHANGED,
        (Subject.PEER, peer),
        moved,
        by="operator",
        send={"json": wanted},
    )


def disable_peer(api: InProcessApi) -> AuditedRequest:
    peer = a_peer(api)
    moved = [("state", "enabled", "disabled")]
    return AuditedRequest(
        f"/api/v1/dicom-peers/{peer}/disable", EventKind.PEER_DISABLED, (Subject.PEER, peer), moved, by="operator"
    )


def enable_peer(api: InProcessApi) -> AuditedRequest:
    peer = a_peer(api, disabled=True)
    moved = [("state", "disabled", "enabled")]
    return AuditedRequest(
        f"/api/v1/dicom-peers/{peer}/enable", EventKind.PEER_ENABLED, (Subject.PEER, peer), moved, by="operator"
    )


FOLDER = {"kind": "folder", "folder": "pacs"}
RULES_TOLD = ("rule 1", None, "complete: sc-overlay sc-summary sr-outlines sr-statements")


def a_destination(api: InProcessApi, *, disabled: bool = False) -> str:
    body = {**FOLDER, "name": f"to {uuid4().hex[:8]}"}
    made = api.http.post("/api/v1/destinations", json=body, headers=api.headers()).json()
    if disabled:
        assert api.http.post(f"/api/v1/destinations/{made['id']}/disable", headers=api.headers()).is_success
    return str(made["id"])


def a_delivery(api: InProcessApi, study: str, destination: str) -> str:
    """A delivery that has failed."""
    with api.database.transaction() as session:
        row = session.get_one(StudyRow, UUID(study))
        made = ResultSetRow(site_id=row.site_id, study_id=row.id, occasion="asked", state="made")
        session.add(made)
        session.flush()
        failed = DeliveryRow(
            site_id=row.site_id, study_id=row.id, set_id=made.id, destination_id=UUID(destination), state="failed",
            reason="refused", tried_until=func.now(),
        )  # fmt: skip
        session.add(failed)
        session.flush()
        return str(failed.id)


def add_destination(_api: InProcessApi) -> AuditedRequest:
    name = f"to {uuid4().hex[:8]}"
    moved = [
        ("name", None, name), ("kind", None, "folder"), ("calling_ae", None, "OSTEON"), ("folder", None, "pacs"),
        RULES_TOLD,
    ]  # fmt: skip
    body = {"json": {**FOLDER, "name": name}}
    return AuditedRequest(
        "/api/v1/destinations", EventKind.DESTINATION_ADDED, (Subject.DESTINATION, "?"), moved, send=body
    )


def change_destination(api: InProcessApi) -> AuditedRequest:
    made = a_destination(api)
    return AuditedRequest(
        f"/api/v1/destinations/{made}", EventKind.DESTINATION_CHANGED, (Subject.DESTINATION, made),
        [("folder", "pacs", "other")], send={"json": {**FOLDER, "folder": "other"}},
    )  # fmt: skip


def change_rules(api: InProcessApi) -> AuditedRequest:
    made = a_destination(api)
    return AuditedRequest(
        f"/api/v1/destinations/{made}/rules", EventKind.DESTINATION_CHANGED, (Subject.DESTINATION, made),
        [(RULES_TOLD[0], RULES_TOLD[2], "agreed: pdf")], send={"json": [{"when": "agreed", "kinds": ["pdf"]}]},
    )  # fmt: skip


def switch_destination(*, on: bool) -> Callable[[InProcessApi], AuditedRequest]:
    def switch(api: InProcessApi) -> AuditedRequest:
        made = a_destination(api, disabled=on)
        verb, kind = ("enable", EventKind.DESTINATION_ENABLED) if on else ("disable", EventKind.DESTINATION_DISABLED)
        moved = [("state", "disabled", "enabled") if on else ("state", "enabled", "disabled")]
        return AuditedRequest(f"/api/v1/destinations/{made}/{verb}", kind, (Subject.DESTINATION, made), moved)

    return switch


def a_webhook(api: InProcessApi) -> str:
    body = {"kind": "webhook", "url": "https://hooks.example/osteon", "name": f"to {uuid4().hex[:8]}"}
    made = api.http.post("/api/v1/destinations", json=body, headers=api.headers())
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def replace_secret(api: InProcessApi) -> AuditedRequest:
    """Neither secret is told: their numbers are."""
    made = a_webhook(api)
    return AuditedRequest(
        f"/api/v1/destinations/{made}/secret", EventKind.DESTINATION_CHANGED, (Subject.DESTINATION, made),
        [("secret", "1", "2")], send={"json": {}},
    )  # fmt: skip


def retry_delivery(*, all_: bool) -> Callable[[InProcessApi], AuditedRequest]:
    def retry(api: InProcessApi) -> AuditedRequest:
        study, made = a_study(api), a_destination(api)
        failed = a_delivery(api, study, made)
        url = f"/api/v1/destinations/{made}/retry" if all_ else f"/api/v1/deliveries/{failed}/send"
        moved = [("state", "failed", "waiting"), ("reason", "refused", None)]
        return AuditedRequest(url, EventKind.DELIVERY_RETRIED, (Subject.STUDY, study), moved, study=study)

    return retry


def ask_results(api: InProcessApi) -> AuditedRequest:
    study = a_study(api)
    return AuditedRequest(
        f"/api/v1/studies/{study}/results", EventKind.RESULTS_ASKED, (Subject.STUDY, study), [], study=study
    )


# Method and path, to what the request changes; or to why it leaves no event
ROUTES: dict[tuple[str, str], list[Callable[[InProcessApi], AuditedRequest]] | str] = {
    ("POST", "/api/v1/studies/{study_id}/release"): [release],
    ("POST", "/api/v1/quarantine/release"): [release_reason],
    ("POST", "/api/v1/quarantine/{study_id}/dismiss"): [dismiss],
    ("POST", "/api/v1/quarantine/{study_id}/delete"): [delete_aside],
    ("DELETE", "/api/v1/studies/{study_id}"): [delete_study],
    ("DELETE", "/api/v1/studies/{study_id}/images/{sop_instance_uid}"): [delete_image],
    ("POST", "/view/{study_id}/delete"): [delete_by_page],
    ("POST", "/api/v1/held-files/{held_id}/decision"): [
        decided("another-study", "another-study"),
        decided("same-patient", "same-patient"),
        decided("reject", "rejected"),
        decided("apply", "applied", correction=True),
    ],
    ("PUT", "/api/v1/turnaround-targets"): [targets],
    ("PUT", "/api/v1/refused-kinds"): [refuse],
    ("PUT", "/api/v1/result-choices"): [choose_results],
    ("POST", "/api/v1/bundles"): [store],
    ("POST", "/api/v1/bundles/{name}/shadow"): [shadow],
    ("POST", "/api/v1/bundles/{name}/retire"): [retire],
    ("POST", "/api/v1/bundles/{name}/activate"): [activate],
    ("POST", "/api/v1/keys"): [make_key, make_site],
    ("POST", "/api/v1/keys/{key_id}/revoke"): [revoke],
    ("POST", "/api/v1/dicom-peers"): [add_peer],
    ("PUT", "/api/v1/dicom-peers/{peer_id}"): [change_peer],
    ("POST", "/api/v1/dicom-peers/{peer_id}/disable"): [disable_peer],
    ("POST", "/api/v1/dicom-peers/{peer_id}/enable"): [enable_peer],
    ("POST", "/api/v1/dicom-callers/{caller_id}/admit"): [admit_caller],
    ("POST", "/api/v1/destinations"): [add_destination],
    ("PUT", "/api/v1/destinations/{destination_id}"): [change_destination],
    ("PUT", "/api/v1/destinations/{destination_id}/rules"): [change_rules],
    ("POST", "/api/v1/destinations/{destination_id}/secret"): [replace_secret],
    ("POST", "/api/v1/destinations/{destination_id}/disable"): [switch_destination(on=False)],
    ("POST", "/api/v1/destinations/{destination_id}/enable"): [switch_destination(on=True)],
    ("POST", "/api/v1/destinations/{destination_id}/retry"): [retry_delivery(all_=True)],
    ("POST", "/api/v1/destinations/{destination_id}/test"): "changes nothing; the outcome stands at the destination",
    ("POST", "/api/v1/deliveries/{delivery_id}/send"): [retry_delivery(all_=False)],
    ("POST", "/api/v1/studies/{study_id}/results"): [ask_results],
    ("POST", "/api/v1/checks"): [accept_check],
    (
        "POST",
        "/api/v1/studies",
    ): "what was sent, by which key and when stands in uploads, upload_usage and GET /api/v1/arrivals",
    ("POST", "/dicom-web/studies"): "as POST /api/v1/studies",
    ("POST", "/dicom-web/studies/{study}"): "as POST /api/v1/studies",
    ("POST", "/api/v1/studies/states"): "changes nothing",
    ("POST", "/api/v1/studies/arrived"): "changes nothing; the question stands in identity_searches",
    ("POST", "/api/v1/worklist/search"): "changes nothing; the search stands in identity_searches",
    ("POST", "/search"): "as POST /api/v1/worklist/search",
    ("POST", "/api/v1/studies/{study_id}/feedback"): "the feedback log says who, when and what",
    ("POST", "/api/v1/studies/{study_id}/feedback/{entry_id}/undo"): "the feedback log",
    ("POST", "/view/{study_id}/done"): "the feedback log",
    ("POST", "/api/v1/revised-findings/{revised_id}/seen"): "the feedback log",
    ("POST", "/revised/{revised_id}/seen"): "the feedback log",
    ("POST", "/view/{study_id}/seen/{revised_id}"): "the feedback log",
    ("POST", "/api/v1/studies/{study_id}/lock"): "reading_locks say who, from when to when, and from whom",
    ("DELETE", "/api/v1/studies/{study_id}/lock/{token}"): "reading_locks",
    ("POST", "/api/v1/filters"): "belongs to one key, and nobody else sees it",
    ("PATCH", "/api/v1/filters/{filter_id}"): "belongs to one key",
    ("DELETE", "/api/v1/filters/{filter_id}"): "belongs to one key",
    ("POST", "/login"): "the event login: see test_security_events.py",
    ("POST", "/logout"): "the event logout: see test_security_events.py",
    ("POST", "/active"): "the time of a login's last use",
}


# -- the rule


def mutating(app: Any) -> Iterator[tuple[str, str]]:
    """Every route that may change something, by its method."""
    for route in iter_route_contexts(app.routes):
        if not isinstance(route.original_route, Mount):
            for method in sorted(set(route.methods or ()) - {"GET", "HEAD", "OPTIONS"}):
                yield method, str(route.path)


def test_every_route_says_what_it_notes(in_process: InProcessApi) -> None:
    """A route that may change something and is not in the table, or one that is gone, is a mistake."""
    assert set(mutating(in_process.http.app)) == set(ROUTES)


def all_rows(api: InProcessApi) -> dict[str, str]:
    """Every row of every table that a request could change, as one digest a table."""
    tables = sorted(set(Base.metadata.tables) - NO_PART)
    parts = ", ".join(f"(SELECT md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM {one} AS t)" for one in tables)
    with api.database.transaction() as session:
        return dict(zip(tables, session.execute(text(f"SELECT {parts}")).one(), strict=True))


def noted(api: InProcessApi, after: int = 0) -> list[AuditEventRow]:
    with api.database.transaction() as session:
        order = select(AuditEventRow).where(AuditEventRow.id > after).order_by(AuditEventRow.id)
        return list(session.scalars(order))


@contextmanager
def no_event_is_written() -> Iterator[None]:
    """Each attempt to write an event fails."""

    def refuse(*_: object) -> None:
        raise RuntimeError("no room for an event")

    event.listen(AuditEventRow, "before_insert", refuse)
    try:
        yield
    finally:
        event.remove(AuditEventRow, "before_insert", refuse)


@contextmanager
def no_commit_after_an_event() -> Iterator[None]:
    """A transaction that has written an event fails at its end."""

    def mark(session: Session, _context: object) -> None:
        session.info["wrote"] = any(isinstance(one, AuditEventRow) for one in session.new) or session.info.get("wrote")

    def refuse(session: Session) -> None:
        session.flush()
        if session.info.get("wrote"):
            raise RuntimeError("the connection is lost")

    event.listen(Session, "after_flush", mark)
    event.listen(Session, "before_commit", refuse)
    try:
        yield
    finally:
        event.remove(Session, "after_flush", mark)
        event.remove(Session, "before_commit", refuse)


def asked(api: InProcessApi, method: str, ask: AuditedRequest, role: str) -> Any:
    send = dict(ask.send)
    headers = api.headers(role) | send.pop("headers", {})
    return api.http.request(method, ask.url, headers=headers, follow_redirects=False, **send)


@pytest.fixture
def ready(in_process: InProcessApi) -> InProcessApi:
    """The API, to which every key has spoken before: its first use is an event, too."""
    for role in in_process.keys:
        in_process.http.get("/active", headers=in_process.headers(role))
    return in_process


CASES = [(*route, make) for route, makers in ROUTES.items() if not isinstance(makers, str) for make in makers]


def test_a_change_and_its_event_are_there_together_or_not_at_all(ready: InProcessApi) -> None:
    """Refused, or failing at the event or at the commit, a request changes no row; done, it leaves exactly one event."""
    api = ready
    for method, path, make in CASES:
        ask, where = make(api), f"{method} {path}"
        rows, last = all_rows(api), noted(api)[-1].id
        for role in {"submitter", "radiologist", "admin" if ask.by == "operator" else "operator"} - {ask.by}:
            if path.startswith(BOTH_MAY) and role in ("admin", "operator"):
                continue  # both may
            assert asked(api, method, ask, role).status_code == 403, (where, role)
        for fault in (no_event_is_written, no_commit_after_an_event):
            with fault():
                assert asked(api, method, ask, ask.by).status_code == 500, (where, fault.__name__)
        assert (all_rows(api), noted(api, last)) == (rows, []), where

        response = asked(api, method, ask, ask.by)
        assert response.status_code in (200, 201, 202, 303), (where, response.text)
        assert all_rows(api) != rows, where
        found = noted(api, last)
        assert sorted(one.kind for one in found) == sorted([ask.kind, *ask.also]), where
        (row,) = [one for one in found if one.kind == ask.kind]
        assert (row.actor, row.key_id, row.address) == (ask.by, api.key(ask.by).id, "testclient"), where
        kind, subject = ask.subject
        wanted = response.json()["id"] if subject == "?" else subject
        assert (row.subject_kind, row.subject_id) == (kind, wanted), where
        assert (str(row.study_id) if row.study_id else None) == ask.study, where
        before, after = row.before or {}, row.after or {}
        names = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
        assert [(name, before.get(name), after.get(name)) for name in names] == sorted(ask.changes), where
        (shown,) = api.http.get(
            "/api/v1/audit-events",
            params={"subject": wanted, "kind": ask.kind, "limit": 1},
            headers=api.headers("operator"),
        ).json()["events"]
        assert {(one["name"], one["before"], one["after"]) for one in shown["changes"]} == {
            (name, None if old is None else str(old), None if new is None else str(new))
            for name, old, new in ask.changes
        }, where
        assert "unknown" not in shown["words"], where


def test_what_changes_nothing_leaves_no_event(ready: InProcessApi) -> None:
    """The same again, and what is refused for what it asks, are no events."""
    api, operator, admin = ready, ready.headers("operator"), ready.headers()
    content = little("same")
    study, name, held, made = a_study(api), a_bundle(api), a_held_file(api)[0], a_key(api)
    table = api.http.get("/api/v1/turnaround-targets", headers=admin).json()["minutes"]
    last = 0
    for again in (False, True):
        assert api.http.post("/api/v1/bundles", content=content, headers=operator | digest(content)).is_success
        assert api.http.post(f"/api/v1/bundles/{name}/activate", headers=operator).is_success
        assert choose(api, held, "reject", "console").status_code == 200
        assert api.http.put("/api/v1/turnaround-targets", json={"minutes": table}, headers=admin).is_success
        assert api.http.post(f"/api/v1/keys/{made['id']}/revoke", headers=admin).is_success
        last = last if again else noted(api)[-1].id
    for method, url, body, headers in (
        ("POST", f"/api/v1/bundles/{name}/retire", None, operator),  # it is no shadow
        ("POST", f"/api/v1/bundles/{name}/shadow", None, operator),  # it is active
        ("POST", "/api/v1/bundles/nowhere/activate", None, operator),
        (
            "POST",
            f"/api/v1/held-files/{held}/decision",
            {"decision": "same-patient"},
            admin,
        ),  # it was decided otherwise
        ("POST", f"/api/v1/studies/{study}/release", None, admin),  # nothing of it was set aside
        ("POST", "/api/v1/keys", {"name": made["name"], "role": "submitter"}, admin),  # the name is taken
        (
            "POST",
            "/api/v1/keys",
            {"name": "System:beat", "role": "submitter"},
            admin,
        ),  # nobody passes for Osteon itself
        ("PUT", "/api/v1/turnaround-targets", {"minutes": table | {"positive": table["negative"]}}, admin),
        ("POST", "/api/v1/quarantine/release", {"reason": "no-image"}, admin),
    ):
        response = api.http.request(method, url, json=body, headers=headers)
        assert response.status_code in (200, 400, 404, 409, 422), (url, response.text)
    assert noted(api, last) == []


def test_changes_at_once_are_told_one_after_the_other(ready: InProcessApi) -> None:
    """Of several who change one thing at once, each event tells as before what the one before it tells as after."""
    api, names = ready, [a_bundle(ready) for _ in range(3)]
    table = api.http.get("/api/v1/turnaround-targets", headers=api.headers()).json()["minutes"]

    def change(number: int) -> None:
        mine = table | {"positive severe": table["positive severe"] | {"urgent": 1 + number}}
        responses = (
            api.http.post(f"/api/v1/bundles/{names[number % 3]}/activate", headers=api.headers("operator")),
            api.http.put("/api/v1/turnaround-targets", json={"minutes": mine}, headers=api.headers()),
        )
        assert all(response.is_success for response in responses)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(9)))
    for kind, value in ((EventKind.MODEL_ACTIVATED, "active"), (EventKind.SETTING_CHANGED, "positive severe, urgent")):
        told = [((one.before or {})[value], (one.after or {})[value]) for one in noted(api) if one.kind == kind]
        assert len(told) > 1
        assert [before for before, _ in told[1:]] == [after for _, after in told[:-1]]


def test_filters_and_pages_of_events(ready: InProcessApi) -> None:
    """By kind, actor and subject, alone and together, page by page; a site is shown its own events only."""
    api = ready
    ask = delete_image(api)
    assert asked(api, "DELETE", ask, "admin").is_success
    names = [a_bundle(api, shadow=True) for _ in range(3)]

    def get(role: str = "operator", **wanted: Any) -> list[tuple[str, str | None]]:
        found, before = [], None
        while True:
            page = api.http.get(
                "/api/v1/audit-events",
                params={"limit": 2, **wanted, **({"before": before} if before else {})},
                headers=api.headers(role),
            )
            assert page.status_code == 200, page.text
            found += [(one["kind"], one["subject_id"]) for one in page.json()["events"]]
            if (before := page.json()["next"]) is None:
                return found

    assert get(kind="model-shadowed") == [("model-shadowed", name) for name in reversed(names)]
    assert get(kind=["model-shadowed", "image-deleted"])[-1] == ("image-deleted", ask.subject[1])
    assert get(actor="operator", subject=names[1]) == [("model-shadowed", names[1])]
    assert get(actor="admin", subject=names[1]) == []
    assert get("admin", kind="model-shadowed") == []
    for subject in (ask.study, str(ask.study)[:8], ask.subject[1]):
        assert get("admin", subject=subject) == [("image-deleted", ask.subject[1])]
    assert get(subject="%", kind="model-shadowed") == []
    assert api.http.get("/api/v1/audit-events?kind=nothing", headers=api.headers()).status_code == 422
    page = api.http.get(
        f"/operations?kind=model-shadowed&subject={names[0]}", headers=api.headers("operator", page=True)
    ).text
    assert (page.count("let the model"), f"let the model {names[0]}" in page) == (1, True)
    for wrong in ("kind=nothing", "before=x", "before=" + "9" * 30, "actor=%00"):
        assert api.http.get(f"/operations?{wrong}", headers=api.headers(page=True)).status_code == 400, wrong
    old = api.http.get("/security-events", params={"kind": "model-shadowed"}, headers=api.headers("operator"))
    assert [one["subject_id"] for one in old.json()["events"]] == list(reversed(names))


STATES = st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers(0, 2) | st.sampled_from(["x", "y"]))


@given(STATES, STATES)
def test_a_difference_leads_from_one_state_to_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    """It names what differs and nothing else; a value that is None is as one that is not there."""
    old, new = difference(before, after)
    assert set(old) == set(new) == {name for name in "abcd" if before.get(name) != after.get(name)}
    there = {name: value for name, value in {**before, **new}.items() if value is not None}
    assert there == {name: value for name, value in after.items() if value is not None}


def test_no_word_of_a_patient(ready: InProcessApi) -> None:
    """Neither names, numbers, reasons in words nor what a header says stands in an event."""
    api = ready
    for make in (decided("reject", "rejected"), decided("apply", "applied", correction=True), dismiss, delete_by_page):
        ask = make(api)
        assert asked(api, "POST", ask, ask.by).status_code in (200, 303)
    told = " ".join(str(vars(one)) for one in noted(api))
    for word in ("DOE", "ROE", "4711", "0815", "ZEBRA", "console", "old instance"):
        assert word not in told, word


# -- what acts without a key


def test_preparing_is_noted_once(ready: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site, its keys and the bundle are made by system:prepare; made again, nothing is noted."""
    api = ready
    config = api.settings.model_copy(update={"site": "prepared"})
    monkeypatch.setenv("OSTEON_KEY_ADMIN", "osk_prepared_admin")
    monkeypatch.setenv("OSTEON_KEY_SUBMITTER", "osk_prepared_submitter")
    path = config.home / "little.safetensors"
    path.write_bytes(little("prepared"))
    last = noted(api)[-1].id
    for _ in range(2):
        prepare.make_keys(config, api.database)
        prepare.store_bundle_file(config, api.database, path, activate=False)
    found = noted(api, last)
    assert [(one.kind, one.actor, one.key_id) for one in found] == [
        (kind, System.PREPARE, None)
        for kind in ("site-made", "key-made", "key-made", "model-stored", "model-activated")
    ]
    assert (found[-1].before, found[-1].after) == (
        {"active": None, "state": "available"},
        {"active": "prepared", "state": "active"},
    )


def test_another_identity_key_is_noted(ready: InProcessApi) -> None:
    """It is accepted once, by system:prepare; the right key is nothing to accept."""
    api = ready
    prepare.check_identity_key(api.settings, api.database, accept=True)
    with api.database.transaction() as session:
        other = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
        Vault(other).accept_key(session)
    last = noted(api)[-1].id
    for _ in range(2):
        prepare.check_identity_key(api.settings, api.database, accept=True)
    (one,) = noted(api, last)
    assert (one.kind, one.actor, one.subject_id) == ("identity-key-accepted", System.PREPARE, "identity-key")


def test_a_backfill_run_is_begun_by_the_schedule_or_by_a_worker(ready: InProcessApi) -> None:
    """Once a day, whoever opens it."""
    api = ready
    name = a_bundle(api)
    assert api.http.post(f"/api/v1/bundles/{name}/activate", headers=api.headers("operator")).is_success
    with api.database.transaction() as session:
        session.execute(text("UPDATE bundles SET activated_at = activated_at - interval '3 days' WHERE active"))
        now = session.scalar(text("SELECT now()"))
    publisher, last = api.http.app.state.parts.publisher, noted(api)[-1].id  # type: ignore[attr-defined]
    utc = now.astimezone(UTC)
    config = api.settings.model_copy(update={"backfill_hour": utc.hour, "backfill_timezone": "UTC"})
    backfill.send_batches(config, api.database, publisher)
    backfill.start_run(config, api.database, publisher)
    backfill.start_run(config, api.database, publisher, utc + timedelta(days=300))
    found = noted(api, last)
    assert [(one.kind, one.actor) for one in found] == [
        ("run-begun", System.SWEEPER),
        ("run-begun", System.BEAT),
    ]
    assert (found[0].after or {})["model"] == name


# -- commands


COMMANDS: dict[str, Callable[[InProcessApi], tuple[list[str], EventKind]] | str] = {}


def changes(*words: str) -> Callable[[Any], Any]:
    """The function arranges what these commands need, and says how to call them and what they note."""

    def known(arrange: Any) -> Any:
        COMMANDS.update(dict.fromkeys([" ".join(words)], arrange))
        return arrange

    return known


@changes("release")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["release", a_study(api, aside=True)], EventKind.STUDY_RELEASED


@changes("quarantine", "dismiss")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    words = ["quarantine", "dismiss", a_study(api, aside=True), "--reason", "old"]
    return words, EventKind.STUDY_DISMISSED


@changes("quarantine", "delete")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    words = ["quarantine", "delete", a_study(api, aside=True), "--reason", "old", "--yes"]
    return words, EventKind.STUDY_DELETED


@changes("delete")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["delete", a_study(api), "--reason", "wrong-patient", "--yes"], EventKind.STUDY_DELETED


@changes("activate")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["activate", a_bundle(api)], EventKind.MODEL_ACTIVATED


@changes("shadow")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["shadow", a_bundle(api)], EventKind.MODEL_SHADOWED


@changes("shadow --retire")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["shadow", "--retire", a_bundle(api, shadow=True)], EventKind.MODEL_RETIRED


@changes("keys", "add")
def _(_api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["keys", "add", f"ct {uuid4().hex[:8]}", "--role", "submitter"], EventKind.KEY_MADE


@changes("keys", "revoke")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["keys", "revoke", a_key(api)["name"]], EventKind.KEY_REVOKED


@changes("revoke")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["revoke", a_key(api)["name"]], EventKind.KEY_REVOKED


def peer_named(api: InProcessApi, *, disabled: bool = False) -> str:
    peer = a_peer(api, disabled=disabled)
    found = api.http.get("/api/v1/dicom-peers", headers=api.headers("operator")).json()
    return next(str(one["name"]) for one in found if one["id"] == peer)


@changes("peers", "add")
def _(_api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["peers", "add", f"CT{uuid4().hex[:8]}"], EventKind.PEER_ADMITTED


@changes("peers", "admit")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    title = f"CT{uuid4().hex[:8]}"
    with api.database.transaction() as session:
        note_refused(session, Caller(title, "OSTEON", "10.1.2.3"))
    return ["peers", "admit", title], EventKind.PEER_ADMITTED


@changes("peers", "change")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["peers", "change", peer_named(api), "--address", "10.1.2.0/24"], EventKind.PEER_CHANGED


@changes("peers", "disable")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["peers", "disable", peer_named(api)], EventKind.PEER_DISABLED


@changes("peers", "enable")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["peers", "enable", peer_named(api, disabled=True)], EventKind.PEER_ENABLED


def destination_named(api: InProcessApi, *, disabled: bool = False) -> str:
    made = a_destination(api, disabled=disabled)
    found = api.http.get("/api/v1/destinations", headers=api.headers()).json()
    return next(str(one["name"]) for one in found if one["id"] == made)


@changes("destinations", "add")
def _(_api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["destinations", "add", f"to {uuid4().hex[:8]}", "folder:pacs"], EventKind.DESTINATION_ADDED


@changes("destinations", "change")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["destinations", "change", destination_named(api), "--where", "folder:o"], EventKind.DESTINATION_CHANGED


@changes("destinations", "rules")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["destinations", "rules", destination_named(api), "--when", "agreed"], EventKind.DESTINATION_CHANGED


@changes("destinations", "secret")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    made = a_webhook(api)
    found = api.http.get("/api/v1/destinations", headers=api.headers()).json()
    name = next(str(one["name"]) for one in found if one["id"] == made)
    return ["destinations", "secret", name], EventKind.DESTINATION_CHANGED


@changes("destinations", "disable")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["destinations", "disable", destination_named(api)], EventKind.DESTINATION_DISABLED


@changes("destinations", "enable")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["destinations", "enable", destination_named(api, disabled=True)], EventKind.DESTINATION_ENABLED


@changes("destinations", "retry")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    name = destination_named(api)
    found = api.http.get("/api/v1/destinations", headers=api.headers()).json()
    a_delivery(api, a_study(api), next(one["id"] for one in found if one["name"] == name))
    return ["destinations", "retry", name], EventKind.DELIVERY_RETRIED


READS_ONLY = "changes nothing in an installation"


@changes("refused-kinds", "choose")
def _(_api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["refused-kinds", "choose", "colour"], EventKind.SETTING_CHANGED


@changes("result-choices", "choose")
def _(_api: InProcessApi) -> tuple[list[str], EventKind]:
    return ["result-choices", "choose", "--capture-modality", "CR"], EventKind.SETTING_CHANGED


@changes("refused-kinds", "reset")
def _(api: InProcessApi) -> tuple[list[str], EventKind]:
    with api.database.transaction() as session:
        refused_kinds.choose(session, api.key(), [StoredOnly.COLOUR])
    return ["refused-kinds", "reset"], EventKind.SETTING_CHANGED


COMMANDS |= dict.fromkeys(
    ["worklist", "status", "bundles", "compare-bundles", "backfill", "backtest", "events", "quarantine list", "keys list",
     "peers list", "refused-kinds show", "result-choices show", "destinations list", "destinations test", "results", "deliver", "keys show", "feedback verify", "predict", "train", "compare", "evaluate", "export", "card"],
    READS_ONLY,
)  # fmt: skip
COMMANDS |= {
    "submit": "as POST /api/v1/studies",
    "check": "as POST /api/v1/checks, which says what leaves an event",
    "conformance": "as a sender and a viewer do, and DELETE /api/v1/studies/ID",
    "feedback export": "the event export, as GET /api/v1/feedback: see test_remote_commands.py",
    "arrivals": "the event export, as GET /api/v1/arrivals: see test_remote_commands.py",
    "dicom": "takes files in, as POST /api/v1/studies",
    "up": "prepares an installation: see test_preparing_is_noted_once",
    "demo": "as up",
    "down": "stops an installation, or removes it with its events",
}


def leaves(group: Any, *before: str) -> Iterator[str]:
    """The commands of a group, each with its whole name."""
    for name, command in group.commands.items():
        if command.hidden:  # an old name of another one
            continue
        if hasattr(command, "commands"):
            yield from leaves(command, *before, name)
        else:
            yield " ".join((*before, name))


def test_every_command_says_what_it_notes() -> None:
    """A command that is not in the table, or one that is gone, is a mistake."""
    assert {name for name in COMMANDS if " --" not in name} == set(leaves(typer.main.get_command(cli.app)))


def test_commands_leave_their_events(ready: InProcessApi, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command that changes something lasting: exactly one event, of its key; none when it is refused."""
    api = ready
    assert address

    def run(words: list[str], role: str) -> Result:
        monkeypatch.setenv("OSTEON_KEY", api.keys[role])
        return CliRunner().invoke(cli.app, words)

    for role in api.keys:
        run(["keys", "list"], role)  # its first use from this address
    for name, arrange in COMMANDS.items():
        if isinstance(arrange, str):
            continue
        words, kind = arrange(api)
        last = noted(api)[-1].id
        assert run(words, "radiologist").exit_code == 1, name
        assert noted(api, last) == [], name
        role = "operator" if kind.startswith("model") else "admin"
        done = run(words, role)
        assert done.exit_code == 0, (name, done.output)
        (one,) = noted(api, last)
        assert (one.kind, one.actor) == (kind, role), name


def test_events_by_command(ready: InProcessApi, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`osteon events`: for people and for scripts, with filters and pages."""
    api = ready
    assert address
    names = [a_bundle(api, shadow=True) for _ in range(3)]
    monkeypatch.setenv("OSTEON_KEY", api.keys["operator"])
    monkeypatch.setenv("COLUMNS", "250")

    def run(*words: str) -> str:
        done = CliRunner().invoke(cli.app, ["events", *words])
        assert done.exit_code == 0, done.output
        return str(done.output)

    shown = run("--subject", names[0])
    assert f"let the model {names[0]} look at history" in shown
    assert "state: available -> shadow" in shown
    assert names[1] not in shown
    page = json.loads(run("--kind", "model-shadowed", "--limit", "2", "--json"))
    assert [one["subject_id"] for one in page["events"]] == [names[2], names[1]]
    rest = json.loads(run("--kind", "model-shadowed", "--before", str(page["next"]), "--json"))
    assert ([one["subject_id"] for one in rest["events"]], rest["next"]) == ([names[0]], None)
    assert "--before" in run("--kind", "model-shadowed", "--limit", "2")
    assert run("--actor", "nobody") == "No such event.\n"
    told = CliRunner().invoke(cli.app, ["events", "--kind", "nothing"])
    assert (told.exit_code, "model-activated" in told.output) == (2, True)


# -- the table and its migration


OLD_EVENT = """
    INSERT INTO security_events (kind, site_id, key_id, address, detail)
    SELECT 'key-made', site_id, id, '203.0.113.9', '{"name": "ct-2", "role": "submitter"}' FROM api_keys
    WHERE name = 'admin' RETURNING id
"""


def test_events_of_before_stay_and_code_of_before_goes_on(
    make_api: Callable[..., InProcessApi], database_url: str, run_alembic: Callable[..., None]
) -> None:
    """0020 keeps old rows as they were; code of before writes and reads by the old name, and is shown no new kind."""
    run_alembic(database_url, "downgrade", BEFORE)
    database = Database(database_url, 1)
    with database.transaction() as session:
        session.execute(text("INSERT INTO sites (id, name) VALUES (gen_random_uuid(), 'default')"))
        session.execute(
            text(
                "INSERT INTO api_keys (id, site_id, name, role, sha256) SELECT gen_random_uuid(), id, 'admin', 'admin', 'x' FROM sites"
            )
        )
        old = session.scalar(text(OLD_EVENT))
    run_alembic(database_url, "upgrade", "head")
    with database.transaction() as session:
        later = session.scalar(text(OLD_EVENT))
        assert session.scalars(text("SELECT kind FROM security_events ORDER BY id")).all() == ["key-made", "key-made"]
    for statement in ("UPDATE security_events SET kind = 'login'", "DELETE FROM security_events"):
        with pytest.raises(Exception, match="permission denied"), database.transaction() as session:
            session.execute(text(statement))
    database.close()
    api = make_api()
    page = api.http.get("/api/v1/audit-events", headers=api.headers("operator")).json()["events"]
    found = {one["id"]: one for one in page}
    for number in (old, later):
        assert (found[number]["actor"], found[number]["words"]) == ("admin", "made the key ct-2 (submitter)")
        assert (found[number]["before"], found[number]["after"], found[number]["changes"]) == (None, None, [])
    (step,) = [one for one in page if one["kind"] == "schema-changed" and one["after"]["revision"] == "0020"]
    assert (step["actor"], step["key_id"], step["before"]) == (System.MIGRATION, None, {"revision": BEFORE})


def _before(revision: str) -> str:
    script = ScriptDirectory(str(ROOT / "migrations"))
    return str(script.get_revision(revision).down_revision)


BEFORE = _before("0020")


def test_a_downgrade_leaves_what_the_code_before_knows(
    ready: InProcessApi, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """Events of kinds that it does not know go, the others stay as they are."""
    ask = release(ready)
    assert asked(ready, "POST", ask, "admin").is_success
    made = a_key(ready)
    run_alembic(database_url, "downgrade", BEFORE)
    with ready.database.transaction() as session:
        kinds = session.scalars(text("SELECT kind FROM security_events")).all()
        assert ("study-released" in kinds, "key-made" in kinds) == (False, True)
    run_alembic(database_url, "upgrade", "head")
    (kept,) = [one for one in noted(ready) if one.kind == "key-made"]
    assert (kept.detail["name"], kept.subject_id) == (made["name"], None)


def test_nobody_changes_an_event(ready: InProcessApi) -> None:
    """Neither the application, by either name, nor the tables' owner by an UPDATE, a DELETE or a TRUNCATE."""
    for statement in (
        "UPDATE audit_events SET actor = 'nobody'",
        "DELETE FROM audit_events",
        "TRUNCATE audit_events",
        "UPDATE security_events SET address = ''",
        "DELETE FROM security_events",
    ):
        with pytest.raises(Exception, match="permission denied"):
            run_sql(ready.settings.database_url.get_secret_value(), statement)
        with pytest.raises(Exception, match="never changed or removed"):
            run_sql(ready.owner_url, statement)
    assert noted(ready)
