"""Two patients under one Study Instance UID, and one image sent again: nothing is merged, lost, or answered as a failure."""

import io
import itertools
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

import pydicom.uid as uids
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import func, select, update

from infra import prepare
from samples.objects import SYNTAX, pattern_image, set_pixels, to_bytes
from shared.db.clock import db_now
from shared.db.tables import AnalysisRow, HeldFileRow, IdentityReadRow, IdentityRow, InstanceRow, StudyRow
from shared.dicom.image import ImageLimits
from shared.domain.held import HeldDecision, HeldKind, HeldState
from shared.domain.security import Role
from shared.domain.study import Identity
from shared.errors import InvalidState
from shared.queries import held
from shared.queries.access import add_key
from shared.queries.decisions import decide
from shared.storage import original_key, sha256_of
from worker import decoder_pool
from worker.maintenance.comparing import compare_held

REPORTS = Path(__file__).parents[1] / "data/field_reports"
FIRST, CORRECTED = (REPORTS / name for name in ("o1-first.dcm", "o1-corrected-name.dcm"))
ONE, OTHER = (REPORTS / name for name in ("o2-first-patient.dcm", "o2-second-patient-same-study-uid.dcm"))


def image(study: int = 1, number: int = 1, syntax: str = uids.ExplicitVRLittleEndian, **values: Any) -> bytes:
    """A little radiograph of DOE^JANE, unless the values say otherwise."""
    ds = pattern_image(study, f"image {number}")
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.IssuerOfPatientID = "DOE^JANE", "4711", "19700101", ""
    return written(ds, syntax, values)


def written(ds: Dataset, syntax: str, values: dict[str, Any]) -> bytes:
    for name, value in values.items():
        setattr(ds, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, syntax)


ROE = {
    "PatientName": "ROE^RICHARD",
    "PatientID": "ROE-0815",
    "PatientBirthDate": "20010101",
    "AccessionNumber": "ACC-ROE",
}


def sent(api: Any, *contents: bytes, **fields: str) -> list[dict[str, Any]]:
    """The receipt's lines."""
    response = api.post({f"{number}.dcm": content for number, content in enumerate(contents)}, **fields)
    assert response.status_code == 200, response.text
    lines: list[dict[str, Any]] = response.json()["files"]
    return lines


def outcomes(lines: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(line["outcome"], line["reason"]) for line in lines]


def waiting(api: Any) -> list[dict[str, Any]]:
    response = api.http.get("/api/v1/held-files", headers=api.headers())
    assert response.status_code == 200, response.text
    views: list[dict[str, Any]] = response.json()["waiting"]
    return views


def choose(api: Any, held_id: str, decision: str, reason: str = "", role: str = "admin") -> Any:
    body = {"decision": decision, "reason": reason}
    return api.http.post(f"/api/v1/held-files/{held_id}/decision", json=body, headers=api.headers(role))


def found(api: Any, number: str) -> tuple[set[str], list[tuple[str, str]]]:
    """Ids of studies, and kinds and states of held files."""
    response = api.http.post(
        "/api/v1/worklist/search", json={"number": number}, headers=api.headers("radiologist")
    ).json()
    return {entry["study_id"] for entry in response["entries"]}, [
        (one["kind"], one["state"]) for one in response["held"]
    ]


def counts(api: Any) -> tuple[int, int, int]:
    """Rows of studies, instances, and open held files."""
    with api.database.transaction() as session:
        open_ones = select(func.count()).select_from(HeldFileRow).where(HeldFileRow.state == HeldState.OPEN)
        return (
            *(session.scalar(select(func.count()).select_from(row)) for row in (StudyRow, InstanceRow)),
            session.scalar(open_ones),
        )


def identity(api: Any, study_id: str) -> Identity:
    parts = api.http.app.state.parts
    with api.database.transaction() as session:
        known: Identity = parts.vault.stored_identities(session, [UUID(study_id)])[UUID(study_id)]
        return known


# -- two patients under one Study Instance UID ----------------------------------------------------------------------


def test_second_patient_is_kept_apart(in_process: Any) -> None:
    """The field report: stored as a conflict, never of the first study, both found before and after, one decision."""
    api = in_process
    (first,) = sent(api, ONE.read_bytes())
    (second,) = sent(api, OTHER.read_bytes())
    assert outcomes([first, second]) == [("stored", None), ("conflict", "other-patient")]
    assert second["study_id"] is None and "administrator" in second["text"]
    store = api.http.app.state.parts.store
    assert store.get(original_key(sha256_of(OTHER.read_bytes()))) == OTHER.read_bytes()
    assert counts(api) == (1, 1, 1)
    assert found(api, "P-two-a") == found(api, "A03718411") == ({first["study_id"]}, [])
    assert found(api, "PID-SECOND") == found(api, "ACC-SECOND") == (set(), [("patient", "open")])
    (view,) = waiting(api)
    assert {change["field"]: (change["study"], change["file"]) for change in view["changes"]} == {
        "PatientName": ("CASE^TWO-A", "SECOND^PATIENT"),
        "PatientID": ("P-two-a", "PID-SECOND"),
        "PatientBirthDate": ("19700101", "20010101"),
        "AccessionNumber": ("A03718411", "ACC-SECOND"),
    }
    assert outcomes(sent(api, OTHER.read_bytes())) == [("conflict", "other-patient")]
    made = choose(api, view["id"], "another-study").json()
    assert (made["state"], made["files"], len(made["study_ids"])) == ("another-study", 1, 1)
    (study_id,) = made["study_ids"]
    assert found(api, "PID-SECOND") == found(api, "ACC-SECOND") == ({study_id}, [])
    assert found(api, "P-two-a") == ({first["study_id"]}, [])
    assert identity(api, study_id).patient_name == "SECOND^PATIENT"
    assert counts(api) == (2, 2, 0)
    # the stored original stays as it is; which UID it came under is kept
    (past,) = api.http.get("/api/v1/held-files", headers=api.headers()).json()["decided"]
    assert past["original_study_instance_uid"] == dcmread(OTHER).StudyInstanceUID
    with api.database.transaction() as session:
        row = session.get_one(StudyRow, UUID(study_id))
        assert row.study_instance_uid != past["original_study_instance_uid"]
        assert session.get_one(AnalysisRow, row.current_analysis_id).sent_at is not None
    (again,) = sent(api, OTHER.read_bytes())
    assert (again["outcome"], again["study_id"]) == ("duplicate", study_id)


def test_files_of_one_patient_are_decided_on_together(in_process: Any) -> None:
    """All files of the second patient become one study, those that come later too, without a further question."""
    api = in_process
    sent(api, image())
    lines = sent(api, image(1, 2, **ROE), image(1, 3), image(1, 4, **ROE))
    assert outcomes(lines) == [("conflict", "other-patient"), ("stored", None), ("conflict", "other-patient")]
    (view,) = waiting(api)
    assert view["files"] == 2
    made = choose(api, view["id"], "another-study").json()
    (study_id,) = made["study_ids"]
    (later,) = sent(api, image(1, 5, **ROE))
    assert (later["outcome"], later["study_id"]) == ("stored", study_id)
    assert counts(api) == (2, 5, 0)


def test_same_patient_after_all(in_process: Any) -> None:
    """The files join the study, which both numbers find; later ones of either name are taken in."""
    api = in_process
    (first,) = sent(api, image())
    sent(api, image(1, 2, PatientName="DOE-SMITH^JANE"))
    (view,) = waiting(api)
    made = choose(api, view["id"], "same-patient").json()
    assert made["study_ids"] == [first["study_id"]]
    assert identity(api, first["study_id"]).patient_name == "DOE^JANE"
    lines = sent(api, image(1, 3, PatientName="DOE-SMITH^JANE"), image(1, 4))
    assert [line["outcome"] for line in lines] == ["stored", "stored"]
    assert counts(api) == (1, 4, 0)


def test_rejecting_needs_a_reason_and_can_still_be_found(in_process: Any) -> None:
    """Nothing of a rejected file is analysed; the search says so, and the sender has no failure."""
    api = in_process
    sent(api, image())
    sent(api, image(1, 2, **ROE))
    (view,) = waiting(api)
    assert choose(api, view["id"], "reject").status_code == 400
    assert choose(api, view["id"], "reject", " sent by mistake ").status_code == 200
    assert counts(api) == (1, 1, 0)
    assert found(api, "ROE-0815") == (set(), [("patient", "rejected")])
    (past,) = api.http.get("/api/v1/held-files", headers=api.headers()).json()["decided"]
    assert (past["reason"], past["decided_by"]) == ("sent by mistake", "admin")
    assert outcomes(sent(api, image(1, 2, **ROE))) == [("duplicate", "rejected")]


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ({"PatientName": "doe^jane^^"}, "stored"),
        ({"PatientID": " 4711 "}, "stored"),
        ({"PatientID": "", "PatientName": "", "PatientBirthDate": ""}, "stored"),
        ({"AccessionNumber": "ANOTHER"}, "stored"),
        ({"PatientID": "4712"}, "conflict"),
        ({"PatientName": "DOE^JOAN"}, "conflict"),
        ({"PatientBirthDate": "19700102"}, "conflict"),
        ({"IssuerOfPatientID": "ELSEWHERE"}, "conflict"),
    ],
)
def test_what_is_another_patient(make_api: Callable[..., Any], values: dict[str, str], outcome: str) -> None:
    """The rules hold for files that come in; who sends IDs without an issuer has the installation's."""
    api = make_api(patient_id_issuer="HERE")
    sent(api, image())
    assert sent(api, image(1, 2, **values))[0]["outcome"] == outcome


def test_each_sender_has_an_issuer(in_process: Any) -> None:
    """One ID of two senders is of two patients, if each key names its own issuer."""
    api = in_process
    keys = {}
    for name in ("ANNA", "BERTA"):
        body = {"name": name, "role": "submitter", "issuer": name}
        keys[name] = api.http.post("/api/v1/keys", json=body, headers=api.headers()).json()["secret"]
    for number, (name, outcome) in enumerate([("ANNA", "stored"), ("BERTA", "conflict"), ("ANNA", "stored")], 1):
        files = [("files", ("a", image(1, number)))]
        response = api.http.post("/api/v1/studies", files=files, headers={"Authorization": f"Bearer {keys[name]}"})
        assert response.json()["files"][0]["outcome"] == outcome


def test_what_was_absent_is_learned(in_process: Any) -> None:
    """What the first image does not say the second one does, and the third must agree with that."""
    api = in_process
    (first, *_) = sent(api, image(PatientBirthDate="", PatientID=""))
    assert sent(api, image(1, 2))[0]["outcome"] == "stored"
    assert identity(api, first["study_id"]).patient_id == "4711"
    assert found(api, "4711") == ({first["study_id"]}, [])
    assert sent(api, image(1, 3, PatientID="4712"))[0]["outcome"] == "conflict"


def test_two_patients_at_once(in_process: Any) -> None:
    """Of two requests with two patients one wins the study; the other's files become the conflict, each time."""
    api = in_process
    for study in range(10, 16):
        barrier = threading.Barrier(2)

        def send(
            values: dict[str, str], study: int = study, barrier: threading.Barrier = barrier
        ) -> list[dict[str, Any]]:
            barrier.wait()
            return sent(api, *(image(study, 10 * len(values) + n, **values) for n in range(2)))

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(send, ({}, ROE)))
        assert sorted(line["outcome"] for lines in results for line in lines) == ["conflict"] * 2 + ["stored"] * 2
        assert all(len({line["outcome"] for line in lines}) == 1 for lines in results)
    with api.database.transaction() as session:
        assert set(session.scalars(select(StudyRow.images))) == {2}


def test_decisions_at_once(in_process: Any) -> None:
    """Of many who decide at once, some the other way, exactly one outcome comes about."""
    api = in_process
    sent(api, image())
    sent(api, image(1, 2, **ROE), image(1, 3, **ROE))
    (view,) = waiting(api)
    parts, key = api.http.app.state.parts, api.key()

    def one(decision: HeldDecision) -> int:
        with api.database.transaction() as session:
            return decide(session, parts.vault, key, UUID(view["id"]), decision, "r", db_now(session)).files

    def tried(decision: HeldDecision) -> object:
        try:
            return one(decision)
        except InvalidState:
            return decision

    choices = [HeldDecision.ANOTHER_STUDY, HeldDecision.SAME_PATIENT, HeldDecision.REJECT] * 2
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(tried, choices))
    assert sorted(result for result in results if isinstance(result, int)) == [0, 2]
    with api.database.transaction() as session:
        rows = session.scalars(select(HeldFileRow)).all()
        assert len({row.state for row in rows}) == 1 and len({row.new_study_id for row in rows}) == 1
        assert session.scalar(select(func.count()).select_from(InstanceRow)) in (1, 3)


def test_a_study_with_held_files_is_not_deleted(in_process: Any) -> None:
    """Deleting a quarantined study would take another patient's files with it: it is refused, and they stay."""
    api = in_process
    (first,) = sent(api, image())
    sent(api, image(1, 2, **ROE))
    with api.database.transaction() as session:
        session.execute(update(StudyRow).values(status="quarantined", quarantined_at=func.now()))
    body = {"reason": "test"}
    response = api.http.post(f"/api/v1/quarantine/{first['study_id']}/delete", json=body, headers=api.headers())
    assert response.status_code == 409, response.text
    assert counts(api) == (1, 1, 1)


def test_who_may_decide(in_process: Any) -> None:
    """Only administrators of the same site see and decide; others learn nothing."""
    api = in_process
    sent(api, image())
    sent(api, image(1, 2, **ROE))
    (view,) = waiting(api)
    for role in ("submitter", "radiologist"):
        assert api.http.get("/api/v1/held-files", headers=api.headers(role)).status_code == 403
        assert choose(api, view["id"], "another-study", role=role).status_code == 403
    with api.database.transaction() as session:
        add_key(session, "elsewhere", "admin", Role.ADMIN, "osk_elsewhere")
    stranger = {"Authorization": "Bearer osk_elsewhere"}
    assert api.http.get("/api/v1/held-files", headers=stranger).json() == {"counts": {}, "waiting": [], "decided": []}
    body = {"decision": "another-study"}
    assert api.http.post(f"/api/v1/held-files/{view['id']}/decision", json=body, headers=stranger).status_code == 404
    assert choose(api, view["id"], "apply").status_code == 409
    assert counts(api)[2] == 1
    with api.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(IdentityReadRow)) >= 1  # looking is on record


def test_receipts_and_tables_name_nobody(in_process: Any) -> None:
    """The other patient's name stands in no receipt and in no column in the clear."""
    api = in_process
    sent(api, image())
    lines = sent(api, image(1, 2, StudyDescription="ROE private words", **ROE))
    # Whole values: three letters would be found in sealed text by chance.
    assert not [value for value in ROE.values() if value in str(lines)]
    with api.database.transaction() as session:
        row = session.scalars(select(HeldFileRow)).one()
        kept = b"".join(str(value).encode() for value in vars(row).values())
    assert not [value for value in (*ROE.values(), "ROE private words") if value.encode() in kept]


# -- the same image again -------------------------------------------------------------------------------------------


def test_corrected_header_waits_and_is_applied(in_process: Any) -> None:
    """The field report: kept as a correction, applied by one click, with what was before."""
    api = in_process
    (first,) = sent(api, FIRST.read_bytes())
    (second,) = sent(api, CORRECTED.read_bytes())
    assert (second["outcome"], second["study_id"]) == ("correction", first["study_id"])
    assert counts(api) == (1, 1, 1)
    assert identity(api, first["study_id"]).patient_name == "CASE^CORR"
    assert found(api, "CORRECTED-ID") == (set(), [("correction", "open")])
    (view,) = waiting(api)
    assert [change["field"] for change in view["changes"]] == ["PatientName", "PatientID"]
    assert choose(api, view["id"], "apply").json()["files"] == 1
    with api.database.transaction() as session:
        assert session.get_one(StudyRow, UUID(first["study_id"])).revised_at is not None
    assert choose(api, view["id"], "apply").json()["files"] == 0
    assert choose(api, view["id"], "reject", "no").status_code == 409
    now = identity(api, first["study_id"])
    assert (now.patient_name, now.patient_id, now.birth_date) == ("CORRECTED^NAME", "CORRECTED-ID", "19700101")
    assert found(api, "CORRECTED-ID") == found(api, "P-corr") == ({first["study_id"]}, [])
    (past,) = api.http.get("/api/v1/held-files", headers=api.headers()).json()["decided"]
    assert past["study"]["patient_name"] == "CASE^CORR" and past["decided_by"] == "admin"
    for content in (FIRST.read_bytes(), CORRECTED.read_bytes()):
        assert sent(api, content)[0]["outcome"] == "duplicate"
    store = api.http.app.state.parts.store
    assert store.get(original_key(sha256_of(FIRST.read_bytes()))) == FIRST.read_bytes()


def test_correction_of_the_examination(in_process: Any) -> None:
    """Side, view, body part, sex and date follow the corrected header; what another image says of itself stays."""
    api = in_process
    (first, _) = sent(
        api, image(Laterality="L", ViewPosition="AP", PatientSex="M"), image(1, 2, Laterality="L", ViewPosition="LL")
    )
    sent(api, image(Laterality="R", ViewPosition="PA", PatientSex="F", StudyDate="20250102", BodyPartExamined="FOOT"))
    (view,) = waiting(api)
    assert choose(api, view["id"], "apply").status_code == 200
    with api.database.transaction() as session:
        row = session.get_one(StudyRow, UUID(first["study_id"]))
        assert (row.sex, str(row.study_date), row.laterality, set(row.views.split(", "))) == (
            "F",
            "2025-01-02",
            "B",
            {"PA", "LL"},
        )
        images = {one.view: one.laterality for one in session.scalars(select(InstanceRow))}
    assert images == {"PA": "R", "LL": "L"}


def test_another_way_of_writing_is_a_duplicate(in_process: Any) -> None:
    """One image in another transfer syntax, with other group 0002, is the same; no bytes are kept."""
    api = in_process
    (first,) = sent(api, image())
    ds = dcmread(io.BytesIO(image()))
    for syntax in (uids.ImplicitVRLittleEndian, uids.DeflatedExplicitVRLittleEndian):
        (line,) = sent(api, written(Dataset(ds), syntax, {}))
        assert (line["outcome"], line["study_id"]) == ("duplicate", first["study_id"])
    assert counts(api) == (1, 1, 0)


def test_other_pixels_are_a_conflict(in_process: Any) -> None:
    """The same UID with other pixels is kept as a conflict; it can become an image of the study, under a new UID."""
    api = in_process
    (first,) = sent(api, image())
    ds = pattern_image(1, "image 1")
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.IssuerOfPatientID = "DOE^JANE", "4711", "19700101", ""
    ds.PixelData = bytes(reversed(ds.PixelData))
    other = written(ds, uids.ExplicitVRLittleEndian, {})
    assert outcomes(sent(api, other)) == [("conflict", "other-image")]
    (view,) = waiting(api)
    assert choose(api, view["id"], "same-patient").json()["study_ids"] == [first["study_id"]]
    assert counts(api) == (1, 2, 0)
    (past,) = api.http.get("/api/v1/held-files", headers=api.headers()).json()["decided"]
    assert past["original_sop_instance_uid"] == first["sop_instance_uid"]


def test_a_correction_that_names_another_study_is_a_conflict(in_process: Any) -> None:
    """To move an image to another study is no correction of a header: a person decides."""
    api = in_process
    sent(api, image())
    assert outcomes(sent(api, image(StudyInstanceUID="2.25.4711"))) == [("conflict", "other-image")]
    assert counts(api) == (1, 1, 1)


def test_what_bytes_do_not_tell_a_worker_compares(in_process: Any) -> None:
    """Another encoding of the pixels is left to a worker: the API decodes none. Each verdict settles it."""
    api = in_process
    sent(api, *(image(1, number) for number in (1, 2, 3)))
    for number in (1, 2, 3):
        ds = dcmread(io.BytesIO(image(1, number)))
        frames = [ds.pixel_array]
        set_pixels(ds, frames, ds.BitsStored, "rle")
        assert outcomes(sent(api, written(ds, uids.RLELossless, {}))) == [("comparing", "to-be-compared")]
    with api.database.transaction() as session:
        now = db_now(session)
        pairs = held.take_to_compare(session, now)
        assert held.take_to_compare(session, now) == []  # no two workers compare one
        for pair, kind in zip(pairs, (None, HeldKind.CORRECTION, HeldKind.PIXELS), strict=True):
            held.record_comparison(session, pair.held_id, kind)
    assert sorted(view["kind"] for view in waiting(api)) == ["correction", "pixels"]
    assert counts(api)[2] == 2


def test_conflict_within_a_request(in_process: Any) -> None:
    """Of two files with one UID in one request the first is taken, and the second compared with it."""
    api = in_process
    lines = sent(api, image(), image(PatientName="DOE^JANET"), image())
    assert outcomes(lines) == [("stored", None), ("correction", "other-header"), ("duplicate", None)]
    assert counts(api) == (1, 1, 1)


# -- the same file in another encoding

PACKED = ("rle", "jpegls", "jpeg2000")
ENCODINGS = ("explicit", "implicit", "deflated", "other meta", *PACKED)
NUMBERS = itertools.count(1)


def encoded(study: int, encoding: str, *, instance: int = 1, **values: Any) -> bytes:
    """`image(study, instance)` with a transfer syntax, or another group 0002."""
    plain = dcmread(io.BytesIO(image(study, instance, **values)))
    if encoding == "other meta":
        content = written(plain, uids.ExplicitVRLittleEndian, {})
        return content.replace(b"OSTEON_SAMPLES", b"OTHER_SOFTWARE", 1)
    if encoding in PACKED:
        set_pixels(plain, [plain.pixel_array], plain.BitsStored, encoding)
    return written(plain, SYNTAX[encoding], {})


class HereDecoders:
    """Compares in this process."""

    def __init__(self, api: Any) -> None:
        decoder_pool.begin_here(api.http.app.state.parts.store, ImageLimits())

    def compare(self, job: decoder_pool.PairJob) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(decoder_pool.compare_pair(job))
        return done


def compare_all(api: Any) -> None:
    """What a worker does with files that it must compare."""
    while compare_held(api.settings, api.database, HereDecoders(api)):  # type: ignore[arg-type]
        pass


@settings(
    max_examples=12,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    original=st.sampled_from(ENCODINGS),
    encodings=st.lists(st.sampled_from(ENCODINGS), min_size=2, max_size=4, unique=True),
    together=st.booleans(),
    decision=st.sampled_from(["apply", "reject"]),
)
@pytest.mark.slow
def test_a_correction_in_any_encoding_is_one(
    in_process: Any, original: str, encodings: list[str], *, together: bool, decision: str
) -> None:
    """However it is written, and sent again, it waits once and is decided once; the image before it comes back as none."""
    api, study = in_process, next(NUMBERS)
    sent(api, encoded(study, original))
    before = counts(api)[1]
    corrections = [encoded(study, one, PatientName="DOE^JANET") for one in encodings]
    for some in [corrections] if together else [[one] for one in corrections]:
        assert {line["outcome"] for line in sent(api, *some)} <= {"correction", "comparing"}
    compare_all(api)
    assert [(view["kind"], view["files"]) for view in waiting(api)] == [("correction", 1)]
    assert choose(api, waiting(api)[0]["id"], decision, "because").status_code == 200
    for content in (*corrections, *(encoded(study, one, PatientName="DOE^JANET") for one in ENCODINGS)):
        assert {line["outcome"] for line in sent(api, content)} <= {"duplicate", "comparing"}
    sent(api, *(encoded(study, one) for one in ENCODINGS))
    compare_all(api)
    assert waiting(api) == []
    assert counts(api)[1:] == (before, 0)


def test_another_correction_is_another_one(in_process: Any) -> None:
    """What is the same but for a letter is decided on by itself, also in an encoding that only a worker compares."""
    api = in_process
    sent(api, encoded(1, "explicit"))
    sent(api, encoded(1, "jpegls", PatientName="DOE^JANET"), encoded(1, "explicit", PatientName="DOE^JANE^M"))
    sent(api, encoded(1, "rle", PatientName="DOE^JANE^M"), encoded(1, "implicit", PatientName="DOE^JANET"))
    compare_all(api)
    assert sorted((view["file"]["patient_name"], view["files"]) for view in waiting(api)) == [
        ("DOE^JANET", 1), ("DOE^JANE^M", 1),
    ]  # fmt: skip


@settings(
    max_examples=12,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    encodings=st.lists(st.sampled_from(ENCODINGS), min_size=2, max_size=4, unique=True),
    together=st.booleans(),
    decision=st.sampled_from([None, "another-study", "same-patient", "reject"]),
)
@pytest.mark.slow
def test_another_patient_in_any_encoding_is_one(
    in_process: Any, encodings: list[str], *, together: bool, decision: str | None
) -> None:
    """However it is written, and sent again, a conflict waits once, is decided once, and never waits again."""
    api, study = in_process, next(NUMBERS)
    sent(api, image(study, 1))
    contents = [encoded(study, one, instance=2, **ROE) for one in encodings]
    for some in [contents] if together else [[one] for one in contents]:
        assert {line["outcome"] for line in sent(api, *some)} <= {"conflict", "comparing"}
    if decision is None:
        compare_all(api)
    assert [(view["kind"], view["files"]) for view in waiting(api) if view["kind"] != "comparing"] == [("patient", 1)]
    (view,) = (view for view in waiting(api) if view["kind"] == "patient")
    assert choose(api, view["id"], decision or "reject", "because").status_code == 200
    compare_all(api)
    before = counts(api)[1]
    assert waiting(api) == []
    sent(api, *(encoded(study, one, instance=2, **ROE) for one in ENCODINGS))
    compare_all(api)
    assert waiting(api) == []
    assert counts(api)[1] == before


@pytest.mark.parametrize("second", ["explicit", "implicit", "deflated", "rle", "jpegls"])
def test_another_patient_in_another_encoding_is_one(in_process: Any, second: str) -> None:
    """Also a conflict waits once: bytes tell what is the same, or a worker does."""
    api = in_process
    sent(api, image(1, 1))
    assert outcomes(sent(api, encoded(1, "other meta", instance=2, **ROE))) == [("conflict", "other-patient")]
    ((outcome, reason),) = outcomes(sent(api, encoded(1, second, instance=2, **ROE)))
    assert (outcome, reason) == (("comparing", "to-be-compared") if second in PACKED else ("conflict", "other-patient"))
    compare_all(api)
    assert [(view["kind"], view["files"]) for view in waiting(api)] == [("patient", 1)]
    assert outcomes(sent(api, encoded(1, second, instance=2, **ROE)))[0][0] in ("conflict", "duplicate")


def test_another_file_of_another_patient_is_another_one(in_process: Any) -> None:
    """In an encoding that only a worker compares, with a letter or a pixel that differs: both wait."""
    api = in_process
    sent(api, image(1, 1))
    sent(api, encoded(1, "explicit", instance=2, **ROE))
    sent(api, encoded(1, "rle", instance=2, **ROE | {"StudyDescription": "HAND"}))
    pixels = dcmread(io.BytesIO(image(1, 2, **ROE)))
    other = pixels.pixel_array.copy()
    other[0, 0] += 1
    set_pixels(pixels, [other], pixels.BitsStored, "jpegls")
    sent(api, written(pixels, SYNTAX["jpegls"], {}))
    compare_all(api)
    assert [(view["kind"], view["files"]) for view in waiting(api)] == [("patient", 3)]


# -- studies from before there were columns -------------------------------------------------------------------------


def test_older_studies_are_filled_from_their_originals(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at a time, from the stored originals; what was filled is not read again, a lost original stops nobody."""
    api = in_process
    told = {"StudyDescription": "Hand 2 views", "PatientSex": "F", "Laterality": "R", "StudyDate": "20250102"}
    lines = [sent(api, image(study, study, **told))[0] for study in range(1, 5)]
    parts = api.http.app.state.parts
    with api.database.transaction() as session:
        session.execute(
            update(StudyRow).values(
                sex="",
                study_date=None,
                study_time=None,
                laterality="",
                views="",
                body_part="",
                header_version=0,
                filled_version=0,
            )
        )
        session.execute(update(InstanceRow).values(laterality="", view="", manufacturer="", model="", description=None))
        for line in lines:
            old = asdict(Identity("DOE^JANE", "4711", "19700101"))
            sealed = parts.vault.seal({name: old[name] for name in ("patient_name", "patient_id", "birth_date")})
            session.execute(
                update(IdentityRow).where(IdentityRow.study_id == UUID(line["study_id"])).values(ciphertext=sealed)
            )
    Path(
        api.settings.store_url.get_secret_value().removeprefix("file:"), original_key(sha256_of(image(4, 4, **told)))
    ).unlink()
    monkeypatch.setattr(prepare, "FILLED_STEP", 1)
    monkeypatch.setattr(prepare, "FILLED_MOST", 2)
    for left in (2, 0, 0):
        prepare.fill_examinations(api.settings, api.database)
        with api.database.transaction() as session:
            assert (
                session.scalar(select(func.count()).select_from(StudyRow).where(StudyRow.filled_version == 0)) == left
            )
    with api.database.transaction() as session:
        rows = session.scalars(select(StudyRow).where(StudyRow.sex != "")).all()
        assert [(row.sex, str(row.study_date), row.laterality, row.views) for row in rows] == [
            ("F", "2025-01-02", "R", "PA")
        ] * 3
        assert {row.manufacturer for row in session.scalars(select(InstanceRow)) if row.manufacturer} == {
            "Osteon samples"
        }
    who = identity(api, lines[0]["study_id"])
    assert (who.patient_name, who.study_description) == ("DOE^JANE", "Hand 2 views")
