"""Decodes stored objects to squares and previews, in child processes.

A codec is C code fed with bytes of unknown origin: it can abort, hang, or ask for all memory. In a child of its own it
takes nothing with it, the culprit is known at once, and the interpreter lock of the worker stays free for the rest.
"""

import contextlib
import ctypes
import io
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
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from pebble import ProcessExpired, ProcessPool

from shared.archives import Bounds, member_of
from shared.dicom.comparison import Verdict, facts_of
from shared.dicom.image import ImageLimits
from shared.dicom.media import why_skipped
from shared.domain.findings import ExposedField
from shared.errors import ObjectDamaged, OsteonError, Reason, Rejected, TooLarge
from shared.logs import configure_logs, get_logger
from shared.pixels.decode import PixelSource, open_pixels
from shared.pixels.frames import PICTURES, open_image
from shared.pixels.radiograph import decode_radiograph
from shared.pixels.tensors import UInt8Image
from shared.storage import Store, frame_key, open_store, original_key, preview_key, raw_frame_key, sha256_of
from worker.batching import Batcher
from worker.frames import pack, pack_raw, picture
from worker.preemption import Preemption
from worker.watchdog import end_process

log = get_logger(__name__)
EXTRA_START_S = 30.0  # for a child's start, on top of an image's time
MAX_FAILED_STARTS = 5  # children in a row that end without a job: another child would not help
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MAX_KEPT_BYTES = 128 * 2**20  # at most, by a child between two images
FRAME_PRIORITY = -1  # a person waits for it: before urgent studies
PAIR_PRIORITY = 1000  # nobody waits for a comparison
# of the children: fork would copy our threads' locks; a fork server would end by a signal to the group
CONTEXT: BaseContext = multiprocessing.get_context("spawn")
PREVIEW_QUALITY = 95  # of JPEG: no difference to be seen, and ten times as fast as PNG


class SkippedFile(OsteonError):
    """A file beside images that is no image by design."""


class DecodingFailed(OsteonError):
    """Decoding an image ended its process."""

    reason = Reason.DECODING_FAILED

    def __init__(self, message: str = "", reason: Reason = Reason.DECODING_FAILED, detail: str = "") -> None:
        """Take one of `DECODING` as the reason."""
        super().__init__(message, detail)
        self.reason = reason


@dataclass(frozen=True)
class Job:
    """One instance to be decoded."""

    sha256: str
    size: int  # side of the squares, pixels


@dataclass(frozen=True)
class FrameJob:
    """One frame that is wanted in full resolution."""

    sha256: str
    frame: int  # 1 for the first
    raw: bool = False  # the stored values, for other programs; else for our own viewer


@dataclass(frozen=True)
class PictureJob:
    """One frame that results show."""

    sha256: str
    frame: int  # 1 for the first
    side: int  # the most pixels of the longer side


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
    """Two objects to be compared: do they hold the same image?"""

    stored: str  # SHA-256
    held: str


@dataclass(frozen=True)
class DecodedImage:
    """Result of decoding an image; an instance's previews are in the store."""

    squares: list[UInt8Image]  # (S, S) uint8, one a frame
    modality: str  # as OpenedImage has it
    body_part: str  # DICOM's Body Part Examined
    fields: list[ExposedField]  # what each square shows of its frame
    previews: list[UInt8Image] = field(default_factory=list)  # (H, W), one a frame, of a file for which they are wanted


Work = tuple[Callable[[Any], Any], Job | FrameJob | PictureJob | FileJob | PairJob]  # what a child runs, and on what


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
        preemption: Preemption | None = None,
        observe: Callable[[float], object] = lambda seconds: None,  # noqa: ARG005
    ) -> None:
        """Prepare the children; each starts with its first image, or with `begin`.

        Args:
            store_url: where the instances lie; None: only files are decoded.
            limits: of headers and pixels.
            count: number of children.
            limit_s: seconds for one instance with all its frames.
            memory_bytes: what one child may take, beside what it has at its start.
            log_level: of the children.
            preemption: of live studies, before which other images wait.
            observe: is called with the seconds that each instance took.
        """
        self._observe = observe
        self._limit_s, self._memory_bytes = limit_s, memory_bytes
        # a store that hangs must be reported as such, before its image is reported as too slow
        self._setup = (store_url, limits, memory_bytes, log_level, limit_s / 4)
        # a pool of one for each stream: a child that dies while it holds its pool's lock stops no other
        self._pools: dict[int, ProcessPool] = {}
        self._queue: Batcher[Work, Any] = Batcher(
            "decoder", self._decode, max_batch=1, streams=count, preemption=preemption
        )

    def submit(self, job: Job, priority: int = 0) -> "Future[DecodedImage]":
        """Decode an instance for the model.

        Args:
            job: the instance, and the side of its squares.
            priority: as `Batcher.submit` has it.

        Returns:
            A future; it raises what `decode` raises, and DecodingFailed.
        """
        return self._queue.submit((decode, job), priority)

    def file(self, job: FileJob) -> "Future[DecodedImage]":
        """Decode a file of this machine; the future raises what `decode_file` raises, and DecodingFailed."""
        return self._queue.submit((decode_file, job))

    def begin(self) -> None:
        """Start the children now, so that they are ready when the first image comes."""
        for _ in self._queue.streams:
            self._queue.submit((nothing, FrameJob("", 0)))

    def frame(self, job: FrameJob) -> "Future[None]":
        """Make a full-resolution frame and store it; the future raises what `make_frame` raises, and DecodingFailed."""
        return cast("Future[None]", self._queue.submit((make_frame, job), FRAME_PRIORITY))

    def picture(self, job: PictureJob) -> "Future[UInt8Image]":
        """Make the picture of a frame, (H, W); the future raises what `make_picture` raises, and DecodingFailed."""
        return cast("Future[UInt8Image]", self._queue.submit((make_picture, job)))

    def compare(self, job: PairJob) -> "Future[Verdict]":
        """Compare two objects, after all other work; the future raises as `compare_pair`, and DecodingFailed."""
        return cast("Future[Verdict]", self._queue.submit((compare_pair, job), PAIR_PRIORITY))

    def close(self) -> None:
        """Decode what waits, then end the children."""
        self._queue.close()
        for pool in self._pools.values():
            pool.close()  # type: ignore[no-untyped-call]
        for pool in self._pools.values():
            pool.join()

    def _decode(self, jobs: "Sequence[Work]") -> list[Any]:
        ((work, job),) = jobs
        start = time.perf_counter()
        for _ in range(MAX_FAILED_STARTS):  # no image is to blame for a child that died between two images
            begun = time.perf_counter()
            try:
                future = self._pool().schedule(work, args=(job,), timeout=self._limit_s)
                decoded = future.result(self._limit_s + EXTRA_START_S)
                self._observe(time.perf_counter() - start)
                return [decoded]
            except TooSlow:
                if not future.done():  # pebble uses the wall clock, which was set back; or no child begins
                    self._drop_pool()
                elif time.perf_counter() - begun < self._limit_s:
                    log.warning("clock jump detected")
                    continue
                took = f"{self._limit_s:.0f}"
                text = f"Decoding took more than {took} s and was stopped"
                raise DecodingFailed(text, Reason.DECODING_TIMED_OUT, took) from None
            except ProcessExpired as error:
                end = _death(error.exitcode)
                raise DecodingFailed(f"Decoding ended its process ({end})", Reason.DECODER_DIED, end) from None
            except MemoryError:
                self._drop_pool()  # a child that met its limit may hold on to what it took
                needed = f"{self._memory_bytes / 2**30:.1f} GB"
                text = f"Decoding needs more than {needed} of memory and was stopped"
                raise DecodingFailed(text, Reason.DECODER_OUT_OF_MEMORY, needed) from None
            except BrokenProcessPool:
                log.warning("idle decoder ended")
        end_process("the decoders cannot be started")
        raise DecodingFailed

    def _pool(self) -> ProcessPool:
        """Give this stream's pool; a new one if it has none that works."""
        stream = threading.get_ident()
        pool = self._pools.get(stream)
        if pool is None or not pool.active:
            pool = self._pools[stream] = ProcessPool(
                1,
                context=CONTEXT,
                initializer=begin,
                initargs=self._setup,
            )
        return pool

    def _drop_pool(self) -> None:
        """End this stream's child, busy or not; the next image gets a new one."""
        pool = self._pools.pop(threading.get_ident())
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _death(exitcode: int | None) -> str:
    """Name an end by multiprocessing's exit code, which is negative for a signal."""
    try:
        return signal.Signals(-(exitcode or 0)).name
    except ValueError:
        return f"exit code {exitcode}"


# ---- in the child


@dataclass(frozen=True)
class DecoderState:
    """Store and limits of a child."""

    store: Store | None  # None: it reads files
    limits: ImageLimits


_state: DecoderState | None = None


def begin(store_url: str | None, limits: ImageLimits, memory_bytes: int, log_level: str, patience_s: float) -> None:
    """Prepare a child for `decode`: bounded memory, and an end when the worker ends, however it does.

    Args:
        store_url: where the instances lie; None: only files are decoded.
        limits: of headers and pixels.
        memory_bytes: what the child may take, beside what it has now.
        log_level: of its own log.
        patience_s: how long it waits for the store.
    """
    configure_logs(log_level)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the worker ends its children itself
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, name="parent", daemon=True).start()
    cv2.setNumThreads(1)  # the children are the threads
    if sys.platform == "linux":
        # gets its share of a core, but preempts nobody: each switch costs the model its cache
        with contextlib.suppress(OSError):  # forbidden in some sandboxes
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        limit = _address_space() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a patient's image
    begin_here(None if store_url is None else open_store(store_url, patience_s), limits)


def begin_here(store: Store | None, limits: ImageLimits) -> None:
    """Prepare this process for `decode`, without bounds: to measure it.

    Args:
        store: where the instances lie; None: only files are decoded.
        limits: of headers and pixels.
    """
    global _state  # noqa: PLW0603 - one per process
    _keep_memory()
    _state = DecoderState(store, limits)


def _keep_memory() -> None:
    """Keep the memory of one image for the next: glibc would return it, and have each page made again.

    That took a third of a raw frame's time. Source: mallopt(3).
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
            libc.mallopt(M_TRIM_THRESHOLD, MAX_KEPT_BYTES)


def decode(job: Job) -> DecodedImage:
    """Fetch, check and decode one instance, and store its previews.

    Args:
        job: the instance, and the side of its squares.

    Returns:
        Squares of all frames, with what the header says.

    Raises:
        Rejected: The image can never be analysed.
        StoreUnavailable: The store does not answer.
        ObjectMissing: The object is gone.
        MemoryError: The child's limit is met.
    """
    assert _state is not None
    assert _state.store is not None
    image = open_image(_original(_state, job.sha256), _state.limits)
    squares, fields = [], []
    for frame in image.frames(job.size):
        # one frame in memory at a time; of earlier ones only the small squares are left
        squares.append(frame.square)
        fields.append(frame.exposed)
        picture = preview(frame.preview())
        _state.store.put(preview_key(job.sha256, frame.number), io.BytesIO(picture), len(picture))
    return DecodedImage(squares, image.modality, image.body_part, fields)


def nothing(_job: FrameJob) -> None:
    """Do nothing: a child is started before it is needed."""


def decode_file(job: FileJob) -> DecodedImage:
    """Read, check and decode one file of this machine.

    Args:
        job: the file, or a member of an archive.

    Returns:
        Squares of all frames, and previews where the job wants them.

    Raises:
        Rejected: The image can never be analysed.
        SkippedFile: The file is no image by design.
        OSError: The file cannot be read.
        MemoryError: The child's limit is met.
    """
    assert _state is not None
    content = _content(job)
    try:
        image = open_image(content, _state.limits)
    except Rejected:
        if content.startswith(PICTURES):
            raise  # a damaged image of a kind that this command reads
        why = why_skipped(io.BytesIO(content), len(content), job.member or job.path.name, _state.limits)
        if why is None:
            raise
        raise SkippedFile(why.words) from None
    squares, fields, previews = [], [], []
    for frame in image.frames(job.size):
        squares.append(frame.square)
        fields.append(frame.exposed)
        if job.previews:
            previews.append(frame.preview())
    return DecodedImage(squares, image.modality, image.body_part, fields, previews)


def _content(job: FileJob) -> bytes:
    with job.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if job.member is not None:
            return member_of(file, size, job.member, job.bounds, job.max_file_bytes)
        if size > job.max_file_bytes:
            raise TooLarge(f"The file has {size} bytes; at most {job.max_file_bytes} are taken")
        return file.read()


def make_frame(job: FrameJob) -> None:
    """Decode one frame, and store it with all its pixels and gray levels.

    Args:
        job: the instance, and the number of the frame.

    Raises:
        IndexError: The file does not have that frame.
        Rejected: The image cannot be decoded.
        StoreUnavailable: The store does not answer.
        ObjectMissing: The object is gone.
        MemoryError: The child's limit is met.
    """
    assert _state is not None
    assert _state.store is not None
    source, index = _source(_state, job.sha256), job.frame - 1
    frame = pack_raw(source, index) if job.raw else pack(*picture(source, index))
    key = raw_frame_key if job.raw else frame_key
    _state.store.put(key(job.sha256, job.frame), io.BytesIO(frame), len(frame))


def make_picture(job: PictureJob) -> UInt8Image:
    """Decode one frame as people see it.

    Args:
        job: the instance, the number of the frame, and how large the picture may be.

    Returns:
        (H, W) uint8, in its own proportions.

    Raises:
        IndexError: The file does not have that frame.
        Rejected: The image cannot be decoded.
        StoreUnavailable: The store does not answer.
        ObjectMissing: The object is gone, or damaged.
        MemoryError: The child's limit is met.
    """
    assert _state is not None
    source, index = _source(_state, job.sha256), job.frame - 1
    return decode_radiograph(source, index).preview(source, index, job.side)


def compare_pair(job: PairJob) -> Verdict:
    """Compare the pixels of two objects, value by value, and the data sets beside them.

    Args:
        job: the two objects.

    Returns:
        Whether both are the same, or what differs first: pixels, then header.

    Raises:
        Rejected: One cannot be decoded.
        StoreUnavailable: The store does not answer.
        ObjectMissing: One is gone.
        MemoryError: The child's limit is met.
    """
    assert _state is not None
    contents = [_original(_state, sha256) for sha256 in (job.stored, job.held)]
    one, other = (open_pixels(content, _state.limits) for content in contents)
    if (one.frames, one.rows, one.columns) != (other.frames, other.rows, other.columns):
        return Verdict.PIXELS
    if any(not np.array_equal(one.stored(index), other.stored(index)) for index in range(one.frames)):
        return Verdict.PIXELS
    headers = {facts_of(content, _state.limits).header for content in contents}
    return Verdict.SAME if len(headers) == 1 else Verdict.HEADER


def _source(bench: DecoderState, sha256: str) -> PixelSource:
    return open_pixels(_original(bench, sha256), bench.limits)


def _original(bench: DecoderState, sha256: str) -> bytes:
    assert bench.store is not None
    content = bench.store.get(original_key(sha256))
    if sha256_of(content) != sha256:
        raise ObjectDamaged
    return content


def preview(image: UInt8Image) -> bytes:
    """Compress (H, W) uint8 for display as a JPEG."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY])
    return encoded.tobytes()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def _address_space() -> int:
    """Read how many bytes of address space this process has now. Source: proc(5), /proc/pid/statm."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()
