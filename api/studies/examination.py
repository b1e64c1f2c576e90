"""The examination and the patient in words: what is missing leaves no gap, what is long is cut."""

from datetime import date, time

from shared.dicom.header import one_line

SIDES = {"R": "right", "L": "left", "B": "both sides"}
OLDEST = 90  # as shared.dicom.header keeps ages: at most
MAX_LINE_LENGTH = 64  # characters of a text on one line


def joined(*parts: str, mark: str = ", ") -> str:
    """Join the parts that are not empty.

    Args:
        *parts: texts.
        mark: put between them.

    Returns:
        The text.
    """
    return mark.join(part for part in parts if part)


def examined(description: str, body_part: str, views: str, laterality: str) -> str:
    """Say what was examined, e.g. "Lower leg, AP, LL, right". Body parts are written as words, not as codes.

    Args:
        description: Study Description; preferred to the body part.
        body_part: Body Part Examined.
        views: with ", " between them; those that the description names are left out.
        laterality: R, L or B; left out if the description names it.

    Returns:
        The words; "" if nothing is known.
    """
    what = one_line(description) or one_line(body_part).capitalize()
    words = what.casefold().replace(",", " ").split()
    side = SIDES.get(laterality, "")
    return joined(
        what,
        *(view for view in one_line(views).split(", ") if view.casefold() not in words),
        side if side and side not in words else "",
    )


def when(day: date | None, at: time | None) -> str:
    """Write the date and time of a study on the hospital's clock, e.g. "28 Nov 2026, 14:02".

    Args:
        day: Study Date.
        at: Study Time.

    Returns:
        The words; "" for an unknown day.
    """
    if day is None:
        return ""
    return joined(f"{day.day} {day:%b %Y}", f"{at:%H:%M}" if at else "")


def aged(years: int | None) -> str:
    """An age at the study in words."""
    if years is None:
        return ""
    return "under 1 y" if years < 1 else f"{years} y" if years < OLDEST else f"{OLDEST} y or more"


def patient(sex: str, years: int | None, patient_id: str = "") -> str:
    """Write sex, age and ID on one line, e.g. "F · 41 y · 4711".

    Args:
        sex: M, F, O or "".
        years: age at the study; None: unknown.
        patient_id: Patient ID.

    Returns:
        The words; what is not known is left out.
    """
    return joined(sex, aged(years), one_line(patient_id), mark=" · ")


def image_words(view: str, laterality: str) -> str:
    """Name an image by its view and side, e.g. "AP, right".

    Args:
        view: View Position.
        laterality: R, L, B or "".

    Returns:
        The words; what is not known is left out.
    """
    return joined(one_line(view), SIDES.get(laterality, ""))


def dicom_date(text: str) -> str:
    """A DICOM date as ISO 8601, anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def cut(text: str, max_length: int = MAX_LINE_LENGTH) -> str:
    """Shorten a text.

    Args:
        text: of one line.
        max_length: how many characters it may have.

    Returns:
        The text, its last character an ellipsis if it was longer.
    """
    return text if len(text) <= max_length else f"{text[: max_length - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"
