"""What endpoints need: the parts of the system, and who is asking."""

from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.hub import Events
from shared.jobs import Doorbell
from shared.repository import Database
from shared.repository.access import Key, Role, Vault, find_key, find_key_by_id
from shared.repository.reading import StatusCounts
from shared.settings import Settings
from shared.storage import Store


@dataclass(frozen=True)
class Parts:
    """Everything real that the API talks to, made once in `api.main`."""

    settings: Settings
    database: Database
    store: Store
    vault: Vault
    doorbell: Doorbell
    events: Events
    counts: StatusCounts = field(default_factory=StatusCounts)


def parts(request: Request) -> Parts:
    """The parts of this application."""
    return request.app.state.parts  # type: ignore[no-any-return]


PRINTABLE = r"^[^\x00-\x1f]*$"  # Postgres takes no NUL
PartsDep = Annotated[Parts, Depends(parts)]
bearer = HTTPBearer(auto_error=False, description="an API key: Authorization: Bearer osk_…")


def reader(
    request: Request, parts: PartsDep, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Key:
    """The key that the request shows, in its header or in the page's login cookie. 401 without one."""
    with parts.database.transaction() as session:
        if shown is not None:
            key = find_key(session, shown.credentials)
        else:
            # with the cookie, only our own pages write: another site, or another port of this host, cannot make a
            # browser do so (Fetch Metadata, https://www.w3.org/TR/fetch-metadata/)
            ours = request.method in ("GET", "HEAD") or request.headers.get("sec-fetch-site") == "same-origin"
            if not ours and "sec-fetch-site" not in request.headers and request.session.get("key"):
                raise HTTPException(
                    403,
                    "Your browser does not say which page sent this: use HTTPS (or localhost), and a current browser",
                )
            logged_in = request.session.get("key") if ours else None
            key = find_key_by_id(session, UUID(logged_in)) if logged_in else None
    if key is None:
        raise HTTPException(
            401, "Show a valid API key: Authorization: Bearer osk_…", headers={"WWW-Authenticate": "Bearer"}
        )
    return key


def desk(request: Request) -> str:
    """Which login of its key asks; empty for a program."""
    return str(request.session.get("desk", ""))[:32]


Desk = Annotated[str, Depends(desk)]
KeyDep = Annotated[Key, Depends(reader)]


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
AnyReader = Annotated[Key, Depends(require(Role.SUBMITTER, Role.RADIOLOGIST))]
