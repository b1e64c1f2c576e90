"""The process of the daily check: `python -m infra.daily_check`.

Once a day, or when somebody asks, a reference study goes through the whole system under fresh UIDs: it is sent to the
API, analysed by a worker, its results are made and delivered to a receiver that the check opens, and what was found is
compared with what is expected of this model on this engine. Then it is deleted. It belongs to a site of its own, which
no list and no count shows.
"""

import hashlib
import io
import logging
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import FrameType
from typing import Any, TypeVar
from uuid import UUID

import httpx
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt

from infra.conformance import DICOM, RELATED, dicom_file, multipart_body
from infra.embedded.parts import reachable
from samples import __file__ as samples_file
from shared.db.clock import db_now
from shared.db.engine import WORKER, Database
from shared.db.tables import CheckRow
from shared.dicom.conformance import VERIFICATION
from shared.domain.backfill import window_began
from shared.domain.checks import TITLE, CheckReason, CheckState, CheckStep, Tolerance, deviation
from shared.domain.destinations import DeliveryState, SetState
from shared.domain.study import StoredStatus
from shared.errors import OsteonError
from shared.logs import configure_logs, get_logger
from shared.queries import checks
from shared.queries.checks import Access, OtherWork
from shared.queries.models import active_bundle, any_active_before
from shared.queue.liveness import touch
from shared.settings import Settings, one_sentence, settings
from shared.tcp import SOCKET_OPTIONS

log = get_logger(__name__)
T = TypeVar("T")
# a fractured hand and a hip without fracture, both far from every threshold of the shipped model
REFERENCE = ("01-hand/1-pa.dcm", "20-hip/1-ap.dcm")
PATIENT = {
    "PatientName": "CHECK^DAILY", "PatientID": "OSTEON-CHECK", "AccessionNumber": "", "PatientBirthDate": "",
    "StudyID": "1", "StudyDescription": "Daily check of Osteon", "ReferringPhysicianName": "",
}  # fmt: skip
# measured on the shipped model over all samples: equal on one engine; OpenVINO bf16 against torch float32 .027 and 21
SAME_ENGINE = Tolerance(probability=0.001, heatmap=1)
OTHER_ENGINE = Tolerance(probability=0.05, heatmap=42)
# Secondary Capture, Comprehensive 3D SR, Comprehensive SR, Encapsulated PDF, Grayscale Softcopy Presentation State
CLASSES = (
    "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.33",
    "1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.5.1.4.1.1.11.1",
)  # fmt: skip
LOOK_EVERY_S = 2.0
POLL_S = 0.5
REQUEST_S = 60.0
API_START_LIMIT_S = 120.0  # where a host starts, the API may listen later than this process
LEASE = timedelta(seconds=180)  # longer than one request and one statement may take
RENEW_EVERY_S = 10.0
MAX_BYTES = 256 * 2**20  # that the receiver keeps
STREAMS = re.compile(r"\d+ streams?, ")  # of an engine: how many images at a time, which changes no result


class Ended(Exception):
    """A check that ends before its last step."""

    def __init__(self, reason: CheckReason, detail: str = "") -> None:
        super().__init__(reason.value)
        self.reason, self.detail = reason, detail


class Stopped(Exception):
    """This process is to end: the check is made again by the next one."""


class Receiver:
    """A DICOM receiver that keeps what it is sent while it is open."""

    def __init__(self, host: str, port: int) -> None:
        """host, port: where it listens; 0: any free port, which `port` then is."""
        self.host, self.port = host, port
        self.objects: dict[str, bytes] = {}  # data sets by SOP Instance UID

    @contextmanager
    def open(self) -> Iterator["Receiver"]:
        """Listen during the block. Raises OSError where the port is taken."""
        _config.LOG_HANDLER_LEVEL = "none"
        entity = AE(TITLE)
        entity.require_called_aet = True
        entity.add_supported_context(VERIFICATION)
        for uid in CLASSES:
            entity.add_supported_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        handlers: Any = [(evt.EVT_C_STORE, self._store)]
        server: Any = entity.start_server((self.host, self.port), block=False, evt_handlers=handlers)
        self.port = server.socket.getsockname()[1]
        try:
            yield self
        finally:
            server.shutdown()

    def _store(self, event: Any) -> int:  # noqa: ANN401 - pynetdicom's
        content = event.request.DataSet.getvalue()
        if sum(map(len, self.objects.values())) + len(content) > MAX_BYTES:
            return 0xA700  # out of resources
        self.objects[str(event.request.AffectedSOPInstanceUID)] = content
        return 0x0000


class Reference:
    """The reference study under fresh UIDs."""

    def __init__(self) -> None:
        """Read its files and give them new UIDs."""
        folder = f"{samples_file.removesuffix('__init__.py')}studies"
        contents = [_read(f"{folder}/{name}") for name in REFERENCE]
        self.digest = hashlib.sha256(b"".join(contents)).hexdigest()
        self.study_instance_uid = _fresh()
        self.images = [dcmread(io.BytesIO(content)) for content in contents]
        self.places: dict[str, int] = {}
        for number, image in enumerate(self.images, 1):
            image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = (
                UID(self.study_instance_uid), UID(_fresh()), UID(_fresh()),
            )  # fmt: skip
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            for keyword, value in PATIENT.items():
                setattr(image, keyword, value)
            self.places[image.SOPInstanceUID] = number

    def body(self) -> bytes:
        """The study as a multipart body of STOW-RS."""
        return multipart_body(*map(dicom_file, self.images))


def _fresh() -> str:
    return f"2.25.{uuid.uuid4().int}"


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - one of ours
        return file.read()


class DailyCheck:
    """One check, from its row to its end."""

    def __init__(self, config: Settings, database: Database, row: CheckRow, stopping: threading.Event) -> None:
        """Begin nothing yet: call `run`. row: as `checks.take` gave it."""
        self._config, self._database, self._row, self._stopping = config, database, row, stopping
        self._step, self._renewed = CheckStep.TIDIED, time.monotonic()
        self._api_listens_by = self._renewed + min(API_START_LIMIT_S, config.check_wait_s)
        self._reference = Reference()
        self._receiver = Receiver(config.check_host, config.check_port)
        self._access: Access | None = None
        self._http: httpx.Client | None = None
        self._study: UUID | None = None
        self._assessment = ""  # of the study

    def run(self) -> CheckState:
        """Make every step, delete what was sent whatever happens, and note how it ended.

        Returns:
            How.

        Raises:
            Stopped: the process is to end; the check is made again.
            Unavailable: Postgres does not answer; the next check notes that this one died, and tidies up.
        """
        try:
            reason, detail = None, ""
            try:
                with self._open():
                    self._steps()
            except Ended as error:
                reason, detail = error.reason, error.detail
            except OSError as error:  # the receiver's port is taken
                reason, detail = CheckReason.ERROR, type(error).__name__
        except Stopped:
            with self._database.transaction() as session:
                checks.put_back(session, self._row)
            raise
        self._row.step = self._step
        with self._database.transaction() as session:
            checks.end(session, self._row, reason, detail)
        if reason is None:
            log.info("check ended", state=self._row.state)
        else:
            log.warning("check ended", state=self._row.state, reason=reason, detail=detail)
        return CheckState(self._row.state)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Receiver, key and destination during the block; at its end everything of the check's site is deleted."""
        config = self._config
        valid = timedelta(seconds=4 * config.check_wait_s + 20 * REQUEST_S)
        with self._receiver.open():
            with self._database.transaction() as session:
                access = self._access = checks.open_access(session, config.check_host, self._receiver.port, valid)
            self._http = httpx.Client(
                base_url=config.check_api_url or f"http://{reachable(config.api_host)}:{config.api_port}",
                headers={"Authorization": f"Bearer {access.secret}"},
                timeout=REQUEST_S,
                transport=httpx.HTTPTransport(trust_env=False, socket_options=SOCKET_OPTIONS),
                trust_env=False,
            )
            try:
                with self._http:
                    try:
                        yield
                    finally:
                        self._tidy_quietly()
            finally:
                with self._database.transaction() as session:
                    checks.close_access(session, access)

    def _steps(self) -> None:
        for step, work in (
            (CheckStep.TIDIED, self._tidy), (CheckStep.SENT, self._send), (CheckStep.ANALYSED, self._wait_for_analysis),
            (CheckStep.COMPARED, self._compare), (CheckStep.MADE, self._wait_for_objects),
            (CheckStep.DELIVERED, self._wait_for_delivery), (CheckStep.READ_BACK, self._read_back),
            (CheckStep.DELETED, self._delete),
        ):  # fmt: skip
            self._step, began = step, time.monotonic()
            self._go_on(at_once=True)
            try:
                work()
            except (Ended, Stopped, OsteonError):
                raise
            except Exception as error:
                log.exception("check step crashed", step=step)
                raise Ended(CheckReason.ERROR, type(error).__name__) from error
            seconds = time.monotonic() - began
            with self._database.transaction() as session:
                checks.record_step(session, self._row, step, seconds)
            log.info("check step ended", step=step, seconds=round(seconds, 3))

    def _go_on(self, *, at_once: bool = False) -> None:
        """Renew the lease now and then. Raises Stopped."""
        if self._stopping.is_set():
            raise Stopped
        touch()
        if at_once or time.monotonic() - self._renewed > RENEW_EVERY_S:
            with self._database.transaction() as session:
                held = checks.renew(session, self._row.id, LEASE, self._step)
            if not held:
                raise Ended(CheckReason.DIED)
            self._renewed = time.monotonic()

    def _until(self, look: Callable[[], T | None]) -> T | None:
        """Look again and again until there is something, for check_wait_s at most."""
        until = time.monotonic() + self._config.check_wait_s
        while (found := look()) is None and time.monotonic() < until:
            self._go_on()
            self._stopping.wait(POLL_S)
        return found

    def _ask(self, expected: int, method: str, path: str, **more: Any) -> httpx.Response:  # noqa: ANN401 - httpx's
        answer = None
        while answer is None:
            answer = self._request(method, path, **more)
        if answer.status_code != expected:
            raise Ended(CheckReason.REFUSED, str(answer.status_code))
        return answer

    def _request(self, method: str, path: str, **more: Any) -> httpx.Response | None:  # noqa: ANN401 - httpx's
        """Ask the API once. None: nobody listens yet."""
        assert self._http is not None
        try:
            return self._http.request(method, path, **more)
        except httpx.HTTPError as error:
            if not isinstance(error, httpx.ConnectError) or time.monotonic() > self._api_listens_by:
                raise Ended(CheckReason.API_AWAY, type(error).__name__) from error
        self._go_on()
        self._stopping.wait(POLL_S)
        return None

    # -- the steps

    def _tidy(self) -> None:
        """Delete every study of the check's site, through the API."""
        assert self._access is not None
        with self._database.transaction() as session:
            left = checks.find_remains(session, self._access.site_id)
        for study_id in left:
            self._ask(200, "DELETE", f"/api/v1/studies/{study_id}", params={"reason": "test"})

    def _tidy_quietly(self) -> None:
        try:
            self._tidy()
        except Ended as error:  # why the check ended matters more
            log.warning("check not tidied", reason=error.reason, detail=error.detail)

    def _send(self) -> None:
        with self._database.transaction() as session:
            if active_bundle(session) is None:
                raise Ended(CheckReason.NO_MODEL)
        self._ask(200, "POST", "/dicom-web/studies", content=self._reference.body(), headers={"Content-Type": RELATED})
        assert self._access is not None
        with self._database.transaction() as session:
            row = checks.study_of(session, self._access.site_id, self._reference.study_instance_uid)
        if row is None or row.images != len(REFERENCE):
            raise Ended(CheckReason.REFUSED, "200")
        self._study = row.id

    def _wait_for_analysis(self) -> None:
        assert self._access is not None
        site, uid = self._access.site_id, self._reference.study_instance_uid
        with self._database.transaction() as session:
            began = db_now(session)

        def ended() -> Any:  # noqa: ANN401 - a row
            with self._database.transaction() as session:
                row = checks.study_of(session, site, uid)
                if row is None:
                    raise Ended(CheckReason.NOT_ANALYSED)
                return row if row.status in (StoredStatus.ANALYSED, StoredStatus.QUARANTINED) else None

        row = self._until(ended)
        with self._database.transaction() as session:
            living, others = checks.engines(session), checks.other_analyses(session)
        if row is None and not living:
            raise Ended(CheckReason.NO_WORKER)
        if row is None:
            raise _late(CheckReason.NOT_ANALYSED, others, began)
        if row.status == StoredStatus.QUARANTINED:
            raise Ended(CheckReason.QUARANTINED, row.reason)
        report = self._ask(200, "GET", f"/api/v1/studies/{self._study}").json()
        if (report["status"], report["assessment"]) != (row.status, row.assessment):
            raise Ended(CheckReason.NOT_EQUAL, "report")
        self._assessment, self._row.model = row.assessment or "", row.bundle
        self._row.engine = " + ".join(dict.fromkeys(STREAMS.sub("", one) for one in living))[:512]

    def _compare(self) -> None:
        assert self._study is not None
        row, places = self._row, self._reference.places
        with self._database.transaction() as session:
            digest = checks.digest_of(session, row.model)
            found = checks.findings(session, self._study, row.model, places)
            known = checks.find_expected(session, self._reference.digest, digest, row.engine)
            accept = checks.accepts(session, row.id)
            reason, detail = None, ""
            if known is not None:
                apart = deviation(known.findings, found)
                row.probability_deviation, row.heatmap_deviation = apart.probability, apart.heatmap
                # several engines at once: nobody can say which of them it was
                same = known.engine == row.engine and " + " not in row.engine
                reason, detail = apart.reason(SAME_ENGINE if same else OTHER_ENGINE), ", ".join(apart.codes)
            # what fits another engine's findings is remembered as this one's own
            row.learned = len(found) >= len(REFERENCE) and (
                accept or (reason is None and (known is None or known.engine != row.engine))
            )
            if row.learned:
                checks.set_expected(session, self._reference.digest, digest, row.engine, found)
        if len(found) < len(REFERENCE):
            raise Ended(CheckReason.CODES_DIFFER, "frames")
        if reason is not None and not accept:
            raise Ended(reason, detail)

    def _wait_for_objects(self) -> None:
        assert self._study is not None
        study = self._study
        with self._database.transaction() as session:
            began = db_now(session)

        def made() -> checks.MadeResults | None:
            with self._database.transaction() as session:
                found = checks.find_results(session, study)
            return found if found.states and not found.waiting else None

        found = self._until(made)
        if found is None:
            with self._database.transaction() as session:
                others = checks.other_sets(session)
            raise _late(CheckReason.NOT_MADE, others, began)
        for state, reason in found.states:
            if state not in (SetState.MADE, SetState.REPEATED):
                raise Ended(CheckReason.NOT_MADE, reason)
        if set(found.assessments) != {self._assessment}:
            raise Ended(CheckReason.WRONG_STATEMENT)

    def _wait_for_delivery(self) -> None:
        assert self._study is not None
        study = self._study

        def sent() -> tuple[tuple[str, str], ...] | None:
            with self._database.transaction() as session:
                found = checks.find_results(session, study).deliveries
            over = all(state != DeliveryState.WAITING for state, _ in found)
            return found if found and over else None

        deliveries = self._until(sent)
        if deliveries is None:
            with self._database.transaction() as session:
                waiting = [reason for state, reason in checks.find_results(session, study).deliveries if reason]
            raise Ended(CheckReason.NOT_DELIVERED, next(iter(waiting), ""))
        for state, reason in deliveries:
            if state != DeliveryState.SENT:
                raise Ended(CheckReason.NOT_DELIVERED, reason)

    def _read_back(self) -> None:
        assert self._study is not None
        with self._database.transaction() as session:
            kinds, series = checks.find_results(session, self._study).kinds, checks.series_of(session, self._study)
        if missing := [kind for uid, kind in kinds.items() if uid not in self._receiver.objects]:
            raise Ended(CheckReason.NOT_EQUAL, missing[0])
        study = f"/dicom-web/studies/{self._reference.study_instance_uid}"
        for uid, kind in kinds.items():
            self._go_on()
            accepts = {"Accept": f"{DICOM}; transfer-syntax=*"}
            stored = self._ask(200, "GET", f"{study}/series/{series[uid]}/instances/{uid}", headers=accepts).content
            # after the header of the file, the bytes are those of the data set
            if data_set(stored) != self._receiver.objects[uid]:
                raise Ended(CheckReason.NOT_EQUAL, kind)

    def _delete(self) -> None:
        assert self._access is not None
        self._tidy()
        self._ask(404, "GET", f"/api/v1/studies/{self._study}")
        with self._database.transaction() as session:
            if checks.find_remains(session, self._access.site_id):
                raise Ended(CheckReason.NOT_DELETED)


def data_set(file: bytes) -> bytes:
    """What follows the meta information of a DICOM file."""
    reading = io.BytesIO(file)
    head: Dataset = dcmread(reading, stop_before_pixels=True, specific_tags=[])
    length = head.file_meta.FileMetaInformationGroupLength
    return file[128 + 4 + 12 + length :]  # preamble, "DICM", the group length's element


def _late(reason: CheckReason, others: OtherWork, began: datetime) -> Ended:
    """Why something was not done in time: there is much to do where others wait too, and meanwhile some were done."""
    if others.waiting and others.last_done is not None and others.last_done > began:
        return Ended(CheckReason.QUEUE_FULL, str(others.waiting))
    return Ended(reason)


def look(config: Settings, database: Database, stopping: threading.Event) -> CheckState | None:
    """Make the check that was asked for, or the day's if it is due.

    Args:
        config: settings.
        database: with the tables.
        stopping: when set, the check ends, and is made again by the next process.

    Returns:
        How it ended; None: there was none to make.

    Raises:
        Stopped: it was to end.
        Unavailable: Postgres does not answer.
    """
    with database.transaction() as session:
        now = db_now(session)
        due = window_began(now, config.backfill_timezone, config.check_hour)
        # a new system is not checked for a day on which it was not there
        row = checks.take(session, LEASE, due if any_active_before(session, due) else None)
    if row is None:
        return None
    log.info("check started", scheduled=row.scheduled)
    return DailyCheck(config, database, row, stopping).run()


def main() -> None:
    """Make checks until SIGTERM."""
    configure_logs(settings().log_level)
    for library in ("httpx", "pynetdicom"):  # they tell UIDs, and quote what peers sent
        logging.getLogger(library).setLevel(logging.CRITICAL)
    with one_sentence():
        config = settings()
        database = Database(config.database_url.get_secret_value(), 2, WORKER)
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)
    log.info("check process started", on=config.daily_check)
    while not stopping.wait(LOOK_EVERY_S):
        touch()
        if not config.daily_check:
            continue
        try:
            look(config, database, stopping)
        except Stopped:
            break
        except OsteonError as error:
            log.warning("check not started", error=type(error).__name__)
        except Exception:
            log.exception("check not started")
    database.close()
    log.info("check process stopped")


if __name__ == "__main__":
    main()
