"""Flower, the administrator's view: behind a login, and without patients."""

import contextlib
import json
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import httpx
import psutil
import pydicom
import pytest

from infra.embedded import state
from infra.embedded.parts import SECRETS
from infra.embedded.state import read_secrets
from shared.settings import ROOT
from tests.conftest import System
from tests.pace import LIMIT_S, until

FOLDER = ROOT / "samples/studies/08-elbow"
PAGES = ["/", "/tasks", "/workers", "/api/tasks", "/api/workers"]


def flower(system: System, login: tuple[str, str] | None) -> httpx.Client:
    return httpx.Client(base_url=system.flower_url, auth=login, trust_env=False, follow_redirects=True, timeout=LIMIT_S)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_without_login(system: System, page: str) -> None:
    """Without the login, or with a wrong password, no page and no API of Flower answers."""
    for login in (None, (system.flower_login[0], "guess")):
        with flower(system, login) as http:
            assert http.get(page).status_code == 401


@pytest.mark.parametrize("page", PAGES)
def test_every_page_with_login(system: System, page: str) -> None:
    """With the login that `osteon up` prints, each page answers."""
    with flower(system, system.flower_login) as http:
        assert http.get(page).status_code == 200


def test_task_of_a_study_is_shown_without_its_patient(system: System) -> None:
    """A submitted study's task is listed with the study's id; nobody's name or number is."""
    paths: list[Path] = sorted(FOLDER.glob("*.dcm"))
    receipt = system.submit(paths)
    study_id = receipt["studies"][0]["id"]
    system.wait([study_id])
    with flower(system, system.flower_login) as http:

        def own() -> list[dict[str, Any]]:
            return [task for task in http.get("/api/tasks").json().values() if study_id in json.dumps(task)]

        until(lambda: [task["state"] for task in own()][:1] == ["SUCCESS"], 30, lambda: str(own()))
        tasks = http.get("/api/tasks").json()
        pages = json.dumps(tasks) + http.get("/tasks").text + http.get(f"/task/{own()[0]['uuid']}").text
    assert study_id in pages
    for path in paths:
        radiograph = pydicom.dcmread(path, stop_before_pixels=True)
        for value in (str(radiograph.PatientName), radiograph.PatientID, radiograph.StudyInstanceUID, path.name):
            assert value not in pages


def test_no_secret_on_a_command_line(system: System) -> None:
    """Every user of a machine can read command lines, so no password or key stands on one."""
    lines = []
    for process in psutil.process_iter():
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    assert any(str(system.stack.home) in line for line in lines)
    secrets = [
        system.flower_login[1],
        *system.keys.values(),
        system.stack.urls["broker"],
        system.stack.urls["database"],
    ]
    for secret in secrets:
        assert not [line for line in lines if secret in line]


HELD = {  # what each process may know; those of Postgres and Valkey know nothing of it
    "worker": {"OSTEON_DATABASE_URL", "OSTEON_BROKER_URL", "OSTEON_STORE_URL"},
    "api": {
        "OSTEON_DATABASE_URL", "OSTEON_BROKER_URL", "OSTEON_STORE_URL", "OSTEON_IDENTITY_KEY",
        "OSTEON_SESSION_SECRET", "OSTEON_METRICS_TOKEN", "OSTEON_WEBHOOK_KEY",
    },
    "dicom": {"OSTEON_DATABASE_URL", "OSTEON_BROKER_URL", "OSTEON_STORE_URL", "OSTEON_IDENTITY_KEY"},
    "results": {"OSTEON_DATABASE_URL", "OSTEON_STORE_URL"},
    "deliver": {"OSTEON_DATABASE_URL", "OSTEON_STORE_URL", "OSTEON_WEBHOOK_KEY"},
    "check": {"OSTEON_DATABASE_URL"},
    "beat": {"OSTEON_BROKER_URL"},
    "flower": {"OSTEON_BROKER_URL", "FLOWER_BASIC_AUTH", "FLOWER_COOKIE_SECRET"},
    "postgres": set(),
    "valkey": set(),
}  # fmt: skip


def test_each_process_holds_its_own_secrets_only(system: System) -> None:
    """The worker, which decodes bytes of unknown origin, has neither the identities' key nor what logins are signed with, and
    nor have its decoders; beat and Flower know the broker only."""
    kept = read_secrets(system.stack.home)
    values = {kept["identity_key"], kept["session_secret"], kept["flower_password"], *kept["keys"].values()}
    found = state.status(system.stack.home)
    assert {part.name for part in found.parts} == set(HELD)
    for part in found.parts:
        top = psutil.Process(part.pid)
        for process in (top, *top.children(recursive=True)):
            try:
                environment = process.environ()
            except psutil.Error:  # a decoder that has just ended
                continue
            held = {name for name in environment if name in SECRETS or name.startswith("FLOWER_")}
            assert held <= HELD[part.name], (part.name, process.cmdline())
            known = {value for value in values if any(value in told for told in environment.values())}
            if part.name not in ("api", "dicom", "flower"):
                assert not known, part.name
    (api,) = [psutil.Process(part.pid) for part in found.parts if part.name == "api"]
    assert HELD["api"] <= set(api.environ())


def test_all_files_are_private(system: System) -> None:
    """Nobody else of this machine reads logs, queues, tables, images or secrets; as root, folders can be passed through."""
    home = system.stack.home
    passed = {home, home / "postgres"} if os.geteuid() == 0 else set()
    assert (home / "logs" / "api.log").stat().st_size > 0
    for path in (home, *home.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a temporary file
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert path.is_symlink() or not mode & (0o066 if path in passed else 0o077), f"{path} {mode:o}"


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's Postgres is that user's")
def test_postgres_has_a_user_of_its_own(system: System) -> None:
    """Started by root it runs under a uid that no account has and nothing else uses, and its tables belong to that."""
    (server,) = [psutil.Process(part.pid) for part in state.status(system.stack.home).parts if part.name == "postgres"]
    uid = server.uids().real
    assert uid not in {account.pw_uid for account in pwd.getpwall()} | {0, 65534}
    data = system.stack.home / "postgres" / "data"
    assert {path.lstat().st_uid for path in (data, *data.rglob("*"))} == {uid}
    family = {server.pid, *(child.pid for child in server.children(recursive=True))}
    others = {
        process.pid
        for process in psutil.process_iter(["uids"])
        if process.info["uids"] and process.info["uids"].real == uid
    }
    assert others <= family
