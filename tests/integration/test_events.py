"""Live worklists: who is told what, when, and how streams end; a real API process over HTTP."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import text

from api.events import COALESCE_S, MAX_STREAM_S
from api.server import main
from infra.embedded.process import free_port
from shared.db.engine import Database
from shared.db.notify import findings_revised, worklist_changed
from shared.domain.security import Role
from shared.queries.access import Key, add_key, find_key
from shared.settings import ROOT
from tests.forked import ForkedProcess
from tests.pace import LIMIT_S, until


class Api:
    """An API process."""

    def __init__(self, database_url: str, folder: str) -> None:
        self.port = free_port()
        own = {
            "OSTEON_DATABASE_URL": database_url, "OSTEON_IDENTITY_KEY": Fernet.generate_key().decode(),
            "OSTEON_SESSION_SECRET": "a session secret for tests", "OSTEON_STORE_URL": f"file:{folder}/objects",
            "OSTEON_STREAMS_PER_KEY": "2", "PYTHONPATH": str(ROOT), "OSTEON_API_PORT": str(self.port),
        }  # fmt: skip
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OSTEON_")}
        with Path(folder, "api.log").open("wb") as log:
            self.process = ForkedProcess(main, inherited | own, log, ROOT)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=LIMIT_S, trust_env=False)
        until(self._responds, 60)

    def _responds(self) -> bool:
        try:
            return self.http.get("/healthz").is_success
        except httpx.TransportError:
            return False


@pytest.fixture
def key(database: Database) -> Key:
    with database.transaction() as session:
        add_key(session, "default", "ada", Role.RADIOLOGIST, "osk_ada")
        add_key(session, "elsewhere", "bob", Role.RADIOLOGIST, "osk_bob")
        add_key(session, "default", "sender", Role.SUBMITTER, "osk_sender")
        found = find_key(session, "osk_ada")
    assert found is not None
    return found


@pytest.fixture
def api(database_url: str, key: Key, tmp_path: object) -> Iterator[Api]:
    made = Api(database_url, str(tmp_path))
    yield made
    made.process.kill()
    made.process.wait(LIMIT_S)


def stream(api: Api, secret: str = "osk_ada") -> AbstractContextManager[httpx.Response]:
    return api.http.stream("GET", "/api/v1/worklist/events", headers={"Authorization": f"Bearer {secret}"})


def tell(database: Database, site: UUID) -> None:
    with database.transaction() as session:
        worklist_changed(session, [site])


def listening(database: Database) -> int:
    with database.transaction() as session:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'osteon listener' AND datname = current_database()"
        return int(session.scalar(text(query)) or 0)


def test_who_is_told_and_how_often(api: Api, database: Database, key: Key) -> None:
    """A change is told once to those of its site; many at once are one event; a rolled back one is none."""
    with stream(api) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
        lines = response.iter_lines()
        assert next(line for line in lines if line) == "retry: 3000"
        until(lambda: listening(database) == 1, 30)
        # what was before it listened
        assert [next(line for line in lines if line.startswith("event")) for _ in range(2)] == [
            "event: worklist", "event: revised"
        ]  # fmt: skip
        time.sleep(1.5)
        tell(database, uuid4())  # another site's
        with suppress(RuntimeError), database.transaction() as session:
            worklist_changed(session, [key.site_id])
            raise RuntimeError
        began = time.monotonic()
        for _ in range(50):
            tell(database, key.site_id)
        periods = (time.monotonic() - began) / COALESCE_S
        assert next(line for line in lines if line.startswith("event")) == "event: worklist"
        # were each of the fifty an event, fifty would come before this sign of life
        rest = list(itertools.takewhile(lambda line: not line.startswith(": ping"), lines))
        assert sum(line.startswith("event") for line in rest) <= 3 + periods
        assert "event: revised" not in rest
        with database.transaction() as session:
            findings_revised(session, [key.site_id])
        told = [next(line for line in lines if line.startswith("event")) for _ in range(2)]
        assert told == ["event: worklist", "event: revised"]


def test_other_roles_and_too_many_are_refused(api: Api, key: Key) -> None:
    """Without a reader's key there is no stream; a key has so many at a time, and one more once one is closed."""
    assert api.http.get("/api/v1/worklist/events").status_code == 401
    assert api.http.get("/api/v1/worklist/events", headers={"Authorization": "Bearer osk_sender"}).status_code == 403
    with stream(api) as first, stream(api) as second:
        kept = [response.iter_lines() for response in (first, second)]  # an iterator that is let go closes its stream
        assert all(next(line for line in lines if line) for lines in kept)
        with stream(api) as refused:
            assert (refused.status_code, b"2 live worklists" in refused.read()) == (429, True)
        with stream(api, "osk_bob") as other:
            assert other.status_code == 200

    def free() -> bool:
        with stream(api) as response:
            return response.status_code == 200

    until(free, 30)


def test_the_listener_comes_back(api: Api, database: Database, key: Key) -> None:
    """A connection that Postgres closes is made anew, and whoever waits is told to look: they may have missed something."""
    with stream(api) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line == "event: worklist")
        until(lambda: listening(database) == 1, 30)
        with database.transaction() as session:
            session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'osteon listener' AND datname = current_database()"
                )
            )
        assert next(line for line in lines if line == "event: worklist")
        tell(database, key.site_id)
        assert next(line for line in lines if line == "event: worklist")


def test_open_streams_do_not_hold_the_server(api: Api, key: Key) -> None:
    """Asked to stop, the API ends its streams cleanly and is gone, however many pages are open."""
    with stream(api) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line)
        api.process.send_signal(signal.SIGTERM)
        for _ in lines:
            pass
    assert api.process.wait(LIMIT_S) in (0, -signal.SIGTERM)


def test_a_stream_ends_with_its_key(api: Api, database: Database, key: Key) -> None:
    """Within seconds of the key's end its open streams end, those of other keys go on, and coming again is refused."""
    with stream(api) as mine, stream(api, "osk_bob") as other:
        theirs = other.iter_lines()
        assert next(line for line in theirs if line)
        lines = mine.iter_lines()
        assert next(line for line in lines if line)
        with database.transaction() as session:
            session.execute(text("UPDATE api_keys SET expires_at = now() WHERE name = 'ada'"))
        began = time.monotonic()
        for _ in lines:
            pass
        took = time.monotonic() - began
        assert took < MAX_STREAM_S / 2, "it ended by its own length of life"
        print(f"the stream ended {took:.1f} s after its key")
        tell(database, UUID(bytes=bytes(16)))
        assert next(line for line in theirs if line.startswith((":", "event")))
    refused = api.http.get("/api/v1/worklist/events", headers={"Authorization": "Bearer osk_ada"})
    assert (refused.status_code, refused.json()["code"]) == (401, "expired")


def test_a_stream_ends_with_its_login(api: Api, database: Database, key: Key) -> None:
    """A page's stream ends when its login does, though its key is valid; another login of the key goes on."""
    ours = {"Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=api.http.base_url, timeout=LIMIT_S, trust_env=False) as page:
        for http in (api.http, page):
            assert http.post("/login", data={"key": "osk_ada"}, headers=ours).status_code == 303
        with (
            api.http.stream("GET", "/api/v1/worklist/events") as mine,
            page.stream("GET", "/api/v1/worklist/events") as other,
        ):
            lines, theirs = mine.iter_lines(), other.iter_lines()
            assert next(line for line in lines if line)
            assert next(line for line in theirs if line)
            assert api.http.post("/logout", headers=ours).status_code == 303
            for _ in lines:
                pass
            tell(database, key.site_id)
            assert next(line for line in theirs if line.startswith("event"))
        assert api.http.get("/api/v1/worklist/events").status_code == 401
