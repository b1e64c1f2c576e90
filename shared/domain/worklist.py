"""The order in which radiologists read: earliest due time first.

A study is due at its arrival plus the wait that its class allows. Time passing does not reorder the list, so an index
serves it and paging by (due minute, score descending, id) is exact; the largest turnaround target is the longest wait
that a kept-up list can have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from itertools import pairwise
from uuid import UUID

from shared.domain.findings import (
    AbstentionReason,
    Assessment,
    Extent,
    StudySummary,
    abstention_words,
    ranked_as,
    unread_words,
)
from shared.domain.study import Priority, StudyStatus
from shared.errors import Reason

PENDING = "pending"  # not analysed yet, or could not be
TurnaroundTargets = Mapping[str, Mapping[Priority, int]]  # by urgency class and priority: minutes

# minutes a study of this class may wait for its reader, unless its site chose others; the gravest class first
TURNAROUND_TARGETS: TurnaroundTargets = {
    "positive severe": {Priority.URGENT: 10, Priority.ROUTINE: 10, Priority.BACKLOG: 60},
    "positive": {Priority.URGENT: 15, Priority.ROUTINE: 30, Priority.BACKLOG: 120},
    "unclear": {Priority.URGENT: 20, Priority.ROUTINE: 240, Priority.BACKLOG: 480},
    "abstained": {Priority.URGENT: 25, Priority.ROUTINE: 480, Priority.BACKLOG: 960},
    PENDING: {Priority.URGENT: 25, Priority.ROUTINE: 720, Priority.BACKLOG: 1440},
    "negative": {Priority.URGENT: 60, Priority.ROUTINE: 1440, Priority.BACKLOG: 2880},
}
HARD_MAXIMUM = timedelta(days=7)  # no site may let a study wait longer than this


def longest_wait(targets: TurnaroundTargets = TURNAROUND_TARGETS) -> timedelta:
    """The longest wait in a table: the most that a study waits for its reader in a list that readers keep up with."""
    return timedelta(minutes=max(max(row.values()) for row in targets.values()))


def target_errors(targets: TurnaroundTargets) -> list[str]:
    """Check a table of turnaround targets.

    In a sound table every class and priority has whole minutes from 1 to HARD_MAXIMUM, a graver class never waits
    longer than a milder one, urgent never longer than routine, and routine never longer than the backlog.

    Args:
        targets: minutes by urgency class and priority.

    Returns:
        What is wrong with it, in words; empty for a sound one.
    """
    if set(targets) != set(TURNAROUND_TARGETS):
        return [f"Give a row for each of: {', '.join(TURNAROUND_TARGETS)}"]
    if any(set(row) != set(Priority) for row in targets.values()):
        return [f"Give minutes for each of: {', '.join(Priority)}"]
    max_minutes = int(HARD_MAXIMUM.total_seconds() // 60)
    errors = [
        f"{name}, {priority}: {minutes} minutes; from 1 to {max_minutes} are possible, for no study may wait longer "
        f"than {HARD_MAXIMUM.days} days"
        for name, row in targets.items()
        for priority, minutes in row.items()
        if not 1 <= minutes <= max_minutes
    ]
    for graver, milder in pairwise(TURNAROUND_TARGETS):
        errors += [
            f"{priority}: {graver} may not wait longer ({targets[graver][priority]} minutes) than {milder} "
            f"({targets[milder][priority]})"
            for priority in Priority
            if targets[graver][priority] > targets[milder][priority]
        ]
    for sooner, later in pairwise(Priority):
        errors += [
            f"{name}: {sooner} may not wait longer ({row[sooner]} minutes) than {later} ({row[later]})"
            for name, row in targets.items()
            if row[sooner] > row[later]
        ]
    return errors


class ReadingEnd(StrEnum):
    """How a reader's lock on a study ended."""

    RELEASED = "released"  # given back unread
    EXPIRED = "expired"  # its page was not renewed
    TAKEN_OVER = "taken-over"  # by another reader, or another login
    READ = "read"


@dataclass(frozen=True)
class WorklistEntry:
    """One row of the worklist, without the patient's identity."""

    study_id: UUID
    priority: Priority
    status: StudyStatus
    received_at: datetime
    due_at: datetime
    assessment: Assessment | None
    extent: Extent | None
    region: str
    fracture_probability: float | None
    score: float | None
    abstention: AbstentionReason | None
    abstention_detail: str
    modality: str
    images: int
    failed_images: int
    reason: Reason | None  # why quarantined or retrying
    reason_detail: str  # the fact that the reason is about
    read_at: datetime | None = None
    # the examination, as shared.db.tables has it
    sex: str = ""
    age_years: int | None = None
    study_date: date | None = None
    study_time: time | None = None
    body_part: str = ""
    laterality: str = ""
    views: str = ""
    header_version: int = 0
    # whether more images are expected, as shared.domain.completeness has it
    completeness: str = "complete"
    expected_images: int | None = None
    stored_instances: int = 0  # those that are not analysed included
    reader: str = ""  # who reads it now; empty: no reader
    reading_since: datetime | None = None
    reader_key: UUID | None = None  # names are not unique
    reader_login: str = ""  # which login of that key

    def why(self) -> str:
        """The reason for this row's place, in words that stay the same while it waits."""
        due, received = self.due_at.astimezone(UTC), self.received_at.astimezone(UTC)
        day = "" if due.date() == received.date() else f"{due:%Y-%m-%d} "
        return f"due {day}{due:%H:%M} UTC: {self.summary()}"

    def summary(self) -> str:
        """`why` without the due time, which a page shows in the reader's own zone."""
        return f"{self.priority}, {'not analysed' if self.assessment is None else finding_text(self)}"


def duration_text(start: datetime, end: datetime | None = None) -> str:
    """Write a time in at most two units, as "2 h 05 min".

    Args:
        start: with a time zone.
        end: with a time zone; None: now.

    Returns:
        The words; 0 s if `end` is before `start`.
    """
    seconds = max(0, int(((end or datetime.now(UTC)) - start).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 60:
        return f"{seconds} s" if end else "< 1 min"
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02d} min" if hours < 24 else f"{days} d {hours % 24} h"


def urgency_class(summary: StudySummary | None) -> str:
    """The row of TURNAROUND_TARGETS for a study."""
    if summary is None:
        return PENDING
    if summary.assessment is Assessment.POSITIVE and summary.extent is Extent.SEVERE:
        return "positive severe"
    return str(ranked_as(summary.assessment, summary.score))


def due_at(
    received_at: datetime,
    priority: Priority,
    summary: StudySummary | None,
    targets: TurnaroundTargets = TURNAROUND_TARGETS,
) -> datetime:
    """Find when a study should have been read.

    Args:
        received_at: when it came, with a time zone.
        priority: of the study.
        summary: of its findings; None: not analysed yet.
        targets: its site's minutes by urgency class and priority.

    Returns:
        The time in UTC.

    Raises:
        ValueError: `received_at` has no time zone.
    """
    if received_at.utcoffset() is None:
        raise ValueError("received_at must carry a time zone")
    # in UTC: elsewhere adding minutes moves the clock on the wall, which jumps twice a year
    return received_at.astimezone(UTC) + timedelta(minutes=targets[urgency_class(summary)][priority])


def finding_text(entry: WorklistEntry) -> str:
    """The finding of an analysed study in words, e.g. "positive, elbow, extent moderate"."""
    unread = unread_words(entry.failed_images) if entry.failed_images else ""
    if entry.abstention is AbstentionReason.UNREAD_IMAGES:
        return _found(entry)
    return f"{_found(entry)}, {unread}" if unread else _found(entry)


def _found(entry: WorklistEntry) -> str:
    if entry.assessment is Assessment.ABSTAINED:
        return f"{entry.assessment}, {abstention_words(entry.abstention, entry.abstention_detail, entry.score)}"
    if entry.assessment in (Assessment.POSITIVE, Assessment.UNCLEAR):
        extent = f", extent {entry.extent}" if entry.extent and entry.extent is not Extent.NONE else ""
        caveat = f", {words}" if (words := abstention_words(entry.abstention, score=entry.score)) else ""
        return f"{entry.assessment}, {entry.region}{extent}{caveat}"
    return f"{entry.assessment}, {entry.region}"
