"""What a site chooses for its results."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.tables import SiteRow
from shared.domain.results import CaptureModality
from shared.domain.security import EventKind, Subject
from shared.queries.access import Key
from shared.queries.audit import State, Target, difference, record

RESULT_CHOICES = "result-choices"  # the code of this setting


@dataclass(frozen=True)
class ResultChoices:
    """A site's choices."""

    states_probability: bool  # documents and pictures state the calibrated probability
    capture_modality: CaptureModality


def chosen(session: Session, site_id: UUID) -> ResultChoices:
    """Read what a site has chosen.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        Its choices, or those that every site begins with.
    """
    return _choices(session.scalars(select(SiteRow).where(SiteRow.id == site_id)).one())


def choose(session: Session, key: Key, choices: ResultChoices) -> None:
    """Let the results of the key's site be made by other choices from now on. What was made stays as it is.

    Args:
        session: the caller's transaction.
        key: of the administrator.
        choices: all of them.
    """
    row = session.scalars(
        select(SiteRow).where(SiteRow.id == key.site_id).with_for_update(key_share=True)
    ).one()  # one at a time: what this one found before is what the one before it chose
    before, after = difference(_state(_choices(row)), _state(choices))
    if not after:
        return
    row.states_probability, row.capture_modality = choices.states_probability, choices.capture_modality
    record(
        session, EventKind.SETTING_CHANGED, key, about=Target(Subject.SETTING, RESULT_CHOICES), before=before,
        after=after, setting=RESULT_CHOICES,
    )  # fmt: skip


def _choices(row: SiteRow) -> ResultChoices:
    return ResultChoices(row.states_probability, CaptureModality(row.capture_modality))


def _state(choices: ResultChoices) -> State:
    """As events record it."""
    probability = "stated" if choices.states_probability else "not-stated"
    return {"probability": probability, "capture-modality": choices.capture_modality.value}
