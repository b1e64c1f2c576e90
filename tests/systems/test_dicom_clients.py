"""dcmtk's clients against the DICOM listener as a process: what they were told was stored is stored, whatever happens.

Counted by QIDO-RS and in the database, never by a client's exit status. Needs Debian's dcmtk.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from sqlalchemy import func, select

from infra.embedded.process import free_port
from samples.objects import pattern_image, to_bytes
from shared.db.engine import Database
from shared.db.tables import AnalysisRow, HeldFileRow, InstanceRow, StudyRow
from shared.dicom.image import NATIVE
from shared.domain.peers import PeerRule
from shared.domain.security import Role, System
from shared.queries import access, peers
from shared.settings import ROOT, Settings
from shared.storage import open_store, original_key
from tests.conftest import InProcessApi
from tests.pace import limit_s, until

pytestmark = pytest.mark.systems
SAMPLES = ROOT / "samples" / "studies"
PROPOSING = {  # what makes storescu propose a transfer syntax
    "1.2.840.10008.1.2": "-xi", "1.2.840.10008.1.2.1": "-xe", "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.4.50": "-xy", "1.2.840.10008.1.2.4.70": "-xs", "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu", "1.2.840.10008.1.2.4.90": "-xv", "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}  # fmt: skip
SENDERS, IMAGES = 4, 200
READER = "osk_test_key_of_a_reader_of_the_listeners_site"
SENDING, RESPONSE = re.compile(rb"^I: Sending file: (.+)$"), re.compile(rb"^I: Received Store Response \((.+)\)")


class Listening:
    """`osteon dicom` as a process that can be killed."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database, self.port = settings, database, free_port()
        secret = {
            name: getattr(settings, name).get_secret_value() for name in ("database_url", "broker_url", "store_url")
        }
        values = secret | {
            "identity_key": settings.identity_key.get_secret_value(), "spool_dir": str(settings.spool_dir),
            "home": str(settings.home), "dicom_port": str(self.port), "dicom_processes": "2",
        }  # fmt: skip
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self.environment |= {f"OSTEON_{name.upper()}": value for name, value in values.items()}
        self.process: subprocess.Popen[bytes] | None = None
        with database.transaction() as session:
            site = access.make_site(session, "north")
            assert site
            access.add_key(session, "north", "reader", Role.RADIOLOGIST, READER)
            for name in ("STORESCU", "DCMSEND", "ECHOSCU", "FINDSCU"):
                peers.admit(session, System.PREPARE, site, PeerRule(name, "OSTEON"), name=name, issuer="")

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self.settings.home / "listener.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api.listener.server"], env=self.environment, stdout=log, stderr=log, cwd=ROOT
            )

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return True
            return False

        until(listens, 30)

    def end(self, number: signal.Signals) -> None:
        """Send it a signal and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(limit_s(60))

    def client(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start one of dcmtk's clients."""
        command = [program, "-v", "-aet", program.upper(), "-aec", "OSTEON", "127.0.0.1", str(self.port), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def count(self, *chosen: Any) -> int:
        """Count rows."""
        with self.database.transaction() as session:
            return int(session.scalar(select(func.count()).select_from(*chosen)) or 0)

    def stored(self) -> dict[str, bytes]:
        """The original of each image, by its UID."""
        store = open_store(self.settings.store_url.get_secret_value())
        with self.database.transaction() as session:
            rows = session.execute(select(InstanceRow.sop_instance_uid, InstanceRow.sha256)).all()
        return {uid: store.get(original_key(sha256)) for uid, sha256 in rows}


@pytest.fixture
def listening(make_settings: Any, database: Database) -> Iterator[Listening]:
    """A listener process with peers for dcmtk's clients."""
    made = Listening(make_settings(), database)
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGTERM)
        assert made.process.returncode == 0


def listed(api: InProcessApi) -> Counter[str]:
    """SOP Instance UIDs that QIDO-RS lists, each as often as it does."""
    response = api.http.get("/dicom-web/instances", headers={"Authorization": f"Bearer {READER}"})
    response.raise_for_status()
    return Counter(one["00080018"]["Value"][0] for one in response.json())


def successes(output: bytes) -> list[str]:
    """The files that storescu says were answered with Success."""
    told, current = [], ""
    for line in output.splitlines():
        if sending := SENDING.match(line):
            current = sending[1].decode()
        elif (response := RESPONSE.match(line)) and response[1] == b"Success":
            told.append(current)
    return told


def pixels(content: bytes | Path) -> bytes:
    """The value of Pixel Data, as it is stored."""
    file = content if isinstance(content, Path) else pydicom.filebase.DicomBytesIO(content)
    return bytes(pydicom.dcmread(file).PixelData)


def syntax_of(content: bytes | Path) -> str:
    """Transfer Syntax UID of a file."""
    file = content if isinstance(content, Path) else pydicom.filebase.DicomBytesIO(content)
    return str(pydicom.dcmread(file, specific_tags=[]).file_meta.TransferSyntaxUID)


def uid_of(path: Path) -> str:
    """SOP Instance UID of a file."""
    return str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def test_echo(listening: Listening) -> None:
    """echoscu is answered; under another title it is not, and is told which."""
    client = listening.client("echoscu")
    assert b"Received Echo Response (Success)" in client.communicate()[0]
    stranger = subprocess.run(
        ["echoscu", "-v", "-aet", "STRANGER", "-aec", "OSTEON", "127.0.0.1", str(listening.port)],
        capture_output=True, check=False,
    )  # fmt: skip
    assert b"Calling AE Title Not Recognized" in stranger.stderr + stranger.stdout


def test_a_query_is_refused_and_harms_nothing(listening: Listening) -> None:
    """Queries are answered by QIDO-RS alone: findscu is told that no context is accepted, and others are served on."""
    client = listening.client("findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID")
    assert b"No Acceptable Presentation Contexts" in client.communicate()[0]
    assert b"Received Echo Response (Success)" in listening.client("echoscu").communicate()[0]


def send(listening: Listening, program: str) -> bytes:
    """Send all samples as they are; returns what the client wrote."""
    if program == "dcmsend":
        return listening.client(program, "+sd", "+r", str(SAMPLES)).communicate()[0]
    groups: dict[str, list[str]] = {}
    for path in sorted(SAMPLES.rglob("*.dcm")):
        groups.setdefault(PROPOSING[syntax_of(path)], []).append(str(path))
    return b"".join(listening.client(program, "-R", how, *paths).communicate()[0] for how, paths in groups.items())


@pytest.mark.parametrize("program", ["storescu", "dcmsend"])
def test_all_samples_arrive(listening: Listening, in_process: InProcessApi, program: str) -> None:
    """34 of 36 are compressed. storescu proposes one kind of compression at a time, and converts or skips the others."""
    files = sorted(SAMPLES.rglob("*.dcm"))
    output = send(listening, program)
    stored = listening.stored()
    assert {uid_of(path) for path in files} == set(stored), output[-2000:].decode()
    assert listed(in_process) == dict.fromkeys(stored, 1)
    for path in files:
        assert pixels(path) == pixels(stored[uid_of(path)])
        # dcmsend writes uncompressed ones anew, without a loss
        assert syntax_of(path) == syntax_of(stored[uid_of(path)]) or syntax_of(path) in NATIVE
    again = send(listening, program)
    assert listed(in_process) == dict.fromkeys(stored, 1)
    assert listening.count(InstanceRow) == len(files)
    assert listening.count(HeldFileRow) == 0, again[-2000:].decode()


def test_what_was_told_to_be_stored_is_stored_whenever_the_listener_is_killed(
    listening: Listening, in_process: InProcessApi, tmp_path: Path
) -> None:
    """200 radiographs over 4 associations, kill -9 three times: no Success is lost, and a second sending doubles none."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(1)
    files = []
    for number in range(IMAGES):
        image = pattern_image(number // 2, f"image {number}")
        image.Rows = image.Columns = 512
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelData = noise.integers(0, 4096, (512, 512), np.uint16).tobytes()
        path = folder / f"{number:03}.dcm"
        path.write_bytes(to_bytes(image, pydicom.uid.ExplicitVRLittleEndian))
        files.append(path)
    queues = [files[number::SENDERS] for number in range(SENDERS)]
    told: set[str] = set()
    for kill in (True, True, True, False):
        told |= one_round(listening, queues, kill=kill)
        if kill:
            listening.start()
    stored = listening.stored()
    assert told
    assert {uid_of(Path(path)) for path in told} <= set(stored)
    assert listed(in_process) == dict.fromkeys(stored, 1)
    for name in told:
        assert pixels(Path(name)) == pixels(stored[uid_of(Path(name))])
    output = listening.client("storescu", "-R", "+sd", str(folder)).communicate()[0]
    assert len(successes(output)) == IMAGES
    assert sorted(listed(in_process).values()) == [1] * IMAGES
    assert listening.count(InstanceRow) == IMAGES
    assert listening.count(StudyRow) == listening.count(AnalysisRow) == IMAGES // 2
    assert listening.count(HeldFileRow) == 0
    assert not list(Path(str(listening.settings.spool_dir)).iterdir())


def one_round(listening: Listening, queues: Sequence[list[Path]], *, kill: bool) -> set[str]:
    """Each sender sends a part of its queue, which is taken off it; returns what was answered with Success."""
    before = listening.count(InstanceRow)
    parts = []
    for queue in queues:
        part = queue[:12] if kill else list(queue)
        del queue[: len(part)]
        parts.append(part)
    clients = [listening.client("storescu", "-R", *map(str, part)) for part in parts]
    if kill:
        until(lambda: listening.count(InstanceRow) >= before + 12, 60, every_s=0.02)
        listening.end(signal.SIGKILL)
    outputs = [client.communicate()[0] for client in clients]
    told = {path for output in outputs for path in successes(output)}
    if kill:
        assert 0 < len(told) < sum(map(len, parts)), "it was killed too early or too late to tell"
    else:
        assert len(told) == sum(map(len, parts))
    return told
