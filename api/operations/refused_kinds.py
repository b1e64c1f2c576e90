"""GET and PUT /api/v1/refused-kinds: which objects a site refuses, in place of keeping them without analysis."""

from sqlalchemy.orm import Session

from api.dependencies import Admin, Parts, PartsDep, SessionDep
from api.operations.schemas import RefusedKindsChoice, RefusedKindsView
from api.requests import API, Router
from shared.domain.study import StoredOnly
from shared.queries import refused_kinds
from shared.queries.access import Key

router = Router(prefix=API, tags=["administer"])


@router.get("/refused-kinds")
def refused(parts: PartsDep, key: Admin, session: SessionDep) -> RefusedKindsView:
    """Get the kinds of objects that your site refuses."""
    return refused_view(parts, session, key)


@router.put("/refused-kinds")
def choose(parts: PartsDep, key: Admin, session: SessionDep, body: RefusedKindsChoice) -> RefusedKindsView:
    """Let your site refuse other kinds of objects from now on; what was stored before stays."""
    refused_kinds.choose(session, key, body.kinds)
    return refused_view(parts, session, key)


def refused_view(parts: Parts, session: Session, key: Key) -> RefusedKindsView:
    """Build the response of GET /api/v1/refused-kinds, which the page uses too.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the administrator.

    Returns:
        What is in force.
    """
    own, installation = (
        refused_kinds.chosen(session, key.site_id),
        refused_kinds.of_setting(parts.settings.refused_kinds),
    )
    return RefusedKindsView(
        kinds=None if own is None else sorted(own),
        in_force=sorted(installation if own is None else own),
        installation=sorted(installation),
        possible=list(StoredOnly),
    )
