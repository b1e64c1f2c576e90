"""From stored studies to a backtest of one's own department."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from typer.testing import CliRunner, Result

from infra import cli
from infra.backtest.arrivals import COLUMNS, read_arrivals
from shared.db.tables import StudyRow
from tests.live_stack import instance


@pytest.mark.usefixtures("address")
def test_arrivals_of_stored_studies(in_process: Any, tmp_path: Path) -> None:
    """Times, priorities and findings of one's own site come out as a CSV that a backtest reads, and nothing else."""
    in_process.post({"a": instance("arrivals", 1), "b": instance("arrivals", 2)}, priority="urgent")
    study = in_process.post({"c": instance("arrivals", 3)}).json()["studies"][0]["id"]
    with in_process.database.transaction() as session:
        called = {"assessment": "positive", "severity": "severe", "fracture_probability": 0.75}
        session.execute(update(StudyRow).where(StudyRow.id == study).values(called))
    written = tmp_path / "mine.csv"
    ask: Callable[..., Result] = lambda *words: CliRunner().invoke(cli.app, ["arrivals", "--out", str(written), *words])  # noqa: E731
    done = ask("--since", "2020-01-01", "--zone", "Europe/Berlin")
    assert done.exit_code == 0, done.stderr
    assert [(each.priority, each.kind, each.probability) for each in read_arrivals(written)] == [
        ("urgent", "pending", None), ("urgent", "pending", None), ("routine", "positive severe", 0.75),
    ]  # fmt: skip
    assert written.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert "SAMPLE" not in written.read_text()
    assert CliRunner().invoke(cli.app, ["backtest", str(written)]).exit_code == 0
    assert "0 arrivals" in ask("--since", "2020-01-01", "--until", "2020-02-01").stdout
    assert ask("--since", "2020-01-01", "--key", in_process.keys["radiologist"]).exit_code == 1
    assert "Europe/Berlin" in ask("--since", "2020-01-01", "--zone", "Mars").stderr
