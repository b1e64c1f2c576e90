"""What people and programs read, from real rows: worklist, study report, pictures, identities."""

import io
import random
import re
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import event, func, insert, select, text

from api.pages.render import STATIC
from api.worklist.filters import chosen_filter
from samples.objects import pattern_image, to_bytes
from shared.db.clock import db_now
from shared.db.tables import AnalysisRow, IdentityReadRow, StudyRow
from shared.domain.analysis import Claim
from shared.domain.findings import RESEARCH_USE, Assessment, Extent, Finding, Heatmap, InstanceResult
from shared.domain.security import Role
from shared.domain.study import StoredStatus, StudyStatus
from shared.errors import Reason, UndecodablePixels
from shared.queries import worklist
from shared.queries.access import add_key, find_key
from shared.queries.analyses import AnalysisResult, claim, finish, reopen_analysis
from shared.queries.models import activate_bundle, add_bundle
from shared.queries.worklist import StatusCounts, status_counts
from shared.storage import preview_key, sha256_of

NOW = datetime.now(UTC)
MINUTE = NOW.replace(second=0, microsecond=0)
MANIFEST = {"sensitive": 0.2, "specific": 0.7, "regions": ["hand", "leg"]}


def image(study: int = 1, number: int = 1, rows: int = 128, columns: int = 128, name: str = "ZEBRA^QUAGGA") -> bytes:
    ds = pattern_image(study, f"image {number}")
    ds.PatientName, ds.Rows, ds.Columns, ds.PixelData = name, rows, columns, bytes(rows * columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, "1.2.840.10008.1.2.1")


def add_studies(api: Any, rows: list[dict[str, Any]]) -> list[UUID]:
    """Studies straight into the table, with what a test wants different."""
    site = api.key().site_id
    values: list[dict[str, Any]] = [
        {
            "id": uuid4(), "site_id": site, "study_instance_uid": f"1.2.{uuid4().int}", "priority": "routine",
            "status": "analysed", "received_at": NOW, "due_at": NOW, "reason": "",
            "modality": "CR", "assessment": "negative", "region": "hand", "images": 1, "failed_images": 0,
            "abstention": "metal" if row.get("assessment") == "abstained" else None,
        } | row for row in rows
    ]  # fmt: skip
    with api.database.transaction() as session:
        session.execute(insert(StudyRow), values)
    return [value["id"] for value in values]


def page(api: Any, **query: Any) -> dict[str, Any]:
    response = api.http.get("/api/v1/worklist", params=query, headers=api.headers("radiologist"))
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def listed(api: Any, **query: Any) -> list[str]:
    """The ids of all pages, one after the other."""
    ids: list[str] = []
    after: dict[str, str] = {}
    while True:
        got = page(api, **query, **after)
        ids += [entry["study_id"] for entry in got["entries"]]
        if got["next"] is None:
            return ids
        after = {"after": got["next"]}


def finding(
    frame: int = 1, bundle: str = "first", probability: float = 0.9, shape: tuple[int, int] = (7, 7)
) -> Finding:
    assessment = Assessment.POSITIVE if probability >= 0.7 else Assessment.NEGATIVE
    values = bytes(range(shape[0] * shape[1]))
    return Finding(frame, bundle, "hand", 0.98, probability, assessment, Extent.MILD if assessment is Assessment.POSITIVE else Extent.NONE,
                   Heatmap(values, *shape))  # fmt: skip


def analyse(api: Any, study: str, results: Callable[[list[Any]], list[InstanceResult]], bundle: str = "first") -> None:
    """Claim and finish a study as the worker does."""
    with api.database.transaction() as session:
        add_bundle(session, bundle, sha256_of(bundle.encode()), MANIFEST)
        activate_bundle(session, bundle)
        row = session.get_one(StudyRow, UUID(study), with_for_update=True)
        asked = (
            row.current_analysis_id
            if row.status == StoredStatus.QUEUED
            else reopen_analysis(session, row, db_now(session))
        )
        assert asked is not None
        (held,) = claim(session, [asked], bundle, db_now(session), timedelta(seconds=30), max_attempts=4)
        assert isinstance(held, Claim)
    with api.database.transaction() as session:
        assert finish(session, [AnalysisResult(held, results(held.instances))], db_now(session)) == [True]


def upload(api: Any, **files: bytes) -> str:
    study: str = api.post(files).json()["studies"][0]["id"]
    return study


# -- the worklist ---------------------------------------------------------------------------------------------------


def test_counts_of_many_studies_are_at_most_so_old(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few studies are counted exactly each time; of many, the count is as old as it may be, and then taken anew."""
    now = [0.0]
    counts = StatusCounts(lambda: now[0])
    monkeypatch.setattr(counts, "FEW", 3)

    def of() -> tuple[int, int]:
        with in_process.database.transaction() as session:
            found = counts.of(session, in_process.key().site_id)
        assert set(found) == set(StudyStatus) - {StudyStatus.KEPT}  # on no list
        return found[StudyStatus.ANALYSED], found[StudyStatus.QUEUED]

    assert of() == (0, 0)
    add_studies(in_process, [{}] * 3)
    assert of() == (3, 0)
    add_studies(in_process, [{}] * 2 + [{"status": "queued"}])
    assert of() == (5, 1)
    add_studies(in_process, [{}] + [{"status": "queued"}] * 2)
    assert of() == (5, 3)  # the few are exact, the many are what they were
    now[0] += counts.RECOUNT_S - 1
    assert of() == (5, 3)
    now[0] += 1
    assert of() == (6, 3)


def test_counts_are_the_sites_own(in_process: Any) -> None:
    """Studies of another site count nowhere here, however many they are."""
    with in_process.database.transaction() as session:
        add_key(session, "elsewhere", "other", Role.ADMIN, "osk_elsewhere")
        other = find_key(session, "osk_elsewhere")
    assert other is not None
    add_studies(in_process, [{"site_id": other.site_id}] * 4 + [{}])
    counts = StatusCounts()
    with in_process.database.transaction() as session:
        assert counts.of(session, in_process.key().site_id)[StudyStatus.ANALYSED] == 1
        assert counts.of(session, other.site_id)[StudyStatus.ANALYSED] == 4


def test_what_was_read_counts_nowhere_while_it_runs(in_process: Any) -> None:
    """Running, retrying and queued studies count by their analyses, but for those that a reader was done with before."""
    states = ("queued", "running", "retrying")
    rows = [(state, read_at) for state in states for read_at in (None, None, NOW)]
    ids = add_studies(in_process, [{"status": "queued", "read_at": read_at} for _, read_at in rows])
    site = in_process.key().site_id
    values = [
        {"study_id": study, "site_id": site, "purpose": "first", "state": state, "priority": "routine"}
        for study, (state, _) in zip(ids, rows, strict=True)
    ]
    with in_process.database.transaction() as session:
        session.execute(insert(AnalysisRow), values)
    for most in (None, 1, 2, 5):
        with in_process.database.transaction() as session:
            counts = status_counts(session, site, most)
        assert {counts[StudyStatus(state)] for state in states} == {min(2, most or 2)}


def test_order_and_paging(in_process: Any) -> None:
    """By the minute in which it is due, then the higher score, then id; pages of any size give every study once."""
    dues = [
        MINUTE + timedelta(days=day, seconds=n % 3 * 20) for n, day in enumerate((5, 1, 1, 1, 9, 3, 3, -4, 5, 1, 7))
    ]
    scores = [0.5, 1.0, 2.5, 1.0, None, 2.25, 0.0, 1.5, 0.5, None, 2.0]
    rows = list(zip(dues, scores, strict=True))
    ids = add_studies(in_process, [{"due_at": due, "score": score} for due, score in rows])
    places = [(due.replace(second=0), -(score or 0), study) for (due, score), study in zip(rows, ids, strict=True)]
    expected = [str(study) for *_, study in sorted(places)]
    assert str(ids[2]) == expected[1], "of the four due in one minute the highest score stands first, later or not"
    for limit in (1, 2, 3, 7, 11, 12):
        assert listed(in_process, limit=limit) == expected
    first = page(in_process, limit=4)
    assert [entry["rank"] for entry in first["entries"]] == [1, 2, 3, 4]
    assert [entry["overdue"] for entry in first["entries"]] == [True, False, False, False]
    assert (first["counts"]["analysed"], first["notice"]) == (11, RESEARCH_USE)


def test_studies_of_one_due_time_keep_their_order(in_process: Any) -> None:
    """Their ids order them, whether Postgres walks an index or sorts: else pages repeat some and leave others out."""
    ids = add_studies(in_process, [{"due_at": NOW}] * 30)
    database = in_process.http.app.state.parts.database
    with database.transaction() as session:
        name = session.scalar(select(func.current_database()))
    ways = ("indexscan", "indexonlyscan", "bitmapscan")
    in_process.as_owner(*(f"ALTER DATABASE {name} SET enable_{way} = off" for way in ways))
    database.close()  # connections that are made from here on sort
    for limit in (4, 30):
        assert listed(in_process, limit=limit) == sorted(map(str, ids))


@pytest.mark.parametrize("seed", range(4))
def test_paging_is_exact_while_studies_arrive(in_process: Any, seed: int) -> None:
    """Studies that arrive between two pages neither repeat nor hide a study that was there before."""
    chance = random.Random(seed)
    moments = [MINUTE + timedelta(hours=hour) for hour in range(6)]  # few, so that ties are common
    scores = (None, 0.0, 1.25, 2.5)

    def drawn(count: int) -> list[dict[str, Any]]:
        return [{"due_at": chance.choice(moments), "score": chance.choice(scores)} for _ in range(count)]

    before = {str(study) for study in add_studies(in_process, drawn(25))}
    seen: list[tuple[str, float, str]] = []
    after: dict[str, str] = {}
    while True:
        got = page(in_process, limit=chance.randint(1, 4), **after)
        seen += [(entry["due_at"], -(entry["score"] or 0), entry["study_id"]) for entry in got["entries"]]
        if got["next"] is None:
            break
        after = {"after": got["next"]}
        if len(seen) < 60:
            add_studies(in_process, drawn(2))
    assert len(seen) == len(set(seen))
    assert before <= {study for *_, study in seen}
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    "chosen", [{}, {"status": "analysed"}, {"assessment": "negative", "priority": "routine"}, {"age": "0-17"}]
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_page_is_read_off_an_index(in_process: Any, chosen: dict[str, str], deep: bool) -> None:
    """Postgres walks an index in the list's order and sorts nothing, whatever page is asked for."""
    site, minutes = in_process.key().site_id, [MINUTE + timedelta(minutes=n) for n in range(400)]
    add_studies(in_process, [{"due_at": due, "score": n % 3, "age_years": n % 90} for n, due in enumerate(minutes)])
    after = worklist.WorklistCursor(minutes[200].replace(tzinfo=None), -1.0, uuid4()) if deep else None
    statements: list[str] = []
    in_process.as_owner("ANALYZE studies")
    with in_process.database.transaction() as session:
        for way in ("seqscan", "bitmapscan"):  # which few rows would make cheaper
            session.execute(text(f"SET LOCAL enable_{way} = off"))
        connection = session.connection()

        def explained(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            if "FROM studies" in statement and not statements:
                cursor.execute(f"EXPLAIN {statement}", parameters)
                statements.append("\n".join(row[0] for row in cursor.fetchall()))

        event.listen(connection, "before_cursor_execute", explained)
        worklist.entries(session, site, chosen_filter(chosen), after, 50)
    (plan,) = statements
    assert re.search("Index Scan using ix_studies_unread", plan), plan
    assert "Sort" not in plan, plan
    assert ("ROW(date_trunc" in plan) == deep, plan


def test_a_cursor_of_the_other_half_is_refused(in_process: Any) -> None:
    """The `next` of unread studies is no place among those that were read."""
    add_studies(in_process, [{}] * 3)
    after = page(in_process, limit=1)["next"]
    response = in_process.http.get(
        "/api/v1/worklist", params={"after": after, "state": "read"}, headers=in_process.headers()
    )
    assert (response.status_code, "other half" in response.json()["detail"]) == (400, True)


def test_filters(in_process: Any) -> None:
    """Each filter, and two together, show exactly the studies that fit; an unknown word is refused with 422."""
    kinds: list[dict[str, Any]] = [
        {"status": "analysed", "assessment": "positive", "region": "hand", "priority": "urgent", "modality": "CR"},
        {"status": "analysed", "assessment": "negative", "region": "leg", "priority": "routine", "modality": "DX"},
        {"status": "queued", "assessment": None, "region": "", "priority": "routine", "modality": "DX"},
        {"status": "quarantined", "assessment": None, "region": "", "priority": "urgent", "modality": ""},
        {"status": "analysed", "assessment": "abstained", "region": "hand", "priority": "routine", "modality": "CR"},
    ]
    ids = [str(study) for study in add_studies(in_process, kinds)]
    asked = [{name: kind[name]} for kind in kinds for name in kind if kind[name]]
    asked += [{"assessment": "positive", "region": "hand"}, {"status": "queued", "modality": "CR"}]
    for query in asked:
        expected = {ids[n] for n, kind in enumerate(kinds) if query.items() <= kind.items()}
        assert set(listed(in_process, **query)) == expected, query
    for wrong in (
        {"status": "lost"},
        {"assessment": "maybe"},
        {"limit": 0},
        {"limit": 501},
        {"region": "\x1f"},
        {"modality": "\x1f"},
    ):
        assert in_process.http.get("/api/v1/worklist", params=wrong, headers=in_process.headers()).status_code == 422, (
            wrong
        )


@pytest.mark.parametrize("after", ["", "x", "W10=", "bnVsbA==", "WzEsMl0=", "WyJhIiwiYiJd", "ü", "[" * 190, "W1s" * 60])
def test_foreign_cursor(in_process: Any, after: str) -> None:
    """An `after` that the API did not give is refused with 400."""
    response = in_process.http.get("/api/v1/worklist", params={"after": after}, headers=in_process.headers())
    assert (response.status_code, "next" in response.json()["detail"]) == (400, True)


def test_findings_rank(in_process: Any) -> None:
    """An analysed study moves by its finding: a likely fracture in front of an unread study, a clear one behind."""
    clear, unread, likely = (upload(in_process, a=image(number)) for number in (1, 2, 3))
    analyse(in_process, clear, lambda instances: [InstanceResult(instances[0].id, [finding(probability=0.01)])])
    analyse(in_process, likely, lambda instances: [InstanceResult(instances[0].id, [finding(probability=0.95)])])
    entries = page(in_process)["entries"]
    assert [entry["study_id"] for entry in entries] == [likely, unread, clear]
    assert [entry["assessment"] for entry in entries] == ["positive", None, "negative"]
    assert "positive, hand, extent mild" in entries[0]["why"]


# -- one study ------------------------------------------------------------------------------------------------------


def test_report(in_process: Any) -> None:
    """The report tells state, times, every image's findings or error, thresholds and picture URLs."""
    study = upload(in_process, a=image(1, 1), b=image(1, 2))

    def results(instances: list[Any]) -> list[InstanceResult]:
        assert len(instances) == 2
        return [InstanceResult(instances[0].id, [finding()]),
                InstanceResult(instances[1].id, (), Reason.UNDECODABLE_PIXELS, "12 bytes for 30")]  # fmt: skip

    analyse(in_process, study, results)
    report = in_process.http.get(f"/api/v1/studies/{study}", headers=in_process.headers("radiologist")).json()
    assert (report["status"], report["assessment"], report["severity"], report["region"]) == (
        "analysed",
        "positive",
        "mild",
        "hand",
    )
    times = [datetime.fromisoformat(report[name]) for name in ("received_at", "started_at", "analysed_at")]
    assert times == sorted(times)
    assert datetime.fromisoformat(report["due_at"]) - times[0] == timedelta(minutes=30)
    assert (report["attempts"], report["notice"]) == (1, RESEARCH_USE)
    good, bad = sorted(report["instances"], key=lambda instance: instance["error"] or "")
    told = good["findings"][0]
    assert (told["fracture_probability"], told["bundle"]) == (0.9, "first")
    assert (told["sensitive_threshold"], told["specific_threshold"]) == (0.2, 0.7)
    assert told["heatmap_url"] == f"/api/v1/studies/{study}/heatmap.png?image={good['number']}&frame=1"
    assert (bad["findings"], bad["error"], bad["error_reason"]) == (
        [],
        f"{UndecodablePixels()} (12 bytes for 30)",
        "undecodable-pixels",
    )
    assert "ZEBRA" not in str(report)


def test_newest_finding_is_shown(in_process: Any) -> None:
    """A newer bundle's finding supersedes the older one in report and picture; the older row stays."""
    study = upload(in_process, a=image())
    analyse(in_process, study, lambda instances: [InstanceResult(instances[0].id, [finding(probability=0.9)])])
    newer = finding(bundle="second", probability=0.1, shape=(3, 5))
    analyse(in_process, study, lambda instances: [InstanceResult(instances[0].id, [newer])], "second")
    report = in_process.http.get(f"/api/v1/studies/{study}", headers=in_process.headers()).json()
    assert [(f["bundle"], f["fracture_probability"]) for f in report["instances"][0]["findings"]] == [("second", 0.1)]
    assert report["assessment"] == "negative"


def test_no_such_study(in_process: Any) -> None:
    """An unknown id is 404, and something that is no id is 422, for the study and its pictures."""
    for path in ("", "/heatmap.png", "/heatmap.json", "/preview.jpg", "/frame"):
        for study, status in ((uuid4(), 404), ("1", 422)):
            response = in_process.http.get(f"/api/v1/studies/{study}{path}", headers=in_process.headers())
            assert response.status_code == status


def test_a_name_is_text_on_every_page(in_process: Any) -> None:
    """What a patient name holds is shown, and is no part of the page: list, study and report."""
    study = upload(in_process, a=image(name="<script>alert(1)</script>"))
    analyse(in_process, study, lambda instances: [InstanceResult(instances[0].id, [finding()])])
    for path in ("/", f"/view/{study}", f"/view/{study}/report"):
        page = in_process.http.get(path, headers=in_process.headers("radiologist"))
        assert page.status_code == 200, path
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text, path
        assert "<script>alert" not in page.text, path


# -- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "size"),
    [(128, 128, (512, 512)), (300, 100, (171, 512)), (100, 300, (512, 171)), (1, 1000, (512, 1))],
)
def test_heatmap(in_process: Any, rows: int, columns: int, size: tuple[int, int]) -> None:
    """The heatmap is an RGBA PNG of the radiograph's shape, opaque where the evidence is strong, transparent where there is none."""
    study = upload(in_process, a=image(rows=rows, columns=columns))
    hot = Heatmap(bytes(49)[:24] + b"\xff" + bytes(24), 7, 7)  # the middle
    one = Finding(1, "first", "hand", 0.9, 0.9, Assessment.POSITIVE, Extent.MILD, hot)
    analyse(in_process, study, lambda instances: [InstanceResult(instances[0].id, [one])])
    response = in_process.http.get(f"/api/v1/studies/{study}/heatmap.png", headers=in_process.headers("radiologist"))
    assert (response.headers["content-type"], response.headers["cache-control"]) == ("image/png", "private, max-age=60")
    picture = Image.open(io.BytesIO(response.content))
    assert (picture.mode, picture.size) == ("RGBA", size)
    alpha = np.asarray(picture.getchannel("A"))
    assert alpha[size[1] // 2, size[0] // 2] > 200
    assert min(alpha[0, 0], alpha[-1, -1]) < 30


@pytest.mark.parametrize(
    ("rows", "columns", "row", "column"), [(128, 128, 1, 4), (128, 128, 4, 1), (300, 100, 5, 2), (100, 300, 2, 5)]
)
def test_heatmap_lies_where_the_evidence_is(in_process: Any, rows: int, columns: int, row: int, column: int) -> None:
    """Evidence beside the middle is painted where it is, neither mirrored nor turned nor shifted, on any shape of radiograph."""
    study = upload(in_process, a=image(rows=rows, columns=columns))
    cells = bytearray(49)
    cells[7 * row + column] = 255
    one = Finding(1, "first", "hand", 0.9, 0.9, Assessment.POSITIVE, Extent.MILD, Heatmap(bytes(cells), 7, 7))
    analyse(in_process, study, lambda instances: [InstanceResult(instances[0].id, [one])])
    response = in_process.http.get(f"/api/v1/studies/{study}/heatmap.png", headers=in_process.headers("radiologist"))
    picture = Image.open(io.BytesIO(response.content))
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 150 else 0).getbbox()
    assert box is not None
    # the radiograph lies centred in a square of 512 pixels, which the 7 x 7 cells cover
    left, top = ((512 - side) / 2 for side in picture.size)
    middle = left + (box[0] + box[2]) / 2, top + (box[1] + box[3]) / 2
    assert middle == pytest.approx(((column + 0.5) * 512 / 7, (row + 0.5) * 512 / 7), abs=512 / 7 / 4)


@pytest.mark.parametrize(
    ("rows", "columns", "radiograph"),
    [(128, 128, [0, 0, 7, 7]), (300, 100, [7 / 3, 0, 7 / 3, 7]), (100, 300, [0, 7 / 3, 7, 7 / 3])],
)
def test_heatmap_as_numbers(in_process: Any, rows: int, columns: int, radiograph: list[float]) -> None:
    """A viewer gets each cell, the radiograph's place among them, both points, and how far the evidence round a cell goes."""
    study = upload(in_process, a=image(rows=rows, columns=columns))
    values = bytearray(49)
    values[24] = 255
    one = Finding(1, "first", "hand", 1, 0.9, Assessment.POSITIVE, Extent.MILD, Heatmap(bytes(values), 7, 7))
    analyse(in_process, study, lambda instances: [InstanceResult(instances[0].id, [one])])
    told = in_process.http.get(
        f"/api/v1/studies/{study}/heatmap.json", headers=in_process.headers("radiologist")
    ).json()
    assert (told["height"], told["width"], told["full"], told["assessment"]) == (7, 7, 1.0, "positive")
    assert told["frame"] == pytest.approx(radiograph)
    assert (told["sensitive_threshold"], told["specific_threshold"]) == (0.2, 0.7)
    assert told["cells"] == [1.0 if cell == 24 else 0.0 for cell in range(49)]
    assert told["local"][24] == max(told["local"]) == pytest.approx(0.9)
    assert told["local"][0] == 0


def test_pictures_that_are_not_there(in_process: Any) -> None:
    """Before the finding, for other images and frames, or without the object, a picture is 404 with its reason."""
    study = upload(in_process, a=image())
    url, headers = f"/api/v1/studies/{study}", in_process.headers("radiologist")
    for picture in ("heatmap.png", "preview.jpg"):
        assert "no finding yet" in in_process.http.get(f"{url}/{picture}", headers=headers).json()["detail"]
    analyse(in_process, study, lambda instances: [InstanceResult(instances[0].id, [finding()])])
    for query, status in (
        ("image=2", 404),
        ("frame=2", 404),
        ("image=0", 422),
        ("frame=x", 422),
        ("image=99999999", 422),
    ):
        for picture in ("heatmap.png", "preview.jpg"):
            assert in_process.http.get(f"{url}/{picture}?{query}", headers=headers).status_code == status, query
    assert in_process.http.get(f"{url}/preview.jpg", headers=headers).status_code == 404
    key = preview_key(sha256_of(image()), 1)
    in_process.http.app.state.parts.store.put(key, io.BytesIO(b"a picture"), 9)
    response = in_process.http.get(f"{url}/preview.jpg", headers=headers)
    assert (response.status_code, response.content) == (200, b"a picture")


def test_picture_of_a_damaged_image_tells_why(in_process: Any) -> None:
    """The picture of an image that could not be analysed is 404 with that image's error."""
    study = upload(in_process, a=image())
    analyse(in_process, study, lambda them: [InstanceResult(them[0].id, (), Reason.UNDECODABLE_PIXELS)])
    response = in_process.http.get(f"/api/v1/studies/{study}/heatmap.png", headers=in_process.headers())
    assert (response.status_code, response.json()["detail"]) == (
        404, "image 1 frame 1 could not be analysed: undecodable-pixels",
    )  # fmt: skip
    assert (
        in_process.http.get(f"/api/v1/studies/{study}", headers=in_process.headers()).json()["status"] == "quarantined"
    )


# -- identities -----------------------------------------------------------------------------------------------------


def test_every_reading_of_an_identity_is_recorded(in_process: Any) -> None:
    """Each page that shows a name leaves a row with who, whose and when; programs' endpoints show and record none."""
    study = upload(in_process, a=image())
    headers = in_process.headers("radiologist")

    def reads() -> list[tuple[UUID, UUID]]:
        with in_process.database.transaction() as session:
            rows = session.execute(
                select(IdentityReadRow.study_id, IdentityReadRow.key_id).order_by(IdentityReadRow.id)
            )
            return [tuple(row) for row in rows]

    for path in ("/api/v1/worklist", f"/api/v1/studies/{study}"):
        assert "ZEBRA" not in in_process.http.get(path, headers=headers).text
    assert reads() == []
    entry = (UUID(study), in_process.key("radiologist").id)
    assert "ZEBRA" in in_process.http.get("/", headers=headers).text
    assert reads() == [entry]
    assert "ZEBRA" in in_process.http.get(f"/view/{study}", headers=headers).text
    assert reads() == [entry] * 2
    renewed = headers | {"If-None-Match": '"of a list that was open"'}
    assert "ZEBRA" in in_process.http.get("/", headers=renewed).text
    assert reads() == [entry] * 2  # what stands on an open list is noted once an hour
    in_process.as_owner("UPDATE identity_reads SET read_at = read_at - interval '2 hours'")
    assert "ZEBRA" in in_process.http.get("/", headers=renewed).text
    assert reads() == [entry] * 3
    later = upload(in_process, a=image(9))
    in_process.http.get("/", headers=renewed)
    assert reads()[3:] == [(UUID(later), entry[1])]


def test_a_quarantined_study_is_released_once(in_process: Any) -> None:
    """An administrator gives a set-aside study all its attempts again; a study in no quarantine is refused with 409."""
    study = upload(in_process, a=image(), b=image(1, 2))
    url, admin = f"/api/v1/studies/{study}/release", in_process.headers("admin")
    assert in_process.http.post(url, headers=admin).status_code == 409

    def broken(instances: Any) -> list[InstanceResult]:
        kinds = [(Reason.DECODER_DIED, "SIGABRT"), (Reason.TRUNCATED_PIXELS, "")]
        return [InstanceResult(one.id, (), *kind) for one, kind in zip(instances, kinds, strict=True)]

    analyse(in_process, study, broken)
    assert in_process.http.get(f"/api/v1/studies/{study}", headers=admin).json()["status"] == "quarantined"
    publisher = in_process.http.app.state.parts.publisher
    rung = sum(publisher.waiting().values())
    response = in_process.http.post(url, headers=admin)
    assert (response.status_code, response.json()["status"], response.json()["attempts"]) == (200, "queued", 0)
    assert sum(publisher.waiting().values()) == rung + 1
    # what can never be read stays set aside; what broke its decoder is tried again
    assert sorted(i["error_reason"] or "" for i in response.json()["instances"]) == ["", "truncated-pixels"]
    assert in_process.http.post(url, headers=admin).status_code == 409
    analyse(in_process, study, lambda instances: [InstanceResult(instances[0].id, [finding()])])
    assert in_process.http.get(f"/api/v1/studies/{study}", headers=admin).json()["status"] == "analysed"
    assert in_process.http.post(f"/api/v1/studies/{uuid4()}/release", headers=admin).status_code == 404


def test_an_image_that_broke_its_decoder_is_tried_again(in_process: Any) -> None:
    """Of an analysed study only what was set aside is analysed again, and the findings of both speak for the study."""
    study = upload(in_process, a=image(), b=image(1, 2), c=image(1, 3))
    url, admin = f"/api/v1/studies/{study}/release", in_process.headers("admin")

    def partly(instances: Any) -> list[InstanceResult]:
        first, second, third = (one.id for one in instances)
        return [
            InstanceResult(first, [finding(probability=0.01)]),
            InstanceResult(second, (), Reason.DECODING_TIMED_OUT, "60"),
            InstanceResult(third, (), Reason.TRUNCATED_PIXELS),
        ]

    analyse(in_process, study, partly)
    assert in_process.http.get(f"/api/v1/studies/{study}", headers=admin).json()["failed_images"] == 2
    response = in_process.http.post(url, headers=admin)
    assert (response.status_code, response.json()["status"], response.json()["failed_images"]) == (200, "queued", 1)
    tried: list[Any] = []

    def well(instances: Any) -> list[InstanceResult]:
        tried.extend(instances)
        return [InstanceResult(one.id, [finding(probability=0.9)]) for one in instances]

    analyse(in_process, study, well)
    told = in_process.http.get(f"/api/v1/studies/{study}", headers=admin).json()
    assert (len(tried), told["status"], told["assessment"], told["failed_images"]) == (1, "analysed", "positive", 1)
    assert sorted(len(one["findings"]) for one in told["instances"]) == [0, 1, 1]
    assert in_process.http.post(url, headers=admin).status_code == 409  # what can never be read is not tried again


def test_scripts_and_styles_are_kept_by_browsers(in_process: Any) -> None:
    """Their address carries the digest of them all, so nobody asks twice; another digest names nothing that is here."""
    page = in_process.http.get("/login", headers={"Accept": "text/html"}).text
    named = re.findall(r'"(/static/[^"]+)"', page)
    assert {address.rpartition("/")[0] for address in named} == {STATIC, f"{STATIC}/fonts"}
    for address in named:
        assert "immutable" in in_process.http.get(address).headers["Cache-Control"]
    for old in ("/static/osteon.css", "/static/0123456789abcdef/osteon.css", f"{STATIC}/nothing.css"):
        response = in_process.http.get(old)
        assert (response.status_code, response.headers["Cache-Control"]) == (404, "no-store")
