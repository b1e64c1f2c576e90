"""Whether two headers name one patient.

DICOM identifies a patient by Patient ID and its issuer (PS3.3 C.7.1.1). Name and birth date are compared too, since IDs
are typed by people. A value that is absent on either side is never a difference.
"""

import unicodedata
from dataclasses import astuple, replace
from itertools import zip_longest

from shared.study import Identity

FIELDS = ("patient_name", "patient_id", "issuer", "birth_date")


def name_groups(name: str) -> tuple[str, str, str]:
    """The alphabetic, ideographic and phonetic group of a decoded name as they are compared; "" for one that is absent.

    Case-folded, with single spaces and without trailing carets. Source: PS3.5 6.2.1.
    """
    groups = [_group(group) for group in unicodedata.normalize("NFC", name).split("=")[:3]]
    first, second, third, *_ = [*groups, "", "", ""]
    return first, second, third


def _group(group: str) -> str:
    components = (" ".join(part.split()) for part in group.split("^"))
    return unicodedata.normalize("NFC", "^".join(components).rstrip("^").casefold())


def same_patient(one: Identity, other: Identity) -> bool:
    """Whether nothing that both say differs: ID and issuer (spaces around them apart), name, and birth date."""
    if any(a and b and a != b for a, b in zip(_plain(one), _plain(other), strict=True)):
        return False
    groups = zip_longest(name_groups(one.patient_name), name_groups(other.patient_name))
    return not any(a and b and a != b for a, b in groups)


def normal(identity: Identity) -> tuple[str, ...]:
    """What is compared of an identity, each in the form in which it is compared."""
    return (*name_groups(identity.patient_name), *_plain(identity))


def _plain(identity: Identity) -> tuple[str, str, str]:
    born = identity.birth_date.strip()
    digits = born.replace(".", "").replace("-", "")  # ACR-NEMA wrote 1970.01.31
    return identity.patient_id.strip(" "), identity.issuer.strip(" "), digits if digits.isdigit() else born


def completed(known: Identity, told: Identity) -> Identity:
    """The known identity, with what it lacks taken from another one of the same patient."""
    missing = {
        name: value
        for name, mine, value in zip(known.__dataclass_fields__, astuple(known), astuple(told), strict=True)
        if value and not mine.strip()
    }
    return replace(known, **missing)
