"""Model bundles: the list, storing one, trying one unseen on history, comparing two, and promoting one."""

import base64
import re
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from fastapi import Header, Path, Request, Response
from sqlalchemy.orm import Session

from api.dependencies import AdminOrOperator, Operator, Parts, PartsDep, SessionDep
from api.models.schemas import BundleView, ComparisonView, RunView, ShadowRequest
from api.requests import API, Router
from api.schemas import Problem
from api.spool import RequestTooLarge, Spool, SpooledFile, open_spool
from shared.db.clock import db_now
from shared.db.tables import BundleRow
from shared.domain.manifest import read_manifest, title_of
from shared.domain.security import EventKind, Role, Subject
from shared.errors import BadRequest, InvalidState
from shared.queries import backfill, backfill_reports
from shared.queries import models as repository
from shared.queries.access import Key
from shared.queries.audit import State, Target, record
from shared.storage import bundle_key

router = Router(prefix=API, tags=["administer"])
Name = Annotated[str, Path(max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$", description="of a stored model bundle")]


@router.get("/bundles")
def bundles(_key: AdminOrOperator, session: SessionDep) -> list[BundleView]:
    """List all bundles, the newest first, each with its state and with the measurements of its manifest."""
    now = db_now(session)
    return [_view(session, row, now) for row in repository.list_bundles(session)]


@router.post(
    "/bundles",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    responses={
        200: {"model": BundleView, "description": "the same bytes were stored before"},
        400: {"model": Problem, "description": "Content-Digest is missing, or the bytes that came are others"},
        409: {"model": Problem, "description": "another bundle has this name"},
        413: {"model": Problem, "description": "it is over OSTEON_MAX_BUNDLE_BYTES"},
        422: {"model": Problem, "description": "it is no intact model bundle, or none that this version can serve"},
    },
)
async def store(
    request: Request,
    response: Response,
    parts: PartsDep,
    key: Operator,
    content_digest: Annotated[
        str | None, Header(max_length=1000, description="sha-256=:BASE64: of the file, as RFC 9530 has it")
    ] = None,
) -> BundleView:
    """Store a model bundle, a file as `osteon export` writes it. It is used once it is activated or made a shadow.

    It is checked against its digest and its own manifest, and durable once the response says so. Sending it again costs
    nothing.
    """
    limit = parts.settings.max_bundle_bytes
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise RequestTooLarge(f"A model bundle has at most {limit} bytes here (OSTEON_MAX_BUNDLE_BYTES)")
    sha256 = _sha256(content_digest)
    parts.spool_budget.check(int(declared) if declared.isdigit() else 0)
    with open_spool(parts.settings.spool_dir, parts.spool_budget, own_files=parts.store.takes_files) as spool:
        spooled = spool.begin("bundle")
        async for piece in request.stream():
            if spooled.size_bytes + len(piece) > limit:
                raise RequestTooLarge(f"A model bundle has at most {limit} bytes here (OSTEON_MAX_BUNDLE_BYTES)")
            await parts.uploads.receive(spooled.write, piece)
        file = spooled.finish()
        if file.sha256 != sha256:
            raise BadRequest(
                "The bytes that came are not those of Content-Digest: they were changed on their way. Send it again"
            )
        existing, view = await parts.uploads.work(_store, parts, key, spool, file)
    response.status_code = 200 if existing else 201
    return view


def _sha256(digests: str | None) -> str:
    """The SHA-256 of a Content-Digest header, hexadecimal (RFC 9530, 2). Raises BadRequest."""
    found = re.search(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):\s*(?:,|$)", digests or "")
    if found is None:
        raise BadRequest("Send the file's SHA-256 with it, as RFC 9530 has it: Content-Digest: sha-256=:BASE64:")
    return base64.b64decode(found[1]).hex()


def _store(parts: Parts, key: Key, spool: Spool, file: SpooledFile) -> tuple[bool, BundleView]:
    """Check and keep a bundle's bytes, then its row; whether it was there, and the row.

    Raises BadBundle, InvalidState.
    """
    spool.flush()
    with spool.open(file) as reader:
        manifest = read_manifest(reader, file.size_bytes)
    with parts.database.transaction() as session:
        existing_digest = repository.digest_of_bundle(session, manifest.name)
        if existing_digest not in (None, file.sha256):
            raise InvalidState(
                f"Another bundle is stored under the name {manifest.name}; export this one under a new name"
            )
    if existing_digest is None or not parts.store.exists(bundle_key(file.sha256)):
        with spool.open(file) as reader:
            parts.store.put(bundle_key(file.sha256), reader, file.size_bytes)
    with parts.database.transaction() as session:
        try:
            new = repository.add_bundle(session, manifest.name, file.sha256, manifest.model_dump(mode="json"))
        except ValueError as error:  # another request was faster with other bytes
            raise InvalidState(str(error)) from None
        if new:
            stored = {"state": "available", "sha256": file.sha256}
            _note(session, EventKind.MODEL_STORED, key, manifest.name, before=None, after=stored)
        view = _view(session, repository.get_bundle(session, manifest.name), db_now(session))
    return existing_digest is not None, view


@router.post("/bundles/{name}/shadow")
def shadow(name: Name, key: Operator, session: SessionDep, body: ShadowRequest | None = None) -> BundleView:
    """Make a bundle a shadow: it analyses history, newest day first, and radiologists see nothing of it.

    404 if there is no such bundle, 409 if it is active or a shadow already.
    """
    body = body or ShadowRequest()
    now = db_now(session)
    was = repository.state_of(repository.lock_bundle(session, name))
    backfill.open_shadow_run(session, name, now, body.since, body.limit)
    after = {
        "state": "shadow",
        "since": body.since.isoformat() if body.since else None,
        "studies": body.limit,
    }
    _note(session, EventKind.MODEL_SHADOWED, key, name, before={"state": was}, after=after)
    return _view(session, repository.get_bundle(session, name), now)


@router.post("/bundles/{name}/retire")
def retire(name: Name, key: Operator, session: SessionDep) -> BundleView:
    """End a bundle's time as a shadow; its findings stay, unseen. 404 if there is none, 409 if it is no shadow."""
    now = db_now(session)
    backfill.retire_shadow(session, name, now)
    before, after = {"state": "shadow"}, {"state": "available"}
    _note(session, EventKind.MODEL_RETIRED, key, name, before=before, after=after)
    return _view(session, repository.get_bundle(session, name), now)


@router.post("/bundles/{name}/activate")
def activate(name: Name, key: Operator, session: SessionDep) -> BundleView:
    """Make a stored bundle the active one, for all sites: a promotion, if it was a shadow. 404 if there is none.

    What it found as a shadow counts from now on: backfill runs use those findings without decoding an image again.
    """
    if was := repository.activate_bundle(session, name):
        after = {"active": name, "state": "active"}
        _note(session, EventKind.MODEL_ACTIVATED, key, name, before=asdict(was), after=after)
    return _view(session, repository.get_bundle(session, name), db_now(session))


@router.get("/bundles/{old}/compare/{new}")
def compare(old: Name, new: Name, key: AdminOrOperator, session: SessionDep) -> ComparisonView:
    """Compare two bundles on the studies of this site that `new` analysed after `old`. 404 for an unknown one.

    Operators get counts, and no ids of studies, which only radiologists may see.
    """
    for name in (old, new):
        repository.get_bundle(session, name)
    compared = backfill_reports.compare(session, key.site_id, old, new)
    view = ComparisonView.of(old, new, compared, backfill_reports.direction_counts(compared.all.changes))
    if not key.may(Role.RADIOLOGIST):
        view.newly_positive_studies, view.newly_negative_studies = [], []
    return view


def _note(session: Session, kind: EventKind, key: Key, name: str, *, before: State | None, after: State) -> None:
    about = Target(Subject.MODEL, name)
    record(session, kind, key, about=about, everywhere=True, before=before, after=after, model=name)


def _view(session: Session, row: BundleRow, now: datetime) -> BundleView:
    run = backfill_reports.shadow_run(session, row.name)
    return BundleView(
        name=row.name,
        title=title_of(row.name, row.manifest),
        state=repository.state_of(row),
        added_at=row.added_at,
        activated_at=row.activated_at,
        sensitive=row.manifest.get("sensitive"),
        specific=row.manifest.get("specific"),
        regions=row.manifest.get("regions", []),
        metrics=row.manifest.get("metrics", {}),
        run=RunView.of(run, backfill_reports.forecast_of(session, run, now)) if run else None,
    )
