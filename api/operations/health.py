"""GET /healthz and /readyz: whether this process runs, and whether the parts behind it answer."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import Response

from api.dependencies import Parts, PartsDep
from api.probe import OK, Probe
from api.requests import Router
from api.schemas import Health

router = Router(tags=["operate"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Check whether this process runs; says nothing of the parts behind it."""
    return {"status": "alive"}


@router.get("/readyz")
def readyz(parts: PartsDep, response: Response) -> Health:
    """Check whether uploads can be accepted: database and store must answer. If the broker is down, uploads wait.

    Each part is asked at most once in five seconds, and for at most three seconds.
    """
    found = health(parts)
    response.status_code = 200 if found.ready else 503
    return found


def health(parts: Parts) -> Health:
    """The state of each part, or what it was a few seconds ago: "ok", or what is wrong."""
    questions: dict[str, Callable[[], object]] = {
        "database": parts.database.check_reachable, "store": parts.store.check_reachable,
        "broker": parts.publisher.waiting,
    }  # fmt: skip
    probes = [parts.probes.setdefault(name, Probe(question)) for name, question in questions.items()]
    with ThreadPoolExecutor(len(probes)) as together:  # a silent one must not delay what is said of the others
        states = dict(zip(questions, together.map(Probe.state, probes), strict=True))
    return Health(ready=states["database"] == states["store"] == OK, parts=states)
