"""Sites, API keys and the encrypted identities."""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from sqlalchemy.sql import func

from shared.errors import NotFound, OsteonError
from shared.study import Identity
from shared.tables import IdentityReadRow, IdentityRow, KeyRow, SiteRow


class LastAdmin(OsteonError):
    """This is the site's last admin key: without it nobody could make another. Make a new admin key first."""


class Role(StrEnum):
    """What a key may do; each may also do what stands before it in `ALLOWS`."""

    SUBMITTER = "submitter"  # send studies, see their state
    RADIOLOGIST = "radiologist"  # read the worklist, pictures and identities
    ADMIN = "admin"  # everything


ALLOWS = {
    Role.SUBMITTER: {Role.SUBMITTER},
    Role.RADIOLOGIST: {Role.RADIOLOGIST},
    Role.ADMIN: {Role.SUBMITTER, Role.RADIOLOGIST, Role.ADMIN},
}


@dataclass(frozen=True)
class Key:
    """An API key that was shown and is valid."""

    id: UUID
    site_id: UUID
    name: str
    role: Role

    def may(self, *roles: Role) -> bool:
        """Whether the key holds one of the roles."""
        return bool(ALLOWS[self.role] & set(roles))


def key_hash(secret: str) -> str:
    """Keys are long and random, so one round of SHA-256 is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def add_key(session: Session, site: str, name: str, role: Role, secret: str) -> None:
    """Make the site and the key unless they are there."""
    session.execute(insert(SiteRow).values(name=site).on_conflict_do_nothing())
    site_id = session.scalar(select(SiteRow.id).where(SiteRow.name == site))
    session.execute(
        insert(KeyRow).values(site_id=site_id, name=name, role=role, sha256=key_hash(secret)).on_conflict_do_nothing()
    )


def find_key(session: Session, secret: str) -> Key | None:
    """The valid key with this secret, if any."""
    return _key(session, KeyRow.sha256 == key_hash(secret))


def find_key_by_id(session: Session, key_id: UUID) -> Key | None:
    """The key of a login cookie, unless it was revoked since."""
    return _key(session, KeyRow.id == key_id)


def _key(session: Session, where: object) -> Key | None:
    row = session.scalar(select(KeyRow).where(where, KeyRow.revoked_at.is_(None)))  # type: ignore[arg-type]
    return Key(row.id, row.site_id, row.name, Role(row.role)) if row else None


def revoke_key(session: Session, site: str, name: str) -> int:
    """Make the site's keys of this name invalid at once; returns how many."""
    of_site = select(SiteRow.id).where(SiteRow.name == site)
    done = session.execute(
        update(KeyRow)
        .where(KeyRow.name == name, KeyRow.site_id.in_(of_site), KeyRow.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )
    return int(done.rowcount)  # type: ignore[attr-defined]


def keys(session: Session, site_id: UUID) -> Sequence[KeyRow]:
    """The site's keys, those that are valid first, then by name."""
    mine = select(KeyRow).where(KeyRow.site_id == site_id)
    return session.scalars(mine.order_by(KeyRow.revoked_at.is_not(None), KeyRow.name, KeyRow.created_at)).all()


def make_key(session: Session, site_id: UUID, name: str, role: Role) -> tuple[KeyRow, str]:
    """A new key of the site and its secret, which stands nowhere else."""
    secret = f"osk_{secrets.token_urlsafe(32)}"
    row = KeyRow(site_id=site_id, name=name, role=role, sha256=key_hash(secret))
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, secret


def revoke_key_by_id(session: Session, site_id: UUID, key_id: UUID) -> KeyRow:
    """Make one key of the site invalid. Raises NotFound, and LastAdmin for the only key that could make another."""
    # all of the site's admin keys are locked, so that two admins cannot revoke each other
    admins = session.scalars(
        select(KeyRow)
        .where(KeyRow.site_id == site_id, KeyRow.role == Role.ADMIN, KeyRow.revoked_at.is_(None))
        .order_by(KeyRow.id)
        .with_for_update()
    ).all()
    row = session.scalar(select(KeyRow).where(KeyRow.id == key_id, KeyRow.site_id == site_id))
    if row is None:
        raise NotFound(f"there is no key {key_id} here")
    if [admin.id for admin in admins] == [key_id]:
        raise LastAdmin
    if row.revoked_at is None:
        row.revoked_at = session.scalar(select(func.clock_timestamp()))
    return row


class Vault:
    """Encrypts what names a patient (Fernet: AES-128-CBC with HMAC-SHA256)."""

    def __init__(self, key: str) -> None:
        """key: urlsafe base64 of 32 bytes. Raises OsteonError if it is not."""
        try:
            self._fernet = Fernet(key)
        except ValueError:
            raise OsteonError(
                "OSTEON_IDENTITY_KEY is not a Fernet key. Make one with: "
                "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
            ) from None

    def seal(self, value: object) -> bytes:
        """Encrypt any JSON value."""
        return self._fernet.encrypt(json.dumps(value, default=str).encode())

    def open(self, ciphertext: bytes) -> object:
        """Undo seal. Raises OsteonError when the key is another one."""
        try:
            return json.loads(self._fernet.decrypt(ciphertext))
        except InvalidToken:
            raise OsteonError("OSTEON_IDENTITY_KEY is not the key that this database was written with") from None

    def keep_identities(self, session: Session, identities: Mapping[UUID, Identity]) -> None:
        """Store the identities of these studies, but of those that have one."""
        rows = [{"study_id": id_, "ciphertext": self.seal(asdict(identity))} for id_, identity in identities.items()]
        if rows:
            session.execute(insert(IdentityRow).on_conflict_do_nothing(), rows)

    def identities(self, session: Session, reader: Key, study_ids: list[UUID]) -> dict[UUID, Identity]:
        """Who these studies are of; every reading leaves an audit row."""
        rows = session.execute(select(IdentityRow).where(IdentityRow.study_id.in_(study_ids))).scalars().all()
        if rows:
            session.execute(insert(IdentityReadRow), [{"study_id": r.study_id, "key_id": reader.id} for r in rows])
        return {row.study_id: Identity(**self.open(row.ciphertext)) for row in rows}  # type: ignore[arg-type]
