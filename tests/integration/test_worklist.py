# ruff: noqa: RUF001 - names in five scripts
"""The worklist in every order, with every filter, as saved views, as a search by words and as a table; on real rows."""

import base64
import csv
import io
import json
import random
from datetime import date, datetime, time, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, insert, select, text, update

from shared.db.tables import AuditEventRow, IdentityReadRow, IdentitySearchRow, ReadingLockRow, StudyRow
from shared.domain.findings import RESEARCH_USE
from shared.domain.security import Role
from shared.domain.study import Identity
from shared.queries.access import add_key, find_key
from shared.queries.search import SearchWords, find_by_words, parse_search
from shared.queries.worklist import SortBy, Tab, TabCounts
from tests.conftest import InProcessApi
from tests.integration.test_reading import NOW, add_studies, listed, page

MINUTE = NOW.replace(second=0, microsecond=0)
RANKS = {
    "assessment": ("positive", "unclear", "abstained", "negative"),
    "severity": ("severe", "moderate", "mild", "none"),
    "priority": ("urgent", "routine", "backlog"),
}
SCORES = {"positive": (7.0, 8.5), "unclear": (3.0, 4.25), "abstained": (None, 2.5), "negative": (0.0, 1.25)}
NAMES = [
    "SMITH^JOHN",
    "MÜLLER-SMYTHE^EVA",
    "ИВАНОВА^АННА",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "محمد^أحمد",
    "כהן^דוד",
]


def drawn(chance: random.Random) -> dict[str, Any]:
    """A study whose values are few, so that ties are common, and often not known."""
    analysed = chance.random() < 0.8
    assessment = chance.choice(RANKS["assessment"]) if analysed else None
    return {
        "due_at": MINUTE + timedelta(hours=chance.randrange(3), seconds=chance.randrange(59)),
        "received_at": MINUTE - timedelta(hours=chance.randrange(4)),
        "score": chance.choice(SCORES[assessment]) if assessment else None,
        "assessment": assessment, "abstention": "metal" if assessment == "abstained" else None,
        "status": "analysed" if analysed else "quarantined",
        "severity": chance.choice(RANKS["severity"]) if analysed else None,
        "priority": chance.choice(RANKS["priority"]),
        "region": chance.choice(("", "hand", "Elbow", "leg", "été", "_x")),
        "age_years": chance.choice((None, 0, 7, 41, 90)),
        "study_date": chance.choice((None, date(2026, 11, 27), date(2026, 11, 28))),
        "study_time": chance.choice((None, time(9, 30), time(9, 30, 1, 500))),
    }  # fmt: skip


def key_of(row: dict[str, Any], by: str) -> tuple[bool, Any]:
    """Whether what a row is sorted by is not known, and what it is."""
    if by in RANKS:
        word = row[by]
        return word is None, RANKS[by].index(word) if word else 0
    if by == "age":
        return row["age_years"] is None, row["age_years"] or 0
    if by == "arrived":
        return False, row["received_at"]
    if by == "examined":
        day = row["study_date"]
        return day is None, datetime.combine(day, row["study_time"] or time()) if day else datetime.min  # noqa: DTZ901
    return not row["region"], row["collated"]


def in_order(rows: dict[str, dict[str, Any]], by: str, *, descending: bool) -> list[str]:
    """The ids as the list should have them."""
    ids = sorted(rows, key=lambda id_: (rows[id_]["due_at"].replace(second=0), -(rows[id_]["score"] or 0), id_))
    if by == "due":
        return ids[::-1] if descending else ids
    values = sorted({key_of(row, by)[1] for row in rows.values()}, reverse=descending)
    ids.sort(key=lambda id_: values.index(key_of(rows[id_], by)[1]))  # those that are alike keep their order
    return sorted(ids, key=lambda id_: key_of(rows[id_], by)[0])


@pytest.mark.parametrize("by", [by for by in SortBy if by is not SortBy.READ])
@pytest.mark.parametrize("sign", ["", "-"])
def test_each_order_shows_each_study_once_while_others_change(in_process: Any, by: str, sign: str) -> None:
    """Forward and back, in pages of any size, each row that stays as it is stands once, in its place; others move meanwhile."""
    chance = random.Random(f"{sign}{by}")
    rows = [drawn(chance) for _ in range(26)]
    ids = [str(study) for study in add_studies(in_process, rows)]
    stays, moves = ids[:20], ids[20:]
    with in_process.database.transaction() as session:
        regions = session.scalars(
            text("SELECT r FROM (SELECT DISTINCT region AS r FROM studies) AS found ORDER BY r")
        ).all()
    expected = in_order(
        {id_: row | {"collated": regions.index(row["region"])} for id_, row in zip(stays, rows, strict=False)},
        by, descending=sign == "-",
    )  # fmt: skip

    def disturb() -> None:
        values = drawn(chance)
        with in_process.database.transaction() as session:
            session.execute(update(StudyRow).where(StudyRow.id == UUID(chance.choice(moves))).values(values))
            gone = session.execute(delete(StudyRow).where(StudyRow.study_instance_uid == "1.2.late"))
        if not gone.rowcount:
            add_studies(in_process, [drawn(chance) | {"study_instance_uid": "1.2.late"}])

    forward: list[str] = []
    place: dict[str, str] = {}
    behind: dict[str, Any] = {}
    while True:
        got = page(in_process, sort=sign + by, limit=chance.randint(2, 7), **place)
        shown = [entry["study_id"] for entry in got["entries"]]
        assert len(shown) == len(set(shown))
        forward += shown
        behind = got if shown else behind  # the last one may have gone meanwhile
        if got["next"] is None:
            break
        place = {"after": got["next"]}
        disturb()
    assert [id_ for id_ in forward if id_ in stays] == expected
    got = behind
    backward = [entry["study_id"] for entry in got["entries"]]
    while got["previous"] is not None:
        disturb()
        got = page(in_process, sort=sign + by, limit=chance.randint(2, 7), before=got["previous"])
        backward = [entry["study_id"] for entry in got["entries"]] + backward
    assert [id_ for id_ in backward if id_ in stays] == expected


def test_what_was_read_today_has_every_order_and_history_one(in_process: Any) -> None:
    """Today's reading is sorted like what is unread; of all that was ever read, by its reading alone."""
    ago = [timedelta(hours=hours) for hours in (0, 0, 0, 30)]
    rows = [
        {"read_at": NOW - far, "age_years": age, "received_at": NOW - timedelta(days=3)}
        for far, age in zip(ago, (50, None, 7, 1), strict=True)
    ]
    ids = [str(study) for study in add_studies(in_process, rows)]
    zone = "Pacific/Kiritimati" if NOW.hour < 4 else "UTC"  # where this day is old enough
    assert set(listed(in_process, state="today", zone=zone)) == set(ids[:3])
    assert listed(in_process, state="today", zone=zone, sort="age") == [ids[2], ids[0], ids[1]]
    assert listed(in_process, state="today", zone=zone, sort="-age", limit=1) == [ids[0], ids[2], ids[1]]
    assert listed(in_process, state="read")[-1] == ids[3]
    assert listed(in_process, state="read", sort="read", limit=2)[0] == ids[3]
    for query, status in (
        ({"state": "read", "sort": "age"}, 400), ({"sort": "read"}, 400), ({"sort": "name"}, 422),
        ({"state": "today", "zone": "Europe/Nowhere"}, 400), ({"zone": "../../etc/passwd"}, 400),
    ):  # fmt: skip
        response = in_process.http.get("/api/v1/worklist", params=query, headers=in_process.headers())
        assert response.status_code == status, query


def test_a_place_of_another_order_is_refused(in_process: Any) -> None:
    """A cursor is good for its order only, for one direction at a time, and what no page gave is refused with words."""
    add_studies(in_process, [{"age_years": age} for age in (1, 2, 3)])
    after = page(in_process, limit=1, sort="age")["next"]
    for query in (
        {"after": after}, {"after": after, "sort": "-age"}, {"after": after, "sort": "region"},
        {"after": after, "before": after, "sort": "age"},
    ):  # fmt: skip
        response = in_process.http.get("/api/v1/worklist", params=query, headers=in_process.headers())
        assert (response.status_code, "title" in response.json()) == (400, True), query


def test_filters_of_arrival_sender_reader_and_region(in_process: Any) -> None:
    """Each new filter shows exactly what fits, alone and together; several regions are any of them."""
    kinds: list[dict[str, Any]] = [
        {"received_at": NOW - timedelta(minutes=5), "sender": "ct one", "region": "leg"},
        {"received_at": NOW - timedelta(hours=5), "sender": "ct one", "region": "hand"},
        {"received_at": NOW - timedelta(days=5), "sender": "", "region": "elbow"},
        {"received_at": NOW - timedelta(days=50), "assessment": None, "status": "queued", "region": ""},
    ]
    ids = [str(study) for study in add_studies(in_process, kinds)]
    with in_process.database.transaction() as session:
        lock = {"key_id": in_process.key().id, "token": uuid4(), "locked_at": NOW, "until": NOW + timedelta(hours=1)}
        session.execute(insert(ReadingLockRow).values(id=uuid4(), study_id=UUID(ids[1]), **lock))
    for query, expected in (
        ({"arrived": "hour"}, (0,)), ({"arrived": "day"}, (0, 1)), ({"arrived": "week"}, (0, 1, 2)),
        ({"sender": "ct one"}, (0, 1)), ({"sender": "ct"}, ()),
        ({"reader": "somebody"}, (1,)), ({"reader": "nobody"}, (0, 2, 3)),
        ({"region": "leg,elbow"}, (0, 2)), ({"region": "leg, ,leg"}, (0,)), ({"region": "leg,hand", "sender": "ct one"}, (0, 1)),
        ({"assessment": "pending"}, (3,)), ({"reader": "somebody", "region": "leg"}, ()),
    ):  # fmt: skip
        assert set(listed(in_process, **query)) == {ids[n] for n in expected}, query
        assert set(listed(in_process, **query, sort="severity", limit=1)) == {ids[n] for n in expected}, query
    many = ",".join(str(number) for number in range(17))
    assert (
        in_process.http.get("/api/v1/worklist", params={"region": many}, headers=in_process.headers()).status_code
        == 400
    )


def test_tabs_are_counted_exactly_while_they_are_few(in_process: Any) -> None:
    """All unread is the sum of its tabs; what was read today counts apart; many are as old as they may be."""
    rows = [{"assessment": word} for word in ("positive", "unclear", "unclear", "negative")]
    add_studies(in_process, [*rows, {"assessment": None, "status": "queued"}, {"read_at": NOW}, {"status": "kept"}])
    now = [0.0]
    tabs = TabCounts(lambda: now[0])

    def counts() -> dict[Tab, int]:
        with in_process.database.transaction() as session:
            return tabs.of(session, in_process.key().site_id, NOW - timedelta(hours=1))

    assert counts() == {
        Tab.ALL: 5, Tab.POSITIVE: 1, Tab.UNCLEAR: 2, Tab.NEGATIVE: 1, Tab.ABSTAINED: 0, Tab.PENDING: 1, Tab.TODAY: 1
    }  # fmt: skip
    tabs.FEW = 2
    add_studies(in_process, [{"assessment": "unclear"}])
    assert counts()[Tab.UNCLEAR] == 3
    add_studies(in_process, [{"assessment": "unclear"}, {"assessment": "positive"}])
    assert (counts()[Tab.UNCLEAR], counts()[Tab.POSITIVE]) == (3, 2)
    now[0] += tabs.RECOUNT_S
    assert counts()[Tab.UNCLEAR] == 4


# -- views ----------------------------------------------------------------------------------------------------------


def test_a_view_has_order_columns_and_an_address(in_process: Any) -> None:
    """What is saved opens under the view's own address, also once it is renamed; it is nobody else's."""
    mine, other, http = in_process.headers("radiologist"), in_process.headers("admin"), in_process.http

    def save(name: str, query: str) -> Any:
        return http.post("/api/v1/filters", json={"name": name, "query": query}, headers=mine)

    query = "state=today&sort=-age&columns=picture,region&assessment=unclear&after=x&page=3"
    (view,) = save("today's unclear", query).json()
    assert view["query"] == "state=today&assessment=unclear&sort=-age&columns=picture%2Cregion"
    opened = http.get("/", params={"view": view["id"]}, headers=mine, follow_redirects=False)
    assert (opened.status_code, opened.headers["location"]) == (303, f"/?{view['query']}")
    assert http.get(opened.headers["location"], headers=mine).status_code == 200
    save("second", "sort=region")
    path = f"/api/v1/filters/{view['id']}"
    assert http.patch(path, json={"name": "second"}, headers=mine).status_code == 409
    assert http.patch(path, json={"name": " first "}, headers=mine).status_code == 200
    assert [one["name"] for one in http.get("/api/v1/filters", headers=mine).json()] == ["first", "second"]
    assert http.patch(path, json={"name": "x"}, headers=other).status_code == 404
    for owner, address in ((other, view["id"]), (mine, str(uuid4())), (mine, "x")):
        assert http.get("/", params={"view": address}, headers=owner, follow_redirects=False).status_code == 404
    assert http.delete(path, headers=mine).status_code == 204
    assert http.get("/", params={"view": view["id"]}, headers=mine, follow_redirects=False).status_code == 404
    for wrong in ("sort=name", "columns=due,password", "sort=read", "state=read&sort=age"):
        assert save("wrong", wrong).status_code == 400, wrong


# -- search by words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("Smi", SearchWords(("smi",))),
        ("DOE, JANE", SearchWords(("doe", "jane"))),
        ("DOE^JANE=x*?", SearchWords(("doe", "jane", "x"))),
        ("hand 2026-11-28", SearchWords(("hand",), (date(2026, 11, 28),))),
        ("28.11.2026", SearchWords((), (date(2026, 11, 28),))),
        ("1.2.2026 2026-2-1", SearchWords((), (date(2026, 2, 1),))),
        ("31.02.2026", SearchWords((), (), ("31.02.2026",))),
        ("2026-13-40 x", SearchWords(("x",), (), ("2026-13-40",))),
        ("0000-01-01", SearchWords((), (), ("0000-01-01",))),
        (" , ^ ", SearchWords()),
        ("a b c d e f g h i", SearchWords(tuple("abcdefgh"), (), (), too_many=True)),
        ("Straße", SearchWords(("strasse",))),
    ],
)
def test_what_is_typed_is_read(typed: str, wanted: SearchWords) -> None:
    """Words, and dates in two forms, in any order; what is written like a date and is none is told apart."""
    assert parse_search(typed) == wanted


def test_words_find_parts_of_what_names_a_study(in_process: Any) -> None:
    """Parts of names in five scripts, of IDs, accession numbers and descriptions, and dates; each word must be found."""
    days = [date(2026, 11, 20 + number) for number in range(len(NAMES))]
    ids = add_studies(in_process, [{"study_date": day, "read_at": NOW if day.day % 2 else None} for day in days])
    site = in_process.key().site_id
    told = [
        Identity(
            name, f"P-{4700 + number}", accession_number=f"ACC {number}X", study_description=("Hand AP " * 25).strip()
        )
        for number, name in enumerate(NAMES)
    ]
    vault = in_process.http.app.state.parts.vault
    with in_process.database.transaction() as session:
        vault.store_identities(session, site, dict(zip(ids, told, strict=True)))
        add_key(session, "elsewhere", "other", Role.RADIOLOGIST, "osk_elsewhere")
        other = find_key(session, "osk_elsewhere")
    assert other is not None
    everything = "".join(map(str, range(len(NAMES))))
    for typed, expected in (
        ("smi", "0"), ("SM", "01"), ("jo smith", "0"), ("smith, john", "0"), ("s", "0"), ("smythe", "1"), ("müller", "1"),
        ("иван", "2"), ("АННА", "2"), ("太郎", "3"), ("山", "3"), ("たろ", "3"), ("yamada", "3"), ("أحمد", "4"), ("محم", "4"), ("כה", "5"),
        ("p-4703", "3"), ("470", everything), ("acc", everything), ("4x", "4"), ("hand", everything), ("hand smi", "0"),
        ("2026-11-22", "2"), ("22.11.2026 23.11.2026", "23"), ("smith 21.11.2026", ""), ("smith 20.11.2026", "0"),
        ("nobody", ""), ("smith nobody", ""), ("%", ""), ("_", ""), ("''", ""), ("31.02.2026", ""), ("\\", ""),
    ):  # fmt: skip
        with in_process.database.transaction() as session:
            found = find_by_words(session, vault, in_process.key(), parse_search(typed))
            assert {NAMES[ids.index(id_)] for id_ in found.ids} == {NAMES[int(n)] for n in expected}, typed
            assert found.whole
            assert find_by_words(session, vault, other, parse_search(typed)).ids == []


def test_a_search_says_what_it_understood_and_why_it_found_nothing(in_process: Any) -> None:
    """Over HTTP and on the page; each search and each name shown is on record, and no address has the words."""
    (study,) = add_studies(in_process, [{"study_date": date(2026, 11, 28)}])
    vault, http, mine = in_process.http.app.state.parts.vault, in_process.http, in_process.headers("radiologist")
    with in_process.database.transaction() as session:
        vault.store_identities(
            session, in_process.key().site_id, {study: Identity("ZEBRA^QUAGGA", "Z-4711", accession_number="ACC 1")}
        )

    def words(typed: str) -> Any:
        return http.post("/api/v1/worklist/search", json={"words": typed}, headers=mine).json()

    got = words("quag 28.11.2026")
    assert [entry["study_id"] for entry in got["entries"]] == [str(study)]
    assert got["understood"] == "“quag” in names, IDs, accession numbers and descriptions; studies of 28 Nov 2026"
    assert [entry["study_id"] for entry in words("acc1")["entries"]] == [str(study)], "spaces do not matter in a number"
    assert [entry["study_id"] for entry in words(str(study)[:8])["entries"]] == [str(study)]
    for typed, why in (
        ("31.02.2026", "is no date"), ("quag horse", "leave one out"), ("x", "One letter"), ("horse", "Only studies of this site"),
        ("^", "no letter"), ("a b c d e f g h i", "8 words"),
    ):  # fmt: skip
        got = words(typed)
        assert (got["entries"], why in got["understood"]) == ([], True), (typed, got["understood"])
    for wrong in ({}, {"words": ""}, {"words": "x" * 65}, {"number": "1", "words": "1"}):
        assert http.post("/api/v1/worklist/search", json=wrong, headers=mine).status_code == 422, wrong
    response = http.post("/search", data={"words": "quag"}, headers=mine, follow_redirects=False)
    assert "quag" not in response.headers["location"].lower()
    shown = http.get(response.headers["location"], headers=mine).text
    assert "ZEBRA, QUAGGA" in shown
    assert "<b>1 study</b> with “quag” in names" in shown
    response = http.post("/search", data={"words": "horse"}, headers=mine)
    assert "Only studies of this site are searched" in response.text
    with in_process.database.transaction() as session:
        assert session.scalars(select(IdentityReadRow.study_id)).all() == [study]
        assert session.scalars(select(IdentitySearchRow.found).order_by(IdentitySearchRow.id)).all() == [1] * 3 + [
            0
        ] * 6 + [1, 0]


def test_a_search_compares_no_more_than_it_may(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is frequent ends at a bound, the newest first, and says so."""
    ids = add_studies(in_process, [{"received_at": NOW - timedelta(hours=n)} for n in range(7)])
    vault = in_process.http.app.state.parts.vault
    with in_process.database.transaction() as session:
        vault.store_identities(session, in_process.key().site_id, {id_: Identity("ZEBRA^Z") for id_ in ids})
    monkeypatch.setattr("shared.queries.search.MAX_COMPARED", 4)
    with in_process.database.transaction() as session:
        found = find_by_words(session, vault, in_process.key(), parse_search("zebra"))
    assert (found.ids, found.whole) == (ids[:4], False)
    got = in_process.http.post(
        "/api/v1/worklist/search", json={"words": "zebra"}, headers=in_process.headers("radiologist")
    )
    assert "These are not all" in got.json()["understood"]


# -- the table ------------------------------------------------------------------------------------------------------


def test_the_table_is_the_list_that_is_shown(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same filters, order and columns; names are cells and no formulas, and are recorded as read; bounded, and it says so."""
    names = [*NAMES, "=HYPERLINK(1)", " @SUM(A1)", '"quoted", with comma', "＝1+1", "-1", "two\nlines"]
    ids = add_studies(in_process, [{"region": "hand", "age_years": n, "priority": "urgent"} for n in range(len(names))])
    (other,) = add_studies(in_process, [{"region": "leg"}])
    told = {id_: Identity(name, f"+{n}") for n, (id_, name) in enumerate(zip(ids, names, strict=True))}
    with in_process.database.transaction() as session:
        in_process.http.app.state.parts.vault.store_identities(
            session, in_process.key().site_id, {**told, other: Identity("X")}
        )
    monkeypatch.setattr("api.worklist.table.PAGE", 5)
    mine = in_process.headers("radiologist")

    def table(**query: str) -> list[list[str]]:
        response = in_process.http.get("/api/v1/worklist.csv", params=query, headers=mine)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/csv")
        assert 'attachment; filename="worklist.csv"' in response.headers["content-disposition"]
        text = response.content.decode("utf-8-sig")
        return list(csv.reader(io.StringIO(text, newline="")))

    notice, heads, *rows = table(region="hand", sort="-age", columns="region,priority,accession")
    assert notice == [RESEARCH_USE]
    assert heads == [
        "due_at", "overdue", "read_at", "patient_name", "patient_id", "sex", "age_years", "region", "priority",
        "accession_number", "status", "study_id",
    ]  # fmt: skip
    cells = [dict(zip(heads, row, strict=True)) for row in rows]
    assert [row["study_id"] for row in cells] == [str(id_) for id_ in ids[::-1]]
    plain = [row["patient_name"] for row in cells][::-1]
    assert plain[: len(NAMES)] == NAMES
    assert plain[len(NAMES) :] == [
        "'=HYPERLINK(1)",
        "' @SUM(A1)",
        '"quoted", with comma',
        "'＝1+1",
        "'-1",
        "two\nlines",
    ]
    assert {row["patient_id"][:2] for row in cells} == {"'+"}
    with in_process.database.transaction() as session:
        assert set(session.scalars(select(IdentityReadRow.study_id))) == set(ids)
        assert [row.detail["what"] for row in session.scalars(select(AuditEventRow)) if row.kind == "export"] == [
            "worklist"
        ]
    monkeypatch.setattr("api.worklist.table.MAX_ROWS", 7)
    *rows, last = table(sort="age")[2:]
    assert (len(rows), len(last), "more than 7 rows" in last[0]) == (7, 1, True)
    for query, status in (
        ({"columns": "password"}, 400),
        ({"sort": "name"}, 422),
        ({"state": "read", "sort": "age"}, 400),
    ):
        response = in_process.http.get("/api/v1/worklist.csv", params=query, headers=mine)
        assert response.status_code == status, query


def test_the_page_keeps_its_columns_zone_and_place(in_process: Any) -> None:
    """A browser's cookie chooses columns and zone, the address before it; what it does not know changes nothing."""
    add_studies(in_process, [{"due_at": NOW + timedelta(minutes=n)} for n in range(120)])
    mine, http = in_process.headers("radiologist"), in_process.http

    def shown(path: str = "/", **cookies: str) -> str:
        cookie = "; ".join(f"{name.replace('_', '-')}={value}" for name, value in cookies.items())
        response = http.get(path, headers=mine | ({"Cookie": cookie} if cookie else {}))
        assert response.status_code == 200, response.text
        return str(response.text)

    assert 'class="examination"' in shown()
    assert 'class="examination"' not in shown(worklist_columns="region.picture")
    assert 'class="images"' in shown("/?columns=images", worklist_columns="region.picture")
    for nonsense in ("no.such", "%00", "x" * 3000):
        assert 'class="examination"' in shown(worklist_columns=nonsense, zone=quote(nonsense[:50]))
    first = shown()
    assert "1 to 50 of 120" in first
    assert "page 1 of 3" in first
    following = first.split('rel="next" href="')[1].split('"')[0].replace("&amp;", "&")
    second = shown(following)
    assert "51 to 100 of 120" in second
    assert "page 2 of 3" in second
    assert 'rel="prev" href="/"' in second
    assert "1 to 50 of 120" in shown("/?page=99")  # of no place
    assert "page 1 of 3" in shown("/?sort=-age&region=hand")


def test_a_place_far_from_utc_is_no_fault(in_process: InProcessApi) -> None:
    """A forged place with a zone that Postgres does not take: 400 or a page, never an error of the server."""
    study = str(UUID(int=1))
    for order, extra in (("-read", []), ("arrived", [0, "2026-01-01T00:00:00+23:59"])):
        time = "2026-01-01T00:00:00+23:59" if order == "-read" else "2026-01-01T00:00:00"
        for at in (time, time.replace("2026-01-01T00", "9999-12-31T23"), time.replace("2026", "0001")):
            place = base64.urlsafe_b64encode(json.dumps([order, at, 0.0, study, *extra]).encode()).decode()
            query = {"after": place, "sort": order, **({"state": "read"} if order == "-read" else {})}
            answer = in_process.http.get("/api/v1/worklist", params=query, headers=in_process.headers())
            assert answer.status_code in (200, 400), answer.text
