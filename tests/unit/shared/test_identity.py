"""Who a patient is: what is compared, and what is never a difference."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.domain.identity import FIELDS, complete_identity, name_groups, normalised, same_patient
from shared.domain.study import Identity

words = st.text(st.characters(codec="utf-8", exclude_characters="^=\\\0", exclude_categories=("Cs", "Cc")), max_size=8)
names = st.lists(words, min_size=1, max_size=5).map("^".join)
groups = st.lists(names, min_size=1, max_size=3).map("=".join)
ids = st.text(st.characters(codec="ascii", min_codepoint=32), max_size=12)
dates = st.sampled_from(["", "19700101", "20010101", "1970.01.01"])
identities = st.builds(Identity, groups, ids, dates, ids, ids, words)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("DOE^JANE", "doe^jane^^^", True),
        ("DOE^JANE", "DOE^  JANE ", True),
        ("VAN  DER BERG^A", "van der berg^a", True),
        ("MÜLLER^JO", "Mu\N{COMBINING DIAERESIS}ller^Jo", True),
        ("STRASSE^A", "Straße^A", True),
        ("DOE^JANE", "DOE^JOAN", False),
        ("DOE^JANE", "JANE^DOE", False),
        ("DOE", "DOE^JANE", False),
        ("DOE^JANE", "", True),
        ("DOE^JANE", "^^^", True),
        ("Zhang^XiaoDong=张^小东", "ZHANG^XIAODONG", True),
        ("Zhang^XiaoDong=张^小东", "Zhang^XiaoDong=张^小冬", False),
        ("=张^小东", "Zhang^XiaoDong", True),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou==やまだ^たろう", True),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou=山田^太郎=やまだ^じろう", False),
    ],
)
def test_names(one: str, other: str, same: bool) -> None:
    """Names are compared by group, case-folded, with single spaces and without trailing carets."""
    assert same_patient(Identity(one), Identity(other)) is same
    assert same_patient(Identity(other), Identity(one)) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Identity("", "4711"), Identity("", " 4711  "), True),
        (Identity("", "4711"), Identity("", "04711"), False),
        (Identity("", "AB"), Identity("", "ab"), False),
        (Identity("", "4 7"), Identity("", "47"), False),
        (Identity("", "4711"), Identity("", ""), True),
        (Identity("", "4711", issuer="ANNA"), Identity("", "4711", issuer="BERTA"), False),
        (Identity("", "4711", issuer="ANNA"), Identity("", "4711"), True),
        (Identity("", "", "19700101"), Identity("", "", "19700102"), False),
        (Identity("", "", "19700101"), Identity("", "", "1970.01.01"), True),
        (Identity("", "", "19700101"), Identity("", "", ""), True),
        (Identity("A", "1", "19700101", "ACC-1"), Identity("A", "1", "19700101", "ACC-2"), True),
    ],
)
def test_ids_and_dates(one: Identity, other: Identity, same: bool) -> None:
    """IDs are compared exactly but for spaces around them, with their issuer; an accession number is no identity."""
    assert same_patient(one, other) is same
    assert same_patient(other, one) is same


@given(identities, identities)
def test_comparing_is_fair(one: Identity, other: Identity) -> None:
    """Everybody is the same patient as themselves, and neither order nor form of writing matters."""
    assert same_patient(one, one)
    assert same_patient(one, other) is same_patient(other, one)
    shouted = replace(one, patient_name=f" {one.patient_name}^^", patient_id=f"  {one.patient_id} ")
    assume("=" not in one.patient_name)
    assert same_patient(one, shouted)
    assert normalised(one) == normalised(shouted)


@given(identities, st.sets(st.sampled_from(FIELDS)))
def test_what_is_absent_is_no_difference(one: Identity, absent: set[str]) -> None:
    """Taking values away never makes another patient."""
    assert same_patient(one, replace(one, **dict.fromkeys(absent, "")))


@given(identities, identities, st.sampled_from(FIELDS))
def test_what_both_say_is_a_difference(one: Identity, other: Identity, name: str) -> None:
    """One value that both have and that differs is enough."""
    values = ("SMITH^A", "19700101") if name in ("patient_name", "birth_date") else ("1", "2")
    assert not same_patient(replace(one, **{name: values[0]}), replace(other, **{name: values[1]}))


@given(identities, identities)
def test_completing(one: Identity, other: Identity) -> None:
    """What is known stays; what was lacking is taken over; the patient stays the same."""
    whole = complete_identity(one, other)
    for name in Identity.__dataclass_fields__:
        assert getattr(whole, name) == (
            getattr(one, name) if getattr(one, name).strip() else getattr(other, name) or getattr(one, name)
        )
    assert same_patient(one, whole)


def test_groups() -> None:
    """A name has three groups, whatever is written."""
    assert name_groups("A^B=C=D=E") == ("a^b", "c", "d")
    assert name_groups("") == ("", "", "")
