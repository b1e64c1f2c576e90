"""One study: every instance gets findings, or an error of its own."""

import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Future

from shared.errors import OsteonError, Rejected
from shared.findings import InstanceResult
from shared.jobs import QUEUES
from shared.repository.work import DECODING_FAILED
from shared.study import Claim, InstanceToAnalyse
from shared.vision.reader import Reader
from worker.decoding import Decoded, DecodingFailed, Job
from worker.pipeline import Failed, ModelBatcher, Seen, look_at

log = logging.getLogger(__name__)
Decode = Callable[[Job, int], "Future[Decoded]"]


def analyse(
    claim: Claim, reader: Reader, decode: Decode, batcher: ModelBatcher, *, last_attempt: bool = False
) -> list[InstanceResult]:
    """Analyse every instance of a study; an image that cannot be analysed gets an error, the others go on.

    Raises Unavailable, ObjectMissing and DecodingFailed, which can heal, and whatever the model raises for one of the
    images. On the last attempt DecodingFailed, or what nobody foresaw of a decoder, becomes the error of its image.
    """
    priority = QUEUES.index(claim.priority)

    def begin(instance: InstanceToAnalyse) -> "Future[Decoded]":
        return decode(Job(instance.sha256, reader.size), priority)

    # closed at once where one of them ends the study: nothing of it is left for the decoders or the model
    with contextlib.closing(look_at(claim.instances, reader, begin, batcher, priority)) as outcomes:
        return [_result(outcome, last_attempt=last_attempt) for outcome in outcomes]


def _result(outcome: Seen[InstanceToAnalyse] | Failed[InstanceToAnalyse], *, last_attempt: bool) -> InstanceResult:
    """Raises what ends the study."""
    instance = outcome.image
    if isinstance(outcome, Seen):
        return InstanceResult(instance.id, outcome.findings)
    wrong = outcome.error
    if isinstance(wrong, Rejected) and not outcome.decoded:
        return InstanceResult(instance.id, error_reason=wrong.reason, error_text=str(wrong))
    if outcome.decoded or not last_attempt:
        raise wrong
    if isinstance(wrong, DecodingFailed):
        return InstanceResult(instance.id, error_reason=DECODING_FAILED, error_text=str(wrong))
    if isinstance(wrong, OsteonError):
        raise wrong  # the store's, or an object's that is gone
    log.error("decoding failed", extra={"instance": str(instance.id)}, exc_info=wrong)
    text = f"Decoding failed ({type(wrong).__name__})"  # its words may hold what the header holds
    return InstanceResult(instance.id, error_reason=DECODING_FAILED, error_text=text)
