"""Media types of requests and responses: what a client sends, what it accepts, and what it gets.

Clients write them differently: `type=application/dicom` with and without quotes, with and without a transfer syntax, in
one header or in several. Source: RFC 9110 8.3.1 and 12.5.1, RFC 2387, PS3.18 8.7.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import HTTPException, Request

T = TypeVar("T")
DICOM = "application/dicom"
OCTETS = "application/octet-stream"
MULTIPART = "multipart/related"
# one body under two names: clients compare the header as a whole, so none has a parameter
JSON = ("application/dicom+json", "application/json")
XML = ("application/dicom+xml",)
MAX_RANGES = 64  # of one header; further ones are not looked at
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# RFC 2387 wants a value that holds "/" in quotes; half of the clients write none
_BARE = r"[^\s;,\"]+"
_QUOTED = r"\"(?:[^\"\\]|\\.)*\""
_NAME = re.compile(rf"\s*({_WORD}/{_WORD})\s*", re.ASCII)
_PARAMETER = re.compile(rf"\s*;\s*(?:({_WORD})\s*=\s*({_QUOTED}|{_BARE}))?\s*", re.ASCII)
_NEXT = re.compile(rf"(?:[^,\"]|{_QUOTED}|\")*?(?:,|$)", re.ASCII)  # from somewhere in a range to the next one
_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.ASCII)


@dataclass(frozen=True)
class MediaType:
    """A media type, or a range of them as `image/*`."""

    name: str  # in lower case
    parameters: Mapping[str, str]  # names in lower case, values without quotes; without q
    quality: float = 1.0

    @property
    def related(self) -> "MediaType":
        """Of multipart/related what its parts are, by the parameter type; of another type itself."""
        if self.name != MULTIPART:
            return self
        return MediaType(self.parameters.get("type", DICOM).lower(), self.parameters, self.quality)

    def holds(self, name: str) -> bool:
        """Whether a type is within this range."""
        kind, _, subtype = self.name.partition("/")
        return self.name in ("*/*", name) or (subtype == "*" and name.startswith(f"{kind}/"))


def media_type(text: str) -> MediaType | None:
    """Read the header Content-Type.

    Args:
        text: of the header.

    Returns:
        The type; None for what is none.
    """
    found = media_ranges(text)
    return found[0] if len(found) == 1 else None


def media_ranges(text: str) -> list[MediaType]:
    """Read the header Accept.

    Args:
        text: of the header; several headers joined by commas.

    Returns:
        The ranges with a quality above 0, best first, in their order where they are equal; what is malformed is left
        out.
    """
    found: list[MediaType] = []
    at = 0
    while at < len(text) and len(found) < MAX_RANGES:
        name = _NAME.match(text, at)
        parameters: dict[str, str] = {}
        end = name.end() if name else at
        while name and (parameter := _PARAMETER.match(text, end)) and parameter.end() > end:
            end = parameter.end()
            if parameter[1]:
                parameters.setdefault(parameter[1].lower(), _unquoted(parameter[2]))
        if name and (end == len(text) or text[end] == ","):
            quality = parameters.pop("q", "1")
            if _QUALITY.fullmatch(quality):
                found.append(MediaType(name[1].lower(), parameters, float(quality)))
            at = end + 1
        else:
            after = _NEXT.match(text, end)
            at = after.end() if after and after.end() > end else len(text)
    return sorted((one for one in found if one.quality > 0), key=lambda one: -one.quality)


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def accepted(request: Request) -> list[MediaType]:
    """Read what a client accepts: by the query parameter `accept` if there is one, else by the header.

    Source: PS3.18 8.3.3.1 and 8.7.5.

    Args:
        request: as it came.

    Returns:
        The ranges, best first; `*/*` where the client says nothing.
    """
    asked = request.query_params.getlist("accept") or request.headers.getlist("accept")
    text = ",".join(one for one in asked if one.strip())
    return media_ranges(text) if text else [MediaType("*/*", {})]


def choose(request: Request, offered: Sequence[str]) -> str:
    """Choose the media type of a response.

    Args:
        request: as it came.
        offered: the types that the response can have, the one for `*/*` first.

    Returns:
        The one that the client likes best.

    Raises:
        HTTPException: 406; it accepts none of them.
    """
    return chosen(request, offered, lambda wanted: next((one for one in offered if wanted.holds(one)), None))


def chosen(request: Request, offered: Sequence[str], fits: Callable[[MediaType], T | None]) -> T:
    """Choose the form of a response by a rule of the resource's own.

    Args:
        request: as it came.
        offered: what the response can be, as it is told to a client that accepts nothing of it.
        fits: the form for a range, None if there is none.

    Returns:
        What `fits` returns for the first range that it has a form for.

    Raises:
        HTTPException: 406; there is none.
    """
    found = next((form for form in map(fits, accepted(request)) if form is not None), None)
    if found is None:
        raise HTTPException(406, f"The header Accept allows none of what there is here: {', '.join(offered)}")
    return found
