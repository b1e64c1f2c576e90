"""What is noted of security: by whom, from where; and what becomes of wrong keys."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, update
from typer.testing import CliRunner

from api.app import create_app
from api.operations.audit import WORDS
from infra import cli
from shared.db.tables import KeyRow
from shared.domain.security import EventKind
from shared.queries.access import revoke_key_by_id
from shared.queries.audit import network_of
from tests.conftest import InProcessApi
from tests.served import served


def seen(api: InProcessApi, role: str = "operator") -> list[dict[str, Any]]:
    """The events that a role is shown, the first first."""
    response = api.http.get("/api/v1/audit-events", headers=api.headers(role))
    assert response.status_code == 200
    return list(reversed(response.json()["events"]))


def peer(api: InProcessApi, address: str, app: Any = None) -> TestClient:
    """A client at an address."""
    return TestClient(app or api.http.app, client=(address, 4711), raise_server_exceptions=False)


def asked(http: TestClient, secret: str) -> Any:
    """The response to a request that shows a key."""
    return http.get("/api/v1/worklist", headers={"Authorization": f"Bearer {secret}"})


def test_what_is_noted_and_shown(in_process: InProcessApi, caplog: pytest.LogCaptureFixture) -> None:
    """Logins, failures, keys, exports, settings: each with actor, address and time, in the table and the log, no secret."""
    caplog.set_level(logging.INFO)
    http = peer(in_process, "203.0.113.9")
    http.post("/login", data={"key": "osk_guessed_wrong"})
    http.post("/login", data={"key": in_process.keys["radiologist"]})
    http.post("/logout", headers={"Sec-Fetch-Site": "same-origin"})
    asked(http, "osk_guessed_again")
    admin = in_process.headers("admin")
    made = http.post("/api/v1/keys", json={"name": "ct-2", "role": "submitter"}, headers=admin).json()
    http.post(f"/api/v1/keys/{made['id']}/revoke", headers=admin)
    asked(http, made["secret"])
    table = http.get("/api/v1/turnaround-targets", headers=admin).json()["minutes"]
    assert http.put("/api/v1/turnaround-targets", json={"minutes": table}, headers=admin).status_code == 200
    assert http.get("/api/v1/feedback", headers=admin).status_code == 200
    found = [(one["kind"], one["actor"], one["words"]) for one in seen(in_process) if one["address"] == "203.0.113.9"]
    assert found == [
        ("login-failed", None, "login refused: there is no such key"),
        ("new-address", "radiologist", "used from there for the first time"),
        ("login", "radiologist", "logged in"),
        ("logout", "radiologist", "logged out"),
        ("key-refused", None, "key refused: there is no such key"),
        ("new-address", "admin", "used from there for the first time"),
        ("key-made", "admin", "made the key ct-2 (submitter)"),
        ("key-revoked", "admin", "revoked the key ct-2 (submitter)"),
        ("key-refused", "ct-2", "key refused: it was revoked"),
        ("setting-changed", "admin", "changed the setting turnaround-targets"),
        ("export", "admin", "exported: feedback"),
    ]
    # an admin is shown their site's, not what is nobody's
    assert [one["kind"] for one in seen(in_process, "admin") if one["address"] == "203.0.113.9"] == [
        kind for kind, actor, _ in found if actor
    ]
    page = in_process.http.get("/operations?tab=events", headers=in_process.headers(page=True)).text
    assert "revoked the key ct-2" in page
    assert "there is no such key" not in page
    logged = [vars(one) for one in caplog.records if one.getMessage() == "audit event recorded"]
    assert {"login-failed", "key-made", "export"} <= {one["kind"] for one in logged}
    text = str(logged) + page
    assert "guessed" not in text
    assert made["secret"] not in text


def test_every_kind_has_words() -> None:
    """A kind without words would be an error on the page."""
    assert set(WORDS) == set(EventKind)


def test_an_ended_key_is_told_why(in_process: InProcessApi) -> None:
    """Who holds the secret is told what became of it, with a code for programs; who holds another one is told nothing."""
    with in_process.database.transaction() as session:
        revoke_key_by_id(session, None, in_process.key("submitter").id)
        session.execute(update(KeyRow).where(KeyRow.name == "radiologist").values(expires_at=func.now()))
    for role, code, words in (("submitter", "revoked", "was revoked on"), ("radiologist", "expired", "expired on")):
        response = asked(in_process.http, in_process.keys[role])
        assert (response.status_code, response.json()["code"]) == (401, code)
        assert words in response.json()["detail"]
        page = in_process.http.post("/login", data={"key": in_process.keys[role]})
        assert (page.status_code, words in page.text) == (401, True)
    assert "Show a valid API key" in asked(in_process.http, "osk_nobody").json()["detail"]


def test_failures_are_throttled_in_every_process(make_api: Callable[..., InProcessApi]) -> None:
    """After so many wrong keys of one address further ones wait, whichever process they come to; nobody else does.

    A key that was used from there before goes on; a valid one that never was waits too, for it may be guessed.
    """
    api = make_api(failures_a_minute=4)
    second = create_app(api.settings)
    assert asked(peer(api, "198.51.100.1"), api.keys["radiologist"]).status_code == 200
    statuses = [asked(peer(api, "198.51.100.1", app), "osk_guess").status_code for app in (None, second) * 3]
    assert statuses == [401] * 4 + [429] * 2
    refused = asked(peer(api, "198.51.100.1", second), "osk_guess")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.json()["code"] == "throttled"
    page = peer(api, "198.51.100.1").post("/login", data={"key": "osk_guess"})
    assert (page.status_code, "Too many wrong keys" in page.text, "Retry-After" in page.headers) == (429, True, True)
    for app in (None, second):
        assert asked(peer(api, "198.51.100.1", app), api.keys["radiologist"]).status_code == 200
        assert asked(peer(api, "198.51.100.1", app), api.keys["admin"]).status_code == 429
        assert asked(peer(api, "198.51.100.2", app), "osk_guess").status_code == 401
        assert asked(peer(api, "198.51.100.2", app), api.keys["admin"]).status_code == 200
    kinds = [one["kind"] for one in seen(api) if one["address"] == "198.51.100.1"]
    assert (kinds.count("key-refused"), kinds.count("throttled")) == (4, 1)  # those that waited are not written down


def test_a_wait_ends_by_itself(make_api: Callable[..., InProcessApi]) -> None:
    """A minute after its failures an address is as any other."""
    api = make_api(failures_a_minute=2)
    for status in (401, 401, 429):
        assert asked(peer(api, "198.51.100.1"), "osk_guess").status_code == status
    past(api, 70)
    assert asked(peer(api, "198.51.100.1"), "osk_guess").status_code == 401
    assert asked(peer(api, "198.51.100.1"), api.keys["admin"]).status_code == 200


def past(api: InProcessApi, seconds: int) -> None:
    """Let all events be so much older; only the tables' owner can, with their trigger off."""
    api.as_owner(
        "ALTER TABLE audit_events DISABLE TRIGGER USER",
        f"UPDATE audit_events SET at = at - interval '{seconds} s'",
        "ALTER TABLE audit_events ENABLE TRIGGER USER",
    )


def test_an_ended_key_is_throttled_wherever_it_comes_from(make_api: Callable[..., InProcessApi]) -> None:
    """A revoked key that is shown from many addresses waits as one; what else comes from these does not."""
    api = make_api(failures_a_minute=3)
    with api.database.transaction() as session:
        revoke_key_by_id(session, None, api.key("submitter").id)
    statuses = [asked(peer(api, f"198.51.100.{n}"), api.keys["submitter"]).status_code for n in range(5)]
    assert statuses == [401] * 3 + [429] * 2
    assert asked(peer(api, "198.51.100.4"), api.keys["radiologist"]).status_code == 200


def test_the_last_use_is_coarse(in_process: InProcessApi) -> None:
    """It is written at the first use, and not again with each request."""
    for _ in range(3):
        in_process.http.get("/api/v1/worklist", headers=in_process.headers("radiologist"))
    (shown,) = [
        one
        for one in in_process.http.get("/api/v1/keys", headers=in_process.headers()).json()
        if one["name"] == "radiologist"
    ]
    detail = in_process.http.get(f"/api/v1/keys/{shown['id']}", headers=in_process.headers()).json()
    assert detail["last_used_at"] == shown["last_used_at"] is not None
    assert [one["address"] for one in detail["addresses"]] == ["testclient"]
    in_process.http.get("/api/v1/worklist", headers=in_process.headers("radiologist"))
    again = in_process.http.get(f"/api/v1/keys/{shown['id']}", headers=in_process.headers()).json()
    assert again["last_used_at"] == shown["last_used_at"]


def test_pages_of_events(in_process: InProcessApi) -> None:
    """Each event once, the latest first."""
    for number in range(7):
        in_process.http.post(
            "/api/v1/keys", json={"name": f"key {number}", "role": "submitter"}, headers=in_process.headers()
        )
    told, before = [], None
    while True:
        page = in_process.http.get(
            "/api/v1/audit-events",
            params={"limit": 3, **({"before": before} if before else {})},
            headers=in_process.headers(),
        ).json()
        told += page["events"]
        if (before := page["next"]) is None:
            break
    names = [one["detail"]["name"] for one in told if one["kind"] == "key-made"]
    assert names == [f"key {number}" for number in reversed(range(7))]
    assert len({one["id"] for one in told}) == len(told)


@given(st.ip_addresses())
def test_networks_of_addresses(address: Any) -> None:
    """An IPv4 address counts for itself, however it is written; of IPv6 all of one /64 count together."""
    network = network_of(str(address))
    assert len(network) <= 49
    if address.version == 4:
        assert network == str(address) == network_of(f"::ffff:{address}")
    elif address.ipv4_mapped is None:
        assert network == network_of(str(type(address)(int(address) ^ 1)))
        assert network != network_of(str(type(address)(int(address) ^ (1 << 64))))


def test_keys_by_command(in_process: InProcessApi) -> None:
    """`osteon keys`: a key is added, listed, shown and revoked, for people and for scripts; `osteon revoke` is the same."""
    app = in_process.http.app
    assert isinstance(app, FastAPI)
    with served(app) as port:
        keys_by_command(in_process, f"http://127.0.0.1:{port}")


def keys_by_command(in_process: InProcessApi, url: str) -> None:
    """The commands of the test above."""
    bare = CliRunner()

    def osteon(*words: str, role: str = "admin") -> tuple[int, str]:
        done = bare.invoke(cli.app, [*words, "--url", url, "--key", in_process.keys[role]], env={"COLUMNS": "200"})
        return done.exit_code, done.output

    code, said = osteon("keys", "add", "ct-1", "--role", "submitter", "--days", "30")
    assert code == 0
    secret = said.split()[-1]
    assert secret.startswith("osk_")
    code, said = osteon("keys", "add", "ct-1", "--role", "submitter")
    assert (code, "has a key named ct-1 already" in said) == (1, True)
    assert osteon("keys", "add", "root", "--role", "operator")[0] == 1
    code, said = osteon("keys", "list", "--json")
    assert (code, '"ct-1"' in said, secret in said, "sha256" in said) == (0, True, False, False)
    assert "ct-1" in osteon("keys", "list")[1]
    asked(in_process.http, secret)
    code, said = osteon("keys", "show", "ct-1")
    assert (code, "first used from   testclient" in said) == (0, True)
    code, said = osteon("keys", "revoke", "ct-1")
    assert (code, "is revoked" in said) == (0, True)
    assert asked(in_process.http, secret).status_code == 401
    assert "ct-1" not in osteon("keys", "list")[1]
    assert "revoked" in osteon("keys", "list", "--all")[1]
    assert osteon("keys", "show", "nobody")[0] == 1
    code, said = osteon("revoke", "radiologist", role="operator")
    assert (code, "is revoked" in said) == (0, True)
    code, said = osteon(
        "keys", "add", "hospital", "--role", "admin", "--site", "north", "--new-site", "--json", role="operator"
    )
    assert (code, '"north"' in said) == (0, True)
    assert osteon("keys", "add", "admin", "--role", "admin", "--site", "north", role="operator")[0] == 0
    code, said = osteon("keys", "revoke", "admin", role="operator")
    assert (code, "2 sites have a key named admin" in said) == (1, True)
