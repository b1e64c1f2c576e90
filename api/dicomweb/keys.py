"""What a QIDO-RS query asks for: attributes to match, attributes to return, which part of the results.

Source: PS3.18 8.3.4 (query parameters), PS3.6 (the dictionary of attributes).
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydicom.datadict import (
    dictionary_has_tag,
    dictionary_keyword,
    dictionary_VR,
    repeater_has_tag,
    tag_for_keyword,
)

from shared.errors import BadRequest

MAX_PARAMETERS = 100
MAX_VALUES = 1000  # of one attribute
MAX_VALUE_LENGTH = 1024  # letters of one value; the longest name has 3 x 64
MAX_FIELDS_LENGTH = 8192  # letters of one includefield
MAX_NUMBER = 10**18 - 1  # limit and offset
MAX_DEPTH = 8  # attributes of sequences within sequences
FUZZY = "The fuzzymatching parameter is not supported. Only literal matching has been performed."
EMPTY = "The emptyvaluematching parameter is not supported. Empty Value Matching has not been performed."
_HEX = re.compile(r"[0-9A-Fa-f]{8}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_COMMAS = ("UI", "CS", "IS")  # no value of these holds a comma
# what matching may do besides, and what is told of that which this one does not; several values are always alternatives
_FLAGS = {"fuzzymatching": FUZZY, "emptyvaluematching": EMPTY, "multiplevaluematching": ""}
_NO_MATCHING = ("limit", "offset", "includerejected", "accept", "charset", *_FLAGS)  # parameters that name no attribute
_NO_ATTRIBUTE = (
    "is no attribute of the DICOM dictionary (PS3.6). Give its keyword, as PatientID, or its tag in eight hexadecimal "
    "digits, as 00100020; of an attribute in a sequence both with a dot between"
)


@dataclass(frozen=True)
class Search:
    """A query. An attribute is named by its keyword; one in a sequence by both, with a dot."""

    matches: dict[str, tuple[str, ...]] = field(default_factory=dict)  # any of the values
    fields: frozenset[str] = frozenset()  # to return beside those that are always returned
    everything: bool = False  # return all that there is
    limit: int | None = None
    offset: int = 0
    rejected: bool = False  # whether instances are wanted that a document rejects
    warnings: tuple[str, ...] = ()


def read_query(parameters: Iterable[tuple[str, str]]) -> Search:
    """Read the parameters of a query.

    An attribute without a value, or with "*" alone, matches everything: it is returned (PS3.4 C.2.2.2.3). Values of one
    attribute are alternatives, whether they are given with commas (of UIDs, codes and whole numbers), with backslashes,
    or by naming the attribute again.

    Args:
        parameters: names and values, decoded, in their order.

    Returns:
        What they ask for.

    Raises:
        BadRequest: a name is outside the dictionary, a value is none that its parameter may have, or there are too many
            of either. The message repeats nothing of them.
    """
    given = list(itertools.islice(parameters, MAX_PARAMETERS + 1))
    if len(given) > MAX_PARAMETERS:
        raise BadRequest(f"A query may have at most {MAX_PARAMETERS} parameters")
    about = {name: value for name, value in given if name in _NO_MATCHING}
    included = [
        one for name, value in given if name == "includefield" for one in map(str.strip, value.split(",")) if one
    ]
    if any(name == "includefield" and len(value) > MAX_FIELDS_LENGTH for name, value in given):
        raise BadRequest(f"includefield is longer than {MAX_FIELDS_LENGTH} letters; give it several times, or `all`")
    fields = {attribute_keyword(one, "A value of includefield") for one in included if one.lower() != "all"}
    matches: dict[str, tuple[str, ...]] = {}
    for place, (name, value) in enumerate(given, start=1):
        if name not in about and name != "includefield":
            keyword = attribute_keyword(name, f"Parameter {place} of this query")
            if values := _values(keyword, value):
                matches[keyword] = matches.get(keyword, ()) + values
            else:
                fields.add(keyword)
    if any(len(values) > MAX_VALUES for values in matches.values()):
        raise BadRequest(f"A query may have at most {MAX_VALUES} values of one attribute; ask in several queries")
    return Search(
        matches,
        frozenset(fields),
        everything=any(one.lower() == "all" for one in included),
        limit=_number("limit", about["limit"]) if "limit" in about else None,
        offset=_number("offset", about.get("offset", "0")),
        rejected=_flag("includerejected", about.get("includerejected", "false")),
        warnings=tuple(text for name, text in _FLAGS.items() if _flag(name, about.get(name, "false")) and text),
    )


def attribute_keyword(name: str, what: str) -> str:
    """Find an attribute of the dictionary.

    Args:
        name: its keyword or its tag, or several of these with dots, all but the last of sequences.
        what: has this name, for the message.

    Returns:
        The keywords with dots; the tag in place of a keyword for an attribute that has none.

    Raises:
        BadRequest: there is no such attribute.
    """
    parts = name.split(".")
    found = [_tag(part) for part in parts[:MAX_DEPTH]]
    tags = [tag for tag in found if tag is not None]
    if len(tags) != len(parts) or any(dictionary_VR(tag) != "SQ" for tag in tags[:-1]):
        raise BadRequest(f"{what} {_NO_ATTRIBUTE}")
    return ".".join(dictionary_keyword(tag) or f"{tag:08X}" for tag in tags)


def _tag(name: str) -> int | None:
    if _HEX.fullmatch(name):
        tag = int(name, 16)
        return tag if dictionary_has_tag(tag) or repeater_has_tag(tag) else None
    return tag_for_keyword(name) if name else None  # some retired ones have no keyword


def vr_of(keyword: str) -> str:
    """The value representation of an attribute that `attribute_keyword` returned."""
    tag = _tag(keyword.rpartition(".")[2])
    assert tag is not None, "it is in the dictionary"
    return dictionary_VR(tag)


def _values(keyword: str, text: str) -> tuple[str, ...]:
    """The values that a text gives, without those that match everything. Raises BadRequest."""
    given = text.replace(",", "\\") if vr_of(keyword) in _COMMAS else text
    values = [value for value in (one.strip(" ") for one in given.split("\\")) if value]
    if any(len(value) > MAX_VALUE_LENGTH for value in values):
        raise BadRequest(f"The value of {keyword} is longer than {MAX_VALUE_LENGTH} letters")
    if any(not value.strip("*") for value in values):
        return ()  # any value at all
    return tuple(values)


def _number(name: str, value: str) -> int:
    if not (value.isascii() and _NUMBER.fullmatch(value)):
        raise BadRequest(f"{name} must be a whole number from 0 to {MAX_NUMBER}")
    return int(value)


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise BadRequest(f"{name} must be true or false")
    return value.lower() == "true"


def warning_header(service: str, texts: Sequence[str]) -> dict[str, str]:
    """Make the header that tells of what was not done.

    Args:
        service: the base URL of this service.
        texts: what is to be told; ASCII, without quotes.

    Returns:
        The header Warning; no header for no text. Source: PS3.18 8.3.4.4 and RFC 7234 5.5.
    """
    return {"Warning": ", ".join(f'299 {service}: "{text}"' for text in texts)} if texts else {}
