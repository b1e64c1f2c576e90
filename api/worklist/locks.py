"""Who reads a study: locked while its page is open, seen by the others, taken over on purpose only."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Response

from api.dependencies import LoginId, NamedStudy, PartsDep, Radiologist, SessionDep
from api.reasons import READING_ENDS
from api.requests import API, Router
from api.schemas import PastReadingLockView, ReadingLockView
from shared.db.clock import db_now
from shared.queries import reading_locks, studies

router = Router(prefix=API, tags=["read"])


@router.post(
    "/studies/{study_id}/lock", responses={409: {"model": ReadingLockView, "description": "somebody else has it"}}
)
def acquire(
    response: Response,
    study_id: NamedStudy,
    parts: PartsDep,
    key: Radiologist,
    session: SessionDep,
    login: LoginId,
    *,
    token: Annotated[
        UUID | None, Query(description="the `token` that you were given, to keep it; or one of your own making")
    ] = None,
    take_over: Annotated[bool, Query(description="end the lock of somebody else")] = False,
) -> ReadingLockView:
    """Lock a study for reading, or renew the lock before `until`. 409 while somebody else reads it, and who.

    With take_over the study is yours all the same, and both names stay on record; the other reader gets 409 on keeping
    it. Another login of your own key counts as somebody else: `same_key` says so, and `own_since` once you took over.
    """
    lease = timedelta(seconds=parts.settings.reading_lock_s)
    studies.get(session, key.site_id, study_id)
    got = reading_locks.acquire(session, study_id, key, login, db_now(session), lease, token=token, take_over=take_over)
    if isinstance(got, reading_locks.AcquiredLock):
        return ReadingLockView(
            mine=True, name=key.name, same_key=got.own_since is not None, own_since=got.own_since, since=got.since,
            until=got.until, token=got.token, claim=got.token,
        )  # fmt: skip
    response.status_code = 409
    return ReadingLockView(mine=False, name=got.name, same_key=got.same_key, since=got.since, until=got.until)


@router.get("/studies/{study_id}/lock")
def reader_of(study_id: NamedStudy, key: Radiologist, session: SessionDep) -> ReadingLockView:
    """Get who reads a study now."""
    studies.get(session, key.site_id, study_id)
    held = reading_locks.lock_holder(session, study_id, db_now(session))
    if held is None:
        return ReadingLockView(mine=False, name="", since=None, until=None)
    return ReadingLockView(mine=False, name=held.name, since=held.since, until=held.until)


@router.delete("/studies/{study_id}/lock/{token}", status_code=204)
def release(
    study_id: NamedStudy,
    token: Annotated[UUID, Path(description="the `token` that you were given")],
    key: Radiologist,
    session: SessionDep,
) -> None:
    """Release a study. If your lock ended, or another page of yours renewed it, nothing changes."""
    reading_locks.release(session, study_id, key, token, db_now(session))


@router.get("/studies/{study_id}/locks")
def history(study_id: NamedStudy, key: Radiologist, session: SessionDep) -> list[PastReadingLockView]:
    """List everybody who locked a study, the first one first: who, when, from whom, and how it ended."""
    studies.get(session, key.site_id, study_id)
    past = reading_locks.locks_of(session, study_id)
    return [
        PastReadingLockView.of_row(
            one,
            claimed_at=one.locked_at,
            ended=one.ended or "",
            detail=READING_ENDS[one.ended] if one.ended else "",
        )
        for one in past
    ]
