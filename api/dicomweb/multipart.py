"""Responses of several parts. Source: RFC 2387, PS3.18 8.6.1."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import uuid4

from fastapi.responses import StreamingResponse


@dataclass(frozen=True)
class ResponsePart:
    """A part: its media type with parameters, and its bytes when they are asked for."""

    content_type: str
    content: Iterable[bytes]


def multipart_response(parts: Iterable[ResponsePart], kind: str) -> StreamingResponse:
    """Make a response of parts; its head is sent before the first of them is read.

    Args:
        parts: in their order, each read when its turn comes. What one raises ends the response before its closing
            boundary.
        kind: media type of the parts.

    Returns:
        The response.
    """
    boundary = uuid4().hex
    content_type = f'multipart/related; type="{kind}"; boundary={boundary}'
    return StreamingResponse(_write_parts(parts, boundary), headers={"Content-Type": content_type})


def _write_parts(parts: Iterable[ResponsePart], boundary: str) -> Iterator[bytes]:
    for part in parts:
        yield f"--{boundary}\r\nContent-Type: {part.content_type}\r\n\r\n".encode()
        yield from part.content
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()
