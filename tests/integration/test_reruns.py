"""Reruns, shadow bundles and revised findings, on a real Postgres, as radiologists and administrators see them."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from shared.db.tables import (
    AnalysisRow,
    BundleRow,
    FeedbackRow,
    IdentityReadRow,
    KeyRow,
    RevisedFindingRow,
    SiteRow,
    StudyRow,
    TurnaroundTargetsRow,
)
from shared.domain.analysis import AnalysisState, Claim
from shared.domain.feedback import check_chain
from shared.domain.findings import AbstentionReason, Assessment, Extent, Finding, Heatmap, InstanceResult
from shared.domain.security import Role
from shared.domain.study import Priority, StudyStatus
from shared.domain.worklist import TURNAROUND_TARGETS
from shared.errors import Cause, Reason
from shared.queries import analyses, backfill, backfill_reports, feedback
from shared.queries.access import Vault, add_key
from shared.queries.models import activate_bundle, add_bundle
from tests.conftest import InProcessApi
from tests.hospital import Hospital

TWO = datetime(2026, 3, 2, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LEASE = timedelta(seconds=30)
PACING = backfill.Pacing(100, 2.0, timedelta(seconds=8))
CHANCE = {Assessment.NEGATIVE: 0.01, Assessment.UNCLEAR: 0.4, Assessment.POSITIVE: 0.9, Assessment.ABSTAINED: 0.5}
MANIFEST = {"sensitive": 0.1, "specific": 0.6, "regions": ["hand"], "metrics": {"fracture_auroc": [0.9, 0.8, 0.95]}}


def finding(bundle: str, assessment: Assessment, score: float | None = None) -> Finding:
    severity = Extent.MILD if assessment in (Assessment.POSITIVE, Assessment.UNCLEAR) else Extent.NONE
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
        score=score,
        abstention=why,
    )


class History:
    """Studies that bundle "a" has read, and what may happen to them afterwards."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital = hospital
        self.now = TWO
        with hospital.database.transaction() as session:
            add_bundle(session, "b", "0" * 64, MANIFEST)
            session.execute(update(BundleRow).values(manifest=MANIFEST))

    def study(self, assessment: Assessment = Assessment.NEGATIVE, images: int = 1) -> UUID:
        study = self.hospital.study(images)
        claim = self.hospital.claim(study)
        self.hospital.finish(claim, [InstanceResult(one.id, [finding("a", assessment)]) for one in claim.instances])
        return study

    def activate(self, bundle: str) -> None:
        with self.hospital.database.transaction() as session:
            activate_bundle(session, bundle)

    def shadow(self, bundle: str = "b", **wanted: Any) -> None:
        with self.hospital.database.transaction() as session:
            backfill.open_shadow_run(session, bundle, TWO, wanted.get("since"), wanted.get("most"))

    def begin_backfill(self, bundle: str = "b") -> Any:
        self.now += timedelta(days=1)
        with self.hospital.database.transaction() as session:
            assert backfill.open_backfill_run(session, self.now.date(), self.now, bundle, 4.0, 1000) is not None
        return self.next_batch()

    def next_batch(self, after: timedelta = timedelta(0), oldest: dict[Priority, datetime | None] | None = None) -> Any:
        with self.hospital.database.transaction() as session:
            return backfill.next_batch(session, PACING, oldest or dict.fromkeys(Priority), self.now + after)

    def claim(
        self, study: UUID, bundle: str = "b", now: datetime | None = None, *, most: int = 4, alone: bool = False
    ) -> Any:
        with self.hospital.database.transaction() as session:
            (claim,) = analyses.claim(
                session, [self.one(study, bundle).id], "", now or self.now, LEASE, max_attempts=most, alone=alone
            )
        return claim

    def finish(
        self,
        claim: Claim,
        assessment: Assessment = Assessment.POSITIVE,
        bundle: str = "b",
        score: float | None = None,
    ) -> bool:
        results = [InstanceResult(one.id, [finding(bundle, assessment, score)]) for one in claim.instances]
        with self.hospital.database.transaction() as session:
            (written,) = analyses.finish(session, [analyses.AnalysisResult(claim, results)], self.now)
        assert isinstance(written, bool)
        return written

    def look(self, study: UUID, assessment: Assessment = Assessment.POSITIVE, bundle: str = "b") -> bool:
        claim = self.claim(study, bundle)
        return claim is not None and self.finish(claim, assessment, bundle)

    def one(self, study: UUID, bundle: str = "b") -> AnalysisRow:
        return self.hospital.rerun(study, bundle)

    def model(self, one: analyses.DueMessage) -> str | None:
        """Whose analysis a message asks for."""
        with self.hospital.database.transaction() as session:
            return session.get_one(AnalysisRow, one.analysis_id).model

    def site(self, session: Session) -> str:
        """The name of the site."""
        return session.get_one(SiteRow, self.hospital.site_id).name

    def revised_findings(self) -> list[RevisedFindingRow]:
        with self.hospital.database.transaction() as session:
            return list(session.scalars(select(RevisedFindingRow).order_by(RevisedFindingRow.created_at)))


@pytest.fixture
def history(hospital: Hospital) -> History:
    return History(hospital)


def test_a_locked_study_holds_up_no_run_over_history(hospital: Hospital, history: History) -> None:
    """Batches, claim and results pass by a study that another transaction has locked; the next run comes to it."""
    first, second, third = (history.study() for _ in range(3))
    history.activate("b")
    with hospital.database.transaction() as holder:
        holder.get_one(StudyRow, first, with_for_update=True)
        assert {one.study_id for one in history.begin_backfill().to_send} == {second, third}
    claims = {study: history.claim(study) for study in (second, third)}
    done = [
        analyses.AnalysisResult(
            claim, [InstanceResult(one.id, [finding("b", Assessment.POSITIVE)]) for one in claim.instances]
        )
        for claim in claims.values()
    ]
    with hospital.database.transaction() as holder:
        holder.get_one(StudyRow, second, with_for_update=True)
        with hospital.database.transaction() as session:
            assert analyses.finish(session, done, history.now) == [analyses.LOCKED, True]
    assert history.finish(claims[second])
    assert {study: hospital.row(study).bundle for study in claims} == {second: "b", third: "b"}
    assert [one.study_id for one in history.begin_backfill().to_send] == [first]
    with hospital.database.transaction() as holder:
        holder.get_one(AnalysisRow, history.one(first).id, with_for_update=True)
        assert history.claim(first) is analyses.LOCKED
        history.next_batch()
    assert history.look(first)


def test_new_findings_replace_the_summary_and_nothing_else(hospital: Hospital, history: History) -> None:
    """Until a rerun is done its study is what it was; then the summary is the new bundle's, in one step with the
    findings, while a read study's due time, reader's mark, status and times stay, and the old findings too."""
    study = history.study()
    hospital.set(study, read_at=TWO)
    before = hospital.row(study)
    history.activate("b")
    assert [one.study_id for one in history.begin_backfill().to_send] == [study]
    claim = history.claim(study)
    assert (claim.priority, claim.attempt) == (Priority.BACKLOG, 1)
    between = hospital.row(study)
    assert all(getattr(between, name) == getattr(before, name) for name in before.__table__.columns.keys())
    assert history.finish(claim)
    after = hospital.row(study)
    assert (after.assessment, after.severity, after.fracture_probability, after.bundle) == (
        "positive",
        "mild",
        0.9,
        "b",
    )
    assert (before.revised_at is None, after.revised_at is None) == (True, False)  # what FHIR's clients ask for
    kept = ("status", "due_at", "read_at", "analysed_at", "started_at", "attempts", "queue", "sent_at", "reason")
    assert all(getattr(after, name) == getattr(before, name) for name in kept)
    assert [one.bundle for one in hospital.findings(study)] == ["a", "b"]
    look = history.one(study)
    assert (look.state, look.old_model, look.old_assessment, look.assessment) == (
        "done",
        "a",
        "negative",
        "positive",
    )


@pytest.mark.parametrize(
    ("old", "new", "minutes"),
    [
        (Assessment.NEGATIVE, Assessment.POSITIVE, TURNAROUND_TARGETS["positive"][Priority.ROUTINE]),
        (Assessment.NEGATIVE, Assessment.UNCLEAR, TURNAROUND_TARGETS["unclear"][Priority.ROUTINE]),
        (Assessment.POSITIVE, Assessment.NEGATIVE, TURNAROUND_TARGETS["positive"][Priority.ROUTINE]),
    ],
)
def test_an_unread_study_moves_up_with_what_was_found(
    hospital: Hospital, history: History, old: Assessment, new: Assessment, minutes: int
) -> None:
    """What nobody has read yet is due as its graver finding wants it; a milder one pushes it back to no later place."""
    study = history.study(old)
    history.activate("b")
    history.begin_backfill()
    assert history.look(study, new)
    row = hospital.row(study)
    assert (row.assessment, row.due_at) == (str(new), row.received_at + timedelta(minutes=minutes))


def test_an_unread_study_is_due_as_its_site_chose(hospital: Hospital, history: History) -> None:
    """It is the site's own table that gives the new place."""
    study = history.study()
    with hospital.database.transaction() as session:
        key = KeyRow(id=uuid4(), site_id=hospital.site_id, name="ada", role=Role.ADMIN, sha256="0" * 64)
        session.add(key)
        session.flush()
        minutes = {name: {str(priority): 7 for priority in Priority} for name in TURNAROUND_TARGETS}
        session.add(TurnaroundTargetsRow(site_id=hospital.site_id, minutes=minutes, key_id=key.id))
    history.activate("b")
    history.begin_backfill()
    assert history.look(study)
    assert hospital.row(study).due_at == hospital.row(study).received_at + 7 * MINUTE


def test_results_count_once_and_from_the_holder_only(hospital: Hospital, history: History) -> None:
    """Of two workers that hold the same rerun, one after the other, only the later one's result is taken."""
    study = history.study()
    history.activate("b")
    history.begin_backfill()
    first = history.claim(study)
    assert history.claim(study) is None, "somebody holds it"
    assert history.claim(study, now=history.now + MINUTE) is analyses.NOT_ALONE, "it may have killed its worker"
    second = history.claim(study, now=history.now + MINUTE, alone=True)
    assert (second.attempt, second.token != first.token) == (2, True)
    assert not history.finish(first, Assessment.NEGATIVE)
    assert history.finish(second)
    assert not history.finish(second, Assessment.NEGATIVE)
    assert hospital.row(study).assessment == "positive"
    assert len(history.revised_findings()) == 1


def test_leases_are_kept_by_living_workers(hospital: Hospital, history: History) -> None:
    """A renewed lease is nobody else's, however long the rerun takes."""
    study = history.study()
    history.activate("b")
    history.begin_backfill()
    claim = history.claim(study)
    with hospital.database.transaction() as session:
        analyses.renew_leases(session, [claim.token], history.now + 10 * MINUTE)
    assert history.claim(study, now=history.now + 9 * MINUTE, alone=True) is None
    assert history.claim(study, now=history.now + 11 * MINUTE, alone=True).attempt == 2


def test_what_fails_heals_or_is_told(hospital: Hospital, history: History) -> None:
    """A rerun is retried when its time has come, at most so often; then it has failed, says why, and its study is
    as before, and is tried again only when history is gone through anew."""
    study = history.study()
    history.activate("b")
    history.begin_backfill()
    for attempt in (1, 2):
        now = history.now + attempt * MINUTE
        claim = history.claim(study, now=now, most=2)
        assert history.claim(study, now=now) is None
        with hospital.database.transaction() as session:
            analyses.retry(session, claim, Cause(Reason.OBJECT_MISSING), now + MINUTE / 2, 2)
        assert history.claim(study, now=now) is None, "not yet"
    look = history.one(study)
    assert (look.state, look.reason, look.attempts) == ("failed", "object-missing", 2)
    assert (hospital.row(study).status, hospital.row(study).bundle, hospital.row(study).reason) == ("analysed", "a", "")
    history.next_batch(5 * MINUTE)
    assert [one.study_id for one in history.begin_backfill().to_send] == [study]


def test_a_rerun_that_kills_workers_is_left_to_people(hospital: Hospital, history: History) -> None:
    """What ended its workers each time is not looked at again, night after night."""
    study = history.study()
    history.activate("b")
    history.begin_backfill()
    for minute in range(3):
        history.claim(study, now=history.now + minute * MINUTE, most=2, alone=True)
    assert history.one(study).reason == Reason.WORKER_DIED
    history.next_batch(5 * MINUTE)
    assert history.begin_backfill().to_send == []


def test_an_image_that_cannot_be_read_again_changes_nothing(hospital: Hospital, history: History) -> None:
    """An image that had a finding keeps it, and gets no error, when a rerun cannot read it."""
    study = history.study(images=2)
    history.activate("b")
    history.begin_backfill()
    claim = history.claim(study)
    results = [
        InstanceResult(claim.instances[0].id, [finding("b", Assessment.POSITIVE)]),
        InstanceResult(claim.instances[1].id, error_reason=Reason.TRUNCATED_PIXELS),
    ]
    with hospital.database.transaction() as session:
        analyses.finish(session, [analyses.AnalysisResult(claim, results)], TWO)
    look = history.one(study)
    assert (look.state, look.reason, look.reason_detail) == ("failed", "image-unread", "truncated-pixels")
    assert [one.error_reason for one in hospital.instances(study)] == ["", ""]
    assert (hospital.row(study).bundle, hospital.row(study).failed_images) == ("a", 0)


@pytest.mark.parametrize("begun", [False, True])
def test_a_late_image_overtakes_a_rerun(hospital: Hospital, history: History, begun: bool) -> None:
    """An image that comes while a rerun waits or runs is analysed with its study, by the active bundle, as ever."""
    number = 990_001 + begun
    study = hospital.take_in([hospital.file(number, 0)])
    claim = hospital.claim(study)
    hospital.finish(claim, [InstanceResult(claim.instances[0].id, [finding("a", Assessment.NEGATIVE)])])
    history.activate("b")
    history.begin_backfill()
    look: Any = history.claim(study) if begun else None
    assert hospital.take_in([hospital.file(number, 1)], now=TWO) == study
    if begun:
        assert history.finish(look)
    else:
        assert history.claim(study) is None
    assert (history.one(study).state, history.one(study).reason) == ("superseded", "analysed-anew")
    assert (hospital.row(study).status, hospital.row(study).bundle, hospital.row(study).assessment) == (
        StudyStatus.QUEUED,
        "a",
        "negative",
    )
    live = hospital.claim(study, TWO, bundle="b")
    assert len(live.instances) == (1 if begun else 2), "what the rerun found counts"
    results = [InstanceResult(one.id, [finding("b", Assessment.UNCLEAR)]) for one in live.instances]
    assert hospital.finish(live, results, "b", TWO)
    row = hospital.row(study)
    assert (row.status, row.bundle, row.assessment) == ("analysed", "b", "positive" if begun else "unclear")
    assert history.revised_findings() == [], "the study is in the worklist anew, and needs none"


# -- revised findings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "is_revised"), [(None, False), (2.9, False), (3.0, True), (9.1, True)])
def test_an_abstention_with_a_high_raw_score_is_revised(
    hospital: Hospital, history: History, score: float | None, is_revised: bool
) -> None:
    """Where the old bundle said negative: an abstention that ranks as unclear or positive contradicts it."""
    study = history.study(Assessment.NEGATIVE)
    history.activate("b")
    history.begin_backfill()
    history.finish(history.claim(study), Assessment.ABSTAINED, score=score)
    assert [(one.study_id, one.new_assessment) for one in history.revised_findings()] == [
        (study, "abstained")
    ] * is_revised


@pytest.mark.parametrize(
    ("old", "new", "is_revised"),
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
def test_what_is_revised(
    hospital: Hospital, history: History, old: Assessment, new: Assessment, is_revised: bool
) -> None:
    """Where the old bundle said negative and the new one says unclear or positive; no score, no other abstention."""
    study = history.study(old)
    history.activate("b")
    history.begin_backfill()
    history.look(study, new)
    assert [one.study_id for one in history.revised_findings()] == [study] * is_revised


def test_a_revised_finding_is_shown_until_somebody_has_seen_it_and_never_again(
    hospital: Hospital, history: History, in_process: InProcessApi
) -> None:
    """It stands in the list until one radiologist of the site marks it; a second mark is told so, and neither another
    run nor another bundle that agrees brings it back."""
    study = history.study()
    other = history.study(Assessment.POSITIVE)
    history.activate("b")
    history.begin_backfill()
    history.look(study), history.look(other)
    http, mine = in_process.http, in_process.headers("radiologist")
    (one,) = http.get("/api/v1/revised-findings", headers=mine).json()["revised_findings"]
    assert (one["study_id"], one["old_assessment"], one["new_assessment"]) == (
        str(study),
        "negative",
        "positive",
    )
    assert http.get("/api/v1/revised-findings", headers=mine).json()["revised_findings"] == [one], (
        "looking is not seeing"
    )
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
    theirs = {"Authorization": "Bearer osk_elsewhere"}
    assert http.get("/api/v1/revised-findings", headers=theirs).json()["revised_findings"] == []
    assert http.post(f"/api/v1/revised-findings/{one['id']}/seen", headers=theirs).status_code == 404
    assert http.post(f"/api/v1/revised-findings/{uuid4()}/seen", headers=mine).status_code == 404
    with ThreadPoolExecutor(4) as pool:
        marks = list(
            pool.map(
                lambda _: http.post(f"/api/v1/revised-findings/{one['id']}/seen", headers=mine).status_code,
                range(4),
            )
        )
    assert sorted(marks) == [204, 409, 409, 409]
    assert http.get("/api/v1/revised-findings", headers=mine).json()["revised_findings"] == []
    (row,) = history.revised_findings()
    assert (row.seen_by, row.seen_at is not None) == (in_process.key("radiologist").id, True)
    with hospital.database.transaction() as session:
        add_bundle(session, "c", "0" * 64, MANIFEST)
    history.activate("c")
    history.begin_backfill("c")
    history.look(study, Assessment.POSITIVE, "c")
    assert http.get("/api/v1/revised-findings", headers=mine).json()["revised_findings"] == []
    assert hospital.row(study).bundle == "c"


def test_revised_findings_come_in_pages_the_likeliest_first(history: History, in_process: InProcessApi) -> None:
    """Over all pages each stands once, by the new bundle's probability."""
    calls = [Assessment.POSITIVE, Assessment.UNCLEAR] * 3
    studies = [history.study() for _ in calls]
    history.activate("b")
    history.begin_backfill()
    for study, assessment in zip(studies, calls, strict=True):
        history.look(study, assessment)
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = in_process.http.get(
            "/api/v1/revised-findings", params={"limit": 2, **after}, headers=in_process.headers()
        ).json()
        found += page["revised_findings"]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert [one["new_assessment"] for one in found] == ["positive"] * 3 + ["unclear"] * 3
    assert {one["study_id"] for one in found} == set(map(str, studies))
    foreign = in_process.http.get("/api/v1/revised-findings", params={"after": "zebra"}, headers=in_process.headers())
    assert foreign.status_code == 400


def test_the_page_marks_and_audits(history: History, in_process: InProcessApi) -> None:
    """The page shows revised findings with the patients' names, which leaves an audit, and its button takes one off."""
    history.hospital.vault = Vault(in_process.settings.identity_key.get_secret_value())
    study = history.study()
    history.activate("b")
    history.begin_backfill()
    history.look(study)
    mine = in_process.headers("radiologist")
    page = in_process.http.get("/revised", headers=mine)
    assert page.status_code == 200
    assert f"/view/{study}" in page.text
    (action,) = re.findall(r'action="(/revised/[^"]+/seen)"', page.text)
    for _ in range(2):
        done = in_process.http.post(action, headers=mine, follow_redirects=False)
        assert (done.status_code, done.headers["location"]) == (303, "/revised")
    assert "Nothing to look at again" in in_process.http.get("/revised", headers=mine).text
    with in_process.database.transaction() as session:
        assert session.scalars(select(IdentityReadRow.study_id)).all() == [study]


def revised(history: History, api: InProcessApi, read: int, unread: int) -> tuple[list[UUID], list[UUID]]:
    """Studies whose finding was revised: so many that had been read before, and so many that had not."""
    history.hospital.vault = Vault(api.settings.identity_key.get_secret_value())
    studies = [history.study() for _ in range(read + unread)]
    if read:
        history.hospital.set(*studies[:read], read_at=TWO)
    history.activate("b")
    history.begin_backfill()
    for study in studies:
        history.look(study)
    return studies[:read], studies[read:]


def test_revised_findings_of_read_studies_stand_apart(history: History, in_process: InProcessApi) -> None:
    """The API and the page tell those of studies that were read, to which nobody comes back, from the unread ones."""
    read, unread = revised(history, in_process, 2, 1)
    mine = in_process.headers("radiologist")

    def studies(**query: Any) -> set[str]:
        found = in_process.http.get("/api/v1/revised-findings", params=query, headers=mine).json()["revised_findings"]
        assert all((one["read_at"] is not None) == (UUID(one["study_id"]) in read) for one in found)
        assert all(one["earlier_at"] for one in found)
        return {one["study_id"] for one in found}

    assert studies() == {str(one) for one in read + unread}
    assert studies(read=True) == {str(one) for one in read}
    assert studies(read=False) == {str(one) for one in unread}
    page = in_process.http.get("/revised", headers=mine).text
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
    paths = ["/", "/revised", "/agreement", f"/view/{study}", f"/view/{study}/report"]
    count = re.compile(r'id="revised-count" class="pill" data-count="(\d+)"')

    def counted(path: str, headers: dict[str, str]) -> list[str]:
        return count.findall(in_process.http.get(path, headers=headers | {"Accept": "text/html"}).text)

    for path, headers in [*((path, mine) for path in paths), ("/operations", admin)]:
        assert counted(path, headers) == ["1"], path
    assert counted("/", other) == ["0"]
    told = in_process.http.get("/api/v1/revised-findings/count", headers=mine).json()
    assert (told["unseen"], told["at_least"]) == (1, False)
    assert in_process.http.get("/api/v1/revised-findings/count", headers=other).json()["unseen"] == 0
    assert (
        in_process.http.get("/api/v1/revised-findings/count", headers=in_process.headers("submitter")).status_code
        == 403
    )


def test_a_study_says_that_it_was_revised_until_somebody_has_seen_it(
    history: History, in_process: InProcessApi
) -> None:
    """Its page tells both assessments, both models and when; Seen there is kept in the feedback log with who and when."""
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
    told = in_process.http.get(f"/api/v1/studies/{study}/feedback", headers=mine).json()
    assert [(one["verdict"], one["bundle"], one["reader"]) for one in told["entries"]] == [("seen", "b", "radiologist")]
    assert told["read_at"] is not None  # nothing else changed
    report = in_process.http.get(f"/view/{study}/report", headers=mine).text
    assert "radiologist has seen the revised finding of b" in report
    with in_process.database.transaction() as session:
        assert check_chain(feedback.chain_entries(session, in_process.key().site_id)).problems == []


def test_seen_at_once_is_seen_by_one(history: History, in_process: InProcessApi) -> None:
    """Two readers press at the same moment: one entry; the other one is told."""
    revised(history, in_process, 1, 0)
    (one,) = in_process.http.get("/api/v1/revised-findings", headers=in_process.headers("radiologist")).json()[
        "revised_findings"
    ]
    url = f"/api/v1/revised-findings/{one['id']}/seen"
    with ThreadPoolExecutor(4) as pool:
        statuses = list(
            pool.map(
                lambda role: in_process.http.post(url, headers=in_process.headers(role)).status_code,
                ["radiologist", "admin"] * 2,
            )
        )
    assert sorted(statuses) == [204, 409, 409, 409]
    with in_process.database.transaction() as session:
        assert [row.verdict for row in session.scalars(select(FeedbackRow))] == ["seen"]


# -- the report -----------------------------------------------------------------------------------------------------


def test_the_report_counts_what_changed_and_names_who_turned_positive(
    history: History, in_process: InProcessApi
) -> None:
    """A run's report has kinds by outcome, old class x new class, and by name who turned positive."""
    told = [
        (Assessment.NEGATIVE, Assessment.NEGATIVE), (Assessment.NEGATIVE, Assessment.NEGATIVE), (Assessment.NEGATIVE, Assessment.POSITIVE), (Assessment.POSITIVE, Assessment.NEGATIVE),
        (Assessment.ABSTAINED, Assessment.UNCLEAR),
    ]  # fmt: skip
    studies = [history.study(old) for old, _ in told]
    history.activate("b")
    history.begin_backfill()
    admin = in_process.headers()
    report_url = f"/api/v1/backfill-runs/{history.now.date()}"
    running = in_process.http.get(report_url, headers=admin).json()
    assert running["kinds"] == {"outdated": {"queued": 5}}
    for study, (_, new) in zip(studies, told, strict=True):
        history.look(study, new)
    history.next_batch(MINUTE)
    report = in_process.http.get(report_url, headers=admin).json()
    assert (report["run"]["ended_by"], report["run"]["detail"]) == ("history-ended", "history came to its end")
    assert report["kinds"] == {"outdated": {"done": 5}}
    assert report["changes"] == {
        "negative": {"negative": 2, "positive": 1}, "positive": {"negative": 1}, "abstained": {"unclear": 1}
    }  # fmt: skip
    assert (report["newly_positive"], report["newly_negative"], report["from_abstained"]) == (1, 1, 1)
    assert [one["study_id"] for one in report["revised_findings"]] == [str(studies[2])]
    assert report["from_abstained_studies"] == [str(studies[4])]
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
    foreign = in_process.http.get(report_url, headers={"Authorization": "Bearer osk_elsewhere"}).json()
    assert (foreign["revised_findings"], foreign["from_abstained_studies"], foreign["newly_positive"]) == ([], [], 1)
    assert in_process.http.get("/api/v1/backfill-runs/2020-01-01", headers=admin).status_code == 404
    assert in_process.http.get("/api/v1/backfill-runs/today", headers=admin).status_code == 422


def test_a_run_under_way_says_when_it_will_be_finished(
    hospital: Hospital, history: History, in_process: InProcessApi
) -> None:
    """While a run is open, the list of runs has its forecast: done, left, and when."""
    studies = [history.study() for _ in range(4)]
    history.activate("b")
    history.begin_backfill()
    history.look(studies[0])
    with hospital.database.transaction() as session:
        (run,) = backfill_reports.runs(session)
        told = backfill_reports.forecast_of(session, run, history.now + 10 * MINUTE)
    assert told is not None
    assert (told.done, told.left, told.at_least, told.windows) == (1, 3, False, 1)
    assert told.finish_at == history.now + 40 * MINUTE
    (shown,) = in_process.http.get("/api/v1/backfill-runs", headers=in_process.headers()).json()
    assert (shown["night"], shown["forecast"]["nights"]) == (shown["day"], shown["forecast"]["windows"])  # until 0.3.0
    assert (shown["forecast"]["done"], shown["forecast"]["left"]) == (1, 3)


# -- shadow mode ----------------------------------------------------------------------------------------------------


def responses(api: InProcessApi, studies: Sequence[UUID]) -> Any:
    """Everything that a radiologist is told."""
    paths = [
        "/api/v1/worklist",
        "/api/v1/revised-findings",
        "/",
        "/revised",
        "/api/v1/worklist?assessment=negative",
        "/api/v1/worklist?status=analysed",
    ]
    for study in studies:
        paths += [f"/api/v1/studies/{study}", f"/api/v1/studies/{study}/heatmap.png", f"/view/{study}"]
    got = {path: api.http.get(path, headers=api.headers("radiologist")) for path in paths}
    assert {path for path, response in got.items() if response.status_code != 200} == set()
    ages = re.compile(rb'(<time[^>]*data-form="age">)[^<]*')  # time passes
    return {path: ages.sub(rb"\1", response.content) for path, response in got.items()}


def test_a_shadow_changes_no_response(hospital: Hospital, history: History, in_process: InProcessApi) -> None:
    """While a bundle looks at history as a shadow, when it is done, and when it is retired, every response of the API and
    every page is, byte for byte, what it was; even of an image that the study's own bundle has not seen."""
    hospital.vault = Vault(in_process.settings.identity_key.get_secret_value())
    studies = [
        history.study(assessment) for assessment in (Assessment.NEGATIVE, Assessment.POSITIVE, Assessment.ABSTAINED)
    ]
    waiting = hospital.study()
    before = responses(in_process, studies)
    history.shadow()
    assert {one.study_id for one in history.next_batch().to_send} == set(studies)
    assert responses(in_process, studies) == before
    for study in studies:
        claim = history.claim(study)
        assert responses(in_process, studies) == before
        assert history.finish(claim)
    assert responses(in_process, studies) == before
    history.next_batch(MINUTE)
    assert len(hospital.findings(studies[0])) == 2
    with hospital.database.transaction() as session:
        (run,) = backfill_reports.runs(session)
        assert run.report is not None
        assert (run.ended_by, run.day, run.report["newly_positive"]) == ("history-ended", None, 1)
    admin = in_process.headers()
    assert (
        in_process.http.post("/api/v1/bundles/b/retire", headers=in_process.headers("operator")).json()["state"]
        == "available"
    )
    assert responses(in_process, studies) == before
    assert hospital.claim(waiting, TWO) is not None
    # a frame of which only the shadow has a finding
    hospital.set(studies[0], bundle="gone")
    with hospital.database.transaction() as session:
        session.connection().exec_driver_sql("DELETE FROM findings WHERE bundle = 'a'")
    assert in_process.http.get(f"/api/v1/studies/{studies[0]}/heatmap.png", headers=admin).status_code == 404


def test_compare_and_promote(hospital: Hospital, history: History, in_process: InProcessApi) -> None:
    """A shadow's findings are compared, study by study; after its promotion the next run puts them in place without a
    message to any worker, makes the revised findings, and the comparison still stands."""
    told = [
        (Assessment.NEGATIVE, Assessment.POSITIVE),
        (Assessment.POSITIVE, Assessment.NEGATIVE),
        (Assessment.NEGATIVE, Assessment.NEGATIVE),
        (Assessment.NEGATIVE, Assessment.ABSTAINED),
    ]
    studies = [history.study(old) for old, _ in told]
    unseen = history.study()
    http, admin = in_process.http, in_process.headers()
    shown = http.post("/api/v1/bundles/b/shadow", json={"limit": 9}, headers=in_process.headers("operator")).json()
    assert (shown["state"], shown["run"]["kind"], shown["metrics"]) == ("shadow", "shadow", MANIFEST["metrics"])
    assert http.post("/api/v1/bundles/b/shadow", headers=in_process.headers("operator")).status_code == 409
    assert http.post("/api/v1/bundles/a/shadow", headers=in_process.headers("operator")).status_code == 409
    assert http.post("/api/v1/bundles/none/shadow", headers=in_process.headers("operator")).status_code == 404
    history.now = datetime.now(UTC)
    history.next_batch()
    for study, (_, new) in zip(studies, told, strict=True):
        assert history.look(study, new)
    compared = http.get("/api/v1/bundles/a/compare/b", headers=admin).json()
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
    assert http.get("/api/v1/bundles/a/compare/none", headers=admin).status_code == 404
    assert history.revised_findings() == []

    assert http.post("/api/v1/bundles/b/activate", headers=in_process.headers("operator")).json()["state"] == "active"
    history.next_batch(MINUTE)
    assert {one["name"]: one["state"] for one in http.get("/api/v1/bundles", headers=admin).json()} == {
        "a": "available", "b": "active"
    }  # fmt: skip
    batch = history.begin_backfill()
    assert [one.study_id for one in batch.to_send] == [unseen], "the others need no worker"
    assert {hospital.row(study).bundle for study in studies} == {"b"}
    assert [hospital.row(study).assessment for study in studies] == [new for _, new in told]
    assert [one.study_id for one in history.revised_findings()] == [studies[0]]
    with hospital.database.transaction() as session:
        latest, _ = backfill_reports.runs(session)
        assert (latest.outdated, latest.switched) == (5, 4)
    assert http.get("/api/v1/bundles/a/compare/b", headers=admin).json() == compared
    report = http.get(f"/api/v1/studies/{studies[0]}", headers=admin).json()
    assert report["instances"][0]["findings"][0]["bundle"] == "b"


def test_a_shadow_is_sent_when_no_backfill_run_needs_the_workers(hospital: Hospital, history: History) -> None:
    """While a backfill run has something to send, a shadow waits; once all is sent, the shadow goes on."""
    studies = [history.study() for _ in range(4)]
    with hospital.database.transaction() as session:
        add_bundle(session, "c", "0" * 64, MANIFEST)
    history.activate("b")
    history.shadow("c")
    few = backfill.Pacing(2, 2.0, timedelta(seconds=8))
    with hospital.database.transaction() as session:
        backfill.open_backfill_run(session, TWO.date(), TWO, "b", 4.0, 1000)
    for left in (2, 0):
        with hospital.database.transaction() as session:
            batch = backfill.next_batch(session, few, dict.fromkeys(Priority), TWO)
        assert batch is not None
        assert {history.model(one) for one in batch.to_send} == {"b"}
        for one in batch.to_send:
            assert history.look(one.study_id)
        assert hospital.count(bundle="a") == left
    with hospital.database.transaction() as session:
        batch = backfill.next_batch(session, few, dict.fromkeys(Priority), TWO)
    assert batch is not None
    assert {history.model(one) for one in batch.to_send} == {"c"}
    assert {one.study_id for one in batch.to_send} < set(studies)


def test_a_retired_shadow_stops_and_may_begin_again(hospital: Hospital, history: History) -> None:
    """What is out is taken back; begun anew, it looks at what it has not seen, and at nothing twice."""
    studies = [history.study() for _ in range(3)]
    history.shadow()
    history.next_batch()
    history.look(studies[0])
    with hospital.database.transaction() as session:
        backfill.retire_shadow(session, "b", TWO)
    assert [history.claim(study) for study in studies] == [None] * 3
    assert history.next_batch().to_send == []
    history.shadow()
    assert {one.study_id for one in history.next_batch().to_send} == set(studies[1:])
    assert history.one(studies[0]).state == AnalysisState.DONE


def test_how_much_of_history_a_shadow_looks_at(hospital: Hospital, history: History) -> None:
    """It is bounded by a day of arrival and by a number, newest day first."""
    studies = [history.study() for _ in range(4)]
    for age, study in enumerate(studies):
        hospital.set(study, received_at=TWO - timedelta(days=age))
    history.shadow(since=(TWO - timedelta(days=2)).date(), most=2)
    assert [one.study_id for one in history.next_batch().to_send] == studies[:2]
    for study in studies[:2]:
        history.look(study)
    history.next_batch(MINUTE)
    history.shadow(since=(TWO - timedelta(days=2)).date())
    assert [one.study_id for one in history.next_batch().to_send] == [studies[2]]
