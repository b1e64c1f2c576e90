"""Compares what comes and is searched by DICOM with dcmtk's storescp, with Orthanc's STOW-RS, and with look-ups by key.

All write to one disk. storescp leaves it to the system when bytes reach the disk; with fsync it runs `sync` on each
file after its response. Osteon answers when file and row are durable.
"""

import contextlib
import functools
import os
import random
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from string import ascii_lowercase
from typing import Any
from uuid import UUID

import httpx
import psycopg2
from sqlalchemy import select

from benchmarks.measure import Arm, Case, Goal, MissingRequirement, Result, Say, interleaved
from benchmarks.orthanc import orthanc
from benchmarks.upload import Instances, Load, StowSender, megabytes
from benchmarks.worklist import STUDIES_SQL
from benchmarks.workload import ANALYSES
from infra.embedded.live_stack import KEYS, LiveStack
from infra.embedded.process import Child, free_port, is_free, wait_until
from shared.db.engine import Database
from shared.db.tables import StudyRow
from shared.domain.study import Identity
from shared.queries.access import Vault, find_key

GOAL, STOW_GOAL, QIDO_GOAL = Goal(">=", 0.7), Goal(">=", 1.5), Goal("<=", 5)
STUDIES, QUICK_STUDIES = 100_000, 10_000
PAGE = 101  # studies that OHIF asks for
STEP = 2000  # identities that are written at once
SYLLABLES = (
    "ba chen der fi gar hol im jo kra lu man nov or pet qua ris schu tan um vel win xa yil zor".split()  # noqa: SIM905
)
GIVEN = "ADA BEN CLEO DAN EVE FINN GAIL HUGO IRIS JON KIM LEO MIA NED OLGA PIA ROY SUE TOM UNA VIC".split()  # noqa: SIM905
SERIES_SQL = """
INSERT INTO series (id, site_id, study_id, series_instance_uid, modality)
SELECT gen_random_uuid(), site_id, id, study_instance_uid || '.1', modality FROM studies
WHERE study_instance_uid LIKE '1.2.3.%'"""
INSTANCES_SQL = """
INSERT INTO instances (
    id, site_id, study_id, series_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256, size_bytes,
    modality, body_part, rows, columns, frames, received_at, error_reason)
SELECT gen_random_uuid(), studies.site_id, studies.id, series.id, study_instance_uid || '.1.1', '1.2', '1.2',
    repeat('0', 64), 1, studies.modality, 'HAND', 1, 1, 1, received_at, ''
FROM studies JOIN series ON series.study_id = studies.id WHERE study_instance_uid LIKE '1.2.3.%'"""


class Folder:
    """Files of one repeat, each repeat's under new UIDs."""

    def __init__(self, path: Path, instances: Instances) -> None:
        self.path, self.instances = path, instances

    def fill(self, parts: int) -> list[list[str]]:
        """Write the next repeat's files, and share them among some senders."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        names = []
        for number, content in enumerate(self.instances.batch()):
            file = self.path / f"{number:03}.dcm"
            file.write_bytes(content)
            names.append(str(file))
        return [names[part::parts] for part in range(parts)]


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Send radiographs of 8 MB by C-STORE and by STOW-RS, and search among studies by patient's name.

    Args:
        quick: fewer radiographs, studies and repeats.
        say: is called with a line of progress.

    Returns:
        The rate of C-STORE to that of storescp; of STOW-RS to Orthanc's; the time of QIDO-RS to that of look-ups.

    Raises:
        MissingRequirement: dcmtk or Orthanc is not installed.
        StackError: A server did not start.
    """
    for program in ("storescu", "storescp"):
        if shutil.which(program) is None:
            raise MissingRequirement(f"dcmtk's {program}: apt-get install dcmtk")
    count, repeats = (6, 3) if quick else (24, 9)
    load = Load("radiographs of 8 MB", count, 2000, 2000, "MB/s", megabytes)
    cases: list[Case] = []
    with LiveStack() as live_stack, contextlib.ExitStack() as peers:
        url = live_stack.api()
        ports = _receivers(live_stack, url, peers)
        archive = peers.enter_context(orthanc(live_stack.folder))
        folder = Folder(live_stack.folder / "sent", Instances(load))
        clear = functools.partial(_clear, live_stack.folder)
        for associations in (1, 4):
            say(f"C-STORE: {count} {load.label}, associations: {associations}, {repeats} times")
            arms = {name: _c_store(folder, associations, port, clear) for name, port in ports.items()}
            samples = interleaved(arms, repeats)
            cases += [
                Case.of(f"C-STORE, associations: {associations}, {name}", load.unit, samples["osteon"], values)
                for name, values in samples.items()
                if name != "osteon"
            ]
        say(f"STOW-RS: {count} {load.label}, {repeats} times")
        senders = {"osteon": StowSender(url, KEYS["submitter"]), "orthanc": StowSender(archive.url)}
        samples = interleaved({name: _stow(load, one, clear) for name, one in senders.items()}, repeats)
        cases.append(
            Case.of("STOW-RS, against Orthanc", load.unit, samples["osteon"], samples["orthanc"], goal=STOW_GOAL)
        )
        qido, medians = _qido(live_stack, url, quick, say)
        cases += qido
    compares = (
        "C-STORE of radiographs until all are answered, against dcmtk's storescp; STOW-RS against Orthanc's; "
        f"p95 of QIDO-RS over HTTP by PatientName with limit={PAGE} against {PAGE} SELECTs of a study by its key"
    )
    return Result("dicom_in", compares, GOAL, tuple(cases), {"medians, ms": medians}, quick)


def _receivers(live_stack: LiveStack, url: str, peers: contextlib.ExitStack) -> dict[str, int]:
    """Start Osteon's listener and two of dcmtk's; returns their ports."""
    with live_stack.client(url) as client:
        client.post("/api/v1/dicom-peers", {"calling_ae": "STORESCU", "called_ae": "OSTEON"})
    ports = {"osteon": free_port()}
    live_stack.run("dicom", "-m", "api.listener.server", OSTEON_DICOM_PORT=str(ports["osteon"]))
    for name, options in {
        "against storescp without fsync": [],
        "against storescp with fsync": ["--exec-sync", "--exec-on-reception", "sync #p/#f"],
    }.items():
        port, home = free_port(), live_stack.folder / f"storescp-{len(ports)}"
        home.mkdir()
        # as it comes, in a process for each association; the largest PDU that it takes
        command = ["storescp", "--fork", "--bit-preserving", "-pdu", "131072", "-od", str(home), *options, str(port)]
        child = Child(name, command, live_stack.folder / f"{home.name}.log", {"PATH": os.environ["PATH"]})
        child.start()
        peers.callback(child.stop)
        ports[name] = port
    if not wait_until(lambda: not any(map(is_free, ports.values())), 60):
        raise MissingRequirement("a DICOM listener did not start")
    return ports


def _clear(folder: Path) -> None:
    """Remove what a repeat stored, so that disk and memory do not fill; Orthanc keeps its own."""
    for place in (folder / "objects/originals", folder / "storescp-1", folder / "storescp-2"):
        for path in place.iterdir() if place.exists() else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _c_store(folder: Folder, associations: int, port: int, clear: Callable[[], None]) -> Arm:
    """Measure storescu's sending of a repeat's files over some associations, in MB/s."""
    storescu = shutil.which("storescu") or ""

    def once() -> float:
        parts = folder.fill(associations)
        size = sum(Path(name).stat().st_size for part in parts for name in part)
        options = ["-v", "-R", "-pdu", "131072", "-aet", "STORESCU", "-aec", "OSTEON", "127.0.0.1", str(port)]
        start = time.perf_counter()
        clients = [
            subprocess.Popen([storescu, *options, *part], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for part in parts
        ]
        outputs = [client.communicate()[0] for client in clients]
        took = time.perf_counter() - start
        stored = sum(output.count(b"Received Store Response (Success)") for output in outputs)
        if stored != sum(map(len, parts)):
            raise RuntimeError(f"of {sum(map(len, parts))} radiographs {stored} were stored: {outputs[0][-500:]!r}")
        clear()
        return size / 1e6 / took

    return once


def _stow(load: Load, sender: StowSender, clear: Callable[[], None]) -> Arm:
    """Measure one connection that stores a repeat's radiographs, in MB/s."""
    instances = Instances(load)

    def once() -> float:
        contents = instances.batch()
        start = time.perf_counter()
        sender.send(contents)
        took = time.perf_counter() - start
        clear()
        return sum(map(len, contents)) / 1e6 / took

    return once


def _qido(live_stack: LiveStack, url: str, quick: bool, say: Say) -> tuple[list[Case], dict[str, float]]:  # noqa: FBT001
    count = QUICK_STUDIES if quick else STUDIES
    calls, repeats = (20, 3) if quick else (60, 9)
    say(f"QIDO-RS: loading {count:,} studies")
    names, studies = _load(live_stack, count)
    rng = random.Random(5)  # noqa: S311 - no secret
    client = httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {KEYS['radiologist']}"}, trust_env=False, timeout=120
    )
    database = Database(live_stack.postgres.url, 1)
    family = sorted({name.partition("^")[0] for name in names})
    frequent = Counter(pair for name in names for pair in _pairs(name))
    pairs = [pair for pair, _ in frequent.most_common()]
    absent = sorted({one + other for one in ascii_lowercase for other in ascii_lowercase} - set(pairs))
    patterns: dict[str, Callable[[], str]] = {
        "one name": lambda: rng.choice(names),
        "begin of a name": lambda: f"{rng.choice(family)[:5]}*",
        "within names": lambda: f"*{rng.choice(family)[1:6].lower()}*",
        "three letters within names": lambda: f"*{rng.choice(family)[1:4]}*",
        "two letters, the most frequent": lambda: f"*{pairs[0]}*",
        "two letters, each that occurs": lambda: f"*{rng.choice(pairs)}*",
        "two letters, none of these": lambda: f"*{rng.choice(absent)}*",
        "no such name": lambda: f"*{rng.choice(family)[:4]}ww*",
    }

    def ask(pattern: Callable[[], str]) -> None:
        response = client.get("/dicom-web/studies", params={"PatientName": pattern(), "limit": PAGE})
        if response.status_code != httpx.codes.OK:
            raise RuntimeError(f"the query was answered {response.status_code}")

    def look_up() -> None:
        with database.transaction() as session:
            for _ in range(PAGE):
                session.execute(select(StudyRow).where(StudyRow.id == rng.choice(studies))).one()

    timed: dict[str, Callable[[], None]] = {f"look-ups, {PAGE}": look_up}
    timed |= {f"QIDO-RS, {name}": functools.partial(ask, pattern) for name, pattern in patterns.items()}
    middles: dict[str, list[float]] = {name: [] for name in timed}
    say(f"QIDO-RS: {len(patterns)} kinds of patterns, {calls} of each, {repeats} times")
    try:
        samples = interleaved({name: _p95(call, calls, middles[name]) for name, call in timed.items()}, repeats)
    finally:
        database.close()
        client.close()
    baseline = samples.pop(f"look-ups, {PAGE}")
    cases = [Case.of(name, "ms", values, baseline, goal=QIDO_GOAL) for name, values in samples.items()]
    return cases, {name: round(statistics.median(found), 1) for name, found in middles.items()}


def _pairs(name: str) -> set[str]:
    """Letters that stand side by side in a component of a name."""
    return {part[at : at + 2] for part in name.lower().split("^") for at in range(len(part) - 1)}


def _p95(call: Callable[[], object], calls: int, middles: list[float]) -> Arm:
    """Measure the 95th percentile of several calls, in ms; their median goes to `middles`."""

    def once() -> float:
        took = []
        for _ in range(calls):
            start = time.perf_counter()
            call()
            took.append(1000 * (time.perf_counter() - start))
        middles.append(statistics.median(took))
        return sorted(took)[round(0.95 * (calls - 1))]

    return once


def _load(live_stack: LiveStack, count: int) -> tuple[list[str], list[UUID]]:
    """Fill the tables with studies of patients; returns their names, and the studies of the reader's site."""
    connection = psycopg2.connect(live_stack.postgres.owner_url.replace("+psycopg2", ""))
    connection.autocommit = True
    database = Database(live_stack.postgres.url, 1)
    vault = Vault(live_stack.environment["OSTEON_IDENTITY_KEY"])
    try:
        with connection.cursor() as cursor, database.transaction() as session:
            key = find_key(session, KEYS["radiologist"])
            assert key is not None
            given: dict[str, Any] = {"ours": str(key.site_id), "other": str(key.site_id), "count": count}
            cursor.execute("SET synchronous_commit = off")
            cursor.execute("SELECT setseed(0.5)")
            cursor.execute(STUDIES_SQL, given | {"now": datetime.fromisoformat("2026-03-01T00:00:00+00:00")})
            for statement in (ANALYSES, SERIES_SQL, INSTANCES_SQL):
                cursor.execute(statement)
            cursor.execute("SELECT id FROM studies WHERE study_instance_uid LIKE '1.2.3.%'")
            studies = [UUID(str(one)) for (one,) in cursor.fetchall()]
            people = _names(len(studies))
            for start in range(0, len(studies), STEP):
                group = zip(studies[start : start + STEP], people[start : start + STEP], strict=True)
                known = {study: Identity(name, f"ID-{study.hex[:12]}") for study, name in group}
                vault.store_identities(session, key.site_id, known)
        with connection.cursor() as cursor:
            for table in ("studies", "analyses", "series", "instances", "identities", "identity_tokens"):
                cursor.execute(f"VACUUM ANALYZE {table}")
    finally:
        connection.close()
        database.close()
    return people, studies


def _names(count: int) -> list[str]:
    """Make names of patients; a family name stands for about ten of 100,000."""
    rng = random.Random(4)  # noqa: S311 - no secret
    families = [("".join(rng.choices(SYLLABLES, k=3))).upper() for _ in range(10_000)]
    return [f"{rng.choice(families)}^{rng.choice(GIVEN)}" for _ in range(count)]
