"""The examination and the patient in words: what is missing leaves nothing behind, what is long is cut."""

from datetime import date, time

from shared.dicom import one_line

SIDES = {"R": "right", "L": "left", "B": "both sides"}
OLDEST = 90  # as shared.dicom keeps ages: at most
LONGEST = 64  # characters of a text on one line


def joined(*parts: str, mark: str = ", ") -> str:
    """The parts that say something, with the mark between them."""
    return mark.join(part for part in parts if part)


def examined(description: str, body_part: str, views: str, laterality: str) -> str:
    """What was examined: the description, or else the body part; views and side unless the description says them.

    E.g. "Lower leg, AP, LL, right"; "" where nothing is known. Body parts are written as words, not as codes.
    """
    what = one_line(description) or one_line(body_part).capitalize()
    said = what.casefold().replace(",", " ").split()
    side = SIDES.get(laterality, "")
    return joined(
        what,
        *(view for view in one_line(views).split(", ") if view.casefold() not in said),
        side if side and side not in said else "",
    )


def when(day: date | None, at: time | None) -> str:
    """Date and time of the study on the hospital's clock, e.g. "28 Nov 2026, 14:02"; "" for an unknown day."""
    if day is None:
        return ""
    return joined(f"{day.day} {day:%b %Y}", f"{at:%H:%M}" if at else "")


def aged(years: int | None) -> str:
    """An age at the study in words."""
    if years is None:
        return ""
    return "under 1 y" if years < 1 else f"{years} y" if years < OLDEST else f"{OLDEST} y or more"


def patient(sex: str, years: int | None, patient_id: str = "") -> str:
    """Sex, age and ID on one line, e.g. "F · 41 y · 4711"."""
    return joined(sex, aged(years), one_line(patient_id), mark=" · ")


def image_words(view: str, laterality: str) -> str:
    """An image by its view and side, e.g. "AP, right"."""
    return joined(one_line(view), SIDES.get(laterality, ""))


def dicom_date(text: str) -> str:
    """A DICOM date as ISO 8601, anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def cut(text: str, most: int = LONGEST) -> str:
    """A text of at most so many characters, the last one an ellipsis where it was longer."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"
