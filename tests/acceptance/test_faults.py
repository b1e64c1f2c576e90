"""Parts of the running system are killed under load: nothing is lost, nothing is done twice."""

import random
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.live_stack import KEYS, BreakableStack, decoders_of, instance
from tests.pace import LIMIT_S, limit_s

pytestmark = pytest.mark.timeout(300)
# the settings that an installation has when nobody sets any
AS_SHIPPED = {
    "OSTEON_LEASE_S": "10", "OSTEON_RECONCILE_EVERY_S": "2", "OSTEON_RESEND_GRACE_S": "8", "OSTEON_STALLED_CONSUMER_S": "6",
    "OSTEON_RETRY_BASE_S": "5", "OSTEON_MAX_ATTEMPTS": "4",
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [pytest.param({}, id="short leases"), pytest.param(AS_SHIPPED, id="as shipped", marks=pytest.mark.slow)],
)
def test_a_killed_worker(live_stack: BreakableStack, tmp_path: Path, settings: dict[str, str]) -> None:
    """kill -9 of one worker of two, with studies in hand: the other analyses them, each exactly once."""
    flag = tmp_path / "hang"
    first, other = live_stack.worker(HANG=str(flag), **settings), live_stack.worker(**settings)
    alive = "SELECT count(DISTINCT pid) FROM workers WHERE pid = ANY(%s)"
    live_stack.until(lambda: live_stack.studies.ask(alive, [first.pid, other.pid]) == [(2,)], 60)
    flag.touch()  # the first worker hangs at its next batch, so that it is known to have something in hand
    ids = live_stack.submit(f"worker {len(settings)}")

    def held() -> bool:
        if flag.exists() and live_stack.studies.done(ids) == len(ids):
            ids.extend(live_stack.submit(f"worker {len(settings)} {len(ids)}"))
        return not flag.exists()

    live_stack.until(held, 60)
    first.kill()
    seconds = live_stack.all_analysed_once(ids, time.monotonic())
    assert max(state[1] for state in live_stack.studies.states(ids)) == 2, "it died with nothing in hand"
    assert seconds < limit_s(15)


@pytest.mark.slow
def test_a_killed_decoder(live_stack: BreakableStack) -> None:
    """kill -9 of a decoder in the middle of an image: its study is tried again, and the worker goes on with a new one."""
    worker = live_stack.worker(OSTEON_DECODERS="2")
    ids = live_stack.submit("decoder")
    live_stack.midway(ids)
    since = time.monotonic()
    for _ in range(2):
        live_stack.until(lambda: len(decoders_of(worker.pid)) == 2, 30)
        random.choice(decoders_of(worker.pid)).kill()
    live_stack.all_analysed_once(ids, since)
    assert worker.poll() is None


@pytest.mark.slow
def test_a_model_that_hangs(live_stack: BreakableStack, tmp_path: Path) -> None:
    """The model shares its worker's process: when it hangs the watchdog ends both, the next process has a model again,
    and what was in hand is analysed once, after its lease."""
    flag = tmp_path / "hang"
    with live_stack.supervised(OSTEON_PREDICT_LIMIT_S="3", HANG=str(flag)) as ends:
        ids = live_stack.submit("model")
        live_stack.midway(ids)
        flag.touch()
        since = time.monotonic()
        live_stack.all_analysed_once(ids, since)
    assert ends == [70]  # watchdog.EXIT_CODE
    assert not flag.exists()
    assert any("worker: process ended the model hangs" in line for line in live_stack.complaints("critical"))


@pytest.mark.slow
def test_a_killed_api(live_stack: BreakableStack) -> None:
    """kill -9 of the API in the middle of uploads: what it called stored is analysed; the rest can be sent again."""
    live_stack.worker()
    names = [f"{number}.dcm" for number in range(60)]
    stored: dict[str, str] = {}
    rounds = 0
    while len(stored) < len(names):
        url = live_stack.api()
        process = live_stack.processes[-1]
        rounds += 1
        with httpx.Client(base_url=url, timeout=LIMIT_S, trust_env=False) as http:
            for start in range(0, len(names), 4):
                chunk = [name for name in names[start : start + 4] if name not in stored]
                files = [("files", (name, instance("api", int(name[:-4])))) for name in chunk]
                if rounds < 3 and start == 20 * rounds:
                    process.kill()
                try:
                    response = http.post(
                        "/api/v1/studies", files=files, headers={"Authorization": f"Bearer {KEYS['submitter']}"}
                    )
                except httpx.HTTPError:
                    break
                if chunk:
                    assert response.status_code == 200
                    stored |= {line["file"]: line["study_id"] for line in response.json()["files"]}
    assert rounds == 3
    ids = list(stored.values())
    assert len(set(ids)) == len(names)
    live_stack.all_analysed_once(ids, time.monotonic())


@pytest.mark.slow
def test_sigterm_under_load(live_stack: BreakableStack) -> None:
    """SIGTERM: the worker finishes what it holds and ends with 0 within 60 s; the next one does the rest."""
    worker = live_stack.worker()
    ids = live_stack.submit("sigterm")
    live_stack.midway(ids)
    worker.send_signal(signal.SIGTERM)
    since = time.monotonic()
    assert worker.wait(LIMIT_S) == 0
    print(f"ended {time.monotonic() - since:.1f} s after SIGTERM")
    assert [state for state in live_stack.studies.states(ids) if state[0] == "running"] == []
    live_stack.worker()
    live_stack.all_analysed_once(ids, since)


@pytest.mark.slow
def test_a_study_that_kills_its_worker(live_stack: BreakableStack) -> None:
    """Such a study is set aside after N attempts with words; its neighbours are analysed and not blamed."""
    poison = live_stack.submit("poison", 1)
    ids = live_stack.submit("neighbours", 12)
    since = time.monotonic()
    with live_stack.supervised(POISON=poison[0]) as ends:
        live_stack.until(lambda: live_stack.studies.done(poison + ids) == 13, 180)
    print(f"done {time.monotonic() - since:.1f} s after the start, workers ended with {ends}")
    (set_aside,) = live_stack.studies.states(poison)
    assert set_aside[:3] == ("quarantined", 3, "worker-died")
    assert {state[0] for state in live_stack.studies.states(ids)} == {"analysed"}
    assert ends == [-signal.SIGABRT] * 3
    # who was in hand when it first died is tried once more, alone; nobody is tried a third time
    assert max(state[1] for state in live_stack.studies.states(ids)) <= 2


@pytest.mark.slow
def test_a_study_at_which_the_model_raises(live_stack: BreakableStack) -> None:
    """Such a study is set aside after N attempts with the kind of error; the worker goes on, and those in the same batch
    are analysed at their first attempt."""
    worker = live_stack.worker()
    ids = live_stack.submit("before the error", 20)
    (poison,) = (line["study_id"] for line in live_stack.post("error", 0, half_black=True).json()["files"])
    ids += live_stack.submit("after the error", 20)
    live_stack.midway(ids)
    since = time.monotonic()
    live_stack.all_analysed_once(ids, since)
    live_stack.until(lambda: live_stack.studies.done([poison]) == 1, 30)
    print(f"set aside {time.monotonic() - since:.1f} s after the first results")
    (set_aside,) = live_stack.studies.states([poison])
    assert set_aside[:3] == ("quarantined", 3, "analysis-failed")
    assert {state[1] for state in live_stack.studies.states(ids)} == {1}
    assert worker.poll() is None
    assert any("worker: batch halved" in line for line in live_stack.complaints()), "it had no neighbours"
