"""Reports of real studies: what stands on them, how many pages they have, what no font draws."""

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select, update

from shared.db.tables import FindingRow, IdentityReadRow
from shared.domain.findings import RESEARCH_USE, Assessment
from shared.queries import studies
from shared.report_pdf import MISSING, to_markup
from shared.storage import preview_key, sha256_of
from tests.feedback_data import MANIFEST, ONE, analyse, say, study_file

KNOWN = MANIFEST | {
    "modalities": ["CR", "DX"], "data": {"sources": ["FracAtlas"]}, "limits": "Elbows are weak.",
    "metrics": {"radiographs": 703, "fractured": 92, "operating_points": {
        "sensitive": {"sensitivity": [0.978, 0.943, 1.0], "specificity": [0.455, 0.4, 0.51]},
        "specific": {"sensitivity": [0.73, 0.54, 0.87], "specificity": [0.96, 0.94, 0.98]},
    }},
}  # fmt: skip
needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs poppler-utils: apt-get install it")


def made(api: Any, images: int = 1, assessment: Assessment = Assessment.POSITIVE, number: int = 1, **tags: str) -> str:
    """An analysed study with pictures in the store."""
    files = {f"{image}": study_file(number, image, 160, 120, **tags) for image in range(1, images + 1)}
    study: str = api.post(files).json()["studies"][0]["id"]
    analyse(api, study, assessment=assessment, manifest=KNOWN)
    for image, content in enumerate(files.values(), start=1):
        out = io.BytesIO()
        Image.linear_gradient("L").resize((120, 160)).rotate(90 * image).save(out, "JPEG")
        key = preview_key(sha256_of(content), 1)
        api.http.app.state.parts.store.put(key, io.BytesIO(out.getvalue()), out.getbuffer().nbytes)
    return study


def paper(api: Any, study: str) -> bytes:
    response = api.http.get(f"/api/v1/studies/{study}/report.pdf", headers=api.headers("radiologist"))
    assert (response.status_code, response.headers["content-type"]) == (200, "application/pdf"), response.text
    return bytes(response.content)


def pages_of(content: bytes, tmp_path: Path) -> list[str]:
    """The text of each page."""
    (tmp_path / "report.pdf").write_bytes(content)
    done = subprocess.run(["pdftotext", "-layout", tmp_path / "report.pdf", "-"], check=True, capture_output=True)
    return done.stdout.decode().split("\f")[:-1]


def flat(text: str) -> str:
    return " ".join(text.split())


@needs_poppler
@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_up_to_four_images_stand_on_one_page(in_process: Any, tmp_path: Path, images: int) -> None:
    """Identity, findings, limits, feedback and the banner, all on one A4 page."""
    study = made(in_process, images)
    say(in_process, study, **ONE | {"verdict": "supplement", "text": "old break of the radius"})
    (page,) = pages_of(paper(in_process, study), tmp_path)
    text = flat(page)
    for words in (
        RESEARCH_USE.upper(), "ZEBRA, QUAGGA", "Positive, hand, extent mild; score 9.0 of 10.", "probability 90 % (unclear from 20 %, positive from 70 %)",
        "not a clinical grade", "Trained on FracAtlas.", "sensitivity 0.98 (0.94 to 1.00)", "Elbows are weak.",
        "old break of the radius", "page 1 of 1", "Study Instance UID", "by radiologist", f"Image {images}",
    ):  # fmt: skip
        assert words in text, words
    info = subprocess.run(["pdfinfo", tmp_path / "report.pdf"], check=True, capture_output=True, text=True).stdout
    assert "A4" in info


@needs_poppler
def test_long_reports_go_on(in_process: Any, tmp_path: Path) -> None:
    """Nine images and much feedback take more pages; each has the banner and its number, and nothing is cut off."""
    study = made(in_process, 9)
    for number in range(30):
        say(in_process, study, **ONE | {"verdict": "supplement", "text": f"remark {number} " + "words " * 60})
    pages = pages_of(paper(in_process, study), tmp_path)
    assert len(pages) > 2
    for number, page in enumerate(pages, start=1):
        assert RESEARCH_USE.upper() in page
        assert f"page {number} of {len(pages)}" in page
    text = flat(" ".join(pages))
    assert all(f"remark {number} words" in text for number in range(30))
    assert all(f"Image {number} (" in text for number in range(1, 10))


@needs_poppler
def test_abstention_is_said_plainly(in_process: Any, tmp_path: Path) -> None:
    """Where the model abstains, the report says so, and that this is not normal; no probability is printed."""
    text = flat(" ".join(pages_of(paper(in_process, made(in_process, assessment=Assessment.ABSTAINED)), tmp_path)))
    assert (
        "Abstained, outside the validated scope: body region not recognised. Raw score medium. Silence is not normal."
        in text
    )
    assert "robability 60" not in text


def test_the_heatmap_of_an_abstention_is_drawn_when_asked_for(in_process: Any) -> None:
    """Its picture is gray unless `unveiled` is asked for, the page says so, and a finding in scope is always drawn."""

    def colour(study: str, **query: str) -> int:
        headers = in_process.headers("radiologist")
        response = in_process.http.get(f"/api/v1/studies/{study}/overlay.jpg", params=query, headers=headers)
        pixels = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"), int)
        return int(np.ptp(pixels, axis=2).max())

    silent, positive = made(in_process, assessment=Assessment.ABSTAINED), made(in_process, number=2)
    assert colour(silent) < 10
    assert colour(silent, unveiled="true") > 60
    assert colour(positive) > 60
    url, headers = f"/view/{silent}/report", in_process.headers("radiologist")
    veiled, unveiled = (in_process.http.get(url + query, headers=headers).text for query in ("", "?unveiled=true"))
    assert ("Its heatmap is not drawn" in veiled, "unveiled=true&" in veiled) == (True, False)
    assert ("Its heatmap is not drawn" in unveiled, "unveiled=true&" in unveiled) == (False, True)


@needs_poppler
@pytest.mark.parametrize(
    ("name", "charset", "words"),
    [
        ("Иванов^Пётр", "ISO_IR 144", "Иванов, Пётр"),
        ("Διονυσιος", "ISO_IR 126", "Διονυσιος"),
        ("Yamada^Tarou=山田^太郎", "ISO_IR 192", "Yamada, Tarou / 山田, 太郎"),
        ("Müller^Zoë <b>", "ISO_IR 192", "Müller, Zoë <b>"),
    ],
)
def test_names_of_many_scripts_are_drawn(in_process: Any, tmp_path: Path, name: str, charset: str, words: str) -> None:
    """Latin, Greek, Cyrillic and Japanese names stand on the paper as they stand in the header, and as text."""
    study = made(in_process, SpecificCharacterSet=charset, PatientName=name)
    text = flat(" ".join(pages_of(paper(in_process, study), tmp_path)))
    assert words in text
    assert "cannot draw" not in text


@needs_poppler
def test_what_no_font_draws_is_said(in_process: Any, tmp_path: Path) -> None:
    """A name in Arabic letters is not drawn wrongly, nor dropped: squares stand there, and a sentence says why."""
    study = made(in_process, SpecificCharacterSet="ISO_IR 192", PatientName="Qabbani=قباني")
    text = flat(" ".join(pages_of(paper(in_process, study), tmp_path)))
    assert "Qabbani" in text
    assert f"{MISSING} stands for characters that this PDF cannot draw (U+0642" in text
    page = in_process.http.get(f"/view/{study}/report", headers=in_process.headers("radiologist")).text
    assert "قباني" in page


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("Ł ő ß ş Ђ ϑ", ""),
        ("王^小东", ""),
        ("김희중", ""),
        ("ไทย", "ไทย"),
        ("שרה", "שרה"),
        ("a\U0001f9b4", "\U0001f9b4"),
        ("\x01", "\x01"),
    ],
)
def test_every_character_is_drawn_or_named(text: str, missing: str) -> None:
    """No character vanishes: a font has it, or it is in the list of those that no font has."""
    markup, gone = to_markup(text)
    assert "".join(gone) == missing
    assert markup.count(MISSING) == len(missing)


def test_a_report_is_read_under_audit_and_by_readers_only(in_process: Any) -> None:
    """Page and paper each leave a row for the identity that they show; a sender is refused."""
    study = made(in_process)

    def reads() -> int:
        with in_process.database.transaction() as session:
            return len(session.scalars(select(IdentityReadRow).where(IdentityReadRow.study_id == UUID(study))).all())

    for count, url in enumerate((f"/view/{study}/report", f"/api/v1/studies/{study}/report.pdf"), start=1):
        assert in_process.http.get(url, headers=in_process.headers("submitter")).status_code == 403
        assert in_process.http.get(url, headers=in_process.headers("radiologist")).status_code == 200
        assert reads() == count


def test_a_missing_picture_is_said(in_process: Any) -> None:
    """A report of a study whose picture is gone from the store comes all the same."""
    study: str = in_process.post({"a": study_file(1)}).json()["studies"][0]["id"]
    analyse(in_process, study)
    assert paper(in_process, study).startswith(b"%PDF")


def test_marks_and_heatmap_are_drawn_where_they_are(in_process: Any) -> None:
    """In the picture, the heatmap colours its place, a mark's edge is blue there, and elsewhere the radiograph is gray."""
    study = made(in_process)
    mark = {"image": 1, "frame": 1, "x": 0.1, "y": 0.1, "width": 0.2, "height": 0.2}
    say(in_process, study, **ONE | {"marks": [mark]})
    response = in_process.http.get(f"/api/v1/studies/{study}/overlay.jpg", headers=in_process.headers("radiologist"))
    picture = Image.open(io.BytesIO(response.content))
    assert picture.size == (120, 160)
    picture_rgb = np.asarray(picture)
    red, _, blue = picture_rgb[80, 60].tolist()
    assert red > blue + 50
    red, _, blue = picture_rgb[16, 24].tolist()
    assert blue > red + 50
    red, green, blue = picture_rgb[5, 110].tolist()
    assert max(red, green, blue) - min(red, green, blue) < 25


def test_of_very_many_images_the_gravest_are_pictured(
    in_process: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All images are told of in words; pictures are of the gravest, and of the others it is said that there are none."""
    monkeypatch.setattr("api.studies.report.MAX_PICTURES", 2)
    study = made(in_process, 4)
    with in_process.database.transaction() as session:
        ids = [view.row.id for view in studies.instances(session, UUID(study))]
        for number, chance in ((1, 0.75), (2, 0.95), (3, 0.8), (4, 0.9)):
            session.execute(
                update(FindingRow).where(FindingRow.instance_id == ids[number - 1]).values(fracture_probability=chance)
            )
    page = in_process.http.get(f"/view/{study}/report", headers=in_process.headers("radiologist")).text
    assert [f"overlay.jpg?image={number}&" in page for number in (1, 2, 3, 4)] == [False, True, False, True]
    content = paper(in_process, study)
    assert page.count("the 2 gravest images of this study are") == 2
    if shutil.which("pdftotext"):
        text = flat(" ".join(pages_of(content, tmp_path)))
        assert text.count("Not pictured here: the 2 gravest images of this study are.") == 2
        assert "in the store" not in text
    assert page.count("Not pictured here: the 2 gravest images of this study are.") == 2


@needs_poppler
@pytest.mark.parametrize("assessment", [Assessment.NEGATIVE, Assessment.POSITIVE])
def test_images_that_could_not_be_read_are_told_first(in_process: Any, tmp_path: Path, assessment: Assessment) -> None:
    """List, study page and report say how many images nobody judged; beside them no headline says "no fracture"."""
    study: str = in_process.post({f"{n}": study_file(1, n) for n in (1, 2, 3)}).json()["studies"][0]["id"]
    analyse(in_process, study, assessment=assessment, unread=2)
    words = "2 images could not be read"
    reader = in_process.headers("radiologist")
    assert words in in_process.http.get("/api/v1/worklist", headers=reader).json()["entries"][0]["why"]
    assert words in in_process.http.get(f"/view/{study}", headers=reader).text
    pages = [in_process.http.get(f"/view/{study}/report", headers=reader).text.partition('class="headline"')[2]]
    pages.append(flat(" ".join(pages_of(paper(in_process, study), tmp_path))).partition("Image 1")[0])
    for text in pages:
        headline = text.partition("</p>")[0]
        assert f"{words}. Silence is not normal." in headline
        assert "No fracture found" not in headline


@needs_poppler
def test_why_an_image_is_not_pictured(in_process: Any, tmp_path: Path) -> None:
    """On paper, an image without finding is not said to be missing from the store; one that is missing is."""
    study: str = in_process.post({f"{n}": study_file(1, n) for n in (1, 2)}).json()["studies"][0]["id"]
    analyse(in_process, study, unread=1)
    text = flat(" ".join(pages_of(paper(in_process, study), tmp_path)))
    assert text.count("There is no picture of this image in the store.") == 1
    assert text.count("Not pictured here: there is no finding to draw in.") == 1


@needs_poppler
def test_feedback_stands_with_the_finding_that_it_is_about(in_process: Any, tmp_path: Path) -> None:
    """A newer bundle says positive where the older said negative: who agreed with the older is not seen to agree with it."""
    study = made(in_process, assessment=Assessment.NEGATIVE)
    say(in_process, study, **ONE)
    analyse(in_process, study, "second", Assessment.POSITIVE, KNOWN)
    say(in_process, study, **ONE | {"verdict": "disagree", "bundle": "second", "fracture": "no"})
    said = "It is about bundle first: negative, score 0.7 of 10"
    page = in_process.http.get(f"/view/{study}/report", headers=in_process.headers("radiologist")).text
    for text in (flat(page), flat(" ".join(pages_of(paper(in_process, study), tmp_path)))):
        current, _, earlier = text.partition("Readers' feedback")[2].partition("Feedback on earlier findings")
        assert "disagrees on image 1" in current
        assert " agrees on image 1" not in current
        assert " agrees on image 1" in earlier
        assert said in earlier


def test_a_corrected_mark_makes_another_picture(in_process: Any) -> None:
    """The picture's address changes when feedback is corrected, though the number of entries stays."""
    study = made(in_process)
    mark = {"image": 1, "frame": 1, "x": 0.1, "y": 0.1, "width": 0.2, "height": 0.2}
    seen = set()
    for x in (0.1, 0.5):
        say(in_process, study, **ONE | {"marks": [mark | {"x": x}]})
        page = in_process.http.get(f"/view/{study}/report", headers=in_process.headers("radiologist")).text
        seen.add(page.partition("overlay.jpg?")[2].partition('"')[0])
    assert len(seen) == 2
