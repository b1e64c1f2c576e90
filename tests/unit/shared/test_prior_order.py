"""Which earlier examination is a prior: the order in time, and which regions are near."""

from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.findings import AbstentionReason
from shared.domain.identity import same_patient_id
from shared.domain.priors import DatedStudy, are_near, choose_priors, is_earlier, regions_of
from shared.domain.study import Identity, UnreadableIdentity

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
days = st.one_of(st.none(), st.sampled_from([date(2026, 2, 28), date(2026, 3, 1), date(2026, 3, 2)]))
times = st.one_of(st.none(), st.sampled_from([time(8), time(12), time(20)]))
arrivals = st.integers(-30, 30).map(lambda hours: START + timedelta(hours=hours))
regions = st.sets(st.sampled_from(["hand", "elbow", "leg", "CHEST"]), max_size=2).map(frozenset)
studies = st.builds(DatedStudy, st.integers(1, 6).map(lambda number: UUID(int=number)), days, times, arrivals, regions)


@given(studies, studies)
def test_no_two_studies_are_priors_of_each_other(one: DatedStudy, other: DatedStudy) -> None:
    """Earlier is never both ways, and never of a study and itself."""
    assert not (is_earlier(one, other) and is_earlier(other, one))
    assert not is_earlier(one, one)


@given(studies, st.lists(studies, max_size=8, unique_by=lambda one: one.id))
def test_a_prior_is_another_earlier_study(study: DatedStudy, candidates: list[DatedStudy]) -> None:
    """Never the study itself, never a later one, never of a distant region; newest days first; none is left out."""
    found = choose_priors(study, [*candidates, study])
    by_id = {one.id: one for one in candidates}
    assert study.id not in found
    for prior in map(by_id.__getitem__, found):
        assert prior.day <= study.day
        assert is_earlier(prior, study)
        assert are_near(prior.regions, study.regions)
    assert [by_id[one].day for one in found] == sorted((by_id[one].day for one in found), reverse=True)
    left_out = [one for one in candidates if one.id not in found and one.id != study.id]
    assert not any(is_earlier(one, study) and are_near(one.regions, study.regions) for one in left_out)


@pytest.mark.parametrize(
    ("one", "other", "earlier"),
    [
        ((date(2026, 2, 28), time(20), 5), (date(2026, 3, 1), time(8), 0), True),  # though it came later
        ((date(2026, 3, 1), time(8), 5), (date(2026, 3, 1), time(9), 0), True),
        ((date(2026, 3, 1), time(9), 0), (date(2026, 3, 1), time(8), 5), False),
        ((date(2026, 3, 1), None, 0), (date(2026, 3, 1), time(8), 5), True),  # no time: by arrival
        ((date(2026, 3, 1), time(9), 5), (date(2026, 3, 1), None, 0), False),
        ((None, None, -24), (date(2026, 3, 1), time(8), 0), True),  # no date: that of arrival
        ((date(2026, 3, 2), None, -48), (None, None, 0), False),
        ((date(2026, 3, 1), time(9), 0), (date(2026, 3, 1), time(9), 0), False),
    ],
)
def test_earlier(
    one: tuple[date | None, time | None, int], other: tuple[date | None, time | None, int], earlier: bool
) -> None:
    a, b = (
        DatedStudy(UUID(int=number), day, at, START + timedelta(hours=hours), frozenset())
        for number, (day, at, hours) in enumerate((one, other))
    )
    assert is_earlier(a, b) is earlier


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        (("hand", None, ""), ("hand", None, ""), True),
        (("hand", None, ""), ("elbow", None, ""), True),
        (("hand", None, ""), ("shoulder", None, ""), False),
        (("hip", None, ""), ("leg", None, ""), True),
        (("leg", None, ""), ("", None, "Tibia / Fibula"), True),
        (("", None, "WRIST"), ("", None, "FOREARM"), True),  # neither was analysed
        (("", None, "FOOT"), ("", None, "HAND"), False),
        (("hand", AbstentionReason.METAL, ""), ("hand", None, ""), True),
        (("shoulder", AbstentionReason.BODY_PART, "CHEST"), ("shoulder", None, "SHOULDER"), False),
        (("shoulder", AbstentionReason.BODY_PART, "CHEST"), ("", None, "chest"), True),
        (("hand", None, "EXTREMITY"), ("hand", None, "HAND"), True),
        (("", None, "EXTREMITY"), ("", None, "EXTREMITY"), False),  # that says nothing
        (("", None, ""), ("", None, ""), False),
    ],
)
def test_regions(
    one: tuple[str, AbstentionReason | None, str], other: tuple[str, AbstentionReason | None, str], near: bool
) -> None:
    assert are_near(regions_of(*one), regions_of(*other)) is near
    assert are_near(regions_of(*other), regions_of(*one)) is near


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("4711", "A"), ("4711 ", "A"), True),
        (("4711", ""), ("4711", ""), True),
        (("4711", "A"), ("4711", "B"), False),
        (("4711", "A"), ("4711", ""), False),
        (("4711", "A"), ("4712", "A"), False),
        (("", "A"), ("", "A"), False),
    ],
)
def test_patient_ids(one: tuple[str, str], other: tuple[str, str], same: bool) -> None:
    first, second = (Identity(patient_id=number, issuer=issuer) for number, issuer in (one, other))
    assert same_patient_id(first, second) is same
    assert not same_patient_id(first, UnreadableIdentity(patient_id=first.patient_id, issuer=first.issuer))
