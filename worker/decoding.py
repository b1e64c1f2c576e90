"""From a stored object to squares and previews, in child processes.

A codec is C code fed with strangers' bytes: it can abort, hang, or ask for all memory. In a child of its own it takes
nothing with it, the culprit is known at once, and the interpreter lock of the worker stays free for the rest.
"""

import contextlib
import ctypes
import io
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooSlow
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from pebble import ProcessExpired, ProcessPool

from shared.archives import Bounds, member_of
from shared.comparison import Verdict, facts_of
from shared.errors import ObjectMissing, OsteonError, Rejected, TooLarge
from shared.findings import ExposedField
from shared.image import ImageLimits
from shared.logs import configure_logs
from shared.media import passed_by
from shared.storage import Store, film_key, open_store, original_key, preview_key, sha256_of
from shared.vision.frames import PICTURES, open_image
from shared.vision.pixels import PixelSource, open_pixels
from shared.vision.tensors import UInt8Image
from worker.batching import Batcher, RightOfWay
from worker.films import pack, picture
from worker.watchdog import end_process

log = logging.getLogger(__name__)
SPARE_S = 30.0  # for a child's start, on top of an image's time
STARTS = 5  # children that end with nothing in hand, one after the other: something is wrong that no child can cure
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = 128 * 2**20  # at most, by a child between two images
FILM_FIRST = -1  # a person waits for it: before urgent studies
PAIRS_LAST = 1000  # nobody waits for a comparison
PREVIEW_QUALITY = 95  # of JPEG: no difference to be seen, and ten times as fast as PNG


class PassedOver(OsteonError):
    """A file that lies beside images, and is none."""


class DecodingFailed(OsteonError):
    """Decoding an image ended its process."""


@dataclass(frozen=True)
class Job:
    """One instance to be decoded."""

    sha256: str
    size: int  # side of the squares, pixels


@dataclass(frozen=True)
class FilmJob:
    """One frame whose full film is wanted."""

    sha256: str
    frame: int  # 1 for the first


@dataclass(frozen=True)
class FileJob:
    """A file on a disk of this machine, for `osteon predict`."""

    path: Path
    member: str | None  # its name within the archive at `path`
    size: int  # side of the squares, pixels
    previews: bool  # whether they are wanted
    bounds: Bounds  # of an archive
    max_file_bytes: int


@dataclass(frozen=True)
class PairJob:
    """Two objects of which somebody wants to know whether they hold one image."""

    stored: str  # SHA-256
    held: str


@dataclass(frozen=True)
class Decoded:
    """What is left of an image once it is decoded; an instance's previews are stored."""

    squares: list[UInt8Image]  # (S, S) uint8, one a frame
    modality: str  # as OpenedImage has it
    body_part: str  # DICOM's Body Part Examined
    fields: list[ExposedField]  # what each square shows of its frame
    previews: list[UInt8Image] = field(default_factory=list)  # (H, W), one a frame, of a file of which they are wanted


Work = tuple[Callable[[Any], Any], Job | FilmJob | FileJob | PairJob]  # what a child runs, and on what


class Decoders:
    """A few children that decode, the most urgent first; one that dies or hangs is replaced."""

    def __init__(
        self,
        store_url: str | None,
        limits: ImageLimits,
        *,
        count: int,
        limit_s: float,
        memory_bytes: int,
        log_level: str,
        right_of_way: RightOfWay | None = None,
        observe: Callable[[float], object] = lambda seconds: None,  # noqa: ARG005
    ) -> None:
        """limit_s: for one instance with all its frames; memory_bytes: what one child may take.

        store_url: where the instances lie; None: only files are decoded.

        right_of_way: of live studies, before which other images stand back.
        observe: told how many seconds each instance took.
        """
        self._observe = observe
        self._limit_s, self._memory_bytes = limit_s, memory_bytes
        # a store that hangs is to be told as such, before its image is blamed for taking too long
        self._setup = (store_url, limits, memory_bytes, log_level, limit_s / 4)
        # a pool of one for each lane: a child that dies while it holds its pool's lock stops no other
        self._pools: dict[int, ProcessPool] = {}
        self._queue: Batcher[Work, Any] = Batcher(
            "decoder", self._answer, max_batch=1, lanes=count, right_of_way=right_of_way
        )

    def submit(self, job: Job, priority: int = 0) -> "Future[Decoded]":
        """Decode an instance for the model. The future raises as `decode`, and DecodingFailed."""
        return self._queue.submit((decode, job), priority)

    def file(self, job: FileJob) -> "Future[Decoded]":
        """Decode a file of this machine. The future raises as `decode_file`, and DecodingFailed."""
        return self._queue.submit((decode_file, job))

    def begin(self) -> None:
        """Start the children now, so that they are ready when the first image comes."""
        for _ in self._queue.lanes:
            self._queue.submit((nothing, FilmJob("", 0)))

    def film(self, job: FilmJob) -> "Future[None]":
        """Make a full film and store it. The future raises as `make_film`, and DecodingFailed."""
        return cast("Future[None]", self._queue.submit((make_film, job), FILM_FIRST))

    def compare(self, job: PairJob) -> "Future[Verdict]":
        """Compare two objects, behind all other work. The future raises as `compare_pair`, and DecodingFailed."""
        return cast("Future[Verdict]", self._queue.submit((compare_pair, job), PAIRS_LAST))

    def close(self) -> None:
        """Decode what waits, then end the children."""
        self._queue.close()
        for pool in self._pools.values():
            pool.close()  # type: ignore[no-untyped-call]
        for pool in self._pools.values():
            pool.join()

    def _answer(self, jobs: "Sequence[Work]") -> list[Any]:
        ((work, job),) = jobs
        start = time.perf_counter()
        for _ in range(STARTS):  # a child that died between two images is no image's fault
            begun = time.perf_counter()
            try:
                future = self._pool().schedule(work, args=(job,), timeout=self._limit_s)
                decoded = future.result(self._limit_s + SPARE_S)
                self._observe(time.perf_counter() - start)
                return [decoded]
            except TooSlow:
                if not future.done():  # pebble goes by the clock on the wall, which was set back; or no child begins
                    self._drop_pool()
                elif time.perf_counter() - begun < self._limit_s:
                    log.warning("the clock was set ahead; an image is decoded once more")
                    continue
                raise DecodingFailed(f"Decoding took more than {self._limit_s:.0f} s and was stopped") from None
            except ProcessExpired as died:
                raise DecodingFailed(f"Decoding ended its process ({_death(died.exitcode)})") from None
            except MemoryError:
                self._drop_pool()  # a child that met its limit may hold on to what it took
                needed = f"{self._memory_bytes / 2**30:.1f} GB"
                raise DecodingFailed(f"Decoding needs more than {needed} of memory and was stopped") from None
            except BrokenProcessPool:
                log.warning("a decoder ended without an image in hand; another one is started")
        end_process("the decoders cannot be started")
        raise DecodingFailed

    def _pool(self) -> ProcessPool:
        """This lane's; a new one when it has none that works."""
        lane = threading.get_ident()
        pool = self._pools.get(lane)
        if pool is None or not pool.active:
            pool = self._pools[lane] = ProcessPool(
                1,
                # neither a copy of our threads' locks, nor a server that a signal to the group would end
                context=multiprocessing.get_context("spawn"),
                initializer=begin,
                initargs=self._setup,
            )
        return pool

    def _drop_pool(self) -> None:
        """End this lane's child, busy or not; the next image gets a new one."""
        pool = self._pools.pop(threading.get_ident())
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _death(exitcode: int | None) -> str:
    """exitcode: as multiprocessing gives it, negative for a signal."""
    try:
        return signal.Signals(-(exitcode or 0)).name
    except ValueError:
        return f"exit code {exitcode}"


# ---- in the child


@dataclass(frozen=True)
class Bench:
    """What a child works with."""

    store: Store | None  # None: it reads files
    limits: ImageLimits


_bench: Bench | None = None


def begin(store_url: str | None, limits: ImageLimits, memory_bytes: int, log_level: str, patience_s: float) -> None:
    """Make ready for `decode`: bounded memory, and an end when the worker ends, however it does."""
    configure_logs(log_level)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the worker says when it is time
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, name="parent", daemon=True).start()
    cv2.setNumThreads(1)  # the children are the threads
    if sys.platform == "linux":
        # takes its share of a core, but drives nobody off it: each change costs the model its cache
        with contextlib.suppress(OSError):  # a sandbox that does not let it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        limit = _address_space() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a patient's image
    begin_here(None if store_url is None else open_store(store_url, patience_s), limits)


def begin_here(store: Store | None, limits: ImageLimits) -> None:
    """Make ready for `decode` in this process, without bounds: to measure it."""
    global _bench  # noqa: PLW0603 - one per process
    _keep_memory()
    _bench = Bench(store, limits)


def _keep_memory() -> None:
    """Let glibc keep the memory of one image for the next, where it would give it back and have each page made anew.

    That took a third of a raw film's time. Source: mallopt(3).
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
            libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def decode(job: Job) -> Decoded:
    """Fetch, check and decode one instance, and store its previews.

    Raises Rejected for an image that can never be analysed; StoreUnavailable, ObjectMissing and MemoryError.
    """
    assert _bench is not None
    assert _bench.store is not None
    image = open_image(_original(_bench, job.sha256), _bench.limits)
    squares, fields = [], []
    for frame in image.frames(job.size):
        # one frame in memory at a time; of earlier ones only the small squares are left
        squares.append(frame.square)
        fields.append(frame.exposed)
        picture = preview(frame.preview())
        _bench.store.put(preview_key(job.sha256, frame.number), io.BytesIO(picture), len(picture))
    return Decoded(squares, image.modality, image.body_part, fields)


def nothing(_job: FilmJob) -> None:
    """So that a child is started before it is needed."""


def decode_file(job: FileJob) -> Decoded:
    """Read, check and decode one file of this machine.

    Raises Rejected for an image that can never be analysed, PassedOver for what is no image by design; OSError and
    MemoryError.
    """
    assert _bench is not None
    content = _content(job)
    try:
        image = open_image(content, _bench.limits)
    except Rejected:
        if content.startswith(PICTURES):
            raise  # an image for this command, and a damaged one
        why = passed_by(io.BytesIO(content), len(content), job.member or job.path.name, _bench.limits)
        if why is None:
            raise
        raise PassedOver(why.words) from None
    squares, fields, previews = [], [], []
    for frame in image.frames(job.size):
        squares.append(frame.square)
        fields.append(frame.exposed)
        if job.previews:
            previews.append(frame.preview())
    return Decoded(squares, image.modality, image.body_part, fields, previews)


def _content(job: FileJob) -> bytes:
    with job.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if job.member is not None:
            return member_of(file, size, job.member, job.bounds, job.max_file_bytes)
        if size > job.max_file_bytes:
            raise TooLarge(f"The file has {size} bytes; at most {job.max_file_bytes} are taken")
        return file.read()


def make_film(job: FilmJob) -> None:
    """Decode one frame, and store it with all its pixels and gray levels.

    Raises as `decode`, and IndexError for a frame that the file does not have.
    """
    assert _bench is not None
    assert _bench.store is not None
    film = pack(*picture(_source(_bench, job.sha256), job.frame - 1))
    _bench.store.put(film_key(job.sha256, job.frame), io.BytesIO(film), len(film))


def compare_pair(job: PairJob) -> Verdict:
    """Whether two objects hold the same pixels, value by value, and the same data set beside them.

    Raises Rejected for one that cannot be decoded; StoreUnavailable, ObjectMissing and MemoryError.
    """
    assert _bench is not None
    contents = [_original(_bench, sha256) for sha256 in (job.stored, job.held)]
    one, other = (open_pixels(content, _bench.limits) for content in contents)
    if (one.frames, one.rows, one.columns) != (other.frames, other.rows, other.columns):
        return Verdict.PIXELS
    if any(not np.array_equal(one.stored(index), other.stored(index)) for index in range(one.frames)):
        return Verdict.PIXELS
    headers = {facts_of(content, _bench.limits).header for content in contents}
    return Verdict.SAME if len(headers) == 1 else Verdict.HEADER


def _source(bench: Bench, sha256: str) -> PixelSource:
    return open_pixels(_original(bench, sha256), bench.limits)


def _original(bench: Bench, sha256: str) -> bytes:
    assert bench.store is not None
    content = bench.store.get(original_key(sha256))
    if sha256_of(content) != sha256:
        raise ObjectMissing("The stored bytes of an image are damaged; send the file again")
    return content


def preview(image: UInt8Image) -> bytes:
    """image: (H, W) uint8 for display. Returns a JPEG."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY])
    return encoded.tobytes()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def _address_space() -> int:
    """Bytes of address space that this process has now. Source: proc(5), /proc/pid/statm."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()
