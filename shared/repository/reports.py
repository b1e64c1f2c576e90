"""What runs came to: a night's report and forecast, and two bundles side by side."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.backlog import POSITIVE, BacklogRun, Forecast, LookState, Purpose, Stage, forecast, newly_positive
from shared.errors import NotFound
from shared.findings import Assessment
from shared.repository.history import left
from shared.tables import BacklogRunRow, SecondLookRow, StudyRow

COUNTED = 10_000  # of what is left nobody needs to know more exactly
NAMED = 1000  # studies that are named one by one
NIGHT, SHADOW = "night", "shadow"
ENDED = (LookState.DONE, LookState.FAILED, LookState.OVERTAKEN)
Changes = dict[str, dict[str, int]]


def report(session: Session, run_id: UUID) -> dict[str, Any]:
    """What a run has come to so far: counts by kind and outcome, changes of class old -> new, and who changed how.

    The studies that turned from abstained to positive are named here, up to NAMED; from negative to positive they are
    alerts.
    """
    rows = session.execute(
        select(
            SecondLookRow.purpose,
            SecondLookRow.state,
            SecondLookRow.old_assessment,
            SecondLookRow.new_assessment,
            func.count(),
        )
        .where(SecondLookRow.run_id == run_id)
        .group_by(
            SecondLookRow.purpose, SecondLookRow.state, SecondLookRow.old_assessment, SecondLookRow.new_assessment
        )
    ).all()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    changes: dict[str, Counter[str]] = defaultdict(Counter)
    for purpose, state, old, new, count in rows:
        kinds[purpose][state] += count
        if state == LookState.DONE and old and new:
            changes[old][new] += count
    abstained = session.scalars(
        select(SecondLookRow.study_id)
        .where(
            SecondLookRow.run_id == run_id,
            SecondLookRow.state == LookState.DONE,
            SecondLookRow.old_assessment == Assessment.ABSTAINED,
            SecondLookRow.new_assessment.in_(POSITIVE),
        )
        .order_by(SecondLookRow.new_probability.desc())
        .limit(NAMED)
    )
    matrix = {old: dict(row) for old, row in changes.items()}
    return {
        "kinds": {kind: dict(states) for kind, states in kinds.items()},
        "changes": matrix,
        **turned(matrix),
        "from_abstained_studies": [str(study_id) for study_id in abstained],
    }


def turned(changes: Changes) -> dict[str, int]:
    """How many went which way, of a matrix old assessment -> new assessment -> studies."""
    pairs = [(old, new, count) for old, row in changes.items() for new, count in row.items()]
    return {
        "newly_positive": sum(count for old, new, count in pairs if newly_positive(old, new)),
        "newly_negative": sum(count for old, new, count in pairs if newly_positive(new, old)),
        "from_abstained": sum(count for old, new, count in pairs if old == Assessment.ABSTAINED and new in POSITIVE),
    }


def runs(session: Session, limit: int = 30) -> list[BacklogRun]:
    """The latest nights and shadow runs, newest first."""
    rows = session.scalars(select(BacklogRunRow).order_by(BacklogRunRow.started_at.desc()).limit(limit))
    return [_run(row) for row in rows]


def night(session: Session, on: date) -> BacklogRun:
    """The run of this night. Raises NotFound."""
    row = session.scalar(select(BacklogRunRow).where(BacklogRunRow.night == on))
    if row is None:
        raise NotFound(f"there was no nightly run on {on}")
    return _run(row)


def last_night(session: Session) -> datetime | None:
    """When the latest night began."""
    return session.scalar(select(func.max(BacklogRunRow.started_at)).where(BacklogRunRow.night.is_not(None)))


def shadow_run(session: Session, bundle: str) -> BacklogRun | None:
    """A bundle's latest run as a shadow."""
    row = session.scalar(
        select(BacklogRunRow)
        .where(BacklogRunRow.purpose == SHADOW, BacklogRunRow.bundle == bundle)
        .order_by(BacklogRunRow.started_at.desc())
        .limit(1)
    )
    return _run(row) if row else None


def forecast_of(session: Session, run: BacklogRun, now: datetime) -> Forecast | None:
    """When a run will be through, by its pace so far; None for one that has ended."""
    if run.finished_at is not None:
        return None
    of_run = dict(
        session.execute(
            select(SecondLookRow.state, func.count())
            .where(SecondLookRow.run_id == run.id)
            .group_by(SecondLookRow.state)
        ).all()
    )  # fmt: skip
    done = sum(of_run.get(state, 0) for state in ENDED)
    out = of_run.get(LookState.QUEUED, 0) + of_run.get(LookState.RUNNING, 0)
    held = session.scalar(
        select(func.count()).where(
            SecondLookRow.state == LookState.HELD,
            SecondLookRow.bundle == run.bundle,
            SecondLookRow.purpose == (Purpose.SHADOW if run.night is None else Purpose.OUTDATED),  # what it takes up
        )
    )
    history = 0 if run.stage is Stage.EXHAUSTED else left(session, session.get_one(BacklogRunRow, run.id), COUNTED)
    more = history + (held or 0)
    chosen = run.failed + run.stranded + run.outdated - run.switched
    tonight = out + (more if run.most is None else max(0, min(more, run.most - chosen)))
    if run.night is None:  # a shadow's count is all that was asked for
        return forecast(run, now, done, tonight, tonight, at_least=history >= COUNTED)
    return forecast(run, now, done, tonight, out + more, at_least=history >= COUNTED)


def of_site(session: Session, site_id: UUID, study_ids: Sequence[str]) -> list[UUID]:
    """Those of these studies that belong to the site, in order."""
    ids = [UUID(study_id) for study_id in study_ids]
    own = set(session.scalars(select(StudyRow.id).where(StudyRow.id.in_(ids), StudyRow.site_id == site_id)))
    return [study_id for study_id in ids if study_id in own]


@dataclass(frozen=True)
class Stratum:
    """Studies of one region, or of all, that both bundles have looked at."""

    studies: int
    changes: Changes  # old assessment -> new assessment -> studies
    probability_change: float  # mean of new - old
    abstention_change: int  # studies that the new bundle abstains on, less those that the old one did


@dataclass(frozen=True)
class Comparison:
    """Two bundles on the same studies."""

    all: Stratum
    regions: dict[str, Stratum]  # as the old bundle has them
    newly_positive: list[UUID]  # up to NAMED each, the likeliest fracture first
    newly_negative: list[UUID]


def compare(session: Session, site_id: UUID, old: str, new: str) -> Comparison:
    """A site's studies of which `old` spoke when `new` looked at them, as a shadow or at night, paired."""
    pairs = (
        SecondLookRow.bundle == new,
        SecondLookRow.old_bundle == old,
        SecondLookRow.site_id == site_id,
        SecondLookRow.new_assessment.is_not(None),
    )
    change = func.sum(SecondLookRow.new_probability - SecondLookRow.old_probability)
    grouped = (SecondLookRow.region, SecondLookRow.old_assessment, SecondLookRow.new_assessment)
    rows = session.execute(select(*grouped, func.count(), change).where(*pairs).group_by(*grouped)).all()

    def named(before: tuple[Assessment, ...], after: tuple[Assessment, ...], most: str) -> list[UUID]:
        return list(
            session.scalars(
                select(SecondLookRow.study_id)
                .where(*pairs, SecondLookRow.old_assessment.in_(before), SecondLookRow.new_assessment.in_(after))
                .order_by(getattr(SecondLookRow, most).desc(), SecondLookRow.study_id)
                .limit(NAMED)
            )
        )

    regions = sorted({row.region for row in rows})
    return Comparison(
        _stratum(rows),
        {region: _stratum([row for row in rows if row.region == region]) for region in regions},
        named((Assessment.NEGATIVE,), POSITIVE, "new_probability"),
        named(POSITIVE, (Assessment.NEGATIVE,), "old_probability"),
    )


def _stratum(rows: Sequence[Any]) -> Stratum:
    changes: dict[str, Counter[str]] = defaultdict(Counter)
    for _, old, new, count, _ in rows:
        changes[old][new] += count
    studies = sum(row[3] for row in rows)
    abstained = sum(row[3] * ((row[2] == Assessment.ABSTAINED) - (row[1] == Assessment.ABSTAINED)) for row in rows)
    moved = sum(row[4] or 0.0 for row in rows)
    return Stratum(
        studies, {old: dict(row) for old, row in changes.items()}, moved / studies if studies else 0.0, abstained
    )


def _run(row: BacklogRunRow) -> BacklogRun:
    return BacklogRun(
        row.id, row.night, row.started_at, row.ends_at, row.finished_at, row.failed, row.stranded, row.outdated,
        row.switched, row.most, row.bundle, Stage(row.stage), row.ended_by, row.report,
    )  # fmt: skip
