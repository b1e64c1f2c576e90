"""Parameters of FHIR searches: dates by how exact they are, cursors, and what is never repeated."""

from datetime import UTC, date, datetime, timedelta
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.fhir.parameters import PARAMETERS, read_cursor, read_search, write_cursor
from shared.errors import BadRequest
from shared.queries.reports import ReportCursor, Span

MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
ZONES = st.integers(-14 * 60, 14 * 60)


def spans(value: str, name: str = "_lastUpdated") -> list[Span]:
    question = read_search("DiagnosticReport", [(name, value)], strict=True).question
    ((*found,),) = question.changed if name == "_lastUpdated" else question.studied
    return found


def holds(span: Span, moment: datetime | date) -> bool:
    inside = (span.first is None or span.first <= moment) and (span.end is None or moment < span.end)
    return inside != span.outside


@given(
    MOMENTS,
    MOMENTS,
    ZONES,
    st.sampled_from(["%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"]),
)
def test_a_moment_is_compared_as_exactly_as_it_is_written(
    one: datetime, other: datetime, minutes: int, form: str
) -> None:
    """eq is what has the same text; the others follow from it: each moment is before, in or after what was written."""
    zone = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}" if "T" in form else ""
    offset = timedelta(minutes=minutes if zone else 0)
    text = one.strftime(form.replace("%Y", f"{one.year:04}"))
    compared = other + offset  # on the clock of the zone
    same = compared.strftime(form.replace("%Y", f"{compared.year:04}")) == text
    before = not same and compared < one
    after = not same and compared > one
    expected = {
        "": same, "eq": same, "ne": not same, "lt": before, "eb": before, "gt": after, "sa": after,
        "le": before or same, "ge": after or same,
    }  # fmt: skip
    for prefix, wanted in expected.items():
        (span,) = spans(f"{prefix}{text}{zone}")
        assert holds(span, other) == wanted, prefix


@given(
    st.dates(date(1900, 1, 1), date(2200, 1, 1)),
    st.dates(date(1900, 1, 1), date(2200, 1, 1)),
    st.sampled_from(["%Y", "%Y-%m", "%Y-%m-%d"]),
)
def test_a_day_is_compared_as_exactly_as_it_is_written(one: date, other: date, form: str) -> None:
    """As above, for the day of a study, which has no clock."""
    text, same = one.strftime(form), one.strftime(form) == other.strftime(form)
    for prefix, wanted in {"": same, "ne": not same, "lt": not same and other < one, "ge": same or other > one}.items():
        (span,) = spans(f"{prefix}{text}", "date")
        assert holds(span, other) == wanted, prefix


@given(st.builds(ReportCursor, MOMENTS, st.uuids(), st.integers(0, 10**6)))
def test_a_place_survives_its_cursor(place: ReportCursor) -> None:
    """To the microsecond; and in a link, beside what else was asked."""
    assert read_cursor(write_cursor(place)) == place
    search = read_search("Observation", [("status", "preliminary"), ("_cursor", write_cursor(place))], strict=True)
    link = search.link("http://a/fhir/Observation", place)
    told = parse_qsl(link.partition("?")[2])
    assert read_search("Observation", told, strict=True).after == place
    assert told[0] == ("status", "preliminary")
    assert len(told) == 2


@given(st.text(max_size=80))
def test_no_cursor_does_anything_but_be_refused(text: str) -> None:
    """Whatever stands there."""
    try:
        place = read_cursor(text)
    except BadRequest:
        return
    assert isinstance(place, ReportCursor)


@given(
    st.sampled_from(["_id", "date", "study", "_cursor", "_count", "_sort", "code"]), st.text(min_size=8, max_size=40)
)
def test_an_error_repeats_nothing(name: str, value: str) -> None:
    """Neither a value nor a name that the client made up."""
    for asked in ((name, value), (value, "1"), (f"{name}:{value}", "1")):
        try:
            read_search("DiagnosticReport", [asked], strict=True)
        except BadRequest as error:
            assert value not in str(error)


def test_a_parameter_without_a_value_is_none() -> None:
    """Source: FHIR R4 search: an empty parameter is ignored."""
    assert read_search("DiagnosticReport", [("date", ""), ("study", "")], strict=True).question.studied == ()
    with pytest.raises(BadRequest):
        read_search("DiagnosticReport", [("other", "1")], strict=True)


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("value", ["", " ", ",", " , ,"])
def test_what_has_no_value_asks_for_nothing(kind: str, value: str) -> None:
    """Whatever the parameter: a form that was not filled in sends it so."""
    asked = read_search(kind, [(name, value) for name in PARAMETERS[kind]], strict=True)
    assert asked == read_search(kind, [], strict=True)
