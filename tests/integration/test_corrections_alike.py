"""What administrators decided shows alike, whoever asks: in searches (QIDO-RS) and in what is retrieved (WADO-RS)."""

import io
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation
from sqlalchemy import update

from infra import prepare
from shared.db.tables import StudyRow
from tests.integration.test_held_files import choose, image, sent, waiting
from tests.integration.test_series import told

SAID_BY_QIDO_ALONE = {"00080005", "00080056", "00080061", "00081190", "00201206", "00201208", "00201209"}


def searched(api: Any) -> list[dict[str, Any]]:
    """All that QIDO-RS says of each instance, its series and its study."""
    response = api.http.get("/dicom-web/instances?includefield=all", headers=api.headers("radiologist"))
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()
    return found


def retrieved(api: Any, found: dict[str, Any]) -> Dataset:
    """The object that is behind a result of a search."""
    study, series, instance = (found[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
    path = f"/dicom-web/studies/{study}/series/{series}/instances/{instance}"
    response = api.http.get(path, headers=api.headers("radiologist") | {"accept": "application/dicom"})
    assert response.status_code == 200, response.text
    return dcmread(io.BytesIO(response.content))


def values_of(attribute: dict[str, Any]) -> list[Any]:
    """The values that are there, of a sequence those of its items; times to the second."""
    values = [one for one in attribute.get("Value", []) if one not in ("", None, {"Alphabetic": ""})]
    if attribute["vr"] == "SQ":
        return [{tag: values_of(one) for tag, one in item.items()} for item in values]
    return [one.partition(".")[0].ljust(6, "0") if attribute["vr"] == "TM" else one for one in values]


def differences(api: Any) -> list[tuple[str, list[Any], list[Any]]]:
    """Attributes of which search and retrieval say different things. An object may lack what others say."""
    found = []
    for one in searched(api):
        object_json = retrieved(api, one).to_json_dict()
        for tag in sorted(one.keys() - SAID_BY_QIDO_ALONE):
            said, shown = values_of(object_json.get(tag, {"vr": one[tag]["vr"]})), values_of(one[tag])
            if said != shown and said:
                found.append((tag, shown, said))
    return found


ROE = {"PatientName": "ROE^RICHARD", "PatientID": "0815", "PatientBirthDate": "20010101", "AccessionNumber": "ACC-2"}


def test_before_anything_was_decided(in_process: Any) -> None:
    """The comparison holds of images as they came, and compares what it should."""
    sent(in_process, image(1, 1, **told("1")), image(1, 2, **told("2")))
    assert differences(in_process) == []
    assert {"00100010", "0008103E", "00400275", "00200013", "00080090"} <= searched(in_process)[0].keys()


@pytest.mark.parametrize("late", [False, True])
def test_a_correction(in_process: Any, late: bool) -> None:
    """Of all that a search shows: values of the patient and the study, removed ones too, of the series, of the image."""
    api = in_process
    others = [image(1, 2, **told("1", InstanceNumber="2")), image(1, 3, **told("3"))]
    sent(api, image(1, 1, **told("1")), *([] if late else others))
    corrected = told(
        "1", SeriesNumber="4", SeriesDescription="QUAGGA", ProtocolName="FOOT", InstanceNumber="7", SeriesDate="20260301",
        PatientName="DOE^JANET", PatientBirthDate="", PatientSex="F", AccessionNumber="ACC-9", StudyDate="20260304",
        StudyTime="0910", StudyDescription="Foot", StudyID="S-2", ReferringPhysicianName="DOE^JO", Modality="DX",
        SOPClassUID=DigitalXRayImageStorageForPresentation, RequestAttributesSequence=[], TimezoneOffsetFromUTC="-0500",
        PerformedProcedureStepStartDate="20260305", PerformedProcedureStepID="PPS-2",
    )  # fmt: skip
    sent(api, image(1, 1, **corrected))
    assert choose(api, waiting(api)[0]["id"], "apply").status_code == 200
    if late:  # of the patient before the correction: known to be the same
        sent(api, *others)
    assert len(searched(api)) == 3
    assert differences(api) == []
    (first,) = (one for one in searched(api) if one["00200013"]["Value"] == [7])
    assert first["00100030"].get("Value", []) == []
    assert first["00200010"]["Value"] == ["S-2"]
    assert first["00080016"]["Value"] == [DigitalXRayImageStorageForPresentation]


def test_an_image_of_the_same_patient(in_process: Any) -> None:
    """And those that follow the decision by themselves."""
    api = in_process
    sent(api, image(1, 1, **told("1")))
    sent(api, image(1, 2, **told("2", **ROE)))
    assert choose(api, waiting(api)[0]["id"], "same-patient").status_code == 200
    sent(api, image(1, 3, **told("3", **ROE)))
    assert len(searched(api)) == 3
    assert differences(api) == []
    assert {one["00100020"]["Value"][0] for one in searched(api)} == {"4711"}


def test_an_image_of_another_study(in_process: Any) -> None:
    """And those that follow the decision by themselves, under the new study's UID."""
    api = in_process
    sent(api, image(1, 1, **told("1")))
    sent(api, image(1, 2, **told("2", **ROE)))
    assert choose(api, waiting(api)[0]["id"], "another-study").status_code == 200
    sent(api, image(1, 3, **told("3", **ROE)))
    found = searched(api)
    assert len({one["0020000D"]["Value"][0] for one in found}) == 2
    assert differences(api) == []
    assert sorted(one["00100020"]["Value"][0] for one in found) == ["0815", "0815", "4711"]


def test_an_image_without_a_series_uid(in_process: Any) -> None:
    """It is found under one, and says so."""
    sent(in_process, image(1, 1, SeriesInstanceUID=""))
    assert differences(in_process) == []


def test_corrections_of_studies_that_are_filled_later(in_process: Any) -> None:
    """A study whose columns come from its stored objects says the same."""
    api = in_process
    sent(api, image(1, 1, **told("1")), image(1, 2, **told("1", InstanceNumber="2")))
    sent(api, image(1, 1, **told("1", SeriesNumber="4", PatientName="DOE^JANET", StudyID="S-2")))
    assert choose(api, waiting(api)[0]["id"], "apply").status_code == 200
    before = searched(api)
    with api.database.transaction() as session:
        session.execute(update(StudyRow).values(filled_version=0))
    prepare.fill_examinations(api.settings, api.database)
    assert searched(api) == before
    assert differences(api) == []
