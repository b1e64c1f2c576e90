"""Images through the decoders and the model: few in hand at a time, answers in order, errors with their image.

The worker's studies and `osteon predict` both take this path.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from shared.findings import ExposedField, Finding
from shared.settings import cpu_count
from shared.vision.reader import RawReading, Reader
from shared.vision.tensors import UInt8Image
from worker.batching import Batcher
from worker.decoding import Decoded

LARGE_PIXELS = 50_000_000  # all frames together; such an image takes a gigabyte for a while
LARGE = threading.Semaphore(1)  # so many at once in this process
ModelBatcher = Batcher[tuple[Reader, UInt8Image], RawReading]


class Image(Protocol):
    """What must be known of an image before it is decoded."""

    @property
    def frames(self) -> int:
        """How many it is expected to have."""

    @property
    def pixels(self) -> int:
        """Of all frames together; 0 where nobody knows."""


ImageT = TypeVar("ImageT", bound=Image)


@dataclass(frozen=True)
class Seen(Generic[ImageT]):
    """An image that the model has answered."""

    image: ImageT
    findings: list[Finding]  # one a frame
    previews: list[UInt8Image]  # as in Decoded


@dataclass(frozen=True)
class Failed(Generic[ImageT]):
    """An image that could not be decoded, or that the model broke on."""

    image: ImageT
    error: Exception
    decoded: bool  # it was: the model is what failed


def look_at(
    images: Iterable[ImageT],
    reader: Reader,
    decode: Callable[[ImageT], "Future[Decoded]"],
    batcher: ModelBatcher,
    priority: int = 0,
) -> Generator[Seen[ImageT] | Failed[ImageT], None, None]:
    """What becomes of each image, in order; how many are in hand does not grow with how many there are.

    Close the iterator to give up: what is in hand is cancelled.
    """
    return _Way(iter(images), reader, decode, batcher, priority).run()


class _Way(Generic[ImageT]):
    def __init__(
        self,
        images: Iterator[ImageT],
        reader: Reader,
        decode: Callable[[ImageT], "Future[Decoded]"],
        batcher: ModelBatcher,
        priority: int,
    ) -> None:
        self._reader, self._decode, self._batcher, self._priority = reader, decode, batcher, priority
        # frames in hand from which on the next image waits: these keep the decoders and the model busy by themselves
        self._enough = 2 * (batcher.at_once + cpu_count())
        self._images = images
        self._next = next(images, None)
        # both in order; of the squares nothing is left here once the model has them
        self._decoding: deque[tuple[ImageT, Future[Decoded]]] = deque()
        self._reading: deque[_Readings[ImageT] | Failed[ImageT]] = deque()

    def run(self) -> Generator[Seen[ImageT] | Failed[ImageT], None, None]:
        """As `look_at`."""
        try:
            while self._next is not None or self._decoding or self._reading:
                while self._next is not None and self._may_begin(self._next):
                    self._begin(self._next)
                    self._next = next(self._images, None)
                heads: list[Future[Any]] = [future for _, future in islice(self._decoding, 1)]
                heads.extend(islice(self._unread(), 1))
                wait(heads, return_when=FIRST_COMPLETED)
                if self._decoding and self._decoding[0][1].done():
                    self._reading.append(self._handed_on(*self._decoding.popleft()))
                while self._reading and (one := self._outcome(self._reading[0])):
                    self._reading.popleft()
                    yield one
        finally:
            for _, future in self._decoding:
                future.cancel()
            for reading in self._unread():
                reading.cancel()

    def _may_begin(self, image: ImageT) -> bool:
        if _large(image) and self._decoding:
            return False  # it may have to wait for its turn, and the squares of these with it
        decoding = sum(image.frames for image, _ in self._decoding)
        return decoding + sum(1 for _ in self._unread()) < self._enough

    def _begin(self, image: ImageT) -> None:
        with LARGE if _large(image) else contextlib.nullcontext():
            future = self._decode(image)
            self._decoding.append((image, future))
            if _large(image):
                wait([future])

    def _handed_on(self, image: ImageT, future: "Future[Decoded]") -> "_Readings[ImageT] | Failed[ImageT]":
        try:
            decoded = future.result()
        except Exception as wrong:  # noqa: BLE001 - whoever asked knows what it means
            return Failed(image, wrong, decoded=False)
        squares = [self._batcher.submit((self._reader, square), self._priority) for square in decoded.squares]
        return _Readings(image, decoded.modality, decoded.body_part, decoded.fields, decoded.previews, squares)

    def _outcome(self, one: "_Readings[ImageT] | Failed[ImageT]") -> Seen[ImageT] | Failed[ImageT] | None:
        """None: the model still works on it."""
        if isinstance(one, Failed):
            return one
        if not all(future.done() for future in one.futures):
            return None
        try:
            readings = [future.result() for future in one.futures]
        except Exception as wrong:  # noqa: BLE001 - as above
            return Failed(one.image, wrong, decoded=True)
        findings = [
            self._reader.finding(reading, frame, one.modality, one.body_part, exposed)
            for frame, (reading, exposed) in enumerate(zip(readings, one.fields, strict=True), start=1)
        ]
        return Seen(one.image, findings, one.previews)

    def _unread(self) -> "Iterator[Future[RawReading]]":
        """What the model has yet to answer, in order."""
        for one in self._reading:
            if isinstance(one, _Readings):
                yield from (future for future in one.futures if not future.done())


@dataclass(frozen=True)
class _Readings(Generic[ImageT]):
    """An image that the model works on."""

    image: ImageT
    modality: str
    body_part: str
    fields: list[ExposedField]  # one a frame
    previews: list[UInt8Image]
    futures: "list[Future[RawReading]]"  # one a frame


def _large(image: Image) -> bool:
    return image.pixels > LARGE_PIXELS
