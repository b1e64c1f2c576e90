"""2,000 studies go through while every part is killed at a random moment: none is lost, none is done twice."""

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx
import psycopg2
import pytest
import redis

from infra.embedded.parts import Part, osteon_parts, osteon_steps
from infra.embedded.process import free_port
from infra.embedded.stack import Stack
from infra.embedded.state import Secrets, read_secrets
from shared.domain.analysis import TaskOutcome
from shared.settings import ROOT, Settings
from tests.live_stack import SETTINGS, Studies, decoders_of, instance
from tests.pace import LIMIT_S, limit_s

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STUDIES = 2000
AHEAD = 300  # studies that wait while the sender is ahead
FILES = 10  # a request
WINDOW_S = 2.0
STEADY_S = 15.0


@dataclass
class PlannedFault:
    """What was done to the system, and when it was itself again."""

    name: str
    what: str
    at: float = 0.0  # seconds since 1970
    in_hand: list[str] = field(default_factory=list)  # studies that were being analysed
    rate: float = 0.0  # studies/s before
    back_s: float = 0.0  # until half of it is reached for good
    healed_s: float = 0.0  # until what was in hand is analysed

    @property
    def steady_s(self) -> float:
        """Until both."""
        return max(self.back_s, self.healed_s)


class Sender(threading.Thread):
    """A hospital's bulk sender: sends on and on, and again what got no response."""

    def __init__(self, url: str, key: str, studies: Studies) -> None:
        super().__init__(name="sender", daemon=True)
        self.stored: dict[str, str] = {}  # file name to study id, as the API answered
        self.failures: Counter[str] = Counter()
        self.wrong = ""
        self._url, self._key, self._studies = url, key, studies

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=LIMIT_S, trust_env=False) as http:
            for start in range(0, STUDIES, FILES):
                parts = [("files", (f"{n}.dcm", instance("two thousand", n))) for n in range(start, start + FILES)]
                while not self._send(http, parts):
                    time.sleep(0.5)
                while len(self.stored) - analysed(self._studies) > AHEAD:
                    time.sleep(0.3)

    def _send(self, http: httpx.Client, parts: list[tuple[str, tuple[str, bytes]]]) -> bool:
        try:
            response = http.post("/api/v1/studies", files=parts, headers={"Authorization": f"Bearer {self._key}"})
        except httpx.HTTPError as error:
            self.failures[type(error).__name__] += 1
            return False
        if response.status_code != 200:
            self.failures[str(response.status_code)] += 1
            return False
        self.stored |= {line["file"]: line["study_id"] for line in response.json()["files"]}
        return True


def analysed(studies: Studies) -> int:
    """How many are analysed now; 0 while Postgres does not say."""
    try:
        return int(studies.ask("SELECT count(*) FROM studies WHERE status = 'analysed'")[0][0])
    except psycopg2.Error:
        return 0


@pytest.fixture
def stack(tmp_path: Path, s3_host: str) -> Iterator[Stack]:
    """The stack under its own supervisor, with two workers of a quick model, and a store that can be killed."""
    port, mood = free_port(), tmp_path / "mood"
    mood.write_text("")
    direct = f"s3://osteon:osteon-secret@{s3_host}/two-thousand"
    model = {f"OSTEON_{name}": value for name, value in (SETTINGS | {"DECODERS": "2"}).items()}
    model |= {"MODEL_S": "0.08", "OMP_NUM_THREADS": "1"}
    proxy = [sys.executable, str(ROOT / "tests/store_proxy.py"), str(port), s3_host, str(mood)]

    def steps(variables: Mapping[str, str], secrets: Secrets) -> Sequence[Part]:
        return [
            replace(s, variables={**s.variables, "OSTEON_STORE_URL": direct}) for s in osteon_steps(variables, secrets)
        ]

    def parts(variables: Mapping[str, str], secrets: Secrets) -> Sequence[Part]:
        kept = {part.name: part for part in osteon_parts(variables, secrets)}
        worker = [sys.executable, "-m", "tests.fake_worker"]
        quick = replace(kept["worker"], command=worker, variables=model, stop_wait_s=20)
        workers = [replace(quick, name=f"worker-{n}") for n in (1, 2)]
        return [*workers, kept["api"], kept["beat"], Part("store", proxy)]

    config = Settings(home=tmp_path / "home", store_url=direct.replace(s3_host, f"127.0.0.1:{port}"))
    with Stack(config, steps=steps, parts=parts, report=lambda words: print(f"    {words}")) as running:
        yield running


def pid_of(stack: Stack, name: str) -> int:
    """The process of a part."""
    state = json.loads((stack.home / "stack.json").read_text())
    return int(state["parts"][name]["pid"])


def kill(stack: Stack, name: str) -> str:
    os.kill(pid_of(stack, name), signal.SIGKILL)
    return "killed with -9"


def kill_decoder(stack: Stack, rng: random.Random) -> str:
    while not (found := decoders_of(pid_of(stack, f"worker-{rng.randint(1, 2)}"))):
        tend(stack, 0.1)
    rng.choice(found).kill()
    return "killed with -9"


def flush(stack: Stack) -> str:
    client = redis.Redis.from_url(stack.urls["broker"])
    client.flushall()
    client.close()
    return "FLUSHALL"


def tend(stack: Stack, seconds: float) -> None:
    """Let time pass, under supervision."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stack.check()
        time.sleep(0.1)


def faults_of(stack: Stack, rng: random.Random) -> list[tuple[str, Callable[[], str]]]:
    """Every kind of fault once, in a random order."""
    parts = ["worker-1", "worker-2", "valkey", "postgres", "api", "store", "beat"]
    found: list[tuple[str, Callable[[], str]]] = [(name, partial(kill, stack, name)) for name in parts]
    found += [("a decoder", lambda: kill_decoder(stack, rng)), ("the broker's memory", lambda: flush(stack))]
    rng.shuffle(found)
    return found


def measure(faults: Sequence[PlannedFault], studies: Studies, end: float) -> None:
    """Fill in how long each fault was felt, from the times that Postgres has of each study."""
    rows = studies.ask("SELECT id::text, extract(epoch FROM analysed_at) FROM studies ORDER BY analysed_at")
    when = {study_id: float(moment) for study_id, moment in rows}
    times = sorted(when.values())

    def rate(at: float, seconds: float) -> float:
        return sum(at <= moment < at + seconds for moment in times) / seconds

    for fault, following in zip(faults, [*[f.at for f in faults[1:]], end], strict=True):
        fault.rate = rate(fault.at - 5, 5)
        looks = [0.1 * n for n in range(int(10 * (following - fault.at - WINDOW_S)))]
        low = [look for look in looks if rate(fault.at + look, WINDOW_S) < fault.rate / 2]
        fault.back_s = low[-1] + WINDOW_S / 2 if low else 0.0
        fault.healed_s = max([when[study_id] - fault.at for study_id in fault.in_hand], default=0.0)


def test_two_thousand_studies_while_everything_is_killed(stack: Stack, pytestconfig: pytest.Config) -> None:
    """Each part is killed once at a random moment and started again by the supervisor: every study that the API called
    stored is analysed exactly once, and the throughput is back soon after each fault."""
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(10**6)))
    print(f"\nFAULTS_SEED={seed}")
    rng = random.Random(seed)
    studies = Studies(stack.urls["database"])
    sender = Sender(stack.urls["api"], read_secrets(stack.home)["keys"]["submitter"], studies)
    sender.start()
    began = time.time()
    faults: list[PlannedFault] = []
    planned = faults_of(stack, rng)
    room = STUDIES / (len(planned) + 1)
    for number, (name, do) in enumerate(planned):
        moment = int(room * (number + rng.uniform(0.5, 1.0)))
        while analysed(studies) < moment:
            tend(stack, 0.2)
        running = [
            study_id for (study_id,) in studies.ask("SELECT study_id::text FROM analyses WHERE state = 'running'")
        ]
        at = time.time()
        faults.append(PlannedFault(name, do(), at, running))
        print(f"{at - began:6.1f} s  {name}: {faults[-1].what}, {len(running)} studies in hand")
    while sender.is_alive() or analysed(studies) < STUDIES:
        tend(stack, 0.5)
        left = "SELECT state, attempts, reason, sent_at, lease_until FROM analyses WHERE state <> 'done' LIMIT 20"
        assert time.time() - faults[-1].at < limit_s(100), studies.ask(left)
    end = time.time()
    measure(faults, studies, end)
    print(f"{STUDIES} studies in {end - began:.0f} s; the sender saw {dict(sender.failures)}")
    print(f"{'fault':20} {'studies/s before':>18} {'half of it after':>18} {'what was in hand done after':>28}")
    for one in faults:
        print(f"{one.name:20} {one.rate:18.1f} {one.back_s:16.1f} s {one.healed_s:26.1f} s")
    ids = list(sender.stored.values())
    assert len(set(ids)) == len(sender.stored) == STUDIES
    assert studies.ask("SELECT count(*), min(status), max(status) FROM studies") == [(STUDIES, "analysed", "analysed")]
    assert studies.findings(ids) == [1] * STUDIES
    assert max(results_written(stack.home).values()) == 1
    assert max(one.steady_s for one in faults) < limit_s(STEADY_S)


def results_written(home: Path) -> Counter[str]:
    """How often each study's results were written, as the workers' logs have it."""
    written: Counter[str] = Counter()
    for log in (home / "logs").glob("worker-*.log"):
        for line in log.read_text().splitlines():
            if '"message": "analysis finished"' in line:
                told = json.loads(line)
                written[told["study"]] += told["outcome"] == TaskOutcome.ANALYSED
    return written
