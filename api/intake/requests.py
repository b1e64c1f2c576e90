"""A request that sends files, from its headers to its receipt: quota, spool, files. For all routes that take files."""

from collections.abc import Awaitable, Callable

from fastapi import BackgroundTasks, HTTPException, Request
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random

from api.dependencies import Parts
from api.intake.charges import charge_bytes, count_refused_uploads, refund_bytes
from api.intake.files import Intake
from api.intake.receipts import record_outcomes
from api.messages import send_tasks
from api.schemas import Receipt
from api.spool import DISK, Spool, SpooledFile, WrongContentType, open_spool
from shared.domain.study import Priority
from shared.errors import BadRequest, Locked, Unavailable
from shared.queries.access import Key

LOCK_RETRY_S = 5.0  # how long an upload comes again to a study that is locked; then it is answered with 503

BodyReader = Callable[[Spool], Awaitable[tuple[list[SpooledFile], str]]]


async def take_files(
    request: Request, parts: Parts, key: Key, read: BodyReader, idempotency_key: str | None = None
) -> tuple[Receipt, bool]:
    """Charge a request, spool its body and take its files in.

    Args:
        request: whose body was not read.
        parts: of this application.
        key: of the request.
        read: writes the body to the spool; returns its files and the priority that it asks for.
        idempotency_key: of the request; None: it has none.

    Returns:
        The receipt, and whether it is that of an earlier request.

    Raises:
        HTTPException: 413, the body is over the limit.
        WrongContentType: the body has a Content-Encoding.
        QuotaExceeded: the key or its site sends too much.
        BadRequest: the request cannot be used. What `read` raises passes through, too.
        Unavailable: the database, the store or the spool's disk does not take it now.
    """
    settings = parts.settings
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > settings.max_request_bytes:
        raise HTTPException(413, f"At most {settings.max_request_bytes} bytes a request; split it into several")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise WrongContentType("The body has a Content-Encoding; send it as it is, or its files in zip archives")
    size = int(declared) if declared.isdigit() else 0
    with count_refused_uploads():
        parts.spool_budget.check(size)
        await parts.uploads.receive(charge_bytes, parts, key, size)
        return await _spool_and_take_in(parts, key, read, idempotency_key, size)


def follow_up(later: BackgroundTasks, parts: Parts, key: Key, receipt: Receipt) -> None:
    """Have messages sent and rejections recorded once the receipt is on its way; not for a replayed receipt.

    What is stored is stored, whatever the broker does.

    Args:
        later: of the request.
        parts: of this application.
        key: of the request.
        receipt: its response.
    """
    later.add_task(parts.uploads.work, send_tasks, parts, [study.id for study in receipt.studies])
    later.add_task(parts.uploads.work, record_outcomes, parts, key.site_id, receipt.files)


async def _spool_and_take_in(
    parts: Parts, key: Key, read: BodyReader, idempotency_key: str | None, charged: int
) -> tuple[Receipt, bool]:
    """Spool the body and take its files in, by `Intake.run`; what was charged and never came is given back."""
    came = 0
    try:
        with open_spool(parts.settings.spool_dir, parts.spool_budget, own_files=parts.store.takes_files) as spool:
            try:
                files, priority = await read(spool)
            finally:
                came = spool.end
            if not charged:  # the request did not say how long the body is
                await parts.uploads.receive(charge_bytes, parts, key, came)
                charged = came
            intake = Intake(parts, key, spool, _priority(files, priority))
            return await take_in_unless_locked(parts, intake, files, idempotency_key)
    except BaseException as error:
        # what our own parts could not take is sent again, and charged then
        in_vain = charged if isinstance(error, Unavailable) else max(0, charged - came)
        if in_vain:
            DISK.submit(refund_bytes, parts, key, in_vain)
        raise


async def take_in_unless_locked(
    parts: Parts, intake: Intake, files: list[SpooledFile], idempotency_key: str | None
) -> tuple[Receipt, bool]:
    """Take files in; where another transaction has locked one of their studies, come again for LOCK_RETRY_S.

    It waits here, without a thread and without a connection: a few uploads to one study would hold all there are.

    Args:
        parts: of this application.
        intake: of the request.
        files: of the request.
        idempotency_key: of the request; None: it has none.

    Returns:
        As `Intake.run`.

    Raises:
        Locked: for all that time. Other errors pass through at once.
    """

    async def take() -> tuple[Receipt, bool]:
        if intake.stored_request is None:
            return await parts.uploads.work(intake.run, files, idempotency_key)
        return await parts.uploads.work(intake.commit)

    policy = AsyncRetrying(
        # what is locked before the files are stored is not the studies
        retry=retry_if_exception(lambda wrong: isinstance(wrong, Locked) and intake.stored_request is not None),
        wait=wait_random(0.1, 0.4),
        stop=stop_after_delay(LOCK_RETRY_S),
        reraise=True,
    )
    return await policy(take)


def _priority(files: list[SpooledFile], text: str) -> Priority:
    if not files:
        raise BadRequest("The request holds no file; send each file in a part with a file name")
    if text not in (Priority.URGENT, Priority.ROUTINE):
        raise BadRequest("priority must be urgent or routine")
    return Priority(text)
