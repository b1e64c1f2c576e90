"""Where results go, as administrators set it up: the API, its errors, and whose destinations a key sees."""

from typing import Any

import pytest

from shared.db.tables import DestinationRow
from shared.queries import destinations
from tests.conftest import InProcessApi

DICOM = {"name": "PACS", "kind": "dicom", "host": "pacs.example", "port": 104, "called_ae": "PACS"}


def add(api: InProcessApi, role: str = "admin", **changes: Any) -> Any:
    return api.http.post("/api/v1/destinations", json={**DICOM, **changes}, headers=api.headers(role))


def test_a_destination_is_added_changed_tested_and_disabled(in_process: InProcessApi) -> None:
    """With the rule that most sites want; the test is asked of the process that sends."""
    made = add(in_process)
    assert made.status_code == 201
    one = made.json()
    assert [(rule["when"], rule["kinds"]) for rule in one["rules"]] == [
        ("complete", ["sc-overlay", "sc-summary", "sr-outlines", "sr-statements"])
    ]
    assert (one["waiting"], one["failed"], one["testing"], one["test"]) == (0, 0, False, None)
    url, admin = f"/api/v1/destinations/{one['id']}", in_process.headers()
    moved = {name: one[name] for name in ("kind", "host", "called_ae", "calling_ae")} | {"port": 11112}
    assert in_process.http.put(url, json=moved, headers=admin).json()["port"] == 11112
    rules = [{"when": "agreed", "kinds": ["pdf"], "hour_from": 18, "hour_to": 6}]
    told = in_process.http.put(f"{url}/rules", json=rules, headers=admin).json()["rules"]
    assert [(rule["when"], rule["kinds"], rule["hour_from"]) for rule in told] == [("agreed", ["pdf"], 18)]
    assert in_process.http.post(f"{url}/test", headers=admin).json()["testing"]
    assert in_process.http.post(f"{url}/disable", headers=admin).json()["disabled_at"]
    (listed,) = in_process.http.get("/api/v1/destinations", headers=admin).json()
    assert listed["id"] == one["id"]
    assert add(in_process).status_code == 409


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"host": ""}, "host"),
        ({"port": 0}, "port"),
        ({"called_ae": "A\\B"}, "AE title"),
        ({"tls_fingerprint": "00" * 32}, "fingerprint"),
        ({"kind": "stow", "host": "", "port": 0, "called_ae": "", "url": "ftp://pacs"}, "URL"),
        ({"kind": "stow", "host": "", "port": 0, "called_ae": "", "url": "https://u:p@pacs/x"}, "password"),
        ({"kind": "folder", "host": "", "port": 0, "called_ae": "", "folder": "../etc"}, "folder"),
        ({"url": "https://pacs"}, "URL"),
        ({"rules": [{"assessments": ["maybe"]}]}, "maybe"),
        ({"rules": [{"age_from": 60, "age_to": 18}]}, "age"),
    ],
)
def test_what_cannot_be_is_refused_by_name(in_process: InProcessApi, changes: dict[str, Any], word: str) -> None:
    """Each error names the value and what to give instead; nothing is stored."""
    response = add(in_process, **changes)
    assert response.status_code in (400, 422)
    assert word in response.text
    assert in_process.http.get("/api/v1/destinations", headers=in_process.headers()).json() == []


def test_other_roles_and_other_sites_see_nothing(in_process: InProcessApi) -> None:
    """Neither senders and readers nor a site whose destination it is not."""
    for role in ("submitter", "radiologist"):
        assert add(in_process, role).status_code == 403
    made = add(in_process).json()
    with in_process.database.transaction() as session:
        row = session.get_one(DestinationRow, made["id"])
        with pytest.raises(Exception, match="no destination"):
            destinations.lock_destination(session, made["id"], row.id)


def test_a_study_without_deliveries_says_so(in_process: InProcessApi) -> None:
    """An unknown study is none."""
    unknown = "/api/v1/studies/00000000-0000-0000-0000-000000000000/deliveries"
    assert in_process.http.get(unknown, headers=in_process.headers()).status_code == 404


WEBHOOK = {"name": "EVENTS", "kind": "webhook", "url": "https://hooks.example/osteon"}


def test_a_webhooks_secret_is_shown_once_and_replaced(in_process: InProcessApi) -> None:
    """By default each event is told; the list shows no secret; while one replaces another two sign."""
    admin = in_process.headers()
    made = in_process.http.post("/api/v1/destinations", json=WEBHOOK, headers=admin).json()
    assert made["secret"].startswith("whsec_")
    assert [(rule["kinds"], len(rule["events"])) for rule in made["rules"]] == [([], 4)]
    (listed,) = in_process.http.get("/api/v1/destinations", headers=admin).json()
    assert (listed["secret"], listed["secrets"]) == ("", 1)
    url = f"/api/v1/destinations/{made['id']}/secret"
    second = in_process.http.post(url, json={}, headers=admin).json()
    third = in_process.http.post(url, json={"at_once": True}, headers=admin).json()
    assert (second["secrets"], third["secrets"]) == (2, 1)
    assert len({made["secret"], second["secret"], third["secret"]}) == 3
    assert in_process.http.post(
        f"/api/v1/destinations/{add(in_process).json()['id']}/secret", json={}, headers=admin
    ).status_code == 409  # fmt: skip


def test_only_an_operator_opens_the_sites_network_to_webhooks(in_process: InProcessApi) -> None:
    """Networks belong to whoever runs the machine; plain http needs one."""
    inside = {**WEBHOOK, "url": "http://10.1.2.3/osteon", "networks": "10.1.0.0/16"}
    for role, status in (("admin", 403), ("operator", 201)):
        response = in_process.http.post("/api/v1/destinations", json=inside, headers=in_process.headers(role))
        assert response.status_code == status, response.text
    for changes, word in (
        ({"url": "http://hooks.example"}, "https://"),
        ({"networks": "10.1.2.3/16"}, "networks"),
        ({"networks": "169.254.0.0/24"}, "link-local"),
        ({"rules": [{"kinds": ["pdf"]}]}, "events"),
    ):
        wrong = {**WEBHOOK, **changes}
        response = in_process.http.post("/api/v1/destinations", json=wrong, headers=in_process.headers("operator"))
        assert response.status_code == 400, response.text
        assert word in response.text
