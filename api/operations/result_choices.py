"""GET and PUT /api/v1/result-choices: what a site's results state, and as what its pictures are sent."""

from dataclasses import asdict

from api.dependencies import Admin, SessionDep
from api.operations.schemas import ResultChoicesView
from api.requests import API, Router
from shared.queries import result_choices
from shared.queries.result_choices import ResultChoices

router = Router(prefix=API, tags=["administer"])


@router.get("/result-choices")
def choices(key: Admin, session: SessionDep) -> ResultChoicesView:
    """Get what your site has chosen for its results."""
    return ResultChoicesView(**asdict(result_choices.chosen(session, key.site_id)))


@router.put("/result-choices")
def choose(key: Admin, session: SessionDep, body: ResultChoicesView) -> ResultChoicesView:
    """Let your site's results be made by these choices from now on; what was made before stays as it is."""
    result_choices.choose(session, key, ResultChoices(body.states_probability, body.capture_modality))
    return body
