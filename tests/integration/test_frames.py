"""A full-resolution frame from the upload to the reader: real API, broker, store and decoder children."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import redis
from sqlalchemy import select, update

from api.reasons import REASONS
from samples.objects import SYNTAX, encode, pattern_image, set_pixels, to_bytes
from shared.db.tables import InstanceRow
from shared.domain.security import Role
from shared.errors import Cause, Reason
from shared.pixels.decode import open_pixels
from shared.queries.access import add_key
from shared.queue.celery_app import FRAMES, QUEUES
from shared.storage import frame_key, original_key
from tests import poisons
from tests.pace import LIMIT_S, until
from worker.decoder_pool import FrameJob, Job
from worker.frames import refusal
from worker.tasks import Engine, threads_for

STUDIES = Path(__file__).parents[2] / "samples" / "studies"
HAND, LEG = STUDIES / "01-hand/1-pa.dcm", STUDIES / "24-leg/1-oblique.dcm"

pytestmark = pytest.mark.usefixtures("forked_decoders")


@pytest.fixture
def engine(in_process: Any) -> Any:
    """A worker's engine on the API's own servers."""
    made = Engine(in_process.settings.model_copy(update={"decoders": 1}))
    yield made
    made.close()


def upload(api: Any, content: bytes) -> tuple[str, InstanceRow]:
    """A study of one file, and its row."""
    study = api.post({"a.dcm": content}).json()["studies"][0]["id"]
    with api.database.transaction() as session:
        return study, session.scalars(select(InstanceRow).where(InstanceRow.study_id == UUID(study))).one()


def ask(api: Any, study: str, role: str = "radiologist", **query: Any) -> Any:
    return api.http.get(f"/api/v1/studies/{study}/frame", params=query, headers=api.headers(role))


def messages(api: Any) -> list[list[Any]]:
    """The arguments of all messages in the queue of frames, oldest first."""
    client = redis.Redis.from_url(api.settings.broker_url.get_secret_value())
    try:
        found = [json.loads(message) for message in client.lrange(FRAMES, 0, -1)]
    finally:
        client.close()
    return [json.loads(one["headers"]["argsrepr"].replace("'", '"')) for one in reversed(found)]


def test_frames_leave_threads_to_studies(in_process: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many frames are asked for at once, half of the threads are left to studies; who still waits asks again."""
    _, row = upload(in_process, HAND.read_bytes())
    most, release = threads_for(engine.settings) // 2, threading.Event()
    monkeypatch.setattr(engine, "_make_frame", lambda *_, **__: release.wait(LIMIT_S) and "made")
    with ThreadPoolExecutor(most) as pool:
        made = [pool.submit(engine.full_frame, row.id, 1) for _ in range(most)]
        until(lambda: engine.load.in_hand == most, 20, every_s=0.01)
        assert engine.full_frame(row.id, 1) == "busy"
        release.set()
        assert {one.result(LIMIT_S) for one in made} == {"made"}
    assert engine.full_frame(row.id, 1) == "made"


def test_frame_is_made_when_it_is_asked_for(in_process: Any, engine: Any) -> None:
    """202 and one message however often it is asked for, then the pixels of the file, bit for bit, for each frame."""
    study, row = upload(in_process, LEG.read_bytes())
    for _ in range(3):
        response = ask(in_process, study, frame=2)
        assert (response.status_code, response.headers["retry-after"]) == (202, "1")
    assert ask(in_process, study).status_code == 202
    assert messages(in_process) == [[str(row.id), 2], [str(row.id), 1]]
    assert engine.full_frame(row.id, 2) == "made"
    assert engine.full_frame(row.id, 2) == "made-already"
    response = ask(in_process, study, frame=2)
    assert (response.status_code, response.headers["content-encoding"]) == (200, "gzip")
    assert response.headers["cache-control"] == "private, no-cache"
    again = in_process.headers("radiologist") | {"If-None-Match": response.headers["etag"]}
    assert in_process.http.get(f"/api/v1/studies/{study}/frame?frame=2", headers=again).status_code == 304
    about = json.loads(response.headers["osteon-frame"])
    assert response.headers["osteon-film"] == response.headers["osteon-frame"]  # its name until 0.3.0
    old = in_process.http.get(f"/studies/{study}/film?frame=2", headers=in_process.headers("radiologist"))
    assert (old.status_code, old.content) == (200, response.content)
    pixels = np.frombuffer(response.content, "<u2").reshape(about["rows"], about["columns"])
    frame = open_pixels(LEG.read_bytes()).frame(1)
    np.testing.assert_array_equal(about["slope"] * pixels + about["intercept"], frame)
    assert ask(in_process, study).status_code == 202  # the other frame is another frame


def test_frames_do_not_confuse_the_queues(in_process: Any) -> None:
    """Messages for frames are in no queue of studies: neither the reconciler's look nor the counts see them."""
    publisher = in_process.http.app.state.parts.publisher
    study, _ = upload(in_process, HAND.read_bytes())
    before = publisher.oldest_messages(), publisher.waiting()
    assert ask(in_process, study).status_code == 202
    assert (publisher.oldest_messages(), publisher.waiting()) == before
    assert set(before[1]) == set(QUEUES)


def test_nobody_else_gets_it(in_process: Any) -> None:
    """Another site's key gets 404 and has nothing made; so do images and frames that are not there."""
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.RADIOLOGIST, "osk_elsewhere")
    study, _ = upload(in_process, HAND.read_bytes())
    other = {"Authorization": "Bearer osk_elsewhere"}
    assert in_process.http.get(f"/api/v1/studies/{study}/frame", headers=other).status_code == 404
    assert ask(in_process, study, role="submitter").status_code == 403
    wrong: list[tuple[dict[str, Any], int]] = [({"image": 2}, 404), ({"frame": 2}, 404), ({"image": 0}, 422)]
    for query, status in wrong:
        assert ask(in_process, study, **query).status_code == status
    assert messages(in_process) == []


def test_refused_image_says_why(in_process: Any, engine: Any) -> None:
    """An image that cannot be decoded is 422 with the reason, found by its analysis or by the frame itself."""
    ds = pattern_image(5, "damaged")
    pixels = np.frombuffer(ds.PixelData, np.uint8).reshape(ds.Rows, ds.Columns)
    stream = bytearray(encode(pixels, "jpegls", 8))
    stream[len(stream) // 2 : -2] = b"\xff\x7f" * ((len(stream) - 2 - len(stream) // 2 + 1) // 2)
    set_pixels(ds, [pixels], 8, "jpegls", [bytes(stream)])
    study, row = upload(in_process, to_bytes(ds, SYNTAX["jpegls"]))
    if row.error_reason == "":
        assert ask(in_process, study).status_code == 202
        assert engine.full_frame(row.id, 1) == "refused"
    response = ask(in_process, study)
    assert response.status_code == 422
    assert "cannot be decoded" in response.json()["detail"]
    with in_process.database.transaction() as session:
        session.execute(update(InstanceRow).values(error_reason="truncated-pixels", error_detail="1 of 2"))
    assert ask(in_process, study).json()["detail"].endswith("the file was cut short. Send it again. (1 of 2)")


def test_a_decoder_that_dies_is_told_and_tried_again_later(
    in_process: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame whose decoder is killed says so for a while; after that it is asked for, and made, like any other."""
    study, row = upload(in_process, HAND.read_bytes())
    assert ask(in_process, study).status_code == 202
    monkeypatch.setattr("worker.decoder_pool.make_frame", poisons.abort)
    assert engine.full_frame(row.id, 1) == "refused"
    response = ask(in_process, study)
    assert response.status_code == 422
    assert "ended its process" in response.json()["detail"]
    monkeypatch.undo()
    with monkeypatch.context() as later:
        later.setattr("worker.frames.FAILURE_LASTS_S", -1)
        stale = refusal(Cause(Reason.DECODING_FAILED), heals=True)
    store, key = in_process.http.app.state.parts.store, frame_key(row.sha256, 1)
    (Path(store.folder) / key).write_bytes(stale)
    assert ask(in_process, study).status_code == 202
    assert engine.full_frame(row.id, 1) == "made"
    assert ask(in_process, study).status_code == 200


def test_a_refusal_of_before_is_understood(in_process: Any, engine: Any) -> None:
    """What an earlier version stored in a frame's place has words instead of a fact: its code is told."""
    study, row = upload(in_process, HAND.read_bytes())
    about = json.dumps({"error": "Decoding failed (KeyError)", "reason": "decoding-failed", "until": None}).encode()
    store, key = in_process.http.app.state.parts.store, frame_key(row.sha256, 1)
    (Path(store.folder) / key).parent.mkdir(parents=True, exist_ok=True)
    (Path(store.folder) / key).write_bytes(len(about).to_bytes(4, "big") + about)
    response = ask(in_process, study)
    assert (response.status_code, response.json()["detail"]) == (422, REASONS[Reason.DECODING_FAILED])


def test_a_frame_that_was_swept_is_made_again(in_process: Any, engine: Any) -> None:
    """After OSTEON_FULL_FRAMES_DAYS a frame is removed, its study's pictures stay, and who asks gets it anew."""
    study, row = upload(in_process, HAND.read_bytes())
    assert engine.full_frame(row.id, 1) == "made"
    assert engine.sweep_frames() == 0
    frame = Path(in_process.http.app.state.parts.store.folder) / frame_key(row.sha256, 1)
    made = time.time() - engine.settings.full_frames_days * 86400 - 60
    os.utime(frame, (made, made))
    assert engine.sweep_frames() == 1
    assert ask(in_process, study).status_code == 202
    assert engine.full_frame(row.id, 1) == "made"
    assert ask(in_process, study).status_code == 200
    (frame.parent / "stray").mkdir()
    os.utime(frame.parent / "stray", (made, made))
    assert engine.sweep_frames() is None  # told in the log; the sweep of the next day tries again


def test_a_missing_original_is_told(in_process: Any, engine: Any) -> None:
    """When the stored bytes are gone, the page is told so instead of waiting for ever."""
    study, row = upload(in_process, HAND.read_bytes())
    store = in_process.http.app.state.parts.store
    (Path(store.folder) / original_key(row.sha256)).unlink()
    assert engine.full_frame(row.id, 1) == "refused"
    assert "not in the object store" in ask(in_process, study).json()["detail"]
    assert engine.full_frame(UUID(int=1), 1) == "nothing-to-do"


def test_a_broker_that_is_away_is_told(make_api: Any) -> None:
    """Without a broker the response is 503 with a cure, and the next question is not held back by the failed one."""
    api = make_api(broker_url="redis://127.0.0.1:1/0")
    study, _ = upload(api, HAND.read_bytes())
    for _ in range(2):
        response = ask(api, study)
        assert response.status_code == 503
        assert "OSTEON_BROKER_URL" in response.json()["detail"]


def test_frames_can_be_turned_off(make_api: Any) -> None:
    """With OSTEON_FULL_FRAMES=false there are previews only, and it is said."""
    api = make_api(full_frames=False)
    study, _ = upload(api, HAND.read_bytes())
    response = ask(api, study)
    assert response.status_code == 404
    assert "previews only" in response.json()["detail"]


def test_frames_go_before_studies(in_process: Any, engine: Any) -> None:
    """While a decoder is busy with studies, a frame that a person waits for is next."""
    study, row = upload(in_process, HAND.read_bytes())
    order: list[str] = []
    first = engine.decoders.submit(Job(row.sha256, 448), 0)
    later = [engine.decoders.submit(Job(row.sha256, 448), 0) for _ in range(3)]
    for one in later:
        one.add_done_callback(lambda _: order.append("study"))
    frame = engine.decoders.frame(FrameJob(row.sha256, 1))
    frame.add_done_callback(lambda _: order.append("frame"))
    for one in (first, *later, frame):
        one.result()
    assert order == ["frame", "study", "study", "study"]
    assert ask(in_process, study).status_code == 200
