"""Second looks, shadow bundles and retrospective alerts, on a real Postgres, as radiologists and administrators see them."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from shared.backlog import LookState
from shared.findings import AbstentionReason, Assessment, Finding, Heatmap, InstanceResult, Severity
from shared.repository import answers as ledger
from shared.repository import nights, reports, second_looks, work
from shared.repository.access import Role, Vault, add_key
from shared.repository.bundles import activate_bundle, add_bundle
from shared.study import Claim, Priority, StudyStatus
from shared.tables import AlertRow, AllowancesRow, AnswerRow, BundleRow, IdentityReadRow, KeyRow, SecondLookRow, SiteRow
from shared.worklist import ALLOWANCES
from tests.conftest import InProcessApi
from tests.ward import Ward

TWO = datetime(2026, 3, 2, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LEASE = timedelta(seconds=30)
FEEDING = nights.Feeding(100, 2.0, timedelta(seconds=8))
CHANCE = {Assessment.NEGATIVE: 0.01, Assessment.UNCLEAR: 0.4, Assessment.POSITIVE: 0.9, Assessment.ABSTAINED: 0.5}
MANIFEST = {"sensitive": 0.1, "specific": 0.6, "regions": ["hand"], "metrics": {"fracture_auroc": [0.9, 0.8, 0.95]}}


def finding(bundle: str, assessment: Assessment) -> Finding:
    severity = Severity.MILD if assessment in (Assessment.POSITIVE, Assessment.UNCLEAR) else Severity.NONE
    why = AbstentionReason.METAL if assessment is Assessment.ABSTAINED else None
    return Finding(
        1,
        bundle,
        "hand",
        0.9,
        CHANCE[assessment],
        assessment,
        severity,
        Heatmap(bundle.encode()[:1] * 4, 2, 2),
        abstention=why,
    )


class History:
    """Studies that bundle "a" has read, and what may happen to them afterwards."""

    def __init__(self, ward: Ward) -> None:
        self.ward = ward
        self.night = TWO
        with ward.database.transaction() as session:
            add_bundle(session, "b", "0" * 64, MANIFEST)
            session.execute(update(BundleRow).values(manifest=MANIFEST))

    def study(self, assessment: Assessment = Assessment.NEGATIVE, images: int = 1) -> UUID:
        study = self.ward.study(images)
        claim = self.ward.claim(study)
        self.ward.finish(claim, [InstanceResult(one.id, [finding("a", assessment)]) for one in claim.instances])
        return study

    def activate(self, bundle: str) -> None:
        with self.ward.database.transaction() as session:
            activate_bundle(session, bundle)

    def shadow(self, bundle: str = "b", **wanted: Any) -> None:
        with self.ward.database.transaction() as session:
            nights.begin_shadow(session, bundle, TWO, wanted.get("since"), wanted.get("most"))

    def begin_night(self, bundle: str = "b") -> Any:
        self.night += timedelta(days=1)
        with self.ward.database.transaction() as session:
            assert nights.begin_night(session, self.night.date(), self.night, bundle, 4.0, 1000) is not None
        return self.feed()

    def feed(self, after: timedelta = timedelta(0), heads: dict[Priority, datetime | None] | None = None) -> Any:
        with self.ward.database.transaction() as session:
            return nights.feed(session, FEEDING, heads or dict.fromkeys(Priority), self.night + after)

    def claim(
        self, study: UUID, bundle: str = "b", now: datetime | None = None, *, most: int = 4, alone: bool = False
    ) -> Any:
        with self.ward.database.transaction() as session:
            (claim,) = second_looks.claim(
                session, [study], bundle, now or self.night, LEASE, max_attempts=most, alone=alone
            )
        return claim

    def finish(self, claim: Claim, assessment: Assessment = Assessment.POSITIVE, bundle: str = "b") -> bool:
        results = [InstanceResult(one.id, [finding(bundle, assessment)]) for one in claim.instances]
        with self.ward.database.transaction() as session:
            (written,) = second_looks.finish(session, [work.Analysed(claim, results, bundle)], self.night)
        return written

    def look(self, study: UUID, assessment: Assessment = Assessment.POSITIVE, bundle: str = "b") -> bool:
        claim = self.claim(study, bundle)
        return claim is not None and self.finish(claim, assessment, bundle)

    def one(self, study: UUID, bundle: str = "b") -> SecondLookRow:
        with self.ward.database.transaction() as session:
            return session.get_one(SecondLookRow, (study, bundle))

    def site(self, session: Session) -> str:
        """The name of the ward's site."""
        return session.get_one(SiteRow, self.ward.site_id).name

    def alerts(self) -> list[AlertRow]:
        with self.ward.database.transaction() as session:
            return list(session.scalars(select(AlertRow).order_by(AlertRow.created_at)))


@pytest.fixture
def history(ward: Ward) -> History:
    return History(ward)


def test_new_findings_replace_the_summary_and_nothing_else(ward: Ward, history: History) -> None:
    """Until a second look is done its study is what it was; then the summary is the new bundle's, in one step with the
    findings, while a read study's due time, reader's mark, status and times stay, and the old findings too."""
    study = history.study()
    ward.set(study, read_at=TWO)
    before = ward.row(study)
    history.activate("b")
    assert [one.study_id for one in history.begin_night().looks] == [study]
    claim = history.claim(study)
    assert (claim.priority, claim.attempt) == (Priority.BACKLOG, 1)
    between = ward.row(study)
    assert all(getattr(between, name) == getattr(before, name) for name in before.__table__.columns.keys())
    assert history.finish(claim)
    after = ward.row(study)
    assert (after.assessment, after.severity, after.fracture_probability, after.bundle) == (
        "positive",
        "mild",
        0.9,
        "b",
    )
    kept = ("status", "due_at", "read_at", "analysed_at", "started_at", "attempts", "queue", "sent_at", "reason")
    assert all(getattr(after, name) == getattr(before, name) for name in kept)
    assert [one.bundle for one in ward.findings(study)] == ["a", "b"]
    look = history.one(study)
    assert (look.state, look.old_bundle, look.old_assessment, look.new_assessment) == (
        "done",
        "a",
        "negative",
        "positive",
    )


@pytest.mark.parametrize(
    ("old", "new", "minutes"),
    [
        (Assessment.NEGATIVE, Assessment.POSITIVE, ALLOWANCES["positive"][Priority.ROUTINE]),
        (Assessment.NEGATIVE, Assessment.UNCLEAR, ALLOWANCES["unclear"][Priority.ROUTINE]),
        (Assessment.POSITIVE, Assessment.NEGATIVE, ALLOWANCES["positive"][Priority.ROUTINE]),
    ],
)
def test_an_unread_study_moves_up_with_what_was_found(
    ward: Ward, history: History, old: Assessment, new: Assessment, minutes: int
) -> None:
    """What nobody has read yet is due as its graver finding wants it; a milder one pushes it back to no later place."""
    study = history.study(old)
    history.activate("b")
    history.begin_night()
    assert history.look(study, new)
    row = ward.row(study)
    assert (row.assessment, row.due_at) == (str(new), row.received_at + timedelta(minutes=minutes))


def test_an_unread_study_is_due_as_its_site_chose(ward: Ward, history: History) -> None:
    """It is the site's own table that gives the new place."""
    study = history.study()
    with ward.database.transaction() as session:
        key = KeyRow(id=uuid4(), site_id=ward.site_id, name="ada", role=Role.ADMIN, sha256="0" * 64)
        session.add(key)
        session.flush()
        minutes = {name: {str(priority): 7 for priority in Priority} for name in ALLOWANCES}
        session.add(AllowancesRow(site_id=ward.site_id, minutes=minutes, key_id=key.id))
    history.activate("b")
    history.begin_night()
    assert history.look(study)
    assert ward.row(study).due_at == ward.row(study).received_at + 7 * MINUTE


def test_results_count_once_and_from_the_holder_only(ward: Ward, history: History) -> None:
    """Of two workers that hold the same second look, one after the other, only the later one's result is taken."""
    study = history.study()
    history.activate("b")
    history.begin_night()
    first = history.claim(study)
    assert history.claim(study) is None, "somebody holds it"
    assert history.claim(study, now=history.night + MINUTE) is work.NOT_ALONE, "it may have killed its worker"
    second = history.claim(study, now=history.night + MINUTE, alone=True)
    assert (second.attempt, second.token != first.token) == (2, True)
    assert not history.finish(first, Assessment.NEGATIVE)
    assert history.finish(second)
    assert not history.finish(second, Assessment.NEGATIVE)
    assert ward.row(study).assessment == "positive"
    assert len(history.alerts()) == 1


def test_leases_are_kept_by_living_workers(ward: Ward, history: History) -> None:
    """A renewed lease is nobody else's, however long the second look takes."""
    study = history.study()
    history.activate("b")
    history.begin_night()
    claim = history.claim(study)
    with ward.database.transaction() as session:
        second_looks.renew(session, [claim.token], history.night + 10 * MINUTE)
    assert history.claim(study, now=history.night + 9 * MINUTE, alone=True) is None
    assert history.claim(study, now=history.night + 11 * MINUTE, alone=True).attempt == 2


def test_what_fails_heals_or_is_told(ward: Ward, history: History) -> None:
    """A second look is retried when its time has come, at most so often; then it has failed, says why, and its study is
    as before, and is tried again only when history is gone through anew."""
    study = history.study()
    history.activate("b")
    history.begin_night()
    for attempt in (1, 2):
        now = history.night + attempt * MINUTE
        claim = history.claim(study, now=now, most=2)
        assert history.claim(study, now=now) is None
        with ward.database.transaction() as session:
            second_looks.retry(session, claim, "the object is missing", now + MINUTE / 2, 2)
        assert history.claim(study, now=now) is None, "not yet"
    look = history.one(study)
    assert (look.state, look.reason, look.attempts) == ("failed", "the object is missing", 2)
    assert (ward.row(study).status, ward.row(study).bundle, ward.row(study).reason) == ("analysed", "a", "")
    history.feed(5 * MINUTE)
    assert [one.study_id for one in history.begin_night().looks] == [study]


def test_a_second_look_that_kills_workers_is_left_to_people(ward: Ward, history: History) -> None:
    """What ended its workers each time is not looked at again, night after night."""
    study = history.study()
    history.activate("b")
    history.begin_night()
    for minute in range(3):
        history.claim(study, now=history.night + minute * MINUTE, most=2, alone=True)
    assert "the worker died" in history.one(study).reason
    history.feed(5 * MINUTE)
    assert history.begin_night().looks == []


def test_an_image_that_cannot_be_read_again_changes_nothing(ward: Ward, history: History) -> None:
    """An image that had a finding keeps it, and gets no error, when a second look cannot read it."""
    study = history.study(images=2)
    history.activate("b")
    history.begin_night()
    claim = history.claim(study)
    results = [
        InstanceResult(claim.instances[0].id, [finding("b", Assessment.POSITIVE)]),
        InstanceResult(claim.instances[1].id, error_reason="truncated-pixels", error_text="cut short"),
    ]
    with ward.database.transaction() as session:
        second_looks.finish(session, [work.Analysed(claim, results, "b")], TWO)
    assert (history.one(study).state, "truncated-pixels" in history.one(study).reason) == ("failed", True)
    assert [one.error_reason for one in ward.instances(study)] == ["", ""]
    assert (ward.row(study).bundle, ward.row(study).failed_images) == ("a", 0)


@pytest.mark.parametrize("begun", [False, True])
def test_a_late_image_overtakes_a_second_look(ward: Ward, history: History, begun: bool) -> None:
    """An image that comes while a second look waits or runs is analysed with its study, by the active bundle, as ever."""
    number = 990_001 + begun
    study = ward.take_in([ward.file(number, 0)])
    claim = ward.claim(study)
    ward.finish(claim, [InstanceResult(claim.instances[0].id, [finding("a", Assessment.NEGATIVE)])])
    history.activate("b")
    history.begin_night()
    look: Any = history.claim(study) if begun else None
    assert ward.take_in([ward.file(number, 1)], now=TWO) == study
    if begun:
        assert history.finish(look)
    else:
        assert history.claim(study) is None
    assert (history.one(study).state, history.one(study).reason) == ("overtaken", "the study is analysed anew")
    assert (ward.row(study).status, ward.row(study).bundle, ward.row(study).assessment) == (
        StudyStatus.QUEUED,
        "a",
        "negative",
    )
    live = ward.claim(study, TWO, bundle="b")
    assert len(live.instances) == (1 if begun else 2), "what the second look found counts"
    results = [InstanceResult(one.id, [finding("b", Assessment.UNCLEAR)]) for one in live.instances]
    assert ward.finish(live, results, "b", TWO)
    row = ward.row(study)
    assert (row.status, row.bundle, row.assessment) == ("analysed", "b", "positive" if begun else "unclear")
    assert history.alerts() == [], "the study is in the worklist anew, and needs none"


# -- alerts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "alerted"),
    [
        (Assessment.NEGATIVE, Assessment.POSITIVE, True),
        (Assessment.NEGATIVE, Assessment.UNCLEAR, True),
        (Assessment.NEGATIVE, Assessment.ABSTAINED, False),
        (Assessment.NEGATIVE, Assessment.NEGATIVE, False),
        (Assessment.UNCLEAR, Assessment.POSITIVE, False),
        (Assessment.ABSTAINED, Assessment.POSITIVE, False),
        (Assessment.POSITIVE, Assessment.NEGATIVE, False),
    ],
)
def test_who_is_alerted_of(ward: Ward, history: History, old: Assessment, new: Assessment, alerted: bool) -> None:
    """An alert is raised where the old bundle said negative and the new one says unclear or positive, and nowhere else."""
    study = history.study(old)
    history.activate("b")
    history.begin_night()
    history.look(study, new)
    assert [one.study_id for one in history.alerts()] == [study] * alerted


def test_an_alert_is_shown_until_somebody_has_seen_it_and_never_again(
    ward: Ward, history: History, in_process: InProcessApi
) -> None:
    """It stands in the list until one radiologist of the site marks it; a second mark is told so, and neither another
    night nor another bundle that agrees brings it back."""
    study = history.study()
    other = history.study(Assessment.POSITIVE)
    history.activate("b")
    history.begin_night()
    history.look(study), history.look(other)
    http, mine = in_process.http, in_process.headers("radiologist")
    (alert,) = http.get("/alerts", headers=mine).json()["alerts"]
    assert (alert["study_id"], alert["old_assessment"], alert["new_assessment"]) == (str(study), "negative", "positive")
    assert http.get("/alerts", headers=mine).json()["alerts"] == [alert], "looking is not seeing"
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
    theirs = {"Authorization": "Bearer osk_elsewhere"}
    assert http.get("/alerts", headers=theirs).json()["alerts"] == []
    assert http.post(f"/alerts/{alert['id']}/seen", headers=theirs).status_code == 404
    assert http.post(f"/alerts/{uuid4()}/seen", headers=mine).status_code == 404
    with ThreadPoolExecutor(4) as pool:
        marks = list(pool.map(lambda _: http.post(f"/alerts/{alert['id']}/seen", headers=mine).status_code, range(4)))
    assert sorted(marks) == [204, 409, 409, 409]
    assert http.get("/alerts", headers=mine).json()["alerts"] == []
    (row,) = history.alerts()
    assert (row.seen_by, row.seen_at is not None) == (in_process.key("radiologist").id, True)
    with ward.database.transaction() as session:
        add_bundle(session, "c", "0" * 64, MANIFEST)
    history.activate("c")
    history.begin_night("c")
    history.look(study, Assessment.POSITIVE, "c")
    assert http.get("/alerts", headers=mine).json()["alerts"] == []
    assert ward.row(study).bundle == "c"


def test_alerts_come_in_pages_the_likeliest_first(history: History, in_process: InProcessApi) -> None:
    """Over all pages each alert stands once, by the new bundle's probability."""
    calls = [Assessment.POSITIVE, Assessment.UNCLEAR] * 3
    studies = [history.study() for _ in calls]
    history.activate("b")
    history.begin_night()
    for study, assessment in zip(studies, calls, strict=True):
        history.look(study, assessment)
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = in_process.http.get("/alerts", params={"limit": 2, **after}, headers=in_process.headers()).json()
        found += page["alerts"]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert [one["new_assessment"] for one in found] == ["positive"] * 3 + ["unclear"] * 3
    assert {one["study_id"] for one in found} == set(map(str, studies))
    foreign = in_process.http.get("/alerts", params={"after": "zebra"}, headers=in_process.headers())
    assert foreign.status_code == 400


def test_the_page_marks_and_audits(history: History, in_process: InProcessApi) -> None:
    """The page shows alerts with the patients' names, which leaves an audit, and its button takes one off."""
    history.ward.vault = Vault(in_process.settings.identity_key.get_secret_value())
    study = history.study()
    history.activate("b")
    history.begin_night()
    history.look(study)
    mine = in_process.headers("radiologist")
    page = in_process.http.get("/second-looks", headers=mine)
    assert page.status_code == 200
    assert f"/view/{study}" in page.text
    (action,) = re.findall(r'action="(/second-looks/[^"]+/seen)"', page.text)
    for _ in range(2):
        done = in_process.http.post(action, headers=mine, follow_redirects=False)
        assert (done.status_code, done.headers["location"]) == (303, "/second-looks")
    assert "Nothing to look at again" in in_process.http.get("/second-looks", headers=mine).text
    with in_process.database.transaction() as session:
        assert session.scalars(select(IdentityReadRow.study_id)).all() == [study]


def revised(history: History, api: InProcessApi, read: int, unread: int) -> tuple[list[UUID], list[UUID]]:
    """Studies whose finding was revised: so many that had been read before, and so many that had not."""
    history.ward.vault = Vault(api.settings.identity_key.get_secret_value())
    studies = [history.study() for _ in range(read + unread)]
    if read:
        history.ward.set(*studies[:read], read_at=TWO)
    history.activate("b")
    history.begin_night()
    for study in studies:
        history.look(study)
    return studies[:read], studies[read:]


def test_revised_findings_of_read_studies_stand_apart(history: History, in_process: InProcessApi) -> None:
    """The API and the page tell those of studies that were read, to which nobody comes back, from the unread ones."""
    read, unread = revised(history, in_process, 2, 1)
    mine = in_process.headers("radiologist")

    def studies(**query: Any) -> set[str]:
        found = in_process.http.get("/alerts", params=query, headers=mine).json()["alerts"]
        assert all((one["read_at"] is not None) == (UUID(one["study_id"]) in read) for one in found)
        assert all(one["earlier_at"] for one in found)
        return {one["study_id"] for one in found}

    assert studies() == {str(one) for one in read + unread}
    assert studies(read=True) == {str(one) for one in read}
    assert studies(read=False) == {str(one) for one in unread}
    page = in_process.http.get("/second-looks", headers=mine).text
    first, second = page.index('id="revised-read"'), page.index('id="revised-unread"')
    assert first < second
    assert all(first < page.index(f"/view/{one}") < second for one in read)
    assert page.index(f"/view/{unread[0]}") > second


def test_every_page_counts_what_waits_to_be_seen(history: History, in_process: InProcessApi) -> None:
    """The navigation of each page has the count of this site's revised findings, for those who may open them."""
    (study,), _ = revised(history, in_process, 1, 0)
    mine, admin = in_process.headers("radiologist"), in_process.headers("admin")
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.RADIOLOGIST, "osk_elsewhere")
    other = {"Authorization": "Bearer osk_elsewhere"}
    paths = ["/", "/second-looks", "/agreement.html", f"/view/{study}", f"/studies/{study}/report.html"]
    count = re.compile(r'id="revised-count" class="pill" data-count="(\d+)"')

    def counted(path: str, headers: dict[str, str]) -> list[str]:
        return count.findall(in_process.http.get(path, headers=headers).text)

    for path, headers in [*((path, mine) for path in paths), ("/admin", admin)]:
        assert counted(path, headers) == ["1"], path
    assert counted("/", other) == ["0"]
    told = in_process.http.get("/alerts/count", headers=mine).json()
    assert (told["unseen"], told["at_least"]) == (1, False)
    assert in_process.http.get("/alerts/count", headers=other).json()["unseen"] == 0
    assert in_process.http.get("/alerts/count", headers=in_process.headers("submitter")).status_code == 403


def test_a_study_says_that_it_was_revised_until_somebody_has_seen_it(
    history: History, in_process: InProcessApi
) -> None:
    """Its page tells both assessments, both models and when; Seen there is kept in the ledger with who and when."""
    (study,), _ = revised(history, in_process, 1, 0)
    mine = in_process.headers("radiologist")

    def page() -> str:
        return " ".join(in_process.http.get(f"/view/{study}", headers=mine).text.split())

    text = page().partition('class="revision"')[2].partition("</section>")[0]
    for words in (
        "Revised finding: positive",
        "b found this",
        "a had said",
        "<strong>negative</strong>",
        "was marked as read",
    ):
        assert words in text, words
    version = in_process.http.get(f"/view/{study}", headers=mine).headers["etag"]
    (action,) = re.findall(r'action="(/view/[^"]+/seen/[^"]+)"', text)
    for _ in range(2):  # pressed again, or by a colleague, it is the same
        done = in_process.http.post(action, headers=mine, follow_redirects=False)
        assert (done.status_code, done.headers["location"]) == (303, f"/view/{study}")
    assert 'class="revision"' not in page()
    assert "Seen by radiologist" in page()
    assert in_process.http.get(f"/view/{study}", headers=mine).headers["etag"] != version
    told = in_process.http.get(f"/studies/{study}/answers", headers=mine).json()
    assert [(one["verdict"], one["bundle"], one["reader"]) for one in told["entries"]] == [("seen", "b", "radiologist")]
    assert told["read_at"] is not None  # nothing else changed
    report = in_process.http.get(f"/studies/{study}/report.html", headers=mine).text
    assert "radiologist has seen the revised finding of b" in report
    with in_process.database.transaction() as session:
        assert ledger.check(session, history.site(session)).problems == []


def test_seen_at_once_is_seen_by_one(history: History, in_process: InProcessApi) -> None:
    """Two readers press at the same moment: one entry; the other one is told."""
    revised(history, in_process, 1, 0)
    (alert,) = in_process.http.get("/alerts", headers=in_process.headers("radiologist")).json()["alerts"]
    url = f"/alerts/{alert['id']}/seen"
    with ThreadPoolExecutor(4) as pool:
        statuses = list(
            pool.map(
                lambda role: in_process.http.post(url, headers=in_process.headers(role)).status_code,
                ["radiologist", "admin"] * 2,
            )
        )
    assert sorted(statuses) == [204, 409, 409, 409]
    with in_process.database.transaction() as session:
        assert [row.verdict for row in session.scalars(select(AnswerRow))] == ["seen"]


# -- the report -----------------------------------------------------------------------------------------------------


def test_the_report_counts_what_changed_and_names_who_turned_positive(
    history: History, in_process: InProcessApi
) -> None:
    """A night's report has kinds by outcome, old class x new class, and by name who turned positive."""
    told = [
        (Assessment.NEGATIVE, Assessment.NEGATIVE), (Assessment.NEGATIVE, Assessment.NEGATIVE), (Assessment.NEGATIVE, Assessment.POSITIVE), (Assessment.POSITIVE, Assessment.NEGATIVE),
        (Assessment.ABSTAINED, Assessment.UNCLEAR),
    ]  # fmt: skip
    studies = [history.study(old) for old, _ in told]
    history.activate("b")
    history.begin_night()
    admin = in_process.headers()
    night = f"/backlog/{history.night.date()}"
    running = in_process.http.get(night, headers=admin).json()
    assert running["kinds"] == {"outdated": {"queued": 5}}
    for study, (_, new) in zip(studies, told, strict=True):
        history.look(study, new)
    history.feed(MINUTE)
    report = in_process.http.get(night, headers=admin).json()
    assert report["run"]["ended_by"] == "history came to its end"
    assert report["kinds"] == {"outdated": {"done": 5}}
    assert report["changes"] == {
        "negative": {"negative": 2, "positive": 1}, "positive": {"negative": 1}, "abstained": {"unclear": 1}
    }  # fmt: skip
    assert (report["newly_positive"], report["newly_negative"], report["from_abstained"]) == (1, 1, 1)
    assert [one["study_id"] for one in report["alerts"]] == [str(studies[2])]
    assert report["from_abstained_studies"] == [str(studies[4])]
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
    foreign = in_process.http.get(night, headers={"Authorization": "Bearer osk_elsewhere"}).json()
    assert (foreign["alerts"], foreign["from_abstained_studies"], foreign["newly_positive"]) == ([], [], 1)
    assert in_process.http.get("/backlog/2020-01-01", headers=admin).status_code == 404
    assert in_process.http.get("/backlog/tonight", headers=admin).status_code == 422


def test_a_night_under_way_says_when_it_will_be_through(ward: Ward, history: History, in_process: InProcessApi) -> None:
    """While a night runs, the list of nights has its forecast: done, left, and when."""
    studies = [history.study() for _ in range(4)]
    history.activate("b")
    history.begin_night()
    history.look(studies[0])
    with ward.database.transaction() as session:
        (run,) = reports.runs(session)
        told = reports.forecast_of(session, run, history.night + 10 * MINUTE)
    assert told is not None
    assert (told.done, told.left, told.at_least, told.nights) == (1, 3, False, 1)
    assert told.finish_at == history.night + 40 * MINUTE
    (shown,) = in_process.http.get("/backlog", headers=in_process.headers()).json()
    assert (shown["forecast"]["done"], shown["forecast"]["left"]) == (1, 3)


# -- shadow mode ----------------------------------------------------------------------------------------------------


def answers(api: InProcessApi, studies: Sequence[UUID]) -> Any:
    """Everything that a radiologist is told."""
    paths = ["/worklist", "/alerts", "/", "/second-looks", "/worklist?assessment=negative", "/worklist?status=analysed"]
    for study in studies:
        paths += [f"/studies/{study}", f"/studies/{study}/heatmap.png", f"/view/{study}"]
    got = {path: api.http.get(path, headers=api.headers("radiologist")) for path in paths}
    assert {path for path, answer in got.items() if answer.status_code != 200} == set()
    ages = re.compile(rb'(<time[^>]*data-form="age">)[^<]*')  # time passes
    return {path: ages.sub(rb"\1", answer.content) for path, answer in got.items()}


def test_a_shadow_changes_no_answer(ward: Ward, history: History, in_process: InProcessApi) -> None:
    """While a bundle looks at history as a shadow, when it is done, and when it is retired, every answer of the API and
    every page is, byte for byte, what it was; even of an image that the study's own bundle has not seen."""
    ward.vault = Vault(in_process.settings.identity_key.get_secret_value())
    studies = [
        history.study(assessment) for assessment in (Assessment.NEGATIVE, Assessment.POSITIVE, Assessment.ABSTAINED)
    ]
    waiting = ward.study()
    before = answers(in_process, studies)
    history.shadow()
    assert {one.study_id for one in history.feed().looks} == set(studies)
    assert answers(in_process, studies) == before
    for study in studies:
        claim = history.claim(study)
        assert answers(in_process, studies) == before
        assert history.finish(claim)
    assert answers(in_process, studies) == before
    history.feed(MINUTE)
    assert len(ward.findings(studies[0])) == 2
    with ward.database.transaction() as session:
        (run,) = reports.runs(session)
        assert run.report is not None
        assert (run.ended_by, run.night, run.report["newly_positive"]) == ("history came to its end", None, 1)
    admin = in_process.headers()
    assert in_process.http.post("/bundles/b/retire", headers=admin).json()["state"] == "available"
    assert answers(in_process, studies) == before
    assert ward.claim(waiting, TWO) is not None
    # a frame of which only the shadow has a finding
    ward.set(studies[0], bundle="gone")
    with ward.database.transaction() as session:
        session.connection().exec_driver_sql("DELETE FROM findings WHERE bundle = 'a'")
    assert in_process.http.get(f"/studies/{studies[0]}/heatmap.png", headers=admin).status_code == 404


def test_compare_and_promote(ward: Ward, history: History, in_process: InProcessApi) -> None:
    """A shadow's findings are compared, study by study; after its promotion the next night puts them in place without a
    message to any worker, raises the alerts, and the comparison still stands."""
    told = [
        (Assessment.NEGATIVE, Assessment.POSITIVE),
        (Assessment.POSITIVE, Assessment.NEGATIVE),
        (Assessment.NEGATIVE, Assessment.NEGATIVE),
        (Assessment.NEGATIVE, Assessment.ABSTAINED),
    ]
    studies = [history.study(old) for old, _ in told]
    unseen = history.study()
    http, admin = in_process.http, in_process.headers()
    shown = http.post("/bundles/b/shadow", json={"limit": 9}, headers=admin).json()
    assert (shown["state"], shown["run"]["kind"], shown["metrics"]) == ("shadow", "shadow", MANIFEST["metrics"])
    assert http.post("/bundles/b/shadow", headers=admin).status_code == 409
    assert http.post("/bundles/a/shadow", headers=admin).status_code == 409
    assert http.post("/bundles/none/shadow", headers=admin).status_code == 404
    history.night = datetime.now(UTC)
    history.feed()
    for study, (_, new) in zip(studies, told, strict=True):
        assert history.look(study, new)
    compared = http.get("/bundles/a/compare/b", headers=admin).json()
    assert compared["all"]["studies"] == 4
    assert compared["all"]["changes"] == {
        "negative": {"positive": 1, "negative": 1, "abstained": 1},
        "positive": {"negative": 1},
    }
    assert compared["all"]["abstention_change"] == 1
    assert compared["all"]["probability_change"] == pytest.approx((0.89 - 0.89 + 0 + 0.49) / 4)
    assert compared["newly_positive_studies"] == [str(studies[0])]
    assert compared["newly_negative_studies"] == [str(studies[1])]
    assert compared["regions"] == {"hand": compared["all"]}
    assert http.get("/bundles/a/compare/none", headers=admin).status_code == 404
    assert history.alerts() == []

    assert http.post("/bundles/b/activate", headers=admin).json()["state"] == "active"
    history.feed(MINUTE)
    assert {one["name"]: one["state"] for one in http.get("/bundles", headers=admin).json()} == {
        "a": "available", "b": "active"
    }  # fmt: skip
    portion = history.begin_night()
    assert [one.study_id for one in portion.looks] == [unseen], "the others need no worker"
    assert {ward.row(study).bundle for study in studies} == {"b"}
    assert [ward.row(study).assessment for study in studies] == [new for _, new in told]
    assert [one.study_id for one in history.alerts()] == [studies[0]]
    with ward.database.transaction() as session:
        night, _ = reports.runs(session)
        assert (night.outdated, night.switched) == (5, 4)
    assert http.get("/bundles/a/compare/b", headers=admin).json() == compared
    report = http.get(f"/studies/{studies[0]}", headers=admin).json()
    assert report["instances"][0]["findings"][0]["bundle"] == "b"


def test_a_shadow_takes_room_that_no_night_needs(ward: Ward, history: History) -> None:
    """While a night is being fed a shadow is not; once the night's history is out, it goes on."""
    studies = [history.study() for _ in range(4)]
    with ward.database.transaction() as session:
        add_bundle(session, "c", "0" * 64, MANIFEST)
    history.activate("b")
    history.shadow("c")
    few = nights.Feeding(2, 2.0, timedelta(seconds=8))
    with ward.database.transaction() as session:
        nights.begin_night(session, TWO.date(), TWO, "b", 4.0, 1000)
    for left in (2, 0):
        with ward.database.transaction() as session:
            portion = nights.feed(session, few, dict.fromkeys(Priority), TWO)
        assert portion is not None
        assert {one.bundle for one in portion.looks} == {"b"}
        for one in portion.looks:
            assert history.look(one.study_id)
        assert ward.count(bundle="a") == left
    with ward.database.transaction() as session:
        portion = nights.feed(session, few, dict.fromkeys(Priority), TWO)
    assert portion is not None
    assert {one.bundle for one in portion.looks} == {"c"}
    assert {one.study_id for one in portion.looks} < set(studies)


def test_a_retired_shadow_stops_and_may_begin_again(ward: Ward, history: History) -> None:
    """What is out is taken back; begun anew, it looks at what it has not seen, and at nothing twice."""
    studies = [history.study() for _ in range(3)]
    history.shadow()
    history.feed()
    history.look(studies[0])
    with ward.database.transaction() as session:
        nights.retire(session, "b", TWO)
    assert [history.claim(study) for study in studies] == [None] * 3
    assert history.feed().looks == []
    history.shadow()
    assert {one.study_id for one in history.feed().looks} == set(studies[1:])
    assert history.one(studies[0]).state == LookState.DONE


def test_how_much_of_history_a_shadow_looks_at(ward: Ward, history: History) -> None:
    """It is bounded by a day of arrival and by a number, newest day first."""
    studies = [history.study() for _ in range(4)]
    for age, study in enumerate(studies):
        ward.set(study, received_at=TWO - timedelta(days=age))
    history.shadow(since=(TWO - timedelta(days=2)).date(), most=2)
    assert [one.study_id for one in history.feed().looks] == studies[:2]
    for study in studies[:2]:
        history.look(study)
    history.feed(MINUTE)
    history.shadow(since=(TWO - timedelta(days=2)).date())
    assert [one.study_id for one in history.feed().looks] == [studies[2]]
