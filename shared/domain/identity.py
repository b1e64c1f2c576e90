"""Whether two headers name one patient.

DICOM identifies a patient by Patient ID and its issuer (PS3.3 C.7.1.1). Name and birth date are compared too, since IDs
are typed by people. A value that is absent on either side is never a difference.
"""

import unicodedata
from dataclasses import replace
from itertools import zip_longest

from shared.domain.study import Identity

FIELDS = ("patient_name", "patient_id", "issuer", "birth_date")


def name_groups(name: str) -> tuple[str, str, str]:
    """Split a decoded name into its groups, as they are compared. Source: PS3.5 6.2.1.

    Args:
        name: Patient's Name, of at most three groups.

    Returns:
        The alphabetic, ideographic and phonetic group, case-folded, with single spaces and without trailing carets; ""
        for one that is absent.
    """
    groups = [_group(group) for group in unicodedata.normalize("NFC", name).split("=")[:3]]
    first, second, third, *_ = [*groups, "", "", ""]
    return first, second, third


def _group(group: str) -> str:
    components = (" ".join(part.split()) for part in group.split("^"))
    return unicodedata.normalize("NFC", "^".join(components).rstrip("^").casefold())


def same_patient(one: Identity, other: Identity) -> bool:
    """Check that two identities contradict each other in nothing: ID and issuer, name, and birth date.

    Args:
        one: an identity.
        other: another identity.

    Returns:
        Whether every value that both have is the same, spaces around it and the form of a date apart. False if either
        cannot be decrypted: a person has to decide.
    """
    if not (one.readable and other.readable):
        return False
    if any(a and b and a != b for a, b in zip(_plain(one), _plain(other), strict=True)):
        return False
    groups = zip_longest(name_groups(one.patient_name), name_groups(other.patient_name))
    return not any(a and b and a != b for a, b in groups)


def same_patient_id(one: Identity, other: Identity) -> bool:
    """Check that two identities have one Patient ID of one issuer. A missing issuer is no other one's.

    Args:
        one: an identity.
        other: another identity.

    Returns:
        False also if either has no ID, or cannot be decrypted.
    """
    (number, issuer, _), (other_number, other_issuer, _) = _plain(one), _plain(other)
    return one.readable and other.readable and bool(number) and (number, issuer) == (other_number, other_issuer)


def normalised(identity: Identity) -> tuple[str, ...]:
    """Everything that is compared of an identity, in the form in which it is compared."""
    return (*name_groups(identity.patient_name), *_plain(identity))


def _plain(identity: Identity) -> tuple[str, str, str]:
    born = identity.birth_date.strip()
    digits = born.replace(".", "").replace("-", "")  # ACR-NEMA wrote 1970.01.31
    return identity.patient_id.strip(" "), identity.issuer.strip(" "), digits if digits.isdigit() else born


def complete_identity(identity: Identity, other: Identity) -> Identity:
    """Complete an identity from another one of the same patient.

    Args:
        identity: the identity; what it has stays.
        other: the other identity.

    Returns:
        The known identity, with what it lacks taken from the other.
    """
    missing = {name: value for name, value in vars(other).items() if value and not getattr(identity, name).strip()}
    return replace(identity, **missing) if missing else identity
