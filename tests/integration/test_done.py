"""Done, next study: what is asked before a study leaves the list, and how it comes back."""

import html
import re
import threading
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from shared.db.tables import FeedbackRow, StudyRow
from shared.domain.feedback import check_chain
from shared.domain.findings import Assessment
from shared.domain.security import Role
from shared.queries import feedback
from shared.queries.access import add_key
from tests.feedback_data import ONE, analyse, say, study_file


def add(api: Any, number: int, images: int = 2, assessment: Assessment = Assessment.POSITIVE) -> str:
    """An analysed study."""
    files = {f"{image}": study_file(number, image) for image in range(1, images + 1)}
    made: str = api.post(files).json()["studies"][0]["id"]
    analyse(api, made, assessment=assessment)
    return made


@pytest.fixture
def study(in_process: Any) -> str:
    """Two positive images."""
    return add(in_process, 1)


@pytest.fixture
def other(in_process: Any) -> str:
    """The role of a second reader."""
    with in_process.database.transaction() as session:
        add_key(session, "default", "dr-other", Role.RADIOLOGIST, "osk_other_reader")
    in_process.keys["other"] = "osk_other_reader"
    return "other"


def refs(*images: int, bundle: str = "first") -> list[dict[str, Any]]:
    return [{"image": image, "frame": 1, "bundle": bundle} for image in images]


def done(api: Any, study: str, choice: str = "", *images: int, bundle: str = "first", **more: Any) -> Any:
    chosen: dict[str, Any] = (
        {"unanswered": {"choice": choice, "findings": refs(*images, bundle=bundle)}} if choice else {}
    )
    return say(api, study, verdict="done", **chosen, **more)


def undo(api: Any, study: str, entry: str, key: str | None = None, role: str = "radiologist") -> Any:
    headers = api.headers(role) | ({"Idempotency-Key": key} if key else {})
    return api.http.post(f"/api/v1/studies/{study}/feedback/{entry}/undo", headers=headers)


def claim(api: Any, study: str, role: str = "radiologist", **query: Any) -> Any:
    return api.http.post(f"/api/v1/studies/{study}/lock", params=query, headers=api.headers(role))


def holder(api: Any, study: str) -> str:
    return str(api.http.get(f"/api/v1/studies/{study}/lock", headers=api.headers("radiologist")).json()["name"])


def verdicts(api: Any) -> list[tuple[str, bool]]:
    """All entries, and whether each stands."""
    with api.database.transaction() as session:
        rows = session.scalars(select(FeedbackRow).order_by(FeedbackRow.number)).all()
    replaced = {row.supersedes for row in rows}
    return [(row.verdict, row.id not in replaced) for row in rows]


def place(api: Any, study: str) -> tuple[Any, ...]:
    with api.database.transaction() as session:
        row = session.get_one(StudyRow, UUID(study))
        return row.read_at, row.due_at, row.status


def entry_of(response: Any) -> str:
    assert response.status_code == 201, response.text
    return str([one for one in response.json()["entries"] if one["verdict"] == "done"][-1]["id"])


# -- the question ---------------------------------------------------------------------------------------------------


def test_done_asks_about_positive_images_without_feedback(in_process: Any, study: str) -> None:
    """It is refused with a code and the findings, writes nothing, and goes once each is answered."""
    refused = done(in_process, study)
    assert (refused.status_code, refused.json()["code"]) == (409, "positive-unanswered")
    assert [(one["image"], one["frame"], one["bundle"]) for one in refused.json()["findings"]] == [
        (1, 1, "first"), (2, 1, "first")
    ]  # fmt: skip
    assert verdicts(in_process) == []
    assert place(in_process, study)[0] is None
    say(in_process, study, **ONE)
    assert [one["image"] for one in done(in_process, study).json()["findings"]] == [2]
    say(in_process, study, **ONE | {"image": 2, "verdict": "disagree", "fracture": "no"})
    assert done(in_process, study).json()["read_at"] is not None


def test_an_older_page_cannot_skip_the_question(in_process: Any, study: str) -> None:
    """A request as clients sent it before there was a question is refused like any other."""
    assert say(in_process, study, "old-page", verdict="done", images=2).json()["code"] == "positive-unanswered"
    assert place(in_process, study)[0] is None


@pytest.mark.parametrize("assessment", [Assessment.NEGATIVE, Assessment.UNCLEAR, Assessment.ABSTAINED])
def test_only_positive_images_are_asked_about(in_process: Any, assessment: Assessment) -> None:
    """A reader who is done with anything else is not held up."""
    assert done(in_process, add(in_process, 1, assessment=assessment)).status_code == 201


def test_agreeing_with_all_writes_an_entry_for_each(in_process: Any, study: str) -> None:
    """Only what was not answered is agreed with, in the same transaction as the study is done; a retry writes nothing."""
    say(in_process, study, **ONE | {"verdict": "disagree", "fracture": "no"})
    for _ in range(2):
        chosen: dict[str, Any] = {"unanswered": {"choice": "agree", "findings": refs(2)}}
        assert say(in_process, study, "press", verdict="done", images=2, **chosen).status_code == 201
    assert [verdict for verdict, _ in verdicts(in_process)] == ["disagree", "agree", "done"]
    with in_process.database.transaction() as session:
        assert check_chain(feedback.chain_entries(session, in_process.key().site_id)).problems == []


def test_reading_without_feedback_leaves_findings_open(in_process: Any, study: str) -> None:
    """The study is read, and no feedback is invented."""
    assert done(in_process, study, "leave", 1, 2).json()["read_at"] is not None
    assert [verdict for verdict, _ in verdicts(in_process)] == ["done"]


@pytest.mark.parametrize("choice", ["agree", "leave"])
def test_a_choice_holds_for_what_it_names(in_process: Any, study: str, choice: str) -> None:
    """A positive finding that the reader was not asked about is asked about, whatever they chose for another one."""
    refused = done(in_process, study, choice, 1)
    assert (refused.json()["code"], [one["image"] for one in refused.json()["findings"]]) == (
        "positive-unanswered", [1, 2]
    )  # fmt: skip
    assert verdicts(in_process) == []


@pytest.mark.parametrize("choice", ["agree", "leave", ""])
def test_a_rerun_meanwhile_asks_anew(in_process: Any, choice: str) -> None:
    """Between page load and Done another model found something: nobody has given feedback on its positive finding."""
    study = add(in_process, 1, images=1, assessment=Assessment.NEGATIVE)
    say(in_process, study, **ONE)
    analyse(in_process, study, "second")
    refused = done(in_process, study, choice, 1, images=1)
    assert (refused.json()["code"], refused.json()["findings"][0]["bundle"]) == ("positive-unanswered", "second")
    assert place(in_process, study)[0] is None
    assert done(in_process, study, "agree", 1, bundle="second").status_code == 201


def test_the_feedback_that_counts_is_the_readers_own(in_process: Any, study: str, other: str) -> None:
    """A colleague's feedback does not speak for whoever is done."""
    for image in (1, 2):
        say(in_process, study, role=other, **ONE | {"image": image})
    assert done(in_process, study).json()["code"] == "positive-unanswered"
    assert say(in_process, study, role=other, verdict="done").status_code == 201


def test_done_twice_at_once_is_done_once(in_process: Any, study: str) -> None:
    """Two tabs of one reader press at the same moment: one entry, one agreement each, and both are told."""
    barrier, statuses = threading.Barrier(4), []

    def press(number: int) -> None:
        barrier.wait()
        chosen: dict[str, Any] = {"unanswered": {"choice": "agree", "findings": refs(1, 2)}}
        statuses.append(say(in_process, study, f"tab-{number}", verdict="done", **chosen).status_code)

    threads = [threading.Thread(target=press, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [201] * 4
    assert [verdict for verdict, _ in verdicts(in_process)] == ["agree", "agree", "done"]


# -- undo -----------------------------------------------------------------------------------------------------------


def test_undo_puts_the_study_back_as_it_was(in_process: Any, study: str) -> None:
    """Place, claim and open findings are as before; what was agreed with at Done is withdrawn, other feedback stands."""
    before = place(in_process, study)
    held = claim(in_process, study).json()
    say(in_process, study, **ONE)
    entry = entry_of(done(in_process, study, "agree", 2))
    assert holder(in_process, study) == ""
    back = undo(in_process, study, entry)
    assert (back.status_code, back.json()["mine"], back.json()["reader"]) == (200, True, "")
    assert place(in_process, study) == before
    again = claim(in_process, study, token=held["token"]).json()
    assert (again["mine"], again["since"]) == (True, held["since"])
    assert verdicts(in_process) == [
        ("agree", True), ("agree", False), ("done", False), ("withdrawn", True), ("reopened", True)
    ]  # fmt: skip
    assert [one["image"] for one in done(in_process, study).json()["findings"]] == [2]
    history = in_process.http.get(f"/api/v1/studies/{study}/locks", headers=in_process.headers("radiologist")).json()
    assert [(one["name"], one["ended"]) for one in history] == [("radiologist", "")]
    with in_process.database.transaction() as session:
        assert check_chain(feedback.chain_entries(session, in_process.key().site_id)).problems == []


def test_undo_happens_once(in_process: Any, study: str) -> None:
    """Sent again with its key nothing more is written; another press is told that the study is back already."""
    claim(in_process, study)
    entry = entry_of(done(in_process, study, "leave", 1, 2))
    barrier, found = threading.Barrier(4), []

    def press() -> None:
        barrier.wait()
        found.append(undo(in_process, study, entry, "toast").status_code)

    threads = [threading.Thread(target=press) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 4
    assert [verdict for verdict, _ in verdicts(in_process)] == ["done", "reopened"]
    again = undo(in_process, study, entry, "another")
    assert (again.status_code, again.json()["code"]) == (409, "undone-already")
    assert "radiologist put it back" in again.json()["detail"]


def test_undo_after_somebody_took_it(in_process: Any, study: str, other: str) -> None:
    """The study is back on the list, the other one keeps it, and the response names them."""
    claim(in_process, study)
    entry = entry_of(done(in_process, study, "leave", 1, 2))
    assert claim(in_process, study, other).json()["mine"]
    back = undo(in_process, study, entry).json()
    assert (back["mine"], back["reader"]) == (False, "dr-other")
    assert place(in_process, study)[0] is None
    assert holder(in_process, study) == "dr-other"


def test_undo_after_somebody_read_it(in_process: Any, study: str, other: str) -> None:
    """What a colleague has marked as read since stays read; the refusal says who did."""
    entry = entry_of(done(in_process, study, "leave", 1, 2))
    assert done(in_process, study, "leave", 1, 2, role=other).status_code == 201
    refused = undo(in_process, study, entry)
    assert (refused.status_code, refused.json()["code"]) == (409, "read-by-another")
    assert "dr-other" in refused.json()["detail"]
    assert place(in_process, study)[0] is not None


def test_a_program_gets_its_study_back_without_a_claim(in_process: Any, study: str) -> None:
    """Who held nothing holds nothing afterwards."""
    entry = entry_of(done(in_process, study, "leave", 1, 2))
    assert undo(in_process, study, entry).json() | {"notice": ""} == {
        "url": f"/view/{study}", "mine": False, "reader": "", "same_key": False, "notice": ""
    }  # fmt: skip
    assert holder(in_process, study) == ""


def test_a_claim_does_not_span_somebody_elses(in_process: Any, study: str, other: str) -> None:
    """After a colleague had a look in between, the reader's claim begins anew: the record shows no gap as theirs."""
    first = claim(in_process, study).json()
    entry = entry_of(done(in_process, study, "leave", 1, 2))
    theirs = claim(in_process, study, other).json()
    url = f"/api/v1/studies/{study}/lock/{theirs['token']}"
    assert in_process.http.delete(url, headers=in_process.headers(other)).status_code == 204
    assert undo(in_process, study, entry).json()["mine"]
    again = claim(in_process, study).json()
    assert again["mine"]
    assert again["since"] > first["since"]


@pytest.mark.parametrize("wrong", ["other", "agree", "elsewhere"])
def test_only_ones_own_done_is_undone(in_process: Any, study: str, other: str, wrong: str) -> None:
    """Neither a colleague's, nor another kind of entry, nor that of another study."""
    first = say(in_process, study, **ONE).json()["entries"][0]["id"]
    entry = entry_of(done(in_process, study, "leave", 2))
    second = add(in_process, 2)
    calls: dict[str, Any] = {
        "other": (study, entry, None, other), "agree": (study, first), "elsewhere": (second, entry)
    }  # fmt: skip
    assert undo(in_process, *calls[wrong]).status_code == 404
    assert place(in_process, study)[0] is not None


def test_done_again_after_a_late_image(in_process: Any, study: str) -> None:
    """An image that came after Done puts the study back without an entry; being done again is written then."""
    done(in_process, study, "leave", 1, 2)
    in_process.post({"late": study_file(1, 3)})
    assert place(in_process, study)[0] is None
    assert done(in_process, study, "leave", 1, 2).json()["read_at"] is not None
    assert [verdict for verdict, _ in verdicts(in_process)] == ["done", "done"]


# -- contradictions, withdrawals, the readers' word -----------------------------------------------------------------


def test_feedback_that_contradicts_itself_is_asked_about(in_process: Any, study: str) -> None:
    """It is refused with a code and its contradictions, and stored when it is meant."""
    mark = {"image": 1, "frame": 1, "x": 0.1, "y": 0.1, "width": 0.2, "height": 0.2}
    said = ONE | {"verdict": "disagree", "fracture": "no", "marks": [mark]}
    refused = say(in_process, study, **said)
    assert (refused.status_code, refused.json()["code"]) == (409, "contradictory")
    assert refused.json()["contradictions"] == ["box-without-fracture"]
    assert verdicts(in_process) == []
    assert say(in_process, study, **said, contradiction_meant=True).status_code == 201


def test_feedback_is_taken_back(in_process: Any, study: str) -> None:
    """A withdrawal leaves the finding without feedback: for Done, for the agreement, and in the training table."""
    (entry,) = say(in_process, study, **ONE).json()["entries"]
    taken = say(in_process, study, **ONE | {"verdict": "withdrawn", "supersedes": entry["id"]})
    assert taken.status_code == 201, taken.text
    assert [one["image"] for one in done(in_process, study).json()["findings"]] == [1, 2]
    found = in_process.http.get("/api/v1/agreement", headers=in_process.headers("radiologist")).json()
    assert found["verdicts"] == 0
    with in_process.database.transaction() as session:
        assert feedback.labelled_findings(session, in_process.key().site_id) == []
    assert say(in_process, study, **ONE | {"verdict": "withdrawn"}).status_code == 422
    assert say(in_process, study, **ONE).status_code == 201


def test_the_readers_word_heads_the_study(in_process: Any, study: str) -> None:
    """Once a reader disagrees, page, report, paper and API put their word first and the model's beside it."""

    def told() -> Any:
        return in_process.http.get(f"/api/v1/studies/{study}", headers=in_process.headers("radiologist")).json()

    say(in_process, study, **ONE | {"image": 2})
    assert told()["readers"] is None
    no = {"verdict": "disagree", "fracture": "no"}
    say(in_process, study, **ONE | no)
    assert (told()["readers"]["reading"], told()["readers"]["words"]) == (
        "fracture", "Fracture, hand, says radiologist."
    )  # fmt: skip
    response = say(in_process, study, **ONE | no | {"image": 2})
    assert told()["readers"] == response.json()["readers"]
    assert (told()["readers"]["reading"], told()["readers"]["words"]) == (
        "no-fracture", "No fracture, hand, says radiologist."
    )  # fmt: skip
    headers = in_process.headers("radiologist") | {"Accept": "text/html"}
    for path in (f"/view/{study}/report", f"/view/{study}"):
        page = in_process.http.get(path, headers=headers).text
        assert "No fracture, hand, says radiologist." in page, path
    report = in_process.http.get(f"/view/{study}/report", headers=headers).text
    assert report.index("No fracture, hand, says radiologist.") < report.index("Model: ")


def test_done_works_without_scripts(in_process: Any) -> None:
    """A plain form: positive images without feedback are asked about, then the choice is taken as from the page."""
    study = in_process.post({"a": study_file(1, 1), "b": study_file(1, 2)}).json()["studies"][0]["id"]
    analyse(in_process, study)
    mine = in_process.headers("radiologist")

    def press(**fields: str) -> Any:
        return in_process.http.post(f"/view/{study}/done", data=fields, headers=mine, follow_redirects=False)

    assert f'action="/view/{study}/done"' in in_process.http.get(f"/view/{study}", headers=mine).text
    assert press(images="two").status_code == press(images="2", choice="maybe").status_code == 400
    assert press(images="1").status_code == 409
    asked = press(images="2")
    assert (asked.status_code, "2 positive images" in asked.text) == (409, True)
    assert verdicts(in_process) == []
    hidden = html.unescape(re.findall(r'name="findings" value="([^"]+)"', asked.text)[0])
    done = press(images="2", choice="agree", findings=hidden)
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert [verdict for verdict, _ in verdicts(in_process)] == ["agree", "agree", "done"]
