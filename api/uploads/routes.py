"""POST /api/v1/studies: files in a multipart form."""

from typing import Annotated

from fastapi import BackgroundTasks, Request, Response, params

from api.dependencies import PartsDep, Submitter
from api.intake.requests import follow_up, take_files
from api.requests import API, Router
from api.schemas import Receipt
from api.spool import Spool, SpooledFile, receive
from shared.domain.study import Priority

router = Router(prefix=API, tags=["upload"])
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 5000,
                            "items": {"type": "string", "format": "binary"},
                            "description": "DICOM files and zip archives of them, as many as the limits allow",
                        },
                        "priority": {
                            "type": "string",
                            "enum": ["urgent", "routine"],
                            "default": "routine",
                            "description": "of all studies in the request; urgent ones are analysed first",
                        },
                    },
                    "required": ["files"],
                }
            }
        },
    }
}
# as STOW-RS answers: all stored, some stored, none stored (PS3.18 10.5.3)
ALL, SOME, NONE = 200, 202, 409


@router.post(
    "/studies",
    openapi_extra=BODY,
    responses={
        ALL: {"description": "every file is stored, or was before"},
        SOME: {"model": Receipt, "description": "some files were rejected; the receipt says which and why"},
        NONE: {"model": Receipt, "description": "every file was rejected"},
    },
)
async def upload(
    request: Request,
    response: Response,
    parts: PartsDep,
    key: Submitter,
    later: BackgroundTasks,
    idempotency_key: Annotated[
        str | None,
        params.Header(max_length=128, description="of your choice; the same key and content get the same receipt"),
    ] = None,
) -> Receipt:
    """Send many DICOM files and zip archives at once; the receipt says what became of each.

    Send the request again after any error: what is stored already is a duplicate and costs nothing. With the same
    Idempotency-Key and the same content, the first receipt is returned as it was, also to a request sent meanwhile.
    """
    settings = parts.settings

    async def read(spool: Spool) -> tuple[list[SpooledFile], str]:
        files, fields = await receive(
            request.stream(),
            request.headers.get("content-type", ""),
            spool,
            settings.max_request_bytes,
            settings.max_request_files,
            parts.uploads,
        )
        return files, fields.get("priority", Priority.ROUTINE)

    receipt, replayed = await take_files(request, parts, key, read, idempotency_key)
    response.status_code = SOME if receipt.rejected else ALL
    if receipt.rejected == len(receipt.files):
        response.status_code = NONE
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    else:
        follow_up(later, parts, key, receipt)
    return receipt
