"""What is kept of a receiver's words: nothing that it repeats of the patient."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.notices import CODECS
from worker.delivery.hl7 import Order, acknowledgement, letters
from worker.delivery.messages import LEFT_OUT, without_patient

ORDER = Order("P-4711", "ACC-7", patient_name="Grünwald^Änne", birth_date="19570302", placer_number="PL-1")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("no patient P-4711 Grünwald", "no patient ... ..."),
        ("UNKNOWN GRÜNWALD^ÄNNE 19570302", "UNKNOWN ...^... ..."),
        ("unknown Grunwald", "unknown ..."),  # the receiver has no umlauts
        ("order ACC-7 of PL-1 is closed", "order ... of ... is closed"),
        ("queue is full", "queue is full"),
    ],
)
def test_what_a_receiver_repeats_is_left_out(words: str, kept: str) -> None:
    """In any case of letters, and without their accents."""
    assert without_patient(words, ORDER, "utf-8") == kept


def test_a_short_name_is_left_out_as_a_word() -> None:
    """ "Li" is a name; in "limit" it is none."""
    order = Order("7", "A", patient_name="Li^Bo")
    assert (
        without_patient("no Li, Bo: limit 7 of 17", order, "utf-8")
        == f"no {LEFT_OUT}, {LEFT_OUT}: limit {LEFT_OUT} of 17"
    )


@pytest.mark.parametrize(("character_set", "name"), [("8859/5", "Иванов"), ("8859/7", "Παπάς"), ("8859/2", "Łukasz")])
def test_words_are_read_in_the_letters_that_they_are_written_in(character_set: str, name: str) -> None:
    """A receiver answers in the character set of the message: read in another one, a name would not be known as one."""
    codec = CODECS[character_set]
    content = f"MSH|^~\\&|RIS\rMSA|AE|1|unknown {name}\r".encode(codec)
    words = acknowledgement(content, codec).words
    assert words == f"unknown {name}"
    assert without_patient(words, Order("1", "2", patient_name=f"{name}^"), codec) == "unknown ..."


@given(st.text("abcÄöŁИ山 ^=", min_size=1, max_size=12), st.sampled_from(sorted(set(CODECS.values()))))
def test_no_part_of_a_name_stays(name: str, codec: str) -> None:
    """Whatever it is made of, and in whatever letters the message had it."""
    order = Order("1", "2", patient_name=name)
    for part in name.replace("^", " ").replace("=", " ").split():
        for form in (part, letters(part, codec)):
            if form.strip("?"):
                assert form not in without_patient(f"unknown: {form}!", order, codec).split()
