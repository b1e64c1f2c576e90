"""What uploads may take: threads of their own, room in the spool."""

import io
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import func, select, update

from api.messages import send_tasks
from api.spool import RESERVED_SHARE, SpoolBudget, SpoolFull
from samples.objects import SYNTAX, pattern_image, set_pixels, to_bytes
from shared.db.tables import InstanceRow, StudyRow, UploadUsageRow
from shared.dicom.header import read_header
from tests.conftest import InProcessApi
from tests.pace import LIMIT_S, until
from tests.served import served

UPLOADS = 44


def image(number: int = 0, encoding: str = "explicit") -> bytes:
    """A file of a study of its own."""
    ds = pattern_image(1, f"limits/{number}")
    ds.StudyInstanceUID = f"2.25.9{number}"
    if encoding == "deflated":
        set_pixels(ds, [np.zeros((500, 500), np.uint16)], 12, encoding)
    return to_bytes(ds, SYNTAX[encoding])


def archive(*members: bytes) -> bytes:
    """A zip of these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for number, member in enumerate(members):
            file.writestr(f"{number}.dcm", member)
    return packed.getvalue()


class BlockingWork:
    """Work on uploads that ends when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = 0
        self._lock = threading.Lock()

    def before(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The work, which begins and then waits."""

        def held(*args: Any, **more: Any) -> Any:
            with self._lock:
                self.begun += 1
            assert self.go_on.wait(LIMIT_S)
            return work(*args, **more)

        return held


@contextmanager
def at_once(url: str, headers: dict[str, str], bodies: list[bytes]) -> Iterator[list["Future[int]"]]:
    """Send these, each in a request of its own, side by side; gives the futures of the responses' statuses."""
    with ThreadPoolExecutor(len(bodies)) as pool:

        def send(body: bytes) -> int:
            return httpx.post(
                f"{url}/api/v1/studies",
                files={"files": ("a.zip", body)},
                headers=headers,
                trust_env=False,
                timeout=LIMIT_S,
            ).status_code

        yield [pool.submit(send, body) for body in bodies]


@pytest.mark.parametrize("where", ["headers", "messages"])
def test_pages_are_served_while_uploads_keep_their_threads(
    in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """44 zips of deflated images, none of which gets on: the list is answered before any of them, time after time."""
    held = BlockingWork()
    if where == "headers":
        monkeypatch.setattr("api.intake.files.read_header", held.before(read_header))
    else:
        monkeypatch.setattr("api.intake.requests.send_tasks", held.before(send_tasks))
    threads = in_process.settings.upload_threads
    bodies = [archive(image(number, "deflated")) for number in range(UPLOADS)]
    with served(in_process.http.app) as port:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{port}"
        with at_once(url, in_process.headers("submitter"), bodies) as sent:
            try:
                until(lambda: held.begun >= threads, LIMIT_S)
                for _ in range(3):
                    asked = httpx.get(
                        f"{url}/api/v1/worklist", headers=in_process.headers(), trust_env=False, timeout=LIMIT_S
                    )
                    assert asked.status_code == 200
                assert held.begun == threads
                if where == "headers":
                    assert not any(one.done() for one in sent)
            finally:
                held.go_on.set()
            assert [one.result() for one in sent] == [200] * UPLOADS
    with in_process.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(StudyRow)) == UPLOADS


def test_a_body_that_trickles_keeps_no_thread(in_process: InProcessApi) -> None:
    """Twenty uploads that are never finished: another one is taken, though there are threads for fewer."""
    headers = in_process.headers("submitter")
    begun = (
        f"POST /api/v1/studies HTTP/1.1\r\nHost: t\r\nAuthorization: {headers['Authorization']}\r\nContent-Length: 5000000\r\n"
        'Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name="files"; '
        'filename="a"\r\n\r\n'
    ).encode() + bytes(2_000_000)
    with served(in_process.http.app) as port:  # type: ignore[arg-type]
        open_ones = [socket.create_connection(("127.0.0.1", port), LIMIT_S) for _ in range(20)]
        try:
            for one in open_ones:
                one.sendall(begun)
            with at_once(f"http://127.0.0.1:{port}", headers, [image()]) as sent:
                assert sent[0].result(LIMIT_S) == 200
        finally:
            for one in open_ones:
                one.close()


def test_all_spools_together_are_bounded(make_api: Callable[..., InProcessApi], tmp_path: Path) -> None:
    """What one upload holds the next one lacks: 503, when to come again, nothing half stored, and room is given back."""
    api = make_api(max_spool_bytes=3_000_000)
    budget = api.http.app.state.parts.spool_budget  # type: ignore[attr-defined]
    data = image()
    with_room = api.post({"a.dcm": data})
    assert (with_room.status_code, budget.used) == (200, 0)
    budget.reserve_bytes(2_999_000)  # by another upload
    refused = api.post({"b.dcm": image(1)})
    assert refused.status_code == 503
    assert "OSTEON_MAX_SPOOL_BYTES" in refused.json()["detail"]
    assert int(refused.headers["Retry-After"]) > 0
    budget.release_bytes(2_999_000)
    # an archive finds its room while it is unpacked, or nothing of its request is stored
    refused = api.post({"c.dcm": image(2), "c.zip": archive(image(3) + os.urandom(1_200_000).hex().encode())})
    assert refused.status_code == 503
    assert budget.used == 0
    with api.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(InstanceRow)) == 1
    assert len(list((tmp_path / "objects" / "originals").rglob("*.dcm"))) == 1
    assert api.post({"b.dcm": image(1)}).status_code == 200


def test_a_reserve_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the disk is full, however small it is; of a small one a part."""
    budget = SpoolBudget(tmp_path, 1 << 40, 2 << 30)

    class Disk:
        f_frsize = 4096
        f_blocks = 100 * 2**30 // 4096
        f_bavail = 3 * 2**30 // 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Disk)
    budget.reserve_bytes(2**30)
    with pytest.raises(SpoolFull, match="OSTEON_SPOOL_DIR"):
        budget.check(2**30 + 4096)
    Disk.f_blocks, Disk.f_bavail = 10 * 2**20 // 4096, 2**20 // 4096
    budget.check(2**20 - 10 * 2**20 // RESERVED_SHARE - 4096)
    with pytest.raises(SpoolFull):
        budget.check(2**20)


def test_a_compressed_body_is_told_of(in_process: InProcessApi) -> None:
    """What nobody unpacks is refused by its name, not as a malformed body."""
    headers = in_process.headers("submitter") | {
        "Content-Encoding": "gzip",
        "Content-Type": "multipart/form-data; boundary=b",
    }
    response = in_process.http.post("/api/v1/studies", content=b"\x1f\x8b", headers=headers)
    assert response.status_code == 415
    assert "Content-Encoding" in response.json()["detail"]


def test_an_archive_and_a_deflated_image_share_a_budget(make_api: Callable[..., InProcessApi]) -> None:
    """What one expands to the others lack; each is told so in its line, and those before are stored."""
    data = image(0, "deflated")
    api = make_api(max_inflated_bytes=700_000)
    response = api.post({"a.dcm": data, "b.zip": archive(image(1, "deflated"))})
    lines = response.json()["files"]
    assert [line["outcome"] for line in lines] == ["stored", "rejected"]
    assert "fewer others" in lines[1]["text"]


# -- quotas


def wait_of(response: Any, status: int = 429) -> int:
    """For how long to wait, as a refusal says in problem+json."""
    assert response.status_code == status, response.text
    assert response.json()["status"] == status
    return int(response.headers["Retry-After"])


def studies_of(api: InProcessApi) -> int:
    with api.database.transaction() as session:
        return session.scalar(select(func.count()).select_from(StudyRow)) or 0


def test_bytes_of_a_key_and_of_its_site(make_api: Callable[..., InProcessApi]) -> None:
    """What goes beyond is refused before its body is read, told when to come again; another key of the site goes on."""
    size = len(image()) + 400
    api = make_api(key_bytes_per_hour=2 * size, site_bytes_per_hour=3 * size)
    for number in range(2):
        assert api.post({"a.dcm": image(number)}).status_code == 200
    assert 3500 < wait_of(api.post({"a.dcm": image(2)})) <= 3660
    assert api.post({"a.dcm": image(3)}, role="admin").status_code == 200
    assert "This site" in api.post({"a.dcm": image(4)}, role="admin").json()["detail"]
    assert studies_of(api) == 3


def test_a_quota_comes_back_by_the_minute(make_api: Callable[..., InProcessApi]) -> None:
    """What was sent more than an hour ago counts no more, and Retry-After says when that will be."""
    api = make_api(key_studies_per_hour=2)
    for number in range(2):
        assert api.post({"a.dcm": image(number)}).status_code == 200
    with api.database.transaction() as session:
        session.execute(update(UploadUsageRow).values(at=UploadUsageRow.at - timedelta(minutes=50)))
    assert 500 < wait_of(api.post({"a.dcm": image(2)})) <= 660
    with api.database.transaction() as session:
        session.execute(update(UploadUsageRow).values(at=UploadUsageRow.at - timedelta(minutes=11)))
    assert api.post({"a.dcm": image(2)}).status_code == 200


def test_two_api_processes_share_a_quota(make_api: Callable[..., InProcessApi]) -> None:
    """Twelve studies at once to two of them, of which five may come: five come, each whole, and no other leaves a row."""
    apis = [make_api(key_studies_per_hour=5) for _ in range(2)]
    with ThreadPoolExecutor(12) as pool:
        sent = [pool.submit(apis[n % 2].post, {"a.dcm": image(n)}) for n in range(12)]
        statuses = sorted(one.result().status_code for one in sent)
    assert statuses == [200] * 5 + [429] * 7
    assert studies_of(apis[0]) == 5


def test_a_share_of_urgent(make_api: Callable[..., InProcessApi]) -> None:
    """Some in any case, then half of what a key sends; a study that is made urgent counts, one that is urgent no more."""
    api = make_api(urgent_free=2, urgent_share=0.5)
    for number in range(2):
        assert api.post({"a.dcm": image(number)}, priority="urgent").status_code == 200
    assert api.post({"a.dcm": image(1)}, priority="urgent").status_code == 200
    wait_of(api.post({"a.dcm": image(2)}, priority="urgent"))
    assert studies_of(api) == 2
    for number in range(2, 5):
        assert api.post({"a.dcm": image(number)}).status_code == 200
    wait_of(api.post({"a.dcm": image(2), "b.dcm": image(3)}, priority="urgent"))
    with api.database.transaction() as session:
        assert session.scalar(select(func.count()).where(StudyRow.priority == "urgent")) == 2
    assert api.post({"a.dcm": image(5)}, priority="urgent").status_code == 200


def test_what_came_in_vain_is_not_charged(
    make_api: Callable[..., InProcessApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that our own parts could not take may be sent again."""
    api = make_api(key_bytes_per_hour=len(image()) + 400)

    def refuse(*_: object) -> None:
        raise SpoolFull

    with monkeypatch.context() as patched:
        patched.setattr("api.intake.files.Intake.run", refuse)
        assert api.post({"a.dcm": image()}).status_code == 503

    def charged() -> int:
        with api.database.transaction() as session:
            return session.scalar(select(func.sum(UploadUsageRow.size_bytes))) or 0

    until(lambda: charged() == 0, LIMIT_S)
    assert api.post({"a.dcm": image()}).status_code == 200


def test_administrators_and_prometheus_see_what_was_sent(make_api: Callable[..., InProcessApi]) -> None:
    """The site and each key, with what they may; refusals and the spool are counted."""
    api = make_api(key_studies_per_hour=1)
    api.post({"a.dcm": image()})
    wait_of(api.post({"a.dcm": image(1)}))
    view = api.http.get("/api/v1/operations", headers=api.headers()).json()
    assert [(one["name"], one["studies"], one["most_studies"]) for one in view["sent"]] == [
        ("", 1, 100_000),
        ("submitter", 1, 1),
    ]
    told = api.http.get("/metrics", headers=api.headers("operator")).text
    assert 'osteon_api_uploads_refused_total{why="quota"}' in told
    assert "osteon_api_spool_bytes 0.0" in told


def test_no_quota(make_api: Callable[..., InProcessApi]) -> None:
    """0 and a share of 1 mean that nothing is limited."""
    names = (
        "key_bytes_per_hour",
        "site_bytes_per_hour",
        "key_studies_per_hour",
        "site_studies_per_hour",
        "urgent_free",
    )
    api = make_api(**dict.fromkeys(names, 0), urgent_share=1.0)
    for number in range(3):
        assert api.post({"a.dcm": image(number)}, priority="urgent").status_code == 200
