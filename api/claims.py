"""Who reads a study: claimed while its page is open, seen by the others, taken over on purpose only."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.dependencies import Desk, PartsDep, Radiologist
from api.responses import ClaimView, PastClaimView
from shared.repository import reading, reading_room
from shared.repository.work import clock

router = APIRouter(tags=["read"])


@router.post("/studies/{study_id}/claim", responses={409: {"model": ClaimView, "description": "somebody else has it"}})
def claim(
    response: Response,
    study_id: UUID,
    parts: PartsDep,
    key: Radiologist,
    desk: Desk,
    *,
    token: Annotated[
        UUID | None, Query(description="the `claim` that you were given, to keep it; or one of your own making")
    ] = None,
    take_over: bool = False,
) -> ClaimView:
    """Claim a study for reading, or keep it: ask again before `until`. 409, and by whom, while somebody else reads it.

    With take_over the study is yours all the same, and both names stay on record; the other one gets 409 when it asks
    to keep it. Another login of your own key is somebody else: `same_key` says so, and `own_since` once you took over.
    """
    lease = timedelta(seconds=parts.settings.claim_lease_s)
    with parts.database.transaction() as session:
        reading.study(session, key.site_id, study_id)
        got = reading_room.claim(session, study_id, key, desk, clock(session), lease, token=token, take_over=take_over)
    if isinstance(got, reading_room.Claimed):
        return ClaimView(
            mine=True, name=key.name, same_key=got.own_since is not None, own_since=got.own_since, since=got.since,
            until=got.until, claim=got.token,
        )  # fmt: skip
    response.status_code = 409
    return ClaimView(mine=False, name=got.name, same_key=got.same_key, since=got.since, until=got.until)


@router.get("/studies/{study_id}/claim")
def reader_of(study_id: UUID, parts: PartsDep, key: Radiologist) -> ClaimView:
    """Who reads a study now."""
    with parts.database.transaction() as session:
        reading.study(session, key.site_id, study_id)
        held = reading_room.holder(session, study_id, clock(session))
    if held is None:
        return ClaimView(mine=False, name="", since=None, until=None)
    return ClaimView(mine=False, name=held.name, since=held.since, until=held.until)


@router.delete("/studies/{study_id}/claim/{token}", status_code=204)
def release(study_id: UUID, token: UUID, parts: PartsDep, key: Radiologist) -> None:
    """Give a claim back. Of one that ended or was renewed by another page of yours, nothing changes."""
    with parts.database.transaction() as session:
        reading_room.release(session, study_id, key, token, clock(session))


@router.get("/studies/{study_id}/claims")
def history(study_id: UUID, parts: PartsDep, key: Radiologist) -> list[PastClaimView]:
    """Everybody who claimed a study, the first one first: who, when, from whom, and how it ended."""
    with parts.database.transaction() as session:
        reading.study(session, key.site_id, study_id)
        past = reading_room.claims_of(session, study_id)
    return [
        PastClaimView(
            name=one.name, claimed_at=one.claimed_at, taken_from=one.taken_from, ended_at=one.ended_at, ended=one.ended
        )
        for one in past
    ]
