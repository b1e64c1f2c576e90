"""What runs came to: report and forecast, and two bundles side by side."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from shared.db.tables import AnalysisRow, BackfillRunRow, StudyRow
from shared.domain.analysis import ENDED, OPEN, AnalysisState, Purpose
from shared.domain.backfill import (
    POSITIVE,
    BackfillRun,
    Forecast,
    RunEnd,
    RunPurpose,
    Stage,
    forecast,
    newly_positive,
)
from shared.domain.findings import Assessment
from shared.errors import NotFound
from shared.queries.backfill_history import count_outdated

MAX_COUNTED = 10_000  # of what is left nobody needs to know more exactly
MAX_NAMED = 1000  # studies that are named one by one
BACKFILL, SHADOW = RunPurpose.BACKFILL, RunPurpose.SHADOW
KINDS = {Purpose.RERUN.value: "outdated"}  # as reports name them
Changes = dict[str, dict[str, int]]


def report(session: Session, run_id: UUID) -> dict[str, Any]:
    """Report on a run: counts by kind and outcome, changes of the assessment old -> new.

    At most MAX_NAMED studies that turned from abstained to positive are listed; those that turned from negative to
    positive are revised findings.

    Args:
        session: the caller's transaction.
        run_id: the run; one that still runs is reported so far.

    Returns:
        The report as JSON.
    """
    rows = session.execute(
        select(
            func.coalesce(AnalysisRow.leftover, AnalysisRow.purpose),
            AnalysisRow.state,
            AnalysisRow.old_assessment,
            AnalysisRow.assessment,
            func.count(),
        )
        .where(AnalysisRow.run_id == run_id)
        .group_by(text("1"), AnalysisRow.state, AnalysisRow.old_assessment, AnalysisRow.assessment)
    ).all()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    changes: dict[str, Counter[str]] = defaultdict(Counter)
    for purpose, state, old, new, count in rows:
        kinds[KINDS.get(purpose, purpose)][state] += count
        if state == AnalysisState.DONE and old and new:
            changes[old][new] += count
    abstained = session.scalars(
        select(AnalysisRow.study_id)
        .where(
            AnalysisRow.run_id == run_id,
            AnalysisRow.state == AnalysisState.DONE,
            AnalysisRow.old_assessment == Assessment.ABSTAINED,
            AnalysisRow.assessment.in_(POSITIVE),
        )
        .order_by(AnalysisRow.fracture_probability.desc())
        .limit(MAX_NAMED)
    )
    matrix = {old: dict(row) for old, row in changes.items()}
    return {
        "kinds": {kind: dict(states) for kind, states in kinds.items()},
        "changes": matrix,
        **direction_counts(matrix),
        "from_abstained_studies": [str(study_id) for study_id in abstained],
    }


def direction_counts(changes: Changes) -> dict[str, int]:
    """How many studies turned in which direction, of a matrix old assessment -> new assessment -> studies."""
    pairs = [(old, new, count) for old, row in changes.items() for new, count in row.items()]
    return {
        "newly_positive": sum(count for old, new, count in pairs if newly_positive(old, new)),
        "newly_negative": sum(count for old, new, count in pairs if newly_positive(new, old)),
        "from_abstained": sum(count for old, new, count in pairs if old == Assessment.ABSTAINED and new in POSITIVE),
    }


def runs(session: Session, limit: int = 30) -> list[BackfillRun]:
    """Read the latest backfill and shadow runs.

    Args:
        session: the caller's transaction.
        limit: how many.

    Returns:
        The runs, the newest first.
    """
    rows = session.scalars(select(BackfillRunRow).order_by(BackfillRunRow.started_at.desc()).limit(limit))
    return [_run(row) for row in rows]


def run_of_day(session: Session, day: date) -> BackfillRun:
    """Read a day's backfill run.

    Args:
        session: the caller's transaction.
        day: the date, in the hospital's time zone.

    Returns:
        The run.

    Raises:
        NotFound: there was none.
    """
    row = session.scalar(select(BackfillRunRow).where(BackfillRunRow.day == day))
    if row is None:
        raise NotFound(f"there was no backfill run on {day}")
    return _run(row)


def last_backfill(session: Session) -> datetime | None:
    """When the latest backfill run began."""
    return session.scalar(select(func.max(BackfillRunRow.started_at)).where(BackfillRunRow.day.is_not(None)))


def shadow_run(session: Session, bundle: str) -> BackfillRun | None:
    """Read a bundle's latest run as a shadow.

    Args:
        session: the caller's transaction.
        bundle: its name.

    Returns:
        The run; None if it never was a shadow.
    """
    row = session.scalar(
        select(BackfillRunRow)
        .where(BackfillRunRow.purpose == SHADOW, BackfillRunRow.bundle == bundle)
        .order_by(BackfillRunRow.started_at.desc())
        .limit(1)
    )
    return _run(row) if row else None


def forecast_of(session: Session, run: BackfillRun, now: datetime) -> Forecast | None:
    """Forecast when a run will be finished.

    Args:
        session: the caller's transaction.
        run: the run.
        now: Postgres' time.

    Returns:
        The forecast; None if the run has ended.
    """
    if run.finished_at is not None:
        return None
    of_run = dict(
        session.execute(
            select(AnalysisRow.state, func.count())
            .where(AnalysisRow.run_id == run.id)
            .group_by(AnalysisRow.state)
        ).all()
    )  # fmt: skip
    done = sum(of_run.get(state, 0) for state in ENDED)
    out = sum(of_run.get(state, 0) for state in OPEN)
    paused = session.scalar(
        select(func.count()).where(
            AnalysisRow.state == AnalysisState.PAUSED,
            AnalysisRow.model == run.bundle,
            AnalysisRow.purpose == (Purpose.SHADOW if run.day is None else Purpose.RERUN),  # what it takes up
        )
    )
    history = (
        0
        if run.stage is Stage.EXHAUSTED
        else count_outdated(session, session.get_one(BackfillRunRow, run.id), MAX_COUNTED)
    )
    more = history + (paused or 0)
    chosen = run.failed + run.stranded + run.outdated - run.switched
    this_window = out + (more if run.most is None else max(0, min(more, run.most - chosen)))
    if run.day is None:  # a shadow's count is all that was asked for
        return forecast(run, now, done, this_window, this_window, at_least=history >= MAX_COUNTED)
    return forecast(run, now, done, this_window, out + more, at_least=history >= MAX_COUNTED)


def keep_studies_of_site(session: Session, site_id: UUID, study_ids: Sequence[str]) -> list[UUID]:
    """Keep the studies that belong to a site.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_ids: as JSON has them.

    Returns:
        Those of the site, in the same order.
    """
    ids = [UUID(study_id) for study_id in study_ids]
    own = set(session.scalars(select(StudyRow.id).where(StudyRow.id.in_(ids), StudyRow.site_id == site_id)))
    return [study_id for study_id in ids if study_id in own]


@dataclass(frozen=True)
class Stratum:
    """Studies of one region, or of all, that both bundles have analysed."""

    studies: int
    changes: Changes  # old assessment -> new assessment -> studies
    probability_change: float  # mean of new - old, to six digits: it must not tell in which order rows were added
    abstention_change: int  # studies that the new bundle abstains on, less those that the old one did


@dataclass(frozen=True)
class Comparison:
    """Two bundles on the same studies."""

    all: Stratum
    regions: dict[str, Stratum]  # as the old bundle has them
    newly_positive: list[UUID]  # up to MAX_NAMED each, the likeliest fracture first
    newly_negative: list[UUID]


def compare(session: Session, site_id: UUID, old: str, new: str) -> Comparison:
    """Compare two bundles on the studies of a site that the new one analysed, as a shadow or in a backfill run.

    Args:
        session: the caller's transaction.
        site_id: the site.
        old: name of the bundle whose findings the studies had.
        new: name of the bundle that analysed them again.

    Returns:
        The comparison.
    """
    pairs = (
        AnalysisRow.model == new,
        AnalysisRow.old_model == old,
        AnalysisRow.site_id == site_id,
        AnalysisRow.assessment.is_not(None),
    )
    change = func.sum(AnalysisRow.fracture_probability - AnalysisRow.old_probability)
    grouped = (AnalysisRow.old_region, AnalysisRow.old_assessment, AnalysisRow.assessment)
    rows = session.execute(select(*grouped, func.count(), change).where(*pairs).group_by(*grouped)).all()

    def named(before: tuple[Assessment, ...], after: tuple[Assessment, ...], difference: str) -> list[UUID]:
        return list(
            session.scalars(
                select(AnalysisRow.study_id)
                .where(*pairs, AnalysisRow.old_assessment.in_(before), AnalysisRow.assessment.in_(after))
                .order_by(getattr(AnalysisRow, difference).desc(), AnalysisRow.study_id)
                .limit(MAX_NAMED)
            )
        )

    regions = sorted({row.old_region for row in rows})
    return Comparison(
        _stratum(rows),
        {region: _stratum([row for row in rows if row.old_region == region]) for region in regions},
        named((Assessment.NEGATIVE,), POSITIVE, "fracture_probability"),
        named(POSITIVE, (Assessment.NEGATIVE,), "old_probability"),
    )


def _stratum(rows: Sequence[Any]) -> Stratum:
    changes: dict[str, Counter[str]] = defaultdict(Counter)
    for _, old, new, count, _ in rows:
        changes[old][new] += count
    studies = sum(row[3] for row in rows)
    abstained = sum(row[3] * ((row[2] == Assessment.ABSTAINED) - (row[1] == Assessment.ABSTAINED)) for row in rows)
    moved = sum(row[4] or 0.0 for row in rows)
    change = round(moved / studies, 6) if studies else 0.0
    return Stratum(studies, {old: dict(row) for old, row in changes.items()}, change, abstained)


def _run(row: BackfillRunRow) -> BackfillRun:
    return BackfillRun(
        row.id, row.day, row.started_at, row.ends_at, row.finished_at, row.failed, row.stranded, row.outdated,
        row.switched, row.most, row.bundle, Stage(row.stage),
        RunEnd(row.ended_by) if row.ended_by else None, row.report,
    )  # fmt: skip
