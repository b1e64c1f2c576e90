"""Analyses one study: every instance gets findings, or an error of its own."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future

from shared.domain.analysis import Claim, InstanceToAnalyse
from shared.domain.findings import InstanceResult
from shared.errors import OsteonError, Reason, Rejected
from shared.logs import get_logger
from shared.model.predictor import Predictor
from shared.queue.celery_app import QUEUES
from worker.decoder_pool import DecodedImage, DecodingFailed, Job
from worker.pipeline import ImageFailure, ImageResult, ModelBatcher, analyse_images

log = get_logger(__name__)
Decode = Callable[[Job, int], "Future[DecodedImage]"]


def analyse(
    claim: Claim, predictor: Predictor, decode: Decode, batcher: ModelBatcher, *, last_attempt: bool = False
) -> list[InstanceResult]:
    """Analyse every instance of a study; an image that cannot be analysed gets an error, the others go on.

    Args:
        claim: the study, with its instances and priority.
        predictor: the bundle that assesses.
        decode: begins to decode an instance, at a priority.
        batcher: of the model.
        last_attempt: DecodingFailed, or what nobody foresaw of a decoder, becomes the error of its image.

    Returns:
        A result for each instance, in order.

    Raises:
        Unavailable: The store does not answer; can heal.
        ObjectMissing: An instance's object is gone; can heal.
        DecodingFailed: A decoder ended; can heal.
        Exception: Whatever the model raised for one of the images.
    """
    priority = QUEUES.index(claim.priority)

    def begin(instance: InstanceToAnalyse) -> "Future[DecodedImage]":
        return decode(Job(instance.sha256, predictor.size), priority)

    # closed at once where an image ends the study, so that the others are not decoded or read for nothing
    with contextlib.closing(analyse_images(claim.instances, predictor, begin, batcher, priority)) as outcomes:
        return [_result(outcome, last_attempt=last_attempt) for outcome in outcomes]


def _result(
    outcome: ImageResult[InstanceToAnalyse] | ImageFailure[InstanceToAnalyse], *, last_attempt: bool
) -> InstanceResult:
    """Make the result of an image, or raise what ends the study."""
    instance = outcome.image
    if isinstance(outcome, ImageResult):
        return InstanceResult(instance.id, outcome.findings)
    error = outcome.error
    if isinstance(error, Rejected) and not outcome.decoded:
        return InstanceResult(instance.id, error_reason=error.reason, error_detail=error.detail)
    if outcome.decoded or not last_attempt:
        raise error
    if isinstance(error, DecodingFailed):
        return InstanceResult(instance.id, error_reason=error.reason, error_detail=error.detail)
    if isinstance(error, OsteonError):
        raise error  # of the store, or of a missing object
    log.error("image not decoded", instance=str(instance.id), exc_info=error)
    # its class alone: its text may quote the header
    return InstanceResult(instance.id, error_reason=Reason.DECODING_FAILED, error_detail=type(error).__name__)
