"""WADO-RS on real Postgres and object stores: what was stored comes back, in the forms that clients accept."""

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import imagecodecs
import numpy as np
import pydicom.uid as uids
import pytest
import redis
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from sqlalchemy import func, select

from samples.objects import pattern_image, to_bytes
from shared.db.tables import IdentityReadRow, InstanceRow, SeriesRow, StudyRow
from shared.errors import Cause, Reason
from shared.queue.celery_app import FRAMES, RAW_FRAME
from shared.storage import metadata_key, original_key, preview_key, raw_frame_key, sha256_of
from tests.conftest import SAMPLES, InProcessApi
from tests.pace import LIMIT_S
from tests.served import served
from worker.frames import refusal
from worker.tasks import Engine

STUDIES = SAMPLES / "studies"
OHIF_FRAMES = "multipart/related; type=application/octet-stream; transfer-syntax=*"
WEASIS = 'multipart/related;type="application/dicom";transfer-syntax=*'


def image(number: int = 1, syntax: str = uids.ExplicitVRLittleEndian, **values: Any) -> bytes:
    """A little radiograph of DOE^JANE."""
    ds = pattern_image(1, f"retrieve/{number}")
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.IssuerOfPatientID = "DOE^JANE", "4711", "19700101", ""
    for name, value in values.items():
        setattr(ds, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, syntax)


def path_of(content: bytes, level: str = "instance") -> str:
    """The path of what a file belongs to."""
    ds = dcmread(io.BytesIO(content), stop_before_pixels=True)
    path = f"/dicom-web/studies/{ds.StudyInstanceUID}"
    if level != "study":
        path += f"/series/{ds.SeriesInstanceUID}"
    return path + (f"/instances/{ds.SOPInstanceUID}" if level == "instance" else "")


def sent(api: InProcessApi, *contents: bytes) -> None:
    response = api.post({f"{number}.dcm": content for number, content in enumerate(contents)})
    assert response.status_code == 200, response.text


def got(api: InProcessApi, path: str, accept: str = "*/*", role: str = "radiologist") -> Any:
    return api.http.get(path, headers=api.headers(role) | {"accept": accept})


def parts_of(response: Any, kind: str) -> list[tuple[str, bytes]]:
    """Content-Type and content of each part."""
    assert response.status_code == 200, response.text
    found = re.fullmatch(rf'multipart/related; type="{kind}"; boundary=(\w+)', response.headers["content-type"])
    assert found, response.headers["content-type"]
    boundary = b"--" + found[1].encode()
    body = response.content
    assert body.startswith(boundary + b"\r\n")
    assert body.endswith(b"\r\n" + boundary + b"--\r\n")
    parts = []
    for part in body[: -len(boundary) - 6].split(boundary + b"\r\n")[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        parts.append((head.decode().removeprefix("Content-Type: "), content.removesuffix(b"\r\n")))
    return parts


def identities_read(api: InProcessApi) -> int:
    with api.database.transaction() as session:
        return session.scalar(select(func.count()).select_from(IdentityReadRow)) or 0


# -- objects ----------------------------------------------------------------------------------------------------------


def test_what_was_stored_comes_back(make_api: Callable[..., InProcessApi], store_url: str) -> None:
    """Byte for byte: a study, a series and an instance in parts, an instance alone; each reading is audited."""
    api = make_api(store_url=store_url)
    contents = [image(1), image(2, uids.ImplicitVRLittleEndian)]
    sent(api, *contents)
    for level in ("study", "series"):
        response = got(api, path_of(contents[0], level), WEASIS)
        assert sorted(parts_of(response, "application/dicom")) == sorted(("application/dicom", one) for one in contents)
    response = got(api, path_of(contents[1]), WEASIS)
    assert parts_of(response, "application/dicom") == [("application/dicom", contents[1])]
    alone = got(api, path_of(contents[1]), "application/dicom; transfer-syntax=*")
    assert (alone.headers["content-type"], alone.content) == ("application/dicom", contents[1])
    assert identities_read(api) == 4


@pytest.mark.parametrize(
    ("accept", "study", "instance"),
    [
        ("*/*", 200, 200),
        ('multipart/related; type="application/dicom"', 200, 200),
        ("multipart/related; type=application/dicom", 200, 200),
        ("multipart/related", 200, 200),
        (WEASIS, 200, 200),
        ('multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1', 200, 200),
        ('multipart/related; type="application/dicom"; transfer-syntax="1.2.840.10008.1.2.4.70"', 406, 406),
        ("application/dicom", 406, 200),
        ("application/dicom;transfer-syntax=1.2.840.10008.1.2.4.70", 406, 406),
        ("application/dicom+json", 406, 406),
        ("multipart/related; type=image/jpeg", 406, 406),
        ("text/html", 406, 406),
    ],
)
def test_what_clients_accept_of_objects(in_process: InProcessApi, accept: str, study: int, instance: int) -> None:
    """As they are stored; 406 says so, and leaves no audit row where nothing could have fitted."""
    sent(in_process, image(1))
    assert got(in_process, path_of(image(1), "study"), accept).status_code == study
    assert got(in_process, path_of(image(1)), accept).status_code == instance


def test_what_is_not_there(in_process: InProcessApi) -> None:
    """404 for what the site does not have, 410 for an object whose bytes are gone, 403 for who may not read."""
    sent(in_process, image(1))
    path = path_of(image(1))
    for wrong in ("/dicom-web/studies/1.2.3", path + "9", path.replace("/series/", "/series/9")):
        assert got(in_process, wrong).status_code == 404
    assert got(in_process, path, role="submitter").status_code == 403
    in_process.http.app.state.parts.store.remove([original_key(sha256_of(image(1)))])  # type: ignore[attr-defined]
    for gone in (path, path_of(image(1), "study"), f"{path}/frames/1"):
        assert got(in_process, gone).status_code == 410


def test_the_order_of_a_series(in_process: InProcessApi) -> None:
    """By Instance Number."""
    contents = [image(number, InstanceNumber=4 - number) for number in (1, 2, 3)]
    sent(in_process, *contents)
    found = parts_of(got(in_process, path_of(contents[0], "series")), "application/dicom")
    assert [content for _, content in found] == contents[::-1]


def test_memory_stays_flat(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first bytes come before the object is read, and no more than a piece of it is read at a time."""
    large = image(1, Rows=2500, Columns=2000, PixelData=bytes(5_000_000))
    sent(in_process, large)
    store = in_process.http.app.state.parts.store  # type: ignore[attr-defined]
    sizes, get = [], store.get

    def counted(key: str, most: int | None = None, start: int = 0) -> bytes:
        sizes.append(most)
        data: bytes = get(key, most, start)
        return data

    monkeypatch.setattr(store, "get", counted)
    assert parts_of(got(in_process, path_of(large)), "application/dicom") == [("application/dicom", large)]
    assert all(size is not None and size <= 2**20 for size in sizes)


def test_an_object_that_is_gone_midway_cuts_the_response(in_process: InProcessApi) -> None:
    """Nobody takes half a study for a whole one: the closing boundary never comes."""
    contents = [image(1, InstanceNumber=1), image(2, InstanceNumber=2)]
    sent(in_process, *contents)
    in_process.http.app.state.parts.store.remove([original_key(sha256_of(contents[1]))])  # type: ignore[attr-defined]
    with served(in_process.http.app) as port:  # type: ignore[arg-type]
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(
                f"http://127.0.0.1:{port}{path_of(contents[0], 'study')}",
                headers=in_process.headers("radiologist"),
                trust_env=False,
            )


# -- frames -----------------------------------------------------------------------------------------------------------

COMPRESSED = {
    str(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID): path
    for path in sorted(STUDIES.rglob("*.dcm"))
}
KINDS = {
    uids.JPEGLSLossless: "image/jls",
    uids.JPEGLSNearLossless: "image/jls",
    uids.JPEG2000Lossless: "image/jp2",
    uids.JPEG2000: "image/jp2",
    uids.JPEGLosslessSV1: "image/jpeg",
    uids.JPEGBaseline8Bit: "image/jpeg",
    uids.RLELossless: "image/dicom-rle",
}


def frames_of(path: Path) -> list[bytes]:
    """The frames as pydicom finds them."""
    ds = dcmread(path)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        return list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1) or 1)))
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    size = ds.Rows * ds.Columns * ds.BitsAllocated // 8
    return [ds.PixelData[number * size : (number + 1) * size] for number in range(frames)]


@pytest.mark.parametrize("path", [COMPRESSED[syntax] for syntax in COMPRESSED if syntax != uids.DeflatedExplicitVRLittleEndian], ids=lambda path: path.name)  # fmt: skip
def test_frames_in_the_stored_syntax(in_process: InProcessApi, path: Path) -> None:
    """OHIF's request, for each syntax of the samples: the bytes of the frames, with the syntax and its media type."""
    content = path.read_bytes()
    sent(in_process, content)
    syntax = uids.UID(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID)
    kind = KINDS.get(syntax, "application/octet-stream")
    told = f"{kind}; transfer-syntax={syntax if syntax in KINDS else uids.ExplicitVRLittleEndian}"
    frames = frames_of(path)
    numbers = ",".join(str(number + 1) for number in range(len(frames)))
    response = got(in_process, f"{path_of(content)}/frames/{numbers}", OHIF_FRAMES)
    assert parts_of(response, kind) == [(told, frame) for frame in frames]
    alone = got(in_process, f"{path_of(content)}/frames/1", f"{kind}; transfer-syntax=*")
    assert (alone.headers["content-type"], alone.content) == (told, frames[0])
    assert identities_read(in_process) == 0


@pytest.mark.parametrize(
    ("frames", "status"), [("1", 200), ("1,1", 200), ("2", 404), ("0", 400), ("1,", 400), ("x", 400), ("1-2", 400)]
)
def test_numbers_of_frames(in_process: InProcessApi, frames: str, status: int) -> None:
    """A list of numbers from 1; what the image lacks is not there, what is no list is a bad request."""
    sent(in_process, image(1))
    assert got(in_process, f"{path_of(image(1))}/frames/{frames}", OHIF_FRAMES).status_code == status


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (OHIF_FRAMES, 200),
        ('multipart/related; type="application/octet-stream"; transfer-syntax="*"', 200),
        ('multipart/related; type="application/octet-stream"', 200),
        ("multipart/related; type=application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", 200),
        ("multipart/related; type=application/octet-stream; transfer-syntax=1.2.840.10008.1.2.2", 406),
        ('multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80', 406),
        ('multipart/related; type="image/jls"; q=1, multipart/related; type="application/octet-stream"; q=0.5', 200),
        ("application/octet-stream", 200),
        ("image/jpeg", 406),
        ("*/*", 200),
    ],
)
def test_what_clients_accept_of_uncompressed_frames(in_process: InProcessApi, accept: str, status: int) -> None:
    """Uncompressed frames are octets in Explicit VR Little Endian, and nothing else."""
    sent(in_process, image(1, uids.ImplicitVRLittleEndian))
    response = got(in_process, f"{path_of(image(1))}/frames/1", accept)
    assert response.status_code == status, response.text


ELSEWHERE = {  # what pydicom decodes with further libraries alone
    uids.JPEGLSLossless: imagecodecs.jpegls_decode,
    uids.JPEGLSNearLossless: imagecodecs.jpegls_decode,
    uids.JPEGLosslessSV1: imagecodecs.ljpeg_decode,
}


@pytest.fixture
def worker(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[UUID, int]]]:
    """A worker that makes the frames that it is asked for, and what it was asked for."""
    engine = Engine(in_process.settings.model_copy(update={"decoders": 1}))
    asked: list[tuple[UUID, int]] = []
    with ThreadPoolExecutor(2) as pool:

        def ask(instance_id: UUID, frame: int, *, raw: bool = False) -> None:
            assert raw
            if (instance_id, frame) not in asked:
                asked.append((instance_id, frame))
                pool.submit(engine.full_frame, instance_id, frame, raw=True)

        monkeypatch.setattr(in_process.http.app.state.parts.publisher, "ask_frame", ask)  # type: ignore[attr-defined]
        monkeypatch.setattr("api.dicomweb.frames.FRAME_WAIT_S", LIMIT_S)
        yield asked
    engine.close()


@pytest.mark.usefixtures("forked_decoders")
@pytest.mark.parametrize(
    "syntax",
    [syntax for syntax in COMPRESSED if syntax not in (uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian)],
    ids=lambda syntax: uids.UID(syntax).name,
)
def test_uncompressed_frames(in_process: InProcessApi, worker: list[Any], syntax: str) -> None:
    """Explicit VR Little Endian where a client names it, or no transfer syntax: the stored values."""
    content = COMPRESSED[syntax].read_bytes()
    sent(in_process, content)
    ds = dcmread(io.BytesIO(content))
    decode = ELSEWHERE.get(uids.UID(syntax))
    frames = [decode(frame) for frame in frames_of(COMPRESSED[syntax])] if decode else ds.pixel_array
    pixels = np.asarray(frames).reshape(-1, ds.Rows, ds.Columns)
    wanted = [frame.astype(f"<u{ds.BitsAllocated // 8}").tobytes() for frame in pixels]
    numbers = ",".join(str(number + 1) for number in range(len(wanted)))
    told = "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
    for accept in (
        'multipart/related; type="application/octet-stream"',
        "multipart/related; type=application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1",
    ):
        response = got(in_process, f"{path_of(content)}/frames/{numbers}", accept)
        assert parts_of(response, "application/octet-stream") == [(told, frame) for frame in wanted]
    assert len(worker) == len(wanted)  # the second time they are there
    alone = got(in_process, f"{path_of(content)}/frames/1", "application/octet-stream")
    assert (alone.headers["content-type"], alone.content) == (told, wanted[0])


@pytest.mark.usefixtures("forked_decoders")
def test_frames_that_no_worker_can_make(in_process: InProcessApi, worker: list[Any]) -> None:
    """406 with the reason, and at once when they are asked for again."""
    content = COMPRESSED[uids.JPEGLSLossless].read_bytes()
    sent(in_process, content)
    with in_process.database.transaction() as session:
        sha256 = session.scalar(select(InstanceRow.sha256))
    refused = refusal(Cause(Reason.UNDECODABLE_PIXELS), heals=False)
    in_process.http.app.state.parts.store.put(raw_frame_key(str(sha256), 1), io.BytesIO(refused), len(refused))  # type: ignore[attr-defined]
    response = got(in_process, f"{path_of(content)}/frames/1", "application/octet-stream")
    assert response.status_code == 406
    assert "damaged" in response.json()["detail"]
    assert worker == []


def test_no_worker_in_time(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with Retry-After, and a message that a worker finds later; one only, however long the wait."""
    monkeypatch.setattr("api.dicomweb.frames.FRAME_WAIT_S", 0.3)
    content = COMPRESSED[uids.JPEGLSLossless].read_bytes()
    sent(in_process, content)
    response = got(in_process, f"{path_of(content)}/frames/1", "application/octet-stream")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    client = redis.Redis.from_url(in_process.settings.broker_url.get_secret_value())
    with client:
        (message,) = [json.loads(one) for one in client.lrange(FRAMES, 0, -1)]
    assert message["headers"]["task"] == RAW_FRAME


# -- pictures ---------------------------------------------------------------------------------------------------------


def previewed(api: InProcessApi, content: bytes, size: tuple[int, int] = (400, 300)) -> bytes:
    """Store an image, and a preview of it as a worker makes it."""
    sent(api, content)
    out = io.BytesIO()
    Image.new("L", size, 77).save(out, "JPEG")
    api.http.app.state.parts.store.put(  # type: ignore[attr-defined]
        preview_key(sha256_of(content), 1), io.BytesIO(out.getvalue()), len(out.getvalue())
    )
    return out.getvalue()


def test_rendered_images(in_process: InProcessApi) -> None:
    """The preview itself, or as PNG, or fitted into a viewport; never enlarged."""
    preview, path = previewed(in_process, image(1)), path_of(image(1))
    for accept in ("image/jpeg", "*/*", "image/*", "image/jpeg, image/png"):
        response = got(in_process, f"{path}/rendered", accept)
        assert (response.headers["content-type"], response.content) == ("image/jpeg", preview)
    png = got(in_process, f"{path}/frames/1/rendered", "image/png")
    assert (Image.open(io.BytesIO(png.content)).format, png.headers["content-type"]) == ("PNG", "image/png")
    for viewport, size in (("200,200", (200, 150)), ("100,30", (40, 30)), ("9999,9999", (400, 300))):
        response = got(in_process, f"{path}/rendered?viewport={viewport}", "image/jpeg")
        assert Image.open(io.BytesIO(response.content)).size == size
    assert got(in_process, f"{path}/rendered", "image/gif").status_code == 406
    assert got(in_process, f"{path}/rendered?viewport=0,5").status_code == 400
    assert got(in_process, f"{path}/rendered?viewport=ZEBRA").status_code == 400
    assert got(in_process, f"{path}/frames/2/rendered").status_code == 404
    windowed = got(in_process, f"{path}/rendered?window=40,400,linear")
    assert "299" in windowed.headers["warning"]
    assert identities_read(in_process) == 0


def test_thumbnails(in_process: InProcessApi) -> None:
    """Weasis asks for a series' thumbnail with a viewport; a study and an instance have one, too."""
    previewed(in_process, image(1))
    for level in ("study", "series", "instance"):
        response = got(in_process, f"{path_of(image(1), level)}/thumbnail?viewport=100,100", "image/jpeg")
        assert Image.open(io.BytesIO(response.content)).size == (100, 75)
    assert Image.open(io.BytesIO(got(in_process, f"{path_of(image(1))}/thumbnail").content)).size == (200, 150)


def test_pictures_that_are_not_there(in_process: InProcessApi) -> None:
    """503 while an image waits for its analysis, so that viewers ask again; 404 with the reason once it failed."""
    sent(in_process, image(1))
    response = got(in_process, f"{path_of(image(1))}/rendered")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    with in_process.database.transaction() as session:
        for row in session.scalars(select(InstanceRow)):
            row.error_reason = Reason.UNDECODABLE_PIXELS
    response = got(in_process, f"{path_of(image(1), 'series')}/thumbnail")
    assert response.status_code == 404
    assert "damaged" in response.json()["detail"]


def document(content: bytes, named: str = "application/pdf", **values: Any) -> bytes:
    """An encapsulated document of DOE^JANE, as archives keep it: of an even length."""
    ds = dcmread(io.BytesIO(image(1)))
    for keyword in ("PixelData", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uids.EncapsulatedPDFStorage
    ds.Modality, ds.MIMETypeOfEncapsulatedDocument, ds.EncapsulatedDocumentLength = "DOC", named, len(content)
    ds.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    for name, value in values.items():
        setattr(ds, name, value)
    return to_bytes(ds, uids.ExplicitVRLittleEndian)


@pytest.mark.parametrize("size", [37, 5000, 5001])
def test_pdfs_are_shown(in_process: InProcessApi, size: int) -> None:
    """As a browser asks for what is in a page's <object>; a page of the same origin may show it, also an isolated one."""
    content = (b"%PDF-1.7\n" + b"x" * size)[:size]
    sent(in_process, document(content))
    path = path_of(document(content))
    for accept in ("text/html,application/xhtml+xml,image/webp,*/*;q=0.8", "application/pdf", "*/*", "application/*"):
        response = got(in_process, f"{path}/rendered", accept)
        assert (response.status_code, response.content) == (200, content), response.text
        assert response.headers["content-type"] == "application/pdf"
    bulk = got(in_process, f"{path}/bulk/00420011", "application/pdf")
    assert bulk.content == content + b"\0" * (size % 2)
    for shown in (response, bulk):
        policy = dict(part.strip().split(" ", 1) for part in shown.headers["content-security-policy"].split(";"))
        assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'self'")
        assert shown.headers["x-frame-options"] == "SAMEORIGIN"
        assert shown.headers["cross-origin-embedder-policy"] == "require-corp"
        assert shown.headers["cross-origin-resource-policy"] == "same-origin"
        assert shown.headers["x-content-type-options"] == "nosniff"
    assert identities_read(in_process) == 5
    assert got(in_process, f"{path}/rendered", "image/jpeg").status_code == 406
    for below in ("frames/1/rendered", "thumbnail"):
        assert got(in_process, f"{path}/{below}").status_code == 404
    assert got(in_process, f"{path}/rendered", role="submitter").status_code == 403


@pytest.mark.parametrize(
    "values",
    [
        {"named": "text/html"},
        {"named": "text/html\r\nX-Other: 1"},
        {"named": ""},
        {"named": "application/pdf\\text/html"},
    ],
)
def test_other_documents_are_not_shown(in_process: InProcessApi, values: dict[str, str]) -> None:
    """A browser would run them as pages of this host."""
    content = document(b"<script>1</script>", **values)
    sent(in_process, content)
    response = got(in_process, f"{path_of(content)}/rendered")
    assert response.status_code == 404
    assert response.headers["x-frame-options"] == "DENY"
    bulk = got(in_process, f"{path_of(content)}/bulk/00420011", "application/octet-stream")
    assert (bulk.headers["content-type"], bulk.headers["x-frame-options"]) == ("application/octet-stream", "DENY")


@pytest.mark.parametrize("length", [0, 3, 1 << 31, [1, 2], None])
def test_a_wrong_length_of_a_pdf_takes_nothing_away(in_process: InProcessApi, length: Any) -> None:
    """Only the one byte that makes a length even is left out."""
    content = document(b"%PDF-1.7\n" + b"x" * 3001, EncapsulatedDocumentLength=length)
    sent(in_process, content)
    assert got(in_process, f"{path_of(content)}/rendered").content == b"%PDF-1.7\n" + b"x" * 3001


def test_a_document_that_is_gone(in_process: InProcessApi) -> None:
    """410, as for any object that is gone, with metadata and without; 404 if it has no document."""
    content = document(b"%PDF-1.7\n" + b"x" * 3000)
    sent(in_process, content)
    store = in_process.http.app.state.parts.store  # type: ignore[attr-defined]
    path = path_of(content)
    assert got(in_process, f"{path}/rendered").status_code == 200
    store.remove([original_key(sha256_of(content))])
    assert got(in_process, f"{path}/rendered").status_code == 410
    store.remove([metadata_key(sha256_of(content))])
    for below in ("rendered", "bulk/00420011"):
        assert got(in_process, f"{path}/{below}").status_code == 410


# -- decisions --------------------------------------------------------------------------------------------------------


def decide(api: InProcessApi, decision: str) -> None:
    (held,) = api.http.get("/api/v1/held-files", headers=api.headers()).json()["waiting"]
    body = {"decision": decision, "reason": "decided in a test"}
    response = api.http.post(f"/api/v1/held-files/{held['id']}/decision", json=body, headers=api.headers())
    assert response.status_code == 200, response.text


def alone(api: InProcessApi, path: str) -> Dataset:
    """An instance as it is retrieved now."""
    response = got(api, path, "application/dicom")
    assert response.status_code == 200, response.text
    return dcmread(io.BytesIO(response.content))


@pytest.mark.parametrize(
    "syntax", [uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian, uids.DeflatedExplicitVRLittleEndian]
)
def test_an_applied_correction_shows_in_all_images_of_the_study(in_process: InProcessApi, syntax: str) -> None:
    """The corrected image is the corrected object; the study's others say what it says, and what they said before."""
    sent(in_process, image(1), image(2, syntax, PatientSex="F"))
    corrected = image(1, PatientName="MÜLLER^ÄNNE", PatientID="4712", SpecificCharacterSet="ISO_IR 192")
    sent(in_process, corrected)
    before = alone(in_process, path_of(image(2)))
    decide(in_process, "apply")
    assert got(in_process, path_of(image(1)), "application/dicom").content == corrected
    now = alone(in_process, path_of(image(2)))
    assert (str(now.PatientName), now.PatientID) == ("MÜLLER^ÄNNE", "4712")
    assert now.file_meta.TransferSyntaxUID == syntax
    assert now.PixelData == before.PixelData
    (original,) = now.OriginalAttributesSequence
    (said,) = original.ModifiedAttributesSequence
    assert (str(said.PatientName), said.PatientID, original.ModifyingSystem) == ("DOE^JANE", "4711", "OSTEON")
    kept = {one.tag for one in before} - {before["PatientName"].tag, before["PatientID"].tag}
    kept.discard(before["SpecificCharacterSet"].tag)
    assert all(now[tag].value == before[tag].value for tag in kept)


def test_an_image_of_another_patient_is_found_under_its_new_study(in_process: InProcessApi) -> None:
    """What an administrator made a study of its own says so: new UIDs, the old ones beside them, its own patient."""
    sent(in_process, image(1))
    other = image(2, PatientName="ROE^RICHARD", PatientID="0815")
    sent(in_process, other)
    assert got(in_process, path_of(other)).status_code == 404
    decide(in_process, "another-study")
    with in_process.database.transaction() as session:
        rows = {row.sop_instance_uid: row for row in session.scalars(select(InstanceRow))}
    sop = dcmread(io.BytesIO(other)).SOPInstanceUID
    with in_process.database.transaction() as session:
        study = session.get_one(StudyRow, rows[sop].study_id).study_instance_uid
        series = session.get_one(SeriesRow, rows[sop].series_id).series_instance_uid
    now = alone(in_process, f"/dicom-web/studies/{study}/series/{series}/instances/{sop}")
    assert (now.StudyInstanceUID, now.PatientID) == (study, "0815")
    said = now.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
    assert said.StudyInstanceUID == dcmread(io.BytesIO(other)).StudyInstanceUID
    assert "PatientName" not in said


def test_an_image_that_was_taken_for_the_same_patient(in_process: InProcessApi) -> None:
    """It shows the patient of its study, as the list and the search do."""
    sent(in_process, image(1))
    other = image(2, PatientName="DO^JANE")
    sent(in_process, other)
    decide(in_process, "same-patient")
    now = alone(in_process, path_of(other))
    assert str(now.PatientName) == "DOE^JANE"
    assert str(now.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientName) == "DO^JANE"


# -- dicomweb-client, as it is ------------------------------------------------------------------------------------------


def test_dicomweb_client_retrieves(in_process: InProcessApi) -> None:
    """Studies, series, instances and frames by the client of highdicom and Slicer, whole and streamed."""
    paths = sorted((STUDIES / "01-hand").glob("*.dcm"))
    sent(in_process, *(path.read_bytes() for path in paths))
    first = dcmread(paths[0])
    uids_of = (first.StudyInstanceUID, first.SeriesInstanceUID, first.SOPInstanceUID)
    with served(in_process.http.app) as port:  # type: ignore[arg-type]
        client = DICOMwebClient(f"http://127.0.0.1:{port}/dicom-web", headers=in_process.headers("radiologist"))
        everything = (("application/dicom", "*"),)
        for found in (
            client.retrieve_study(uids_of[0]),
            client.retrieve_study(uids_of[0], media_types=everything),
            list(client.iter_study(uids_of[0], media_types=everything)),
        ):
            assert {one.SOPInstanceUID for one in found} == {dcmread(path).SOPInstanceUID for path in paths}
        assert client.retrieve_instance(*uids_of, media_types=everything).PixelData == first.PixelData
        syntax = first.file_meta.TransferSyntaxUID
        kind = KINDS.get(syntax, "application/octet-stream")
        (frame,) = client.retrieve_instance_frames(*uids_of, [1], media_types=((kind, str(syntax)),))
        assert frame == frames_of(paths[0])[0]
