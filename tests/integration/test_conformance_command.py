"""`osteon conformance` against a whole system, and against what is wrong with one."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner, Result

from api.listener.server import listening
from infra import cli
from infra.embedded.process import free_port
from shared.db.tables import InstanceRow, StudyRow
from shared.domain.peers import PeerRule
from shared.domain.security import System as Actor
from shared.queries import access, peers
from tests.certificates import Certificates
from tests.conftest import InProcessApi, System


def run(*arguments: str) -> Result:
    """Call the command in this process."""
    return CliRunner().invoke(cli.app, ["conformance", *arguments])


def outcomes(done: Result) -> dict[str, str]:
    """Each check's outcome."""
    return {f"{one['area']}: {one['name']}": one["outcome"] for one in json.loads(done.stdout)["checks"]}


@contextmanager
def listener(api: InProcessApi, calling: str = "OSTEON-TEST", **changes: Any) -> Iterator[str]:
    """HOST:PORT of a listener beside this API, which knows a peer of that title."""
    settings = api.settings.model_copy(update={"dicom_port": free_port()} | changes)
    with api.database.transaction() as session:
        peers.admit(
            session, Actor.PREPARE, access.make_site(session, "default") or api.key().site_id, PeerRule(calling)
        )
    with listening(settings):
        yield f"127.0.0.1:{settings.dicom_port}"


def test_a_sound_deployment_passes_and_nothing_is_left(
    in_process: InProcessApi, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but https, which a proxy speaks, and the picture, which needs a worker."""
    monkeypatch.setattr("infra.conformance.PICTURE_S", 0.0)
    ours, our_key, _ = Certificates(tmp_path).make("localhost")
    port = free_port()
    tls: dict[str, Any] = {"dicom_tls_port": port, "dicom_tls_certificate": ours, "dicom_tls_key": our_key}
    with listener(in_process, **tls) as place:
        done = run("--dicom", place, "--tls", f"localhost:{port}", "--tls-ca", str(ours), "--json")
    found = outcomes(done)
    failed = {name: outcome for name, outcome in found.items() if outcome != "passed"}
    assert failed == {
        "TLS: the API is called by https": "not-run",
        "retrieve: a rendered picture": "failed",
    }, done.stdout
    assert len(found) > 40
    assert done.exit_code == 1
    with in_process.database.transaction() as session:
        for table in (StudyRow, InstanceRow):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_a_caller_that_is_not_admitted_is_told_what_to_do(
    in_process: InProcessApi, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it is told works."""
    monkeypatch.setattr("infra.conformance.PICTURE_S", 0.0)  # no worker runs
    monkeypatch.setattr("api.listener.admission.REFUSED_FOR_S", 0.0)
    with listener(in_process, "ANOTHER") as place:
        done = run("--dicom", place)
        assert done.exit_code == 1
        (cure,) = set(re.findall(r"osteon (peers admit \S+?)\)", done.stdout))
        assert "not-run" in done.stdout
        monkeypatch.setenv("OSTEON_KEY", in_process.keys["operator"])
        admitted = CliRunner().invoke(cli.app, cure.split())
        assert admitted.exit_code == 0, admitted.stderr
        monkeypatch.setenv("OSTEON_KEY", in_process.keys["admin"])
        found = outcomes(run("--dicom", place, "--json"))
    assert {outcome for name, outcome in found.items() if name.startswith("network")} == {"passed"}, found


@pytest.mark.parametrize("role", ["submitter", "radiologist", "operator"])
def test_only_an_admins_key_is_taken(
    in_process: InProcessApi, address: str, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """Before anything is sent: what it sent with another key could not be deleted."""
    monkeypatch.setenv("OSTEON_KEY", in_process.keys[role])
    done = run()
    assert done.exit_code == 1
    assert "admin's key" in done.stderr
    with in_process.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(StudyRow)) == 0


@pytest.mark.parametrize("place", ["osteon", "osteon:", ":104", "osteon:dicom"])
def test_a_place_without_host_or_port_is_refused(address: str, place: str) -> None:
    done = run("--dicom", place)
    assert done.exit_code == 1
    assert "HOST:PORT" in done.stderr


@pytest.mark.slow
def test_a_whole_system_passes(system: System) -> None:
    """Its own processes, with a worker."""
    with system.client("operator") as client:
        client.post("/api/v1/dicom-peers", {"calling_ae": "OSTEON-TEST", "address": "127.0.0.1"})
    place = system.stack.urls["dicom"]
    done = run("--url", system.api_url, "--key", system.keys["admin"], "--dicom", place, "--json")
    assert {name for name, outcome in outcomes(done).items() if outcome == "failed"} == set(), done.stdout
    assert done.exit_code == 0
