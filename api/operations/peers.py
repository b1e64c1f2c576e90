"""GET, POST /api/v1/dicom-peers and /api/v1/dicom-callers: who may send by DICOM, and who was refused."""

from dataclasses import fields
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import HTTPException, Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.orm import Session

from api.dependencies import AdminOrOperator, SessionDep
from api.operations.keys import NO_SITE, Issuer, Name
from api.reasons import CALLERS
from api.requests import API, AS_NUMBER, Router
from api.schemas import RowView
from shared.db.tables import CallerRow
from shared.domain.peers import (
    FINGERPRINT_LENGTH,
    HOST_LENGTH,
    MAX_SILENT_H,
    OUR_TITLE,
    TITLE_LENGTH,
    CallerReason,
    Identification,
    PeerRule,
)
from shared.domain.security import SYSTEM_PREFIX, Role
from shared.errors import BadRequest
from shared.queries import access, peers
from shared.queries.access import Key

router = Router(prefix=API, tags=["administer"])
PeerId = Annotated[UUID, Path(description="of a peer, as GET /api/v1/dicom-peers lists it")]
CallerId = Annotated[UUID, Path(description="of a refused caller, as GET /api/v1/dicom-callers lists it")]
TAKEN = {"description": "the name is taken, another peer has this rule, or another site's peer could be meant"}
NOT_YOURS = {"description": "operators decide on this, because there are several sites"}

# spaces at the ends mean nothing, so that a longer text can be a title
Title = Annotated[str, StringConstraints(max_length=4 * TITLE_LENGTH)]
Address = Annotated[str, StringConstraints(max_length=64)]
Fingerprint = Annotated[str, StringConstraints(max_length=2 * FINGERPRINT_LENGTH)]
Host = Annotated[str, StringConstraints(max_length=HOST_LENGTH)]
SilentAfter = Annotated[int, Field(ge=0, le=MAX_SILENT_H), AS_NUMBER]
Port = Annotated[int, Field(ge=0, le=65535), AS_NUMBER]
Flag = Annotated[bool, Field(strict=True)]
CALLING = "title of the device or archive, in the capitals that it uses"
CALLED = "by which it calls Osteon; with several sites each has its own"
ADDRESS = "IP address, or a network as CIDR; empty: it may come from anywhere"
FINGERPRINT = "SHA-256 of its TLS certificate, hexadecimal; empty: any certificate, or none"
SEND = "it may store objects (C-STORE)"
COMMIT = "it may ask whether objects are stored safely (Storage Commitment), and delete its own then"
QUERY_HOST = "where the images of a study are counted by C-FIND, its name or address; empty: nowhere"
SILENT = "hours without images after which it counts as silent; 0: never; null: if it sent daily before"
KNOWN = ("calling_ae", "called_ae", "address", "tls_fingerprint")  # by which a peer is told from others
ISSUER = "who gives the patient IDs that come without an issuer; empty: OSTEON_PATIENT_ID_ISSUER"


class PeerTraffic(RowView):
    """What a peer sent within some time."""

    associations: int = Field(description="how often it connected")
    images: int = Field(description="objects that were accepted, those that were known already included")
    size_bytes: int = Field(description="bytes of these")
    rejected: int = Field(description="objects that were answered with a failure")


class PeerView(RowView):
    """A device or archive that may send by DICOM."""

    id: UUID = Field(description="of the peer")
    site: str = Field(description="name of the site whose images it sends")
    name: str = Field(description="of the peer, and of the sender in events and quotas")
    calling_ae: str = Field(description=CALLING)
    called_ae: str = Field(description=CALLED)
    address: str = Field(description=ADDRESS)
    tls_fingerprint: str = Field(description=FINGERPRINT)
    may_send: bool = Field(description=SEND)
    may_commit: bool = Field(description=COMMIT)
    query_host: str = Field(description=QUERY_HOST)
    query_port: int = Field(description="its port; 0: none")
    query_ae: str = Field(description="its AE title; empty: none")
    silent_after_h: int | None = Field(description=SILENT)
    issuer: str = Field(description=ISSUER)
    added_at: datetime = Field(description="when it was admitted")
    disabled_at: datetime | None = Field(description="since when it is refused; null: it is not")
    today: PeerTraffic = Field(description="since midnight UTC")
    month: PeerTraffic = Field(description="within 30 days")
    whole: PeerTraffic = Field(description="since it was admitted")
    last_contact_at: datetime | None = Field(description="when it connected or sent last; null: never")
    last_images_at: datetime | None = Field(description="when it sent images last; null: never")
    silent_since: datetime | None = Field(description="since when it sends nothing, though it should; null: it does")


class CallerView(RowView):
    """A caller that was refused."""

    id: UUID = Field(description="of the entry")
    calling_ae: str = Field(description="its AE title; what no title may have is replaced by ?")
    called_ae: str = Field(description="by which it called Osteon")
    address: str = Field(description="where it called from")
    tls_fingerprint: str = Field(description="SHA-256 of the certificate that it showed; empty: none")
    reason: CallerReason = Field(description="why it was refused, a code")
    detail: str = Field(description="the reason as a sentence")
    times: int = Field(description="how often it called")
    first_at: datetime = Field(description="the first time")
    last_at: datetime = Field(description="the last time")


class PeerSettings(BaseModel):
    """How a peer is known, and what it may do."""

    model_config = ConfigDict(json_schema_extra={"example": {"calling_ae": "PACS1", "address": "10.1.2.0/24"}})

    calling_ae: Title = Field(description=CALLING)
    called_ae: Title = Field(OUR_TITLE, description=CALLED)
    address: Address = Field("", description=ADDRESS)
    tls_fingerprint: Fingerprint = Field("", description=FINGERPRINT)
    may_send: Flag = Field(default=True, description=SEND)
    may_commit: Flag = Field(default=False, description=COMMIT)
    query_host: Host = Field("", description=QUERY_HOST)
    query_port: Port = Field(0, description="its port; 0: none")
    query_ae: Title = Field("", description="its AE title; empty: none")
    silent_after_h: SilentAfter | None = Field(None, description=SILENT)
    issuer: Issuer = Field("", description=ISSUER)

    def rule(self) -> PeerRule:
        """The rule in the form in which it is stored. Raises BadRequest, which names the value."""
        return PeerRule(**self.model_dump(include={field.name for field in fields(PeerRule)})).validate()


class NewPeer(PeerSettings):
    """The peer to admit."""

    name: Name | None = Field(None, description="of the peer; null: its calling AE title, with a number if need be")
    site: Name | None = Field(None, description="for operators: whose images it sends; null: your own key's site's")


class Admission(BaseModel):
    """How to admit a refused caller; everything may be left out."""

    model_config = ConfigDict(json_schema_extra={"example": {"known_by": "address", "issuer": "NORTH"}})

    known_by: Identification | None = Field(
        None, description="beside its titles; null: its certificate if it showed one, else its address"
    )
    called_ae: Title | None = Field(None, description="by which it shall call Osteon; null: as it did")
    name: Name | None = Field(None, description="of the peer; null: its calling AE title, with a number if need be")
    issuer: Issuer = Field("", description=ISSUER)
    site: Name | None = Field(None, description="for operators: whose images it sends; null: your own key's site's")


@router.get("/dicom-peers")
def list_peers(key: AdminOrOperator, session: SessionDep) -> list[PeerView]:
    """List the DICOM peers of your site with what they sent, disabled ones last; an operator gets all sites'."""
    return peer_views(session, key)


def peer_views(session: Session, key: Key) -> list[PeerView]:
    """Build the response of GET /api/v1/dicom-peers, which the page uses too.

    Args:
        session: the caller's transaction.
        key: of the request; it decides which sites' peers are shown.

    Returns:
        The peers.
    """
    return [_view(one) for one in peers.figures(session, _site_of(key))]


@router.get("/dicom-callers")
def list_callers(key: AdminOrOperator, session: SessionDep) -> list[CallerView]:
    """List callers that were refused within 30 days, the latest first.

    With several sites an admin sees those who called by an AE title that the site's peers, and no other site's, use;
    an operator sees all.
    """
    return caller_views(session, key)


def caller_views(session: Session, key: Key) -> list[CallerView]:
    """Build the response of GET /api/v1/dicom-callers, which the page uses too.

    Args:
        session: the caller's transaction.
        key: of the request; it decides which callers are shown.

    Returns:
        The callers.
    """
    return [_caller(row) for row in peers.callers(session, _site_of(key))]


@router.post("/dicom-peers", status_code=201, responses={403: NOT_YOURS, 404: NO_SITE, 409: TAKEN})
def add(body: NewPeer, key: AdminOrOperator, session: SessionDep) -> PeerView:
    """Admit a DICOM peer: from its next association on it is accepted."""
    return _admit(session, key, body.rule(), body.name, body.issuer, body.site)


@router.post("/dicom-callers/{caller_id}/admit", status_code=201, responses={403: NOT_YOURS, 409: TAKEN})
def admit(caller_id: CallerId, body: Admission, key: AdminOrOperator, session: SessionDep) -> PeerView:
    """Make a peer of a refused caller: from its next association on it is accepted."""
    caller = peers.caller(session, _site_of(key), caller_id)
    known_by = body.known_by or (Identification.CERTIFICATE if caller.tls_fingerprint else Identification.ADDRESS)
    if known_by is Identification.CERTIFICATE and not caller.tls_fingerprint:
        raise BadRequest(
            "This caller showed no certificate: let it be known by its address, or turn TLS on at both ends"
        )
    rule = PeerRule(
        caller.calling_ae,
        caller.called_ae if body.called_ae is None else body.called_ae,
        caller.address if known_by is Identification.ADDRESS else "",
        caller.tls_fingerprint if known_by is Identification.CERTIFICATE else "",
    ).validate()
    return _admit(session, key, rule, body.name, body.issuer, body.site)


def _admit(session: Session, key: Key, rule: PeerRule, name: str | None, issuer: str, site: str | None) -> PeerView:
    if (name or "").casefold().startswith(SYSTEM_PREFIX):
        raise BadRequest(f"Names that begin with {SYSTEM_PREFIX} stand for Osteon itself in events: choose another one")
    if site is not None and not key.may(Role.OPERATOR):
        raise HTTPException(403, f"Only an operator names the site of a peer; your key is {key.role}")
    site_id = access.site_named(session, site) if site is not None else key.site_id
    _hold_to_own(session, key, site_id, rule)
    row = peers.admit(session, key, site_id, rule, name=name or "", issuer=issuer)
    return _one(session, row.id)


@router.put("/dicom-peers/{peer_id}", responses={403: NOT_YOURS, 409: TAKEN})
def change(peer_id: PeerId, body: PeerSettings, key: AdminOrOperator, session: SessionDep) -> PeerView:
    """Change how a peer is known and what it may do, from its next association on. Name and site stay."""
    row = peers.peer_of_site(session, _site_of(key), peer_id)
    before, rule = peers.rule_of(row), body.rule()
    if any(getattr(before, name) != getattr(rule, name) for name in KNOWN):
        _hold_to_own(session, key, row.site_id, rule)
    peers.change(session, key, row, rule, body.issuer)
    return _one(session, row.id)


@router.post("/dicom-peers/{peer_id}/disable")
def disable(peer_id: PeerId, key: AdminOrOperator, session: SessionDep) -> PeerView:
    """Refuse a peer from its next association on. What it sent stays."""
    peers.enable(session, key, peers.peer_of_site(session, _site_of(key), peer_id), enabled=False)
    return _one(session, peer_id)


@router.post("/dicom-peers/{peer_id}/enable")
def enable(peer_id: PeerId, key: AdminOrOperator, session: SessionDep) -> PeerView:
    """Accept a peer again that was disabled."""
    peers.enable(session, key, peers.peer_of_site(session, _site_of(key), peer_id), enabled=True)
    return _one(session, peer_id)


def silences(views: list[PeerView]) -> list[str]:
    """What an administrator should know of peers that send nothing any more, as sentences."""
    return [
        f"The DICOM peer {one.name} of site {one.site} has sent nothing since {one.silent_since:%d %b %H:%M} UTC: look "
        "at the device and its network. If it is to send seldom, change after how many hours it counts as silent."
        for one in views
        if one.silent_since
    ]


def _hold_to_own(session: Session, key: Key, site_id: UUID, rule: PeerRule) -> None:
    """Let admins decide on called AE titles of their own site only."""
    if not key.may(Role.OPERATOR) and not peers.may_decide(session, site_id, rule.called_ae):
        raise HTTPException(
            403,
            f"There are several sites, and the called AE title {rule.called_ae} is not your site's alone: an operator "
            "decides whose images such a peer sends. Once your site has a title of its own, you admit peers under it",
        )


def _site_of(key: Key) -> UUID | None:
    """The site whose peers a key may see; None: all sites."""
    return None if key.may(Role.OPERATOR) else key.site_id


def _one(session: Session, peer_id: UUID) -> PeerView:
    session.flush()
    (found,) = peers.figures(session, None, peer_id)
    return _view(found)


def _view(one: peers.PeerFigures) -> PeerView:
    row = one.row
    spans = {span: PeerTraffic.of_row(getattr(one, span)) for span in ("today", "month", "whole")}
    return PeerView.of_row(
        row, site=row.site.name, name=row.key.name, issuer=row.key.issuer, **spans,
        last_contact_at=one.last_contact_at, last_images_at=one.last_images_at, silent_since=one.silent_since,
    )  # fmt: skip


def _caller(row: CallerRow) -> CallerView:
    return CallerView.of_row(row, detail=CALLERS[CallerReason(row.reason)])
