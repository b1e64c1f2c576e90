"""Flower, the administrator's view: behind a login, and without patients."""

import json
from pathlib import Path
from typing import Any

import httpx
import psutil
import pydicom
import pytest

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
        film = pydicom.dcmread(path, stop_before_pixels=True)
        for value in (str(film.PatientName), film.PatientID, film.StudyInstanceUID, path.name):
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
