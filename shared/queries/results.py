"""Results that leave Osteon: what a set of them states, where it goes, and the objects that were made of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased, selectinload

from shared.db.clock import db_now
from shared.db.notify import worklist_changed
from shared.db.tables import (
    BundleRow,
    DeliveryObjectRow,
    DeliveryRow,
    DestinationRow,
    DestinationRuleRow,
    FindingRow,
    InstanceRow,
    LeftObjectRow,
    ResultObjectRow,
    ResultSetRow,
    SeriesRow,
    SiteRow,
    StudyRow,
)
from shared.domain.destinations import (
    DECIDABLE,
    TRIED_FOR,
    DeliveryState,
    NewerModels,
    Occasion,
    Rule,
    SetReason,
    SetState,
    StudyFacts,
    When,
    applies,
    refuses,
    send_time,
)
from shared.domain.feedback import ReadersSummary, Verdict, readers_summary
from shared.domain.findings import (
    Assessment,
    ExposedField,
    Extent,
    Finding,
    Heatmap,
    OperatingPoints,
    abstention_of,
)
from shared.domain.manifest import title_of
from shared.domain.results import (
    IN_PLACE_OF,
    SERIES_NUMBERS,
    CaptureModality,
    ImageStatement,
    ModelStatement,
    ReaderStatement,
    Replaced,
    ResultInput,
    ResultKind,
    SiteStatement,
)
from shared.domain.study import StoredOnly, StoredStatus
from shared.errors import reason_of
from shared.queries import feedback, outbox, studies
from shared.queries.outbox import BY_RULES

COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.33"
CLASS_OF = {  # of documents, which a destination may refuse in one form and take in another
    **dict.fromkeys(IN_PLACE_OF, COMPREHENSIVE_3D_SR),
    **dict.fromkeys(IN_PLACE_OF.values(), COMPREHENSIVE_SR),
}
TAKING_LOCK = 0x05_7E_0A_05
# in which objects are sent: pictures first, documents last
ORDER = {kind: place for place, kind in enumerate(sorted(ResultKind, key=lambda kind: SERIES_NUMBERS[kind]))}


# -- the process that makes the objects


@dataclass(frozen=True)
class DueSet:
    """A set of results that this process is to make, as long as its lease lasts."""

    id: UUID
    token: UUID
    study_id: UUID
    site_id: UUID
    occasion: Occasion
    destination_id: UUID | None
    kinds: tuple[ResultKind, ...] | None
    attempts: int


@dataclass(frozen=True)
class DestinationPlan:
    """What of a set goes to a destination, and from when on."""

    destination_id: UUID
    kinds: tuple[ResultKind, ...]
    send_at: datetime


@dataclass(frozen=True)
class Plan:
    """A set to be made: what it states, and where it goes.

    digest: under which its objects are named. missing: kinds that are still to be made. header_version: of the study.
    """

    stated: ResultInput
    repeats: UUID | None  # the set that was made of the same
    assessment: str
    destinations: tuple[DestinationPlan, ...]
    missing: frozenset[ResultKind]
    header_version: int


@dataclass(frozen=True)
class MadeObject:
    """An object whose bytes are in the store."""

    kind: ResultKind
    number: int
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    size_bytes: int
    modality: str
    rows: int = 0
    columns: int = 0


def take(session: Session, lease: timedelta) -> DueSet | None:
    """Take the set that waits longest, of a study of which no set is being made: each names what the last one said.

    Args:
        session: the caller's transaction.
        lease: how long it is this process' alone.

    Returns:
        The set; None if nothing is due.
    """
    # two that take at the same time would not see each other's leases
    session.execute(select(func.pg_advisory_xact_lock(TAKING_LOCK)))
    now = db_now(session)
    other = aliased(ResultSetRow)
    in_hand = exists().where(
        other.study_id == ResultSetRow.study_id, other.state == SetState.WAITING, other.lease_until >= now
    )
    row = session.scalar(
        select(ResultSetRow)
        .where(
            ResultSetRow.state == SetState.WAITING,
            ResultSetRow.next_at <= now,
            or_(ResultSetRow.lease_until.is_(None), ResultSetRow.lease_until < now),
            ~in_hand,
        )
        .order_by(ResultSetRow.next_at, ResultSetRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if row is None:
        return None
    row.lease_token, row.lease_until = uuid4(), now + lease
    row.attempts += 1
    kinds = None if row.kinds is None else tuple(ResultKind(kind) for kind in row.kinds)
    return DueSet(
        row.id, row.lease_token, row.study_id, row.site_id, Occasion(row.occasion), row.destination_id, kinds,
        row.attempts,
    )  # fmt: skip


def renew(session: Session, tokens: Collection[UUID], lease: timedelta) -> None:
    """Go on having sets.

    Args:
        session: the caller's transaction.
        tokens: of `DueSet`.
        lease: from now on.
    """
    held = update(ResultSetRow).where(ResultSetRow.lease_token.in_(tokens))
    session.execute(held.values(lease_until=func.clock_timestamp() + lease))


def plan(session: Session, due_set: DueSet, able: Collection[ResultKind], zone: str, software: str) -> Plan | SetReason:
    """Decide what a set states, and where it goes.

    Args:
        session: the caller's transaction.
        due_set: as `take` gave it.
        able: kinds that there are builders for.
        zone: IANA name of the clock by which results are dated, and that rules' hours are on.
        software: version of Osteon.

    Returns:
        The plan; or why nothing is made.
    """
    study = session.get(StudyRow, due_set.study_id)
    if study is None or study.status != StoredStatus.ANALYSED:
        return SetReason.NOT_ANALYSED
    views = studies.instances(session, study.id)
    entries = _entries_in_force(session, study.id)
    word = _readers_word(views, entries)
    if due_set.occasion is Occasion.AGREED and not _is_agreed(word, entries):
        return SetReason.CONTRADICTED
    before = session.scalar(
        select(ResultSetRow)
        .where(ResultSetRow.study_id == study.id, ResultSetRow.state == SetState.MADE)
        .order_by(ResultSetRow.made_at.desc())
        .limit(1)
    )
    if due_set.occasion is Occasion.NEWER_MODEL and before is None:
        return SetReason.NEVER_SENT
    to_make = _plan_destinations(session, due_set, study, before, able, zone)
    if isinstance(to_make, SetReason):
        return to_make
    stated = _build_input(session, study, views, entries, word, zone, software)
    repeats, stated = _compare_with_earlier(stated, before)
    kinds = frozenset(kind for one in to_make for kind in one.kinds)
    there: set[str] = set()
    if repeats is not None:
        its = select(ResultObjectRow.kind).where(ResultObjectRow.set_id == repeats).distinct()
        there = set(session.scalars(its))
    missing = frozenset(kind for kind in kinds if kind.value not in there)
    return Plan(stated, repeats, study.assessment or "", to_make, missing, study.header_version)


def _plan_destinations(
    session: Session,
    due_set: DueSet,
    study: StudyRow,
    before: ResultSetRow | None,
    able: Collection[ResultKind],
    zone: str,
) -> tuple[DestinationPlan, ...] | SetReason:
    """Which kinds go where, by the rules of the site, or as was asked."""
    its = DestinationRow.site_id == study.site_id, DestinationRow.disabled_at.is_(None)
    query = select(DestinationRow).where(*its).options(selectinload(DestinationRow.rules)).order_by(DestinationRow.id)
    if due_set.destination_id is not None:
        query = query.where(DestinationRow.id == due_set.destination_id)
    local = db_now(session).astimezone(ZoneInfo(zone))
    facts = StudyFacts(study.sender, study.region, study.assessment or "", study.age_years)
    changed = before is None or before.assessment != (study.assessment or "")
    reached = _find_reached(session, study.id)
    found, unchanged = [], False
    for row in session.scalars(query):
        if due_set.kinds is not None:
            rules = [Rule(When.ANALYSED, tuple(due_set.kinds))]
        else:
            rules = [rule for rule in map(rule_of, row.rules) if applies(rule, facts)]
            if due_set.occasion is Occasion.NEWER_MODEL:
                if row.id not in reached:
                    continue
                rules_left = [rule for rule in rules if changed or rule.newer_models is NewerModels.ALL]
                unchanged, rules = unchanged or len(rules_left) < len(rules), rules_left
            elif due_set.occasion is not Occasion.ASKED:
                rules = [rule for rule in rules if rule.when is BY_RULES[due_set.occasion]]
        kinds = _acceptable_kinds({ResultKind(kind) for rule in rules for kind in rule.kinds}, row, able)
        if kinds:
            at = min(send_time(rule, local) for rule in rules)
            if due_set.occasion in (Occasion.ASKED, Occasion.CLASS_REFUSED):
                at = local
            found.append(DestinationPlan(row.id, kinds, at))
    if found:
        return tuple(found)
    return SetReason.SAME_ASSESSMENT if unchanged else SetReason.NO_RULE


def _find_reached(session: Session, study_id: UUID) -> set[UUID]:
    """The destinations that have something of a study, or will."""
    states = DeliveryState.SENT, DeliveryState.WAITING, DeliveryState.HELD
    its = DeliveryRow.study_id == study_id, DeliveryRow.state.in_(states)
    return set(session.scalars(select(DeliveryRow.destination_id).where(*its)))


def _acceptable_kinds(
    kinds: set[ResultKind], row: DestinationRow, able: Collection[ResultKind]
) -> tuple[ResultKind, ...]:
    """Of the kinds that are wanted, those that the destination takes: a document in another form, or not at all."""
    taken = set()
    for kind in kinds:
        forms = [kind, IN_PLACE_OF[kind]] if kind in IN_PLACE_OF else [kind]
        form = next((one for one in forms if not refuses(row.capabilities, CLASS_OF.get(one, ""))), None)
        if form in able and form is not None:
            taken.add(form)
    return tuple(sorted(taken, key=ORDER.__getitem__))


def rule_of(row: DestinationRuleRow) -> Rule:
    """The rule that a row holds."""
    values = {field.name: getattr(row, field.name) for field in fields(Rule)}
    values |= {name: tuple(values[name]) for name in ("kinds", "senders", "regions", "assessments", "events")}
    return Rule(**values | {"when": When(row.when), "newer_models": NewerModels(row.newer_models)})


def is_agreed(session: Session, study_id: UUID, views: Sequence[studies.InstanceView]) -> bool:
    """Whether a reader is done with a study, and none contradicts the model.

    Args:
        session: the caller's transaction.
        study_id: of the study.
        views: its images, as `studies.instances` reads them.

    Returns:
        Whether that is so now.
    """
    entries = _entries_in_force(session, study_id)
    return _is_agreed(_readers_word(views, entries), entries)


def _entries_in_force(session: Session, study_id: UUID) -> list[feedback.HistoryEntry]:
    return [one for one in feedback.history(session, study_id) if one.superseded_by is None]


def _is_agreed(word: ReadersSummary | None, entries: Iterable[feedback.HistoryEntry]) -> bool:
    return word is None and any(one.entry.verdict == Verdict.DONE for one in entries)


# -- what is stated


def _readers_word(
    views: Sequence[studies.InstanceView], entries: Iterable[feedback.HistoryEntry]
) -> ReadersSummary | None:
    """What readers say of the shown findings; None: none contradicts them."""
    return readers_summary(
        {
            (finding.instance_id, finding.frame, finding.bundle): (Assessment(finding.assessment), finding.region)
            for view in views
            for finding in view.findings
        },
        [one.entry for one in entries if one.entry.verdict != Verdict.WITHDRAWN],
    )


def _build_input(
    session: Session,
    study: StudyRow,
    views: Sequence[studies.InstanceView],
    entries: Sequence[feedback.HistoryEntry],
    word: ReadersSummary | None,
    zone: str,
    software: str,
) -> ResultInput:
    images = tuple(
        ImageStatement(
            number=place,
            sop_instance_uid=view.row.sop_instance_uid,
            sha256=view.row.header_sha256 or view.row.sha256,
            received_at=view.row.received_at,
            analysed_at=max((finding.created_at for finding in view.findings), default=None),
            findings=tuple(_finding(row, view.row) for row in view.findings),
            error_reason=reason_of(view.row.error_reason),
            error_detail=view.row.error_detail,
        )
        for place, view in enumerate(views, 1)
    )
    names = {finding.bundle for image in images for finding in image.findings}
    bundles = session.scalars(select(BundleRow).where(BundleRow.name.in_(names)).order_by(BundleRow.name)).all()
    done = [one for one in entries if one.entry.verdict == Verdict.DONE]
    reader = None
    if word is not None:
        reader = ReaderStatement(word.answered_at, word.reading, word.region)
    elif done:
        reader = ReaderStatement(max(one.entry.answered_at for one in done))
    site = session.get_one(SiteRow, study.site_id)
    return ResultInput(
        study_id=str(study.id),
        study_instance_uid=study.study_instance_uid,
        site=SiteStatement(site.name, zone, CaptureModality(site.capture_modality), site.states_probability),
        images=images,
        models=tuple(_model(row) for row in bundles),
        software=software,
        expected_images=study.expected_images,
        reader=reader,
        patient=studies.decided_header(session, study.id),
    )


def _model(row: BundleRow) -> ModelStatement:
    manifest: Mapping[str, Any] = row.manifest
    return ModelStatement(
        name=row.name,
        title=title_of(row.name, manifest),
        sha256=row.sha256,
        points=OperatingPoints(float(manifest["sensitive"]), float(manifest["specific"])),
        slope=float(manifest.get("calibration", {}).get("slope", 1.0)),
        full=float(manifest.get("heatmap_full", 1.0)),
        facts=(str(manifest["limits"]),) if manifest.get("limits") else (),
    )


def _finding(row: FindingRow, image: InstanceRow) -> Finding:
    return Finding(
        row.frame, row.bundle, row.region, row.region_probability, row.fracture_probability,
        Assessment(row.assessment), Extent(row.severity), Heatmap(row.heatmap, row.heatmap_height, row.heatmap_width),
        row.score, abstention_of(row.abstention), row.abstention_detail,
        ExposedField(*row.field) if row.field else ExposedField.whole(image.rows, image.columns),
    )  # fmt: skip


def _compare_with_earlier(stated: ResultInput, before: ResultSetRow | None) -> tuple[UUID | None, ResultInput]:
    """The earlier set that states the same, with what it replaced; or what is stated now, which replaces it."""
    if before is None:
        return None, stated
    same = replace(stated, replaces=_replaced(before.replaces))
    if same.digest == before.digest:
        return before.id, same
    assert before.stated_at is not None  # of one that was made
    earlier = Replaced(before.digest, before.stated_at, tuple(ResultKind(kind) for kind in before.made_kinds))
    return None, replace(stated, replaces=earlier)


def _replaced(stored: Mapping[str, Any] | None) -> Replaced | None:
    if not stored:
        return None
    return Replaced(
        stored["digest"], datetime.fromisoformat(stored["made_at"]), tuple(ResultKind(kind) for kind in stored["kinds"])
    )


# -- what was made


def record_failure(
    session: Session, due_set: DueSet, reason: SetReason, detail: str = "", *, wait: timedelta | None
) -> None:
    """Note why a set was not made.

    Args:
        session: the caller's transaction.
        due_set: as `take` gave it.
        reason: why.
        detail: a class's name or a DICOM keyword; never a value.
        wait: try again after so long; None: this is its end.
    """
    ends = {
        SetReason.NO_RULE: SetState.NOT_WANTED, SetReason.CONTRADICTED: SetState.NOT_WANTED,
        SetReason.SAME_ASSESSMENT: SetState.NOT_WANTED, SetReason.NEVER_SENT: SetState.NOT_WANTED,
        SetReason.NOT_ANALYSED: SetState.WITHDRAWN,
    }  # fmt: skip
    values: dict[str, Any] = {"reason": reason, "reason_detail": detail[:128], "lease_token": None, "lease_until": None}
    if wait is None:
        values["state"] = ends.get(reason, SetState.FAILED)
    else:
        values["next_at"] = func.clock_timestamp() + wait
    its = ResultSetRow.id == due_set.id, ResultSetRow.lease_token == due_set.token
    session.execute(update(ResultSetRow).where(*its).values(values))


def write_objects(session: Session, due_set: DueSet, planned: Plan, objects: Sequence[MadeObject]) -> bool:
    """Write the objects of a set, as instances that DICOMweb finds, and its deliveries.

    Args:
        session: the caller's transaction.
        due_set: as `take` gave it.
        planned: as `plan` gave it.
        objects: of the missing kinds; their bytes are durable.

    Returns:
        False if the study is gone, the set another process' by now, or the study's header corrected meanwhile, for
        which it is made anew: then nothing was written, and the store may remove the bytes.
    """
    study = session.scalar(select(StudyRow).where(StudyRow.id == due_set.study_id).with_for_update())
    row = session.scalar(
        select(ResultSetRow)
        .where(ResultSetRow.id == due_set.id, ResultSetRow.lease_token == due_set.token)
        .with_for_update()
    )
    if study is None or row is None or study.header_version != planned.header_version:
        _release_bytes(session, [one.sha256 for one in objects])
        if row is not None:
            row.lease_token, row.lease_until = None, None
        return False
    now = db_now(session)
    stated = planned.stated
    row.state = SetState.MADE if planned.repeats is None else SetState.REPEATED
    row.made_at, row.digest, row.stated_at, row.assessment = now, stated.digest, stated.made_at, planned.assessment
    row.reason, row.reason_detail, row.lease_token, row.lease_until = "", "", None, None
    holder = session.get_one(ResultSetRow, planned.repeats) if planned.repeats is not None else row
    _add_objects(session, study, holder.id, objects, now)
    holder.made_kinds = sorted({*holder.made_kinds, *(one.kind.value for one in objects)})
    if planned.repeats is None and (earlier := stated.replaces):
        row.replaces = {
            "digest": earlier.digest, "made_at": earlier.made_at.isoformat(), "kinds": list(earlier.kinds)
        }  # fmt: skip
    session.flush()
    uids = _sop_instance_uids(stated)
    all_objects = session.scalars(
        select(ResultObjectRow).where(
            ResultObjectRow.study_id == study.id, ResultObjectRow.sop_instance_uid.in_(uids)
        )
    ).all()  # fmt: skip
    for one in planned.destinations:
        _deliver(session, study, row, one, all_objects)
    worklist_changed(session, [study.site_id])
    return True


def _sop_instance_uids(stated: ResultInput) -> set[str]:
    """The SOP Instance UIDs of all that a set can hold."""
    return {stated.sop_uid(kind, image.number) for kind in ResultKind for image in stated.images}


def _add_objects(session: Session, study: StudyRow, set_id: UUID, objects: Sequence[MadeObject], now: datetime) -> None:
    """Write objects that are new: what is of an image is there from an earlier set of its study."""
    if not objects:
        return
    uids = [one.sop_instance_uid for one in objects]
    known = set(
        session.scalars(
            select(ResultObjectRow.sop_instance_uid).where(
                ResultObjectRow.study_id == study.id, ResultObjectRow.sop_instance_uid.in_(uids)
            )
        )
    )
    new = [one for one in objects if one.sop_instance_uid not in known]
    _release_bytes(session, [one.sha256 for one in objects if one.sop_instance_uid in known])
    if not new:
        return
    names = ("kind", "number", "sop_class_uid", "series_instance_uid", "sop_instance_uid", "transfer_syntax_uid")
    session.execute(
        insert(ResultObjectRow),
        [
            {
                "id": uuid4(), "study_id": study.id, "set_id": set_id, "sha256": one.sha256,
                "size_bytes": one.size_bytes, **{name: getattr(one, name) for name in names},
            }
            for one in new
        ],
    )  # fmt: skip
    series = {one.series_instance_uid: one for one in new}
    session.execute(
        insert(SeriesRow).on_conflict_do_nothing(),
        [
            {
                "id": uuid4(), "site_id": study.site_id, "study_id": study.id, "series_instance_uid": uid,
                "modality": one.modality, "series_number": SERIES_NUMBERS[one.kind],
            }
            for uid, one in series.items()
        ],
    )  # fmt: skip
    its = SeriesRow.study_id == study.id, SeriesRow.series_instance_uid.in_(series)
    ids = {uid: id_ for uid, id_ in session.execute(select(SeriesRow.series_instance_uid, SeriesRow.id).where(*its))}  # noqa: C416
    added = session.scalars(
        insert(InstanceRow).on_conflict_do_nothing().returning(InstanceRow.id),
        [
            {
                "id": uuid4(), "site_id": study.site_id, "study_id": study.id,
                "series_id": ids[one.series_instance_uid],
                "sop_instance_uid": one.sop_instance_uid, "sop_class_uid": one.sop_class_uid,
                "transfer_syntax_uid": one.transfer_syntax_uid, "sha256": one.sha256, "size_bytes": one.size_bytes,
                "modality": one.modality, "body_part": "", "rows": one.rows, "columns": one.columns,
                "frames": 1 if one.rows else 0, "received_at": now, "instance_number": one.number,
                "bits_allocated": 8 if one.rows else 0, "kept": StoredOnly.OWN_RESULT, "error_reason": "",
            }
            for one in new
        ],
    ).all()  # fmt: skip
    study.kept += len(added)
    if study.expected_images is not None:  # its sender counts without them
        study.expected_images += len(added)


def _deliver(
    session: Session, study: StudyRow, row: ResultSetRow, planned: DestinationPlan, objects: Sequence[ResultObjectRow]
) -> None:
    """Write a delivery of those objects that the destination neither has nor gets by another one."""
    chosen = sorted(
        (one for one in objects if one.kind in planned.kinds), key=lambda one: (ORDER[ResultKind(one.kind)], one.number)
    )
    if row.state == SetState.MADE:
        _supersede(session, study.id, planned.destination_id, {one.kind for one in chosen})
    its = DeliveryRow.study_id == study.id, DeliveryRow.destination_id == planned.destination_id
    known = set(
        session.scalars(
            select(DeliveryObjectRow.object_id)
            .join(DeliveryRow, DeliveryRow.id == DeliveryObjectRow.delivery_id)
            .where(*its, or_(DeliveryObjectRow.accepted_at.is_not(None), DeliveryRow.state == DeliveryState.WAITING))
        )
    )
    left = [one for one in chosen if one.id not in known]
    if not left:
        return
    delivery = DeliveryRow(
        id=uuid4(), site_id=study.site_id, study_id=study.id, set_id=row.id, destination_id=planned.destination_id,
        next_at=planned.send_at, tried_until=planned.send_at + TRIED_FOR,
    )  # fmt: skip
    session.add(delivery)
    session.flush()
    session.execute(
        insert(DeliveryObjectRow),
        [{"delivery_id": delivery.id, "object_id": one.id, "place": place} for place, one in enumerate(left, 1)],
    )


def _supersede(session: Session, study_id: UUID, destination_id: UUID, kinds: set[str]) -> None:
    """Take back deliveries of earlier sets that have not gone, and hold no kind that is not told anew."""
    others = session.scalars(
        select(DeliveryRow).where(
            DeliveryRow.study_id == study_id, DeliveryRow.destination_id == destination_id,
            DeliveryRow.state.in_((DeliveryState.WAITING, *DECIDABLE)),
        ).with_for_update()
    ).all()  # fmt: skip
    for other in others:
        its = session.scalars(
            select(ResultObjectRow.kind)
            .join(DeliveryObjectRow, DeliveryObjectRow.object_id == ResultObjectRow.id)
            .where(DeliveryObjectRow.delivery_id == other.id)
        )
        if set(its) <= kinds:
            other.state = DeliveryState.SUPERSEDED
    session.flush()


def _release_bytes(session: Session, sha256s: Sequence[str]) -> None:
    """Let the store remove bytes that no row names."""
    rows = [{"sha256": sha256, "frames": 0} for sha256 in sorted(set(sha256s))]
    if rows:
        session.execute(insert(LeftObjectRow).on_conflict_do_nothing(), rows)


# -- people


@dataclass(frozen=True)
class StudySet:
    """A set of results of a study, for its page. objects: by kind, how many were made for it."""

    row: ResultSetRow
    objects: Mapping[str, int]


def of_study(session: Session, study_id: UUID, limit: int) -> list[StudySet]:
    """Read the sets of a study's results, the latest first.

    Args:
        session: the caller's transaction.
        study_id: of the study, which the caller may see.
        limit: so many at most.

    Returns:
        The sets, those that were not made too.
    """
    rows = session.scalars(
        select(ResultSetRow)
        .where(ResultSetRow.study_id == study_id)
        .order_by(ResultSetRow.due_at.desc(), ResultSetRow.id)
        .limit(limit)
    ).all()
    counted: dict[UUID, dict[str, int]] = {row.id: {} for row in rows}
    if rows:
        its = ResultObjectRow.set_id, ResultObjectRow.kind
        query = select(*its, func.count()).where(ResultObjectRow.set_id.in_(counted)).group_by(*its)
        for set_id, kind, count in session.execute(query):
            counted[set_id][kind] = count
    return [StudySet(row, counted[row.id]) for row in rows]


def request_results(session: Session, study: StudyRow) -> None:
    """Have a study's results made and sent by all rules that fit it, whenever they apply.

    Args:
        session: the caller's transaction.
        study: of the caller's site.
    """
    session.add(ResultSetRow(site_id=study.site_id, study_id=study.id, occasion=Occasion.ASKED))
    outbox.record_request(session, study.id)
