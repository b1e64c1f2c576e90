"""HL7 ORU^R01: each field where receivers look for it, whatever the texts hold; and what acknowledgements say."""

from dataclasses import replace
from datetime import UTC, date, datetime, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.coding import PRESENCE, processing
from shared.domain.findings import RESEARCH_USE, Assessment
from shared.domain.notices import CODECS, AccessionPlace
from worker.delivery.hl7 import (
    Message,
    NoAccessionNumber,
    NoAcknowledgement,
    NotEncodable,
    Order,
    Receiver,
    Result,
    Verdict,
    acknowledgement,
    control_id,
    escape,
    make_oru,
    unescape,
)

ORDER = Order(
    patient_id="P-4711", accession_number="A 11", issuer="CLINIC", patient_name="ZEBRA^QUAGGA^M^Dr^Jr", birth_date="19700131",
    sex="F", placer_number="PL1", filler_number="FI1", study_date=date(2026, 1, 10), study_time=time(10, 15), utc_offset="+0100",
)  # fmt: skip
RESULT = Result(
    study_instance_uid="1.2.3", processed=processing([Assessment.POSITIVE]), assessment=Assessment.POSITIVE, region="hand",
    text=["Fracture: positive, hand."], found_at=datetime(2026, 1, 10, 9, 20, tzinfo=UTC), model="first", device_uid="2.25.1",
    probability=0.91, link="https://osteon.example/view/1?a=1&b=2",
)  # fmt: skip
ID = control_id("digest", "destination")
Rows = dict[str, list[list[str]]]


def parsed(message: Message, codec: str = "utf-8") -> Rows:
    """The segments by name, each a list of its fields by their numbers; field 1 of MSH is the separator."""
    lines = message.content.decode(codec).split("\r")
    assert lines.pop() == "", "each segment ends with a carriage return"
    found: Rows = {}
    for line in lines:
        name, *fields = line.split("|")
        found.setdefault(name, []).append([name, *(["|"] if name == "MSH" else []), *fields, *[""] * 30])
    return found


def test_where_everything_stands() -> None:
    """PID-3 with its issuer, the order's numbers, preliminary twice, each observation with its type."""
    rows = parsed(make_oru(ORDER, RESULT, Receiver("RIS", "HOSP", sending_facility="OURS", probability=True), ID))
    (msh,), (pid,), (pv1,), (orc,), (obr,) = (rows[name] for name in ("MSH", "PID", "PV1", "ORC", "OBR"))
    assert msh[2:7] == ["^~\\&", "OSTEON", "OURS", "RIS", "HOSP"]
    assert (msh[7], msh[9], msh[10], msh[11], msh[12], msh[18]) == (
        "20260110092000+0000",
        "ORU^R01^ORU_R01",
        ID,
        "P",
        "2.5.1",
        "UNICODE UTF-8",
    )
    assert (pid[3], pid[5], pid[7], pid[8]) == ("P-4711^^^CLINIC^MR", "ZEBRA^QUAGGA^M^Jr^Dr^^^A", "19700131", "F")
    assert pv1[2] == "U"
    assert orc[1:4] == ["RE", "PL1", "A 11"]
    assert (obr[2], obr[3], obr[18], obr[25]) == ("PL1", "A 11", "A 11", "P")
    assert (obr[4], obr[7], obr[24]) == ("18748-4^Diagnostic imaging study^LN", "20260110101500+0100", "RAD")
    told = [(one[2], one[3].split("^")[0], one[5]) for one in rows["OBX"]]
    assert told == [
        ("CWE", "111017", "111242^All algorithms succeeded; with findings^DCM"),
        ("CWE", "125605004", "52101004^Present^SCT"),
        ("NM", "111012", "91.0"),
        ("CWE", "363698007", "85562004^Hand^SCT"),
        ("TX", "121106", "Fracture: positive, hand."),
        ("TX", "121106", RESEARCH_USE),
        ("RP", "LINK", "https://osteon.example/view/1?a=1\\T\\b=2^OSTEON^TEXT^HTML"),
    ]
    assert [one[1] for one in rows["OBX"]] == [str(number) for number in range(1, 8)]
    assert {one[11] for one in rows["OBX"]} == {"P"}
    assert rows["OBX"][2][6] == "%^percent^UCUM"


@pytest.mark.parametrize(
    ("place", "numbers"),
    [
        (AccessionPlace.FILLER, ["PL1", "A 11"]),
        (AccessionPlace.PLACER, ["A 11", "FI1"]),
        (AccessionPlace.BOTH, ["A 11", "A 11"]),
    ],
)
def test_where_a_site_looks_for_the_accession_number(place: AccessionPlace, numbers: list[str]) -> None:
    """As the destination says, in ORC and OBR alike, and always in OBR-18."""
    rows = parsed(make_oru(ORDER, RESULT, Receiver(accession=place), ID))
    assert rows["ORC"][0][2:4] == rows["OBR"][0][2:4] == numbers
    assert rows["OBR"][0][18] == "A 11"


@pytest.mark.parametrize("assessment", list(Assessment))
def test_an_abstention_is_no_presence(assessment: Assessment) -> None:
    """Neither Present nor Absent: the summary of the processing and the text say why. No probability unless asked for."""
    result = replace(RESULT, assessment=assessment, processed=processing([assessment]))
    for receiver in (Receiver(), Receiver(probability=True)):
        rows = parsed(make_oru(ORDER, result, receiver, ID))["OBX"]
        found = [one[5].split("^")[0] for one in rows if one[3].startswith("125605004")]
        assert found == ([PRESENCE[assessment].value] if assessment in PRESENCE else [])
        assert any(one[2] == "NM" for one in rows) == (receiver.probability and assessment in PRESENCE)


@pytest.mark.parametrize("number", ["", "  "])
def test_without_an_accession_number_there_is_no_message(number: str) -> None:
    """Nobody could tell which order it is of."""
    with pytest.raises(NoAccessionNumber):
        make_oru(replace(ORDER, accession_number=number), RESULT, Receiver(), ID)


def test_the_control_id_is_the_same_at_each_try() -> None:
    """20 characters that each system takes; another study or destination has another one; the message is the same, too."""
    assert ID == control_id("digest", "destination")
    assert (
        len(
            {ID, control_id("digest", "other"), control_id("digestdestination", ""), control_id("other", "destination")}
        )
        == 4
    )
    assert len(ID) == 20 and ID.isascii() and ID.isalnum()
    assert make_oru(ORDER, RESULT, Receiver(), ID) == make_oru(ORDER, RESULT, Receiver(), ID)


NAMES = st.text(st.characters(codec="utf-8"), max_size=30)


@given(NAMES, st.sampled_from(sorted(CODECS)))
def test_what_is_escaped_is_read_back(text: str, _set: str) -> None:
    """No delimiter, no control character and no framing byte is left in it."""
    written = escape(text)
    assert not set(written) & set("|^&~\r\n\x0b\x1c\x00")
    assert unescape(written) == text


@given(NAMES, NAMES, NAMES, st.sampled_from(sorted(CODECS)), st.sampled_from(list(Assessment)))
def test_no_text_moves_a_field(name: str, line: str, region: str, character_set: str, assessment: Assessment) -> None:
    """Whatever stands in a header or a text: the same segments and fields, in the encoding that MSH-18 names."""
    order = replace(ORDER, patient_name=name)
    result = replace(RESULT, text=[line], region=region, assessment=assessment)
    message = make_oru(order, result, Receiver(application=line, character_set=character_set), ID)
    assert not {0x0B, 0x1C} & set(message.content)
    rows = parsed(message, CODECS[character_set])
    assert [list(rows), *(len(rows[one]) for one in ("MSH", "PID", "PV1", "ORC", "OBR"))] == [
        ["MSH", "PID", "PV1", "ORC", "OBR", "OBX"],
        1,
        1,
        1,
        1,
        1,
    ]
    assert rows["MSH"][0][18] == character_set
    assert (rows["PID"][0][3], rows["OBR"][0][18], rows["OBR"][0][25]) == ("P-4711^^^CLINIC^MR", "A 11", "P")
    assert all(one[11] == "P" for one in rows["OBX"])
    if character_set == "UNICODE UTF-8":
        assert unescape(rows["MSH"][0][5]) == line
        told = [unescape(one[5]) for one in rows["OBX"] if one[2] == "TX"]
        assert told == [one for one in (line, RESEARCH_USE) if one.strip()]


def test_letters_that_a_character_set_lacks() -> None:
    """A name keeps what can be written, without accents if need be; an identifier is refused rather than changed."""
    order = replace(ORDER, patient_name="Müller^Łukasz=山田^太郎=やまだ^たろう")
    assert parsed(make_oru(order, RESULT, Receiver(), ID))["PID"][0][5].split("~")[1] == "山田^太郎^^^^^^I"
    assert (
        parsed(make_oru(order, RESULT, Receiver(character_set="8859/1"), ID), "latin-1")["PID"][0][5]
        == "Müller^?ukasz^^^^^^A"
    )
    assert (
        parsed(make_oru(order, RESULT, Receiver(character_set="ASCII"), ID), "ascii")["PID"][0][5]
        == "Muller^?ukasz^^^^^^A"
    )
    for changes in ({"patient_id": "Ł1"}, {"accession_number": "Ł1"}, {"issuer": "Ł1"}, {"placer_number": "Ł1"}):
        with pytest.raises(NotEncodable, match="cannot be written"):
            make_oru(replace(ORDER, **changes), RESULT, Receiver(character_set="8859/1"), ID)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="character set"):
        Receiver(character_set="8859/99")


def ack(code: str, error: str = "", words: str = "") -> bytes:
    tail = f"ERR|||{error}^x^HL70357|E||||{words}\r" if error else ""
    return f"MSH|^~\\&|RIS|H|OSTEON||20260110||ACK|1|P|2.5.1\rMSA|{code}|{ID}|{words}\r{tail}".encode()


@pytest.mark.parametrize(
    ("code", "error", "verdict"),
    [
        ("AA", "", Verdict.ACCEPTED), ("CA", "", Verdict.ACCEPTED), ("AE", "", Verdict.REFUSED), ("CE", "", Verdict.REFUSED),
        ("AR", "", Verdict.LATER), ("CR", "", Verdict.LATER), ("AE", "207", Verdict.LATER), ("AE", "206", Verdict.LATER),
        ("AE", "101", Verdict.REFUSED), ("AR", "203", Verdict.UNSUPPORTED), ("AR", "207", Verdict.LATER), ("AA", "0", Verdict.ACCEPTED),
    ],
)  # fmt: skip
def test_what_an_acknowledgement_says(code: str, error: str, verdict: Verdict) -> None:
    """Accepted, later or never; the receiver's own words beside."""
    told = acknowledgement(ack(code, error, "no such \\T\\ order"))
    assert (told.code, told.control_id, told.verdict) == (code, ID, verdict)
    assert "no such & order" in told.words
    assert "no such" not in repr(told)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r",
        b"MSH",
        b"MSH|^~\\&",
        b"hello",
        b"MSA|AA|1\r",
        b"MSH|^~\\&|a\rMSA|AA\r",
        b"MSH|^~\\&|a\rMSA|XX|1\r",
        b"\x00\xff" * 40,
    ],
)
def test_what_is_no_acknowledgement(content: bytes) -> None:
    """Damaged, cut off, or something else: it says nothing of a message, and its error repeats nothing of it."""
    with pytest.raises(NoAcknowledgement) as wrong:
        acknowledgement(content)
    assert "hello" not in str(wrong.value)


@given(st.binary(max_size=200), st.integers(0, 80))
def test_a_damaged_acknowledgement_is_none_or_one(noise: bytes, place: int) -> None:
    """Nothing but NoAcknowledgement comes of any bytes; words stay bounded and printable."""
    whole = ack("AE", "101", "words")
    for content in (noise, whole[:place] + noise + whole[place:], whole[:place]):
        try:
            told = acknowledgement(content)
        except NoAcknowledgement:
            continue
        assert len(told.words) <= 200 and told.words.isprintable()
