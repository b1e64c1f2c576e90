"""Measures the time from a study's first C-STORE byte until its results are in the archive, by the archive's clock.

The archive is Orthanc, which notes the second in which it stored each object (`/changes`); it counts from that
second's end. Studies come at random moments, at SHARE of the rate at which this machine analyses, so that no queue
grows. All processes of Osteon, the senders and the archive share the machine.

The quick form sends few studies, at a rate that two cores stand, and waits QUICK_QUIET_S for further images of a study
instead of OSTEON_QUIET_S. What it does not wait is taken from its goal, too: it is as hard to meet.
"""

import io
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from sqlalchemy import text

from benchmarks.measure import Case, Goal, MissingRequirement, Result, Say
from benchmarks.orthanc import Orthanc, orthanc
from benchmarks.radiographs import radiograph, stored
from benchmarks.urgent import p95, p95_between
from benchmarks.workload import Workload, pace
from infra.client.api import Client
from infra.embedded.live_stack import LiveStack
from infra.embedded.process import free_port, is_free, wait_until
from samples.objects import SYNTAX, to_bytes
from shared.db.engine import Database
from shared.errors import StackError
from shared.settings import Settings
from shared.storage import open_store

REQUIRED_S = 60.0
GOAL = Goal("<=", 1.0)
QUIET_S: float = Settings.model_fields["quiet_s"].default
IMAGES = 3  # of a study
SHARE = 0.1  # of the rate of analysis
QUICK_RATE = 0.2  # studies a second
QUICK_QUIET_S = 5.0
TEMPLATES = 6  # radiographs, of which studies are made
SENDERS = 8  # studies that are sent at the same time, at most
LIMIT_S = 300.0  # after the last study was sent
HEAD = 4096  # bytes of a file that hold its UIDs and the patient's ID
# of one length each, so that a file's are written over; numbered from 0
PATIENT = b"ARRIVAL-%05d"
UIDS = {"StudyInstanceUID": b"2.25.1%08d", "SeriesInstanceUID": b"2.25.2%08d", "SOPInstanceUID": b"2.25.3%08d"}
PARTS = ("stored", "analysed", "complete", "made", "sent", "in the archive")
# by Postgres' clock, which is this machine's
TIMES = """
    SELECT studies.study_instance_uid,
           extract(epoch FROM (SELECT max(received_at) FROM instances WHERE study_id = studies.id AND kept = '')),
           extract(epoch FROM analysed_at), extract(epoch FROM completeness_since), extract(epoch FROM made.made_at),
           extract(epoch FROM sent.sent_at)
    FROM studies
    JOIN result_sets made ON made.study_id = studies.id AND made.state = 'made'
    JOIN deliveries sent ON sent.set_id = made.id AND sent.state = 'sent'
"""
OBJECTS = """
    SELECT sop_instance_uid, study_instance_uid, kind FROM result_objects
    JOIN studies ON studies.id = result_objects.study_id
"""
SENT = "SELECT count(*) FROM deliveries WHERE state = 'sent'"


@dataclass(frozen=True)
class SentStudy:
    """A study that was sent. began: just before its first association was opened, seconds of the epoch."""

    uid: str
    began: float


class Studies:
    """Studies to be sent, each of IMAGES files, under UIDs and for a patient of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._templates = [_template(number) for number in range(TEMPLATES)]

    def write(self, number: int) -> tuple[str, list[Path]]:
        """Write the files of a study.

        Args:
            number: of the study, from 0.

        Returns:
            Its Study Instance UID, and its files.
        """
        files = []
        for image in range(IMAGES):
            template = self._templates[(number + image) % TEMPLATES]
            numbers = dict.fromkeys(UIDS, number) | {"SOPInstanceUID": IMAGES * number + image}
            head = template[:HEAD].replace(PATIENT % 0, PATIENT % number)
            for keyword, form in UIDS.items():
                head = head.replace(form % 0, form % numbers[keyword])
            files.append(self._folder / f"{number}-{image}.dcm")
            files[-1].write_bytes(head + template[HEAD:])
        return (UIDS["StudyInstanceUID"] % number).decode(), files


def _template(number: int) -> bytes:
    """Make a radiograph whose UIDs and patient can be written over."""
    from pydicom import dcmread

    ds = dcmread(io.BytesIO(radiograph(number, "explicit")))
    for keyword, form in {"PatientID": PATIENT, **UIDS}.items():
        setattr(ds, keyword, (form % 0).decode())
    return to_bytes(ds, SYNTAX["explicit"])


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Send studies of three radiographs of 10 MB, one association an image, and wait for their results in Orthanc.

    Args:
        quick: 4 studies instead of 200, which write 20 GB; completed after QUICK_QUIET_S.
        say: is called with a line of progress.

    Returns:
        The 95th percentile in units of what is allowed, of whole studies and of each kind of object.

    Raises:
        MissingRequirement: dcmtk or Orthanc is not installed.
        StackError: A part did not start, or results did not come.
    """
    if shutil.which("storescu") is None:
        raise MissingRequirement("dcmtk's storescu: apt-get install dcmtk")
    count = 4 if quick else 200
    quiet_s = QUICK_QUIET_S if quick else QUIET_S
    settings = {"QUIET_S": str(quiet_s)}
    with LiveStack(settings=settings) as live_stack, orthanc(live_stack.folder, dicom=True) as archive:
        studies = Studies(live_stack.folder / "sent")
        live_stack.worker()
        url, port = _started(live_stack)
        # before there is a destination: what the worker is warmed up and the rate is measured with has no results
        per_s = _analysed_per_s(live_stack, 0 if quick else 60)
        rate = QUICK_RATE if quick else SHARE * per_s
        _connect(live_stack.client(url), archive)
        say(f"{count} studies of {IMAGES} radiographs come, {rate:.2f} a second")
        database = Database(live_stack.postgres.url, 1)
        try:
            sent = _send(studies, port, count, rate)
            _wait(live_stack, database, count)
            with database.transaction() as session:
                times = {uid: tuple(map(float, row)) for uid, *row in session.execute(text(TIMES))}
                objects = {uid: (study, kind) for uid, study, kind in session.execute(text(OBJECTS))}
        finally:
            database.close()
        arrived = _arrived(archive)
    return _result(sent, times, objects, arrived, rate, quick)


def _started(live_stack: LiveStack) -> tuple[str, int]:
    """Start the other parts; returns the API's URL and the listener's port."""
    port = free_port()
    live_stack.run("dicom", "-m", "api.listener.server", OSTEON_DICOM_PORT=str(port))
    live_stack.run("results", "-m", "worker.results.main")
    live_stack.run("deliver", "-m", "worker.delivery.main")
    url = live_stack.api()
    if not wait_until(lambda: not is_free(port), 60):
        raise StackError("the DICOM listener did not start within 60 s")
    return url, port


def _connect(client: Client, archive: Orthanc) -> None:
    """Let the sender in, and have results sent to the archive."""
    with client:
        client.post("/api/v1/dicom-peers", {"calling_ae": "STORESCU", "called_ae": "OSTEON"})
        settings = {"kind": "dicom", "host": "127.0.0.1", "port": archive.dicom_port, "called_ae": "ORTHANC"}
        client.post("/api/v1/destinations", {"name": "PACS", **settings})


def _analysed_per_s(live_stack: LiveStack, count: int) -> float:
    """Warm the worker up, and measure how many studies a second it analyses with nothing else to do; 0.0 of none."""
    digests = stored(open_store(live_stack.store_url), TEMPLATES, "explicit")
    workload = Workload(live_stack)
    try:
        workload.queue(digests, 2, images=IMAGES)  # the model is loaded by the first
        workload.wait()
        if not count:
            return 0.0
        ids = workload.queue(digests, count, images=IMAGES)
        workload.wait()
        return pace(workload.times(ids))
    finally:
        workload.close()


def _send(studies: Studies, port: int, count: int, rate: float) -> list[SentStudy]:
    """Send studies at random moments; one image after the other, each over an association of its own."""
    dice, sent, due = random.Random(20), [], time.monotonic()  # noqa: S311 - when, not what is secret
    storescu = shutil.which("storescu") or ""
    options = [storescu, "-R", "-pdu", "131072", "-aet", "STORESCU", "-aec", "OSTEON", "127.0.0.1", str(port)]

    def send(uid: str, files: Sequence[Path]) -> SentStudy:
        began = time.time()
        for file in files:
            subprocess.run([*options, str(file)], check=True, capture_output=True, timeout=LIMIT_S)
            file.unlink()
        return SentStudy(uid, began)

    with ThreadPoolExecutor(SENDERS) as pool:
        for number in range(count):
            uid, files = studies.write(number)
            time.sleep(max(0.0, due - time.monotonic()))
            sent.append(pool.submit(send, uid, files))
            due += dice.expovariate(rate)
        return [one.result() for one in sent]


def _wait(live_stack: LiveStack, database: Database, count: int) -> None:
    """Wait until the results of so many studies were sent; raises StackError if a part ended, or it takes too long."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        with database.transaction() as session:
            sent = session.scalar(text(SENT)) or 0
        if sent >= count:
            return
        ended = [child.name for child in live_stack.children if not child.running]
        if ended or time.monotonic() > deadline:
            why = f"{', '.join(ended)} ended" if ended else f"{LIMIT_S:.0f} s after the last one was sent"
            raise StackError(f"the results of {sent} of {count} studies were delivered: {why}")
        time.sleep(0.5)


def _arrived(archive: Orthanc) -> dict[str, float]:
    """Read when the archive stored each instance: by SOP Instance UID, seconds of the epoch, rounded up."""
    with httpx.Client(base_url=archive.url, trust_env=False, timeout=60) as client:
        query = {"Level": "Instance", "Query": {}, "Expand": True}
        found = client.post("/tools/find", json=query).raise_for_status().json()
        uids = {one["ID"]: one["MainDicomTags"]["SOPInstanceUID"] for one in found}
        arrived, since, done = {}, 0, False
        while not done:
            page = client.get("/changes", params={"since": since, "limit": 1000}).raise_for_status().json()
            for change in page["Changes"]:
                if change["ChangeType"] == "NewInstance":
                    at = datetime.strptime(change["Date"], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
                    arrived[uids[change["ID"]]] = at.timestamp() + 1
            since, done = page["Last"], page["Done"]
    return arrived


def _result(
    sent: Sequence[SentStudy],
    times: Mapping[str, Sequence[float]],
    objects: Mapping[str, tuple[str, str]],
    arrived: Mapping[str, float],
    rate: float,
    quick: bool,  # noqa: FBT001 - as run
) -> Result:
    """Compute the figures. times: by study, those of PARTS but for the last; objects: to study and kind; by UID all."""
    began = {one.uid: one.began for one in sent}
    lasts: dict[str, dict[str, float]] = {}  # by kind, then by study
    for uid, (study, kind) in objects.items():
        its = lasts.setdefault(kind, {})
        its[study] = max(its.get(study, 0.0), arrived[uid])
    whole = {study: max(its[study] for its in lasts.values() if study in its) for study in began}
    took = {"all results": [whole[study] - began[study] for study in began]}
    took |= {kind: [at - began[study] for study, at in its.items()] for kind, its in sorted(lasts.items())}
    parts = {study: [began[study], *times[study], whole[study]] for study in began}
    steps = {
        name: _spread([ends[place] - began[study] for study, ends in parts.items()])
        for place, name in enumerate(PARTS, 1)
    }
    quiet_s = QUICK_QUIET_S if quick else QUIET_S
    allowed_s = REQUIRED_S - (QUIET_S - quiet_s)
    cases = tuple(
        Case(f"{name}, p95", p95(its) / allowed_s, _between(its, allowed_s), len(its), "s", p95(its), allowed_s)
        for name, its in took.items()
    )
    come = f"{SHARE:g} of the rate of analysis" if not quick else "on any machine"
    return Result(
        "arrival",
        f"first C-STORE byte to the last result in Orthanc, by its clock, in units of {allowed_s:.0f} s",
        GOAL,
        cases,
        {
            "arrivals": f"{len(sent)} studies of {IMAGES} radiographs, {rate:.2f}/s: {come}",
            "wait for further images of a study, in these times": f"{quiet_s:.0f} s",
            "since the first byte, s: p50, p95, longest": steps,
            "by kind, s: p50, p95, longest": {name: _spread(its) for name, its in took.items()},
        },
        quick,
    )


def _between(values: Sequence[float], allowed_s: float) -> tuple[float, float]:
    low, high = p95_between(values)
    return low / allowed_s, high / allowed_s


def _spread(values: Sequence[float]) -> list[float]:
    return [round(one, 1) for one in (statistics.median(values), p95(values), max(values))]
