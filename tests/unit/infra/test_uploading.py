"""The uploader against a server that fails as servers do: nothing is lost, nothing is told twice."""

import json
import re
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.client import upload as upload_module
from infra.client.api import ApiBusy, Client
from infra.client.journal import Journal
from infra.client.receipt import FileStatus
from infra.client.submission import Progress, Submission
from infra.client.upload import UploadCallbacks, Uploader
from infra.client.walk import FILES_PER_REQUEST, Archive, Item, Stamp, groups, walk
from infra.client.watching import Throughput, sentences
from shared.errors import OsteonError, Unavailable
from tests.examples import examples

# how a request may go wrong, and whether its files were taken before it did
FAILURES = ["503", "429", "500", "413", "502", "hang up", "taken, then hang up", "ok", "ok", "ok"]


class Server:
    """An API that takes files by content, and fails as its script says, a line a request."""

    def __init__(self, script: list[str]) -> None:
        self.script, self.lock = script, threading.Lock()
        self.taken: Counter[bytes] = Counter()  # how often each content was answered "stored"
        self.has: set[bytes] = set()
        self.requests = 0
        self.together = self.most_together = 0

    def next(self) -> str:
        with self.lock:
            self.requests += 1
            return self.script.pop(0) if self.script else "ok"

    def take(self, body: bytes, boundary: bytes) -> list[dict[str, Any]]:
        lines = []
        for part in body.split(b"--" + boundary)[1:-1]:
            head, content = part[2:-2].split(b"\r\n\r\n", 1)
            name = re.search(rb'filename="([^"]*)"', head)
            if name is None:
                continue
            with self.lock:
                new = content not in self.has
                self.has.add(content)
                self.taken[content] += new
            fate = "rejected" if content.startswith(b"bad") else "stored" if new else "duplicate"
            line = {"file": name[1].decode(), "outcome": fate, "study_id": "s", "sop_instance_uid": content.decode()}
            lines.append(line)
        return lines


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """Its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with server.lock:
                server.together += 1
                server.most_together = max(server.most_together, server.together)
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            # the sender may hang up midway, too: such a request is none
            what = server.next() if len(body) == length else "hang up"
            response: dict[str, Any] = {"detail": what}
            status = int(what) if what.isdigit() else 200
            if what in ("ok", "taken, then hang up"):
                boundary = self.headers["Content-Type"].split("boundary=")[1].encode()
                response = {"files": server.take(body, boundary), "studies": []}
            with server.lock:
                server.together -= 1
            if "hang up" in what:
                self.close_connection = True
                return
            text = json.dumps(response).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def files(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04}").write_bytes(b"bad" * (number % 10 == 7) + b"%d" % number)
    return folder


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once, and any bytes are sent."""
    monkeypatch.setattr(upload_module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(upload_module, "MAX_PAUSE_S", 0.002)
    monkeypatch.setattr("infra.client.submission.why_skipped", lambda *_: None)  # what is sent here is no DICOM


@examples(
    12, 80, script=st.lists(st.sampled_from(FAILURES), max_size=40), jobs=st.integers(1, 6), count=st.integers(0, 230)
)
def test_no_failure_loses_or_doubles_a_file(
    tmp_path_factory: pytest.TempPathFactory, script: list[str], jobs: int, count: int
) -> None:
    """Whatever the API answers in between, every file has exactly one line, and what is called stored is there."""
    folder = files(tmp_path_factory.mktemp("sending") / "day", count)
    server = Server(list(script))
    with serving(server) as url, Client(url, "key") as client, Journal(folder.parent / "journal") as journal:
        sending = Submission(client, [folder], "routine", jobs, 60, journal)
        sending.run()
    assert sending.uploader.failure is None
    assert [line.file for line in sending.lines] == [f"{number:04}" for number in range(count)]
    assert server.most_together <= jobs
    assert all(times == 1 for times in server.taken.values())
    for line in sending.lines:
        content = (folder / line.file).read_bytes()
        if line.outcome in (FileStatus.STORED, FileStatus.DUPLICATE):
            assert content in server.has
        elif line.reason == "request-refused":  # the server breaks on this file alone, or said so
            assert set(script) & {"500", "413"}
        else:
            assert content.startswith(b"bad")
    assert sending.tally.bytes == sum(
        len((folder / line.file).read_bytes()) for line in sending.lines if line.reason != "request-refused"
    )
    with Journal(folder.parent / "journal") as again:
        assert len(again) == sum(line.outcome in (FileStatus.STORED, FileStatus.DUPLICATE) for line in sending.lines)


def test_giving_up(tmp_path: Path) -> None:
    """An API that stays away ends the run; every file is said to be unsent, those not begun too."""
    folder = files(tmp_path / "day", 170)
    with serving(Server(["503"] * 10_000)) as url, Client(url, "key") as client:
        sending = Submission(client, [folder], "routine", 2, 0.05, None)
        sending.run()
    assert isinstance(sending.uploader.failure, Unavailable)
    assert [line.outcome for line in sending.lines] == [FileStatus.UNSENT] * 170


def test_a_file_that_vanishes_or_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is gone, or is still being written, when its turn comes is said; its neighbours are sent."""
    folder = files(tmp_path / "day", 5)

    def found(places: Any, **_: Any) -> Iterator[Any]:
        seen = list(walk(places))
        (folder / "0001").unlink()
        with (folder / "0003").open("ab") as file:
            file.write(b"more")
        return iter(seen)

    monkeypatch.setattr("infra.client.submission.walk", found)
    with serving(Server([])) as url, Client(url, "key") as client:
        sending = Submission(client, [folder], "routine", 1, 60, None)
        monkeypatch.setattr(sending, "_count", lambda: None)
        sending.run()
    assert [line.outcome for line in sending.lines] == ["stored", "unreadable", "stored", "unreadable", "stored"]
    assert "longer" in (sending.lines[3].text or "")


@given(st.lists(st.tuples(st.integers(0, 10**8), st.integers(1, 80)), max_size=120))
def test_groups_are_bounded_and_whole(sizes: list[tuple[int, int]]) -> None:
    """Grouping keeps every item, in order, and no group of two or more is over the bounds."""
    items = [Item(str(n), Path("x"), Stamp(size, 0), size, None, count) for n, (size, count) in enumerate(sizes)]
    made = list(groups(items))
    assert [item for group in made for item in group] == items
    for group in made:
        assert len(group) == 1 or sum(item.files for item in group) <= FILES_PER_REQUEST
        assert len(group) == 1 or sum(item.size_bytes for item in group) <= 64 * 2**20


def test_the_walk_reads_no_further_than_it_is_asked(tmp_path: Path) -> None:
    """The first file is there before the second folder is opened: a hundred thousand files need no first pass."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_text("x")
    (tmp_path / "b").mkdir()
    found = walk([tmp_path])
    assert isinstance(first := next(found), Item)
    assert first.name == "a/1"
    (tmp_path / "b" / "2").write_text("written after the walk began")
    assert [each.name for each in found if isinstance(each, Item)] == ["b/2"]


def test_missing_place_is_said_at_once(tmp_path: Path) -> None:
    """A mistyped folder is an error before anything is sent, even if another one is there."""
    with pytest.raises(OsteonError, match="does not exist"):
        walk([tmp_path, tmp_path / "nowhere"])


def test_an_archive_too_large_goes_by_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the bounds an archive is not sent as it is; its members are the items."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("1", "one")
        packed.writestr("2", "two")
    (small,) = walk([tmp_path])
    monkeypatch.setattr("infra.client.walk.MAX_MEMBERS", 1)
    (large,) = walk([tmp_path])
    assert isinstance(small, Archive)
    assert isinstance(large, Archive)
    assert (small.sendable, large.sendable) == (True, False)
    server = Server([])
    with serving(server) as url, Client(url, "key") as client:
        sending = Submission(client, [tmp_path], "routine", 1, 60, None)
        sending.run()
    assert server.has == {b"one", b"two"}
    assert [line.file for line in sending.lines] == ["a.zip!1", "a.zip!2"]


def test_journal_cut_off_anywhere(tmp_path: Path) -> None:
    """Wherever a crash cuts the journal off, the whole lines before count, and what is added later counts too."""
    from infra.client.journal import JournalEntry

    items = [Item(str(n), tmp_path / f"ü{n}", Stamp(n, n), n) for n in range(3)]
    known = [JournalEntry(item.stamp, "0" * 64, f"s{n}", f"1.{n}") for n, item in enumerate(items)]
    with Journal(tmp_path / "j") as journal:
        journal.add(zip(items[:2], known[:2], strict=True))
    content = (tmp_path / "j").read_bytes()
    assert (tmp_path / "j").stat().st_mode & 0o077 == 0
    for cut in range(len(content) + 1):
        (tmp_path / "j").write_bytes(content[:cut])
        with Journal(tmp_path / "j") as journal:
            assert len(journal) == sum(end <= cut for end in (content.index(b"}") + 1, content.rindex(b"}") + 1))
            journal.add([(items[2], known[2])])
        with Journal(tmp_path / "j") as journal:
            assert journal.stored(items[2]) == known[2]


def test_two_runs_at_once(tmp_path: Path) -> None:
    """A second run by the same journal is refused while the first one lasts."""
    with Journal(tmp_path / "j"):
        with pytest.raises(OsteonError, match="Another osteon submit"):
            Journal(tmp_path / "j")
    Journal(tmp_path / "j").__exit__()


def test_pace() -> None:
    """Many small files cost more than their bytes: the time left is the longer of the two reckonings."""
    tally = Progress(total_files=100, total_bytes=1000)
    pace = Throughput(tally)
    pace.record(0.0)
    assert pace.left_s() is None
    tally.files, tally.bytes = 10, 900
    pace.record(10.0)
    assert pace.rates() == (90.0, 1.0)
    assert pace.left_s() == 90.0
    assert sentences(tally, pace)[0].startswith("10 of 100 files")
    assert sentences(tally, pace)[1].endswith("0:01:30 left")


@pytest.mark.parametrize("walked", [0, 3, 130, 1000])
def test_an_abandoned_run_names_every_file(tmp_path: Path, walked: int) -> None:
    """However far the walk came, and whatever was on its way: each file has one line, those not answered "unsent"."""
    folder = files(tmp_path / "day", 230)
    with zipfile.ZipFile(folder / "zz.zip", "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}", f"inside {number}")
    server = Server(["hang up"] * 1000)
    seen = 0

    def stop(_self: Submission, _place: object, _item: object) -> bool:
        nonlocal seen
        seen += 1
        if seen > walked:
            raise KeyboardInterrupt
        return False

    with serving(server) as url, Client(url, "key") as client, pytest.MonkeyPatch.context() as patch:
        sending = Submission(client, [folder], "routine", 2, 60, None)
        patch.setattr(Submission, "_skipped", stop)
        if walked < 230:
            with pytest.raises(KeyboardInterrupt):
                sending.run()
        else:
            threading.Timer(0.2, sending.uploader.stop).start()
            sending.run()
        sending.mark_unsent()
    names = [f"{number:04}" for number in range(230)] + [f"zz.zip!{number}" for number in range(5)]
    assert [line.file for line in sending.lines] == names
    assert {line.outcome for line in sending.lines} == {FileStatus.UNSENT}


class Patient:
    """A clock that passes as it is waited for."""

    def __init__(self) -> None:
        self.now_s, self.waits_s = 0.0, list[float]()

    def wait(self, seconds: float) -> bool:
        """As an event's that nobody sets."""
        self.now_s += max(seconds, 0.001)
        self.waits_s.append(seconds)
        return False

    def is_set(self) -> bool:
        """Never."""
        return False


@pytest.mark.parametrize(("status", "waited"), [(429, True), (503, False)])
def test_a_quota_is_waited_for_as_long_as_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, waited: bool
) -> None:
    """The API answers and says when: that is no reason to give up, however long it is; a broken API is."""
    clock, troubles = Patient(), list[str]()
    monkeypatch.setattr(upload_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    responses: list[Any] = [ApiBusy(status, "This key may send 5 studies an hour.", 3000.0)] * 3 + [
        {"files": [], "studies": []}
    ]

    class Api:
        def upload(self, _body: object) -> Any:
            response = responses.pop(0)
            if isinstance(response, Exception):
                raise response
            return response

    callbacks = UploadCallbacks(lambda _: None, lambda *_: None, lambda _: None, lambda _: None, troubles.append)
    uploader = Uploader(Api(), "routine", 1, 60.0, callbacks)  # type: ignore[arg-type]
    uploader._stopping = clock  # type: ignore[assignment]
    if waited:
        uploader._send_until_answered([], 0.0)
        assert min(clock.waits_s) >= 3000
        assert "This key may send" in troubles[0]
        assert "3000 s" in troubles[0]
        assert troubles[-1] == ""
    else:
        with pytest.raises(ApiBusy):
            uploader._send_until_answered([], 0.0)
