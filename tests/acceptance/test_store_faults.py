"""The object store is slow, answers 503, dies, or its disk is full: nothing is called stored that is not."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from infra.embedded.process import free_port
from infra.embedded.s3_server import S3Server
from shared.db.tables import InstanceRow
from shared.settings import ROOT
from shared.storage import open_store, original_key, sha256_of
from tests.conftest import InProcessApi
from tests.forked import ForkedProcess
from tests.live_stack import BreakableStack, instance
from tests.pace import LIMIT_S

pytestmark = pytest.mark.timeout(300)


class Proxy:
    """An S3 server behind a proxy of changing moods."""

    def __init__(self, upstream: str, folder: Path) -> None:
        self.port, self._upstream, self._mood = free_port(), upstream, folder / "mood"
        self.url = f"s3://osteon:osteon-secret@127.0.0.1:{self.port}/faults-{self.port}"
        self.mood("")
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "tests/store_proxy.py"), str(self.port), self._upstream, str(self._mood)]
        self.process = subprocess.Popen(command)

    def mood(self, word: str) -> None:
        """As tests/store_proxy.py knows them."""
        fresh = self._mood.with_name("new")
        fresh.write_text(word)
        fresh.replace(self._mood)

    def requests(self, start: str) -> "Counter[str]":
        """How often each request came that begins so, e.g. "GET /"."""
        lines = self._mood.with_name("mood.requests").read_text().splitlines()
        return Counter(line for line in lines if line.startswith(start))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)


@pytest.fixture
def proxy(s3_host: str, tmp_path: Path) -> Iterator[Proxy]:
    made = Proxy(s3_host, tmp_path)
    yield made
    made.kill()


@pytest.mark.slow
def test_a_slow_store(live_stack: BreakableStack, proxy: Proxy) -> None:
    """A store that takes 1.5 s for each call delays, and nothing else: no error, no attempt lost."""
    url, worker = served(live_stack, proxy.url)
    ids = live_stack.submit("slow", 20, url=url)
    live_stack.midway(ids)
    proxy.mood("slow 1.5")
    since = time.monotonic()
    assert live_stack.post("slowly", 0, url).json()["stored"] == 1
    live_stack.all_analysed_once(ids, since)
    assert {state[1] for state in live_stack.studies.states(ids)} == {1}
    assert worker.poll() is None


@pytest.mark.slow
def test_a_store_that_is_slow_and_then_refuses(live_stack: BreakableStack, proxy: Proxy) -> None:
    """A store that takes 1.5 s for each call and after 5 s answers 503 for 8 s, as one that is overrun does: no study is
    lost or set aside, and what it refused is told as the store's fault."""
    url, worker = served(live_stack, proxy.url)
    ids = live_stack.submit("overrun", 40, url=url)
    live_stack.midway(ids)
    proxy.mood("slow 1.5")
    since = time.monotonic()
    assert live_stack.post("overrun slowly", 0, url).json()["stored"] == 1
    time.sleep(max(0.0, 5 - (time.monotonic() - since)))
    assert live_stack.studies.done(ids) < len(ids), "nothing was left to be refused"
    proxy.mood("refuse")
    response = live_stack.post("overrun meanwhile", 0, url)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "OSTEON_STORE_URL" in response.json()["detail"]
    live_stack.until(lambda: any(state[2] == "store-unavailable" for state in live_stack.studies.states(ids)), 30)
    time.sleep(8)
    proxy.mood("")
    live_stack.all_analysed_once(ids, time.monotonic())
    # one that was refused just before the store was well again cannot tell whose fault it was
    assert max(state[1] for state in live_stack.studies.states(ids)) <= 2
    assert worker.poll() is None
    assert any("worker: analysis failed" in line and "OSTEON_STORE_URL" in line for line in live_stack.complaints())


@pytest.mark.slow
def test_an_original_is_read_once(live_stack: BreakableStack, proxy: Proxy) -> None:
    """A study's originals are fetched from the store once, to be analysed: the API has what it needs from what came."""
    url, _ = served(live_stack, proxy.url)
    ids = live_stack.submit("once", 20, url=url)
    live_stack.all_analysed_once(ids, time.monotonic())
    keys = [
        original_key(sha256)
        for (sha256,) in live_stack.studies.ask("SELECT sha256 FROM instances WHERE study_id = ANY(%s::uuid[])", ids)
    ]
    assert len(keys) == 20
    bucket = proxy.url.rsplit("/", 1)[1]
    asked = proxy.requests(f"GET /{bucket}/originals/")  # an earlier test's study may still be in work
    assert {key: count for key in keys if (count := asked[f"GET /{bucket}/{key}"]) != 1} == {}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["refuses", "dies"])
def test_a_store_that_is_away(live_stack: BreakableStack, proxy: Proxy, how: str) -> None:
    """A store that answers 503 for 8 s, or is killed: uploads are told 503 and the cure, no attempt counts, the studies'
    reasons say what happened, and all is analysed once it is back."""
    url, worker = served(live_stack, proxy.url)
    ids = live_stack.submit(how, 30, url=url)
    live_stack.midway(ids)
    if how == "refuses":
        proxy.mood("refuse")
    else:
        proxy.kill()
    since = time.monotonic()
    response = live_stack.post(f"{how} meanwhile", 0, url)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "OSTEON_STORE_URL" in response.json()["detail"]
    live_stack.until(lambda: any(state[2] == "store-unavailable" for state in live_stack.studies.states(ids)), 30)
    time.sleep(max(0.0, 8 - (time.monotonic() - since)))
    if how == "refuses":
        proxy.mood("")
    else:
        proxy.start()
    live_stack.all_analysed_once(ids, time.monotonic())
    assert worker.poll() is None
    assert any("worker: analysis failed" in line and "OSTEON_STORE_URL" in line for line in live_stack.complaints())
    # it was not called stored, and sent again it is new
    assert live_stack.post(f"{how} meanwhile", 0, url).json()["stored"] == 1


@pytest.mark.slow
def test_the_server_itself_is_killed(live_stack: BreakableStack, tmp_path: Path) -> None:
    """A real S3 server killed with -9 midway and started again on its data: no study and no object is lost, no attempt
    counts, and what came meanwhile was not called stored."""
    with S3Server(tmp_path / "server") as server:
        if server.kind == "moto":
            pytest.skip("moto keeps its objects in memory")
        store_url = server.url("killed")
        url, worker = served(live_stack, store_url)
        ids = live_stack.submit("server", 30, url=url)
        live_stack.midway(ids)
        server.kill()
        response = live_stack.post("server meanwhile", 0, url)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        live_stack.until(lambda: any(state[2] == "store-unavailable" for state in live_stack.studies.states(ids)), 30)
        server.start()
        live_stack.all_analysed_once(ids, time.monotonic())
        assert worker.poll() is None
        store = open_store(store_url)
        for (sha256,) in live_stack.studies.ask("SELECT sha256 FROM instances WHERE study_id = ANY(%s::uuid[])", ids):
            assert sha256_of(store.get(original_key(sha256))) == sha256
        assert live_stack.post("server meanwhile", 0, url).json()["stored"] == 1


def served(live_stack: BreakableStack, store_url: str) -> "tuple[str, subprocess.Popen[bytes] | ForkedProcess]":
    """The URL of an API, and a worker, with this store."""
    store = {"OSTEON_STORE_URL": store_url}
    live_stack.prepare(**store)
    return live_stack.api(**store), live_stack.worker(**store)


def test_a_full_disk(make_api: Callable[..., InProcessApi], small_disk: Callable[[str], Path]) -> None:
    """A store without room takes nothing: 503 with the cure, no row, no half an object; with room again all is taken."""
    disk = small_disk("256k")
    api = make_api(store_url=f"file:{disk / 'objects'}")
    filler = disk / "filler"
    filler.write_bytes(bytes(250 * 1024))
    response = api.post({f"{number}.dcm": instance("full", number) for number in range(5)})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "No space left on device" in response.json()["detail"]
    assert "OSTEON_STORE_URL" in response.json()["detail"]
    with api.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(InstanceRow)) == 0
    assert list((disk / "objects" / "incoming").iterdir()) == []
    filler.unlink()
    since = time.monotonic()
    again: Any = api.post({f"{number}.dcm": instance("full", number) for number in range(5)}).json()
    print(f"taken {time.monotonic() - since:.1f} s after there was room")
    assert (again["stored"] + again["duplicate"], again["rejected"]) == (5, 0)
