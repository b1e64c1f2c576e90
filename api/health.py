"""GET /healthz and /readyz: whether this process lives, and whether the parts behind it answer."""

from collections.abc import Callable

from fastapi import APIRouter, Response
from sqlalchemy import text

from api.dependencies import Parts, PartsDep
from api.responses import Health
from shared.errors import OsteonError

router = APIRouter(tags=["operate"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Whether this process is alive; says nothing of the parts behind it."""
    return {"status": "alive"}


@router.get("/readyz")
def readyz(parts: PartsDep, response: Response) -> Health:
    """Whether uploads can be taken: database and store must answer. The broker may be down; uploads wait for it."""
    found = health(parts)
    response.status_code = 200 if found.ready else 503
    return found


def health(parts: Parts) -> Health:
    """What each part answers: "ok", or what is wrong."""
    answers = {
        "database": _ask(lambda: _query(parts)),
        "store": _ask(parts.store.check),
        "broker": _ask(parts.doorbell.waiting),
    }
    return Health(ready=answers["database"] == answers["store"] == "ok", parts=answers)


def _query(parts: Parts) -> None:
    with parts.database.transaction() as session:
        session.execute(text("SELECT 1 FROM bundles LIMIT 1"))


def _ask(question: Callable[[], object]) -> str:
    try:
        question()
    except OsteonError as wrong:
        return str(wrong)
    except Exception as wrong:  # noqa: BLE001 - a health check reports whatever it meets
        return f"failed ({type(wrong).__name__}): run the migrations (alembic upgrade head)"
    return "ok"
