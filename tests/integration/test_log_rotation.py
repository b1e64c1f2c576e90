"""The logs of `osteon up` stay small while their processes run."""

import sys
from pathlib import Path

import pytest

from infra.embedded import process
from infra.embedded.process import Child
from tests.pace import LIMIT_S, until

TALKER = "import sys\nfor n in range(10**9): print(f'line {n:09d}', flush=True); sys.stdin.read(0)"


def numbers(path: Path) -> list[int]:
    """Of the whole lines in a log."""
    lines = [line for line in path.read_bytes().split(b"\n") if len(line) == len(b"line 000000000")]
    return [int(line.split()[1]) for line in lines]


def test_a_log_moves_aside_while_its_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files stay near the limit, are their owner's alone, and follow each other but for a few lines."""
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 2**16)
    child = Child("talker", [sys.executable, "-c", TALKER], tmp_path / "talker.log", {})
    child.start()
    aside = tmp_path / "talker.log.1"
    try:
        for _ in range(5):
            until(lambda: child.log.stat().st_size > 2**16, LIMIT_S)
            child.rotate_log()
            assert aside.stat().st_size > 2**16
        until(lambda: len(numbers(child.log)) > 100, LIMIT_S)
        assert child.running
        old, new = numbers(aside), numbers(child.log)
        assert old == list(range(old[0], old[0] + len(old)))
        assert 0 < new[0] - old[-1] < 2000
        assert aside.stat().st_mode & 0o077 == 0
        assert "line" in child.output()
    finally:
        child.stop()


def test_a_supervisor_looks_after_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`watch` does it for each part, Postgres and Valkey too."""
    from infra.embedded.parts import Part
    from infra.embedded.stack import Stack
    from shared.settings import Settings

    monkeypatch.setattr(process, "MAX_LOG_BYTES", 2**16)
    config = Settings(home=tmp_path, database_url="postgresql+psycopg2://nobody@127.0.0.1:1/none",
                      broker_url="redis://127.0.0.1:1/0")  # fmt: skip
    talker = Part("talker", [sys.executable, "-c", TALKER])
    with Stack(config, steps=lambda *_: [], parts=lambda *_: [talker]) as stack:
        until(lambda: stack.check() is None and (tmp_path / "logs" / "talker.log.1").exists(), LIMIT_S)
