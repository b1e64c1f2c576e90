"""Small data sets as responses hold them: the DICOM JSON Model, and from it the Native DICOM Model in XML.

Source: PS3.18 F, PS3.19 A.1.
"""

import json
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

from fastapi import Response
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from api.media_types import XML

NATIVE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"

DATA_SET = {  # of OpenAPI documents
    "type": "object",
    "description": "a data set, its attributes by tag in 8 hexadecimal digits (PS3.18 F.2)",
    "additionalProperties": {
        "type": "object",
        "description": "one attribute",
        "properties": {
            "vr": {"type": "string", "description": "value representation (PS3.5 6.2)"},
            "Value": {"type": "array", "items": {}, "description": "its values, or items; absent: it is empty"},
        },
        "required": ["vr"],
    },
}

Value = str | int | Mapping[str, object]
DataSet = dict[str, dict[str, object]]


def data_set(**values: Sequence[Value] | Value | None) -> DataSet:
    """Make a data set in the DICOM JSON Model.

    Args:
        **values: by DICOM keyword: one value, several, or the items of a sequence; None or "" for none.

    Returns:
        The data set, its attributes in the order of their tags.
    """
    made: DataSet = {}
    for keyword, given in values.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        several = [given] if isinstance(given, str | int | Mapping) or given is None else list(given)
        filled = [one for one in several if one not in (None, "")]
        made[f"{tag:08X}"] = {"vr": dictionary_VR(tag)} | ({"Value": filled} if filled else {})
    return dict(sorted(made.items()))


def data_set_response(data_sets: DataSet | list[DataSet], kind: str, status: int = 200) -> Response:
    """Make the response that holds data sets.

    Args:
        data_sets: one data set, or an array of them.
        kind: its media type, of JSON or XML; XML holds one data set.
        status: HTTP status.

    Returns:
        The response. Its Content-Type is the media type alone: clients compare it as a whole.
    """
    if kind in XML:
        assert isinstance(data_sets, dict)
        content = native_xml(data_sets)
    else:
        content = json.dumps(data_sets, ensure_ascii=False, separators=(",", ":")).encode()
    # not as media_type: Starlette adds a charset to some
    return Response(content, status, {"Content-Type": kind})


def native_xml(attributes: DataSet) -> bytes:
    """Write a data set of text, numbers and sequences as XML.

    Args:
        attributes: in the DICOM JSON Model; without names of persons, tags and bulk data.

    Returns:
        A document in UTF-8.
    """
    root = ET.Element("NativeDicomModel", {"xmlns": NATIVE, "xml:space": "preserve"})
    _fill(root, attributes)
    return bytes(ET.tostring(root, encoding="UTF-8", xml_declaration=True))


def _fill(parent: ET.Element, attributes: Mapping[str, Mapping[str, object]]) -> None:
    for tag, attribute in attributes.items():
        about = {"tag": tag, "vr": str(attribute["vr"])} | _keyword(tag)
        element = ET.SubElement(parent, "DicomAttribute", about)
        values = attribute.get("Value", [])
        assert isinstance(values, list)
        for number, value in enumerate(values, start=1):
            name = "Item" if isinstance(value, Mapping) else "Value"
            child = ET.SubElement(element, name, {"number": str(number)})
            if isinstance(value, Mapping):
                _fill(child, value)
            else:
                child.text = str(value)


def _keyword(tag: str) -> dict[str, str]:
    keyword = keyword_for_tag(int(tag, 16))
    return {"keyword": keyword} if keyword else {}
