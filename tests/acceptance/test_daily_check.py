"""The daily check of the system that `osteon up` starts, with the shipped model."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli import app
from shared.domain.checks import CheckStep
from tests.conftest import System


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_whole_system_checks_itself(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that `osteon up` started takes it; the same model finds the same again; nothing of it stays."""
    monkeypatch.setenv("OSTEON_API_URL", system.api_url)
    monkeypatch.setenv("OSTEON_KEY", system.keys["operator"])

    def check() -> dict[str, Any]:
        ran = CliRunner().invoke(app, ["check", "--json"])
        assert ran.exit_code == 0, (ran.output, (system.stack.home / "logs" / "check.log").read_text()[-4000:])
        told: dict[str, Any] = json.loads(ran.stdout)
        return told

    with system.client("operator") as client:
        counts = client.get("/api/v1/operations")["queues"]
    first, second = check(), check()
    for one in (first, second):
        assert [step["step"] for step in one["steps"]] == list(CheckStep)
    assert (second["learned"], second["heatmap_deviation"]) == (False, 0)
    assert second["probability_deviation"] < 1e-6
    assert second["model"] and second["engine"]
    with system.client("admin") as client:
        assert "OSTEON-CHECK" not in json.dumps(client.get("/api/v1/worklist", limit=500))
        assert client.get("/api/v1/operations")["check"]["state"] == "well"
        assert client.get("/api/v1/operations")["queues"] == counts
