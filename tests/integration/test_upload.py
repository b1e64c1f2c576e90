"""POST /api/v1/studies on real Postgres, Valkey and object stores: what is called stored is durable, all else is refused."""

import contextlib
import io
import json
import logging
import os
import resource
import socket
import struct
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pydicom.uid as uids
import pytest
import redis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minio import Minio
from pydantic import SecretStr
from sqlalchemy import func, select

from api import spool as ingest
from api.app import create_app
from api.intake.archives import unpack_archive
from api.spool import open_spool
from samples.objects import pattern_image, to_bytes
from shared.db.tables import AnalysisRow, IdentityRow, InstanceRow, KeyRow, StudyRow, UploadRow
from shared.domain.security import Role
from shared.domain.study import StudyStatus
from shared.errors import Rejected
from shared.logs import JsonLines
from shared.queries.access import add_key, revoke_key_by_id
from shared.queue.celery_app import ANALYSE
from shared.settings import ROOT
from shared.storage import DirectoryStore, original_key, sha256_of
from tests.hospital import change
from tests.pace import limit_s, until
from tests.store_files import keys_of

MARKER = "ZEBRA^QUAGGA"


def named(stored: bytes) -> list[bytes]:
    """The marks of the patient that stand in what is stored: long ones, which sealed text does not hold by chance."""
    return [mark for mark in (b"zebra^quagga", b"zebra-0815", b"zebra.dcm", b"zebra odd") if mark in stored.lower()]


EXPLICIT = uids.ExplicitVRLittleEndian


def image(study: int = 1, number: int = 1, **values: Any) -> bytes:
    """A sound little radiograph: image `number` of study `study`."""
    ds = pattern_image(study, f"image {number}")
    ds.PatientName, ds.PatientID = MARKER, "ZEBRA-0815"
    for name, value in values.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, EXPLICIT)


def numbered(number: int) -> bytes:
    """Thousands of different small files, made fast: a template with another UID written over its own."""
    return TEMPLATE.replace(TEMPLATE_UID, b"1.2.3.%013d" % number)


TEMPLATE_UID = b"1.2.3.0000000000000"
TEMPLATE = image(SOPInstanceUID=TEMPLATE_UID.decode(), Rows=2, Columns=2, PixelData=b"1234")


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def counts(api: Any) -> tuple[int, int]:
    """Rows of studies and of instances."""
    with api.database.transaction() as session:
        return tuple(session.scalar(select(func.count()).select_from(row)) for row in (StudyRow, InstanceRow))


def objects(api: Any) -> dict[str, float]:
    """All objects of the store, with the time of their last writing; metadata can be made anew, and do not count."""
    return {key: when for key, when in everything(api).items() if not key.startswith("metadata/")}


def everything(api: Any) -> dict[str, float]:
    parts = urlsplit(api.settings.store_url.get_secret_value())
    if parts.scheme == "file":
        return {key: float(when) for key, when in keys_of(Path(parts.path)).items()}
    client = Minio(parts.netloc.rpartition("@")[2], access_key=parts.username, secret_key=parts.password, secure=False)
    bucket = parts.path.strip("/")
    if not client.bucket_exists(bucket):
        return {}
    return {o.object_name: o.last_modified.timestamp() for o in client.list_objects(bucket, recursive=True)}


def messages(api: Any) -> dict[str, list[dict[str, Any]]]:
    """What waits in the real broker, oldest first."""
    client = redis.Redis.from_url(api.settings.broker_url.get_secret_value())
    with client:
        return {q: [json.loads(m) for m in reversed(client.lrange(q, 0, -1))] for q in ("urgent", "routine", "backlog")}


def spool_is_empty(api: Any) -> bool:
    return not list(api.settings.spool_dir.rglob("*"))


def set_study(api: Any, study_id: str, **values: Any) -> None:
    with api.database.transaction() as session:
        change(session, UUID(study_id), **values)


def reasons(receipt: dict[str, Any]) -> dict[str, str | None]:
    return {line["file"]: line["reason"] for line in receipt["files"]}


# -- what is stored -------------------------------------------------------------------------------------------------


def test_stored_means_durable(make_api: Callable[..., Any], store_url: str) -> None:
    """Of many files and an archive, every file is in store, rows and broker when the receipt says stored."""
    api = make_api(store_url=store_url)
    files = {"a.dcm": image(1, 1), "b.dcm": image(1, 2), "c.zip": zipped({"x/d.dcm": image(2, 1)})}
    response = api.post(files, priority="urgent")
    receipt = response.json()
    assert response.status_code == 200
    assert [(line["file"], line["outcome"]) for line in receipt["files"]] == [
        ("a.dcm", "stored"), ("b.dcm", "stored"), ("c.zip!x/d.dcm", "stored"),
    ]  # fmt: skip
    assert (receipt["stored"], receipt["duplicate"], receipt["rejected"]) == (3, 0, 0)
    assert sorted(study["new_images"] for study in receipt["studies"]) == [1, 2]
    assert set(objects(api)) == {
        original_key(sha256_of(content)) for content in (image(1, 1), image(1, 2), image(2, 1))
    }
    assert counts(api) == (2, 3)
    assert {study["url"] for study in receipt["studies"]} == {
        f"/api/v1/studies/{study['id']}" for study in receipt["studies"]
    }
    sent = messages(api)["urgent"]
    assert {m["headers"]["task"] for m in sent} == {ANALYSE}
    assert sorted(m["headers"]["argsrepr"].rpartition(" study ")[2] for m in sent) == sorted(
        study["id"] for study in receipt["studies"]
    )
    for study in receipt["studies"]:
        assert api.http.get(study["url"], headers=api.headers("submitter")).json()["status"] == "queued"
    assert spool_is_empty(api)


def test_duplicate_costs_nothing(make_api: Callable[..., Any], store_url: str) -> None:
    """The same file again is a duplicate: nothing is put into the store, no row and no message is added."""
    api = make_api(store_url=store_url)
    first = api.post({"a.dcm": image()}).json()
    before, sent = objects(api), messages(api)
    response = api.post({"again.dcm": image(), "again.zip": zipped({"a": image()})})
    assert response.status_code == 200
    assert [(line["outcome"], line["study_id"], line["sop_instance_uid"]) for line in response.json()["files"]] == [
        ("duplicate", first["files"][0]["study_id"], first["files"][0]["sop_instance_uid"])
    ] * 2
    assert response.json()["studies"] == [first["studies"][0] | {"new_images": 0}]
    assert (objects(api), messages(api), counts(api)) == (before, sent, (1, 1))


def test_twice_in_one_request(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that comes twice in one request is put into the store once."""
    store = in_process.http.app.state.parts.store
    put, real = [], store.put
    monkeypatch.setattr(store, "put", lambda key, *rest: (put.append(key), real(key, *rest)))
    receipt = in_process.post({"a.dcm": image(), "b.dcm": image()}).json()
    assert [line["outcome"] for line in receipt["files"]] == ["stored", "duplicate"]
    assert receipt["studies"][0]["new_images"] == 1
    assert put == [original_key(sha256_of(image()))]


def large(number: int) -> bytes:
    """A sound file of 3 MB."""
    return image(3, number, Rows=1500, Columns=2000, PixelData=os.urandom(3_000_000))


def test_large_files_are_taken_over(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory store on the spool's disk gets large files without a copy, whole, flushed first; small ones are put."""
    store = in_process.http.app.state.parts.store
    put, flushed, real_put, real_sync = [], [], store.put, os.fsync
    monkeypatch.setattr(store, "put", lambda key, *rest: (put.append(key), real_put(key, *rest)))
    monkeypatch.setattr("api.spool.os.fsync", lambda fd: (flushed.append(os.fstat(fd).st_size), real_sync(fd)))
    contents = [large(1), image(3, 2), large(3)]
    assert in_process.post({str(n): content for n, content in enumerate(contents)}).json()["stored"] == 3
    assert put == [original_key(sha256_of(contents[1]))]
    assert {len(contents[0]), len(contents[2])} <= set(flushed)
    folder = Path(in_process.settings.store_url.get_secret_value().removeprefix("file:"))
    assert all((folder / original_key(sha256_of(content))).read_bytes() == content for content in contents)
    assert spool_is_empty(in_process)


@pytest.mark.parametrize("why", ["no descriptor left", "another disk", "the object is there"])
def test_large_files_that_cannot_be_taken_over(
    make_api: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str
) -> None:
    """Where a large file cannot be taken over it is copied, and is stored all the same."""
    content = large(4)
    if why == "no descriptor left":
        monkeypatch.setattr("api.spool.OPEN_LARGE_FILES", threading.BoundedSemaphore(1))
        assert ingest.OPEN_LARGE_FILES.acquire(blocking=False)
    if why == "another disk":
        monkeypatch.setattr(
            "shared.storage.directory.os.link", lambda *_, **__: (_ for _ in ()).throw(OSError(18, "another disk"))
        )
    goal = tmp_path / "objects" / original_key(sha256_of(content))
    if why == "the object is there":
        goal.parent.mkdir(parents=True)
        goal.write_bytes(b"damaged")
    assert make_api().post({"a": content}).json()["stored"] == 1
    assert goal.read_bytes() == content


def test_a_large_file_that_cannot_be_flushed_is_not_stored(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk cannot keep a large file's bytes the response is 503, and there is neither row nor object."""
    real = os.fsync

    def sync(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 2_000_000:
            raise OSError(5, "Input/output error")
        real(descriptor)

    content = large(5)
    monkeypatch.setattr("api.spool.os.fsync", sync)
    assert in_process.post({"a": image(1, 1), "b": content}).status_code == 503
    assert counts(in_process) == (0, 0)
    assert original_key(sha256_of(content)) not in objects(in_process)
    monkeypatch.undo()
    assert in_process.post({"a": image(1, 1), "b": content}).json()["stored"] == 2


def on_disk(api: Any, name: str, content: bytes) -> Path:
    """A file that another part wrote into the spool's folder."""
    path = Path(api.settings.spool_dir) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_many_large_files_leave_no_descriptor(in_process: Any) -> None:
    """Every descriptor of a large file is given back, whether the request succeeded or not."""
    for number in range(3):
        in_process.post({f"{n}": large(100 * number + n) for n in range(5)})
        in_process.post({"a": bytes(3 * 2**20), "b": bytes(2**21)})

    def all_closed() -> bool:  # by the thread that flushes the last of them
        targets = []
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                targets.append(str(link.readlink()))
        free = sum(ingest.OPEN_LARGE_FILES.acquire(blocking=False) for _ in range(256))
        ingest.OPEN_LARGE_FILES.release(free)
        return free == 256 and not [target for target in targets if str(in_process.settings.spool_dir) in target]

    until(all_closed, 10)


def test_other_bytes_are_no_duplicate(make_api: Callable[..., Any], store_url: str) -> None:
    """Other bytes under a known SOP Instance UID are stored and said to be what they are; the first ones stay in force."""
    api = make_api(store_url=store_url)
    api.post({"a.dcm": image()})
    before = objects(api)
    changed = image(ImageComments="changed")
    response = api.post({"b.dcm": changed, "other.dcm": image(1, 2)})
    assert response.status_code == 200
    assert reasons(response.json()) == {"b.dcm": "other-header", "other.dcm": None}
    assert (response.json()["correction"], response.json()["files"][0]["failure"]) == (1, None)
    assert set(objects(api)) - set(before) == {original_key(sha256_of(one)) for one in (changed, image(1, 2))}
    assert counts(api) == (1, 2)


def test_conflict_within_a_request(in_process: Any) -> None:
    """Of two different files with one UID in one request the first is taken; a study made of others never appears."""
    other = image(2, SOPInstanceUID=str(pattern_image(1, "image 1").SOPInstanceUID))
    receipt = in_process.post({"a.dcm": image(), "b.dcm": other}).json()
    assert reasons(receipt) == {"a.dcm": None, "b.dcm": "other-image"}
    assert len(receipt["studies"]) == 1
    assert counts(in_process) == (1, 1)
    assert len(objects(in_process)) == 2


def test_codes(in_process: Any) -> None:
    """200 when all is stored, 202 when some is, 409 when none is; the receipt comes with each."""
    assert in_process.post({"a": image()}).status_code == 200
    some = in_process.post({"a": image(), "b": b"text"})
    none = in_process.post({"b": b"text"})
    assert (some.status_code, some.json()["rejected"]) == (202, 1)
    assert (none.status_code, none.json()["studies"], none.json()["rejected"]) == (409, [], 1)


# -- what is refused ------------------------------------------------------------------------------------------------


def bad_inputs() -> dict[str, tuple[bytes, str]]:
    sound = image(9, 9)
    bomb = zipped({f"{n}.dcm": bytes(4 * 2**20) for n in range(8)})
    encrypted = bytearray(zipped({"secret.dcm": sound}, zipfile.ZIP_STORED))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    liar = bytearray(zipped({"a.dcm": bytes(8 * 2**20)}))  # says 1 byte, holds 8 MB
    struct.pack_into("<L", liar, liar.index(b"PK\x01\x02") + 24, 1)
    many = bytearray(zipped({f"{n}": b"" for n in range(6000)}))  # says it holds one member
    struct.pack_into("<HH", many, many.rindex(b"PK\x05\x06") + 8, 1, 1)
    return {
        "text": (b"Dear colleague, " * 20, "not-dicom"),
        "zero": (b"", "empty-file"),
        "no-meta": (sound[132 + 12 + struct.unpack("<L", sound[140:144])[0] :], "no-file-meta"),
        "no-pixels": (image(9, 1, PixelData=None), "no-pixel-data"),
        "claims": (image(9, 2, Rows=60000, Columns=60000), "too-large"),
        "cut-header": (sound[:500], "cannot-understand"),
        "cut-pixels": (sound[:-100], "truncated-pixels"),
        "wrong-vr": (sound.replace(b"\x28\x00\x10\x00US\x02\0\x80\0", b"\x28\x00\x10\x00LO\x02\0xx"), "bad-attributes"),
        "syntax": (sound.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"), "unknown-transfer-syntax"),
        "class": ((ROOT / "samples/broken/unknown-sop-class.dcm").read_bytes(), "sop-class-not-supported"),
        "cut-report": ((ROOT / "samples/kept/report.dcm").read_bytes()[:-9], "cannot-understand"),
        "bomb.zip": (bomb, "too-large"),
        "cut.zip": (zipped({"a": sound})[:-30], "bad-archive"),
        "nested.zip": (zipped({"inner.zip": zipped({"a": sound})}), "bad-archive"),
        "path.zip": (zipped({"../../evil.dcm": sound}), "bad-archive"),
        "absolute.zip": (zipped({"/etc/evil.dcm": sound}), "bad-archive"),
        "drive.zip": (zipped({"C:\\evil.dcm": sound}), "bad-archive"),
        "encrypted.zip": (bytes(encrypted), "bad-archive"),
        "liar.zip": (bytes(liar), "bad-archive"),
        "many.zip": (bytes(many), "too-large"),
        "bzip2.zip": (zipped({"a.dcm": sound}, zipfile.ZIP_BZIP2), "bad-archive"),
        "lzma.zip": (zipped({"a.dcm": sound}, zipfile.ZIP_LZMA), "bad-archive"),
    }


def test_each_bad_input_has_its_response(in_process: Any) -> None:
    """Every bad file gets its own reason, code and words; its neighbours are stored; nothing of it is kept."""
    bad = bad_inputs()
    files = (
        {"first.dcm": image(1, 1)} | {name: content for name, (content, _) in bad.items()} | {"last.dcm": image(1, 2)}
    )
    response = in_process.post(files)
    assert response.status_code == 202
    lines = {line["file"].partition("!")[0]: line for line in response.json()["files"]}
    assert {name: lines[name]["reason"] for name in bad} == {name: reason for name, (_, reason) in bad.items()}
    for name in bad:
        assert lines[name]["outcome"] == "rejected"
        assert int(lines[name]["failure"], 16) in {0x0122, 0xA900, 0xA700, 0xC122, *range(0xC000, 0xC100)}
        assert len(lines[name]["text"]) >= 20
    assert lines["first.dcm"]["outcome"] == lines["last.dcm"]["outcome"] == "stored"
    assert (counts(in_process), len(objects(in_process))) == ((1, 2), 2)
    assert MARKER not in json.dumps([lines[name]["text"] for name in bad])
    assert not list(in_process.settings.home.rglob("*evil*"))
    assert spool_is_empty(in_process)


def test_empty_name_in_a_zip(in_process: Any) -> None:
    """A member without a name is refused or taken, never an internal error."""
    nameless = bytearray(zipped({"a": image()}, zipfile.ZIP_STORED))
    nameless[30] = nameless[nameless.rindex(b"PK\x01\x02") + 46] = 0
    receipt = in_process.post({"a.zip": bytes(nameless), "b.zip": zipped({".": image(1, 2)})}).json()
    assert reasons(receipt) == {"a.zip": "bad-archive", "b.zip!.": None}


def test_dicom_with_a_zip_preamble(in_process: Any) -> None:
    """A DICOM file whose free preamble starts like a zip archive is a DICOM file."""
    assert in_process.post({"a.dcm": b"PK\x03\x04" + image()[4:]}).status_code == 200


def test_samples_get_the_expected_responses(in_process: Any) -> None:
    """Every sample file, sound or broken, is answered as samples/expected.csv says."""
    import csv

    with (ROOT / "samples/expected.csv").open() as file:
        expected = {row["file"]: (row["outcome"], row["reason"] or None) for row in csv.DictReader(file)}
    files = {name: (ROOT / "samples" / name).read_bytes() for name in expected}
    lines = in_process.post(files).json()["files"]
    assert {line["file"].partition("!")[0]: (line["outcome"], line["reason"]) for line in lines} == expected


def test_odd_files_are_judged_when_they_are_sent(in_process: Any) -> None:
    """What a decoder could not use is refused in the receipt, by its tag; oddities that can be read are stored."""
    folder = ROOT / "tests/data/field_reports"
    refused = {
        "p16-j2k-signed-stream-unsigned-header.dcm": ("undecodable-pixels", "(0028,0103)"),
        "q42-native-uid-encapsulated-long.dcm": ("undecodable-pixels", "(0002,0010)"),
    }
    stored = ("c03-ir58.dcm", "p27-slope-comma.dcm", "p49-modlut-empty-item.dcm", "q25-two-frames-two-fragments-bot-zeros.dcm",
              "q56-vr-dashes.dcm", "t83-gray-jpeg-as-ybr.dcm", "t84-two-frames-padded-fragments.dcm")  # fmt: skip
    kept = "q81-ybr422-native.dcm"
    response = in_process.post({name: (folder / name).read_bytes() for name in (*refused, *stored, kept)}).json()
    for line in response["files"]:
        if line["file"] == kept:
            assert (line["outcome"], line["reason"]) == ("kept", "colour")
        elif line["file"] in refused:
            reason, words = refused[line["file"]]
            assert (line["outcome"], line["reason"]) == ("rejected", reason)
            assert words in line["text"]
        else:
            assert line["outcome"] == "stored", line
    assert response["stored"] == len(stored)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("application/dicom", image()),
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"nonsense"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nhalf'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Type: a/b\r\n\r\nno name\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"H" * 100_000 + b": v\r\n\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x",
         b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + bytes(9000) + b"\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x",
         b"".join(b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n\r\n' % n for n in range(99)) + b"--x--\r\n"),
        ("multipart/form-data; boundary=x",
         b'--x\r\nContent-Disposition: form-data; name="priority"\r\n\r\nnow\r\n--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\na\r\n--x--\r\n'),
    ],
)  # fmt: skip
def test_malformed_requests(in_process: Any, content_type: str, body: bytes) -> None:
    """A request that is not a multipart form with files is answered with 400 and words, and nothing is stored."""
    response = in_process.http.post(
        "/api/v1/studies", content=body, headers=in_process.headers() | {"Content-Type": content_type}
    )
    assert response.status_code in (400, 415)
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.json()["detail"]) > 20
    assert (counts(in_process), objects(in_process)) == ((0, 0), {})


@pytest.mark.slow
def test_five_thousand_files(in_process: Any) -> None:
    """5,000 files in one request are all stored, in one study with one message."""
    response = in_process.post({f"{n}.dcm": numbered(n) for n in range(5000)})
    assert (response.status_code, response.json()["stored"]) == (200, 5000)
    assert counts(in_process) == (1, 5000)
    assert len(messages(in_process)["routine"]) == 1


def test_one_file_too_many(make_api: Callable[..., Any]) -> None:
    """5,001 files, or a request over the size limit, are answered with 413, and nothing is stored."""
    api = make_api()
    assert api.settings.max_request_files == 5000
    assert api.post({f"{n}.dcm": numbered(n) for n in range(5001)}).status_code == 413
    small = make_api(max_request_bytes=10_000)
    assert small.post({"a": image()}).status_code == 413
    chunked = iter([b"--x\r\n", b'Content-Disposition: form-data; name="f"; filename="a"\r\n\r\n', bytes(20_000)])
    headers = small.headers() | {"Content-Type": "multipart/form-data; boundary=x"}
    assert small.http.post("/api/v1/studies", content=chunked, headers=headers).status_code == 413
    assert (counts(api), objects(api), spool_is_empty(api)) == ((0, 0), {}, True)


def test_limits_hold_for_all_archives_together(make_api: Callable[..., Any]) -> None:
    """Files and bytes out of several archives count together, so many small archives are no way around a limit."""
    api = make_api(max_request_files=5)
    files = {"a.dcm": numbered(1), "b.zip": zipped({str(n): numbered(n) for n in (2, 3)}),
             "c.zip": zipped({str(n): numbered(n) for n in (4, 5, 6)})}  # fmt: skip
    receipt = api.post(files).json()
    assert (receipt["stored"], reasons(receipt)["c.zip"]) == (3, "too-large")
    api = make_api(max_request_bytes=30_000, identity_key=api.settings.identity_key)
    receipt = api.post({f"{n}.zip": zipped({"a": image(1, n)}) for n in (7, 8)}).json()
    assert (receipt["stored"], reasons(receipt)["8.zip"]) == (1, "too-large")


def test_file_over_the_limit(make_api: Callable[..., Any]) -> None:
    """A file over the size limit is refused by name; the others are stored."""
    receipt = make_api(max_file_bytes=10_000).post({"a": image(), "b": numbered(1)}).json()
    assert reasons(receipt) == {"a": "too-large", "b": None}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5),
    cut=st.one_of(st.none(), st.integers(4, 400)),
)
def test_damaged_archives(changes: list[tuple[int, bytes]], cut: int | None) -> None:
    """A damaged archive gives members or a Rejected, nothing else, and never more bytes than allowed."""
    data = bytearray(zipped({"a.dcm": b"x" * 500, "b/c.dcm": bytes(range(100))}))
    for at, new in changes:
        data[at : at + len(new)] = new
    with open_spool(None) as spool:
        archive = spool.append("a.zip", iter([bytes(data[:cut])]))
        with_members = spool.end
        try:
            for member in unpack_archive(spool, archive, 10, 5000, 200):
                if not isinstance(member, tuple):
                    with spool.open(member) as file:
                        assert len(file.read()) == member.size_bytes
        except Rejected as error:
            assert str(error)
        assert spool.end - with_members <= 5000


def test_huge_directory_is_not_read(make_api: Callable[..., Any]) -> None:
    """An archive that claims a directory of gigabytes, in a zip64 record or not, is refused before it is read."""
    head = zipped({"a": b"x"})[:31]
    directory = bytes(6 * 2**20)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), len(head))
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(head) + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 46, len(head), 0)
    plain = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), len(head), 0)
    receipt = (
        make_api()
        .post({"64.zip": head + directory + record + locator + end, "32.zip": head + directory + plain})
        .json()
    )
    assert reasons(receipt) == {"64.zip": "too-large", "32.zip": "too-large"}


# -- sending again --------------------------------------------------------------------------------------------------


def test_idempotency(in_process: Any) -> None:
    """The same key with the same content gives the first receipt as it was; with other content it is refused with 422."""
    first = in_process.post({"a": image(), "b": b"text"}, idempotency_key="k1")
    again = in_process.post({"a": image(), "b": b"text"}, idempotency_key="k1")
    assert again.json() == first.json()
    assert (first.status_code, again.status_code) == (202, 202)
    assert (again.headers.get("Idempotent-Replayed"), first.headers.get("Idempotent-Replayed")) == ("true", None)
    assert in_process.post({"a": image(1, 2)}, idempotency_key="k1").status_code == 422
    assert in_process.post({"a": image(), "b": b"text"}, idempotency_key="k1", priority="urgent").status_code == 422
    assert counts(in_process) == (1, 1)
    with in_process.database.transaction() as session:
        sealed = session.scalars(select(UploadRow.receipt)).one()
    assert b"stored" not in sealed  # file names can name patients


def test_one_idempotency_key_many_times_at_once(in_process: Any) -> None:
    """Of requests that come with one key at the same time, one is taken in and all others answer what it answered."""
    files = {f"{n}": image(1, n) for n in range(8)}
    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda _: in_process.post(files, idempotency_key="k1"), range(6)))
    assert [response.status_code for response in responses] == [200] * 6
    assert [response.json() for response in responses[1:]] == [responses[0].json()] * 5
    assert responses[0].json()["stored"] == 8
    assert sum(response.headers.get("Idempotent-Replayed") == "true" for response in responses) == 5
    assert (counts(in_process), len(messages(in_process)["routine"])) == ((1, 8), 1)


@pytest.mark.parametrize("status", [StudyStatus.ANALYSED, StudyStatus.QUARANTINED, StudyStatus.RETRYING])
def test_late_image_reopens_its_study(make_api: Callable[..., Any], status: StudyStatus) -> None:
    """A late image queues its finished study anew with fresh attempts, due no later than an unread study is."""
    in_process = make_api(debounce_s=0)
    study = in_process.post({"a": image()}).json()["studies"][0]["id"]
    far = datetime.now(UTC) + timedelta(days=9)
    set_study(
        in_process,
        study,
        status=status,
        attempts=4,
        reason="no-image",
        due_at=far,
        assessment="negative",
        severity="none",
    )
    receipt = in_process.post({"b": image(1, 2)}).json()["studies"]
    assert [(s["id"], s["status"], s["new_images"]) for s in receipt] == [(study, "queued", 1)]
    report = in_process.http.get(f"/api/v1/studies/{study}", headers=in_process.headers()).json()
    assert (report["attempts"], report["reason"], len(report["instances"])) == (0, "", 2)
    due = datetime.fromisoformat(report["due_at"]) - datetime.fromisoformat(report["received_at"])
    assert due == timedelta(minutes=720)
    assert len(messages(in_process)["routine"]) == 2


def test_late_image_of_a_running_study(in_process: Any) -> None:
    """A study that is running stays running: its worker finds the late image when it finishes."""
    study = in_process.post({"a": image()}).json()["studies"][0]["id"]
    set_study(in_process, study, status=StudyStatus.RUNNING)
    assert in_process.post({"b": image(1, 2)}).json()["studies"][0]["status"] == "running"
    assert len(messages(in_process)["routine"]) == 1


@pytest.mark.parametrize("again", [image(1, 2), image(1, 1)])
def test_urgent_escalates(in_process: Any, again: bytes) -> None:
    """An urgent file, even a duplicate, makes its waiting study urgent, and an urgent message overtakes the routine one."""
    study = in_process.post({"a": image()}).json()["studies"][0]["id"]
    in_process.post({"b": again}, priority="urgent")
    report = in_process.http.get(f"/api/v1/studies/{study}", headers=in_process.headers()).json()
    due = datetime.fromisoformat(report["due_at"]) - datetime.fromisoformat(report["received_at"])
    assert (report["priority"], due) == ("urgent", timedelta(minutes=25))
    assert (len(messages(in_process)["urgent"]), len(messages(in_process)["routine"])) == (1, 1)
    in_process.post({"c": image(1, 3)})
    assert in_process.http.get(f"/api/v1/studies/{study}", headers=in_process.headers()).json()["priority"] == "urgent"


def test_concurrent_uploads_of_one_study(make_api: Callable[..., Any]) -> None:
    """Requests that send the same studies at the same time, in any order, all succeed, and no row is lost or doubled."""
    api = make_api()
    everything = [(study, number) for study in range(1, 7) for number in range(1, 4)]

    def send(turn: int) -> Any:
        mine = everything[:: 1 if turn % 2 else -1]
        return api.post({f"{s}-{n}": image(s, n) for s, n in mine}, priority="urgent" if turn == 3 else "routine")

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(send, range(6)))
    assert [response.status_code for response in responses] == [200] * 6
    assert sum(response.json()["stored"] for response in responses) == len(everything)
    assert sum(response.json()["duplicate"] for response in responses) == 5 * len(everything)
    assert counts(api) == (6, 18)
    with api.database.transaction() as session:
        assert set(session.scalars(select(StudyRow.images))) == {3}
        assert set(session.scalars(select(StudyRow.priority))) == {"urgent"}
        assert session.scalar(select(func.count()).select_from(IdentityRow)) == 6


def test_concurrent_conflicts(in_process: Any) -> None:
    """Different files with one UID sent at once: one is stored, the others are held, and no empty study is left."""
    uid = str(pattern_image(1, "image 1").SOPInstanceUID)
    files = [image(study, SOPInstanceUID=uid, ImageComments=str(study)) for study in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        receipts = [response.json() for response in pool.map(lambda content: in_process.post({"a": content}), files)]
    assert sorted(receipt["stored"] for receipt in receipts) == [0, 0, 0, 1]
    assert {r["files"][0]["outcome"] for r in receipts if not r["stored"]} <= {"comparing", "conflict"}
    assert counts(in_process) == (1, 1)


# -- when parts are down --------------------------------------------------------------------------------------------


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_broker_down(make_api: Callable[..., Any], silent_port: int, how: str) -> None:
    """A broker that is dead or hangs neither fails an upload nor holds it for 3 s; the rows wait for the reconciler."""
    api = make_api(broker_url=f"redis://127.0.0.1:{1 if how == 'refuses' else silent_port}/0")
    start = time.monotonic()
    response = api.post({"a": image()})
    took = time.monotonic() - start
    assert (response.status_code, response.json()["stored"]) == (200, 1)
    assert took < limit_s(3)
    with api.database.transaction() as session:
        assert session.scalars(select(AnalysisRow.sent_at)).one() is None
    ready = api.http.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert ready.json()["parts"]["broker"] != "ok"


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_store_down(make_api: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    """With the store down an upload is answered with 503, no row is written, and the same upload works later."""
    (tmp_path / "a-file").write_text("in the way")
    url = f"file:{tmp_path / 'a-file'}" if kind == "directory" else "s3://k:s@127.0.0.1:1/bucket"
    api = make_api(store_url=url)
    response = api.post({"a": image()}, idempotency_key="k")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "store" in response.json()["detail"]
    assert (counts(api), messages(api)["routine"]) == ((0, 0), [])
    assert api.http.get("/readyz").status_code == 503
    assert api.http.get("/healthz").status_code == 200
    healed = make_api()
    assert healed.post({"a": image()}, idempotency_key="k").json()["stored"] == 1


def test_readiness_costs_nothing_and_names_what_is_wrong(
    make_api: Callable[..., Any], postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key, many requests ask each part once, nothing is written, and a database without tables is told apart."""
    api = make_api()
    asked: list[int] = []
    reach = DirectoryStore.check_reachable

    def counted(store: DirectoryStore) -> None:
        asked.append(1)
        reach(store)

    monkeypatch.setattr(DirectoryStore, "check_reachable", counted)
    monkeypatch.setattr(DirectoryStore, "check_writable", lambda _: pytest.fail("it wrote"))
    responses = [api.http.get("/readyz") for _ in range(10)]
    assert {response.status_code for response in responses} == {200}
    assert len(asked) == 1
    empty = SecretStr(postgres.url.rsplit("/", 1)[0] + "/osteon")  # which no migration has touched
    with TestClient(create_app(api.settings.model_copy(update={"database_url": empty}))) as http:
        response = http.get("/readyz")
    assert response.status_code == 503
    assert "run the migrations" in response.json()["parts"]["database"]
    assert response.json()["parts"]["store"] == response.json()["parts"]["broker"] == "ok"


def test_a_locked_key_is_asked_for_nothing_that_waits(in_process: Any) -> None:
    """A transaction left open on a key's row holds up no request of that key: that it is used is noted another time."""
    with in_process.database.transaction() as holder:
        holder.get_one(KeyRow, in_process.key("radiologist").id, with_for_update=True)
        assert in_process.http.get("/api/v1/worklist", headers=in_process.headers("radiologist")).status_code == 200


def test_store_fails_midway(in_process: Any, tmp_path: Path) -> None:
    """When the store fails at the second of two files, the whole request is 503 and neither file is called stored."""
    second = tmp_path / "objects" / original_key(sha256_of(image(1, 2)))
    second.parent.parent.mkdir(parents=True)
    second.parent.write_text("in the way")
    assert in_process.post({"a": image(1, 1), "b": image(1, 2)}).status_code == 503
    assert counts(in_process) == (0, 0)
    second.parent.unlink()
    assert in_process.post({"a": image(1, 1), "b": image(1, 2)}).json()["stored"] == 2


def test_postgres_down(make_api: Callable[..., Any]) -> None:
    """With Postgres down every endpoint that needs it answers 503, and nothing is put into the store."""
    api = make_api()
    dead = make_api_without_database(api)
    with dead as http:
        response = http.post("/api/v1/studies", files=[("files", ("a", image()))], headers=api.headers())
        assert (response.status_code, "Postgres" in response.json()["detail"]) == (503, True)
        assert http.get("/api/v1/worklist", headers=api.headers()).status_code == 503
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200
    assert objects(api) == {}


def make_api_without_database(api: Any) -> Any:
    url = SecretStr("postgresql+psycopg2://osteon@127.0.0.1:1/none")
    return TestClient(create_app(api.settings.model_copy(update={"database_url": url})), raise_server_exceptions=False)


def test_spool_disk_full(in_process: Any) -> None:
    """When the spool's disk is full the response is 503, nothing is stored, and the next upload works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, hard))
    try:
        response = in_process.post({"a": image(), "big": bytes(4 * 2**20)})
        unpacked = in_process.post({"a.zip": zipped({"big": os.urandom(30_000) * 100})})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for full in (response, unpacked):
        assert full.status_code == 503
        assert "room" in full.json()["detail"]
    assert (counts(in_process), objects(in_process)) == ((0, 0), {})
    assert in_process.post({"a": image()}).status_code == 200


# -- who may --------------------------------------------------------------------------------------------------------


def test_sites_do_not_see_each_other(in_process: Any) -> None:
    """A key of another site sees nothing of a study: 404, an empty worklist, and its own copy of the same file."""
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
    other = {"Authorization": "Bearer osk_elsewhere"}
    study = in_process.post({"a": image()}).json()["studies"][0]["id"]
    for path in ("", "/preview.jpg", "/heatmap.png", "/heatmap.json", "/frame"):
        assert in_process.http.get(f"/api/v1/studies/{study}{path}", headers=other).status_code == 404
    assert in_process.http.post(f"/api/v1/studies/{study}/lock", headers=other).status_code == 404
    page = in_process.http.get("/api/v1/worklist", headers=other).json()
    assert (page["entries"], set(page["counts"].values())) == ([], {0})
    receipt = in_process.http.post("/api/v1/studies", files=[("f", ("a", image()))], headers=other).json()
    assert (receipt["stored"], receipt["studies"][0]["id"] == study) == (1, False)


# -- what is told to whom -------------------------------------------------------------------------------------------


def test_no_patient_data_leaves_the_database(in_process: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither logs nor broker messages hold a name, an ID, a file name or a key, whatever the upload was."""
    handler = logging.StreamHandler(stream := io.StringIO())
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    try:
        odd = image(1, 3, PatientBirthDate="ZEBRA DAY")
        files = {"zebra.dcm": image(), "zebra cut.dcm": image(1, 2)[:700], "zebra odd.dcm": odd,
                 "zebra.zip": zipped({"zebra/1.dcm": image(2, 1), "../zebra": b"1"}), "zebra conflict": image(ImageComments="Zebra")}  # fmt: skip
        assert in_process.post(files, priority="urgent", idempotency_key="zebra").status_code == 202
        in_process.post({"zebra": b"zebra"})
        in_process.http.get("/api/v1/worklist", headers=in_process.headers())
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(logging.INFO)
    printed = stream.getvalue() + "".join(capfd.readouterr())
    assert '"message": "upload received"' in printed
    assert "zebra" not in printed.lower()
    assert "osk_test" not in printed
    sent = json.dumps(messages(in_process))
    assert ANALYSE in sent
    client: Any = redis.Redis.from_url(in_process.settings.broker_url.get_secret_value())
    with client:
        raw = b"".join(message for queue in ("urgent", "routine") for message in client.lrange(queue, 0, -1))
    import base64

    bodies = b"".join(base64.b64decode(json.loads(m)["body"]) for m in client.lrange("urgent", 0, -1))
    assert not named(raw + bodies)


def test_identity_is_encrypted_at_rest(in_process: Any) -> None:
    """A dump of all tables holds the patient's name and ID in no column, yet the vault gives them back."""
    in_process.post({"zebra.dcm": image()}, idempotency_key="k")
    connection = in_process.database.engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        dump = b""
        for (table,) in cursor.fetchall():
            cursor.execute(f"SELECT * FROM {table}")
            dump += b"".join(bytes(v) if isinstance(v, memoryview) else str(v).encode() for row in cursor for v in row)
    finally:
        connection.close()
    assert b"2.25." in dump
    assert not named(dump)
    with in_process.database.transaction() as session:
        ciphertext = session.scalars(select(IdentityRow.ciphertext)).one()
    assert in_process.http.app.state.parts.vault.open(ciphertext)["patient_name"] == MARKER


def test_openapi_has_examples(in_process: Any) -> None:
    """The OpenAPI document shows an example of every response that a program reads, and each fits its model."""
    from api import schemas as responses
    from api.models import schemas as models_schemas

    schemas = in_process.http.get("/openapi.json").json()["components"]["schemas"]
    for module, names in (
        (
            responses,
            ("Receipt", "StudyReport", "WorklistPage", "ReadingLockView", "TurnaroundTargetsView", "Health", "Problem"),
        ),
        (models_schemas, ("RunView", "RunReport", "RevisedFindingsPage", "BundleView", "ComparisonView")),
    ):
        for name in names:
            getattr(module, name).model_validate(schemas[name]["example"])


def test_problems_have_one_form(in_process: Any) -> None:
    """Errors come as problem+json, those of the router included."""
    for response in (
        in_process.http.get("/nothing"),
        in_process.http.put("/api/v1/studies"),
        in_process.http.get("/api/v1/worklist"),
    ):
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == response.status_code


def test_uploads_do_not_block_other_requests(in_process: Any) -> None:
    """While an upload is being taken in, the API answers others."""
    done = threading.Event()

    def send() -> None:
        in_process.post({f"{n}": numbered(n) for n in range(300)})
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    ready = 0
    while not done.is_set():
        assert in_process.http.get("/healthz").status_code == 200
        ready += 1
    thread.join()
    assert ready > 3


def test_a_new_image_calls_its_study_back_from_a_backfill_run(in_process: Any) -> None:
    """A study that a backfill run had queued goes back to its own queue when a new image of it arrives."""
    study = in_process.post({"a": image()}, priority="urgent").json()["studies"][0]["id"]
    set_study(in_process, study, queue="backlog")
    in_process.post({"b": image(1, 2)}, priority="urgent")
    with in_process.database.transaction() as session:
        assert session.scalars(select(AnalysisRow.priority)).one() == "urgent"
    assert len(messages(in_process)["urgent"]) == 2


def test_sending_again_mends_a_lost_object(in_process: Any) -> None:
    """When the store lost an image, the same file sent again is a duplicate that is stored once more."""
    in_process.post({"a": image()})
    (path,) = Path(in_process.settings.store_url.get_secret_value().removeprefix("file:")).rglob("*.dcm")
    path.unlink()
    assert in_process.post({"a": image()}).json()["duplicate"] == 1
    assert path.read_bytes() == image()


def test_the_pages_cookie_reads_but_does_not_send(in_process: Any) -> None:
    """A browser that is logged in cannot be made to upload by another page: uploads need the key itself."""
    http = in_process.http
    assert http.post("/login", data={"key": in_process.keys["admin"]}, follow_redirects=False).status_code == 303
    assert http.get("/api/v1/worklist").status_code == 200
    for site in ("cross-site", "same-site", "none"):
        told = http.post("/api/v1/studies", files=[("files", ("a", image()))], headers={"Sec-Fetch-Site": site})
        assert told.status_code == 401
    mute = http.post("/api/v1/studies", files=[("files", ("a", image()))])
    assert mute.status_code == 403  # 401 would send its reader to log in, which would not help
    assert "use HTTPS" in mute.json()["detail"]
    assert counts(in_process) == (0, 0)


def test_a_revoked_key_is_refused_at_once(in_process: Any) -> None:
    """Revoking a key ends it, and only it."""
    with in_process.database.transaction() as session:
        revoke_key_by_id(session, None, in_process.key("radiologist").id)
    assert in_process.http.get("/api/v1/worklist", headers=in_process.headers("radiologist")).status_code == 401
    assert in_process.http.get("/api/v1/worklist", headers=in_process.headers("admin")).status_code == 200
