"""Compares an upload, until its receipt says stored, with the bare store's put of the same bytes and Orthanc's STOW.

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

from benchmarks.instances import instance
from benchmarks.measure import Arm, Case, Goal, MissingRequirement, Result, Say, interleaved
from benchmarks.orthanc import orthanc
from infra.embedded.live_stack import KEYS, LiveStack
from infra.embedded.s3_server import S3_PASSWORD, S3_USER, S3Server
from shared.storage import Store, open_store, original_key, sha256_of

GOAL = Goal(">=", 0.7)
REQUEST_BYTES, REQUEST_FILES = 128 * 2**20, 100  # as `osteon submit` groups them
BOUNDARY = b"a-boundary-of-the-benchmark"
HEAD = 4096  # what of an instance's bytes holds its UIDs
_numbers = itertools.count(1)  # no two instances of a run have a UID in common


@dataclass(frozen=True)
class Load:
    """The files of one repeat."""

    label: str
    count: int
    rows: int
    columns: int
    unit: str
    of_bytes: Callable[[int, int], float]  # (files, bytes) to how many units those are


def megabytes(_files: int, size: int) -> float:
    """Count in 10^6 bytes.

    Args:
        size: bytes of all files.

    Returns:
        MB.
    """
    return size / 1e6


def number_of_files(files: int, _size: int) -> float:
    """Count files, however large.

    Args:
        files: how many.

    Returns:
        The same number.
    """
    return float(files)


class Instances:
    """An endless source of instances, two to a study, each with its own bytes: a template's UIDs are overwritten."""

    def __init__(self, load: Load) -> None:
        template = instance(0, load.rows, load.columns, run=load.label)
        self._head, self._tail = template[:HEAD], template[HEAD:]
        self._count = load.count
        # UIDs of fixed length, which can be written over
        self._uids = [uid for uid in _uids(self._head) if uid.startswith(b"2.25.")]

    def batch(self) -> list[bytes]:
        """Make the next repeat's instances."""
        return [self._next() for _ in range(self._count)]

    def _next(self) -> bytes:
        made, head = next(_numbers), self._head
        for place, uid in enumerate(self._uids):
            # the study's UID is shared by two instances; the others are the instance's own
            number = made // 2 if place == 0 else made
            fresh = b"2.25.%d%0*d" % (place + 1, len(uid) - 6, number)
            head = head.replace(uid, fresh)
        return head + self._tail


def _uids(head: bytes) -> list[bytes]:
    """Read study and instance UID from an instance's first bytes."""
    from pydicom import dcmread

    ds = dcmread(io.BytesIO(head), stop_before_pixels=True)
    return [str(ds.StudyInstanceUID).encode(), str(ds.SOPInstanceUID).encode()]


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Send large instances and many small ones to an S3 server, a directory store, and Orthanc where it is installed.

    Args:
        quick: a twelfth of the instances, 3 repeats instead of 11, and the S3 server alone.
        say: is called with a line of progress.

    Returns:
        Rate of the API to that of a bare put.

    Raises:
        StackError: A server did not start.
    """
    large = Load("instances of 10 MB", 8 if quick else 96, 2500, 2000, "MB/s", megabytes)
    small = Load("files of 65 kB", 100 if quick else 1000, 180, 180, "files/s", number_of_files)
    repeats = 3 if quick else 11
    cases: list[Case] = []
    details: dict[str, Any] = {}
    with LiveStack() as live_stack, S3Server(live_stack.folder) as s3:
        stores = {s3.kind: s3.url("bench")}
        if not quick:  # it has no goal
            stores = {"directory": f"file:{live_stack.folder / 'objects'}"} | stores
        for kind, url in stores.items():
            store, api = open_store(url), live_stack.api(STORE_URL=url)
            store.check_writable()
            for load in (large, small):
                say(f"{kind}: {load.count} {load.label}, {repeats} times")
                instances, clear = Instances(load), _clearing(url, s3)
                arms = {
                    "store": _arm(load, instances, clear, functools.partial(_put, store)),
                    "api": _arm(
                        load, instances, clear, Sender(api, "files", "/api/v1/studies", KEYS["submitter"]).send
                    ),
                }
                if kind == "directory" and load is large:
                    with contextlib.ExitStack() as peers:
                        arms["hashed"] = _arm(load, instances, clear, functools.partial(_hash_and_put, store))
                        try:
                            peer = peers.enter_context(orthanc(live_stack.folder))
                            arms["orthanc"] = _arm(load, instances, clear, StowSender(peer.url).send)
                        except MissingRequirement as error:
                            say(f"left out: {error}")
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
        "POST /api/v1/studies until the receipt says stored, against the bare store's put of the same bytes, one "
        "sender each",
        GOAL,
        tuple(cases),
        details,
        quick,
    )


def _arm(load: Load, instances: Instances, clear: Callable[[], None], send: Callable[[list[bytes]], None]) -> Arm:
    """Measure one way to store a repeat's instances, in units a second; making and removing them is not counted."""

    def once() -> float:
        contents = instances.batch()
        start = time.perf_counter()
        send(contents)
        took = time.perf_counter() - start
        clear()
        return load.of_bytes(len(contents), sum(map(len, contents))) / took

    return once


def _put(store: Store, contents: Sequence[bytes]) -> None:
    """Put object after object by one client, under names that do not depend on the content: the baseline."""
    for content in contents:
        name = uuid.uuid4().hex
        store.put(f"originals/{name[:2]}/{name}.dcm", io.BytesIO(content), len(content))


def _hash_and_put(store: Store, contents: Sequence[bytes]) -> None:
    """Put them under the hash of their content, which takes time to compute."""
    for content in contents:
        store.put(original_key(sha256_of(content)), io.BytesIO(content), len(content))


def _clearing(url: str, s3: S3Server) -> Callable[[], None]:
    """Make a function that removes what a repeat stored, so that disk and memory do not fill."""
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
    """Sends as a hospital does: one connection, request after request, the bytes written as they are in memory."""

    def __init__(self, url: str, field: str, path: str, key: str) -> None:
        self.field, self.path = field, path
        self.headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}",
        }
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)

    def send(self, contents: Sequence[bytes]) -> None:
        """Send all; raises RuntimeError unless each is answered as stored."""
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
        response = self._http.getresponse()
        body = response.read()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"the upload was answered {response.status}: {body[:300]!r}")
        return json.loads(body)

    def _check(self, receipt: Any, count: int) -> None:  # noqa: ANN401 - JSON
        if receipt["stored"] != count:
            raise RuntimeError(f"of {count} instances {receipt['stored']} were stored")


class StowSender(Sender):
    """Sends by STOW-RS (PS3.18 10.5) to a DICOMweb server."""

    def __init__(self, url: str, key: str = "") -> None:
        """Prepare a connection. key: that is shown; empty: none."""
        super().__init__(url, "", "/dicom-web/studies", key)
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}'
        self.headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        self.headers |= {"Authorization": f"Bearer {key}"} if key else {}

    def _part(self, number: int) -> bytes:  # noqa: ARG002 - as the base class
        return b"\r\n--" + BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n"

    def _check(self, receipt: Any, count: int) -> None:  # noqa: ANN401 - JSON
        stored = len(receipt.get("00081199", {}).get("Value", []))
        if stored != count:
            raise RuntimeError(f"of {count} instances {stored} were stored")


def _groups(contents: Sequence[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    for content in contents:
        if group and (len(group) >= REQUEST_FILES or sum(map(len, group)) + len(content) > REQUEST_BYTES):
            yield group
            group = []
        group.append(content)
    if group:
        yield group
