"""One study after another through the engine: real Postgres, both stores, sample radiographs, the shipped bundle."""

import functools
import io
import multiprocessing
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psutil
import pytest
from psycopg2.errors import DiskFull, LockNotAvailable
from pydicom import dcmread
from sqlalchemy.exc import OperationalError

from infra.prepare import store_bundle_file
from samples.objects import pattern_image, set_pixels, to_bytes
from shared.db.clock import db_now
from shared.domain.analysis import TaskOutcome
from shared.domain.study import Priority, StudyStatus
from shared.errors import Reason, StoreUnavailable
from shared.model.bundle import load_bundle, save_bundle
from shared.model.predictor import Predictor
from shared.pixels.decode import open_pixels
from shared.pixels.radiograph import decode_radiograph
from shared.queries import analyses, backfill
from shared.queries.models import activate_bundle, add_bundle
from shared.settings import ROOT, Settings
from shared.storage import original_key, preview_key, sha256_of
from tests import poisons
from tests.hospital import Hospital
from tests.pace import LIMIT_S, slowness, until
from worker.decoder_pool import Job
from worker.predictor import ActivePredictor
from worker.tasks import Engine

STUDIES = ROOT / "samples/studies"
SHIPPED = min((ROOT / "training/bundles").glob("*.safetensors"))
HAND, ELBOW = STUDIES / "01-hand/1-pa.dcm", STUDIES / "09-elbow/1-ap.dcm"
EXPLICIT = "1.2.840.10008.1.2.1"


pytestmark = pytest.mark.usefixtures("forked_decoders")


def renamed(folder: Path, name: str) -> Path:
    """The shipped network under another name, for squares so small that most of its time is saved."""
    network, manifest = load_bundle(SHIPPED.read_bytes())
    path = folder / f"{name}.safetensors"
    save_bundle(path, network, manifest.model_copy(update={"name": name, "input_size": 128}))
    return path


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renamed(tmp_path_factory.mktemp("bundles"), "small")


@pytest.fixture(scope="session")
def other_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renamed(tmp_path_factory.mktemp("bundles"), "other")


@pytest.fixture(autouse=True)
def _load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles are loaded once for all tests, and run as they are: to compile them takes longer than these tests."""
    monkeypatch.setattr(
        "worker.predictor.Predictor.for_service", lambda content, sha256, folder: loaded(content, sha256)
    )


@functools.cache
def loaded(content: bytes, sha256: str) -> Predictor:
    return Predictor(*load_bundle(content, sha256))


@pytest.fixture
def make_engine(
    hospital: Hospital, make_settings: Callable[..., Settings], bundle_path: Path
) -> Iterator[Callable[..., Any]]:
    """Makes an engine with a small bundle active, or the one given."""
    engines: list[Engine] = []

    def make(bundle: Path = bundle_path, **changes: Any) -> Engine:
        settings = make_settings(**{"retry_base_s": 0.01, "decoders": 1} | changes)
        store_bundle_file(settings, hospital.database, bundle, activate=True)
        engines.append(Engine(settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make_engine: Callable[..., Any]) -> Any:
    return make_engine()


def before_decoding(engine: Any, hook: Callable[[Job], object]) -> None:
    """Let hook(job) run, in a thread of its own, before each instance is decoded."""
    submit, pool = engine.decoders.submit, ThreadPoolExecutor(8)
    engine.decoders.submit = lambda job, priority: pool.submit(lambda: (hook(job), submit(job, priority).result())[1])


def retried(engine: Engine, hospital: Hospital, study: UUID, times: int) -> list[TaskOutcome]:
    """Analyse again and again, each time when it is due."""
    words = []
    for _ in range(times):
        hospital.set(study, not_before=None)
        words.append(engine.analyse_study(study))
    return words


def square(name: str, values: np.ndarray, **attributes: Any) -> bytes:
    """A little CR of these (H, W) uint8 values; more frames where values are (F, H, W)."""
    ds = pattern_image(9, name)
    set_pixels(ds, list(values) if values.ndim == 3 else [values], 8, "explicit")
    if values.ndim == 3:
        ds.NumberOfFrames = len(values)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return to_bytes(ds, EXPLICIT)


def texture(seed: int, frames: int | None = None) -> np.ndarray:
    shape = (96, 96) if frames is None else (frames, 96, 96)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_a_study_is_analysed_with_findings_heatmaps_and_previews(
    hospital: Hospital, make_engine: Callable[..., Any], store_url: str
) -> None:
    """From either store, each radiograph gets one finding by the active bundle, a heatmap, and a picture for the page."""
    engine = make_engine(SHIPPED, store_url=store_url)
    contents = [path.read_bytes() for path in (HAND, STUDIES / "01-hand/2-lateral.dcm")]
    study = hospital.stored(engine.store, contents)
    assert engine.analyse_study(study) == "analysed"
    row, findings = hospital.row(study), hospital.findings(study)
    assert (row.status, row.attempts, row.failed_images) == (StudyStatus.ANALYSED, 1, 0)
    assert len({finding.instance_id for finding in findings}) == len(findings) == 2
    assert {finding.bundle for finding in findings} == {row.bundle}
    assert all(len(f.heatmap) == f.heatmap_height * f.heatmap_width > 1 for f in findings)
    for content in contents:
        assert engine.store.get(preview_key(sha256_of(content), 1)).startswith(b"\xff\xd8\xff")
    assert engine.analyse_study(study) == "nothing-to-do"
    assert len(hospital.findings(study)) == 2


def test_every_frame_has_a_finding_and_the_worst_one_speaks(hospital: Hospital, engine: Any) -> None:
    """A multi-frame object is analysed frame by frame, and summed up by its worst frame."""
    study = hospital.stored(engine.store, [square("frames", texture(1, frames=5))])
    assert engine.analyse_study(study) == "analysed"
    findings = hospital.findings(study)
    assert [finding.frame for finding in findings] == [1, 2, 3, 4, 5]
    worst = {"positive": 3, "unclear": 2, "abstained": 1, "negative": 0}
    assert hospital.row(study).assessment == max((finding.assessment for finding in findings), key=worst.__getitem__)
    digest = hospital.instances(study)[0].sha256
    assert all(engine.store.exists(preview_key(digest, frame)) for frame in range(1, 6))


def test_frames_are_not_swapped(hospital: Hospital, engine: Any) -> None:
    """Frame 2 of three is blank, and it is frame 2 that the model says nothing about."""
    frames = texture(2, frames=3)
    frames[1] = 90
    study = hospital.stored(engine.store, [square("blank in the middle", frames)])
    engine.analyse_study(study)
    assert [finding.abstention == "blank" for finding in hospital.findings(study)] == [False, True, False]


def test_studies_at_the_same_time_get_their_own_findings(hospital: Hospital, engine: Any) -> None:
    """Studies whose images share batches get the findings that each would get alone."""
    contents = [square(f"radiograph {seed}", texture(seed)) for seed in range(6)] + [
        HAND.read_bytes(),
        ELBOW.read_bytes(),
    ]
    together = [hospital.stored(engine.store, [content]) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(engine.analyse_study, together)) == {"analysed"}
    said = set()
    for study, content in zip(together, contents, strict=True):
        (found,) = hospital.findings(study)
        said.add((round(found.fracture_probability, 1), round(found.region_probability, 1)))
        predictor = engine.predictor.current()
        alone = predictor.predict([decode_radiograph(open_pixels(content), 0).square(predictor.size)])[0]
        assert found.fracture_probability == pytest.approx(alone.fracture, abs=0.02)
        assert found.region_probability == pytest.approx(float(alone.region.max()), abs=0.02)
    assert len(said) > 2, "findings that are alike would show nothing"


def test_mr_is_accepted_and_marked_out_of_scope(hospital: Hospital, engine: Any) -> None:
    """An MR image is analysed, and the model abstains rather than calling it normal."""
    study = hospital.stored(engine.store, [square("mr", texture(3), Modality="MR")])
    assert engine.analyse_study(study) == "analysed"
    (found,) = hospital.findings(study)
    assert (found.assessment, found.abstention, found.abstention_detail) == ("abstained", "modality", "MR")
    assert hospital.row(study).assessment == "abstained"


def test_a_blank_image_is_abstained_from(hospital: Hospital, engine: Any) -> None:
    """An image that shows nothing is not called normal."""
    study = hospital.stored(engine.store, [square("blank", np.full((96, 96), 100, np.uint8))])
    assert engine.analyse_study(study) == "analysed"
    (found,) = hospital.findings(study)
    assert (found.assessment, found.abstention) == ("abstained", "blank")


def damaged(name: object) -> bytes:
    """A compressed radiograph whose stream is none: what was stored before intake looked at streams."""
    ds = dcmread(STUDIES / "08-elbow/2-lateral.dcm")
    if not ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds = dcmread(next(p for p in STUDIES.rglob("*.dcm") if dcmread(p).file_meta.TransferSyntaxUID.is_encapsulated))
    ds.SOPInstanceUID = f"2.25.{name}"
    ds.PixelData = (
        ds.PixelData[:16] + struct.pack("<HHL", 0xFFFE, 0xE000, 64) + b"\xa5" * 64 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def test_one_bad_image_does_not_sink_its_study(hospital: Hospital, engine: Any) -> None:
    """Among good images a bad one gets the code of its error, and the study its findings."""
    study = hospital.stored(engine.store, [HAND.read_bytes(), damaged(1), ELBOW.read_bytes()])
    assert engine.analyse_study(study) == "analysed"
    row = hospital.row(study)
    assert (row.status, row.failed_images, len(hospital.findings(study))) == (StudyStatus.ANALYSED, 1, 2)
    (bad,) = [image for image in hospital.instances(study) if image.error_reason]
    assert bad.sop_instance_uid == "2.25.1"
    assert bad.error_reason in set(Reason)


def test_a_study_of_bad_images_is_quarantined_at_once(hospital: Hospital, engine: Any) -> None:
    """What can never be read is not tried again: the first attempt ends in quarantine, with the reason."""
    study = hospital.stored(engine.store, [damaged(1), damaged(2)])
    engine.analyse_study(study)
    row = hospital.row(study)
    assert (row.status, row.attempts, row.failed_images) == (StudyStatus.QUARANTINED, 1, 2)
    assert row.reason == hospital.instances(study)[0].error_reason != ""


def test_a_missing_object_is_retried_and_then_quarantined(hospital: Hospital, engine: Any) -> None:
    """A radiograph that is not in the store is tried N times, then set aside; one that comes back in time is analysed."""
    study = hospital.stored(engine.store, [HAND.read_bytes()], keep=False)
    assert retried(engine, hospital, study, 5) == ["will-retry"] * 3 + ["quarantined", "nothing-to-do"]
    assert hospital.row(study).status == StudyStatus.QUARANTINED
    assert hospital.row(study).reason == Reason.OBJECT_MISSING
    assert hospital.row(study).reason_detail == original_key(sha256_of(HAND.read_bytes()))
    late = hospital.stored(engine.store, [ELBOW.read_bytes()], keep=False)
    assert retried(engine, hospital, late, 2) == ["will-retry"] * 2
    engine.store.put(original_key(sha256_of(ELBOW.read_bytes())), io.BytesIO(ELBOW.read_bytes()), ELBOW.stat().st_size)
    assert retried(engine, hospital, late, 1) == ["analysed"]
    assert hospital.row(late).reason == ""


def test_retries_wait_longer_each_time(hospital: Hospital, make_engine: Callable[..., Any]) -> None:
    """The pause before the next attempt doubles, give or take half."""
    engine = make_engine()
    engine.settings.retry_base_s = 8.0
    study, pauses = hospital.stored(engine.store, [HAND.read_bytes()], keep=False), []
    for _ in range(3):
        retried(engine, hospital, study, 1)
        not_before = hospital.row(study).not_before
        assert not_before is not None
        pauses.append((not_before - datetime.now(UTC)).total_seconds())
    assert all(0.4 * base < pause < 1.5 * base for base, pause in zip((8, 16, 32), pauses, strict=True))


def test_a_store_that_is_down_costs_no_attempts(hospital: Hospital, make_engine: Callable[..., Any]) -> None:
    """However long the store is away, studies wait for it, and none is set aside for it."""
    engine = make_engine()
    study = hospital.stored(engine.store, [HAND.read_bytes()])
    engine.predictor.current()
    sound, engine.store, submit = engine.store, DeadStore(), engine.decoders.submit
    before_decoding(engine, lambda _: engine.store.check_writable())
    assert retried(engine, hospital, study, 8) == ["will-retry"] * 8
    assert (hospital.row(study).status, hospital.row(study).attempts) == (StudyStatus.RETRYING, 0)
    assert hospital.row(study).reason == Reason.STORE_UNAVAILABLE
    engine.store, engine.decoders.submit = sound, submit
    assert retried(engine, hospital, study, 1) == ["analysed"]


@pytest.mark.parametrize(
    ("wrong", "reason"), [(DiskFull, Reason.DATABASE_FULL), (LockNotAvailable, Reason.DATABASE_LOCKED)]
)
def test_a_database_without_room_costs_no_attempts(
    hospital: Hospital,
    make_engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    wrong: type[Exception],
    reason: Reason,
) -> None:
    """A full Postgres, or a study that somebody has locked, may take the little change that gives an analysis back, and not
    its results: however long that lasts, none is set aside for it."""
    engine = make_engine()
    study = hospital.stored(engine.store, [HAND.read_bytes()])

    def full(*_: object) -> None:
        raise OperationalError("INSERT", {}, wrong())

    with monkeypatch.context() as patched:
        patched.setattr("worker.group_commit.RETRY_LIMIT_S", 0.0)
        patched.setattr(analyses, "finish", full)
        assert retried(engine, hospital, study, 8) == ["will-retry"] * 8
    assert (hospital.row(study).status, hospital.row(study).attempts) == (StudyStatus.RETRYING, 0)
    assert hospital.row(study).reason == reason
    assert retried(engine, hospital, study, 1) == ["analysed"]


class DeadStore:
    """A store that does not answer."""

    def check_writable(self) -> None:
        raise StoreUnavailable


def test_a_new_bundle_is_picked_up_between_studies(
    hospital: Hospital, engine: Any, other_bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an activation the next studies are read by the new bundle, and earlier findings keep the old one's name."""
    monkeypatch.setattr("worker.predictor.BUNDLE_CHECK_INTERVAL_S", 0.0)
    first, second = (hospital.stored(engine.store, [content.read_bytes()]) for content in (HAND, ELBOW))
    engine.analyse_study(first)
    store_bundle_file(engine.settings, hospital.database, other_bundle_path, activate=True)
    engine.analyse_study(second)
    old = hospital.row(first).bundle
    assert [finding.bundle for finding in hospital.findings(first)] == [old] != ["other"]
    assert [finding.bundle for finding in hospital.findings(second)] == [hospital.row(second).bundle] == ["other"]


def test_a_bundle_that_changes_midway_does_not_mix(
    hospital: Hospital, engine: Any, other_bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study claimed under one bundle is read, named and summed up by that one, whatever is activated meanwhile."""
    monkeypatch.setattr("worker.predictor.BUNDLE_CHECK_INTERVAL_S", 0.0)
    study, name = hospital.stored(engine.store, [HAND.read_bytes()]), engine.predictor.current().manifest.name
    before_decoding(
        engine, lambda _: store_bundle_file(engine.settings, hospital.database, other_bundle_path, activate=True)
    )
    assert engine.analyse_study(study) == "analysed"
    assert [finding.bundle for finding in hospital.findings(study)] == [name] == [hospital.row(study).bundle]


def test_a_bundle_that_cannot_be_loaded_stops_nothing(
    hospital: Hospital, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a bundle that is not in the store is activated, studies go on with the one that works."""
    monkeypatch.setattr("worker.predictor.BUNDLE_CHECK_INTERVAL_S", 0.0)
    name = engine.predictor.current().manifest.name
    hospital.add_bundle("gone", "1" * 64)
    study = hospital.stored(engine.store, [HAND.read_bytes()])
    assert engine.analyse_study(study) == "analysed"
    assert hospital.row(study).bundle == name
    with hospital.database.transaction() as session:
        activate_bundle(session, name)


def test_without_a_bundle_a_study_stays_in_the_queue(
    hospital: Hospital, make_settings: Callable[..., Settings]
) -> None:
    """Before any bundle can be loaded, studies are left as they are, to be sent again."""
    engine = Engine(make_settings())
    study = hospital.stored(engine.store, [HAND.read_bytes()])
    assert engine.analyse_study(study) == "left"  # bundle "a" is a row without an object
    assert (hospital.row(study).status, hospital.row(study).attempts) == (StudyStatus.QUEUED, 0)
    engine.close()


def test_suspects_waiting_for_the_gate_are_not_blamed(hospital: Hospital, engine: Any) -> None:
    """While one suspect is analysed alone, those who wait have no claim, so its death would cost them no attempt."""
    studies = [hospital.stored(engine.store, [square(f"suspect {i}", texture(i))]) for i in range(3)]
    for study in studies:
        hospital.claim(study, datetime.now(UTC) - timedelta(minutes=5), bundle="x")
    entered, leave, inside = threading.Event(), threading.Event(), []

    def wait(job: Job) -> None:
        inside.append(job)
        entered.set()
        leave.wait(LIMIT_S)

    before_decoding(engine, wait)
    with ThreadPoolExecutor(6) as pool:
        # each message comes twice
        outcomes = [pool.submit(engine.analyse_study, study) for study in studies * 2]
        assert entered.wait(LIMIT_S)
        time.sleep(0.3)
        assert len(inside) == 1
        assert sorted(hospital.row(study).attempts for study in studies) == [1, 1, 2]
        leave.set()
        words = [outcome.result(LIMIT_S) for outcome in outcomes]
    assert words.count("analysed") == 3
    assert sum(hospital.row(study).attempts == 2 for study in studies) == 3


def test_leases_are_renewed_while_a_study_is_analysed(hospital: Hospital, make_engine: Callable[..., Any]) -> None:
    """A study that takes longer than its lease keeps it as long as its worker lives."""
    engine = make_engine(lease_s=6.0)
    study = hospital.stored(engine.store, [HAND.read_bytes()])
    engine.predictor.current()
    go_on = threading.Event()
    before_decoding(engine, lambda _: go_on.wait(LIMIT_S))
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(engine.analyse_study, study)
        until(lambda: hospital.row(study).lease_until, 30)
        first = hospital.row(study).lease_until
        assert first is not None
        until(lambda: (hospital.row(study).lease_until or first) > first, 30)
        with hospital.database.transaction() as session:
            now = first + timedelta(milliseconds=1)  # when it would have ended
            assert analyses.claim(
                session, [hospital.current(study)], "x", now, timedelta(seconds=30), max_attempts=4, alone=True
            ) == [None]
        go_on.set()
        assert working.result(LIMIT_S) == "analysed"
    assert hospital.row(study).attempts == 1


def test_the_lease_keeper_outlives_any_error(
    hospital: Hospital, make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown error while renewing is logged, and the next renewal happens all the same."""
    calls = threading.Semaphore(0)

    def broken(*_: object) -> None:
        calls.release()
        raise RuntimeError("unknown")

    monkeypatch.setattr(analyses, "renew_leases", broken)
    engine = make_engine(lease_s=0.3)
    study = hospital.stored(engine.store, [HAND.read_bytes()])
    claim = hospital.claim(study)
    with engine.leases.holding(claim):
        assert all(calls.acquire(timeout=LIMIT_S) for _ in range(3))


def test_a_model_that_fails_is_retried_and_then_named(
    hospital: Hospital, make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study on which the model fails every time ends in quarantine with the kind of error, never its values."""

    def fail(_items: object) -> None:
        raise FloatingPointError("patient DOE^JANE")

    monkeypatch.setattr("worker.tasks.predict", fail)
    engine = make_engine()
    study = hospital.stored(engine.store, [HAND.read_bytes()])
    assert retried(engine, hospital, study, 4)[-1] == "quarantined"
    assert (hospital.row(study).reason, hospital.row(study).reason_detail) == ("analysis-failed", "FloatingPointError")


def test_urgent_images_go_before_routine_ones_in_the_batcher(hospital: Hospital, engine: Any) -> None:
    """The batcher is told each study's own priority."""
    seen: list[int] = []
    submit = engine.batcher.submit
    engine.batcher.submit = lambda item, priority=0: (seen.append(priority), submit(item, priority))[1]
    for priority in Priority:
        engine.analyse_study(hospital.stored(engine.store, [square(priority, texture(5))], priority))
    assert seen == [0, 1, 2]


DECODE_LIMIT_S = round(2 * slowness())
POISONS = {
    "abort": (Reason.DECODER_DIED, "SIGABRT"),
    "hang": (Reason.DECODING_TIMED_OUT, str(DECODE_LIMIT_S)),
    "eight gigabytes": (Reason.DECODER_OUT_OF_MEMORY, "0.5 GB"),
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisonous_image_harms_itself_only(
    hospital: Hospital, make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    """A codec that aborts, hangs or eats memory costs its own study N attempts; neighbours are analysed at their first."""
    monkeypatch.setattr("worker.decoder_pool.decode", poisons.decode)
    engine = make_engine(max_attempts=2, decode_limit_s=float(DECODE_LIMIT_S), decode_memory_bytes=2**29)
    bad = square(poison, texture(1), ImageComments=f"poison: {poison}")
    alone = hospital.stored(engine.store, [bad])
    sound = [hospital.stored(engine.store, [square(f"beside {poison} {i}", texture(i))]) for i in range(6)]
    with ThreadPoolExecutor(7) as pool:
        words = list(pool.map(engine.analyse_study, [*sound[:3], alone, *sound[3:]]))
    assert words == ["analysed"] * 3 + ["will-retry"] + ["analysed"] * 3
    row = hospital.row(alone)
    assert (row.reason, row.reason_detail) == POISONS[poison]
    assert retried(engine, hospital, alone, 2) == [
        "analysed",
        "nothing-to-do",
    ]  # which concludes: no image has a finding
    row = hospital.row(alone)
    assert (row.status, row.attempts, (row.reason, row.reason_detail)) == (StudyStatus.QUARANTINED, 2, POISONS[poison])
    assert {hospital.row(study).attempts for study in sound} == {1}


def test_a_poisonous_image_leaves_its_study_the_others(
    hospital: Hospital, make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After N attempts the image is set aside with its reason, and the study's other images are analysed."""
    monkeypatch.setattr("worker.decoder_pool.decode", poisons.decode)
    engine = make_engine(max_attempts=2)
    study = hospital.stored(
        engine.store, [square("first", texture(1)), square("second", texture(2), ImageComments="poison: abort")]
    )
    assert retried(engine, hospital, study, 2) == ["will-retry", "analysed"]
    row = hospital.row(study)
    assert (row.status, row.images, row.failed_images) == (StudyStatus.ANALYSED, 2, 1)
    (bad,) = [image for image in hospital.instances(study) if image.error_reason]
    assert (bad.error_reason, bad.error_detail) == POISONS["abort"]


def test_decoders_end_with_their_worker(
    hospital: Hospital, make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a worker is killed, its decoders do not stay behind."""
    monkeypatch.setattr("worker.decoder_pool.CONTEXT", multiprocessing.get_context("spawn"))
    engine = make_engine()
    engine.analyse_study(hospital.stored(engine.store, [square("any", texture(1))]))
    decoders = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert decoders
    engine.close()
    assert psutil.wait_procs(decoders, timeout=LIMIT_S)[1] == []


# -- reruns ---------------------------------------------------------------------------------------------------


def look_again(engine: Engine, hospital: Hospital, bundle: str) -> list[str]:
    """Let a stored bundle look at history as a shadow; what a worker makes of each message."""
    with hospital.database.transaction() as session:
        backfill.open_shadow_run(session, bundle, db_now(session), None, None)
    with hospital.database.transaction() as session:
        pacing = backfill.Pacing(100, 2.0, timedelta(seconds=8))
        batch = backfill.next_batch(session, pacing, dict.fromkeys(Priority), db_now(session))
    assert batch is not None
    return [engine.analyse(one.analysis_id, one.queue) for one in batch.to_send]


def test_a_rerun_is_read_by_its_own_bundle(
    hospital: Hospital, engine: Any, other_bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reruns go the way of studies, but the bundle that they name reads them; live ones meanwhile keep the active
    one, and no bundle is loaded twice, not even when the shadow is promoted."""
    monkeypatch.setattr("worker.predictor.BUNDLE_CHECK_INTERVAL_S", 0.0)
    study = hospital.stored(engine.store, [HAND.read_bytes(), ELBOW.read_bytes()])
    engine.analyse_study(study)
    active, before = engine.predictor.current().manifest.name, hospital.row(study)
    store_bundle_file(engine.settings, hospital.database, other_bundle_path, activate=False)
    loads = []
    load = ActivePredictor._load
    monkeypatch.setattr(ActivePredictor, "_load", lambda self, row: (loads.append(row.name), load(self, row))[1])
    assert look_again(engine, hospital, "other") == ["analysed"]
    assert engine.analyse_study(study, Priority.BACKLOG, "other") == "nothing-to-do"
    assert sorted(one.bundle for one in hospital.findings(study)) == sorted([active, active, "other", "other"])
    assert (hospital.row(study).bundle, hospital.row(study).assessment) == (active, before.assessment)
    live = hospital.stored(
        engine.store, [ELBOW.read_bytes()], study_instance_uid="2.25.771", sop_instance_uid="2.25.772"
    )
    engine.analyse_study(live)
    assert hospital.row(live).bundle == active
    with hospital.database.transaction() as session:
        activate_bundle(session, "other")
    assert engine.predictor.current().manifest.name == "other"
    assert loads == ["other"]


def test_a_rerun_by_a_bundle_that_is_gone_fails_alone(hospital: Hospital, engine: Any) -> None:
    """Where the bundle's object is missing, reruns are retried and then fail, and live studies go on."""
    study = hospital.stored(engine.store, [HAND.read_bytes()])
    engine.analyse_study(study)
    with hospital.database.transaction() as session:
        add_bundle(session, "gone", "1" * 64, {})
    words = look_again(engine, hospital, "gone")
    for _ in range(engine.settings.max_attempts - 1):
        with hospital.database.transaction() as session:
            session.connection().exec_driver_sql("UPDATE analyses SET not_before = NULL")
        words.append(engine.analyse_study(study, Priority.BACKLOG, "gone"))
    assert words == ["will-retry"] * (engine.settings.max_attempts - 1) + ["failed"]
    assert hospital.row(study).status == StudyStatus.ANALYSED
    assert engine.analyse_study(study) == "nothing-to-do"


def test_a_rerun_waits_for_the_store(hospital: Hospital, engine: Any, other_bundle_path: Path) -> None:
    """While the object is missing a rerun is retried, and its study stays as it is."""
    study = hospital.stored(engine.store, [HAND.read_bytes()])
    engine.analyse_study(study)
    store_bundle_file(engine.settings, hospital.database, other_bundle_path, activate=False)
    engine.analyse_study(study, Priority.BACKLOG, "other")  # loads the bundle
    monkey = engine.decoders.submit
    engine.decoders.submit = lambda job, priority: failing(StoreUnavailable("away"))
    assert look_again(engine, hospital, "other") == ["will-retry"]
    engine.decoders.submit = monkey
    assert hospital.row(study).status == StudyStatus.ANALYSED
    with hospital.database.transaction() as session:
        session.connection().exec_driver_sql("UPDATE analyses SET not_before = NULL")
    assert engine.analyse_study(study, Priority.BACKLOG, "other") == "analysed"


def failing(wrong: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(wrong)
    return future
