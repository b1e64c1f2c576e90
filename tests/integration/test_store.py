"""STOW-RS on real Postgres, Valkey and object stores: PS3.18 10.5 row by row, and clients as they are."""

import io
import json
import socket
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pydicom.uid as uids
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from requests import HTTPError
from sqlalchemy import func, select

from samples.objects import base, pattern_image, set_pixels, to_bytes
from shared.db.tables import InstanceRow, RejectionRow, StudyRow
from shared.errors import StoreUnavailable
from shared.storage import original_key, sha256_of
from tests.conftest import SAMPLES, InProcessApi
from tests.pace import LIMIT_S, until
from tests.served import served

JSON, XML = "application/dicom+json", "application/dicom+xml"
NOISE = b"ZEBRA^QUAGGA is no DICOM file"


def image(number: int = 1, study: int = 1, syntax: str = uids.ExplicitVRLittleEndian, **values: Any) -> bytes:
    """A little radiograph of DOE^JANE, unless the values say otherwise; None removes an attribute."""
    ds = pattern_image(study, f"store/{number}")
    ds.PatientName, ds.PatientID = "DOE^JANE", "4711"
    for name, value in values.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, syntax)


def uids_of(content: bytes) -> tuple[str, str, str, str]:
    """UIDs of class, instance, series and study."""
    ds = dcmread(io.BytesIO(content), stop_before_pixels=True)
    return ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID


def related(*contents: bytes, kind: str = "application/dicom") -> bytes:
    """A multipart/related body, its parts with a Content-Type and nothing else."""
    return b"".join(
        b"--edge\r\nContent-Type: " + kind.encode() + b"\r\n\r\n" + content + b"\r\n" for content in contents
    ) + (b"--edge--\r\n")


RELATED = 'multipart/related; type="application/dicom"; boundary=edge'


def store(
    api: InProcessApi,
    *contents: bytes,
    study: str = "",
    body: bytes | None = None,
    role: str = "submitter",
    **more: str,
) -> Any:
    """POST instances; more: headers, with _ for -."""
    headers = api.headers(role) | {"content-type": RELATED}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    path = f"/dicom-web/studies/{study}" if study else "/dicom-web/studies"
    return api.http.post(path, content=related(*contents) if body is None else body, headers=headers)


def told(response: Any) -> Dataset:
    """The data set of a response in JSON."""
    assert response.headers["content-type"] == JSON
    return Dataset.from_json(response.text)


def referenced(response: Any) -> list[str]:
    """SOP Instance UIDs of what counts as stored; nothing has a warning."""
    whole = told(response)
    items = whole.ReferencedSOPSequence if "ReferencedSOPSequence" in whole else []
    assert not any("WarningReason" in item for item in items)
    return [item.ReferencedSOPInstanceUID for item in items]


def counts(api: InProcessApi) -> tuple[int, int]:
    """Rows of studies and of instances."""
    with api.database.transaction() as session:
        return tuple(session.scalar(select(func.count()).select_from(row)) or 0 for row in (StudyRow, InstanceRow))  # type: ignore[return-value]


# -- what is stored ---------------------------------------------------------------------------------------------------


def test_all_stored(make_api: Callable[..., InProcessApi], store_url: str) -> None:
    """200: each instance is durable, named by its UIDs and with its address; the study's address stands above."""
    api = make_api(store_url=store_url)
    contents = [image(1), image(2)]
    response = store(api, *contents)
    assert response.status_code == 200
    whole = told(response)
    study = uids_of(contents[0])[3]
    assert whole.RetrieveURL == f"http://testserver/dicom-web/studies/{study}"
    for item, content in zip(whole.ReferencedSOPSequence, contents, strict=True):
        sop_class, instance, series, _ = uids_of(content)
        assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (sop_class, instance)
        assert item.RetrieveURL == f"{whole.RetrieveURL}/series/{series}/instances/{instance}"
    assert "FailedSOPSequence" not in whole
    assert "OtherFailuresSequence" not in whole
    assert counts(api) == (1, 2)
    assert api.http.get("/api/v1/arrivals?since=2020-01-01T00:00:00Z", headers=api.headers()).json()
    store_of = api.http.app.state.parts.store  # type: ignore[attr-defined]
    assert all(store_of.exists(original_key(sha256_of(content))) for content in contents)


def test_what_was_stored_before_counts_as_stored(in_process: InProcessApi) -> None:
    """A duplicate is listed as stored, without a warning: mercure fails unless each instance that it sent is listed."""
    for _ in range(2):
        response = store(in_process, image(1), image(1), image(2))
        assert response.status_code == 200
        assert referenced(response) == [uids_of(one)[1] for one in (image(1), image(1), image(2))]
    assert counts(in_process) == (1, 2)


def compressed(content: bytes) -> bytes:
    """The same image as JPEG-LS."""
    ds = dcmread(io.BytesIO(content))
    pixels = ds.pixel_array
    set_pixels(ds, [pixels], 8, "jpegls")
    return to_bytes(ds, uids.JPEGLSLossless)


def brighter(content: bytes) -> bytes:
    """The same header with other pixels."""
    ds = dcmread(io.BytesIO(content))
    ds.PixelData = bytes(len(ds.PixelData))
    return to_bytes(ds, uids.ExplicitVRLittleEndian)


@pytest.mark.parametrize(
    "again",
    [
        compressed(image(1)),
        image(1, syntax=uids.ImplicitVRLittleEndian),
        image(1, PatientName="DOE^JANE^ANN"),
        brighter(image(1)),
        image(2, PatientName="ROE^RICHARD", PatientID="0815"),
    ],
    ids=["another syntax", "implicit", "a corrected name", "other pixels", "another patient"],
)
def test_what_an_administrator_decides_on_counts_as_stored(in_process: InProcessApi, again: bytes) -> None:
    """No sender repeats it for ever: 200, listed as stored, and the image that stands is as before."""
    assert store(in_process, image(1)).status_code == 200
    for _ in range(2):
        response = store(in_process, again)
        assert response.status_code == 200
        assert referenced(response) == [uids_of(again)[1]]
    assert counts(in_process) == (1, 1)


def test_bodies_as_clients_send_them(in_process: InProcessApi) -> None:
    """One instance alone, parts as octets, a preamble, an epilogue, quotes or none."""
    alone = store(in_process, body=image(1), content_type="application/dicom")
    octets = store(in_process, body=related(image(2), kind="application/octet-stream"))
    framed = store(
        in_process,
        body=b"A message in parts.\r\n\r\n" + related(image(3)) + b"The end.",
        content_type='multipart/related;boundary="edge";type=application/dicom',
    )  # fmt: skip
    for number, response in enumerate([alone, octets, framed], start=1):
        assert (response.status_code, referenced(response)) == (200, [uids_of(image(number))[1]])


# -- what is not stored -------------------------------------------------------------------------------------------------


def archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.dcm", image(1))
    return packed.getvalue()


def directory() -> bytes:
    """A DICOMDIR, as on a patient's disc."""
    ds = base(1, "CR", "store/dir", uids.MediaStorageDirectoryStorage, "CR")
    return to_bytes(ds, uids.ExplicitVRLittleEndian)


KNOWN = {  # what is wrong, the content, Failure Reason; its UIDs can be read
    "rows missing": (image(9, Rows=None), 0xA900),
    "no pixels": (image(9, PixelData=None), 0xA900),
    "an unknown transfer syntax": (image(9).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.2.1\0"), 0xC122),
    "cut within its header": (image(9)[:600], 0xC000),
    "cut within its pixels": (image(9)[:-9000], 0xC005),
    "a DICOMDIR": (directory(), 0x0122),
}
UNKNOWN = {  # its UIDs cannot be read
    "noise": (NOISE, 0xC002),
    "nothing": (b"", 0xC001),
    "an archive": (archive(), 0xC004),
    "cut within its meta information": (image(9)[:150], 0xC003),
}


@pytest.mark.parametrize("what", [*KNOWN, *UNKNOWN])
def test_good_and_bad_parts_together(in_process: InProcessApi, what: str) -> None:
    """202: each good one is stored, each bad one named with its reason; alone, the bad one is answered with 409."""
    content, reason = (KNOWN | UNKNOWN)[what]
    response = store(in_process, image(1), content, image(2))
    assert response.status_code == 202
    assert referenced(response) == [uids_of(image(1))[1], uids_of(image(2))[1]]
    for told_of in (response, store(in_process, content)):
        whole = told(told_of)
        sequence, other = "FailedSOPSequence", "OtherFailuresSequence"
        if what in UNKNOWN:
            sequence, other = other, sequence
        (item,) = whole[sequence].value
        assert other not in whole
        assert item.FailureReason == reason
        assert item.ErrorComment.startswith("part 2: " if told_of is response else "part 1: ")
        if what in KNOWN:
            assert item.ReferencedSOPInstanceUID == dcmread(io.BytesIO(content), force=True).SOPInstanceUID
        assert "ZEBRA" not in told_of.text
    assert told_of.status_code == 409
    assert "ReferencedSOPSequence" not in whole
    assert counts(in_process) == (1, 2)


def test_instances_of_another_study(in_process: InProcessApi) -> None:
    """At a study's address those of another one fail with A901; if all do, 409, and nothing is stored."""
    study = uids_of(image(1))[3]
    response = store(in_process, image(1), image(1, study=2), study=study)
    assert response.status_code == 202
    assert referenced(response) == [uids_of(image(1))[1]]
    (item,) = told(response).FailedSOPSequence
    assert (item.ReferencedSOPInstanceUID, item.FailureReason) == (uids_of(image(1, study=2))[1], 0xA901)
    response = store(in_process, image(2), study="1.2.3")
    assert response.status_code == 409
    assert "ReferencedSOPSequence" not in told(response)
    assert counts(in_process) == (1, 1)
    response = store(in_process, NOISE, image(2), study=study)  # what has no UID fails for its own reason
    assert [item.FailureReason for item in told(response).OtherFailuresSequence] == [0xC002]


def test_administrators_see_what_failed(in_process: InProcessApi) -> None:
    """What fails for its address or as an archive stands among the rejections, as what the intake refuses."""
    store(in_process, NOISE, archive(), image(1), study="1.2.3")

    def noted() -> set[tuple[str, str]]:
        with in_process.database.transaction() as session:
            return {(row.reason, row.failure) for row in session.scalars(select(RejectionRow))}

    wanted = {("not-dicom", "0xC002"), ("bad-archive", "0xC004"), ("bad-attributes", "0xA901")}
    until(lambda: noted() == wanted, LIMIT_S)


@pytest.mark.parametrize(
    ("content_type", "body", "status", "words"),
    [
        ('multipart/related; type="application/dicom"', related(image()), 400, "boundary"),
        (RELATED, b"--edge--\r\n", 400, "no part"),
        (RELATED, related(image())[:-9], 400, "cut short"),
        (RELATED, b"", 400, "cut short"),
        ("multipart/form-data; boundary=edge", related(image()), 415, "multipart/related"),
        ('multipart/related; type="application/dicom+json"; boundary=edge', related(b"[]"), 415, "multipart/related"),
        ("application/json", b"[]", 415, "multipart/related"),
    ],
)
def test_requests_that_cannot_be_read(
    in_process: InProcessApi, content_type: str, body: bytes, status: int, words: str
) -> None:
    """400 for a broken body, 415 for another type; nothing is stored, and the sentence says what to do."""
    response = store(in_process, body=body, content_type=content_type)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert words in response.json()["detail"]
    assert counts(in_process) == (0, 0)


def chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


def test_what_is_too_large(make_api: Callable[..., InProcessApi]) -> None:
    """413: by the length that is declared, by what comes in chunks, and by the number of instances."""
    api = make_api(max_request_bytes=40_000, max_request_files=2)
    body = related(image(1), image(2), image(3))
    assert store(api, body=body).status_code == 413
    headers = api.headers("submitter") | {"Content-Type": RELATED}
    with served(api.http.app) as port:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{port}/dicom-web/studies"
        response = httpx.post(url, content=chunks(body), headers=headers, trust_env=False, timeout=LIMIT_S)
        assert response.status_code == 413
    assert store(api, NOISE, NOISE, NOISE).status_code == 413
    assert store(api, image(1), content_encoding="gzip").status_code == 415
    large = store(make_api(max_file_bytes=10_000), image(1))
    assert told(large).FailedSOPSequence[0].FailureReason == 0xA700


def test_quota_and_room(make_api: Callable[..., InProcessApi]) -> None:
    """429 and 503, each with Retry-After, before the body is taken in; as POST /api/v1/studies."""
    response = store(make_api(key_bytes_per_hour=10_000), image(1))
    assert (response.status_code, int(response.headers["retry-after"]) > 0) == (429, True)
    response = store(make_api(max_spool_bytes=10_000), image(1))
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


def test_a_store_that_does_not_answer(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with Retry-After, and nothing counts as stored."""
    parts = in_process.http.app.state.parts  # type: ignore[attr-defined]
    gone = replace(parts, store=make_broken(parts.store))
    monkeypatch.setattr(in_process.http.app.state, "parts", gone)  # type: ignore[attr-defined]
    response = store(in_process, image(1))
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert counts(in_process) == (0, 0)


def make_broken(store_of: Any) -> Any:
    """A store to which nothing can be written."""

    class Broken:
        takes_files = False

        def __getattr__(self, name: str) -> Any:
            return getattr(store_of, name)

        def put(self, *_: object) -> None:
            raise StoreUnavailable

    return Broken()


# -- the response -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", JSON),
        ("application/dicom+json", JSON),
        ("application/dicom+json, application/json, */*", JSON),
        ("application/json", "application/json"),
        (XML, XML),
        ("application/dicom+xml; charset=utf-8", XML),
        ("application/dicom+json;q=0.9, application/dicom+xml", XML),
        ("text/plain", None),
        ("multipart/related; type=application/dicom", None),
    ],
    ids=["curl and dicomweb-client", "OHIF", "axios", "json", "Weasis", "xml with a charset", "xml before json", "text", "dicom"],
)  # fmt: skip
def test_the_form_that_a_client_accepts(in_process: InProcessApi, accept: str, kind: str | None) -> None:
    """JSON unless XML is wanted, its Content-Type without a parameter; 406 before the body is read if it is neither."""
    response = store(in_process, image(1), NOISE, accept=accept)
    if kind is None:
        assert (response.status_code, counts(in_process)) == (406, (0, 0))
        assert "application/dicom+json" in response.json()["detail"]
        return
    assert (response.status_code, response.headers["content-type"]) == (202, kind)
    if kind == XML:
        assert b'<DicomAttribute tag="00081199" vr="SQ" keyword="ReferencedSOPSequence">' in response.content
    else:
        assert set(json.loads(response.content)) == {"00081190", "00081199", "0008119A"}


def test_the_same_key_and_content_get_the_same_response(in_process: InProcessApi) -> None:
    """Idempotency-Key, an extension: the first response is repeated, bad parts included, and says so."""
    first, second = (store(in_process, image(1), NOISE, idempotency_key="one") for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.content == second.content
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers


def test_the_key_comes_before_the_body(in_process: InProcessApi) -> None:
    """Without a key, or with one that may not send, the answer comes before a byte of the body, and the line is closed."""
    for headers, status in (({}, b"401"), (in_process.headers("radiologist"), b"403")):
        with served(in_process.http.app) as port, socket.create_connection(("127.0.0.1", port)) as line:  # type: ignore[arg-type]
            line.settimeout(LIMIT_S)
            head = {"Host": "localhost", "Content-Type": RELATED, "Content-Length": str(10**9)} | headers
            line.sendall(
                b"POST /dicom-web/studies HTTP/1.1\r\n"
                + b"".join(f"{name}: {value}\r\n".encode() for name, value in head.items())
                + b"\r\n"
            )
            came = b""
            while piece := line.recv(65536):
                came += piece
        assert came.split(b" ", 2)[1] == status
        assert b"connection: close" in came.lower()


# -- dicomweb-client, as it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [10**6, 1000], ids=["whole", "chunked"])
def test_dicomweb_client_stores(in_process: InProcessApi, chunk_size: int) -> None:
    """The client of highdicom and Slicer: instances in one body, with a length or in chunks without one."""
    with served(in_process.http.app) as port:  # type: ignore[arg-type]
        client = DICOMwebClient(
            f"http://127.0.0.1:{port}/dicom-web", headers=in_process.headers("submitter"), chunk_size=chunk_size
        )
        paths = sorted((SAMPLES / "studies" / "01-hand").glob("*.dcm"))
        sent = [dcmread(path) for path in paths]
        whole = client.store_instances(sent)
        assert [item.ReferencedSOPInstanceUID for item in whole.ReferencedSOPSequence] == [
            one.SOPInstanceUID for one in sent
        ]
        whole = client.store_instances(sent[:1], study_instance_uid=sent[0].StudyInstanceUID)
        assert len(whole.ReferencedSOPSequence) == 1
        with pytest.raises(HTTPError, match="409"):
            client.store_instances(sent[:1], study_instance_uid="1.2.3")
        broken = dcmread(paths[0])
        del broken.Rows
        broken.SOPInstanceUID = broken.file_meta.MediaStorageSOPInstanceUID = uids.UID("1.2.3.4")
        whole = client.store_instances([sent[0], broken])
        assert [item.ReferencedSOPInstanceUID for item in whole.FailedSOPSequence] == ["1.2.3.4"]
    assert counts(in_process) == (1, 2)
