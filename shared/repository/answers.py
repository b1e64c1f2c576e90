"""The ledger: entries go in at the end, and are read; nothing else. Callers own the transaction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4, uuid5

from sqlalchemy import Select, and_, func, insert, or_, select
from sqlalchemy.orm import Session, aliased

from shared.answers import GENESIS, OF_STUDY, Entry, Mark, Verdict
from shared.errors import NotFound, NotNow
from shared.findings import Assessment
from shared.repository.access import Key
from shared.repository.reading import PLACE, ReadState, WorklistFilter, choose
from shared.repository.reading_room import Claimed, HeldBy, lock_claims, mark_read, resume, unread
from shared.repository.work import clock
from shared.study import StudyStatus
from shared.tables import (
    AnswerRow,
    BundleRow,
    FindingRow,
    IdentityReadRow,
    InstanceRow,
    KeyRow,
    SiteRow,
    StudyClaimRow,
    StudyRow,
)

AGREED_AT_DONE = UUID("5f0f5a5e-0a3c-4e0e-9d64-6d0b9f6d7a11")  # a namespace
JUDGES = (Verdict.AGREE, Verdict.DISAGREE)  # of these a reader has one at a time on a finding
Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])


@dataclass(frozen=True)
class Said:
    """What a reader says, before it has a place in the ledger."""

    study_id: UUID
    verdict: Verdict
    instance_id: UUID | None = None
    frame: int | None = None
    bundle: str | None = None
    fracture: str | None = None
    region: str | None = None
    severity: str | None = None
    marks: Sequence[Mark] = ()
    words: bytes | None = None  # sealed by the Vault
    model_shown: bool = True
    supersedes: UUID | None = None


@dataclass(frozen=True)
class Answered:
    """An entry with its reader's name, and the entry that has taken its place, if any."""

    entry: Entry
    hash: str
    reader: str
    superseded_by: UUID | None


def hold(session: Session, site_id: UUID, study_id: UUID) -> None:
    """Until the transaction ends this study gets no image, and no other reader.

    Locked in the one order that claims and `append` keep: the study's claims, the site's row, the study's row.
    """
    lock_claims(session, study_id)
    session.execute(select(SiteRow.id).where(SiteRow.id == site_id).with_for_update(key_share=True))
    session.execute(select(StudyRow.id).where(StudyRow.id == study_id, StudyRow.site_id == site_id).with_for_update())


def append(session: Session, reader: Key, request_id: str, said: Said, desk: str = "") -> Entry:
    """Write an entry at the end of the reader's site's ledger; one of that request is returned as it is.

    So is the reader's standing verdict on the finding, when this one says the same and adds nothing.
    A verdict on a finding takes the place of the reader's earlier one. "done" marks the study read, "reopened" takes
    that back; a reader's "done" that stands is not written again. desk: which login of the reader's key says it.
    Raises NotNow for "done" while somebody else holds the study (see `mark_read`).
    Raises NotFound when `supersedes` names no entry that still stands and that the reader may correct: their own on
    the same finding.
    """
    if said.verdict is Verdict.DONE:
        lock_claims(session, said.study_id)  # before the site's row, as `hold` does
    # one writer a site at a time: each entry holds the hash of the one before
    session.execute(select(SiteRow.id).where(SiteRow.id == reader.site_id).with_for_update(key_share=True))
    known = of_request(session, reader.site_id, request_id)
    if known is not None:
        return known
    replaced = _replaced(session, reader, said)
    if replaced is not None and (standing := _nothing_new(session, reader, replaced, said)):
        return standing
    number, previous = _end(session, reader.site_id)
    entry = Entry(
        id=uuid4(), site_id=reader.site_id, number=number + 1, study_id=said.study_id, key_id=reader.id,
        answered_at=clock(session), request_id=request_id, verdict=said.verdict, instance_id=said.instance_id,
        frame=said.frame, bundle=said.bundle, fracture=said.fracture, region=said.region, severity=said.severity,
        marks=[mark.stored() for mark in said.marks], words=said.words, model_shown=said.model_shown,
        supersedes=replaced,
    )  # fmt: skip
    session.execute(insert(AnswerRow).values(**vars(entry), previous_hash=previous, hash=entry.hash(previous)))
    if said.verdict in OF_STUDY:
        if said.verdict is Verdict.DONE:
            mark_read(session, said.study_id, reader, entry.answered_at, desk)
        else:
            unread(session, said.study_id, reader)
    return entry


def agree_request(request_id: str, instance_id: UUID, frame: int, bundle: str) -> str:
    """The request that agrees with this finding on behalf of a "done" request which agrees with all that is left."""
    return str(uuid5(AGREED_AT_DONE, f"{request_id} {instance_id} {frame} {bundle}"))


@dataclass(frozen=True)
class Undone:
    """A study that is back on the list."""

    holder: Claimed | HeldBy | None  # who reads it now; None: nobody does, as before


def undo_done(
    session: Session, reader: Key, study_id: UUID, done_id: UUID, request_id: str, desk: str, lease: timedelta
) -> Undone:
    """Take a reader's "done" back: the study stands on the list as it did, and what the "done" agreed with is open.

    Their claim goes on if it ended by that "done" and nobody else holds the study. The same request again changes
    nothing. Raises NotFound if the reader wrote no such "done" on this study; NotNow, with a code, if it does not stand
    any more, or if the request wrote something else.
    """
    hold(session, reader.site_id, study_id)
    done = session.get(AnswerRow, done_id)
    if done is None or (done.study_id, done.verdict, done.key_id) != (study_id, Verdict.DONE, reader.id):
        raise NotFound("you have not marked this study as read by such an entry")
    later = session.execute(
        select(AnswerRow.verdict, AnswerRow.request_id, KeyRow.name)
        .join(KeyRow, KeyRow.id == AnswerRow.key_id)
        .where(AnswerRow.supersedes == done_id)
    ).one_or_none()
    known = of_request(session, reader.site_id, request_id)
    if known is not None and known.supersedes != done_id:
        raise NotNow("This Idempotency-Key came with another answer before; make a new one", "request-reused")
    if later is None:
        for row in _agreed_at(session, done):
            taken_back = Said(
                study_id, Verdict.WITHDRAWN, row.instance_id, row.frame, row.bundle, supersedes=row.id
            )  # fmt: skip
            append(session, reader, str(uuid4()), taken_back)
        append(session, reader, request_id, Said(study_id, Verdict.REOPENED))
    elif later.request_id != request_id and later.verdict == Verdict.REOPENED:
        raise NotNow(f"This study is on the list again already: {later.name} put it back.", "undone-already")
    elif later.request_id != request_id:
        raise NotNow(
            f"{later.name} has marked this study as read since; it stays off the list. Open it to reopen it.",
            "read-by-another",
        )
    return Undone(resume(session, study_id, reader, desk, done.answered_at, clock(session), lease))


def _agreed_at(session: Session, done: AnswerRow) -> list[AnswerRow]:
    """The entries that a "done" wrote because its reader agreed with all that was left, as far as they stand."""
    query = select(AnswerRow).where(
        AnswerRow.study_id == done.study_id, AnswerRow.key_id == done.key_id, AnswerRow.verdict == Verdict.AGREE
    )
    rows = session.scalars(_standing(query).order_by(AnswerRow.number)).all()
    return [
        row
        for row in rows
        if row.instance_id and row.request_id == agree_request(
            done.request_id, row.instance_id, row.frame or 1, row.bundle or ""
        )
    ]  # fmt: skip


def of_request(session: Session, site_id: UUID, request_id: str) -> Entry | None:
    """The entry that a client's request wrote, if it did."""
    row = session.scalar(select(AnswerRow).where(AnswerRow.site_id == site_id, AnswerRow.request_id == request_id))
    return _entry(row) if row else None


def history(session: Session, study_id: UUID) -> list[Answered]:
    """All entries about a study, oldest first."""
    later = aliased(AnswerRow)
    rows = session.execute(
        select(AnswerRow, KeyRow.name, later.id)
        .join(KeyRow, KeyRow.id == AnswerRow.key_id)
        .outerjoin(later, later.supersedes == AnswerRow.id)
        .where(AnswerRow.study_id == study_id)
        .order_by(AnswerRow.number)
    )
    told: list[Answered] = []
    verdicts: dict[tuple[UUID, UUID | None, int | None, str | None], UUID] = {}  # the next of that reader and finding
    for row, reader, by in reversed(rows.all()):
        superseded_by: UUID | None = by
        if row.verdict in JUDGES:
            finding = (row.key_id, row.instance_id, row.frame, row.bundle)
            superseded_by = superseded_by or verdicts.get(finding)
            verdicts[finding] = row.id
        told.append(Answered(_entry(row), row.hash, reader, superseded_by))
    return told[::-1]


def answered_findings(session: Session, study_id: UUID) -> dict[UUID, tuple[Assessment, float | None]]:
    """Assessment and score of the finding that each entry about a finding of the study is about."""
    query = (
        select(AnswerRow.id, FindingRow.assessment, FindingRow.score)
        .join(FindingRow, and_(
            FindingRow.instance_id == AnswerRow.instance_id,
            FindingRow.frame == AnswerRow.frame,
            FindingRow.bundle == AnswerRow.bundle,
        ))
        .where(AnswerRow.study_id == study_id)
    )  # fmt: skip
    return {id_: (Assessment(assessment), score) for id_, assessment, score in session.execute(query)}


def sites(session: Session) -> list[UUID]:
    """Every site that can have a ledger."""
    return list(session.scalars(select(SiteRow.id)))


def words_were_read(session: Session, reader: Key, study_id: UUID) -> None:
    """Free text may name a patient, so its reading leaves the same audit row as an identity's."""
    session.execute(insert(IdentityReadRow).values(study_id=study_id, key_id=reader.id))


def answered_by(session: Session, reader: Key, study_id: UUID) -> set[tuple[UUID | None, int | None, str | None]]:
    """Instance, frame and bundle of each finding of a study to which an answer of this reader stands."""
    query = _standing(select(AnswerRow.instance_id, AnswerRow.frame, AnswerRow.bundle)).where(
        AnswerRow.study_id == study_id,
        AnswerRow.key_id == reader.id,
        AnswerRow.verdict.in_((*JUDGES, Verdict.SUPPLEMENT)),
    )
    return {(row.instance_id, row.frame, row.bundle) for row in session.execute(query)}


def assessment_of(session: Session, instance_id: UUID, frame: int, bundle: str) -> Assessment:
    """What a bundle says of a frame. Raises sqlalchemy.exc.NoResultFound."""
    query = select(FindingRow.assessment).where(
        FindingRow.instance_id == instance_id, FindingRow.frame == frame, FindingRow.bundle == bundle
    )
    return Assessment(session.scalars(query).one())


def has_finding(session: Session, instance_id: UUID, frame: int, bundle: str) -> bool:
    """Whether that bundle has said anything of that frame that readers may see."""
    query = (
        select(FindingRow.id)
        .join(BundleRow, BundleRow.name == FindingRow.bundle)
        .where(
            FindingRow.instance_id == instance_id,
            FindingRow.frame == frame,
            FindingRow.bundle == bundle,
            BundleRow.activated_at.is_not(None),  # a shadow's findings are nobody's to see
        )
    )
    return session.scalar(query) is not None


def next_unread(
    session: Session, reader: Key, but: UUID, desk: str = "", chosen: WorklistFilter | None = None
) -> UUID | None:
    """The study that should be read next: analysed or set aside, not read yet, in nobody else's hands, first by place.

    desk: which login of the reader's key asks; another one is somebody else. chosen: the list that they came with.
    """
    others = select(StudyClaimRow.id).where(
        StudyClaimRow.study_id == StudyRow.id,
        or_(StudyClaimRow.key_id != reader.id, StudyClaimRow.desk != desk),
        StudyClaimRow.ended_at.is_(None),
        StudyClaimRow.until >= func.clock_timestamp(),
    )
    waiting = replace(chosen or WorklistFilter(), state=ReadState.UNREAD)
    return session.scalar(
        choose(select(StudyRow.id), reader.site_id, waiting)
        .where(
            ~others.exists(),
            StudyRow.status.in_((StudyStatus.ANALYSED, StudyStatus.QUARANTINED)),
            StudyRow.id != but,
        )
        .order_by(*PLACE)
        .limit(1)
    )


@dataclass(frozen=True)
class Judged:
    """A finding that a reader agreed with or not, as the agreement page counts it; no reader, no study."""

    number: int  # its entry's, which is the order of answering
    answered_at: datetime
    agrees: bool
    fracture: str | None  # what the reader sees instead, where said
    assessment: str
    region: str
    bundle: str
    scanner: str


def judged(session: Session, site_id: UUID, since: datetime | None = None, bundle: str | None = None) -> list[Judged]:
    """Every agree or disagree of a site that still stands, in order of answering; bundle: of this one's findings."""
    query = (
        _standing(select(
            AnswerRow.number, AnswerRow.answered_at, AnswerRow.verdict == Verdict.AGREE, AnswerRow.fracture,
            FindingRow.assessment, FindingRow.region, FindingRow.bundle, StudyRow.scanner,
        ))
        .join(FindingRow, and_(
            FindingRow.instance_id == AnswerRow.instance_id,
            FindingRow.frame == AnswerRow.frame,
            FindingRow.bundle == AnswerRow.bundle,
        ))
        .join(StudyRow, StudyRow.id == AnswerRow.study_id)
        .where(AnswerRow.site_id == site_id, AnswerRow.verdict.in_(JUDGES))
        .order_by(AnswerRow.number)
    )  # fmt: skip
    if since is not None:
        query = query.where(AnswerRow.answered_at >= since)
    if bundle is not None:
        query = query.where(AnswerRow.bundle == bundle)
    return [Judged(*row) for row in session.execute(query)]


@dataclass(frozen=True)
class Labelled:
    """An entry that stands, with the film and the finding that it is about."""

    entry: Entry
    instance: InstanceRow
    finding: FindingRow


def labelled(session: Session, site_id: UUID, since: datetime | None = None) -> list[Labelled]:
    """Every entry about a finding that still stands, in order: what a training table is made of.

    With `since`, all entries of the films that were answered from then on: a label rests on all that was said of them.
    """
    query = (
        _standing(select(AnswerRow, InstanceRow, FindingRow))
        .join(InstanceRow, InstanceRow.id == AnswerRow.instance_id)
        .join(FindingRow, and_(
            FindingRow.instance_id == AnswerRow.instance_id,
            FindingRow.frame == AnswerRow.frame,
            FindingRow.bundle == AnswerRow.bundle,
        ))
        .where(AnswerRow.site_id == site_id, AnswerRow.verdict != Verdict.WITHDRAWN)
        .order_by(AnswerRow.number)
    )  # fmt: skip
    if since is not None:
        fresh = select(AnswerRow.instance_id).where(AnswerRow.site_id == site_id, AnswerRow.answered_at >= since)
        query = query.where(AnswerRow.instance_id.in_(fresh))
    return [Labelled(_entry(row), instance, finding) for row, instance, finding in session.execute(query)]


@dataclass(frozen=True)
class Check:
    """What checking a site's ledger found."""

    site: str
    entries: int
    head: str  # hash of the last entry: note it elsewhere, for a ledger cut off at its end cannot tell by itself
    problems: list[str]  # in words, with entry numbers; empty when nothing was changed


def check(session: Session, site: str, noted: tuple[int, str] | None = None) -> Check:
    """Walk a site's chain. noted: (number, hash) of an entry as somebody wrote it down earlier. Raises NotFound."""
    site_id = session.scalar(select(SiteRow.id).where(SiteRow.name == site))
    if site_id is None:
        raise NotFound(f"there is no site {site} here")
    problems: list[str] = []
    hashes: dict[int, str] = {}
    last, previous = 0, GENESIS
    for row in _rows(session, site_id):
        if row.number != last + 1:
            problems.append(f"entry {last + 1} is missing: the next one is {row.number}")
        if row.previous_hash != previous:
            problems.append(f"entry {row.number} does not follow the entry before it")
        if _entry(row).hash(row.previous_hash) != row.hash:
            problems.append(f"entry {row.number} was changed after it was written")
        last, previous = row.number, row.hash
        hashes[row.number] = row.hash
    if noted is not None and hashes.get(noted[0]) != noted[1]:
        gone = noted[0] not in hashes
        problems.append(f"entry {noted[0]} {'is missing' if gone else 'is another one than was noted'}")
    return Check(site, len(hashes), previous, problems)


def _rows(session: Session, site_id: UUID) -> Iterator[AnswerRow]:
    query = select(AnswerRow).where(AnswerRow.site_id == site_id).order_by(AnswerRow.number)
    yield from session.scalars(query.execution_options(yield_per=1000))


def _end(session: Session, site_id: UUID) -> tuple[int, str]:
    """Number and hash of a site's last entry."""
    query = select(AnswerRow.number, AnswerRow.hash).where(AnswerRow.site_id == site_id)
    row = session.execute(query.order_by(AnswerRow.number.desc()).limit(1)).first()
    return (row.number, row.hash) if row else (0, GENESIS)


def _standing(query: Query) -> Query:
    """Without the entries that a later one supersedes: the one that it names, and its reader's earlier verdict."""
    later, verdict = aliased(AnswerRow), aliased(AnswerRow)
    named = select(later.id).where(later.supersedes == AnswerRow.id)
    # a verdict may name a supplement as what it corrects, and the verdict before it falls all the same
    newer = select(verdict.id).where(
        AnswerRow.verdict.in_(JUDGES),
        verdict.verdict.in_(JUDGES),
        verdict.key_id == AnswerRow.key_id,
        verdict.instance_id == AnswerRow.instance_id,
        verdict.frame == AnswerRow.frame,
        verdict.bundle == AnswerRow.bundle,
        verdict.number > AnswerRow.number,
    )
    return query.where(~named.exists(), ~newer.exists())


def _replaced(session: Session, reader: Key, said: Said) -> UUID | None:
    """The standing entry whose place this one takes. A supplement stands beside others, unless it says otherwise."""
    standing = _standing(select(AnswerRow.id)).where(AnswerRow.study_id == said.study_id)
    of_study = AnswerRow.verdict.in_(OF_STUDY)
    same_finding = and_(
        AnswerRow.key_id == reader.id,
        AnswerRow.instance_id == said.instance_id,
        AnswerRow.frame == said.frame,
        AnswerRow.bundle == said.bundle,
    )
    if said.supersedes is not None:
        own = of_study if said.verdict in OF_STUDY else same_finding
        if session.scalar(standing.where(AnswerRow.id == said.supersedes, own)) is None:
            raise NotFound(
                "no answer of yours to this finding has that id, or it was corrected already; load the page again"
            )
        return said.supersedes
    if said.verdict in (Verdict.SUPPLEMENT, Verdict.SEEN):
        return None
    same = of_study if said.verdict in OF_STUDY else and_(AnswerRow.verdict.in_(JUDGES), same_finding)
    return session.scalar(standing.where(same).order_by(AnswerRow.number.desc()).limit(1))


def _nothing_new(session: Session, reader: Key, standing_id: UUID, said: Said) -> Entry | None:
    """The standing verdict, if the reader only says it again; a correction that names it may take words back."""
    if said.verdict is Verdict.DONE:
        entry = _entry(session.get_one(AnswerRow, standing_id))
        # a late image puts a study back on the list without an entry
        read_at = session.scalar(select(StudyRow.read_at).where(StudyRow.id == said.study_id))
        mine = (entry.verdict, entry.key_id, entry.answered_at) == (Verdict.DONE, reader.id, read_at)
        return entry if mine else None
    if said.verdict not in JUDGES or said.supersedes is not None or said.words or said.marks:
        return None
    standing = _entry(session.get_one(AnswerRow, standing_id))
    names = ("verdict", "fracture", "region", "severity", "model_shown")
    return standing if all(getattr(standing, name) == getattr(said, name) for name in names) else None


def _entry(row: AnswerRow) -> Entry:
    return Entry(**{field.name: getattr(row, field.name) for field in fields(Entry)})
