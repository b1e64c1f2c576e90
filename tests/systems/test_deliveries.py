"""Results to dcmtk's storescp, which keeps every file that it is given, while the sender is killed at random moments."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from sqlalchemy import func, select, update

from shared.db.engine import Database
from shared.db.tables import BundleRow, DeliveryRow, DestinationRow
from shared.domain.destinations import Destination, DestinationKind, Rule, When
from shared.domain.security import Role
from shared.queries.access import add_key, key_of_row
from shared.settings import ROOT, Settings
from shared.storage import sha256_of
from tests.hospital import Hospital
from tests.integration.test_deliveries import MANIFEST, analysed
from tests.pace import limit_s
from tests.results import DEFAULT, Outbox

STUDIES, KILLS = 500, 12
pytestmark = pytest.mark.systems


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A storescp that keeps each file under a name of its own."""
    folder = tmp_path / "archive"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["storescp", "--unique-filenames", "--output-directory", str(folder), "+xa", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield port, folder
    server.terminate()
    server.wait()


def test_a_killed_sender_doubles_only_what_was_on_its_way(
    database: Database,
    make_settings: Callable[..., Settings],
    hospital: Hospital,
    storescp: tuple[int, Path],
    tmp_path: Path,
) -> None:
    """Nothing is lost; a file is there twice at most once a kill; repeats are the same bytes."""
    port, folder = storescp
    settings = make_settings(lease_s=2.0)
    with database.transaction() as session:
        session.execute(update(BundleRow).values(manifest=MANIFEST))
        row = add_key(session, "north", "an admin", Role.ADMIN, "osk_results")
        assert row is not None
        key = key_of_row(row)
    outbox = Outbox(database, settings, hospital.site_id, key)
    outbox.add(Destination(DestinationKind.DICOM, "127.0.0.1", port, "STORESCP"), Rule(When.ANALYSED, DEFAULT))
    for _ in range(STUDIES):
        analysed(hospital)
    assert outbox.make() == STUDIES
    environment = {
        **os.environ, "OSTEON_DATABASE_URL": settings.database_url.get_secret_value(), "OSTEON_LEASE_S": "2",
        "OSTEON_STORE_URL": settings.store_url.get_secret_value(), "OSTEON_HOME": str(tmp_path),
    }  # fmt: skip
    rng, kills = random.Random(7), 0
    until = time.monotonic() + limit_s(600)
    while left(database):
        assert time.monotonic() < until
        with (tmp_path / "deliver.log").open("ab") as log:
            sender = subprocess.Popen(
                [sys.executable, "-m", "worker.delivery.main"], env=environment, cwd=ROOT, stdout=log, stderr=log
            )
        alive_until = time.monotonic() + (rng.uniform(4, 9) if kills < KILLS else 1e9)
        while left(database) and time.monotonic() < min(alive_until, until):
            time.sleep(0.2)
        if left(database):
            sender.send_signal(signal.SIGKILL)
            kills += 1
        else:
            sender.terminate()
        sender.wait()
        with database.transaction() as session:  # what a kill cut is tried at once
            session.execute(update(DestinationRow).values(not_before=None))
    contents: dict[str, list[str]] = {}
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        contents.setdefault(str(dataset.SOPInstanceUID), []).append(sha256_of(data_set(path)))
    assert len(contents) == STUDIES * len(DEFAULT)
    repeated = Counter(len(copies) for copies in contents.values())
    assert sum(number * (copies - 1) for copies, number in repeated.items()) <= kills
    assert all(len(set(copies)) == 1 for copies in contents.values())


def left(database: Database) -> int:
    with database.transaction() as session:
        waiting = select(func.count()).where(DeliveryRow.state != "sent")
        number: Any = session.scalar(waiting)
    return int(number)


def data_set(path: Path) -> bytes:
    """A file's bytes without its meta information, which the archive writes."""
    meta = pydicom.filereader.read_file_meta_info(path)
    return path.read_bytes()[132 + 12 + int(meta.FileMetaInformationGroupLength) :]
