"""The transaction of a request: it ends before the response is sent, and waits for no thread while all wait for it."""

import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from api.dependencies import transaction
from api.requests import StrictRequest
from tests.conftest import InProcessApi
from tests.pace import LIMIT_S
from tests.served import served

AT_COMMIT = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$",
    """CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON saved_filters DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION refuse()""",
)


def used(dependant: Dependant) -> Iterator[Dependant]:
    """Each dependency below one."""
    for one in dependant.dependencies:
        yield one
        yield from used(one)


def with_transaction(app: Any) -> list[APIRoute]:
    """The routes that have one for the whole request."""
    routes = [route.original_route for route in iter_route_contexts(app.routes)]
    found = [route for route in routes if isinstance(route, APIRoute)]
    return [route for route in found if any(one.call is transaction for one in used(route.dependant))]


def test_only_plain_functions_have_the_transaction_of_a_request(in_process: InProcessApi) -> None:
    """A coroutine waits for its body, and a generator streams: both would keep a place meanwhile."""
    routes = with_transaction(in_process.http.app)
    assert len(routes) > 30
    for route in routes:
        kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        assert not any(kind(route.endpoint) for kind in kinds), route.path
        (one,) = {one.scope for one in used(route.dependant) if one.call is transaction}
        assert one == "function", route.path  # else the response is sent before the commit


def test_a_response_is_sent_after_the_commit(in_process: InProcessApi) -> None:
    """What fails at the commit is not answered with 201, and nothing of it is there."""
    in_process.as_owner(*AT_COMMIT)
    headers, wanted = in_process.headers("radiologist"), {"name": "mine", "query": "status=queued"}
    assert in_process.http.post("/api/v1/filters", json=wanted, headers=headers).status_code == 500
    in_process.as_owner("DROP TRIGGER refuse ON saved_filters")
    assert in_process.http.get("/api/v1/filters", headers=headers).json() == []
    assert in_process.http.post("/api/v1/filters", json=wanted, headers=headers).status_code == 201


def test_an_error_undoes_what_its_request_wrote(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised after the writing, before the response."""
    headers, wanted = in_process.headers("radiologist"), {"name": "mine", "query": "status=queued"}
    with monkeypatch.context() as patched:
        patched.setattr("api.worklist.filters.saved", lambda *_: 1 / 0)
        assert in_process.http.post("/api/v1/filters", json=wanted, headers=headers).status_code == 500
    assert in_process.http.get("/api/v1/filters", headers=headers).json() == []


def test_no_transaction_is_open_while_a_body_comes(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a place nor a connection is taken before the whole body is there."""
    app: Any = in_process.http.app
    parts, taken = app.state.parts, []
    read = StrictRequest.body

    async def noting(request: StrictRequest) -> bytes:
        taken.append((parts.transactions.borrowed_tokens, parts.database.engine.pool.checkedout()))
        return await read(request)

    monkeypatch.setattr(StrictRequest, "body", noting)
    wanted = {"name": "mine", "query": "status=queued"}
    for path, sent in (("/api/v1/filters", wanted), ("/api/v1/worklist/search", {"number": "4711"})):
        response = in_process.http.post(path, json=sent, headers=in_process.headers("radiologist"))
        assert response.is_success, response.text
    assert set(taken) == {(0, 0)}


def test_more_requests_than_threads_and_connections_all_get_a_response(make_api: Callable[..., InProcessApi]) -> None:
    """None waits for a thread with a connection in hand while others hold all threads and wait for a connection."""
    api = make_api(database_pool_size=2)
    app: Any = api.http.app
    assert isinstance(app, FastAPI)
    app.state.parts.database.engine.pool._timeout = LIMIT_S

    async def fewer_threads() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 3

    app.add_api_route("/fewer", fewer_threads)
    with (
        served(app) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=LIMIT_S) as http,
    ):
        assert http.get("/fewer", headers=api.headers()).status_code == 200
        with ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(http.get, "/api/v1/worklist", headers=api.headers("radiologist")) for _ in range(72)]
            assert {one.result().status_code for one in asked} == {200}
