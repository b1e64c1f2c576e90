"""`osteon up --reload`, which is `make dev`: what changes in the code is served without a start of the whole system."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.embedded import state
from infra.embedded.parts import Part
from infra.embedded.process import is_same_process
from infra.embedded.stack import Stack
from shared.settings import ROOT, Settings
from tests.pace import LIMIT_S, until


def test_a_part_starts_again_when_its_code_changes(tmp_path: Path) -> None:
    """The changed part alone is restarted; one whose new code fails waits, and starts once the code is mended."""
    code, other = tmp_path / "api" / "part.py", tmp_path / "worker"
    for folder in (code.parent, other):
        folder.mkdir()
    runs = "import time; print('ran', flush=True); time.sleep(600)"
    code.write_text(runs)
    said: list[str] = []

    def parts(*_: object) -> list[Part]:
        own = [sys.executable, "-S", str(code)]
        beside = [sys.executable, "-S", "-c", runs]
        return [Part("api", own, sources=(code.parent,)), Part("worker", beside, sources=(other,))]

    urls = {"database_url": "postgresql://nowhere", "broker_url": "redis://nowhere"}
    config = Settings.model_validate({"home": tmp_path / "home", **urls})
    with Stack(config, steps=lambda *_: [], parts=parts, report=said.append, reload=True) as stack:

        def until_said(word: str) -> None:
            def heard() -> bool:
                stack.check()
                return any(word in line for line in said)

            until(heard, 20, lambda: "\n".join(said))
            said.clear()

        before = running(config.home)
        code.write_text("raise SystemExit('a slip')")
        until_said("a slip\napi waits for the next change")
        assert running(config.home)["worker"] == before["worker"]
        code.write_text(runs + "  # mended")
        until_said("api is ready")
        assert running(config.home)["api"] != before["api"]
        assert running(config.home)["worker"] == before["worker"]


def running(home: Path) -> dict[str, int]:
    """The process id of each part."""
    return {part.name: part.pid for part in state.status(home).parts}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code, to be changed."""
    place = tmp_path / "checkout"
    for name in ("api", "infra", "migrations", "shared", "worker", "training/bundles"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture
def started(checkout: Path, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`osteon up --reload` of that copy."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OSTEON_")}
    own = {"OSTEON_HOME": str(tmp_path / "home")}
    own |= {name: os.environ[name] for name in ("OSTEON_CACHE_DIR", "OSTEON_START_LIMIT_S")}
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "up", "--reload"], cwd=checkout, stdout=log, stderr=subprocess.STDOUT,
            env=clean | own | {"PYTHONPATH": str(checkout)},
        )  # fmt: skip
    yield process
    process.kill()
    process.wait()
    state.end_orphans(tmp_path / "home")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_written_is_what_is_served(checkout: Path, started: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    """A changed template, a changed module and a changed task reach the running system; Ctrl-C ends all of it."""
    home, log = tmp_path / "home", tmp_path / "up.log"
    until(lambda: started.poll() is not None or "Osteon is ready" in log.read_text(), 120, log.read_text)
    assert started.poll() is None, log.read_text()
    before = state.status(home)

    def served(path: str, word: str) -> bool:
        try:
            response = httpx.get(before.urls["api"] + path, headers={"Accept": "text/html"}, trust_env=False)
        except httpx.TransportError:  # it is being restarted
            return False
        return word in response.text

    template = checkout / "api/pages/templates/login.html"
    template.write_text(template.read_text().replace("Your key", "Your own key"))
    until(lambda: served("/login", "Your own key"), 60, log.read_text)

    module = checkout / "api/app.py"
    module.write_text(module.read_text().replace('title="Osteon"', 'title="Osteon, changed"'))
    until(lambda: served("/openapi.json", "Osteon, changed"), 60, log.read_text)
    assert running(home)["worker"] == {part.name: part.pid for part in before.parts}["worker"]

    said = log.read_text()
    (checkout / "worker/batching.py").open("a").write("\n# changed\n")
    until(lambda: "worker is ready" in log.read_text().removeprefix(said), 60, log.read_text)

    parts = state.read_state(home)
    started.send_signal(signal.SIGINT)
    assert started.wait(LIMIT_S) == 0
    assert parts is not None
    assert not any(is_same_process(part["pid"], part["created"]) for part in parts["parts"].values())
    assert not state.status(home).running
