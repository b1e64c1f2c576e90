"""An analysis: what a worker does for one study with one model, and the states that it goes through."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from shared.domain.study import Priority


class Purpose(StrEnum):
    """What an analysis is for."""

    FIRST = "first"  # the study's own: its result is the study's
    RERUN = "rerun"  # a newer model on an analysed study; its findings replace the summary
    SHADOW = "shadow"  # a model that is not active; nobody is shown what it found


class AnalysisState(StrEnum):
    """Where an analysis stands."""

    QUEUED = "queued"  # a message is out, or will be
    RUNNING = "running"  # a worker holds a lease on it
    RETRYING = "retrying"  # failed with something that can heal; waits for its next attempt
    PAUSED = "paused"  # a run took it back when its window closed; the next run goes on with it
    DONE = "done"
    FAILED = "failed"  # nothing could be analysed, or the attempts are used up; the reason says why
    SUPERSEDED = "superseded"  # something newer made it needless


class SupersededReason(StrEnum):
    """Why a rerun failed or became needless, beside the reasons of `shared.errors.Reason`."""

    IMAGE_UNREAD = "image-unread"  # an image could not be read again; detail: the image's reason
    IMAGES_MISSING = "images-missing"  # not every image has a finding of this model
    ANALYSED_ANEW = "analysed-anew"  # the study is queued or being analysed
    SPEAKS_ALREADY = "speaks-already"  # the study's findings are this model's
    OTHER_BUNDLE = "other-bundle"  # another model is active
    IMAGE_DELETED = "image-deleted"
    IMAGE_REJECTED = "image-rejected"  # by a Key Object Selection Document


class LeftoverKind(StrEnum):
    """Why a backfill run took up a study's own analysis."""

    FAILED = "failed"  # the one before had failed of something that may have healed
    STRANDED = "stranded"  # it waited long without a message in any queue


WAITING = (AnalysisState.QUEUED, AnalysisState.RETRYING)
OPEN = (*WAITING, AnalysisState.RUNNING)
ENDED = (AnalysisState.DONE, AnalysisState.FAILED, AnalysisState.SUPERSEDED)

_ENDS = frozenset(ENDED)
TRANSITIONS: dict[AnalysisState, frozenset[AnalysisState]] = {
    # a run asks for it again; one whose findings are there already ends at once
    AnalysisState.QUEUED: frozenset({AnalysisState.QUEUED, AnalysisState.RUNNING, AnalysisState.PAUSED}) | _ENDS,
    # a lease ran out and another worker took over; an image came or went meanwhile
    AnalysisState.RUNNING: frozenset({*OPEN, AnalysisState.PAUSED}) | _ENDS,
    AnalysisState.RETRYING: frozenset({AnalysisState.QUEUED, AnalysisState.RUNNING, AnalysisState.PAUSED}) | _ENDS,
    AnalysisState.PAUSED: frozenset({AnalysisState.QUEUED, AnalysisState.SUPERSEDED}),
    # of reruns and shadows alone: a run asks for them again, there is one for each study and model
    AnalysisState.DONE: frozenset({AnalysisState.QUEUED}),
    AnalysisState.FAILED: frozenset({AnalysisState.QUEUED}),
    AnalysisState.SUPERSEDED: frozenset({AnalysisState.QUEUED}),
}


class InvalidTransition(RuntimeError):
    """An analysis was to go where it cannot: an error of this program."""


def may_move(purpose: Purpose, now: AnalysisState, then: AnalysisState) -> bool:
    """Check an analysis' change of state.

    A study's own is superseded or taken back by nothing, and once it has ended it stays: what comes after is a new one.

    Args:
        purpose: of the analysis.
        now: its present state.
        then: its next state.

    Returns:
        Whether it may go there.
    """
    if purpose is Purpose.FIRST and (now not in OPEN or then in (AnalysisState.PAUSED, AnalysisState.SUPERSEDED)):
        return False
    return then in TRANSITIONS[now]


@dataclass(frozen=True)
class InstanceToAnalyse:
    """One instance that still lacks findings of the model that is to analyse it."""

    id: UUID
    sha256: str
    frames: int  # as the header says
    pixels: int  # rows x columns x frames


@dataclass(frozen=True)
class Claim:
    """A worker's right to one analysis until its lease runs out."""

    analysis_id: UUID
    study_id: UUID
    purpose: Purpose
    model: str
    token: UUID  # the final write is accepted from the holder of this token only
    attempt: int  # 1 for the first
    priority: Priority
    waits_since: datetime  # for this result: not since the study first came, if it was opened again
    instances: list[InstanceToAnalyse]


class TaskOutcome(StrEnum):
    """What a message about an analysis or a frame led to: Flower shows it, Prometheus counts those of analyses."""

    ANALYSED = "analysed"
    NOTHING_TO_DO = "nothing-to-do"  # done, held by another worker, or not due
    SUSPECT = "suspect"  # its last attempt ended without a result: it is analysed alone
    LOCKED = "locked"  # another transaction holds its row
    LEASE_LOST = "lease-lost"  # another worker has taken it over: nothing is written
    WILL_RETRY = "will-retry"
    QUARANTINED = "quarantined"  # its study was set aside
    LEFT = "left"  # not begun: the reconciler sends it again
    LEFT_TO_LEASE = "left-to-lease"  # the failure could not be written: it is free once its lease has run out
    FAILED = "failed"  # a rerun's attempts are used up; or no frame was made, nobody knows why
    # of a full-resolution frame
    MADE = "made"
    MADE_ALREADY = "made-already"
    REFUSED = "refused"  # it cannot be made, and why is stored in its place
    BUSY = "busy"  # half of the threads make frames
