"""Another identity key: noticed at start by the check value; a row that it cannot open costs one cell, not a page."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.fernet import Fernet
from fastapi.routing import APIRoute
from sqlalchemy import LargeBinary, func, select, text, update

from api.app import create_app
from api.legacy import REUSED_AS_PAGES
from infra.client.api import Client
from infra.embedded.parts import osteon_steps
from infra.embedded.stack import Stack
from shared.db.engine import Database
from shared.db.tables import Base, HeldFileRow, IdentityRow, KeyCheckRow
from shared.domain.study import Identity
from shared.errors import StackError, Unavailable, WrongIdentityKey
from shared.queries.access import Vault
from shared.settings import ROOT, Settings
from tests.conftest import InProcessApi
from tests.feedback_data import ONE, say
from tests.forked import run_module
from tests.hospital import IDENTITY_KEY, Hospital
from tests.integration.test_held_files import ROE, choose, image, sent, waiting
from tests.integration.test_report import made
from tests.integration.test_stack import no_parts
from training.datasets.feedback import export_table

OTHER = Fernet.generate_key().decode()
HINT = ("OSTEON_IDENTITY_KEY", "Set the old key again", "secrets.json", "backup")


def check(database: Database, key: str) -> None:
    with database.transaction() as session:
        Vault(key).check_key(session)


# -- at start -------------------------------------------------------------------------------------------------------


def test_the_first_key_is_remembered_and_another_refused(database: Database) -> None:
    """The check value is made once, by the first start; it tells nothing of the key."""
    for _ in range(2):
        check(database, IDENTITY_KEY)
    with pytest.raises(WrongIdentityKey) as told:
        check(database, OTHER)
    assert all(word in str(told.value) for word in HINT)
    assert IDENTITY_KEY not in str(told.value) and OTHER not in str(told.value)
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(KeyCheckRow)) == 1
        Vault(OTHER).accept_key(session)  # the old one is lost for good
    check(database, OTHER)
    with pytest.raises(WrongIdentityKey):
        check(database, IDENTITY_KEY)


@pytest.mark.parametrize("table", ["identities", "held_files", "uploads"])
def test_an_old_installation_is_proved_by_what_it_holds(in_process: InProcessApi, table: str) -> None:
    """Without a check value, as before this version: the key must open most of what is sealed; one bad row is passed."""
    sent(in_process, image(), image(2), image(3), image(1, 2, **ROE), idempotency_key="a")
    with in_process.database.transaction() as session:
        session.execute(text("DELETE FROM identity_key_check"))
        for other in ("identities", "held_files", "uploads"):
            if other != table:
                session.execute(text(f"DELETE FROM {other}"))
    with pytest.raises(WrongIdentityKey):
        check(in_process.database, OTHER)
    with in_process.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(KeyCheckRow)) == 0
        if table == "identities":
            some = select(IdentityRow.study_id).limit(1).scalar_subquery()
            sealed = Vault(OTHER).seal({"patient_name": "X"})
            session.execute(update(IdentityRow).where(IdentityRow.study_id == some).values(ciphertext=sealed))
    check(in_process.database, IDENTITY_KEY)


def environment(settings: Settings, **changes: str) -> dict[str, str]:
    names = ("database_url", "broker_url", "store_url", "identity_key", "session_secret")
    told = {f"OSTEON_{name.upper()}": getattr(settings, name).get_secret_value() for name in names}
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OSTEON_KEY_ADMIN": "osk_an_admin", **told, **changes}


@pytest.mark.parametrize("process", ["api.server", "infra.prepare"])
def test_a_process_with_another_key_ends_with_a_sentence(
    in_process: InProcessApi, tmp_path: Path, process: str
) -> None:
    """Exit code 1 and the cure, no traceback; with the right key it starts, as the test's own API has."""
    done = run_module([process], environment(in_process.settings, OSTEON_IDENTITY_KEY=OTHER), tmp_path)
    assert done.returncode == 1, done.stdout
    assert all(word in done.stdout for word in HINT)
    assert "Traceback" not in done.stdout and OTHER not in done.stdout
    if process == "infra.prepare":
        done = run_module([process], environment(in_process.settings), tmp_path)
        assert done.returncode == 0, done.stdout


def test_osteon_up_says_so(in_process: InProcessApi, tmp_path: Path) -> None:
    """A home whose secrets.json holds another key than its database was sealed with does not start."""
    config = in_process.settings
    config = Settings(
        home=tmp_path / "home", database_url=config.database_url, broker_url=config.broker_url,
        store_url=config.store_url, identity_key=OTHER,
    )  # fmt: skip
    with pytest.raises(StackError, match="Set the old key again"):
        Stack(config, steps=lambda *given: osteon_steps(*given)[1:], parts=no_parts).start()


def test_a_database_that_comes_later_is_asked_first(database: Database) -> None:
    """An API that started before its database serves nothing with another key, and everything with the right one."""
    check(database, IDENTITY_KEY)
    database.require(Vault(OTHER).check_key)
    for _ in range(2):
        with pytest.raises(WrongIdentityKey), database.transaction():
            pytest.fail("the transaction began")
    assert issubclass(WrongIdentityKey, Unavailable)  # 503: senders try again
    database.require(Vault(IDENTITY_KEY).check_key)
    with database.transaction() as session:
        assert session.scalar(select(1)) == 1


def test_an_api_starts_without_its_database(make_settings: Callable[..., Settings]) -> None:
    """As before; whether the key is right is asked later."""
    create_app(make_settings(database_url="postgresql+psycopg2://x@127.0.0.1:1/x"))


# -- one row --------------------------------------------------------------------------------------------------------


def spoil(api: InProcessApi) -> None:
    """Seal all that is sealed with another key, but for the check value."""
    other = Vault(OTHER)
    sealed = [
        (table, column)
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, LargeBinary)
        and table.name not in ("identity_key_check", "findings", "identity_tokens", "held_tokens")
        and column.name != "patient"
    ]
    assert {f"{table.name}.{column.name}" for table, column in sealed} == {
        "deletions.note", "feedback.words", "held_files.before", "held_files.header", "held_files.reason", "identities.ciphertext",
        "instances.description", "quarantine_decisions.why", "series.sealed", "uploads.receipt",
    }  # fmt: skip
    owner = Database(api.owner_url, 1)
    with owner.transaction() as session:
        session.execute(text("ALTER TABLE feedback DISABLE TRIGGER feedback_stay"))
        for table, column in sealed:
            session.execute(table.update().where(column.is_not(None)).values({column.name: other.seal("of another")}))
    owner.close()


@pytest.fixture
def spoilt(in_process: InProcessApi) -> tuple[InProcessApi, str]:
    """An analysed, answered study with a file of another patient and a correction; all is sealed with another key."""
    api = in_process
    study = made(api, 1, SeriesDescription="of the left hand", PatientID="4711", AccessionNumber="ACC1")
    say(api, study, **ONE | {"verdict": "supplement", "text": "old break"})
    first = image(8)
    sent(api, first, idempotency_key="again")
    sent(api, image(8, 1, PatientName="DOE^JANET"))
    (correction,) = waiting(api)
    assert choose(api, correction["id"], "apply").status_code == 200
    sent(api, image(8, 2, **ROE))
    (other,) = waiting(api)
    assert choose(api, other["id"], "reject", "a phantom").status_code == 200
    sent(api, image(8, 3, **ROE | {"PatientID": "0816"}))
    spoil(api)
    return api, study


def all_routes(part: Any) -> Iterator[APIRoute]:
    """Those of an application or a router, and of the routers within."""
    for route in part.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from all_routes(route.original_router)


def test_no_page_and_no_route_fails_for_what_cannot_be_opened(spoilt: tuple[InProcessApi, str]) -> None:
    """Every GET route there is, with each role; whoever shows a name says in its place that it cannot be decrypted."""
    api, study = spoilt
    routes = list(all_routes(api.http.app))
    asked, said = set(), set()
    values = {"study_id": study, "name": "first", "day": "2026-01-12", "old": "first", "new": "first"}
    for route in routes:
        if "GET" not in (route.methods or ()) or "events" in route.path:
            continue
        if not set(route.param_convertors) <= values.keys():
            continue
        for role in ("admin", "radiologist"):
            response = api.http.get(
                route.path.format(**values) + ("?tab=queue" if route.path == "/operations" else ""),
                headers=api.headers(role, page=route.path in REUSED_AS_PAGES),
            )
            assert response.status_code < 500, (route.path, response.text)
            asked.add(route.path)
            if "cannot be decrypted" in response.text or '"unreadable":true' in response.text:
                said.add(route.path)
    assert {"/", "/view/{study_id}", "/view/{study_id}/report", "/operations", "/api/v1/held-files"} <= said
    assert {"/api/v1/studies/{study_id}/report.pdf", "/api/v1/worklist", "/api/v1/operations", "/revised"} <= asked
    page = api.http.post("/search", data={"words": "4711"}, headers=api.headers("radiologist")).text
    assert "Identity cannot be decrypted" in page
    assert study in page
    entries = api.http.get(f"/api/v1/studies/{study}/feedback", headers=api.headers("radiologist")).json()["entries"]
    assert "cannot be decrypted" in entries[0]["text"]


def test_a_held_file_that_cannot_be_opened_can_be_rejected(spoilt: tuple[InProcessApi, str]) -> None:
    """Every other decision would need what it says: refused with the cure, and nothing changes."""
    api, _ = spoilt
    (one,) = waiting(api)
    assert one["file"]["unreadable"] and one["study"]["unreadable"] and one["decisions"] == ["reject"]
    for decision in ("another-study", "same-patient"):
        response = choose(api, one["id"], decision)
        assert response.status_code == 409
        assert "Set that key again" in response.json()["detail"]
    assert choose(api, one["id"], "reject", "sealed with a lost key").status_code == 200


def test_what_comes_for_an_unreadable_study_is_held_and_writes_over_nothing(spoilt: tuple[InProcessApi, str]) -> None:
    """Nobody can say whether the patient is the same; the sealed identity stays, for its key may come back."""
    api, _ = spoilt
    with api.database.transaction() as session:
        before = set(session.scalars(select(IdentityRow.ciphertext)))
    (line,) = sent(api, image(8, 4))
    assert line["outcome"] == "conflict"
    # a receipt that cannot be decrypted is made anew: the file is a duplicate
    (line,) = sent(api, image(8), idempotency_key="again")
    assert line["outcome"] == "duplicate"
    held = next(one for one in waiting(api) if not one["file"]["unreadable"])
    assert held["study"]["unreadable"] and held["changes"] == []
    assert choose(api, held["id"], "same-patient").status_code == 200
    (line,) = sent(api, image(8, 5))
    assert line["outcome"] == "stored"  # decided once for this patient
    sent(api, image(8, 4, PatientName="DOE^JANETTE"))
    correction = next(one for one in waiting(api) if one["kind"] == "correction")
    assert correction["decisions"] == ["reject"]
    assert choose(api, correction["id"], "apply").status_code == 409
    with api.database.transaction() as session:
        assert set(session.scalars(select(IdentityRow.ciphertext))) == before


def test_an_export_goes_on(spoilt: tuple[InProcessApi, str], address: str, tmp_path: Path) -> None:
    """The training table: a patient who cannot be named is known by the study."""
    api, study = spoilt
    say(api, study, **ONE)
    with Client(address, api.keys["admin"]) as client:
        assert export_table(client, tmp_path / "out").radiographs == 1


def test_one_row_of_many(hospital: Hospital) -> None:
    """The others are shown as ever."""
    studies = [hospital.study() for _ in range(3)]
    with hospital.database.transaction() as session:
        for study in studies:
            hospital.vault.change_identity(session, hospital.site_id, study, Identity("DOE^JANE"))
        sealed = Vault(OTHER).seal({"patient_name": "X"})
        session.execute(update(IdentityRow).where(IdentityRow.study_id == studies[1]).values(ciphertext=sealed))
        known: dict[UUID, Identity] = hospital.vault.stored_identities(session, studies)
    assert [(known[study].readable, known[study].patient_name) for study in studies] == [
        (True, "DOE^JANE"), (False, ""), (True, "DOE^JANE"),
    ]  # fmt: skip
    with hospital.database.transaction() as session, pytest.raises(AssertionError):
        hospital.vault.change_identity(session, hospital.site_id, studies[1], known[studies[1]])
    assert HeldFileRow.__tablename__ == "held_files"
