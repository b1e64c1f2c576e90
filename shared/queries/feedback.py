"""The feedback log: entries go in at the end, and are read; nothing else. Callers own the transaction."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4, uuid5

from sqlalchemy import Select, and_, exists, func, insert, or_, select
from sqlalchemy.orm import Session, aliased

from shared.db.clock import db_now
from shared.db.tables import (
    BundleRow,
    FeedbackRow,
    FindingRow,
    IdentityReadRow,
    InstanceRow,
    KeyRow,
    ReadingLockRow,
    SiteRow,
    StudyRow,
)
from shared.db.tables.studies import IS_ANALYSED
from shared.domain.destinations import Occasion
from shared.domain.feedback import GENESIS, OF_STUDY, ChainEntry, Entry, Mark, Verdict
from shared.domain.findings import Assessment
from shared.domain.notices import Event
from shared.domain.study import StudyStatus
from shared.errors import InvalidState, NotFound
from shared.queries import outbox
from shared.queries.access import Key
from shared.queries.reading_locks import (
    AcquiredLock,
    LockHolder,
    mark_read,
    put_back_on_list,
    resume_lock,
    serialize_locks,
)
from shared.queries.worklist import PLACE, ReadState, WorklistFilter, choose

AGREED_AT_DONE = UUID("5f0f5a5e-0a3c-4e0e-9d64-6d0b9f6d7a11")  # a namespace
JUDGING_VERDICTS = (Verdict.AGREE, Verdict.DISAGREE)  # of these a reader has one at a time on a finding
Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])


@dataclass(frozen=True)
class FeedbackDraft:
    """What a reader says, before it has a place in the feedback log."""

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
class HistoryEntry:
    """An entry with its reader's name, and the entry that has taken its place, if any."""

    entry: Entry
    hash: str
    reader: str
    superseded_by: UUID | None


def lock_study(session: Session, site_id: UUID, study_id: UUID) -> None:
    """Keep a study from getting an image, or another reader, until the transaction ends.

    Locked in the order that reading locks and `append_entry` keep: the study's locks, the site's row, the study's row.

    Args:
        session: the caller's transaction.
        site_id: of the study.
        study_id: the study.
    """
    serialize_locks(session, study_id)
    session.execute(select(SiteRow.id).where(SiteRow.id == site_id).with_for_update(key_share=True))
    session.execute(select(StudyRow.id).where(StudyRow.id == study_id, StudyRow.site_id == site_id).with_for_update())


def append_entry(session: Session, reader: Key, request_id: str, draft: FeedbackDraft, login: str = "") -> Entry:
    """Write an entry at the end of the log of the reader's site.

    A verdict on a finding replaces the reader's earlier one. "done" marks the study as read, "reopened" takes that
    back. Nothing is written if the request has written an entry before, if the verdict says the same as the reader's
    last one and adds nothing, or if the reader's "done" is still in force.

    Args:
        session: the caller's transaction.
        reader: who says it.
        request_id: the client's; the same one never writes twice.
        draft: the entry.
        login: the login of the reader's key; "" for a program.

    Returns:
        The entry: the new one, or the one that says this already.

    Raises:
        InvalidState: "done" while somebody else holds the study (see `mark_read`).
        NotFound: `supersedes` names no entry that is in force and that the reader may correct: their own on the same
            finding.
    """
    if draft.verdict is Verdict.DONE:
        serialize_locks(session, draft.study_id)  # before the site's row, as `lock_study` does
    # one writer a site at a time: each entry holds the hash of the one before
    session.execute(select(SiteRow.id).where(SiteRow.id == reader.site_id).with_for_update(key_share=True))
    known = entry_of_request(session, reader.site_id, request_id)
    if known is not None:
        return known
    replaced = _replaced_entry(session, reader, draft)
    if replaced is not None and (standing := _repeated_verdict(session, reader, replaced, draft)):
        return standing
    number, previous = _last_entry(session, reader.site_id)
    entry = Entry(
        id=uuid4(), site_id=reader.site_id, number=number + 1, study_id=draft.study_id, key_id=reader.id,
        answered_at=db_now(session), request_id=request_id, verdict=draft.verdict, instance_id=draft.instance_id,
        frame=draft.frame, bundle=draft.bundle, fracture=draft.fracture, region=draft.region, severity=draft.severity,
        marks=[mark.stored() for mark in draft.marks], words=draft.words, model_shown=draft.model_shown,
        supersedes=replaced, words_sha256=hashlib.sha256(draft.words).hexdigest() if draft.words else None,
    )  # fmt: skip
    session.execute(insert(FeedbackRow).values(**vars(entry), previous_hash=previous, hash=entry.hash(previous)))
    if draft.verdict in OF_STUDY:
        if draft.verdict is Verdict.DONE:
            mark_read(session, draft.study_id, reader, entry.answered_at, login)
            outbox.record_due(session, [draft.study_id], Occasion.AGREED)
            outbox.record_event(session, [draft.study_id], Event.READ)
        else:
            put_back_on_list(session, draft.study_id, reader)
    return entry


def agreement_request_id(request_id: str, instance_id: UUID, frame: int, bundle: str) -> str:
    """Name the request that agrees with a finding on behalf of a "done" request which agrees with all that is left.

    Args:
        request_id: of the "done" request.
        instance_id: of the finding.
        frame: of the finding, from 1.
        bundle: of the finding.

    Returns:
        A request id; the same for the same arguments.
    """
    return str(uuid5(AGREED_AT_DONE, f"{request_id} {instance_id} {frame} {bundle}"))


@dataclass(frozen=True)
class UndoResult:
    """A study that is back on the list."""

    holder: AcquiredLock | LockHolder | None  # who reads it now; None: nobody does, as before


def undo_done(
    session: Session, reader: Key, study_id: UUID, done_id: UUID, request_id: str, login: str, lease: timedelta
) -> UndoResult:
    """Take a reader's "done" back: the study is on the list as before, and what the "done" agreed with is open again.

    Their lock goes on if that "done" ended it and nobody else holds the study. The same request again changes nothing.

    Args:
        session: the caller's transaction.
        reader: who takes it back.
        study_id: the study.
        done_id: the entry.
        request_id: the client's.
        login: the login of the reader's key; "" for a program.
        lease: how long the lock lasts.

    Returns:
        Who reads the study now.

    Raises:
        NotFound: the reader wrote no such "done" on this study.
        InvalidState: it is not in force any more, or the request wrote something else; with a code.
    """
    lock_study(session, reader.site_id, study_id)
    done = session.get(FeedbackRow, done_id)
    if done is None or (done.study_id, done.verdict, done.key_id) != (study_id, Verdict.DONE, reader.id):
        raise NotFound("you have not marked this study as read by such an entry")
    later = session.execute(
        select(FeedbackRow.verdict, FeedbackRow.request_id, KeyRow.name)
        .join(KeyRow, KeyRow.id == FeedbackRow.key_id)
        .where(FeedbackRow.supersedes == done_id)
    ).one_or_none()
    known = entry_of_request(session, reader.site_id, request_id)
    if known is not None and known.supersedes != done_id:
        raise InvalidState("This Idempotency-Key came with other feedback before; make a new one", "request-reused")
    if later is None:
        for row in _agreed_at(session, done):
            taken_back = FeedbackDraft(
                study_id, Verdict.WITHDRAWN, row.instance_id, row.frame, row.bundle, supersedes=row.id
            )  # fmt: skip
            append_entry(session, reader, str(uuid4()), taken_back)
        append_entry(session, reader, request_id, FeedbackDraft(study_id, Verdict.REOPENED))
    elif later.request_id != request_id and later.verdict == Verdict.REOPENED:
        raise InvalidState(f"This study is on the list again already: {later.name} put it back.", "undone-already")
    elif later.request_id != request_id:
        raise InvalidState(
            f"{later.name} has marked this study as read since; it stays off the list. Open it to reopen it.",
            "read-by-another",
        )
    return UndoResult(resume_lock(session, study_id, reader, login, done.answered_at, db_now(session), lease))


def _agreed_at(session: Session, done: FeedbackRow) -> list[FeedbackRow]:
    """The entries that a "done" wrote because its reader agreed with all that was left, as far as they stand."""
    query = select(FeedbackRow).where(
        FeedbackRow.study_id == done.study_id, FeedbackRow.key_id == done.key_id, FeedbackRow.verdict == Verdict.AGREE
    )
    rows = session.scalars(_not_superseded(query).order_by(FeedbackRow.number)).all()
    return [
        row
        for row in rows
        if row.instance_id and row.request_id == agreement_request_id(
            done.request_id, row.instance_id, row.frame or 1, row.bundle or ""
        )
    ]  # fmt: skip


def entry_of_request(session: Session, site_id: UUID, request_id: str) -> Entry | None:
    """Find the entry that a client's request wrote.

    Args:
        session: the caller's transaction.
        site_id: the site.
        request_id: the client's.

    Returns:
        The entry; None if the request wrote none.
    """
    row = session.scalar(
        select(FeedbackRow).where(FeedbackRow.site_id == site_id, FeedbackRow.request_id == request_id)
    )
    return _entry(row) if row else None


def history(session: Session, study_id: UUID) -> list[HistoryEntry]:
    """Read all entries about a study; those about images that were deleted or rejected are only in the log.

    Args:
        session: the caller's transaction.
        study_id: the study.

    Returns:
        The entries, the oldest first.
    """
    there = exists().where(InstanceRow.id == FeedbackRow.instance_id, *IS_ANALYSED)
    later = aliased(FeedbackRow)
    rows = session.execute(
        select(FeedbackRow, KeyRow.name, later.id)
        .join(KeyRow, KeyRow.id == FeedbackRow.key_id)
        .outerjoin(later, later.supersedes == FeedbackRow.id)
        .where(FeedbackRow.study_id == study_id, or_(FeedbackRow.instance_id.is_(None), there))
        .order_by(FeedbackRow.number)
    )
    entries: list[HistoryEntry] = []
    verdicts: dict[tuple[UUID, UUID | None, int | None, str | None], UUID] = {}  # the next of that reader and finding
    for row, reader, by in reversed(rows.all()):
        superseded_by: UUID | None = by
        if row.verdict in JUDGING_VERDICTS:
            finding = (row.key_id, row.instance_id, row.frame, row.bundle)
            superseded_by = superseded_by or verdicts.get(finding)
            verdicts[finding] = row.id
        entries.append(HistoryEntry(_entry(row), row.hash, reader, superseded_by))
    return entries[::-1]


def studies_with_feedback(session: Session, study_ids: Sequence[UUID]) -> set[UUID]:
    """Find which studies have entries at all.

    Args:
        session: the caller's transaction.
        study_ids: the studies.

    Returns:
        Those that have.
    """
    return set(session.scalars(select(FeedbackRow.study_id).distinct().where(FeedbackRow.study_id.in_(study_ids))))


def findings_with_feedback(session: Session, study_id: UUID) -> dict[UUID, tuple[Assessment, float | None]]:
    """Find what each entry of a study is about.

    Args:
        session: the caller's transaction.
        study_id: the study.

    Returns:
        Assessment and score of the finding, by id of the entry, of entries about a finding.
    """
    query = (
        select(FeedbackRow.id, FindingRow.assessment, FindingRow.score)
        .join(FindingRow, and_(
            FindingRow.instance_id == FeedbackRow.instance_id,
            FindingRow.frame == FeedbackRow.frame,
            FindingRow.bundle == FeedbackRow.bundle,
        ))
        .where(FeedbackRow.study_id == study_id)
    )  # fmt: skip
    return {id_: (Assessment(assessment), score) for id_, assessment, score in session.execute(query)}


def site_ids(session: Session) -> list[UUID]:
    """Every site that can have a feedback log."""
    return list(session.scalars(select(SiteRow.id).where(~SiteRow.checks)))


def record_words_read(session: Session, reader: Key, study_id: UUID) -> None:
    """Leave the audit row of an identity, for free text may name a patient.

    Args:
        session: the caller's transaction.
        reader: who was shown the text.
        study_id: the study.
    """
    session.execute(insert(IdentityReadRow).values(study_id=study_id, key_id=reader.id))


def findings_with_feedback_by(
    session: Session, reader: Key, study_id: UUID
) -> set[tuple[UUID | None, int | None, str | None]]:
    """Find the findings of a study on which a reader has given feedback that is in force.

    Args:
        session: the caller's transaction.
        reader: who gave it.
        study_id: the study.

    Returns:
        Instance, frame and bundle of each.
    """
    query = _not_superseded(select(FeedbackRow.instance_id, FeedbackRow.frame, FeedbackRow.bundle)).where(
        FeedbackRow.study_id == study_id,
        FeedbackRow.key_id == reader.id,
        FeedbackRow.verdict.in_((*JUDGING_VERDICTS, Verdict.SUPPLEMENT)),
    )
    return {(row.instance_id, row.frame, row.bundle) for row in session.execute(query)}


def assessment_of(session: Session, instance_id: UUID, frame: int, bundle: str) -> Assessment:
    """Read a finding's assessment.

    Args:
        session: the caller's transaction.
        instance_id: of the finding.
        frame: of the finding, from 1.
        bundle: of the finding.

    Returns:
        The assessment; a missing finding raises sqlalchemy.exc.NoResultFound.
    """
    query = select(FindingRow.assessment).where(
        FindingRow.instance_id == instance_id, FindingRow.frame == frame, FindingRow.bundle == bundle
    )
    return Assessment(session.scalars(query).one())


def has_finding(session: Session, instance_id: UUID, frame: int, bundle: str) -> bool:
    """Check whether a bundle has a finding that readers may see.

    Args:
        session: the caller's transaction.
        instance_id: of the finding.
        frame: of the finding, from 1.
        bundle: of the finding; one that was never active counts as having none.

    Returns:
        Whether there is one.
    """
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
    session: Session, reader: Key, but: UUID, login: str = "", chosen: WorklistFilter | None = None, number: int = 1
) -> Sequence[UUID]:
    """Find the studies to read next: analysed or quarantined, unread, held by nobody else, the first by their place.

    Args:
        session: the caller's transaction.
        reader: who asks.
        but: a study that is left out.
        login: the login of the reader's key; another login counts as somebody else.
        chosen: filters of the list that the reader came from; None: all.
        number: so many at most.

    Returns:
        Their ids, the next one first.
    """
    others = select(ReadingLockRow.id).where(
        ReadingLockRow.study_id == StudyRow.id,
        or_(ReadingLockRow.key_id != reader.id, ReadingLockRow.login != login),
        ReadingLockRow.ended_at.is_(None),
        ReadingLockRow.until >= func.clock_timestamp(),
    )
    waiting = replace(chosen or WorklistFilter(), state=ReadState.UNREAD)
    return session.scalars(
        choose(select(StudyRow.id), reader.site_id, waiting)
        .where(
            ~others.exists(),
            StudyRow.status.in_((StudyStatus.ANALYSED, StudyStatus.QUARANTINED)),
            StudyRow.id != but,
        )
        .order_by(*PLACE)
        .limit(number)
    ).all()


@dataclass(frozen=True)
class Judgement:
    """A finding that a reader agreed with or not, as the agreement page counts it; no reader, no study."""

    number: int  # its entry's, which is the order of feedback
    answered_at: datetime
    agrees: bool
    fracture: str | None  # what the reader sees instead, where said
    assessment: str
    region: str
    bundle: str
    scanner: str


def judgements(
    session: Session, site_id: UUID, since: datetime | None = None, bundle: str | None = None
) -> list[Judgement]:
    """Read the verdicts of a site that are in force.

    Args:
        session: the caller's transaction.
        site_id: the site.
        since: from this time on; None: all.
        bundle: on findings of this one; None: of all.

    Returns:
        The verdicts in order of answering.
    """
    query = (
        _not_superseded(select(
            FeedbackRow.number, FeedbackRow.answered_at, FeedbackRow.verdict == Verdict.AGREE, FeedbackRow.fracture,
            FindingRow.assessment, FindingRow.region, FindingRow.bundle, StudyRow.scanner,
        ))
        .join(FindingRow, and_(
            FindingRow.instance_id == FeedbackRow.instance_id,
            FindingRow.frame == FeedbackRow.frame,
            FindingRow.bundle == FeedbackRow.bundle,
        ))
        .join(StudyRow, StudyRow.id == FeedbackRow.study_id)
        .join(InstanceRow, and_(InstanceRow.id == FeedbackRow.instance_id, *IS_ANALYSED))
        .where(FeedbackRow.site_id == site_id, FeedbackRow.verdict.in_(JUDGING_VERDICTS))
        .order_by(FeedbackRow.number)
    )  # fmt: skip
    if since is not None:
        query = query.where(FeedbackRow.answered_at >= since)
    if bundle is not None:
        query = query.where(FeedbackRow.bundle == bundle)
    return [Judgement(*row) for row in session.execute(query)]


@dataclass(frozen=True)
class LabelledFinding:
    """An entry that stands, with the radiograph and the finding that it is about."""

    entry: Entry
    instance: InstanceRow
    finding: FindingRow


def labelled_findings(session: Session, site_id: UUID, since: datetime | None = None) -> list[LabelledFinding]:
    """Read the entries about findings that are in force: the content of a training table.

    With `since`, all entries of the images on which one was given from then on: a label rests on all of them.

    Args:
        session: the caller's transaction.
        site_id: the site.
        since: from this time on; None: all.

    Returns:
        The entries in order of answering.
    """
    query = (
        _not_superseded(select(FeedbackRow, InstanceRow, FindingRow))
        .join(InstanceRow, and_(InstanceRow.id == FeedbackRow.instance_id, *IS_ANALYSED))
        .join(FindingRow, and_(
            FindingRow.instance_id == FeedbackRow.instance_id,
            FindingRow.frame == FeedbackRow.frame,
            FindingRow.bundle == FeedbackRow.bundle,
        ))
        .where(FeedbackRow.site_id == site_id, FeedbackRow.verdict != Verdict.WITHDRAWN)
        .order_by(FeedbackRow.number)
    )  # fmt: skip
    if since is not None:
        fresh = select(FeedbackRow.instance_id).where(FeedbackRow.site_id == site_id, FeedbackRow.answered_at >= since)
        query = query.where(FeedbackRow.instance_id.in_(fresh))
    return [LabelledFinding(_entry(row), instance, finding) for row, instance, finding in session.execute(query)]


def site_name(session: Session, site_id: UUID) -> str:
    """Read a site's name.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        The name.
    """
    return session.scalars(select(SiteRow.name).where(SiteRow.id == site_id)).one()


def chain_entries(session: Session, site_id: UUID, after: int = 0, limit: int | None = None) -> list[ChainEntry]:
    """Read a site's entries in their order.

    Args:
        session: the caller's transaction.
        site_id: the site.
        after: number of the last entry before them; 0: from the first on.
        limit: how many; None: all.

    Returns:
        The entries with their hashes.
    """
    query = (
        select(FeedbackRow)
        .where(FeedbackRow.site_id == site_id, FeedbackRow.number > after)
        .order_by(FeedbackRow.number)
    )
    return [ChainEntry(_entry(row), row.previous_hash, row.hash) for row in session.scalars(query.limit(limit))]


def _last_entry(session: Session, site_id: UUID) -> tuple[int, str]:
    """Number and hash of a site's last entry."""
    query = select(FeedbackRow.number, FeedbackRow.hash).where(FeedbackRow.site_id == site_id)
    row = session.execute(query.order_by(FeedbackRow.number.desc()).limit(1)).first()
    return (row.number, row.hash) if row else (0, GENESIS)


def _not_superseded(query: Query) -> Query:
    """Without the entries that a later one supersedes: the one that it names, and its reader's earlier verdict."""
    later, verdict = aliased(FeedbackRow), aliased(FeedbackRow)
    named = select(later.id).where(later.supersedes == FeedbackRow.id)
    # a verdict may name a supplement as what it corrects, and the verdict before it falls all the same
    newer = select(verdict.id).where(
        FeedbackRow.verdict.in_(JUDGING_VERDICTS),
        verdict.verdict.in_(JUDGING_VERDICTS),
        verdict.key_id == FeedbackRow.key_id,
        verdict.instance_id == FeedbackRow.instance_id,
        verdict.frame == FeedbackRow.frame,
        verdict.bundle == FeedbackRow.bundle,
        verdict.number > FeedbackRow.number,
    )
    return query.where(~named.exists(), ~newer.exists())


def _replaced_entry(session: Session, reader: Key, draft: FeedbackDraft) -> UUID | None:
    """The standing entry whose place this one takes. A supplement stands beside others, unless it says otherwise."""
    standing = _not_superseded(select(FeedbackRow.id)).where(FeedbackRow.study_id == draft.study_id)
    of_study = FeedbackRow.verdict.in_(OF_STUDY)
    same_finding = and_(
        FeedbackRow.key_id == reader.id,
        FeedbackRow.instance_id == draft.instance_id,
        FeedbackRow.frame == draft.frame,
        FeedbackRow.bundle == draft.bundle,
    )
    if draft.supersedes is not None:
        own = of_study if draft.verdict in OF_STUDY else same_finding
        if session.scalar(standing.where(FeedbackRow.id == draft.supersedes, own)) is None:
            raise NotFound(
                "no feedback of yours on this finding has that id, or it was corrected already; load the page again"
            )
        return draft.supersedes
    if draft.verdict in (Verdict.SUPPLEMENT, Verdict.SEEN):
        return None
    same = of_study if draft.verdict in OF_STUDY else and_(FeedbackRow.verdict.in_(JUDGING_VERDICTS), same_finding)
    return session.scalar(standing.where(same).order_by(FeedbackRow.number.desc()).limit(1))


def _repeated_verdict(session: Session, reader: Key, standing_id: UUID, draft: FeedbackDraft) -> Entry | None:
    """The standing verdict, if the reader only says it again; a correction that names it may take words back."""
    if draft.verdict is Verdict.DONE:
        entry = _entry(session.get_one(FeedbackRow, standing_id))
        # a late image puts a study back on the list without an entry
        read_at = session.scalar(select(StudyRow.read_at).where(StudyRow.id == draft.study_id))
        mine = (entry.verdict, entry.key_id, entry.answered_at) == (Verdict.DONE, reader.id, read_at)
        return entry if mine else None
    if draft.verdict not in JUDGING_VERDICTS or draft.supersedes is not None or draft.words or draft.marks:
        return None
    standing = _entry(session.get_one(FeedbackRow, standing_id))
    names = ("verdict", "fracture", "region", "severity", "model_shown")
    return standing if all(getattr(standing, name) == getattr(draft, name) for name in names) else None


def _entry(row: FeedbackRow) -> Entry:
    return Entry(**{field.name: getattr(row, field.name) for field in fields(Entry)})
