"""One study: squares, readings, findings."""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

from shared.errors import OsteonError, Rejected
from shared.findings import InstanceResult
from shared.jobs import QUEUES
from shared.repository.work import DECODING_FAILED
from shared.settings import cpu_count
from shared.study import Claim, InstanceToAnalyse
from shared.vision.reader import RawReading, Reader
from shared.vision.tensors import UInt8Image
from worker.batching import Batcher
from worker.decoding import Decoded, DecodingFailed, Job

log = logging.getLogger(__name__)
LARGE_PIXELS = 50_000_000  # all frames together; such an instance takes a gigabyte for a while
LARGE = threading.Semaphore(1)  # so many at once in this process
ModelBatcher = Batcher[tuple[Reader, UInt8Image], RawReading]
Decode = Callable[[Job, int], "Future[Decoded]"]


def analyse(
    claim: Claim, reader: Reader, decode: Decode, batcher: ModelBatcher, *, last_attempt: bool = False
) -> list[InstanceResult]:
    """Analyse every instance of a study; an image that cannot be analysed gets an error, the others go on.

    Raises Unavailable, ObjectMissing and DecodingFailed, which can heal, and whatever the model raises for one of the
    images. On the last attempt DecodingFailed, or what nobody foresaw of a decoder, becomes the error of its image.
    """
    return _Analysis(claim, reader, decode, batcher, last_attempt=last_attempt).run()


class _Analysis:
    """A study on its way. Few of its images are in hand at a time, so its memory does not grow with its size."""

    def __init__(
        self, claim: Claim, reader: Reader, decode: Decode, batcher: ModelBatcher, *, last_attempt: bool
    ) -> None:
        self._reader, self._decode, self._batcher, self._last_attempt = reader, decode, batcher, last_attempt
        self._priority = QUEUES.index(claim.priority)
        # frames in hand from which on the next image waits: these keep the decoders and the model busy by themselves
        self._enough = 2 * (batcher.at_once + cpu_count())
        self._to_come = deque(claim.instances)
        # both in order; of the squares nothing is left here once the model has them
        self._decoding: deque[tuple[InstanceToAnalyse, Future[Decoded]]] = deque()
        self._reading: deque[InstanceResult | _Readings] = deque()

    def run(self) -> list[InstanceResult]:
        """As `analyse`."""
        results: list[InstanceResult] = []
        try:
            while self._to_come or self._decoding or self._reading:
                while self._to_come and self._may_begin(self._to_come[0]):
                    self._begin(self._to_come.popleft())
                heads: list[Future[Any]] = [future for _, future in islice(self._decoding, 1)]
                heads.extend(islice(self._unread(), 1))
                wait(heads, return_when=FIRST_COMPLETED)
                if self._decoding and self._decoding[0][1].done():
                    self._reading.append(self._handed_on(*self._decoding.popleft()))
                while self._reading and (one := self._result(self._reading[0])):
                    self._reading.popleft()
                    results.append(one)
        except BaseException:
            for _, future in self._decoding:
                future.cancel()
            for reading in self._unread():
                reading.cancel()
            raise
        return results

    def _may_begin(self, instance: InstanceToAnalyse) -> bool:
        if _large(instance) and self._decoding:
            return False  # it may have to wait for its turn, and the squares of these with it
        decoding = sum(instance.frames for instance, _ in self._decoding)
        return decoding + sum(1 for _ in self._unread()) < self._enough

    def _begin(self, instance: InstanceToAnalyse) -> None:
        with LARGE if _large(instance) else contextlib.nullcontext():
            future = self._decode(Job(instance.sha256, self._reader.size), self._priority)
            self._decoding.append((instance, future))
            if _large(instance):
                wait([future])

    def _handed_on(self, instance: InstanceToAnalyse, future: "Future[Decoded]") -> "InstanceResult | _Readings":
        try:
            decoded = future.result()
        except Rejected as why:
            return InstanceResult(instance.id, error_reason=why.reason, error_text=str(why))
        except DecodingFailed as why:
            if not self._last_attempt:
                raise
            return InstanceResult(instance.id, error_reason=DECODING_FAILED, error_text=str(why))
        except OsteonError:
            raise  # the store's, or an object's that is gone
        except Exception as wrong:
            if not self._last_attempt:
                raise
            log.exception("decoding failed", extra={"instance": str(instance.id)})
            text = f"Decoding failed ({type(wrong).__name__})"  # its words may hold what the header holds
            return InstanceResult(instance.id, error_reason=DECODING_FAILED, error_text=text)
        squares = [self._batcher.submit((self._reader, square), self._priority) for square in decoded.squares]
        return _Readings(instance, decoded.body_part, squares)

    def _result(self, one: "InstanceResult | _Readings") -> InstanceResult | None:
        """None: the model still works on it."""
        if isinstance(one, InstanceResult):
            return one
        if not all(future.done() for future in one.futures):
            return None
        modality = one.instance.modality or "unknown"
        return InstanceResult(
            one.instance.id,
            [
                self._reader.finding(future.result(), frame, modality, one.body_part)
                for frame, future in enumerate(one.futures, start=1)
            ],
        )

    def _unread(self) -> "Iterator[Future[RawReading]]":
        """What the model has yet to answer, in order."""
        for one in self._reading:
            if isinstance(one, _Readings):
                yield from (future for future in one.futures if not future.done())


@dataclass(frozen=True)
class _Readings:
    """An instance that the model works on."""

    instance: InstanceToAnalyse
    body_part: str
    futures: "list[Future[RawReading]]"  # one a frame


def _large(instance: InstanceToAnalyse) -> bool:
    return instance.pixels > LARGE_PIXELS
