"""The administrator's page on the whole system: true numbers, metrics, Flower, and a history that outlives restarts."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml
from playwright.sync_api import Browser, expect
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from infra.embedded.stack import Stack
from infra.embedded.state import read_secrets
from shared.db.clock import db_now
from shared.db.engine import Database
from shared.queries import statistics
from shared.settings import ROOT, Settings
from tests.browsing import needs_chromium, watched
from tests.conftest import SAMPLES, System
from tests.live_stack import pid_of
from tests.pace import LIMIT_S, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
NAMED = re.compile(r"\bosteon_[a-z_]+")


@dataclass
class OwnStack(System):
    """A system and its analysed study."""

    study: str = ""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStack]:
    """A system of this module's own, for its parts are killed; one study is analysed, one file was refused."""
    stack = Stack(Settings(home=tmp_path_factory.mktemp("operating") / "home"))
    with stack:
        secrets = read_secrets(stack.home)
        login = (secrets["flower_user"], secrets["flower_password"])
        system = OwnStack(stack, stack.urls["api"], stack.urls["flower"], secrets["keys"], login)
        system.study = system.submit(sorted((SAMPLES / "studies" / "08-elbow").glob("*.dcm")))["studies"][0]["id"]
        system.submit(sorted((SAMPLES / "studies" / "01-hand").glob("*.dcm")))
        system.wait([system.study])
        yield system


def overview(system: System, chosen: str = "24h") -> Any:
    headers = {"Authorization": f"Bearer {system.keys['admin']}"}
    response = httpx.get(
        f"{system.api_url}/api/v1/operations?range={chosen}", headers=headers, trust_env=False, timeout=LIMIT_S
    )
    assert response.status_code == 200, response.text
    return response.json()


def tended(system: System, condition: Callable[[], Any], seconds: float = 90) -> Any:
    """Wait for it while the supervisor does its work."""
    found = None

    def held() -> object:
        nonlocal found
        system.stack.check()
        found = condition()
        return found

    until(held, seconds)
    return found


def families(url: str, token: str = "") -> set[str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = httpx.get(url, headers=headers, trust_env=False, timeout=LIMIT_S)
    assert body.status_code == 200
    found = set()
    for family in text_string_to_metric_families(body.text):
        found |= {family.name, *(sample.name for sample in family.samples)}
        if family.type == "counter":
            found.add(f"{family.name}_total")
        if family.type == "histogram":
            found |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return found


def test_the_worker_that_did_it_is_shown(own: OwnStack) -> None:
    """The living worker tells its device, its bundle and that it took studies."""
    view = tended(own, lambda: (found := overview(own))["workers"] and found["workers"][0]["bundle"] and found)
    (worker,) = view["workers"]
    assert worker["state"] == "alive"
    assert worker["device"].startswith("CPU")
    assert worker["bundle"] == "second-look-2"
    assert view["troubles"] == []
    tended(own, lambda: overview(own)["workers"][0]["taken"] >= 2)


def test_every_metric_of_dashboard_and_alerts_is_exposed(own: OwnStack) -> None:
    """Names in expressions are names that the running API, worker and listener tell; a misspelt one would be silent for ever."""
    own_database = Database(own.stack.urls["database"], 1)
    with own_database.transaction() as session:
        session.execute(text(
            "INSERT INTO backfill_runs (id, day, started_at, failed, stranded, outdated, bundle) "
            "VALUES (gen_random_uuid(), current_date, now(), 0, 0, 0, '')"
        ))  # fmt: skip
        session.execute(text(
            "INSERT INTO checks (id, state, ended_at, probability_deviation, heatmap_deviation) "
            "VALUES (gen_random_uuid(), 'well', now(), 0, 0)"
        ))  # fmt: skip
    own_database.close()
    token = (own.stack.home / "metrics-token").read_text()
    port = own.stack._variables["OSTEON_WORKER_METRICS_PORT"]
    exposed = families(f"{own.api_url}/metrics", token) | families(f"http://127.0.0.1:{port}/metrics")
    exposed |= families(f"http://127.0.0.1:{own.stack._variables['OSTEON_DICOM_METRICS_PORT']}/metrics")
    alerts = yaml.safe_load((ROOT / "infra/prometheus/alerts.yml").read_text())
    dashboard = json.loads((ROOT / "infra/grafana/osteon.json").read_text())
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expression in expressions for name in NAMED.findall(expression)}
    assert len(named) >= 12
    assert named - exposed == set()


def test_the_worker_told_what_it_did(own: OwnStack) -> None:
    """After two studies the worker's own counters are not zero."""
    port = own.stack._variables["OSTEON_WORKER_METRICS_PORT"]
    body = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    values = {
        sample.name + str(sample.labels.get("outcome", "")): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }
    assert values["osteon_worker_studies_totalanalysed"] >= 1
    for name in (
        "osteon_worker_model_seconds_count",
        "osteon_worker_decode_seconds_count",
        "osteon_worker_wait_seconds_count",
    ):
        assert values[name] >= 1, name
    assert own.study not in body


@needs_chromium
def test_the_link_leads_to_the_study_s_task_in_flower(own: OwnStack, browser: Browser) -> None:
    """Flower, opened by the page's link, lists this study's tasks and no other's."""
    # a study in quarantine has a row with its link
    database = Database(own.stack.urls["database"], 1)
    with database.transaction() as session:
        session.execute(
            text(
                "UPDATE studies SET status = 'quarantined', reason = 'no-image', quarantined_at = now() WHERE id = :id"
            ),
            {"id": own.study},
        )
    try:
        with watched(browser, 1600) as page:
            page.goto(f"{own.api_url}/login?next=/operations?tab=queue")
            page.get_by_label("Your key").fill(own.keys["admin"])
            page.get_by_role("button", name="Log in").click()
            link = page.locator(f"#flower-{own.study}")
            expect(link).to_have_attribute("href", re.compile("^" + re.escape(own.flower_url)))
            url = str(link.get_attribute("href"))
        name, password = own.flower_login
        context = browser.new_context(http_credentials={"username": name, "password": password})
        flower = context.new_page()
        flower.goto(url)
        rows = flower.locator("#tasks-table tbody tr")
        expect(flower.locator("input[type=search]")).to_have_value(re.compile(own.study))
        expect(rows.first).to_contain_text("osteon.analyse")
        hrefs = rows.locator("a").evaluate_all("links => links.map(link => link.href)")
        tasks = [href for href in hrefs if "/task/" in href]
        assert tasks
        for task in tasks:
            flower.goto(task)
            expect(flower.locator("body")).to_contain_text(own.study)
        context.close()
    finally:
        with database.transaction() as session:
            session.execute(
                text("UPDATE studies SET status = 'analysed', reason = '' WHERE id = :id"), {"id": own.study}
            )
        database.close()


def test_history_outlives_the_broker_and_flower(own: OwnStack) -> None:
    """The broker killed with its file lost, Flower started anew: the page's history is the same, number for number."""
    database = Database(own.stack.urls["database"], 1)

    def sampled() -> None:
        with database.transaction() as session:
            while statistics.write_statistics(session, db_now(session)):
                pass

    tended(own, lambda: (sampled(), any(point["analysed"] for point in overview(own)["history"]))[1], 120)
    finished = [point for point in overview(own)["history"] if point["analysed"]]
    stack = own.stack
    assert stack.valkey is not None
    valkey = stack.valkey
    os.kill(pid_of(valkey), signal.SIGKILL)
    for file in (stack.valkey.folder / "appendonlydir").iterdir():
        file.unlink()
    flower = stack._children["flower"].pid
    assert flower is not None
    os.kill(flower, signal.SIGKILL)
    database_file = [file for file in stack.home.iterdir() if file.name.startswith("flower")]
    for file in database_file:
        file.unlink()
    tended(own, lambda: valkey.running and stack._children["flower"].pid != flower)
    tended(own, lambda: overview(own)["health"]["parts"]["broker"] == "ok")
    again = [point for point in overview(own)["history"] if point["analysed"]]
    assert again[: len(finished)] == finished
    database.close()
