"""Sites, API keys and the encrypted identities."""

import base64
import hashlib
import hmac
import json
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import exists, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from sqlalchemy.sql import func

from shared.errors import NotFound, OsteonError
from shared.identity import normal
from shared.study import Identity
from shared.tables import (
    IdentityReadRow,
    IdentityRow,
    IdentitySearchRow,
    IdentityTokenRow,
    KeyRow,
    SiteRow,
    StudyRow,
)

STANDS = timedelta(hours=1)  # an open list changes with each upload: noting all of it anew would drown the audit


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
    issuer: str = ""  # of the patient IDs that its files bring without one

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
    return Key(row.id, row.site_id, row.name, Role(row.role), row.issuer) if row else None


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


def make_key(session: Session, site_id: UUID, name: str, role: Role, issuer: str = "") -> tuple[KeyRow, str]:
    """A new key of the site and its secret, which stands nowhere else; issuer: of patient IDs that come without one."""
    secret = f"osk_{secrets.token_urlsafe(32)}"
    row = KeyRow(site_id=site_id, name=name, role=role, sha256=key_hash(secret), issuer=issuer)
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


SEARCHED = ("accession_number", "patient_id")  # of Identity
FOUND_MOST = 200


def _normal(number: str) -> str:
    """A number as it is compared: neither spaces nor capitals nor the way a letter is coded make another one of it."""
    return "".join(unicodedata.normalize("NFKC", number).casefold().split())


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
        # a key of its own: what is made with one tells nothing of the other
        derive = HKDF(SHA256(), 32, salt=None, info=b"osteon: search tokens of identities")
        self._search_key = derive.derive(base64.urlsafe_b64decode(key))

    def seal(self, value: object) -> bytes:
        """Encrypt any JSON value."""
        return self._fernet.encrypt(json.dumps(value, default=str).encode())

    def open(self, ciphertext: bytes) -> object:
        """Undo seal. Raises OsteonError when the key is another one."""
        try:
            return json.loads(self._fernet.decrypt(ciphertext))
        except InvalidToken:
            raise OsteonError("OSTEON_IDENTITY_KEY is not the key that this database was written with") from None

    def keep_identities(self, session: Session, site_id: UUID, identities: Mapping[UUID, Identity]) -> None:
        """Store the identities of these studies of one site, and what they are searched by."""
        rows = [{"study_id": id_, "ciphertext": self.seal(asdict(identity))} for id_, identity in identities.items()]
        if rows:
            session.execute(insert(IdentityRow).on_conflict_do_nothing(), rows)
            self._keep_tokens(session, [(id_, site_id, identity) for id_, identity in identities.items()])

    def search(self, session: Session, reader: Key, number: str, held: int = 0) -> list[UUID]:
        """As `matching`; each search leaves an audit row, which does not say what was searched for.

        held: how many held files were found beside the studies.
        """
        found = self.matching(session, reader, number)
        session.add(IdentitySearchRow(key_id=reader.id, found=len(found) + held))
        return found

    def tokens_of_number(self, site_id: UUID, number: str) -> list[bytes]:
        """What a number may stand under in the tables of tokens; none for an empty one."""
        return [self._token(site_id, kind, number) for kind in SEARCHED] if _normal(number) else []

    def tokens(self, site_id: UUID, identity: Identity) -> dict[str, bytes]:
        """What an identity is searched by, by kind."""
        return {kind: self._token(site_id, kind, getattr(identity, kind)) for kind in SEARCHED}

    def patient_token(self, site_id: UUID, identity: Identity) -> bytes:
        """32 bytes that are the same for identities in which all that is compared is the same."""
        message = json.dumps([str(site_id), "patient", *normal(identity)]).encode()
        return hmac.digest(self._search_key, message, "sha256")

    def also_found(self, session: Session, site_id: UUID, study_id: UUID, identity: Identity) -> None:
        """Let a study be found by the numbers of a second identity, too."""
        self._keep_tokens(session, [(study_id, site_id, identity)])

    def matching(self, session: Session, reader: Key, number: str) -> list[UUID]:
        """The reader's site's studies, at most FOUND_MOST, with exactly this accession number or patient id."""
        tokens = self.tokens_of_number(reader.site_id, number)
        found = session.scalars(
            select(IdentityTokenRow.study_id)
            .distinct()
            .join(StudyRow, StudyRow.id == IdentityTokenRow.study_id)
            .where(IdentityTokenRow.token.in_(tokens), StudyRow.site_id == reader.site_id)
            .limit(FOUND_MOST)
        )
        return list(found)

    def make_searchable(self, session: Session, most: int) -> int:
        """Write what up to `most` studies are searched by, of those taken in before there was a search.

        Returns for how many it was written; 0 once all have it.
        """
        rows = session.execute(
            select(IdentityRow.study_id, StudyRow.site_id, IdentityRow.ciphertext)
            .join(StudyRow, StudyRow.id == IdentityRow.study_id)
            .where(~exists().where(IdentityTokenRow.study_id == IdentityRow.study_id))
            .limit(most)
        ).all()
        self._keep_tokens(session, [(row[0], row[1], self._identity(row[2])) for row in rows])
        return len(rows)

    def stored_identities(self, session: Session, study_ids: Sequence[UUID]) -> dict[UUID, Identity]:
        """Who these studies are of, for comparing: nobody is shown them, so no audit row is left."""
        rows = session.execute(
            select(IdentityRow.study_id, IdentityRow.ciphertext).where(IdentityRow.study_id.in_(study_ids))
        )
        return {study_id: self._identity(ciphertext) for study_id, ciphertext in rows}

    def change_identity(self, session: Session, site_id: UUID, study_id: UUID, identity: Identity) -> None:
        """Give a study this identity. It is found by what it was searched by before, too."""
        sealed = self.seal(asdict(identity))
        session.execute(
            insert(IdentityRow)
            .values(study_id=study_id, ciphertext=sealed)
            .on_conflict_do_update(index_elements=["study_id"], set_={"ciphertext": sealed})
        )
        self._keep_tokens(session, [(study_id, site_id, identity)])

    def _identity(self, ciphertext: bytes) -> Identity:
        told: dict[str, str] = self.open(ciphertext)  # type: ignore[assignment]
        return Identity(**{name: value for name, value in told.items() if name in Identity.__dataclass_fields__})

    def _keep_tokens(self, session: Session, identities: Sequence[tuple[UUID, UUID, Identity]]) -> None:
        rows = [
            {"study_id": study_id, "kind": kind, "token": token}
            for study_id, site_id, identity in identities
            for kind, token in self.tokens(site_id, identity).items()
        ]
        if rows:
            session.execute(insert(IdentityTokenRow).on_conflict_do_nothing(), rows)

    def _token(self, site_id: UUID, kind: str, number: str) -> bytes:
        """32 bytes that only the holder of the key can make of a number; empty for none, which nobody can ask for.

        Of each site another one: a copy of the table does not tell that one patient was in two hospitals.
        """
        normal = _normal(number)
        message = json.dumps([str(site_id), kind, normal]).encode()
        return hmac.digest(self._search_key, message, "sha256") if normal else b""

    def identities(
        self, session: Session, reader: Key, study_ids: list[UUID], *, renewed: bool = False
    ) -> dict[UUID, Identity]:
        """Who these studies are of; every reading leaves an audit row.

        renewed: a list that stays open renews itself; what the reader's key was shown within STANDS is not noted again.
        """
        rows = session.execute(select(IdentityRow).where(IdentityRow.study_id.in_(study_ids))).scalars().all()
        noted: set[UUID] = set()
        if renewed:
            noted.update(
                session.scalars(
                    select(IdentityReadRow.study_id).where(
                        IdentityReadRow.study_id.in_(study_ids),
                        IdentityReadRow.key_id == reader.id,
                        IdentityReadRow.read_at > func.now() - STANDS,
                    )
                )
            )
        new = [{"study_id": row.study_id, "key_id": reader.id} for row in rows if row.study_id not in noted]
        if new:
            session.execute(insert(IdentityReadRow), new)
        return {row.study_id: self._identity(row.ciphertext) for row in rows}
