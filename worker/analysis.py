"""One study: squares, readings, findings."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future

from shared.errors import Rejected
from shared.findings import InstanceResult
from shared.jobs import QUEUES
from shared.study import Claim, InstanceToAnalyse
from shared.vision.reader import RawReading, Reader
from shared.vision.tensors import UInt8Image
from worker.batching import Batcher
from worker.decoding import Decoded, DecodingFailed, Job

LARGE_PIXELS = 50_000_000  # all frames together; such an instance takes a gigabyte for a while
LARGE = threading.Semaphore(1)  # so many at once in this process
ModelBatcher = Batcher[tuple[Reader, UInt8Image], RawReading]
Decode = Callable[[Job, int], "Future[Decoded]"]


def analyse(
    claim: Claim, reader: Reader, decode: Decode, batcher: ModelBatcher, *, last_attempt: bool = False
) -> list[InstanceResult]:
    """Analyse every instance of a study; an image that cannot be analysed gets an error, the others go on.

    Raises Unavailable, ObjectMissing and DecodingFailed, which can heal, and whatever the model raises for one of the
    images. On the last attempt DecodingFailed becomes the error of its image.
    """
    priority = QUEUES.index(claim.priority)
    jobs = [Job(instance.sha256, reader.size) for instance in claim.instances]
    # all of the study's small images at once; its large ones when their turn comes
    begun = [None if _large(one) else decode(job, priority) for one, job in zip(claim.instances, jobs, strict=True)]
    read: list[tuple[Decoded, list[Future[RawReading]]] | InstanceResult] = []
    try:
        for instance, job, future in zip(claim.instances, jobs, begun, strict=True):
            try:
                with contextlib.nullcontext() if future else LARGE:
                    decoded = (future or decode(job, priority)).result()
            except Rejected as why:
                read.append(InstanceResult(instance.id, error_reason=why.reason, error_text=str(why)))
            except DecodingFailed as why:
                if not last_attempt:
                    raise
                read.append(InstanceResult(instance.id, error_reason="decoding-failed", error_text=str(why)))
            else:
                read.append((decoded, [batcher.submit((reader, square), priority) for square in decoded.squares]))
        return [
            one if isinstance(one, InstanceResult) else _result(instance, reader, *one)
            for instance, one in zip(claim.instances, read, strict=True)
        ]
    except BaseException:
        for future in begun:
            if future:
                future.cancel()
        for one in read:
            if not isinstance(one, InstanceResult):
                for reading in one[1]:
                    reading.cancel()
        raise


def _result(
    instance: InstanceToAnalyse, reader: Reader, decoded: Decoded, readings: "list[Future[RawReading]]"
) -> InstanceResult:
    modality = instance.modality or "unknown"
    return InstanceResult(
        instance.id,
        [
            reader.finding(reading.result(), frame, modality, decoded.body_part)
            for frame, reading in enumerate(readings, start=1)
        ],
    )


def _large(instance: InstanceToAnalyse) -> bool:
    return instance.pixels > LARGE_PIXELS
