"""Times the worklist among a million studies: first and deep pages, every filter, search; against a look-up by key."""

import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
import psycopg2
from cryptography.fernet import Fernet
from sqlalchemy import select

from api.worklist.filters import chosen_filter
from benchmarks.measure import Arm, Case, Goal, Result, Say, interleaved
from benchmarks.workload import ANALYSES
from infra.embedded.live_stack import KEYS, LiveStack
from shared.db.engine import Database
from shared.db.tables import StudyRow
from shared.domain.study import Identity
from shared.queries.access import Vault, find_key
from shared.queries.worklist import (
    Order,
    StatusCounts,
    WorklistCursor,
    WorklistFilter,
    cursor_after,
    entries,
    entries_of,
)

GOAL = Goal("<=", 5)
STUDIES, QUICK_STUDIES = 1_000_000, 40_000
PAGE = 50
SAMPLE = 2000  # studies that are looked up, each with an image

# As after two years of a hospital: nearly all analysed, a few of each other state, two sites, every other one read.
STUDIES_SQL = """
INSERT INTO studies (
    id, site_id, study_instance_uid, priority, status, received_at, current_analysis_id, reason, due_at, modality,
    assessment, severity, region, fracture_probability, score, abstention, bundle, images, failed_images, analysed_at,
    age_years, read_at)
SELECT gen_random_uuid(), CASE WHEN rng[1] < .9 THEN %(ours)s::uuid ELSE %(other)s::uuid END, '1.2.3.' || number,
    CASE WHEN rng[2] < .03 THEN 'urgent' WHEN rng[2] < .2 THEN 'backlog' ELSE 'routine' END,
    status, received, gen_random_uuid(), '',
    received + (ARRAY[10, 30, 240, 480, 720, 1440])[1 + floor(rng[3] * 6)::int] * interval '1 minute',
    CASE WHEN rng[4] < .5 THEN 'DX' WHEN rng[4] < .99 THEN 'CR' ELSE 'OT' END,
    CASE WHEN status <> 'analysed' THEN NULL WHEN rng[5] < .7 THEN 'negative' WHEN rng[5] < .85 THEN 'unclear'
         WHEN rng[5] < .93 THEN 'positive' ELSE 'abstained' END,
    CASE WHEN status <> 'analysed' THEN NULL WHEN rng[5] < .7 THEN 'none' WHEN rng[8] < .6 THEN 'mild'
         WHEN rng[8] < .95 THEN 'moderate' ELSE 'severe' END,
    (ARRAY['hand', 'elbow', 'shoulder', 'hip', 'leg'])[1 + floor(rng[6] * rng[6] * 5)::int],
    rng[5], CASE WHEN status = 'analysed' THEN CASE WHEN rng[5] < .7 THEN 3 * rng[5] / .7001 WHEN rng[5] < .85
        THEN 3 + 4 * (rng[5] - .7) / .1501 ELSE 7 + 3 * (rng[5] - .85) / .15 END END,
    CASE WHEN status = 'analysed' AND rng[5] >= .93 THEN 'metal' END, 'second-look', 1, 0, received,
    CASE WHEN rng[9] < .9 THEN floor(rng[9] * 100)::int END,
    CASE WHEN status = 'analysed' AND rng[10] < .5 THEN received + interval '2 hours' END
FROM (
    SELECT number, rng, %(now)s::timestamptz - (%(count)s - number) * interval '60 seconds' AS received,
        CASE WHEN rng[7] < .985 THEN 'analysed' WHEN rng[7] < .998 THEN 'queued' ELSE 'quarantined' END AS status
    FROM (
        SELECT number, ARRAY[random(), random(), random(), random(), random(), random(), random(), random(), random(),
            random()] AS rng
        FROM generate_series(1, %(count)s) AS number
    ) AS thrown
) AS made"""
BUSY_SQL = """
UPDATE analyses SET state = CASE WHEN random() < 1 / 3.0 THEN 'running' ELSE 'retrying' END
WHERE state = 'queued' AND random() < 3 / 13.0"""
INSTANCES_SQL = """
INSERT INTO instances (
    id, site_id, study_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256, size_bytes, modality,
    body_part, rows, columns, frames, received_at, error_reason)
SELECT gen_random_uuid(), site_id, id, study_instance_uid || '.1', '1.2', '1.2', repeat('0', 64), 1, modality, 'HAND',
    1, 1, 1, received_at, ''
FROM studies WHERE site_id = %(ours)s ORDER BY random() LIMIT %(sample)s RETURNING study_id"""
IDENTITIES_SQL = """
INSERT INTO identities (study_id, ciphertext)
SELECT id, %(sealed)s FROM studies WHERE site_id = %(ours)s AND read_at IS NULL ORDER BY due_at, id LIMIT 1000"""
TOKENS_SQL = """
INSERT INTO identity_tokens (study_id, kind, token)
SELECT id, kind, sha256((id::text || kind)::bytea)
FROM studies, (VALUES ('patient_id'), ('accession_number')) AS kinds (kind)"""
CLAIMS_SQL = """
INSERT INTO reading_locks (id, study_id, key_id, token, locked_at, until)
SELECT gen_random_uuid(), id, (SELECT id FROM api_keys WHERE name = 'radiologist'), gen_random_uuid(), now(),
    now() + interval '1 day'
FROM studies WHERE site_id = %(ours)s AND read_at IS NULL ORDER BY due_at, studies.id LIMIT 30"""
FILTERS: dict[str, list[dict[str, str]]] = {
    "status": [{"status": word} for word in ("queued", "running", "retrying", "analysed", "quarantined")],
    "assessment": [{"assessment": word} for word in ("negative", "unclear", "positive", "abstained")],
    "region": [
        {"region": word} for word in ("hand", "elbow", "shoulder", "hip", "leg", "foot")
    ],  # no study has the last one
    "priority": [{"priority": word} for word in ("urgent", "routine", "backlog")],
    "modality": [{"modality": word} for word in ("DX", "CR", "OT", "MR")],
    "severity": [{"severity": word} for word in ("none", "mild", "moderate", "severe")],
    "age": [{"age": word} for word in ("0-17", "18-39", "40-64", "65+")],
    "read": [{"state": "read"}, *({"state": "read", "region": word} for word in ("hip", "foot"))],
    "two filters": [
        {"status": "quarantined", "region": "hip"},
        {"assessment": "positive", "priority": "urgent"},
        {"severity": "severe", "priority": "urgent"},
        {"age": "65+", "assessment": "unclear"},
    ],
}


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Time the queries through the repository, and the same over HTTP, each against a look-up of the same kind.

    Args:
        quick: 40,000 studies instead of 1,000,000, and fewer calls.
        say: is called with a line of progress.

    Returns:
        The 95th percentile of each query and request to that of its look-up.
    """
    count = QUICK_STUDIES if quick else STUDIES
    calls, repeats = (24, 3) if quick else (100, 9)
    with LiveStack() as live_stack:
        say(f"loading {count:,} studies")
        start = time.perf_counter()
        studies = _load(live_stack, count)
        say(f"loaded in {time.perf_counter() - start:.0f} s")
        database = Database(live_stack.postgres.url, 2)
        url = live_stack.api()
        rng = random.Random(5)  # noqa: S311 - no secret
        try:
            queries = _queries(database, studies, rng)
            requests = _requests(url, studies, rng)
            samples = {}
            middles: dict[str, list[float]] = defaultdict(list)  # of every arm's turns
            for kind, calls_of in {"queries": queries, "HTTP": requests}.items():
                say(f"{kind}: {len(calls_of)} kinds, {calls} of each, {repeats} times")
                samples[kind] = interleaved(
                    {name: _p95(call, calls, middles[f"{kind}, {name}"]) for name, call in calls_of.items()}, repeats
                )
        finally:
            database.close()
    cases = [
        Case.of(f"queries, {name}", "ms", values, samples["queries"]["look-up"])
        for name, values in samples["queries"].items()
        if name != "look-up"
    ]
    for name, values in samples["HTTP"].items():
        if not name.startswith("look-up"):
            against = "look-up page" if name.startswith("page") else "look-up"
            cases.append(Case.of(f"HTTP, {name}", "ms", values, samples["HTTP"][against]))
    medians = {name: round(statistics.median(found), 2) for name, found in middles.items()}
    compares = (
        f"p95 of a page of {PAGE} among {count:,} studies, counts included, against that of one study by its primary "
        "key: SELECT against SELECT, GET /api/v1/worklist against GET /api/v1/studies/ID, the page against the page of "
        "one study"
    )
    return Result("worklist", compares, GOAL, tuple(cases), {"studies": count, "medians, ms": medians}, quick)


def _load(live_stack: LiveStack, count: int) -> list[UUID]:
    """Fill the tables; return the studies to look up."""
    connection = psycopg2.connect(live_stack.postgres.owner_url.replace("+psycopg2", ""))  # the owner may drop indexes
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO sites (id, name) VALUES (gen_random_uuid(), 'elsewhere') RETURNING id")
            (other,) = cursor.fetchone() or ("",)
            cursor.execute("SELECT id FROM sites WHERE name = 'default'")
            (ours,) = cursor.fetchone() or ("",)
            cursor.execute("SET synchronous_commit = off")
            cursor.execute("SET maintenance_work_mem = '256MB'")
            given = {"ours": ours, "other": other, "now": datetime.fromisoformat("2026-03-01T00:00:00+00:00")}
            # indexes are built faster behind the rows than row by row, as they stand in the migrations
            cursor.execute("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'studies'")
            indexes = [(name, made) for name, made in cursor.fetchall() if name.startswith("ix_")]
            for name, _ in indexes:
                cursor.execute(f"DROP INDEX {name}")
            cursor.execute("SELECT setseed(0.5)")
            cursor.execute(STUDIES_SQL, given | {"count": count})
            cursor.execute(ANALYSES)
            cursor.execute(BUSY_SQL)
            for _, made in indexes:
                cursor.execute(made)
            cursor.execute(INSTANCES_SQL, given | {"sample": SAMPLE})
            sealed = Vault(live_stack.environment["OSTEON_IDENTITY_KEY"]).seal(asdict(Identity("DOE^JANE", "4711")))
            sample = [UUID(study_id) for (study_id,) in cursor.fetchall()]
            cursor.execute(IDENTITIES_SQL, given | {"sealed": sealed})
            cursor.execute(TOKENS_SQL)
            cursor.execute(CLAIMS_SQL, given)
            for table in ("studies", "analyses", "instances", "identities", "identity_tokens", "reading_locks"):
                cursor.execute(f"VACUUM ANALYZE {table}")
    finally:
        connection.close()
    return sample


def _queries(database: Database, studies: list[UUID], rng: random.Random) -> dict[str, Callable[[], object]]:
    """Make a call of each query that the API sends to the database."""
    with database.transaction() as session:
        key = find_key(session, KEYS["radiologist"])
        assert key is not None
        reader, site_id = key, key.site_id
        places = [cursor_after(row, Order()) for row in entries_of(session, site_id, studies)]
    counts = StatusCounts()
    vault = Vault(Fernet.generate_key().decode())

    def search() -> None:
        with database.transaction() as session:
            found = vault.search(session, reader, str(rng.random()))
            entries_of(session, site_id, found or [rng.choice(studies)])

    def look_up() -> None:
        with database.transaction() as session:
            session.execute(select(StudyRow).where(StudyRow.id == rng.choice(studies))).one()

    def page(chosen: WorklistFilter, after: WorklistCursor | None) -> None:
        with database.transaction() as session:
            entries(session, site_id, chosen, after, PAGE + 1)
            counts.of(session, site_id)

    def filtered(words: list[dict[str, str]]) -> Callable[[], None]:
        """Make a call that takes each value in turn, the first page and then a deep one."""
        turns = itertools.cycle([(chosen_filter(word), deep) for deep in (False, True) for word in words])

        def ask() -> None:
            chosen, deep = next(turns)
            page(chosen, rng.choice(places) if deep else None)

        return ask

    return {
        "look-up": look_up,
        "first page": lambda: page(WorklistFilter(), None),
        "deep page": lambda: page(WorklistFilter(), rng.choice(places)),
        **{f"filter {name}": filtered(words) for name, words in FILTERS.items()},
        "search": search,
    }


def _requests(url: str, studies: list[UUID], rng: random.Random) -> dict[str, Callable[[], object]]:
    """Make calls of the same over HTTP, as programs and as browsers do."""
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEYS['radiologist']}"}, trust_env=False)
    words = itertools.cycle([word for words in FILTERS.values() for word in words])

    def get(path: str, **params: str | int) -> Any:  # noqa: ANN401 - JSON or HTML
        response = client.get(path, params=params)
        response.raise_for_status()
        return response

    first = get("/api/v1/worklist", limit=500).json()
    shown = [entry["study_id"] for entry in first["entries"]]
    return {
        "look-up": lambda: get(f"/api/v1/studies/{rng.choice(studies)}"),
        "first page": lambda: get("/api/v1/worklist", limit=PAGE),
        "second page": lambda: get("/api/v1/worklist", limit=PAGE, after=first["next"]),
        "filtered": lambda: get("/api/v1/worklist", limit=PAGE, **next(words)),
        "search": lambda: client.post("/api/v1/worklist/search", json={"number": "4711"}).raise_for_status(),
        "look-up page": lambda: get(f"/view/{rng.choice(shown)}"),
        "page for people": lambda: get("/"),
    }


def _p95(call: Callable[[], object], calls: int, middles: list[float]) -> Arm:
    """Measure the 95th percentile of several calls, in ms; their median goes to `middles`."""

    def once() -> float:
        took = []
        for _ in range(calls):
            start = time.perf_counter()
            call()
            took.append(time.perf_counter() - start)
        middles.append(1000 * statistics.median(took))
        return 1000 * sorted(took)[round(0.95 * (calls - 1))]

    return once
