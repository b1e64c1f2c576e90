"""The order in which radiologists read: earliest due time first.

A study is due at its arrival plus the wait that its class allows. Time passing does not reorder the list, so an index
serves it and paging by (due minute, score descending, id) is exact; the largest allowance is the longest wait that a
kept-up list can have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from uuid import UUID

from shared.findings import (
    AbstentionReason,
    Assessment,
    Severity,
    StudySummary,
    abstention_words,
    ranked_as,
    unread_words,
)
from shared.study import Priority, StudyStatus

PENDING = "pending"  # not analysed yet, or could not be
Allowances = Mapping[str, Mapping[Priority, int]]  # by urgency class and priority: minutes

# minutes a study of this class may wait for its reader, unless its site chose others; the gravest class first
ALLOWANCES: Allowances = {
    "positive severe": {Priority.URGENT: 10, Priority.ROUTINE: 10, Priority.BACKLOG: 60},
    "positive": {Priority.URGENT: 15, Priority.ROUTINE: 30, Priority.BACKLOG: 120},
    "unclear": {Priority.URGENT: 20, Priority.ROUTINE: 240, Priority.BACKLOG: 480},
    "abstained": {Priority.URGENT: 25, Priority.ROUTINE: 480, Priority.BACKLOG: 960},
    PENDING: {Priority.URGENT: 25, Priority.ROUTINE: 720, Priority.BACKLOG: 1440},
    "negative": {Priority.URGENT: 60, Priority.ROUTINE: 1440, Priority.BACKLOG: 2880},
}
HARD_MAXIMUM = timedelta(days=7)  # no site may let a study wait longer than this


def longest_wait(allowances: Allowances = ALLOWANCES) -> timedelta:
    """The hard maximum of a table: no study of a list that readers keep up with waits longer for its reader."""
    return timedelta(minutes=max(max(row.values()) for row in allowances.values()))


def objections(allowances: Allowances) -> list[str]:
    """What is wrong with a table of allowances, in words; empty for a sound one.

    Sound: every class and priority has whole minutes from 1 to HARD_MAXIMUM, a graver class never waits longer than a
    milder one, and urgent never longer than routine, nor routine longer than the backlog.
    """
    if set(allowances) != set(ALLOWANCES):
        return [f"Give a row for each of: {', '.join(ALLOWANCES)}"]
    if any(set(row) != set(Priority) for row in allowances.values()):
        return [f"Give minutes for each of: {', '.join(Priority)}"]
    most = int(HARD_MAXIMUM.total_seconds() // 60)
    wrong = [
        f"{name}, {priority}: {minutes} minutes; from 1 to {most} are possible, for no study may wait longer than "
        f"{HARD_MAXIMUM.days} days"
        for name, row in allowances.items()
        for priority, minutes in row.items()
        if not 1 <= minutes <= most
    ]
    for graver, milder in pairwise(ALLOWANCES):
        wrong += [
            f"{priority}: {graver} may not wait longer ({allowances[graver][priority]} minutes) than {milder} "
            f"({allowances[milder][priority]})"
            for priority in Priority
            if allowances[graver][priority] > allowances[milder][priority]
        ]
    for sooner, later in pairwise(Priority):
        wrong += [
            f"{name}: {sooner} may not wait longer ({row[sooner]} minutes) than {later} ({row[later]})"
            for name, row in allowances.items()
            if row[sooner] > row[later]
        ]
    return wrong


@dataclass(frozen=True)
class WorklistEntry:
    """One row of the worklist, without the patient's identity."""

    study_id: UUID
    priority: Priority
    status: StudyStatus
    received_at: datetime
    due_at: datetime
    assessment: Assessment | None
    severity: Severity | None
    region: str
    fracture_probability: float | None
    score: float | None
    abstention: AbstentionReason | None
    abstention_detail: str
    modality: str
    images: int
    failed_images: int
    reason: str  # why quarantined or retrying
    read_at: datetime | None = None
    # the examination, as shared.tables has it
    sex: str = ""
    age_years: int | None = None
    study_date: date | None = None
    study_time: time | None = None
    body_part: str = ""
    laterality: str = ""
    views: str = ""
    header_version: int = 0
    reader: str = ""  # who reads it now; empty: nobody
    reading_since: datetime | None = None
    reader_key: UUID | None = None  # names are not unique
    reader_desk: str = ""  # which login of that key

    def why(self) -> str:
        """The place of this row in words, the same while it waits; who shows them adds for how long it has."""
        what = "not analysed" if self.assessment is None else explain(self)
        due, received = self.due_at.astimezone(UTC), self.received_at.astimezone(UTC)
        day = "" if due.date() == received.date() else f"{due:%Y-%m-%d} "
        return f"due {day}{due:%H:%M} UTC: {self.priority}, {what}"


def span(start: datetime, end: datetime | None = None) -> str:
    """The time from start to end, or to now, in two units at most."""
    seconds = max(0, int(((end or datetime.now(UTC)) - start).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 60:
        return f"{seconds} s" if end else "< 1 min"
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02d} min" if hours < 24 else f"{days} d {hours % 24} h"


def urgency_class(summary: StudySummary | None) -> str:
    """The row of ALLOWANCES that a study falls under."""
    if summary is None:
        return PENDING
    if summary.assessment is Assessment.POSITIVE and summary.severity is Severity.SEVERE:
        return "positive severe"
    return str(ranked_as(summary.assessment, summary.score))


def due_at(
    received_at: datetime, priority: Priority, summary: StudySummary | None, allowances: Allowances = ALLOWANCES
) -> datetime:
    """When the study should have been read, by its site's allowances. Raises ValueError for a naive time."""
    if received_at.utcoffset() is None:
        raise ValueError("received_at must carry a time zone")
    # in UTC: elsewhere adding minutes moves the clock on the wall, which jumps twice a year
    return received_at.astimezone(UTC) + timedelta(minutes=allowances[urgency_class(summary)][priority])


def explain(entry: WorklistEntry) -> str:
    """The finding of an analysed study in words, e.g. "positive, elbow, extent moderate"."""
    unread = unread_words(entry.failed_images) if entry.failed_images else ""
    if entry.abstention is AbstentionReason.UNREAD_IMAGES:
        return _found(entry)
    return f"{_found(entry)}, {unread}" if unread else _found(entry)


def _found(entry: WorklistEntry) -> str:
    if entry.assessment is Assessment.ABSTAINED:
        return f"{entry.assessment}, {abstention_words(entry.abstention, entry.abstention_detail, entry.score)}"
    if entry.assessment in (Assessment.POSITIVE, Assessment.UNCLEAR):
        extent = f", extent {entry.severity}" if entry.severity and entry.severity is not Severity.NONE else ""
        caveat = f", {words}" if (words := abstention_words(entry.abstention, score=entry.score)) else ""
        return f"{entry.assessment}, {entry.region}{extent}{caveat}"
    return f"{entry.assessment}, {entry.region}"
