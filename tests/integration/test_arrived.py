"""Whether a study has arrived, asked by its sender: states and times of one's own site, no finding, no name."""

import json
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from api.uploads.arrived import MAX_SEARCHES, STAGES
from shared.db.clock import db_now
from shared.db.tables import HeldFileRow, IdentitySearchRow, StudyRow
from shared.domain.security import Role
from shared.domain.study import StudyStatus
from shared.queries.access import add_key
from tests.conftest import InProcessApi
from tests.feedback_data import analyse, study_file
from tests.hospital import Hospital

NAME, NUMBER, ACCESSION = "ZEBRA^QUAGGA", "P-62049377", "ACC-8815-12"


def submitted(api: InProcessApi, number: int, **tags: str) -> str:
    told = {"PatientName": NAME, "PatientID": NUMBER, "AccessionNumber": ACCESSION} | tags
    made: str = api.post({"1": study_file(number, 1, **told)}).json()["studies"][0]["id"]  # type: ignore[arg-type]
    return made


def asked(api: InProcessApi, role: str = "submitter", status: int = 200, **question: Any) -> Any:
    response = api.http.post("/api/v1/studies/arrived", json=question, headers=api.headers(role))
    assert response.status_code == status, response.text
    return response.json()


def test_a_sender_is_told_where_a_study_stands_and_nothing_else(in_process: InProcessApi) -> None:
    """By accession number or UID, in any spelling of the former; a patient's number finds nothing."""
    api = in_process
    study = submitted(api, 1)
    (found,) = asked(api, accession_number=ACCESSION)["studies"]
    assert (found["id"], found["stage"], found["images"], found["ended_at"]) == (study, "received", 1, None)
    analyse(api, study)
    with api.database.transaction() as session:
        row = session.get_one(StudyRow, UUID(study))
    questions: list[dict[str, Any]] = [
        {"accession_number": f" {ACCESSION.lower()} "}, {"study_instance_uid": row.study_instance_uid}
    ]  # fmt: skip
    for question in questions:
        answer = asked(api, **question)
        (found,) = answer["studies"]
        assert (found["stage"], found["id"], answer["held"]) == ("analysed", study, [])
        assert found["ended_at"]
        assert set(found) == {
            "id", "stage", "received_at", "ended_at", "images", "completeness", "expected_images", "reason", "detail"
        }  # fmt: skip
        assert not [one for one in (NUMBER, "ZEBRA", "positive", "hand") if one in json.dumps(answer)]
    assert asked(api, accession_number=NUMBER) == {"studies": [], "held": []}
    assert asked(api, accession_number="ACC-NOBODY") == {"studies": [], "held": []}
    assert asked(api, study_instance_uid="1.2.3.4") == {"studies": [], "held": []}


def test_nothing_of_another_site_is_told(in_process: InProcessApi, hospital: Hospital) -> None:
    api = in_process
    submitted(api, 1)
    with api.database.transaction() as session:
        uid = session.scalars(select(StudyRow.study_instance_uid)).one()
        assert add_key(session, "elsewhere", "ct", Role.SUBMITTER, "osk_elsewhere") is not None
    assert hospital.site_id
    for question in ({"accession_number": ACCESSION}, {"study_instance_uid": uid}):
        response = api.http.post(
            "/api/v1/studies/arrived", json=question, headers={"Authorization": "Bearer osk_elsewhere"}
        )
        assert response.json() == {"studies": [], "held": []}
    asked(api, "radiologist", 403, accession_number=ACCESSION)


def test_files_that_are_held_are_told(in_process: InProcessApi) -> None:
    """Another patient's image under the same UID waits for an administrator, then it is rejected."""
    api = in_process
    submitted(api, 1)
    other: dict[str, Any] = {"PatientName": "OKAPI^ADA", "PatientID": "P-9", "AccessionNumber": "ACC-OTHER"}
    api.post({"1": study_file(1, 2, **other)})
    answer = asked(api, accession_number="ACC-OTHER")
    assert answer["studies"] == []
    assert [(one["stage"], one["ended_at"]) for one in answer["held"]] == [("held", None)]
    with api.database.transaction() as session:
        for row in session.scalars(select(HeldFileRow)):
            row.state, row.decided_at = "rejected", db_now(session)
    (held,) = asked(api, accession_number="ACC-OTHER")["held"]
    assert held["stage"] == "rejected"
    assert held["ended_at"]


def test_each_question_is_recorded_and_their_number_is_bounded(in_process: InProcessApi) -> None:
    """Not what was asked for; and another key goes on asking."""
    api = in_process
    study = submitted(api, 1)
    assert study
    asked(api, accession_number=ACCESSION)
    asked(api, study_instance_uid="1.2.3.4")
    with api.database.transaction() as session:
        found = list(session.scalars(select(IdentitySearchRow).order_by(IdentitySearchRow.id)))
        assert [(row.key_id, row.found) for row in found] == [
            (api.key("submitter").id, 1), (api.key("submitter").id, 0)
        ]  # fmt: skip
        session.add_all(
            IdentitySearchRow(key_id=api.key("submitter").id, found=0) for _ in range(MAX_SEARCHES - len(found))
        )
    answer = asked(api, status=429, accession_number=ACCESSION)
    assert "wait a minute" in answer["detail"]
    assert asked(api, "admin", accession_number=ACCESSION)["studies"]


@pytest.mark.parametrize(
    "question",
    [
        {}, {"accession_number": "A", "study_instance_uid": "1.2.3"}, {"accession_number": ""}, {"accession_number": " "},
        {"accession_number": "A" * 65}, {"study_instance_uid": "1.2.x"}, {"study_instance_uid": "1" * 65},
        {"accession_number": 7}, {"number": "A"},
    ],
)  # fmt: skip
def test_a_question_that_is_none_is_refused(in_process: InProcessApi, question: dict[str, Any]) -> None:
    """Nothing of it is repeated."""
    answer = asked(in_process, status=422, **question)
    assert "A" * 65 not in json.dumps(answer)


def test_every_state_of_a_study_has_a_stage() -> None:
    assert set(STAGES) == set(StudyStatus)
