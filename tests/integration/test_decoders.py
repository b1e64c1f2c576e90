"""Children that decode, where what is around them misbehaves."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samples.objects import pattern_image, to_bytes
from shared.dicom.image import ImageLimits
from shared.storage import open_store, original_key, sha256_of
from tests import poisons
from tests.pace import LIMIT_S, slowness, until
from worker import decoder_pool
from worker.decoder_pool import Decoders, DecodingFailed, Job

pytestmark = pytest.mark.usefixtures("forked_decoders")
LIMITS = ImageLimits(max_frame_pixels=10**8, max_frames=10, max_decoded_bytes=10**9, max_header_bytes=10**6)


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"file:{tmp_path}"


@pytest.fixture
def make_decoders(store_url: str) -> Iterator[Callable[..., Decoders]]:
    made: list[Decoders] = []

    def make(**changes: Any) -> Decoders:
        values: dict[str, Any] = {"count": 1, "limit_s": 20.0, "memory_bytes": 2**30, "log_level": "WARNING"} | changes
        made.append(Decoders(store_url, LIMITS, **values))
        return made[-1]

    yield make
    for decoders in made:
        decoders.close()


def stored(store_url: str, words: str) -> Job:
    """An image with these words in its header; returns its job."""
    ds = pattern_image(1, f"decoders/{words}")
    ds.ImageComments = words
    content = to_bytes(ds, "1.2.840.10008.1.2.1")
    sha256 = sha256_of(content)
    open_store(store_url).put(original_key(sha256), io.BytesIO(content), len(content))
    return Job(sha256, 448)


def wait_for(path: Path) -> None:
    until(path.exists, 30, every_s=0.01)


def test_a_clock_that_is_set_ahead_stops_no_image(
    store_url: str, tmp_path: Path, make_decoders: Callable[..., Decoders], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hours in a moment are not two hours of decoding: the image is decoded once more, and not blamed."""
    ahead = threading.Event()
    wall = SimpleNamespace(time=lambda: time.time() + 7200 * ahead.is_set(), sleep=time.sleep)
    monkeypatch.setattr("pebble.pool.process.time", wall)
    monkeypatch.setattr(decoder_pool, "decode", poisons.slowly)
    future = make_decoders().submit(stored(store_url, "slow"))
    wait_for(tmp_path / poisons.BEGUN)
    child = (tmp_path / poisons.BEGUN).read_text()
    ahead.set()
    assert future.result(LIMIT_S).body_part == "HAND"
    assert (tmp_path / poisons.BEGUN).read_text() != child


def test_a_clock_that_is_set_back_lets_no_image_hang(
    store_url: str, tmp_path: Path, make_decoders: Callable[..., Decoders], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that hangs is stopped by the time that really passed, and the stream goes on with a new child."""
    back = threading.Event()
    wall = SimpleNamespace(time=lambda: time.time() - 7200 * back.is_set(), sleep=time.sleep)
    monkeypatch.setattr("pebble.pool.process.time", wall)
    monkeypatch.setattr(decoder_pool, "decode", poisons.decode)
    monkeypatch.setattr(decoder_pool, "EXTRA_START_S", 4.0)
    seconds = round(4 * slowness())
    decoders = make_decoders(limit_s=float(seconds))
    assert decoders.submit(stored(store_url, "sound")).result(LIMIT_S).body_part == "HAND"
    hanging = decoders.submit(stored(store_url, "poison: hang"))
    back.set()
    with pytest.raises(DecodingFailed, match=f"took more than {seconds} s"):
        hanging.result(LIMIT_S)
    assert decoders.submit(stored(store_url, "sound too")).result(LIMIT_S).body_part == "HAND"


def test_a_child_that_met_its_memory_limit_is_replaced(
    store_url: str, make_decoders: Callable[..., Decoders], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may hold on to is not the next image's trouble."""
    monkeypatch.setattr(decoder_pool, "decode", poisons.decode)
    decoders = make_decoders()
    with pytest.raises(DecodingFailed, match="of memory"):
        decoders.submit(stored(store_url, "poison: eight gigabytes")).result(LIMIT_S)
    assert decoders._pools == {}
    assert decoders.submit(stored(store_url, "sound")).result(LIMIT_S).body_part == "HAND"
