"""A study's priors on real Postgres: whose they are, which ones, what is told of them and to whom."""

import io
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import select

from shared.db.tables import IdentityReadRow
from shared.domain.findings import Assessment
from shared.domain.security import Role
from shared.queries import priors
from shared.queries.access import add_key
from tests.conftest import InProcessApi
from tests.feedback_data import ONE, analyse, say, study_file
from tests.unit.shared.test_kept import coloured, key_object, written

WHO: dict[str, Any] = {
    "PatientName": "ZEBRA^QUAGGA", "PatientID": "Z-1", "IssuerOfPatientID": "ST ANNA", "PatientBirthDate": "19700131",
}  # fmt: skip
NOW = WHO | {"StudyDate": "20260301", "StudyTime": "120000", "StudyDescription": "Hand", "BodyPartExamined": "HAND"}


def send(api: InProcessApi, number: int, role: str = "submitter", **tags: Any) -> str:
    """A study of one image, as a file says it; its id."""
    response = api.post({"image": study_file(number, **NOW | tags)}, role)
    assert response.status_code == 200, response.text
    return str(response.json()["studies"][0]["id"])


def told(api: InProcessApi, study: str, role: str = "radiologist") -> list[dict[str, Any]]:
    """The study's priors, as the API says."""
    response = api.http.get(f"/api/v1/studies/{study}/priors", headers=api.headers(role))
    assert response.status_code == 200, response.text
    assert "not for clinical decisions" in response.json()["notice"]
    found: list[dict[str, Any]] = response.json()["priors"]
    return found


def ids(api: InProcessApi, study: str) -> list[str]:
    return [one["id"] for one in told(api, study)]


def reads(api: InProcessApi) -> list[str]:
    """The studies whose identities were shown, as the audit has them."""
    with api.database.transaction() as session:
        return list(map(str, session.scalars(select(IdentityReadRow.study_id).order_by(IdentityReadRow.id))))


def test_the_newest_three(in_process: InProcessApi) -> None:
    """Of four earlier ones three, newest first whatever came first, with date, words and result; reading is recorded."""
    newest = send(in_process, 1, StudyDate="20260228", StudyDescription="Wrist\nleft", BodyPartExamined="WRIST")
    oldest = send(in_process, 2, StudyDate="20200101")
    study = send(in_process, 3)
    same_day = send(in_process, 4, StudyTime="080000")  # the same day, before it
    middle = send(in_process, 5, StudyDate="20250312", BodyPartExamined="FOREARM")  # a neighbour
    later = send(in_process, 6, StudyDate="20260302")
    assert ids(in_process, study) == [same_day, newest, middle]
    assert ids(in_process, later)[0] == study
    assert ids(in_process, oldest) == []

    analyse(in_process, newest, assessment=Assessment.POSITIVE)
    assert say(in_process, newest, **ONE | {"verdict": "disagree", "fracture": "no"}).status_code == 201
    before = reads(in_process)
    found = told(in_process, study)
    assert sorted(reads(in_process)[len(before) :]) == sorted([same_day, newest, middle]), "what was shown, alone"
    assert [one["study_date"] for one in found] == ["2026-03-01", "2026-02-28", "2025-03-12"]
    prior = found[1]
    assert (prior["description"], prior["assessment"], prior["region"]) == ("Wrist left", "positive", "hand")
    assert prior["readers"]["words"].startswith("No fracture")
    assert prior["url"] == f"/api/v1/studies/{newest}"
    (image,) = prior["instances"]
    picture = image["findings"][0]["preview_url"]
    assert picture == f"/api/v1/studies/{newest}/preview.jpg?image=1&frame=1"
    assert (found[0]["assessment"], found[0]["readers"], found[0]["instances"][0]["findings"]) == (None, None, [])

    page = in_process.http.get(f"/view/{study}", headers=in_process.headers("radiologist", page=True)).text
    since = page.partition("Since the prior of 1 Mar 2026")[2]
    assert f'href="/view/{same_day}">Hand, PA, not analysed</a>' in since
    assert "Wrist left, PA, no fracture, hand, says radiologist</a>" in since
    assert 'id="priors"' not in page, "the study has no picture yet"


OTHERS: dict[str, dict[str, Any]] = {
    "of another issuer": {"IssuerOfPatientID": "ST BERTA"},
    "without an issuer": {"IssuerOfPatientID": ""},
    "with another ID": {"PatientID": "Z-2"},
    "without an ID": {"PatientID": ""},
    "of another name": {"PatientName": "OKAPI^QUAGGA"},
    "born on another day": {"PatientBirthDate": "19700201"},
    "of a distant region": {"BodyPartExamined": "FOOT"},
    "of no known region": {"BodyPartExamined": ""},
    "of the same day, later": {"StudyDate": "20260301", "StudyTime": "120001"},
    "of the next day": {"StudyDate": "20260302"},
}


def test_what_is_no_prior(in_process: InProcessApi) -> None:
    """Another patient's, a distant region's, a later one, one that is deleted, or that documents reject, another site's."""
    study = send(in_process, 1)
    for number, tags in enumerate(OTHERS.values(), 2):
        send(in_process, number, **{"StudyDate": "20260201"} | tags)
    assert told(in_process, study) == []
    assert send(in_process, 20, StudyDate="20260201") in ids(in_process, study), "so nothing else hides them"

    deleted = send(in_process, 21, StudyDate="20260210")
    assert ids(in_process, study)[0] == deleted
    gone = in_process.http.delete(
        f"/api/v1/studies/{deleted}", params={"reason": "wrong-patient"}, headers=in_process.headers("admin")
    )
    assert gone.status_code == 200, gone.text
    assert deleted not in ids(in_process, study)

    content = study_file(22, **NOW | {"StudyDate": "20260211"})
    rejected = send(in_process, 22, StudyDate="20260211")
    assert ids(in_process, study)[0] == rejected
    image = dcmread(io.BytesIO(content), stop_before_pixels=True)
    note = key_object("113001", (str(image.SOPInstanceUID),))
    for keyword in ("StudyInstanceUID", *WHO):
        setattr(note, keyword, image[keyword].value)
    assert in_process.post({"note": written(note)}).status_code == 200
    assert rejected not in ids(in_process, study)

    kept = coloured(SOPInstanceUID="1.2.3.1", StudyInstanceUID="1.2.3", StudyDate="20260212", **WHO)
    assert in_process.post({"colour": written(kept)}).json()["kept"] == 1
    assert len(ids(in_process, study)) == 1, "nothing of it is analysed"


def test_another_site_has_nothing_of_it(in_process: InProcessApi) -> None:
    """The same patient at another site: neither sees the other's studies; who only sends sees no priors."""
    with in_process.database.transaction() as session:
        for role in (Role.SUBMITTER, Role.RADIOLOGIST):
            in_process.keys[f"other-{role}"] = f"osk_other_{role}"
            add_key(session, "elsewhere", f"other-{role}", role, f"osk_other_{role}")
    study, there = send(in_process, 1), send(in_process, 2, "other-submitter", StudyDate="20260201")
    here = send(in_process, 3, StudyDate="20260101")
    assert ids(in_process, study) == [here]
    assert told(in_process, there, "other-radiologist") == []
    path = f"/api/v1/studies/{study}/priors"
    assert in_process.http.get(path, headers=in_process.headers("other-radiologist")).status_code == 404
    assert in_process.http.get(path, headers=in_process.headers("submitter")).status_code == 403


def test_an_id_that_many_share_has_no_priors(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for an unknown patient is no patient; looking for one is bounded."""
    monkeypatch.setattr(priors, "MAX_OF_PATIENT", 3)
    sent = [send(in_process, number, StudyDate=f"2026010{number}") for number in range(1, 4)]
    assert ids(in_process, sent[-1]) == [sent[1], sent[0]]
    send(in_process, 4, StudyDate="20260104")
    assert ids(in_process, sent[-1]) == []
