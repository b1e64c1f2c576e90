"""When all images of a study have come, as far as anybody can tell (docs/adr, "When is a study complete")."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

COUNTED_AFTER = (timedelta(seconds=30), timedelta(minutes=2))  # the sender's end, when it is asked for its count
COUNT_AWAITED = timedelta(seconds=50)  # after that end, for the first count; then a study does without


class Completeness(StrEnum):
    """Whether images of a study are still expected."""

    RECEIVING = "receiving"
    COMPLETE = "complete"  # as its senders, or their count, say
    FORCED = "forced"  # they did not say so in time


@dataclass(frozen=True)
class Sending:
    """What one association has to do with a study.

    began_at: its first image of the study. ended_at: None while it is open. released: it ended as agreed; aborted or
    cut otherwise. countable: the peer can be asked how many images it has. asked_at, answered_at: the last time;
    answered also if the answer was of no use.
    """

    peer: UUID
    began_at: datetime
    ended_at: datetime | None = None
    released: bool = False
    countable: bool = False
    asked_at: datetime | None = None
    answered_at: datetime | None = None


@dataclass(frozen=True)
class Reception:
    """What is known of a study that is being received.

    stored: its instances, those that are not analysed included. expected: as a sender counted them; None: nobody did.
    since: the first image since it was last complete.
    """

    stored: int
    since: datetime
    last_received_at: datetime
    expected: int | None = None
    sendings: Collection[Sending] = ()


def completeness(reception: Reception, now: datetime, quiet: timedelta, limit: timedelta) -> Completeness:
    """Decide whether more images are expected.

    Complete is a study that has as many as were counted; or whose associations are all released, or came again after
    they were cut, once nothing came for a while, unless more were counted. An upload ends with its response, so that
    only the quiet time is left.

    Args:
        reception: of a study that is being received.
        now: on the clock of its times.
        quiet: how long nothing must have come.
        limit: how long it is received at most.

    Returns:
        RECEIVING, or what it is from now on.
    """
    if reception.stored == reception.expected:
        return Completeness.COMPLETE
    if _ended(reception, now, quiet):
        return Completeness.COMPLETE
    return Completeness.FORCED if now >= reception.since + limit else Completeness.RECEIVING


def is_count_due(reception: Reception, peer: UUID, now: datetime) -> bool:
    """Decide whether to ask a peer for its count: 30 s and 2 min after the end of all associations.

    Args:
        reception: of a study that is being received.
        peer: that can be asked.
        now: on the clock of the reception's times.

    Returns:
        Whether it is due, and was not asked since it is.
    """
    end = quiet_from(reception)
    if end is None:
        return False
    due = [end + after for after in COUNTED_AFTER if end + after <= now]
    asked = [one.asked_at for one in reception.sendings if one.peer == peer and one.asked_at]
    return bool(due) and (not asked or max(asked) < due[-1])


def quiet_from(reception: Reception) -> datetime | None:
    """Since when nothing comes: the last image, or the end of the last association; None while one is open."""
    ends = [one.ended_at for one in reception.sendings]
    known = [end for end in ends if end is not None]
    return max([reception.last_received_at, *known]) if len(known) == len(ends) else None


def completeness_words(state: str, stored: int, expected: int | None) -> str:
    """Say what is missing.

    Args:
        state: a code of Completeness.
        stored: instances of the study, those that are not analysed included.
        expected: as a sender counted them; None: nobody did.

    Returns:
        As "2 of 3", "more expected", "more were expected"; empty if nothing is missing.
    """
    if state == Completeness.COMPLETE:
        return ""
    if expected is not None and expected > stored:
        return f"{stored} of {expected}"
    return "more expected" if state == Completeness.RECEIVING else "more were expected"


def received_words(state: str, stored: int, expected: int | None) -> str:
    """Say how many images came, and whether more are expected.

    Args:
        state: a code of Completeness.
        stored: instances of the study, those that are not analysed included.
        expected: as a sender counted them; None: nobody did.

    Returns:
        As "2 of 3 images", "1 image, more expected", "2 images".
    """
    missing = completeness_words(state, stored, expected)
    if missing.endswith("expected"):
        return f"{stored} {'image' if stored == 1 else 'images'}, {missing}"
    return f"{missing or stored} {'image' if stored == 1 and not missing else 'images'}"


def _ended(reception: Reception, now: datetime, quiet: timedelta) -> bool:
    end = quiet_from(reception)
    if end is None or now < end + quiet:
        return False
    if reception.expected is not None and reception.expected > reception.stored:
        return False
    if any(_was_cut(one, reception.sendings) for one in reception.sendings):
        return False
    unanswered = any(one.countable and not (one.answered_at and one.answered_at >= end) for one in reception.sendings)
    return not unanswered or now >= end + COUNT_AWAITED


def _was_cut(sending: Sending, others: Collection[Sending]) -> bool:
    """Whether an association was cut, and its peer did not come again with the study."""
    if sending.ended_at is None or sending.released:
        return False
    return not any(
        other.peer == sending.peer and other.released and other.began_at > sending.ended_at for other in others
    )
