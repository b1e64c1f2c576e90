"""Objects that are not analysed: stored and shown, on no list, in no queue; images that documents reject leave both."""

import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pydicom.uid as uids
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import select

from samples.objects import report
from shared.db.clock import db_now
from shared.db.tables import AnalysisRow, AuditEventRow, BundleRow, InstanceRow, SiteRow, StudyRow
from shared.domain.device import device_uid
from shared.domain.study import Rejection, StoredOnly
from shared.queries import refused_kinds, statistics
from shared.queries.worklist import all_status_counts, status_counts
from tests.hospital import Hospital
from tests.integration.test_upload import counts, image, objects
from tests.unit.shared.test_kept import coloured, key_object, written


def of_study(ds: Dataset, number: int = 1) -> bytes:
    """An object of the study and patient of `image(number)`."""
    study = dcmread(io.BytesIO(image(number)), stop_before_pixels=True)
    for keyword in (
        "StudyInstanceUID",
        "PatientName",
        "PatientID",
        "AccessionNumber",
        "StudyDate",
        "IssuerOfPatientID",
    ):
        setattr(ds, keyword, study[keyword].value)
    return written(ds)


def uid_of(content: bytes) -> str:
    return str(dcmread(io.BytesIO(content), stop_before_pixels=True).SOPInstanceUID)


def kinds() -> dict[str, tuple[bytes, str]]:
    """One object of each kind, of study 1."""
    return {
        "report.dcm": (of_study(report(1)), "not-an-image"),
        "colour.dcm": (of_study(coloured(SOPInstanceUID="1.2.3.1")), "colour"),
        "screen.dcm": (of_study(coloured(SOPClassUID=uids.SecondaryCaptureImageStorage, SOPInstanceUID="1.2.3.2")), "secondary-capture"),
        "us.dcm": (of_study(coloured(SOPClassUID=uids.UltrasoundImageStorage, Modality="US", SOPInstanceUID="1.2.3.3")), "other-modality"),
        "own.dcm": (of_study(coloured(DeviceUID=device_uid("0" * 64), SOPInstanceUID="1.2.3.4")), "own-result"),
    }  # fmt: skip


def hospital(api: Any) -> Hospital:
    """The API's site, with a model that can be its studies'."""
    site = Hospital(api.database, api.key().site_id)
    with api.database.transaction() as session:
        there = session.scalar(select(BundleRow).where(BundleRow.name == "a"))
    if there is None:
        site.add_bundle("a", manifest={"sensitive": 0.1, "specific": 0.6, "regions": ["hand"]})
    return site


def rows(api: Any) -> tuple[StudyRow, dict[str, InstanceRow]]:
    """The only study, and its instances by SOP Instance UID."""
    with api.database.transaction() as session:
        study = session.scalars(select(StudyRow)).one()
        return study, {one.sop_instance_uid: one for one in session.scalars(select(InstanceRow))}


def get(api: Any, path: str, role: str = "admin") -> Any:
    response = api.http.get(path, headers=api.headers(role))
    assert response.status_code == 200, response.text
    return response.json()


def listed(api: Any) -> list[str]:
    return [
        row["study_id"]
        for state in ("unread", "read")
        for row in get(api, f"/api/v1/worklist?state={state}", "radiologist")["entries"]
    ]


def test_each_kind_is_kept_and_said_so(in_process: Any) -> None:
    """Success to the sender, the reason in the receipt; no list, no queue, no statistics; the page and the API show it."""
    files = kinds()
    response = in_process.post({name: content for name, (content, _) in files.items()})
    receipt = response.json()
    assert (response.status_code, receipt["kept"], receipt["stored"], receipt["rejected"]) == (200, 5, 0, 0)
    assert {line["file"]: (line["outcome"], line["reason"]) for line in receipt["files"]} == {
        name: ("kept", why) for name, (_, why) in files.items()
    }
    assert [(one["status"], one["new_images"]) for one in receipt["studies"]] == [("kept", 0)]
    assert len(objects(in_process)) == 5
    study, instances = rows(in_process)
    assert (study.status, study.images, study.kept, study.current_analysis_id) == ("kept", 0, 5, None)
    assert {one.kept for one in instances.values()} == set(StoredOnly)
    assert listed(in_process) == []
    with in_process.database.transaction() as session:
        assert session.scalars(select(AnalysisRow)).all() == []
        assert not any(status_counts(session, study.site_id).values())
        assert not any(all_status_counts(session).values())
        now = db_now(session)
        statistics.write_statistics(session, now + timedelta(minutes=5))
        history = statistics.history(
            session, study.site_id, now - timedelta(hours=1), now + timedelta(hours=1), timedelta(hours=2)
        )
        assert sum(point.received for point in history) == 0
    told = get(in_process, f"/api/v1/studies/{study.id}")
    assert (told["status"], told["instances"], len(told["kept"])) == ("kept", [], 5)
    assert {one["kept"] for one in told["kept"]} == set(StoredOnly)
    page = in_process.http.get(f"/view/{study.id}", headers=in_process.headers("radiologist", page=True)).text
    assert "Kept, not analysed" in page
    assert "5 objects" in page
    again = in_process.post({name: content for name, (content, _) in files.items()}).json()
    assert again["duplicate"] == 5


def test_a_study_with_both(in_process: Any) -> None:
    """Its image is analysed as ever, whichever comes first, and a report that comes later does not open it again."""
    (report_, _) = kinds()["report.dcm"]
    in_process.post({"report.dcm": report_})
    before, _ = rows(in_process)
    in_process.post({"image.dcm": image(1, 1)})
    study, instances = rows(in_process)
    assert (study.status, study.images, study.kept, study.read_at) == ("queued", 1, 1, None)
    assert study.received_at > before.received_at
    assert listed(in_process) == [str(study.id)]
    site = hospital(in_process)
    with in_process.database.transaction() as session:
        now = db_now(session)
    claim = site.claim(study.id, now)
    assert [one.id for one in claim.instances] == [instances[uid_of(image(1, 1))].id]
    assert site.finish(claim, site.results(claim), now=now)
    in_process.post({"colour.dcm": kinds()["colour.dcm"][0]})
    study, _ = rows(in_process)
    assert (study.status, study.images, study.kept) == ("analysed", 1, 2)
    told = get(in_process, f"/api/v1/studies/{study.id}")
    assert ([one["number"] for one in told["instances"]], len(told["kept"])) == ([1], 2)


def test_deletion_of_what_is_kept(in_process: Any) -> None:
    """A kept object goes without the images being analysed again; the last image leaves a study that is kept."""
    in_process.post({"a": image(1, 1), "b": kinds()["report.dcm"][0], "c": kinds()["colour.dcm"][0]})
    study, _ = rows(in_process)
    site = hospital(in_process)
    with in_process.database.transaction() as session:
        now = db_now(session)
    claim = site.claim(study.id, now)
    assert site.finish(claim, site.results(claim), now=now)

    def delete(uid: str) -> None:
        path = f"/api/v1/studies/{study.id}/images/{uid}"
        response = in_process.http.request("DELETE", path, headers=in_process.headers(), params={"reason": "unusable"})
        assert response.status_code in (200, 204), response.text

    delete("1.2.3.1")
    left, _ = rows(in_process)
    assert (left.status, left.images, left.kept) == ("analysed", 1, 1)
    delete(uid_of(image(1, 1)))
    left, _ = rows(in_process)
    assert (left.status, left.images, left.kept, left.assessment) == ("kept", 0, 1, None)
    assert listed(in_process) == []
    delete(uid_of(kinds()["report.dcm"][0]))
    assert counts(in_process) == (0, 0)


def test_the_same_report_again_with_another_header_or_content(in_process: Any) -> None:
    """As of images: duplicate, correction, conflict. A correction can be applied."""
    first = report(1)
    in_process.post({"first": of_study(first)})
    implicit = dcmread(io.BytesIO(of_study(first)))
    implicit.SeriesDescription = "Corrected"
    corrected = written(implicit)
    implicit = dcmread(io.BytesIO(of_study(first)))
    implicit.ContentSequence[0].TextValue = "Something else"
    receipt = in_process.post(
        {
            "implicit": written(dcmread(io.BytesIO(of_study(first))), uids.ImplicitVRLittleEndian),
            "corrected": corrected,
            "other": written(implicit),
        }
    ).json()
    assert {line["file"]: line["outcome"] for line in receipt["files"]} == {
        "implicit": "duplicate", "corrected": "correction", "other": "conflict",
    }  # fmt: skip
    waiting = get(in_process, "/api/v1/held-files")
    held = {one["kind"]: one["id"] for one in waiting["waiting"]}
    decided = in_process.http.post(
        f"/api/v1/held-files/{held['correction']}/decision", json={"decision": "apply"}, headers=in_process.headers()
    )
    assert decided.status_code == 200, decided.text
    study, _ = rows(in_process)
    assert (study.status, study.kept, study.views) == ("kept", 1, "")


# -- documents that reject


def analysed(api: Any, contents: list[bytes]) -> StudyRow:
    """The study of these images, each with a positive finding."""
    api.post({str(number): content for number, content in enumerate(contents)})
    study, _ = rows(api)
    site = hospital(api)
    with api.database.transaction() as session:
        now = db_now(session)
    claim = site.claim(study.id, now)
    assert site.finish(claim, site.results(claim), now=now)
    return study


@pytest.mark.parametrize("title", list(Rejection))
def test_a_rejected_image_leaves_the_study(in_process: Any, title: Rejection) -> None:
    """The others are summed up anew, the page says so, and so does the audit."""
    study = analysed(in_process, [image(1, 1), image(1, 2)])
    in_process.post({"ko": of_study(key_object(title, (uid_of(image(1, 1)),)))})
    now, instances = rows(in_process)
    assert (now.status, now.images, now.kept, now.assessment) == ("queued", 1, 2, None)
    assert instances[uid_of(image(1, 1))].rejected_by_ko == title
    site = hospital(in_process)
    with in_process.database.transaction() as session:
        at = db_now(session)
    claim = site.claim(study.id, at)
    assert claim.instances == []  # its finding is there
    assert site.finish(claim, [], now=at)
    now, _ = rows(in_process)
    assert (now.status, now.images, now.assessment) == ("analysed", 1, "positive")
    told = get(in_process, f"/api/v1/studies/{study.id}")
    assert len(told["instances"]) == 1
    assert [one["rejected_by_ko"] for one in told["kept"] if one["rejected_by_ko"]] == [title]
    page = in_process.http.get(f"/view/{study.id}", headers=in_process.headers("radiologist", page=True)).text
    assert "rejected" in page.partition("Kept, not analysed")[2]
    with in_process.database.transaction() as session:
        events = session.scalars(select(AuditEventRow).where(AuditEventRow.kind == "instances-rejected")).all()
        assert [(one.study_id, one.detail["instances"], one.after) for one in events] == [
            (study.id, 1, {"rejected": title})
        ]


def first_then_image(api: Any, ko: bytes) -> None:
    api.post({"ko": ko})
    api.post({"image": image(1, 1)})


def image_then_ko(api: Any, ko: bytes) -> None:
    api.post({"image": image(1, 1)})
    api.post({"ko": ko})


def both(api: Any, ko: bytes) -> None:
    api.post({"ko": ko, "image": image(1, 1)})


def both_reversed(api: Any, ko: bytes) -> None:
    api.post({"image": image(1, 1), "ko": ko})


@pytest.mark.parametrize("order", [first_then_image, image_then_ko, both, both_reversed])
def test_whichever_comes_first(in_process: Any, order: Callable[[Any, bytes], None]) -> None:
    """A study of which all images are rejected stands on no list and in no queue."""
    order(in_process, of_study(key_object("113001", (uid_of(image(1, 1)),))))
    study, instances = rows(in_process)
    assert (study.status, study.images, study.kept) == ("kept", 0, 2)
    assert instances[uid_of(image(1, 1))].rejected_by_ko == "113001"
    assert listed(in_process) == []
    with in_process.database.transaction() as session:
        assert session.scalars(select(AnalysisRow.id)).all() == []
        assert (
            len(session.scalars(select(AuditEventRow.id).where(AuditEventRow.kind == "instances-rejected")).all()) == 1
        )
    in_process.post({"another": image(1, 2)})
    study, _ = rows(in_process)
    assert (study.status, study.images, study.kept) == ("queued", 1, 2)


@pytest.mark.parametrize("others", [0, 1])
def test_while_it_is_analysed(in_process: Any, others: int) -> None:
    """The worker that has it in hand writes nothing."""
    in_process.post({str(number): image(1, number) for number in range(1, 2 + others)})
    study, _ = rows(in_process)
    site = hospital(in_process)
    with in_process.database.transaction() as session:
        now = db_now(session)
    claim = site.claim(study.id, now)
    in_process.post({"ko": of_study(key_object("113001", (uid_of(image(1, 1)),)))})
    assert site.finish(claim, site.results(claim), now=now) is False
    study, _ = rows(in_process)
    assert (study.status, study.images) == ("queued" if others else "kept", others)
    assert site.findings(study.id) == []
    if others:
        claim = site.claim(study.id, now)
        assert [one.id for one in claim.instances] == [rows(in_process)[1][uid_of(image(1, 2))].id]


def test_a_deleted_document_rejects_nothing_any_more(in_process: Any) -> None:
    ko = of_study(key_object("113001", (uid_of(image(1, 1)),)))
    in_process.post({"image": image(1, 1), "ko": ko})
    study, _ = rows(in_process)
    path = f"/api/v1/studies/{study.id}/images/{uid_of(ko)}"
    response = in_process.http.request("DELETE", path, headers=in_process.headers(), params={"reason": "unusable"})
    assert response.status_code in (200, 204), response.text
    study, instances = rows(in_process)
    assert (study.status, study.images, study.kept) == ("queued", 1, 0)
    assert [one.rejected_by_ko for one in instances.values()] == [""]


def test_feedback_on_a_rejected_image_is_counted_no_more(in_process: Any) -> None:
    """It stays in the log; the page of the study opens."""
    study = analysed(in_process, [image(1, 1), image(1, 2)])
    said = {"verdict": "disagree", "image": 1, "frame": 1, "bundle": "a", "fracture": "no"}
    response = in_process.http.post(
        f"/api/v1/studies/{study.id}/feedback", json=said, headers=in_process.headers("radiologist")
    )
    assert response.status_code < 300, response.text
    told = get(in_process, f"/api/v1/studies/{study.id}")
    in_process.post({"ko": of_study(key_object("113001", (told["instances"][0]["sop_instance_uid"],)))})
    page = in_process.http.get(f"/view/{study.id}", headers=in_process.headers("radiologist", page=True))
    assert page.status_code == 200
    assert get(in_process, f"/api/v1/studies/{study.id}/feedback", "radiologist")["entries"] == []


# -- what DICOMweb gives of rejected instances

TAGS = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}


def searched(api: Any, path: str, role: str = "radiologist", **params: str) -> dict[str, dict[str, Any]]:
    """What QIDO-RS finds, by UID."""
    response = api.http.get(f"/dicom-web/{path}", params=params, headers=api.headers(role))
    assert response.status_code == 200, response.text
    return {one[TAGS[path.rpartition("/")[2]]]["Value"][0]: one for one in response.json()}


def retrieved(api: Any, path: str, role: str = "radiologist", **params: str) -> list[str]:
    """SOP Instance UIDs of the metadata that WADO-RS gives; none for 404."""
    response = api.http.get(f"/dicom-web/{path}/metadata", params=params, headers=api.headers(role))
    assert response.status_code in (200, 404), response.text
    return sorted(one["00080018"]["Value"][0] for one in response.json()) if response.status_code == 200 else []


def value(found: dict[str, Any], tag: str) -> Any:
    return found[tag]["Value"]


@pytest.mark.parametrize("title", list(Rejection))
@pytest.mark.parametrize("first", [True, False], ids=["the document first", "the image first"])
def test_dicomweb_gives_no_rejected_instance(in_process: Any, title: Rejection, first: bool) -> None:
    """It is found, counted and retrieved nowhere, until the document is deleted; an administrator can ask for it."""
    gone, left, other = written_in_series(1), written_in_series(2), kinds()["report.dcm"][0]
    ko = of_study(key_object(title, (uid_of(gone),)))
    for content in (ko, gone) if first else (gone, ko):
        in_process.post({"one": content})
    in_process.post({"left": left, "other": other})
    header = dcmread(io.BytesIO(gone), stop_before_pixels=True)
    study, series, instance = (
        str(header[keyword].value) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    of_gone, visible = f"studies/{study}/series/{series}", sorted(map(uid_of, (left, other, ko)))
    everything = sorted([*visible, instance])

    def seen(expected: list[str], role: str = "radiologist", **params: str) -> None:
        shown = instance in expected
        assert sorted(searched(in_process, f"studies/{study}/instances", role, **params)) == expected
        assert sorted(searched(in_process, "instances", role, **params)) == expected
        for path in ("series", f"studies/{study}/series"):
            found = searched(in_process, path, role, **params)
            assert (series in found) is shown
            assert sum(value(one, "00201209")[0] for one in found.values()) == len(expected)
        assert list(searched(in_process, f"{of_gone}/instances", role, **params)) == [instance] * shown
        assert list(searched(in_process, "instances", role, SOPInstanceUID=instance, **params)) == [instance] * shown
        (told,) = searched(in_process, "studies", role, **params).values()
        assert (value(told, "00201208"), value(told, "00201206")) == ([len(expected)], [3 + shown])
        assert ("DX" in value(told, "00080061")) is shown
        assert len(searched(in_process, "studies", role, ModalitiesInStudy="DX", **params)) == shown
        assert retrieved(in_process, f"studies/{study}", role, **params) == expected
        assert retrieved(in_process, of_gone, role, **params) == [instance] * shown
        assert retrieved(in_process, f"{of_gone}/instances/{instance}", role, **params) == [instance] * shown
        for path in (of_gone, f"{of_gone}/instances/{instance}", f"{of_gone}/instances/{instance}/frames/1"):
            headers = in_process.headers(role) | {"Accept": "*/*"}
            response = in_process.http.get(f"/dicom-web/{path}", params=params, headers=headers)
            assert (response.status_code == 404) is not shown

    for role in ("radiologist", "admin"):
        seen(visible, role)
    seen(everything, "admin", includerejected="true")
    for path in ("studies", "series", f"studies/{study}/series", f"studies/{study}", f"{of_gone}/metadata"):
        refused = in_process.http.get(
            f"/dicom-web/{path}", params={"includerejected": "true"}, headers=in_process.headers("radiologist")
        )
        assert refused.status_code == 403
    row, _ = rows(in_process)
    path = f"/api/v1/studies/{row.id}/images/{uid_of(ko)}"
    response = in_process.http.request("DELETE", path, headers=in_process.headers(), params={"reason": "unusable"})
    assert response.status_code in (200, 204), response.text
    everything.remove(uid_of(ko))
    assert retrieved(in_process, f"studies/{study}") == everything


def written_in_series(number: int) -> bytes:
    """An image of study 1 in a series of its own; the first one is of DX."""
    ds = dcmread(io.BytesIO(image(1, number)))
    ds.SeriesInstanceUID, ds.Modality = f"1.2.3.9.{number}", "DX" if number == 1 else "CR"
    return written(ds)


def test_a_study_of_rejected_instances_alone_is_not_found(in_process: Any) -> None:
    """The document that rejects them may be of another study."""
    in_process.post({"gone": image(1, 1), "stays": image(2, 1)})
    ko = key_object("113001", (uid_of(image(1, 1)),))
    of_other = dcmread(io.BytesIO(of_study(ko, 2)))
    in_process.post({"ko": written(of_other)})
    (gone, stays) = (
        str(dcmread(io.BytesIO(image(number, 1)), stop_before_pixels=True).StudyInstanceUID) for number in (1, 2)
    )
    assert list(searched(in_process, "studies")) == [stays]
    assert sorted(searched(in_process, "studies", "admin", includerejected="true")) == sorted([gone, stays])
    assert retrieved(in_process, f"studies/{gone}") == []


# -- kinds that are refused


def test_refused_kinds(make_api: Callable[..., Any]) -> None:
    """The sender is told; other kinds are kept, and images analysed."""
    api = make_api(refused_kinds="colour, own-result")
    files = {name: content for name, (content, _) in kinds().items()} | {"image": image(1, 1)}
    receipt = api.post(files).json()
    assert {line["file"]: line["outcome"] for line in receipt["files"]} == {
        "report.dcm": "kept", "colour.dcm": "rejected", "screen.dcm": "kept", "us.dcm": "kept", "own.dcm": "rejected",
        "image": "stored",
    }  # fmt: skip
    refused = [line for line in receipt["files"] if line["outcome"] == "rejected"]
    assert {(line["failure"], line["reason"]) for line in refused} == {("0x0122", "sop-class-not-supported")}
    assert all("osteon refused-kinds" in line["text"] for line in refused)


@pytest.mark.parametrize("setting", ["none", "colour, own-result"])
def test_a_site_refuses_what_it_chose(make_api: Callable[..., Any], setting: str) -> None:
    """Its choice counts at once, in place of the setting, until it follows that again; other sites follow the setting."""
    api = make_api(refused_kinds=setting)
    files = {name: content for name, (content, _) in kinds().items()}
    by_kind = {kind: name for name, (_, kind) in kinds().items()}

    def refused() -> set[str]:
        lines = api.post(files).json()["files"]
        return {line["file"] for line in lines if line["outcome"] == "rejected"}

    def choose(wanted: list[str] | None) -> Any:
        response = api.http.put("/api/v1/refused-kinds", json={"kinds": wanted}, headers=api.headers())
        assert response.status_code == 200, response.text
        return response.json()

    installation = [kind.strip() for kind in setting.split(",") if kind != "none"]
    for wanted in (None, ["not-an-image", "other-modality"], [], None):
        told = choose(wanted)
        in_force = installation if wanted is None else wanted
        assert (told["kinds"], told["in_force"], told["installation"]) == (wanted, in_force, installation)
        assert get(api, "/api/v1/refused-kinds") == told
        assert refused() == {by_kind[kind] for kind in in_force}
    with api.database.transaction() as session:
        events = session.scalars(select(AuditEventRow).where(AuditEventRow.kind == "setting-changed")).all()
        told = [one.after.get("table", "chosen") for one in sorted(events, key=lambda one: one.id)]
        assert told == ["chosen", "chosen", "built-in"]
        other = SiteRow(name="other")
        session.add(other)
        session.flush()
        assert refused_kinds.chosen(session, other.id) is None
    wrong = api.http.put("/api/v1/refused-kinds", json={"kinds": ["radiographs"]}, headers=api.headers())
    assert wrong.status_code == 422
