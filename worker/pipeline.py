"""Decodes images and runs the model: few in hand at a time, outputs in order, errors with their image.

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

from shared.domain.findings import ExposedField, Finding
from shared.model.predictor import ModelOutput, Predictor
from shared.pixels.tensors import UInt8Image
from shared.settings import cpu_count
from worker.batching import Batcher
from worker.decoder_pool import DecodedImage

LARGE_PIXELS = 50_000_000  # all frames together; such an image takes a gigabyte for a while
LARGE = threading.Semaphore(1)  # how many are decoded at once in this process
ModelBatcher = Batcher[tuple[Predictor, UInt8Image], ModelOutput]


class Image(Protocol):
    """What is known of an image before it is decoded."""

    @property
    def frames(self) -> int:
        """Expected number of frames."""

    @property
    def pixels(self) -> int:
        """Number of pixels of all frames together; 0 where it is unknown."""


ImageT = TypeVar("ImageT", bound=Image)


@dataclass(frozen=True)
class ImageResult(Generic[ImageT]):
    """An image that the model has answered."""

    image: ImageT
    findings: list[Finding]  # one a frame
    previews: list[UInt8Image]  # as in DecodedImage


@dataclass(frozen=True)
class ImageFailure(Generic[ImageT]):
    """An image that could not be decoded, or that made the model fail."""

    image: ImageT
    error: Exception
    decoded: bool  # True: the model failed


def analyse_images(
    images: Iterable[ImageT],
    predictor: Predictor,
    decode: Callable[[ImageT], "Future[DecodedImage]"],
    batcher: ModelBatcher,
    priority: int = 0,
) -> Generator[ImageResult[ImageT] | ImageFailure[ImageT], None, None]:
    """Decode and read images; how many are in hand does not grow with how many there are.

    Close the iterator to give up: what is in hand is cancelled.

    Args:
        images: taken one by one, as there is room for them.
        predictor: the bundle that assesses.
        decode: begins to decode an image.
        batcher: of the model.
        priority: in the batcher.

    Returns:
        An iterator over what becomes of each image, in order.
    """
    return _Pipeline(iter(images), predictor, decode, batcher, priority).run()


class _Pipeline(Generic[ImageT]):
    def __init__(
        self,
        images: Iterator[ImageT],
        predictor: Predictor,
        decode: Callable[[ImageT], "Future[DecodedImage]"],
        batcher: ModelBatcher,
        priority: int,
    ) -> None:
        self._predictor, self._decode, self._batcher, self._priority = predictor, decode, batcher, priority
        # frames in hand from which on the next image waits: these keep the decoders and the model busy by themselves
        self._enough = 2 * (batcher.at_once + cpu_count())
        self._images = images
        self._next = next(images, None)
        # both in order; of the squares nothing is left here once the model has them
        self._decoding: deque[tuple[ImageT, Future[DecodedImage]]] = deque()
        self._predicting: deque[_Predicting[ImageT] | ImageFailure[ImageT]] = deque()

    def run(self) -> Generator[ImageResult[ImageT] | ImageFailure[ImageT], None, None]:
        """Do what `analyse_images` describes."""
        try:
            while self._next is not None or self._decoding or self._predicting:
                while self._next is not None and self._may_begin(self._next):
                    self._begin(self._next)
                    self._next = next(self._images, None)
                heads: list[Future[Any]] = [future for _, future in islice(self._decoding, 1)]
                heads.extend(islice(self._unread(), 1))
                wait(heads, return_when=FIRST_COMPLETED)
                if self._decoding and self._decoding[0][1].done():
                    self._predicting.append(self._handed_on(*self._decoding.popleft()))
                while self._predicting and (one := self._outcome(self._predicting[0])):
                    self._predicting.popleft()
                    yield one
        finally:
            for _, future in self._decoding:
                future.cancel()
            for output in self._unread():
                output.cancel()

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

    def _handed_on(self, image: ImageT, future: "Future[DecodedImage]") -> "_Predicting[ImageT] | ImageFailure[ImageT]":
        try:
            decoded = future.result()
        except Exception as error:  # noqa: BLE001 - whoever asked knows what it means
            return ImageFailure(image, error, decoded=False)
        squares = [self._batcher.submit((self._predictor, square), self._priority) for square in decoded.squares]
        return _Predicting(image, decoded.modality, decoded.body_part, decoded.fields, decoded.previews, squares)

    def _outcome(
        self, one: "_Predicting[ImageT] | ImageFailure[ImageT]"
    ) -> ImageResult[ImageT] | ImageFailure[ImageT] | None:
        """Make the outcome of an image; None while the model works on it."""
        if isinstance(one, ImageFailure):
            return one
        if not all(future.done() for future in one.futures):
            return None
        try:
            outputs = [future.result() for future in one.futures]
        except Exception as error:  # noqa: BLE001 - as above
            return ImageFailure(one.image, error, decoded=True)
        findings = [
            self._predictor.finding(output, frame, one.modality, one.body_part, exposed)
            for frame, (output, exposed) in enumerate(zip(outputs, one.fields, strict=True), start=1)
        ]
        return ImageResult(one.image, findings, one.previews)

    def _unread(self) -> "Iterator[Future[ModelOutput]]":
        """The futures that the model has yet to return, in order."""
        for one in self._predicting:
            if isinstance(one, _Predicting):
                yield from (future for future in one.futures if not future.done())


@dataclass(frozen=True)
class _Predicting(Generic[ImageT]):
    """An image that the model works on."""

    image: ImageT
    modality: str
    body_part: str
    fields: list[ExposedField]  # one a frame
    previews: list[UInt8Image]
    futures: "list[Future[ModelOutput]]"  # one a frame


def _large(image: Image) -> bool:
    return image.pixels > LARGE_PIXELS
