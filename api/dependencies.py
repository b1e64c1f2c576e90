"""What endpoints depend on: the parts of the system, and the key of the request."""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from anyio import CapacityLimiter
from fastapi import Depends, HTTPException, Path, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from api.auth import KEY_MISSING, Credentials, KeyRejected, address, is_active, is_from_own_page
from api.backends import Backends
from api.events import Events
from api.probe import Probe
from api.spool import Limiters
from shared.domain.security import Role
from shared.queries import studies
from shared.queries.access import Key
from shared.queries.worklist import StatusCounts, TabCounts


@dataclass(frozen=True)
class Parts(Backends):
    """Everything real that the API talks to, made once in `api.app`."""

    events: Events
    uploads: Limiters
    credentials: Credentials
    transactions: CapacityLimiter  # how many `transaction` opens at once
    counts: StatusCounts = field(default_factory=StatusCounts)
    tabs: TabCounts = field(default_factory=TabCounts)
    probes: dict[str, Probe] = field(default_factory=dict)  # by the part's name, see `api.operations.health`


def parts(request: Request) -> Parts:
    """The parts of this application."""
    return request.app.state.parts  # type: ignore[no-any-return]


PRINTABLE = r"^[^\x00-\x1f]*$"  # Postgres takes no NUL
PartsDep = Annotated[Parts, Depends(parts)]
bearer = HTTPBearer(auto_error=False, description="an API key: Authorization: Bearer osk_…")


def current_key(
    request: Request, parts: PartsDep, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Key:
    """Find the key of a request, in its header or by the page's login cookie.

    Args:
        request: as it came.
        parts: of this application.
        shown: the header Authorization.

    Returns:
        The key.
    """
    if "osteon.key" in request.scope:  # asked before the body was read
        return request.scope["osteon.key"]  # type: ignore[no-any-return]
    if shown is not None:
        key = parts.credentials.verify_key(shown.credentials, address(request))
    else:
        key = _of_cookie(request, parts)
    request.scope["osteon.key"] = key
    return key


def _of_cookie(request: Request, parts: Parts) -> Key:
    login = login_of(request)
    reads = request.method in ("GET", "HEAD")
    is_own_page = reads or is_from_own_page(request)
    if login is not None and is_own_page is None:
        raise HTTPException(
            403, "Your browser does not say which page sent this: use HTTPS (or localhost), and a current browser"
        )
    if login is None or not is_own_page:  # with the cookie, only our own pages write
        raise KeyRejected(401, KEY_MISSING)
    return parts.credentials.verify_login(login, address(request), active=is_active(request))


def login_of(request: Request) -> UUID | None:
    """The login that the cookie names, if any."""
    with suppress(ValueError):
        return UUID(str(request.session.get("login")))
    return None


KeyDep = Annotated[Key, Depends(current_key)]


async def transaction(
    parts: PartsDep,
    _key: KeyDep,  # asked for first, so that nothing is opened for somebody without one
) -> AsyncIterator[Session]:
    """Open the transaction of a request: it commits, or rolls back, before the response is sent.

    For routes whose work is one transaction. A route opens its own with `parts.database.transaction()` where it reads
    the store, waits for its body or streams, because the connection would be held meanwhile; where it sends messages,
    which must come after the commit; and where it needs several.

    FastAPI uses three threads one after the other: for the route, for the check of its response, for the commit. A
    request that waits for a thread while it holds a connection must not find all threads waiting for connections. So
    fewer requests than there are connections come so far, and the others wait here, without a thread.

    Args:
        parts: of this application.

    Yields:
        The session; it takes a connection with its first statement.

    Raises:
        Unavailable: as `Database.transaction` does, also for the commit.
    """
    async with parts.transactions, contextmanager_in_threadpool(parts.database.transaction()) as session:
        yield session


SessionDep = Annotated[Session, Depends(transaction, scope="function")]


def login_id(key: KeyDep) -> str:
    """Which login of its key asks; empty for a program. Two people who share a key are two readers."""
    return key.login.hex if key.login else ""


LoginId = Annotated[str, Depends(login_id)]


def require(*roles: Role):  # type: ignore[no-untyped-def]  # noqa: ANN201 - FastAPI wants the bare function
    """A dependency that answers 403 unless the key holds one of the roles."""

    def check(key: KeyDep) -> Key:
        if not key.may(*roles):
            raise HTTPException(403, f"This needs a key with the role {' or '.join(roles)}; yours is {key.role}")
        return key

    return check


Submitter = Annotated[Key, Depends(require(Role.SUBMITTER))]
Radiologist = Annotated[Key, Depends(require(Role.RADIOLOGIST))]
Admin = Annotated[Key, Depends(require(Role.ADMIN))]
Operator = Annotated[Key, Depends(require(Role.OPERATOR))]
AdminOrOperator = Annotated[Key, Depends(require(Role.ADMIN, Role.OPERATOR))]
AnyRole = KeyDep
SubmitterOrRadiologist = Annotated[Key, Depends(require(Role.SUBMITTER, Role.RADIOLOGIST))]

ImageNumber = Annotated[int, Query(ge=1, le=100_000, description="number of the image in its study")]
FrameNumber = Annotated[int, Query(ge=1, le=100_000, description="of the image, 1 for the first")]
StudyId = Annotated[
    str,
    Path(
        max_length=36,
        pattern="^[0-9a-fA-F-]{4,36}$",
        description="a study's id, or its first digits where no other has them",
    ),
]


def named_study(study_id: StudyId, parts: PartsDep, key: KeyDep) -> UUID:
    """Find the study that a path names.

    Args:
        study_id: the study's id, or its first digits.
        parts: of this application.
        key: of the request.

    Returns:
        The whole id.
    """
    if len(study_id) == 36:
        with suppress(ValueError):
            return UUID(study_id)
    with parts.database.transaction() as session:
        return studies.named(session, key.site_id, study_id)


NamedStudy = Annotated[UUID, Depends(named_study)]
