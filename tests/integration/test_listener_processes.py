"""A listener of several processes: limits, figures and reports hold over all of them; one that is killed is replaced."""

import contextlib
import io
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pydicom
import pytest
from prometheus_client.metrics import MetricWrapperBase
from sqlalchemy import select

from api.listener import metrics, server
from api.listener.places import Places
from infra.embedded.process import free_port
from shared.db.engine import Database
from shared.db.tables import InstanceRow
from shared.domain.peers import PeerRule
from shared.domain.security import System
from shared.queries import access, commitments, peers
from shared.settings import ROOT, Settings
from tests.forked import ForkedProcess
from tests.integration.test_listener import CR, SENT_AS, UID_1, Modality, Raw, Running, image, reaches
from tests.pace import LIMIT_S, limit_s, until

PROCESSES = 3


@dataclass
class Several:
    """A listener of several processes, with its watching process."""

    process: ForkedProcess
    port: int
    metrics_port: int
    settings: Settings
    database: Database
    log: Path

    def children(self) -> list[int]:
        """The processes that take associations."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        with contextlib.suppress(OSError):
            return sorted(int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split())
        return []

    def metric(self, name: str) -> float:
        """A value of /metrics; 0 if it is not there."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False, timeout=LIMIT_S).text
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)

    def stored(self) -> set[str]:
        """UIDs of all instances."""
        with self.database.transaction() as session:
            return set(session.scalars(select(InstanceRow.sop_instance_uid)))

    def raw(self) -> Raw:
        """Ask for an association."""
        return Raw(self.port, SENT_AS)


@pytest.fixture
def several(
    make_settings: Callable[..., Settings], database: Database, tmp_path: Path
) -> Iterator[Callable[..., Several]]:
    """Starts listeners; the peer SENDER may send."""
    running: list[Several] = []

    def start(**changes: Any) -> Several:
        port, metrics_port = changes.get("dicom_port", free_port()), free_port()
        own = {"dicom_port": port, "dicom_metrics_port": metrics_port, "dicom_processes": PROCESSES}
        settings = make_settings(**(own | changes))
        with database.transaction() as session:
            site = access.make_site(session, "north")
            if site:
                peers.admit(session, System.PREPARE, site, PeerRule("SENDER"), name="sender", issuer="")
        secrets = {
            name: getattr(settings, name) for name in ("database_url", "broker_url", "store_url", "identity_key")
        }
        values = {name: secret.get_secret_value() for name, secret in secrets.items()}
        values |= {"spool_dir": str(settings.spool_dir)} | {name: str(value) for name, value in (own | changes).items()}
        environment = {f"OSTEON_{name.upper()}": value for name, value in values.items()} | {"PYTHONPATH": str(ROOT)}
        log = tmp_path / f"listener-{len(running)}.log"
        with log.open("wb") as file:
            process = ForkedProcess(server.main, environment, file, ROOT)
        made = Several(process, port, metrics_port, settings, database, log)
        running.append(made)
        until(lambda: b"listener started" in log.read_bytes(), 60)
        return made

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.terminate()
        one.process.wait(limit_s(60))


def ended(raw: Raw) -> bool:
    """Whether an association was cut."""
    raw.connection.settimeout(0.01)
    try:
        return raw.connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_limits_hold_over_all_processes_and_what_a_killed_one_held_is_free(several: Callable[..., Several]) -> None:
    """Associations go to the process that has the fewest; no process counts by itself."""
    running = several(dicom_associations=6, dicom_associations_per_peer=5)
    children = running.children()
    assert len(children) == PROCESSES
    raws = [running.raw() for _ in range(6)]
    assert [raw.answer for raw in raws] == [b"\x02"] * 5 + [b"\x03"]
    assert raws[-1].pdu[7:10] == b"\x02\x03\x02"
    assert running.metric("osteon_listener_associations") == 5
    os.kill(children[1], signal.SIGKILL)
    until(lambda: sum(map(ended, raws[:5])) in (1, 2), 20)
    cut = sum(map(ended, raws[:5]))
    until(lambda: len(running.children()) == PROCESSES and children[1] not in running.children(), 30)
    until(lambda: running.metric("osteon_listener_associations") == 5 - cut, 20)
    more = [running.raw() for _ in range(cut + 1)]
    assert [raw.answer for raw in more] == [b"\x02"] * cut + [b"\x03"]
    for raw in (*raws, *more):
        raw.connection.close()
    until(lambda: running.metric("osteon_listener_associations") == 0, 20)


def test_killed_processes_lose_nothing_that_was_answered_and_metrics_are_sums(several: Callable[..., Several]) -> None:
    """Senders over several associations, each process killed once; then the watching one ends as it is asked to."""
    running = several()
    told: list[str] = []
    done = threading.Event()

    def send(first: int) -> None:
        numbers = iter(range(first, 100_000, 4))
        while not done.is_set():
            with contextlib.suppress(AssertionError, OSError):
                raw = running.raw()
                while not done.is_set():
                    file = image(1, next(numbers))
                    if raw.store(file).Status == 0:
                        told.append(str(pydicom.dcmread(io.BytesIO(file)).SOPInstanceUID))

    senders = [threading.Thread(target=send, args=(first,)) for first in range(4)]
    for sender in senders:
        sender.start()
    try:
        for victim in running.children():
            before = len(told)
            until(lambda before=before: len(told) >= before + 4, 60)  # type: ignore[misc]
            os.kill(victim, signal.SIGKILL)
            until(lambda victim=victim: victim not in running.children(), 30)  # type: ignore[misc]
            until(lambda: len(running.children()) == PROCESSES, 30)
        before = len(told)
        until(lambda: len(told) >= before + 4, 60)
    finally:
        done.set()
        for sender in senders:
            sender.join()
    assert set(told) <= running.stored()
    counted = running.metric('osteon_listener_objects_total{status="0000"}')
    assert 0 < counted <= len(told) + 4 * PROCESSES
    for number in range(8):
        raw = running.raw()
        assert raw.store(image(2, number)).Status == 0
        raw.close()
    until(lambda: running.metric('osteon_listener_objects_total{status="0000"}') == counted + 8, 10)
    children = running.children()
    running.process.terminate()
    assert running.process.wait(limit_s(60)) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert running.log.read_bytes().count(b"listener process replaced") == PROCESSES


@pytest.mark.slow
def test_when_the_watching_process_is_killed_all_end_and_the_next_one_starts(several: Callable[..., Several]) -> None:
    running = several()
    children, raw = running.children(), running.raw()
    running.process.kill()
    running.process.wait(limit_s(60))
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 20)
    assert raw.read() == b""
    raw.connection.close()
    assert not reaches(running.port)
    again = several(dicom_port=running.port)
    raw = again.raw()
    assert raw.store(image()).Status == 0
    raw.close()


@pytest.mark.slow
def test_a_listener_that_cannot_start_says_why_and_ends(several: Callable[..., Several]) -> None:
    """One sentence, and no process is left that would be started again and again."""
    running = several()
    environment = {
        "PYTHONPATH": str(ROOT), "OSTEON_DICOM_PORT": str(running.port), "OSTEON_DICOM_PROCESSES": "2",
        "OSTEON_IDENTITY_KEY": running.settings.identity_key.get_secret_value(),
    }  # fmt: skip
    command = [sys.executable, "-m", "api.listener.server"]
    taken = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False, timeout=limit_s(60))
    assert taken.returncode == 1
    assert b"OSTEON_DICOM_PORT" in taken.stderr
    environment |= {"OSTEON_DICOM_PORT": str(free_port()), "OSTEON_IDENTITY_KEY": "none"}
    wrong = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False, timeout=limit_s(60))
    assert wrong.returncode == 1
    assert b"OSTEON_IDENTITY_KEY" in wrong.stderr


def test_reports_come_over_the_association_of_their_request(several: Callable[..., Several]) -> None:
    """Although each process looks for reports that are due: another one waits longer."""
    started = several(dicom_commitment=True)
    running = Running(None, started.port, started.settings, started.database)  # type: ignore[arg-type]
    modality = Modality(running)
    assert running.send(image(1, 1))[0].Status == 0
    associations = [modality.associate() for _ in range(4)]
    for number, association in enumerate(associations):
        assert modality.ask(association, (CR, UID_1), transaction=f"1.2.3.{number}") == 0
    assert [modality.report()[2] for _ in associations] == ["us"] * len(associations)
    for association in associations:
        association.release()
    with pytest.raises(queue.Empty):
        modality.reports.get_nowait()
    # of a process that is gone another one sends them, over an association of its own
    held = modality.associate()
    with modality.listening():
        assert modality.ask(held, (CR, UID_1), transaction="1.2.3.9") == 0
        held.abort()
        kind, _, by = modality.report()
    assert (kind, by) == (1, "OSTEON")


def test_own_reports_are_due_sooner(database: Database) -> None:
    """Than those of others; a report in work is nobody's."""
    with database.transaction() as session:
        site = access.make_site(session, "north")
        assert site
        peer = peers.admit(session, System.PREPARE, site, PeerRule("SENDER"), name="sender", issuer="")
        sooner = timedelta(hours=1)
        mine, other = (
            commitments.add_request(session, peer.id, f"1.2.{number}", [(CR, UID_1)], sooner) for number in range(2)
        )  # fmt: skip
        assert mine and other
        assert commitments.take_due(session) is None
        assert commitments.take_due(session, [uuid4()], sooner) is None
        taken = commitments.take_due(session, [mine], sooner)
        assert taken is not None
        assert taken.id == mine
        assert commitments.take_due(session, [mine], timedelta(seconds=5)) is None


def test_every_metric_is_summed() -> None:
    """One that is not in ALL would be that of the watching process, which counts nothing."""
    assert {one for one in vars(metrics).values() if isinstance(one, MetricWrapperBase)} == set(metrics.ALL)


def test_places_are_shared_by_forked_processes() -> None:
    """What one takes another lacks; what one held that was killed is freed by its number."""
    places, peer, other = Places(3, 2), uuid4(), uuid4()
    assert places.take(peer, 2)
    ours, its = socket.socketpair()
    pid = os.fork()
    if not pid:
        places.number = 1
        took = [places.take(peer, 2), places.take(peer, 2), places.take(other, 2), places.take(uuid4(), 2)]
        places.spooled[1] = 5
        places.connections(2)
        its.sendall(bytes(took))
        time.sleep(600)
        os._exit(0)
    assert list(ours.recv(4)) == [True, False, True, False]
    assert (places.taken, sum(places.spooled), places.busier) == (3, 5, False)
    assert not places.take(uuid4(), 2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    places.free(1)
    assert (places.taken, sum(places.spooled)) == (1, 0)
    places.connections(1)
    assert places.busier
    places.leave(peer)
    assert places.taken == 0
