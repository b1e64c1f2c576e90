"""GET, POST /keys: who may do what at this site."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.orm import Session

from api.dependencies import Admin, PartsDep
from shared.repository import access
from shared.repository.access import Key, Role
from shared.tables import KeyRow

router = APIRouter(tags=["administer"])
# one line that can be read: it stands in audits and on pages
PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=PRINTABLE)]

Issuer = Annotated[str, StringConstraints(strip_whitespace=True, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


class KeyView(BaseModel):
    """A key, without its secret, of which only a hash is kept."""

    id: UUID
    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None
    yours: bool = Field(description="the request was made with this key")
    issuer: str = Field("", description="of patient IDs that come without one; empty: OSTEON_PATIENT_ID_ISSUER")


class NewKey(BaseModel):
    """The key to make."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "PACS, emergency room", "role": "submitter"}})

    name: Name = Field(description="who will hold it")
    role: Role
    issuer: Issuer = Field("", description="who gives the patient IDs that its files bring without an issuer")


class MadeKey(KeyView):
    """A new key with its secret, which is told this once."""

    secret: str


@router.get("/keys")
def keys(parts: PartsDep, key: Admin) -> list[KeyView]:
    """The keys of your site, the valid ones first; revoked ones stay, for audits name them."""
    with parts.database.transaction() as session:
        return key_views(session, key)


def key_views(session: Session, key: Key) -> list[KeyView]:
    """What GET /keys answers; the page shows the same."""
    return [_view(row, key) for row in access.keys(session, key.site_id)]


@router.post("/keys", status_code=201)
def make(wanted: NewKey, parts: PartsDep, key: Admin) -> MadeKey:
    """Make a key of your site. Its secret is in this answer and nowhere else: hand it over now."""
    with parts.database.transaction() as session:
        row, secret = access.make_key(session, key.site_id, wanted.name, wanted.role, wanted.issuer)
        return MadeKey(**_view(row, key).model_dump(), secret=secret)


@router.post("/keys/{key_id}/revoke", responses={409: {"description": "it is the site's last admin key"}})
def revoke(key_id: UUID, parts: PartsDep, key: Admin) -> KeyView:
    """Make a key invalid at once, with its logins. The last admin key of a site cannot be revoked."""
    with parts.database.transaction() as session:
        return _view(access.revoke_key_by_id(session, key.site_id, key_id), key)


def _view(row: KeyRow, key: Key) -> KeyView:
    return KeyView(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        yours=row.id == key.id,
        issuer=row.issuer,
    )
