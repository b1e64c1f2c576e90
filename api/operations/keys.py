"""GET, POST /api/v1/keys: the keys of sites, and what they may do."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import HTTPException, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.orm import Session

from api.dependencies import AdminOrOperator, SessionDep
from api.requests import API, Moment, Router
from api.schemas import RowView
from shared.db.tables import KeyRow
from shared.domain.security import SYSTEM_PREFIX, EventKind, Role, Subject, roles_of
from shared.errors import BadRequest, NotFound
from shared.queries import access
from shared.queries.access import Key
from shared.queries.audit import Target, record, record_key_made, record_site_made, role_words

router = Router(prefix=API, tags=["administer"])
KeyId = Annotated[UUID, Path(description="of a key, as GET /api/v1/keys lists it")]
NO_SITE = {"description": "no site has this name"}
# one printable line: audits and pages show it
PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=PRINTABLE)]

Issuer = Annotated[str, StringConstraints(strip_whitespace=True, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


class KeyView(RowView):
    """A key, without its secret, of which only a hash is kept."""

    id: UUID = Field(description="of the key")
    site: str = Field(description="name of the site")
    name: str = Field(description="who holds it")
    role: Role = Field(description="what the key may do")
    operates: bool = Field(description="an admin's key that may also do what an operator may")
    created_at: datetime = Field(description="when it was made")
    expires_at: datetime | None = Field(description="it is not valid from then on; null: it stays valid")
    revoked_at: datetime | None = Field(description="when it was revoked; null: it was not")
    last_used_at: datetime | None = Field(description="to some minutes; null: never since this is noted")
    valid: bool = Field(description="neither revoked nor expired")
    yours: bool = Field(description="the request was made with this key")
    issuer: str = Field("", description="of patient IDs that come without one; empty: OSTEON_PATIENT_ID_ISSUER")


class KeyAddress(RowView):
    """An address that a key was used from."""

    address: str = Field(description="network address, or the network that it is in")
    first_at: datetime = Field(description="when it was first used from there")


class KeyDetail(KeyView):
    """A key, and where it was used from."""

    addresses: list[KeyAddress] = Field(description="the latest new one first, at most 100")


class NewKey(BaseModel):
    """The key to make."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "PACS, emergency room", "role": "submitter"}})

    name: Name = Field(description="who will hold it; no other key of the site has or had this name")
    role: Role = Field(description="what the key may do")
    operates: bool = Field(default=False, description="with the role admin: may also do what an operator may")
    issuer: Issuer = Field("", description="who gives the patient IDs that its files bring without an issuer")
    expires_at: Moment | None = Field(None, description="it is not valid from then on; null: it stays valid")
    site: Name | None = Field(None, description="for operators: whose key it is; null: of the site of your own key")
    new_site: bool = Field(default=False, description="for operators: make that site unless it is there")


class KeyWithSecret(KeyView):
    """A new key with its secret, which is shown only once."""

    secret: str = Field(description="the key itself: keep it now, it is shown nowhere else")


@router.get("/keys", responses={404: NO_SITE})
def keys(
    key: AdminOrOperator,
    session: SessionDep,
    site: Annotated[str | None, Query(max_length=64, pattern=PRINTABLE, description="only of this site")] = None,
) -> list[KeyView]:
    """List the keys of your site, the valid ones first; revoked ones stay, because audits name them.

    An operator gets those of all sites, or of the one that is named.
    """
    return key_views(session, key, site)


def key_views(session: Session, key: Key, site: str | None = None) -> list[KeyView]:
    """Build the response of GET /api/v1/keys, which the page uses too.

    Args:
        session: the caller's transaction.
        key: of the request.
        site: name of the site; None: the key's own, or all for an operator.

    Returns:
        The keys.

    Raises:
        NotFound: there is no such site, or the key may not see it.
    """
    of = None if key.may(Role.OPERATOR) else key.site_id
    if site is not None:
        named = access.site_named(session, site)
        if of not in (None, named):
            raise NotFound("no site has this name")  # as if it did not exist: a site learns of no other
        of = named
    return [_view(row, key) for row in access.keys(session, of)]


@router.get("/keys/{key_id}")
def one(key_id: KeyId, key: AdminOrOperator, session: SessionDep) -> KeyDetail:
    """Get a key, and where it was used from. 404 if it is unknown, or another site's."""
    row = access.key_of_site(session, _site_of(key), key_id)
    used = [KeyAddress.of_row(each) for each in access.addresses(session, row.id)]
    return KeyDetail(**_view(row, key).model_dump(), addresses=used)


@router.post(
    "/keys", status_code=201, responses={404: NO_SITE, 409: {"description": "the site has a key of this name"}}
)
def make(body: NewKey, key: AdminOrOperator, session: SessionDep) -> KeyWithSecret:
    """Make a key. Its secret is in this response only: hand it over now.

    An admin makes keys of their own site; only an operator makes those of operators, and keys of other sites.
    """
    if body.operates and body.role is not Role.ADMIN:
        raise BadRequest("Only an admin's key can be an operator's too: leave `operates` out, or make the role admin")
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise BadRequest("`expires_at` is in the past: the key would never be valid")
    if body.name.casefold().startswith(SYSTEM_PREFIX):
        raise BadRequest(f"Names that begin with {SYSTEM_PREFIX} stand for Osteon itself in events: choose another one")
    if body.new_site and body.site is None:
        raise BadRequest("`new_site` needs `site`, the name of the site to make")
    if not key.may(Role.OPERATOR) and (body.site or body.operates or body.role is Role.OPERATOR):
        raise HTTPException(403, f"Only an operator makes keys of operators, or of a named site; yours is {key.role}")
    site_id = key.site_id
    if body.site is not None:
        if body.new_site and (made := access.make_site(session, body.site)):
            record_site_made(session, key, body.site, made)
        site_id = access.site_named(session, body.site)
    row, secret = access.make_key(
        session, site_id, body.name, body.role, body.issuer, operates=body.operates,
        expires_at=body.expires_at,
    )  # fmt: skip
    record_key_made(session, key, row)
    return KeyWithSecret(**_view(row, key).model_dump(), secret=secret)


@router.post("/keys/{key_id}/revoke", responses={409: {"description": "it is the last one that could make others"}})
def revoke(key_id: KeyId, key: AdminOrOperator, session: SessionDep) -> KeyView:
    """Revoke a key at once, and end its logins and open streams.

    The last valid admin's key of a site, and the last valid operator's key, cannot be revoked.
    """
    row = access.key_of_site(session, _site_of(key), key_id)
    if not key.may(Role.OPERATOR) and Role.OPERATOR in roles_of(Role(row.role), operates=row.operates):
        raise HTTPException(403, "An operator's key is revoked by an operator")
    was, view = row.revoked_at, _view(row, key)
    row = access.revoke_key_by_id(session, _site_of(key), key_id)
    if was is None:
        record(
            session, EventKind.KEY_REVOKED, key, about=Target(Subject.KEY, row.id), site_id=row.site_id,
            before={"state": "valid" if view.valid else "expired"}, after={"state": "revoked"}, name=row.name,
            role=role_words(row),
        )  # fmt: skip
    return _view(row, key)


def _site_of(key: Key) -> UUID | None:
    """The site whose keys a key may see; None: all sites."""
    return None if key.may(Role.OPERATOR) else key.site_id


def _view(row: KeyRow, key: Key) -> KeyView:
    return KeyView.of_row(
        row,
        site=row.site.name,
        valid=row.revoked_at is None and (row.expires_at is None or row.expires_at > datetime.now(UTC)),
        yours=row.id == key.id,
    )
