"""`python -m benchmarks`: what it lists, refuses, prints and writes."""

import importlib
import inspect
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as cli
from benchmarks.measure import Case, Goal, Result
from benchmarks.report import render
from shared.settings import ROOT


def made(name: str = "heatmap", ratio: float = 0.01) -> Result:
    return Result(name, "this with that", Goal("<=", 0.03), (Case.of("a case", "s", [ratio], [1.0]),), {"more": [1, 2]})


def test_every_listed_name_is_a_benchmark() -> None:
    """Each name of the list is a module with the one signature, and a line of help."""
    for name, about in cli.BENCHMARKS.items():
        run = importlib.import_module(f"benchmarks.{name}").run
        assert list(inspect.signature(run).parameters) == ["quick", "say"], name
        assert 20 < len(about) < 140, name


def test_unknown_names_are_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error costs nothing and shows what there is."""
    with pytest.raises(SystemExit) as left:
        cli.main(["heatmap", "heatmaps"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "no benchmark heatmaps" in said
    assert all(name in said for name in cli.BENCHMARKS)


def test_help_teaches_each(capsys: pytest.CaptureFixture[str]) -> None:
    """--help says of each benchmark what it compares."""
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert all(about in said for about in cli.BENCHMARKS.values())


def test_json_is_one_object_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints nothing else on stdout; progress goes to stderr."""

    def measured(name: str, quick: bool, say: Any) -> Result:
        say("working")
        return made(name)

    monkeypatch.setattr(cli, "measure", measured)
    assert cli.main(["heatmap", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["met"] is True
    assert {"cores", "CPU flags", "python", "torch", "openvino", "celery", "postgres", "valkey"} <= set(
        json.loads(out)["machine"]
    )
    assert "working" in err


def test_a_missed_goal_is_a_result_and_a_crash_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of several, one that crashes does not take the others' results with it, and only it makes the exit code 1."""
    monkeypatch.setattr(cli, "BENCHMARKS", {"a": "first", "b": "second"})

    def apart(name: str, quick: bool) -> Result:
        if name == "b":
            raise RuntimeError("it ended with exit code 9")
        return made(name, 0.5)

    monkeypatch.setattr(cli, "_in_own_process", apart)
    assert cli.main(["a"] * 2 + ["b", "--write", str(tmp_path / "R.md")]) == 1
    assert "not met" in capsys.readouterr().out
    written = (tmp_path / "R.md").read_text()
    assert "| a | a case | 0.5 |" in written
    assert "| b | failed |" in written
    monkeypatch.setattr(cli, "measure", lambda name, quick, say: made(name, 0.5))
    assert cli.main(["a"]) == 0


def test_a_run_that_is_cut_short_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The report is written after each benchmark, so that an interrupt costs the one under way only."""
    monkeypatch.setattr(cli, "BENCHMARKS", {"a": "first", "b": "second"})

    def apart(name: str, quick: bool) -> Result:
        if name == "b":
            raise KeyboardInterrupt
        return made(name, 0.5)

    monkeypatch.setattr(cli, "_in_own_process", apart)
    with pytest.raises(KeyboardInterrupt):
        cli.main(["a", "b", "--write", str(tmp_path / "R.md")])
    assert "| a | a case | 0.5 |" in (tmp_path / "R.md").read_text()


def test_the_report_holds_each_case_to_its_goal() -> None:
    """In RESULTS.md a case with a goal of its own stands beside that goal, and says whether it is met."""
    own = Case.of("messages", "messages", [1.2], [1.0], goal=Goal("<=", 1.05))
    text = render([Result("queues", "this", Goal(">=", 1.0), (Case.of("a", "s", [2.0], [1.0]), own))], {})
    assert "| queues | a | 2 | 2 - 2 | 1 | 2 to 1 s | >= 1 | yes |" in text
    assert "| queues | messages | 1.2 | 1.2 - 1.2 | 1 | 1.2 to 1 messages | <= 1.05 | no |" in text


def test_the_report_names_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """RESULTS.md says what kind of machine it was and when, and neither host nor folder."""
    monkeypatch.setattr("platform.node", lambda: "secret-host")
    text = render([made()], {}, datetime(2026, 3, 1, tzinfo=UTC))
    assert "2026-03-01" in text
    assert "- cores: " in text
    assert "- CPU flags: " in text
    assert "- torch: " in text
    assert "- postgres: " in text
    assert "- valkey: " in text
    assert "secret-host" not in text
    assert str(ROOT) not in text
    assert str(Path.home()) + "/" not in text
