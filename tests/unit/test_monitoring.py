"""No Prometheus and no Grafana run where the tests run: their files are checked by reading.

That every metric they name is exposed by a running API and worker stands in tests/acceptance/test_operating.py.
"""

import json
import re
from typing import Any

import pytest
import yaml

from shared.settings import ROOT

ALERTS = yaml.safe_load((ROOT / "infra/prometheus/alerts.yml").read_text())
PROMETHEUS = yaml.safe_load((ROOT / "infra/prometheus/prometheus.yml").read_text())
DASHBOARD = json.loads((ROOT / "infra/grafana/osteon.json").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_and_what_to_do(rule: dict[str, Any]) -> None:
    """Every alert has an expression whose brackets close, how grave it is, what happens, and a hint."""
    for opened, closed in ("()", "[]", "{}"):
        assert rule["expr"].count(opened) == rule["expr"].count(closed)
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "hint"}
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))


def test_alerts_cover_what_was_promised() -> None:
    """An urgent study that waits, no worker, quarantine, rejections, waits over the target, a full store, a missed backfill run, a silent sender."""
    names = {rule["alert"] for rule in RULES}
    assert {
        "UrgentStudyWaits", "NoWorker", "QuarantineGrows", "RejectionsSurge", "WaitOverTarget", "StoreNearlyFull",
        "BackfillNotRun", "DicomPeerSilent", "ResultsWait", "ResultsUndelivered",
    } <= names  # fmt: skip
    assert len(names) == len(RULES)


def test_prometheus_reads_its_rules_and_every_part() -> None:
    """The rules are beside the configuration; API, workers and the DICOM listener are asked, the API with its token."""
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    assert set(jobs) == {"osteon-api", "osteon-worker", "osteon-dicom"}
    (target,) = jobs["osteon-dicom"]["static_configs"][0]["targets"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert target == f"dicom:{compose['dicom']['environment']['OSTEON_DICOM_METRICS_PORT']}"
    assert jobs["osteon-api"]["authorization"]["credentials_file"] == "/tmp/metrics-token"


def test_the_dashboard_stands_alone() -> None:
    """Panels have titles, ids and places of their own, and ask the one data source that is provisioned."""
    panels = DASHBOARD["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert (
        len({panel["id"] for panel in panels})
        == len({panel["title"] for panel in panels})
        == len(places)
        == len(panels)
    )
    sources = yaml.safe_load((ROOT / "infra/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"] for source in sources}
