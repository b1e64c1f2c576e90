"""Sites, API keys and the encrypted identities."""

import base64
import hashlib
import hmac
import itertools
import json
import secrets
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import ARRAY, Text, Uuid, any_, bindparam, cast, delete, exists, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.sql import func

from shared.db.tables import (
    FeedbackRow,
    HeldFileRow,
    IdentityReadRow,
    IdentityRow,
    IdentitySearchRow,
    IdentityTokenRow,
    KeyAddressRow,
    KeyCheckRow,
    KeyRow,
    PeerRow,
    QuarantineDecisionRow,
    SiteRow,
    StudyRow,
    UploadRow,
)
from shared.db.tables.access import is_counted
from shared.db.tables.base import table_of
from shared.domain.identity import normalised
from shared.domain.matching import PIECE, name_pieces, pieces_of_name_pattern, pieces_of_text_pattern, text_pieces
from shared.domain.security import KeyRefusal, Role, roles_of
from shared.domain.study import Identity, UnreadableIdentity
from shared.errors import InvalidState, NotFound, OsteonError, WrongIdentityKey

IS_VALID = KeyRow.revoked_at.is_(None) & (KeyRow.expires_at.is_(None) | (KeyRow.expires_at > func.now()))
IS_HELD_BY_SOMEBODY = ~exists().where(PeerRow.key_id == KeyRow.id)  # not the key of a DICOM peer
_IDENTITIES = table_of(IdentityRow)
ADD_IDENTITIES = insert(_IDENTITIES).on_conflict_do_nothing()
ADD_TOKENS = insert(table_of(IdentityTokenRow)).on_conflict_do_nothing()
IDENTITIES = select(_IDENTITIES.c.study_id, _IDENTITIES.c.ciphertext).where(
    _IDENTITIES.c.study_id == any_(cast(bindparam("studies", type_=ARRAY(Text)), ARRAY(Uuid)))
)
KEY_USE_INTERVAL = timedelta(minutes=4)  # the last use of a key is written no more often
# an open list changes with each upload: recording all of it each time would fill the audit
READ_RECORD_LASTS = timedelta(hours=1)


class LastKeyError(OsteonError):
    """This is the last valid key that can make keys of its kind. Make a new one first."""


@dataclass(frozen=True)
class Key:
    """An API key that was shown and is valid."""

    id: UUID
    site_id: UUID
    name: str
    role: Role
    issuer: str = ""  # of the patient IDs that its files bring without one
    operates: bool = False  # an admin's key that is an operator's too
    address: str = ""  # where the request comes from; empty: from a program on this host, without the API
    login: UUID | None = None  # of the pages; None for a program

    def may(self, *roles: Role) -> bool:
        """Whether the key holds one of the roles."""
        return bool(roles_of(self.role, operates=self.operates) & set(roles))


def key_hash(secret: str) -> str:
    """Keys are long and random, so one round of SHA-256 is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def add_key(
    session: Session, site: str, name: str, role: Role, secret: str, *, operates: bool = False
) -> KeyRow | None:
    """Make the site and the key unless they exist. If another key has the name, a number is added to it.

    Args:
        session: the caller's transaction.
        site: name of the site.
        name: of the key.
        role: of the key.
        secret: the key itself.
        operates: whether an admin's key is an operator's too.

    Returns:
        The key's row; None if the key existed.
    """
    make_site(session, site)
    # the site's row is locked, so that two who start at once make one key
    site_id = session.scalar(select(SiteRow.id).where(SiteRow.name == site).with_for_update())
    if session.scalar(select(KeyRow.id).where(KeyRow.sha256 == key_hash(secret))) is not None:
        return None
    free = unused_key_name(session, site_id, name)
    values = {"name": free, "role": role, "sha256": key_hash(secret), "operates": operates}
    made = session.scalars(insert(KeyRow).values(site_id=site_id, **values).returning(KeyRow.id)).one()
    return session.get_one(KeyRow, made)


def unused_key_name(session: Session, site_id: UUID | None, name: str) -> str:
    """Find a name for a key.

    Args:
        session: the caller's transaction, which has locked what else makes keys.
        site_id: the key's site.
        name: the wanted name.

    Returns:
        That name, with a number behind it if a key of the site has it, valid or not.
    """
    taken = set(session.scalars(select(KeyRow.name).where(KeyRow.site_id == site_id)))
    names = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
    return next(one for one in names if one not in taken)


def find_key(session: Session, secret: str) -> Key | None:
    """Find a valid key.

    Args:
        session: the caller's transaction.
        secret: the key itself.

    Returns:
        The key; None if there is no such key or it is not valid.
    """
    row, refused = look_up_key(session, secret)
    return key_of_row(row) if row and not refused else None


def look_up_key(session: Session, secret: str) -> tuple[KeyRow | None, KeyRefusal | None]:
    """Find a key, valid or not.

    Args:
        session: the caller's transaction.
        secret: the key itself.

    Returns:
        Its row, None if there is none; and why it is refused, None if it is valid.
    """
    found = session.execute(
        select(KeyRow, KeyRow.expires_at <= func.now()).where(KeyRow.sha256 == key_hash(secret))
    ).one_or_none()
    if found is None:
        return None, KeyRefusal.WRONG
    row, expired = found
    return row, KeyRefusal.REVOKED if row.revoked_at else KeyRefusal.EXPIRED if expired else None


def key_of_row(row: KeyRow) -> Key:
    """The key of a row, for the rest of the code."""
    return Key(row.id, row.site_id, row.name, Role(row.role), row.issuer, row.operates)


def is_known_use(session: Session, key_id: UUID, network: str) -> bool:
    """Check whether a key is known to be used from a network.

    Args:
        session: the caller's transaction.
        key_id: of the key.
        network: as `network_of` returns it.

    Returns:
        Whether it was used from there before.
    """
    there = KeyAddressRow.key_id == key_id, KeyAddressRow.address == network
    return bool(session.scalar(select(exists().where(*there))))


def record_use(session: Session, key_id: UUID, network: str) -> bool:
    """Record that a key is used, and from where.

    Call it once in some minutes: several processes that do so write once. If another transaction has locked the key,
    nothing is written: no request waits for this.

    Args:
        session: the caller's transaction.
        key_id: of the key.
        network: as `network_of` returns it.

    Returns:
        Whether the key was never used from there before.
    """
    free = select(KeyRow.id).where(KeyRow.id == key_id).with_for_update(key_share=True, skip_locked=True)
    if session.scalar(free) is None:
        return False
    session.execute(
        update(KeyRow)
        .where(KeyRow.id == key_id, func.coalesce(KeyRow.last_used_at < func.now() - KEY_USE_INTERVAL, true()))
        .values(last_used_at=func.now())
    )
    new = insert(KeyAddressRow).values(key_id=key_id, address=network).on_conflict_do_nothing()
    return session.scalar(new.returning(KeyAddressRow.key_id)) is not None


def keys(session: Session, site_id: UUID | None) -> Sequence[KeyRow]:
    """Read keys that somebody holds: those of DICOM peers are none.

    Args:
        session: the caller's transaction.
        site_id: of these keys; None: of all sites.

    Returns:
        The rows with their sites, valid keys first, then by site and name.
    """
    order = ~IS_VALID, SiteRow.name, KeyRow.name
    of_site = ~SiteRow.checks if site_id is None else KeyRow.site_id == site_id
    found = (
        select(KeyRow)
        .join(SiteRow)
        .options(joinedload(KeyRow.site))
        .where(IS_HELD_BY_SOMEBODY, of_site)
        .order_by(*order)
    )
    return session.scalars(found).all()


def key_names(session: Session, site_id: UUID) -> dict[UUID, str]:
    """Read the names of a site's keys, those of DICOM peers too.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        The names by the keys' ids.
    """
    named = select(KeyRow.id, KeyRow.name).where(KeyRow.site_id == site_id)
    return {row.id: row.name for row in session.execute(named)}


def key_of_site(session: Session, site_id: UUID | None, key_id: UUID) -> KeyRow:
    """Read a key's row.

    Args:
        session: the caller's transaction.
        site_id: the site that the key must belong to; None: any.
        key_id: of the key.

    Returns:
        The row.

    Raises:
        NotFound: there is no such key.
    """
    row = session.scalar(select(KeyRow).where(KeyRow.id == key_id, IS_HELD_BY_SOMEBODY, is_counted(KeyRow.site_id)))
    if row is None or site_id not in (None, row.site_id):
        raise NotFound(f"there is no key {key_id} here; the list of keys has the ids")
    return row


def addresses(session: Session, key_id: UUID, limit: int = 100) -> Sequence[KeyAddressRow]:
    """Read where a key was used from.

    Args:
        session: the caller's transaction.
        key_id: of the key.
        limit: how many addresses.

    Returns:
        The rows, the latest new address first.
    """
    query = select(KeyAddressRow).where(KeyAddressRow.key_id == key_id)
    return session.scalars(query.order_by(KeyAddressRow.first_at.desc(), KeyAddressRow.address).limit(limit)).all()


def make_site(session: Session, name: str) -> UUID | None:
    """Make a site unless it exists.

    Args:
        session: the caller's transaction.
        name: of the site.

    Returns:
        The site's id; None if it existed.
    """
    made = insert(SiteRow).values(name=name).on_conflict_do_nothing()
    return session.scalar(made.returning(SiteRow.id))


def site_names(session: Session) -> Sequence[str]:
    """The names of all sites but the daily check's, in alphabetical order."""
    return session.scalars(select(SiteRow.name).where(~SiteRow.checks).order_by(SiteRow.name)).all()


def site_name(session: Session, site_id: UUID) -> str:
    """Read the name of a site that exists.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        Its name.
    """
    return session.get_one(SiteRow, site_id).name


def site_named(session: Session, name: str) -> UUID:
    """Find a site.

    Args:
        session: the caller's transaction.
        name: of the site.

    Returns:
        Its id.

    Raises:
        NotFound: there is no such site.
    """
    found = session.scalar(select(SiteRow.id).where(SiteRow.name == name, ~SiteRow.checks))
    if found is None:
        raise NotFound("no site has this name; make it first, or check the spelling")
    return found


def make_key(
    session: Session,
    site_id: UUID,
    name: str,
    role: Role,
    issuer: str = "",
    *,
    operates: bool = False,
    expires_at: datetime | None = None,
) -> tuple[KeyRow, str]:
    """Make a key of a site.

    Args:
        session: the caller's transaction.
        site_id: the site.
        name: of the key.
        role: of the key.
        issuer: of patient IDs that come without one.
        operates: whether an admin's key is an operator's too.
        expires_at: until when it is valid, with a time zone; None: until it is revoked.

    Returns:
        The key's row, and its secret, which is stored nowhere.

    Raises:
        InvalidState: the site has a key of this name, valid or not: events and audits tell keys apart by it.
    """
    secret = f"osk_{secrets.token_urlsafe(32)}"
    values = {
        "id": uuid4(), "site_id": site_id, "name": name, "role": role, "sha256": key_hash(secret), "issuer": issuer,
        "operates": operates, "expires_at": expires_at,
    }  # fmt: skip
    named = insert(KeyRow).values(values).on_conflict_do_nothing(index_elements=["site_id", "name"])
    made = session.scalar(named.returning(KeyRow.id))
    if made is None:
        raise InvalidState(
            f"This site has a key named {name} already; choose another name, also if that key is revoked", "name-taken"
        )
    return session.get_one(KeyRow, made), secret


def revoke_key_by_id(session: Session, site_id: UUID | None, key_id: UUID) -> KeyRow:
    """Revoke a key; one that is revoked already stays so.

    Args:
        session: the caller's transaction.
        site_id: the site that the key must belong to; None: any.
        key_id: of the key.

    Returns:
        The key's row.

    Raises:
        NotFound: there is no such key.
        LastKeyError: it is the only valid admin's key of a site, or the only valid operator's key.
    """
    # all keys that could make others are locked, so that two of them cannot revoke each other
    makers = session.scalars(
        select(KeyRow)
        .where(KeyRow.role.in_((Role.ADMIN, Role.OPERATOR)), IS_VALID)
        .order_by(KeyRow.id)
        .with_for_update()
    ).all()
    row = key_of_site(session, site_id, key_id)
    for role, others in (
        (Role.ADMIN, [one for one in makers if one.role == Role.ADMIN and one.site_id == row.site_id]),
        (Role.OPERATOR, [one for one in makers if one.role == Role.OPERATOR or one.operates]),
    ):
        if [one.id for one in others] == [key_id]:
            where = "of this site" if role is Role.ADMIN else "here"
            raise LastKeyError(f"This is the last valid key with the role {role} {where}: make another one first")
    if row.revoked_at is None:
        row.revoked_at = session.scalar(select(func.clock_timestamp()))
    return row


ACCESSION = "accession_number"
SEARCHED = (ACCESSION, "patient_id")  # of Identity
SEARCHES_LOOKED_AT = 1000  # the latest of all keys: that many a minute are far more than people make
# what a pattern with wild cards finds: how a value is cut into pieces, and a pattern
PieceFunction = Callable[[str], frozenset[str]]
NAME_PIECES: tuple[PieceFunction, PieceFunction] = (name_pieces, pieces_of_name_pattern)
TEXT_PIECES: tuple[PieceFunction, PieceFunction] = (text_pieces, pieces_of_text_pattern)
PIECED = {  # of Identity
    "patient_name": NAME_PIECES, "patient_id": TEXT_PIECES, "accession_number": TEXT_PIECES,
    "study_description": TEXT_PIECES, "dicom_study_id": TEXT_PIECES, "referring_physician": NAME_PIECES,
}  # fmt: skip
# numbers that pieces of a site's identities have. So few that each stands for several pieces: what a number is found
# with tells less of what it means, and a wrong study that it finds is sorted out when its identity is decrypted
PIECE_BUCKETS = 4096
# all numbers of a site. Behind the first PIECE_BUCKETS are those of one and two letters, nearly each of one piece: a
# pattern may have no other, and where its number was a frequent piece's, too, thousands were decrypted in vain
PIECE_NUMBERS = 1 << 16
MAX_MATCHES = 200


CHECK_VALUE = "the identities of this database"  # what the check value holds
KEY_TEST_SAMPLE = 100  # sealed values that a key is tried on
UNREADABLE = "(cannot be decrypted: it was encrypted with another OSTEON_IDENTITY_KEY)"


def _sealed_values(session: Session) -> list[bytes]:
    """A sample of what was sealed, of the first table that holds any."""
    for column, order in (  # ids are random, and so are those that come first
        (IdentityRow.ciphertext, IdentityRow.study_id),
        (HeldFileRow.header, HeldFileRow.id),
        (FeedbackRow.words, FeedbackRow.id),
        (QuarantineDecisionRow.why, QuarantineDecisionRow.id),
        (UploadRow.receipt, UploadRow.idempotency_key),
    ):
        found = session.scalars(select(column).where(column.is_not(None)).order_by(order).limit(KEY_TEST_SAMPLE)).all()
        if found:
            return [bytes(value) for value in found if value is not None]
    return []


def _normalised(number: str) -> str:
    """A number in the form in which it is compared: spaces, capitals and the coding of a letter make no difference."""
    return "".join(unicodedata.normalize("NFKC", number).casefold().split())


def record_search(session: Session, reader: Key, found: int) -> None:
    """Record that somebody searched, not for what.

    Args:
        session: the caller's transaction.
        reader: who.
        found: how much that showed.
    """
    session.add(IdentitySearchRow(key_id=reader.id, found=found))


def count_searches(session: Session, reader: Key, within: timedelta) -> int:
    """Count the searches of a key of late.

    Args:
        session: the caller's transaction.
        reader: whose.
        within: how far back; of a minute or so, for only SEARCHES_LOOKED_AT of all keys are looked at.

    Returns:
        How many.
    """
    latest = (
        select(IdentitySearchRow.key_id, IdentitySearchRow.searched_at)
        .order_by(IdentitySearchRow.id.desc())
        .limit(SEARCHES_LOOKED_AT)
        .subquery()
    )
    own = latest.c.key_id == reader.id, latest.c.searched_at > func.now() - within
    return session.scalar(select(func.count()).select_from(latest).where(*own)) or 0


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
        # a key of its own: what is made with one reveals nothing of the other
        derive = HKDF(SHA256(), 32, salt=None, info=b"osteon: search tokens of identities")
        self._search_key = derive.derive(base64.urlsafe_b64decode(key))
        derive = HKDF(SHA256(), 32, salt=None, info=b"osteon: pieces of identities")
        self._piece_key = derive.derive(base64.urlsafe_b64decode(key))

    def seal(self, value: object) -> bytes:
        """Encrypt any JSON value."""
        return self._fernet.encrypt(json.dumps(value, default=str).encode())

    def open(self, ciphertext: bytes) -> object:
        """Decrypt what `seal` made. None, which is never sealed, if another key sealed it or it is damaged."""
        try:
            return json.loads(self._fernet.decrypt(ciphertext))
        except InvalidToken:
            return None

    def seal_bytes(self, content: bytes) -> bytes:
        """Encrypt bytes."""
        return self._fernet.encrypt(content)

    def open_bytes(self, ciphertext: bytes) -> bytes | None:
        """Decrypt what `seal_bytes` made. None if another key sealed it or it is damaged."""
        try:
            return self._fernet.decrypt(ciphertext)
        except InvalidToken:
            return None

    def text(self, ciphertext: bytes | None) -> str:
        """Decrypt a text for people: "" if there is none, UNREADABLE if it cannot be decrypted."""
        if ciphertext is None:
            return ""
        opened = self.open(bytes(ciphertext))
        return UNREADABLE if opened is None else str(opened)

    def check_key(self, session: Session) -> None:
        """Compare the key with the database's check value, which is made the first time.

        If the database holds sealed values by then, the check value is made only if the key opens most of a sample of
        them.

        Args:
            session: the caller's transaction.

        Raises:
            WrongIdentityKey: this is not the key of the database.
        """
        made = select(KeyCheckRow.sealed)
        sealed = session.scalar(made)
        if sealed is None:
            sample = _sealed_values(session)
            if sum(self.open(value) is not None for value in sample) * 2 < len(sample):
                raise WrongIdentityKey
            session.execute(insert(KeyCheckRow).values(sealed=self.seal(CHECK_VALUE)).on_conflict_do_nothing())
            sealed = session.scalar(made)  # another process may have been faster, with another key
        if sealed is None or self.open(sealed) != CHECK_VALUE:
            raise WrongIdentityKey

    def accept_key(self, session: Session) -> None:
        """Make this the right key from now on; what other keys have sealed stays unreadable."""
        session.execute(delete(KeyCheckRow))
        session.execute(insert(KeyCheckRow).values(sealed=self.seal(CHECK_VALUE)))

    def store_identities(self, session: Session, site_id: UUID, identities: Mapping[UUID, Identity]) -> None:
        """Store identities of studies of one site, with their search tokens.

        Args:
            session: the caller's transaction.
            site_id: the site.
            identities: by study.
        """
        rows = [
            {
                "study_id": id_,
                "ciphertext": self.seal(vars(identity)),
                "pieces": self.piece_numbers(site_id, identity),
            }
            for id_, identity in identities.items()
        ]
        if rows:
            session.execute(ADD_IDENTITIES, rows)
            self._store_tokens(session, [(id_, site_id, identity) for id_, identity in identities.items()])

    def search(self, session: Session, reader: Key, number: str, held: int = 0) -> list[UUID]:
        """Search as `find_by_number`. Each search leaves an audit row, which does not say what was searched for.

        Args:
            session: the caller's transaction.
            reader: who searches.
            number: accession number or patient ID.
            held: how many held files were found beside the studies.

        Returns:
            Ids of the studies.
        """
        found = self.find_by_number(session, reader, number)
        record_search(session, reader, len(found) + held)
        return found

    def tokens_of_number(self, site_id: UUID, number: str, kinds: Sequence[str] = SEARCHED) -> list[bytes]:
        """Make the search tokens that a number may have.

        Args:
            site_id: the site that is searched.
            number: accession number or patient ID.
            kinds: of numbers, of SEARCHED.

        Returns:
            A token for each kind of number; none for an empty number.
        """
        return [self._token(site_id, kind, number) for kind in kinds] if _normalised(number) else []

    def tokens(self, site_id: UUID, identity: Identity) -> dict[str, bytes]:
        """Make an identity's search tokens.

        Args:
            site_id: its site.
            identity: of a patient.

        Returns:
            32 bytes for each kind of number; empty bytes if the identity lacks it.
        """
        return {kind: self._token(site_id, kind, getattr(identity, kind)) for kind in SEARCHED}

    def patient_token(self, site_id: UUID, identity: Identity) -> bytes:
        """Make the token that is the same for all identities that are equal in everything that is compared.

        Args:
            site_id: their site.
            identity: of a patient.

        Returns:
            32 bytes.
        """
        message = json.dumps([str(site_id), "patient", *normalised(identity)]).encode()
        return hmac.digest(self._search_key, message, "sha256")

    def piece_numbers(self, site_id: UUID, identity: Identity) -> list[int]:
        """Make the numbers by which patterns with wild cards find an identity.

        Args:
            site_id: its site.
            identity: of a patient.

        Returns:
            Numbers of 32 bits in ascending order, for pieces of all texts in PIECED.
        """
        number = self._piece_numberer(site_id)
        return sorted(
            {number(kind, piece) for kind, (cut, _) in PIECED.items() for piece in cut(getattr(identity, kind))}
        )

    def pieces_wanted(self, site_id: UUID, kind: str, pattern: str) -> list[int]:
        """Make the numbers that `piece_numbers` has for each identity that a pattern matches.

        Args:
            site_id: the site that is searched.
            kind: a field of Identity in PIECED.
            pattern: with wild cards, as `shared.domain.matching` compares them.

        Returns:
            Numbers in ascending order; none if the pattern has no piece that is long enough.
        """
        number = self._piece_numberer(site_id)
        return sorted({number(kind, piece) for piece in PIECED[kind][1](pattern)})

    def _piece_numberer(self, site_id: UUID) -> Callable[[str, str], int]:
        """How pieces of a site are numbered: the site in the upper bits, below them one of PIECE_NUMBERS."""
        site = int.from_bytes(hmac.digest(self._piece_key, site_id.bytes, "sha256")[:4])
        first = site - site % PIECE_NUMBERS - (1 << 31)  # Postgres' integers have a sign

        def number(kind: str, piece: str) -> int:
            message = site_id.bytes + f"{kind}\0{piece}".encode()
            hashed = int.from_bytes(hmac.digest(self._piece_key, message, "sha256")[:4])
            return first + (
                hashed % PIECE_BUCKETS
                if len(piece) >= PIECE
                else PIECE_BUCKETS + hashed % (PIECE_NUMBERS - PIECE_BUCKETS)
            )

        return number

    def add_search_tokens(self, session: Session, site_id: UUID, study_id: UUID, identity: Identity) -> None:
        """Make a search for the numbers of a second identity find a study, too.

        Args:
            session: the caller's transaction.
            site_id: of the study.
            study_id: the study.
            identity: the second one.
        """
        self._store_tokens(session, [(study_id, site_id, identity)])

    def find_by_number(self, session: Session, reader: Key, number: str, kinds: Sequence[str] = SEARCHED) -> list[UUID]:
        """Find studies by a number.

        Args:
            session: the caller's transaction.
            reader: who searches; only their site is searched.
            number: accession number or patient ID, the whole of it.
            kinds: of numbers, of SEARCHED.

        Returns:
            Ids of at most MAX_MATCHES studies.
        """
        tokens = self.tokens_of_number(reader.site_id, number, kinds)
        found = session.scalars(
            select(IdentityTokenRow.study_id)
            .distinct()
            .join(StudyRow, StudyRow.id == IdentityTokenRow.study_id)
            .where(IdentityTokenRow.token.in_(tokens), StudyRow.site_id == reader.site_id)
            .limit(MAX_MATCHES)
        )
        return list(found)

    def make_searchable(self, session: Session, limit: int) -> int:
        """Write the tokens and pieces of studies that were taken in before searches used them.

        Args:
            session: the caller's transaction.
            limit: how many studies.

        Returns:
            For how many they were written; 0 once all have them.
        """
        rows = session.execute(
            select(IdentityRow.study_id, StudyRow.site_id, IdentityRow.ciphertext)
            .join(StudyRow, StudyRow.id == IdentityRow.study_id)
            .where(IdentityRow.pieces.is_(None))  # whoever writes tokens writes pieces, since there are any
            .order_by(IdentityRow.study_id)
            .limit(limit)
            .with_for_update(of=IdentityRow)
        ).all()
        identities = [(row[0], row[1], self.identity_of(row[2])) for row in rows]
        self._store_tokens(session, identities)
        filled = [
            {"study_id": study_id, "pieces": self.piece_numbers(site_id, one)} for study_id, site_id, one in identities
        ]
        if filled:
            session.execute(update(IdentityRow), filled)
        return len(rows)

    def stored_identities(self, session: Session, study_ids: Sequence[UUID]) -> dict[UUID, Identity]:
        """Read identities for comparing: nobody is shown them, so no audit row is left.

        Args:
            session: the caller's transaction.
            study_ids: the studies.

        Returns:
            The identities by study, of those that have one.
        """
        rows = session.execute(IDENTITIES, {"studies": list(map(str, study_ids))})
        return {study_id: self.identity_of(ciphertext) for study_id, ciphertext in rows}

    def change_identity(self, session: Session, site_id: UUID, study_id: UUID, identity: Identity) -> None:
        """Give a study another identity. Searches find it by its earlier numbers, too.

        Args:
            session: the caller's transaction.
            site_id: of the study.
            study_id: the study.
            identity: the new one; it must be readable.
        """
        assert identity.readable, "what cannot be read must not be written over"
        columns = {"ciphertext": self.seal(vars(identity)), "pieces": self.piece_numbers(site_id, identity)}
        session.execute(
            insert(IdentityRow)
            .values(study_id=study_id, **columns)
            .on_conflict_do_update(index_elements=["study_id"], set_=columns)
        )
        self._store_tokens(session, [(study_id, site_id, identity)])

    def identity_of(self, ciphertext: bytes) -> Identity:
        """Decrypt an identity, for comparing or for a caller who records that it is read; see UnreadableIdentity."""
        values = self.open(ciphertext)
        if not isinstance(values, dict):
            return UnreadableIdentity()
        return Identity(**{name: value for name, value in values.items() if name in Identity.__dataclass_fields__})

    def _store_tokens(self, session: Session, identities: Sequence[tuple[UUID, UUID, Identity]]) -> None:
        rows = [
            {"study_id": study_id, "kind": kind, "token": token}
            for study_id, site_id, identity in identities
            for kind, token in self.tokens(site_id, identity).items()
        ]
        if rows:
            session.execute(ADD_TOKENS, rows)

    def _token(self, site_id: UUID, kind: str, number: str) -> bytes:
        """Make 32 bytes of a number that only the holder of the key can make; none for an empty number.

        The site is part of it: a copy of the table does not reveal that one patient was in two hospitals.
        """
        normal = _normalised(number)
        message = json.dumps([str(site_id), kind, normal]).encode()
        return hmac.digest(self._search_key, message, "sha256") if normal else b""

    def identities(
        self, session: Session, reader: Key, study_ids: list[UUID], *, renewed: bool = False
    ) -> dict[UUID, Identity]:
        """Read identities for a reader; every reading leaves an audit row.

        Args:
            session: the caller's transaction.
            reader: who is shown them.
            study_ids: the studies.
            renewed: whether an open list renews itself: then what the reader's key was shown within READ_RECORD_LASTS
                is not recorded again.

        Returns:
            The identities by study, of those that have one.
        """
        rows = session.execute(select(IdentityRow).where(IdentityRow.study_id.in_(study_ids))).scalars().all()
        noted: set[UUID] = set()
        if renewed:
            noted.update(
                session.scalars(
                    select(IdentityReadRow.study_id).where(
                        IdentityReadRow.study_id.in_(study_ids),
                        IdentityReadRow.key_id == reader.id,
                        IdentityReadRow.read_at > func.now() - READ_RECORD_LASTS,
                    )
                )
            )
        self.note_reading(session, reader, [row.study_id for row in rows if row.study_id not in noted])
        return {row.study_id: self.identity_of(row.ciphertext) for row in rows}

    def note_reading(self, session: Session, reader: Key, study_ids: Sequence[UUID]) -> None:
        """Leave an audit row for each study whose identity the reader was shown.

        Args:
            session: the caller's transaction.
            reader: who was shown them.
            study_ids: the studies.
        """
        if study_ids:
            rows = [{"study_id": study_id, "key_id": reader.id} for study_id in study_ids]
            session.execute(insert(IdentityReadRow), rows)
