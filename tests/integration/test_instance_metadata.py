"""Metadata of stored instances: sealed beside their bytes, made at intake or anew, removed with them."""

import io
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom.uid as uids
import pytest
from sqlalchemy import update

from infra import prepare
from samples.objects import report, to_bytes
from shared.db.tables import StudyRow
from shared.dicom.image import ImageLimits
from shared.dicom.metadata import metadata_of
from shared.errors import ObjectMissing, StoreUnavailable
from shared.metadata import InstanceMetadata
from shared.queries.access import Vault
from shared.storage import metadata_key, original_key, sha256_of
from tests.integration.test_held_files import choose, image, sent, waiting
from tests.pace import LIMIT_S, until


def plain(content: bytes) -> dict[str, Any]:
    return metadata_of(io.BytesIO(content), len(content), ImageLimits())


def backends(api: Any) -> Any:
    return api.http.app.state.parts


def kept(api: Any, content: bytes) -> Path:
    """Where the metadata of an instance lie."""
    return Path(backends(api).store.folder, metadata_key(sha256_of(content)))


def test_metadata_are_made_at_intake_and_sealed(in_process: Any) -> None:
    """Of images and of files that wait for a decision, in every syntax; nobody reads a name from the store."""
    contents = [
        image(1, 1, PatientName="ZEBRA^ANNA"),
        image(1, 2, uids.ImplicitVRLittleEndian, PatientName="ZEBRA^ANNA"),
        image(1, 3, uids.DeflatedExplicitVRLittleEndian, PatientName="ZEBRA^ANNA"),
        image(1, 4, PatientName="QUAGGA^OTTO", PatientID="other"),
    ]
    sent(in_process, *contents)
    assert len(waiting(in_process)) == 1
    for content in contents:
        assert b"ZEBRA" not in kept(in_process, content).read_bytes()
        assert backends(in_process).metadata.read(sha256_of(content), len(content)) == plain(content)
    assert plain(contents[0])["00100010"]["Value"] == [{"Alphabetic": "ZEBRA^ANNA"}]


@pytest.mark.parametrize("what", ["missing", "empty", "damaged", "of another key", "no JSON", "not compressed"])
def test_what_is_not_sound_is_made_anew(in_process: Any, what: str) -> None:
    """A power cut, a damaged disk and another key cost time, and nothing else: afterwards they are there again."""
    content = image()
    sent(in_process, content)
    path, vault = kept(in_process, content), backends(in_process).vault
    sound = path.read_bytes()
    other = Vault("A" * 43 + "=")
    spoilt = {
        "missing": None, "empty": b"", "damaged": sound[:40] + b"A" + sound[41:],
        "of another key": other.seal_bytes(vault.open_bytes(sound)), "not compressed": vault.seal_bytes(b"{}"),
        "no JSON": vault.seal_bytes(zlib.compress(b"abc")),
    }[what]  # fmt: skip
    path.unlink()
    if spoilt is not None:
        path.write_bytes(spoilt)
    assert backends(in_process).metadata.read(sha256_of(content), len(content)) == plain(content)
    assert vault.open_bytes(path.read_bytes()) == vault.open_bytes(sound)


def test_a_header_beyond_the_head_is_read_whole(in_process: Any) -> None:
    """The pixels begin after more bytes than are read at first."""
    content = image(1, 1, EncapsulatedDocument=bytes(1 << 19))
    sent(in_process, content)
    found = backends(in_process).metadata.read(sha256_of(content), len(content))
    assert found == plain(content)
    assert found["00420011"] == {"vr": "OB", "BulkDataURI": "00420011"}
    assert kept(in_process, content).is_file()


def test_a_store_that_fails(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No upload fails since metadata cannot be kept; who reads them gets them, unless the object is lost, too."""
    store = backends(in_process).store

    def refuse(*_: object) -> None:
        raise StoreUnavailable

    content = image()
    with monkeypatch.context() as patched:
        patched.setattr(store, "put_unsynced", refuse)
        sent(in_process, content)
        assert not kept(in_process, content).exists()
        assert backends(in_process).metadata.read(sha256_of(content), len(content)) == plain(content)
    assert not kept(in_process, content).exists()
    Path(store.folder, original_key(sha256_of(content))).unlink()
    with pytest.raises(ObjectMissing):
        backends(in_process).metadata.read(sha256_of(content), len(content))


def test_older_studies_get_metadata(in_process: Any) -> None:
    """Where columns are filled, of the object whose header is in force, too."""
    first, corrected = image(1, 1), image(1, 1, PatientName="DOE^JANET")
    sent(in_process, first)
    sent(in_process, corrected)
    assert choose(in_process, waiting(in_process)[0]["id"], "apply").status_code == 200
    for content in (first, corrected):
        kept(in_process, content).unlink()
    with in_process.database.transaction() as session:
        session.execute(update(StudyRow).values(filled_version=0))
    prepare.fill_examinations(in_process.settings, in_process.database)
    assert kept(in_process, corrected).is_file()


def test_it_waits_for_files_that_come_in(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While files come in, metadata are made one at a time with pauses; what does not fit is made when it is read."""
    contents = [image(1, number) for number in range(1, 5)]
    sent(in_process, *contents)
    parts = backends(in_process)
    for content in contents:
        kept(in_process, content).unlink()
    asked: list[int] = []

    def busy() -> bool:
        asked.append(sum(kept(in_process, content).is_file() for content in contents))
        return True

    monkeypatch.setattr("shared.metadata.BUSY_DELAY_S", 3600.0)
    slow = InstanceMetadata(parts.store, parts.vault, parts.metadata.limits, busy)
    for content in contents:
        slow.make_from_file(sha256_of(content), len(content), io.BytesIO(content), 0)
    until(lambda: asked == [1], LIMIT_S)
    assert slow.make_pending(LIMIT_S)  # ends the pauses
    assert asked == [1, 2, 3, 4]
    monkeypatch.setattr("shared.metadata.QUIET_S", 3600.0)
    quiet = InstanceMetadata(parts.store, parts.vault, parts.metadata.limits)
    for content in contents:
        kept(in_process, content).unlink()
    for content in contents:  # files came in just now
        quiet.make_from_file(sha256_of(content), len(content), io.BytesIO(content), 0)
    until(lambda: kept(in_process, contents[0]).is_file(), LIMIT_S)
    assert not kept(in_process, contents[3]).is_file()
    assert quiet.make_pending(LIMIT_S)
    assert kept(in_process, contents[3]).is_file()


def test_what_comes_while_one_waits_is_waited_for_too(in_process: Any) -> None:
    """Uploads come at once: as one thread ends, what another upload left begins the next."""
    parts = backends(in_process)
    made = InstanceMetadata(parts.store, parts.vault, parts.metadata.limits)
    ended: list[str] = []

    def ends(name: str, following: object) -> SimpleNamespace:
        def join(_limit_s: float) -> None:
            assert made._hurry.is_set()
            ended.append(name)
            made._hurry.clear()  # as whoever begins a thread does
            made._thread = following  # type: ignore[assignment]

        return SimpleNamespace(join=join)

    made._thread = ends("first", ends("second", None))  # type: ignore[assignment]
    assert made.make_pending(LIMIT_S)
    assert ended == ["first", "second"]


def test_a_thread_can_be_waited_for_as_soon_as_it_is_seen(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits takes no lock, so a thread is not to be seen before it was started."""
    parts, start, seen = backends(in_process), threading.Thread.start, []
    made = InstanceMetadata(parts.store, parts.vault, parts.metadata.limits)

    def watched(thread: threading.Thread) -> None:
        if thread.name == "metadata":
            seen.append(made._thread)
        start(thread)

    content = image(1, 1)
    sent(in_process, content)
    monkeypatch.setattr(threading.Thread, "start", watched)
    made.make_from_file(sha256_of(content), len(content), io.BytesIO(content), 0)
    assert made.make_pending(LIMIT_S)
    assert seen == [None]


@pytest.mark.parametrize(("name", "most"), [("MAX_WAITING", 2), ("MAX_WAITING_BYTES", None)])
def test_no_more_than_fit_wait(in_process: Any, monkeypatch: pytest.MonkeyPatch, name: str, most: int | None) -> None:
    """What does not fit is left out, and made when it is read."""
    contents = [image(1, number) for number in range(1, 5)]
    sent(in_process, *contents)
    parts, go_on = backends(in_process), threading.Event()
    for content in contents:
        kept(in_process, content).unlink()
    monkeypatch.setattr(f"shared.metadata.{name}", most or 2 * len(contents[0]) + 1)
    made = InstanceMetadata(parts.store, parts.vault, parts.metadata.limits, lambda: not go_on.wait(LIMIT_S))
    made.make_from_file(sha256_of(contents[0]), len(contents[0]), io.BytesIO(contents[0]), 0)
    until(lambda: kept(in_process, contents[0]).is_file(), LIMIT_S)  # and now its thread is held up
    for content in contents[1:]:
        made.make_from_file(sha256_of(content), len(content), io.BytesIO(content), 0)
    go_on.set()
    assert made.make_pending(LIMIT_S)
    assert [kept(in_process, content).is_file() for content in contents] == [True, True, True, False]
    assert backends(in_process).metadata.read(sha256_of(contents[3]), len(contents[3])) == plain(contents[3])


def test_no_original_is_read_for_them(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata are made of what came: of images in any syntax, of documents, of headers beyond the head."""
    store, get, read = backends(in_process).store, backends(in_process).store.get, []

    def noted(key: str, *where: Any) -> bytes:
        read.append(key)
        return bytes(get(key, *where))

    monkeypatch.setattr(store, "get", noted)
    syntaxes = (
        uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian, uids.DeflatedExplicitVRLittleEndian,
    )  # fmt: skip
    contents = [image(1, number, syntax) for number, syntax in enumerate(syntaxes, 1)]
    contents.append(image(1, 8, EncapsulatedDocument=bytes(1 << 19)))
    contents.append(to_bytes(report(1), uids.ExplicitVRLittleEndian))
    sent(in_process, *contents)
    assert read == []
    for content in contents:
        assert kept(in_process, content).is_file()
        assert backends(in_process).metadata.read(sha256_of(content), len(content)) == plain(content)
