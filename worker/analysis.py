"""One study: bytes, pixels, squares, readings, findings."""

import contextlib
import io
import threading
from concurrent.futures import Future

import cv2
import numpy as np
import numpy.typing as npt

from shared.errors import ObjectMissing, Rejected
from shared.findings import Finding, InstanceResult
from shared.jobs import QUEUES
from shared.storage import Store, original_key, preview_key, sha256_of
from shared.study import Claim, InstanceToAnalyse
from shared.vision.pixels import PixelLimits, display, open_pixels
from shared.vision.reader import RawReading, Reader
from shared.vision.tensors import UInt8Image, prepare
from worker.batching import Batcher

PREVIEW_SIDE = 1024  # pixels
LARGE_PIXELS = 50_000_000  # all frames together; such an instance takes a gigabyte for a while
LARGE = threading.Semaphore(2)  # so many at once in this process
ModelBatcher = Batcher[tuple[Reader, UInt8Image], RawReading]


def analyse(
    claim: Claim, store: Store, reader: Reader, batcher: ModelBatcher, limits: PixelLimits
) -> list[InstanceResult]:
    """Analyse every instance of a study; an image that cannot be analysed gets an error, the others go on.

    Raises Unavailable and ObjectMissing, which can heal, and whatever the model raises for one of the images.
    """
    return [_instance(instance, claim, store, reader, batcher, limits=limits) for instance in claim.instances]


def _instance(
    instance: InstanceToAnalyse,
    claim: Claim,
    store: Store,
    reader: Reader,
    batcher: ModelBatcher,
    *,
    limits: PixelLimits,
) -> InstanceResult:
    with LARGE if instance.pixels > LARGE_PIXELS else contextlib.nullcontext():
        return _analysed(instance, claim, store, reader, batcher, limits)


def _analysed(
    instance: InstanceToAnalyse, claim: Claim, store: Store, reader: Reader, batcher: ModelBatcher, limits: PixelLimits
) -> InstanceResult:
    content = store.get(original_key(instance.sha256))
    if sha256_of(content) != instance.sha256:
        raise ObjectMissing("The stored bytes of an image are damaged; send the file again")
    waiting: list[Future[RawReading]] = []
    try:
        source = open_pixels(content, limits)
        for index in range(source.frames):
            # one frame in memory at a time; of earlier ones only the small squares are left
            image = source.frame(index)
            waiting.append(batcher.submit((reader, prepare(image, reader.size)), QUEUES.index(claim.priority)))
            # drawn while the model works
            picture = preview_png(display(source, index, image))
            store.put(preview_key(instance.sha256, index + 1), io.BytesIO(picture), len(picture))
    except BaseException as why:
        for future in waiting:
            future.cancel()
        if isinstance(why, Rejected):
            return InstanceResult(instance.id, error_reason=why.reason, error_text=str(why))
        raise
    findings: list[Finding] = [
        reader.finding(future.result(), frame, instance.modality or "unknown", source.body_part)
        for frame, future in enumerate(waiting, start=1)
    ]
    return InstanceResult(instance.id, findings)


def preview_png(image: npt.NDArray[np.uint8]) -> bytes:
    """image: (H, W) uint8 for display. Returns a PNG whose longer side is at most PREVIEW_SIDE pixels."""
    scale = PREVIEW_SIDE / max(image.shape)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    _, encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return encoded.tobytes()
