"""An upload until its receipt says stored, against the bare store's put of the same bytes and Orthanc's STOW.

The goal is of S3 servers, which hospitals have. A folder's put is a copy in memory and a flush, several times as fast
as any network; what an upload costs beside that is told as details, without a goal (docs/adr/0022).
"""

import contextlib
import functools
import http.client
import io
import itertools
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minio import Minio

from benchmarks.films import film
from benchmarks.measure import Arm, Case, Goal, Result, Say, interleaved
from benchmarks.plant import KEYS, S3_PASSWORD, S3_USER, Plant, S3Server
from infra.process import Child, free_port, is_free, wait_until
from shared.storage import Store, open_store, original_key, sha256_of

GOAL = Goal(">=", 0.7)
REQUEST_BYTES, REQUEST_FILES = 128 * 2**20, 100  # as `osteon submit` groups them
BOUNDARY = b"a-boundary-of-the-benchmark"
HEAD = 4096  # what of a film's bytes holds its UIDs
_numbers = itertools.count(1)  # no two films of a run have a UID in common
ORTHANC_PLUGINS = Path("/usr/share/orthanc/plugins")


@dataclass(frozen=True)
class Load:
    """What is sent in one repeat."""

    label: str
    count: int
    rows: int
    columns: int
    unit: str
    of_bytes: Callable[[int, int], float]  # (files, bytes) to how many units those are


def megabytes(_files: int, size: int) -> float:
    """10^6 bytes."""
    return size / 1e6


def number_of_files(files: int, _size: int) -> float:
    """Files, however large."""
    return float(files)


class Films:
    """Films without end, each with bytes of its own, two to a study; made by writing UIDs over those of a template."""

    def __init__(self, load: Load) -> None:
        template = film(0, load.rows, load.columns, run=load.label)
        self._head, self._tail = template[:HEAD], template[HEAD:]
        self._count = load.count
        # UIDs of fixed length, which can be written over
        self._uids = [uid for uid in _uids(self._head) if uid.startswith(b"2.25.")]

    def batch(self) -> list[bytes]:
        """The next repeat's films."""
        return [self._next() for _ in range(self._count)]

    def _next(self) -> bytes:
        made, head = next(_numbers), self._head
        for place, uid in enumerate(self._uids):
            # the study's UID is shared by two films; the others are the film's own
            number = made // 2 if place == 0 else made
            fresh = b"2.25.%d%0*d" % (place + 1, len(uid) - 6, number)
            head = head.replace(uid, fresh)
        return head + self._tail


def _uids(head: bytes) -> list[bytes]:
    """Study and instance UID as they stand in a film's first bytes."""
    from pydicom import dcmread

    ds = dcmread(io.BytesIO(head), stop_before_pixels=True)
    return [str(ds.StudyInstanceUID).encode(), str(ds.SOPInstanceUID).encode()]


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Large films and many small ones, to an S3 server and a directory store, and to Orthanc where it is installed."""
    large = Load("films of 10 MB", 8 if quick else 96, 2500, 2000, "MB/s", megabytes)
    small = Load("files of 65 kB", 100 if quick else 1000, 180, 180, "files/s", number_of_files)
    repeats = 3 if quick else 11
    cases: list[Case] = []
    details: dict[str, Any] = {}
    with Plant() as plant, S3Server(plant.folder) as s3:
        stores = {s3.kind: s3.url("bench")}
        if not quick:  # it has no goal
            stores = {"directory": f"file:{plant.folder / 'objects'}"} | stores
        for kind, url in stores.items():
            store, api = open_store(url), plant.api(STORE_URL=url)
            store.check()
            for load in (large, small):
                say(f"{kind}: {load.count} {load.label}, {repeats} times")
                films, clear = Films(load), _clearing(url, s3)
                arms = {
                    "store": _arm(load, films, clear, functools.partial(_put, store)),
                    "api": _arm(load, films, clear, Sender(api, "files", "/studies", KEYS["submitter"]).send),
                }
                if kind == "directory" and load is large:
                    with _orthanc(plant.folder, say) as orthanc:
                        arms["hashed"] = _arm(load, films, clear, functools.partial(_hash_and_put, store))
                        if orthanc:
                            arms["orthanc"] = _arm(load, films, clear, Stow(orthanc).send)
                        samples = interleaved(arms, repeats)
                    for name, words in {"hashed": "a put that hashes first", "orthanc": "Orthanc's STOW"}.items():
                        if name in samples:
                            label = f"{kind}, {load.count} {load.label}"
                            case = Case.of(label, load.unit, samples["api"], samples[name])
                            details[f"{label}, against {words}"] = case.as_text().removeprefix(f"{label}: ")
                else:
                    samples = interleaved(arms, repeats)
                label = f"{kind}, {load.count} {load.label}"
                case = Case.of(label, load.unit, samples["api"], samples["store"])
                if kind == "directory":
                    details[f"{label}, against a bare put"] = case.as_text().removeprefix(f"{label}: ")
                else:
                    cases.append(case)
    return Result(
        "upload",
        "POST /studies until the receipt says stored, against the bare store's put of the same bytes, one sender each",
        GOAL,
        tuple(cases),
        details,
        quick,
    )


def _arm(load: Load, films: Films, clear: Callable[[], None], send: Callable[[list[bytes]], None]) -> Arm:
    """Units a second of one way to store a repeat's films; making them, and removing them again, is not counted."""

    def once() -> float:
        contents = films.batch()
        start = time.perf_counter()
        send(contents)
        took = time.perf_counter() - start
        clear()
        return load.of_bytes(len(contents), sum(map(len, contents))) / took

    return once


def _put(store: Store, contents: Sequence[bytes]) -> None:
    """The baseline: one client that puts object after object, under names that need no look at the content."""
    for content in contents:
        name = uuid.uuid4().hex
        store.put(f"originals/{name[:2]}/{name}.dcm", io.BytesIO(content), len(content))


def _hash_and_put(store: Store, contents: Sequence[bytes]) -> None:
    """The same under the contents' names, which somebody must find out."""
    for content in contents:
        store.put(original_key(sha256_of(content)), io.BytesIO(content), len(content))


def _clearing(url: str, s3: S3Server) -> Callable[[], None]:
    """Removes what a repeat stored, so that disk and memory do not fill."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return lambda: shutil.rmtree(Path(parts.path) / "originals", ignore_errors=True)
    client = Minio(f"{parts.hostname}:{parts.port}", S3_USER, S3_PASSWORD, secure=False)
    bucket = parts.path.strip("/")

    def clear() -> None:
        for found in client.list_objects(bucket, prefix="originals/", recursive=True):
            client.remove_object(bucket, found.object_name)
        s3.compact()

    return clear


class Sender:
    """A hospital's sender: one connection, request after request, the bytes written as they lie in memory."""

    def __init__(self, url: str, field: str, path: str, key: str) -> None:
        self.field, self.path = field, path
        self.headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}",
        }
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)

    def send(self, contents: Sequence[bytes]) -> None:
        """Send all. Raises RuntimeError unless each is answered as stored."""
        self._http.close()  # a server ends a connection that idled while others were measured
        for group in _groups(contents):
            self._check(self._post(group), len(group))

    def _part(self, number: int) -> bytes:
        disposition = f'Content-Disposition: form-data; name="{self.field}"; filename="{number}.dcm"\r\n\r\n'
        return b"\r\n--" + BOUNDARY + b"\r\n" + disposition.encode()

    def _post(self, group: Sequence[bytes]) -> Any:  # noqa: ANN401 - JSON
        pieces = [piece for number, content in enumerate(group) for piece in (self._part(number), content)]
        pieces.append(b"\r\n--" + BOUNDARY + b"--\r\n")
        length = {"Content-Length": str(sum(map(len, pieces)))}
        self._http.request("POST", self.path, iter(pieces), self.headers | length)
        answer = self._http.getresponse()
        body = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"the upload was answered {answer.status}: {body[:300]!r}")
        return json.loads(body)

    def _check(self, receipt: Any, count: int) -> None:  # noqa: ANN401 - JSON
        if receipt["stored"] != count:
            raise RuntimeError(f"of {count} films {receipt['stored']} were stored")


class Stow(Sender):
    """STOW-RS (PS3.18 10.5) to a DICOMweb server."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "", "/dicom-web/studies", "")
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}'
        self.headers = {"Content-Type": kind, "Accept": "application/dicom+json"}

    def _part(self, number: int) -> bytes:  # noqa: ARG002 - as the base class
        return b"\r\n--" + BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n"

    def _check(self, receipt: Any, count: int) -> None:  # noqa: ANN401 - JSON
        stored = len(receipt.get("00081199", {}).get("Value", []))
        if stored != count:
            raise RuntimeError(f"of {count} films Orthanc stored {stored}")


def _groups(contents: Sequence[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    for content in contents:
        if group and (len(group) >= REQUEST_FILES or sum(map(len, group)) + len(content) > REQUEST_BYTES):
            yield group
            group = []
        group.append(content)
    if group:
        yield group


@contextlib.contextmanager
def _orthanc(folder: Path, say: Say) -> Iterator[str | None]:
    """The URL of an Orthanc that writes to this disk, or None where Debian's orthanc-dicomweb is not installed."""
    program, plugin = shutil.which("Orthanc"), ORTHANC_PLUGINS / "libOrthancDicomWeb.so"
    if program is None or not plugin.exists():
        say("Orthanc with its DICOMweb plugin is not installed (apt-get install orthanc orthanc-dicomweb): left out")
        yield None
        return
    port, home = free_port(), folder / "orthanc"
    home.mkdir()
    settings = {
        "Name": "BENCHMARK", "StorageDirectory": str(home / "db"), "IndexDirectory": str(home / "db"),
        "Plugins": [str(plugin)], "HttpPort": port, "DicomServerEnabled": False, "AuthenticationEnabled": False,
        "SyncStorageArea": True, "KeepAlive": True, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (home / "orthanc.json").write_text(json.dumps(settings))
    child = Child("Orthanc", [program, str(home / "orthanc.json")], home / "orthanc.log", {"PATH": "/usr/bin:/bin"})
    child.start()
    try:
        if not wait_until(lambda: not is_free(port), 30):
            raise child.failure("did not listen within 30 s")
        yield f"http://127.0.0.1:{port}"
    finally:
        child.stop()
