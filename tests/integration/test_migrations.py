"""The schema is what the migrations make, and they can be undone."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from infra.embedded.postgres import EmbeddedPostgres
from shared.db.engine import Database
from shared.db.tables import Base
from shared.domain.findings import SCORED, OperatingPoints, assessment_of
from shared.errors import Rejected
from tests.databases import run_sql
from tests.hospital import Hospital


def test_migrations_lead_to_exactly_the_tables(database: Database) -> None:
    """A table, column, index or constraint that only one side knows is a difference."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


INDEXES = [  # that steps build outside their transactions: the step before, the step, an index; the newest first
    ("0035", "0036", "ix_studies_reported"),
    ("0032", "0033", "ix_studies_unread"),
    ("0031", "0032", "ix_studies_receiving"),
    ("0030", "0031", "ix_instances_series_id"),
    ("0029", "0030", "ix_identities_pieces"),
    ("0016", "0017", "ix_instances_sha256"),
    ("0010", "0011", "ix_studies_unfilled"),
    ("0008", "0009", "ix_studies_unread_by_region"),
    ("0007", "0008", "ix_studies_sent"),
    ("0006", "0007", "ix_studies_analysed_at"),
    ("0004", "0005", "ix_studies_unread_region"),
    ("0003", "0004", "ix_studies_history"),
]
MADE = """
    SELECT concat_ws(' ', 'index', indexrelid::regclass, pg_get_indexdef(indexrelid), indisvalid) FROM pg_index
    UNION ALL SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated)
    FROM pg_constraint
    UNION ALL SELECT concat_ws(' ', 'column', table_name, column_name, data_type, is_nullable, column_default)
    FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL SELECT concat_ws(' ', 'function', proname, prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', 'trigger', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
    WHERE NOT tgisinternal ORDER BY 1
"""


def test_an_interrupted_upgrade_is_done_again(
    database: Database, postgres: EmbeddedPostgres, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """A step that builds indexes outside its transaction may be killed half done: run again it ends where it must.

    What a killed CREATE INDEX CONCURRENTLY leaves, an index that is not valid, is built anew. Each step on the way down, for
    to come from the newest to each of them and back takes ten times as long.
    """
    superuser = create_engine(f"{postgres.admin_url.rsplit('/', 1)[0]}/{database_url.rsplit('/', 1)[1]}")

    def made() -> list[str]:
        with database.engine.connect() as connection:
            return list(connection.exec_driver_sql(MADE).scalars())

    for before, step, index in INDEXES:
        run_alembic(database_url, "downgrade", step)
        expected = made()
        with superuser.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :before"), {"before": before})
            spoilt = text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:index)")
            assert connection.execute(spoilt, {"index": index}).rowcount == 1, step
        assert made() != expected, step
        run_alembic(database_url, "upgrade", step)
        assert made() == expected, step
    superuser.dispose()
    run_alembic(database_url, "upgrade", "head")
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_index WHERE NOT indisvalid").scalar() == 0
    test_migrations_lead_to_exactly_the_tables(database)


@pytest.mark.slow
def test_two_upgrades_at_once_take_turns(
    database: Database, database_url: str, run_alembic: Callable[..., None], run_alembic_apart: Callable[..., None]
) -> None:
    """Two hosts that start together both end well."""
    run_alembic(database_url, "downgrade", "base")
    with ThreadPoolExecutor(2) as pool:
        for started in [pool.submit(run_alembic_apart, database_url, "upgrade", "head") for _ in range(2)]:
            started.result()
    assert set(inspect(database.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


def test_a_difference_would_be_seen(database: Database, owner_url: str) -> None:
    """The comparison above can fail: a dropped column shows."""
    run_sql(owner_url, "ALTER TABLE studies DROP COLUMN abstention")
    with database.engine.begin() as connection:
        context = MigrationContext.configure(connection)
        assert any("abstention" in str(difference) for difference in compare_metadata(context, Base.metadata))


def test_downgrade_leaves_an_empty_database_that_upgrades_again(
    database: Database, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """An operator can go back, and forth again."""
    run_alembic(database_url, "downgrade", "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    run_alembic(database_url, "upgrade", "head")
    assert set(inspect(database.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


# what code of before 0010 wrote: word, scope; and the assessment, reason and detail that it becomes
WRITTEN = [
    ("none", "in scope", "negative", None, ""),
    ("possible", "in scope", "unclear", None, ""),
    ("likely", "in scope", "positive", None, ""),
    ("abstained", "body part CHEST is outside the model's validated scope", "abstained", "body-part", "CHEST"),
    ("abstained", "modality MR is outside the model's validated scope", "abstained", "modality", "MR"),
    ("abstained", "the image is blank", "abstained", "blank", ""),
    ("abstained", "almost nothing of the image is exposed", "abstained", "collimated", ""),
    ("abstained", "the image looks inverted", "abstained", "inverted", ""),
    ("abstained", "metal is in view", "abstained", "metal", ""),
    ("abstained", "the image is unlike those it learned from", "abstained", "out-of-distribution", ""),
    ("abstained", "the body region was not recognised", "abstained", "region", ""),
    ("abstained", "1 image could not be read", "abstained", "unread-images", "1"),
    ("abstained", "3 images could not be read", "abstained", "unread-images", "3"),
    (None, "", None, None, ""),
]
CHANCE = {"none": 0.05, "possible": 0.3, "likely": 0.9, "abstained": 0.9, None: None}
BEFORE = """
    INSERT INTO sites (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'migrated');
    INSERT INTO api_keys (id, site_id, name, role, sha256)
    VALUES ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000001', 'ada', 'admin', 'x');
    INSERT INTO bundles (name, sha256, manifest, active)
    VALUES ('a', 'x', '{"sensitive": 0.1, "specific": 0.6}', true);
    INSERT INTO instances (id, site_id, study_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256,
        size_bytes, modality, body_part, rows, columns, frames, received_at, error_reason, error_text)
    SELECT id, site_id, id, study_instance_uid, '1', '1', 'x', 1, 'DX', '', 1, 1, 1, now(), '', '' FROM studies;
    INSERT INTO findings (id, instance_id, frame, bundle, region, region_probability, fracture_probability, call,
        severity, scope, heatmap, heatmap_height, heatmap_width)
    SELECT id, id, 1, 'a', 'hand', 1, fracture_probability, call, 'none', scope, '', 0, 0 FROM studies WHERE call IS NOT NULL;
    INSERT INTO backlog_runs (id, started_at, failed, stranded, outdated, bundle, report)
    VALUES ('00000000-0000-0000-0000-000000000003', now(), 0, 0, 0, 'a',
        '{"kinds": {"failed": {"done": 1}, "outdated": {"held": 2, "overtaken": 1}}, "changes": {"none": {"likely": 2, "none": 1}, "abstained": {"possible": 3}}}');
    INSERT INTO second_looks (study_id, bundle, site_id, run_id, purpose, state, reason, attempts, region, old_bundle,
        old_call, new_call)
    SELECT id, 'a', site_id, '00000000-0000-0000-0000-000000000003', 'shadow', 'done', '', 1, '', 'b', call, call
    FROM studies;
    INSERT INTO alerts (id, site_id, study_id, run_id, old_bundle, new_bundle, old_call, new_call, region,
        old_probability, new_probability)
    SELECT id, site_id, id, '00000000-0000-0000-0000-000000000003', 'b', 'a', 'none', 'possible', '', 0, 1
    FROM studies LIMIT 1;
    INSERT INTO allowances (site_id, minutes, key_id)
    VALUES ('00000000-0000-0000-0000-000000000001', '{"likely severe": {"urgent": 1}, "likely": {"urgent": 2},
        "possible": {"urgent": 3}, "abstained": {"urgent": 4}, "pending": {"urgent": 5}, "none": {"urgent": 6}}',
        '00000000-0000-0000-0000-000000000002');
    INSERT INTO saved_filters (id, key_id, name, query)
    SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000002', query, query
    FROM unnest(ARRAY['call=likely&severity=none', 'region=hand&call=none', 'call=possible', 'severity=none']) AS query;
"""
READ_BACK = {  # by the names of 0009
    "studies": "SELECT study_instance_uid, call, scope FROM studies ORDER BY 1",
    "findings": "SELECT id, call, scope FROM findings ORDER BY 1",
    "second_looks": "SELECT study_id, old_call, new_call FROM second_looks ORDER BY 1",
    "alerts": "SELECT old_call, new_call FROM alerts",
    "report": "SELECT report FROM backlog_runs",
    "allowances": "SELECT minutes FROM allowances",
    "saved_filters": "SELECT name, query FROM saved_filters ORDER BY 1",
}


def test_words_of_before_become_codes_and_back(
    database: Database, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """0010 translates everything that was stored, and its downgrade gives every word back as it was."""
    run_alembic(database_url, "downgrade", "0009")
    with database.engine.begin() as connection:
        site, rest = BEFORE.split(";", 1)
        connection.exec_driver_sql(site)
        for number, (call, scope, *_) in enumerate(WRITTEN):
            connection.execute(
                text("""
                INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, queue, attempts,
                    reason, due_at, modality, call, severity, region, fracture_probability, scope, bundle, images,
                    failed_images)
                SELECT gen_random_uuid(), id, :uid, 'routine', 'analysed', now(), 'routine', 1, '', now(), 'DX', :call,
                    'none', 'hand', :chance, :scope, 'a', 1, 0 FROM sites WHERE name = 'migrated'
                """),
                {"uid": f"{number:02d}", "call": call, "scope": scope, "chance": CHANCE[call]},
            )
        connection.exec_driver_sql(rest)
        before = {name: connection.exec_driver_sql(sql).all() for name, sql in READ_BACK.items()}
    run_alembic(database_url, "upgrade", "head")
    with database.engine.begin() as connection:
        told = "SELECT assessment, abstention, abstention_detail FROM {} ORDER BY {}"
        after = connection.exec_driver_sql(told.format("studies", "study_instance_uid")).all()
        assert [tuple(row) for row in after] == [tuple(codes) for _, _, *codes in WRITTEN]
        points = OperatingPoints(0.1, 0.6)
        for table in ("studies", "findings"):
            scored = f"SELECT fracture_probability, assessment, abstention, score FROM {table}"
            for chance, assessment, abstention, score in connection.exec_driver_sql(scored):
                expected = assessment and (abstention is None or abstention in SCORED) and points.score(chance)
                consistent = assessment == "abstained" or (expected and assessment == assessment_of(expected))
                assert score == (pytest.approx(expected) if expected and consistent else None), (assessment, abstention)
        found = connection.exec_driver_sql(told.format("findings", "1, 2, 3")).all()
        assert sorted(map(str, found)) == sorted(str(row) for row in after if row[0])
        (report,) = connection.exec_driver_sql("SELECT report FROM backfill_runs").scalars()
        assert report["changes"] == {"negative": {"positive": 2, "negative": 1}, "abstained": {"unclear": 3}}
        assert report["kinds"] == {"failed": {"done": 1}, "outdated": {"paused": 2, "superseded": 1}}
        (minutes,) = connection.exec_driver_sql("SELECT minutes FROM turnaround_targets").scalars()
        assert {name: row["urgent"] for name, row in minutes.items()} == {
            "positive severe": 1, "positive": 2, "unclear": 3, "abstained": 4, "pending": 5, "negative": 6
        }  # fmt: skip
        filters = {name: query for name, query in connection.exec_driver_sql(READ_BACK["saved_filters"])}  # noqa: C416
        assert filters == {
            "call=likely&severity=none": "assessment=positive&severity=none",
            "region=hand&call=none": "region=hand&assessment=negative",
            "call=possible": "assessment=unclear",
            "severity=none": "severity=none",
        }
    run_alembic(database_url, "downgrade", "0009")
    with database.engine.begin() as connection:
        assert before == {name: connection.exec_driver_sql(sql).all() for name, sql in READ_BACK.items()}


def test_figures_of_bundles_count_radiographs_and_back(
    database: Database, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """0022 renames the key of a manifest's figures, overall and in each group, and its downgrade renames it back."""
    run_alembic(database_url, "downgrade", "0021")
    manifest = {"name": "a", "metrics": {"films": 8, "groups": {"hand": {"films": 5}}}}
    with database.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO bundles (name, sha256, manifest, active) VALUES ('a', 'a', CAST(:told AS jsonb), false)"),
            {"told": json.dumps(manifest)},
        )
    read = "SELECT manifest FROM bundles WHERE name = 'a'"
    run_alembic(database_url, "upgrade", "0022")
    with database.engine.begin() as connection:
        found = connection.exec_driver_sql(read).scalar_one()
    assert found == {"name": "a", "metrics": {"radiographs": 8, "groups": {"hand": {"radiographs": 5}}}}
    run_alembic(database_url, "downgrade", "0021")
    with database.engine.begin() as connection:
        assert connection.exec_driver_sql(read).scalar_one() == manifest


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("assessment = 'likely'", "assessment"),
        ("abstention = 'metal is in view', assessment = 'abstained'", "abstention"),
        ("assessment = 'abstained'", "abstained_with_reason"),
        ("abstention = 'metal'", "abstained_with_reason"),
        ("abstention = 'metal', assessment = 'unclear'", "abstained_with_reason"),
        ("abstention = 'region', assessment = 'positive'", "abstained_with_reason"),
        ("status = 'waiting'", "status"),
        ("priority = 'stat'", "priority"),
        ("status = 'running'", "status"),
        ("severity = 'grave'", "severity"),
        ("reason = 'gremlins'", "reason"),
        ("assessment = 'negative', score = 3", "score"),
        ("assessment = 'unclear', score = 2.99", "score"),
        ("assessment = 'positive', score = 6.99", "score"),
    ],
)
def test_postgres_refuses_what_is_no_code(hospital: Hospital, change: str, constraint: str) -> None:
    """A word that is no code, an abstention without a reason, a reason without one, and a score of another assessment cannot be stored."""
    study = hospital.study()
    with pytest.raises(IntegrityError, match=f"ck_studies_{constraint}"), hospital.database.transaction() as session:
        session.execute(text(f"UPDATE studies SET {change} WHERE id = '{study}'"))


def test_the_checks_hold_exactly_the_codes(database: Database) -> None:
    """A code that is added in Python is a code that Postgres must be told of: alembic does not compare checks."""
    with database.engine.connect() as connection:
        stored = {
            check["name"]: check["sqltext"]
            for table in Base.metadata.tables
            for check in inspect(connection).get_check_constraints(table)
        }
    wanted = {
        check.name: str(check.sqltext)
        for table in Base.metadata.tables.values()
        for check in table.constraints
        if isinstance(check, CheckConstraint)
    }
    assert stored.keys() == wanted.keys()
    for name, words in wanted.items():
        assert set(re.findall("'[a-z-]+'", stored[str(name)])) == set(re.findall("'[a-z-]+'", words)), name


# what code of before 0019 wrote as a reason, of every wording there was; and the code and fact that it becomes
REASONS_BEFORE = [
    ("4 attempts ended without a result: the worker died or hung each time", "worker-died", "4"),
    ("analysis failed (FloatingPointError)", "analysis-failed", "FloatingPointError"),
    ("Decoding took more than 60 s and was stopped", "decoding-timed-out", "60"),
    ("Decoding ended its process (SIGABRT)", "decoder-died", "SIGABRT"),
    ("Decoding ended its process (exit code 3)", "decoder-died", "exit code 3"),
    ("Decoding needs more than 0.5 GB of memory and was stopped", "decoder-out-of-memory", "0.5 GB"),
    ("Decoding failed (KeyError)", "decoding-failed", "KeyError"),
    ("Decoding an image ended its process.", "decoding-failed", ""),
    ("originals/ab/abcd is not in the store", "object-missing", "originals/ab/abcd"),
    ("An object that a row names is not in the store.", "object-missing", ""),
    ("The stored bytes of an image are damaged; send the file again", "object-damaged", ""),
    ("The object store cannot be read: Input/output error. Check it", "store-unavailable", "Input/output error"),
    ("The object store cannot be written: No space left on device", "store-unavailable", "No space left on device"),
    ("The object store answered SlowDown. Check it", "store-unavailable", "SlowDown"),
    ("The object store does not answer (MaxRetryError). Check it", "store-unavailable", "MaxRetryError"),
    ("The object store does not answer. Check OSTEON_STORE_URL, and that the store runs", "store-unavailable", ""),
    ("Postgres does not answer (OperationalError). Check it", "database-unavailable", "OperationalError"),
    ("Postgres gave a statement up after 60 s. Check it", "database-unavailable", ""),
    ("Postgres closed the connection. Check it", "database-unavailable", ""),
    ("All connections to Postgres are busy; OSTEON_DATABASE_POOL_SIZE raises it", "database-unavailable", ""),
    (
        "Another transaction held a lock on the table studies in Postgres for over 5 s. End it",
        "database-locked",
        "studies",
    ),
    ("Another transaction held the study's row in Postgres. End it", "database-locked", ""),
    ("Another transaction in Postgres holds what this one needs; the same call may work", "database-locked", ""),
    ("Postgres has no room on its disk. Make some", "database-full", ""),
    ("the study has no image", "no-image", ""),
    ("words that nobody knows any more", "other", "words that nobody knows any more"),
    ("", "", ""),
]
LOOKS_BEFORE = [
    ("an image could not be read again (truncated-pixels)", "image-unread", "truncated-pixels"),
    ("not every image could be read again", "images-missing", ""),
    ("the study is analysed anew", "analysed-anew", ""),
    ("this bundle speaks for the study already", "speaks-already", ""),
    ("another bundle is active", "other-bundle", ""),
    ("an image was deleted", "image-deleted", ""),
    ("still in its queue when the next night began", "run-over", ""),
    *REASONS_BEFORE,
]
# sentences of 0.1.0 that have changed since
SENTENCES = {
    "sop-class-not-supported": "The SOP Class is not an image but a report, plan or other object. Send images only."
}
RAISED_BEFORE = {kind.reason.value: SENTENCES.get(kind.reason, str(kind())) for kind in Rejected.__subclasses__()}
IMAGES_BEFORE = [  # code and words; code and fact
    ("decoding-failed", "Decoding took more than 60 s and was stopped", "decoding-timed-out", "60"),
    ("decoding-failed", "Decoding ended its process (SIGKILL)", "decoder-died", "SIGKILL"),
    ("decoding-failed", "Decoding needs more than 4.0 GB of memory and was stopped", "decoder-out-of-memory", "4.0 GB"),
    ("decoding-failed", "Decoding failed (ValueError)", "decoding-failed", "ValueError"),
    *((code, f"{words} (KeyError)", code, "KeyError") for code, words in RAISED_BEFORE.items()),
    *((code, words, code, "") for code, words in RAISED_BEFORE.items()),
    (
        "truncated-pixels", "Pixel Data has 3 bytes where 9 are needed: the file was cut short",
        "truncated-pixels", "Pixel Data has 3 bytes where 9 are needed: the file was cut short",
    ),
]  # fmt: skip
ENDS_BEFORE = [
    ("the next night began", "next-run"),
    ("retired", "retired"),
    ("another bundle became active", "other-bundle"),
    ("promoted: the nights go on with what is left", "promoted"),
    ("the window closed", "window-closed"),
    ("history came to its end", "history-ended"),
    ("the night's count", "count-reached"),
    ("", ""),
]
STUDY_BEFORE = text("""
    INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, queue, attempts, reason, due_at,
        modality, region, bundle, images, failed_images)
    VALUES (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', :uid, 'routine', :status, now(), 'routine', 1,
        :reason, now(), 'DX', '', '', 1, 0)
    RETURNING id
""")
IMAGE_BEFORE = text("""
    INSERT INTO instances (id, site_id, study_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256, size_bytes,
        modality, body_part, rows, columns, frames, received_at, error_reason, error_text)
    VALUES (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', :study, :uid, '1', '1', 'x', 1, 'DX', '', 1, 1, 1,
        now(), :reason, :words)
""")
SITE_BEFORE = """
    INSERT INTO sites (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'migrated');
    INSERT INTO api_keys (id, site_id, name, role, sha256)
    VALUES ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000001', 'ada', 'admin', 'x');
    INSERT INTO bundles (name, sha256, manifest, active) VALUES ('a', 'x', '{}', true);
    INSERT INTO backlog_runs (id, started_at, failed, stranded, outdated, bundle)
    VALUES ('00000000-0000-0000-0000-000000000003', now(), 0, 0, 0, 'a');
    INSERT INTO refusals (site_id, hour, reason, failure, text, files, last_at)
    VALUES ('00000000-0000-0000-0000-000000000001', now(), 'not-dicom', '0xC000', 'This is not a DICOM file', 3, now());
"""
LOOK_BEFORE = text("""
    INSERT INTO second_looks (study_id, bundle, site_id, run_id, purpose, state, reason, attempts, region, old_bundle)
    VALUES (:study, 'a', '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000003', 'outdated',
        'failed', :reason, 1, '', '')
""")
STORED_WORDS = {
    "studies": "SELECT study_instance_uid, reason FROM studies ORDER BY 1",
    "instances": "SELECT sop_instance_uid, error_reason, error_text FROM instances ORDER BY 1",
    "second_looks": (
        "SELECT study_instance_uid, second_looks.reason FROM second_looks JOIN studies ON studies.id = study_id ORDER BY 1"
    ),
    "backlog_runs": "SELECT id, ended_by FROM backlog_runs ORDER BY ended_by, id",
    "quarantine_decisions": "SELECT study_id, set_aside_for FROM quarantine_decisions ORDER BY 1",
    "study_claims": "SELECT id, ended FROM study_claims ORDER BY 1",
}


def test_reasons_in_words_become_codes_and_back(
    database: Database, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """0019 makes a code and its fact of every sentence that was stored, and its downgrade sentences that mean the same."""
    run_alembic(database_url, "downgrade", "0018")
    with database.engine.begin() as connection:
        connection.exec_driver_sql(SITE_BEFORE)
        studies = {}
        for number, (words, *_) in enumerate(REASONS_BEFORE):
            told = {"uid": f"r{number:02d}", "status": "retrying" if words else "queued", "reason": words}
            studies[number] = connection.scalar(STUDY_BEFORE, told)
        for number, (code, words, *_) in enumerate(IMAGES_BEFORE):
            told = {"uid": f"i{number:02d}", "status": "quarantined", "reason": words}
            study = connection.scalar(STUDY_BEFORE, told)
            connection.execute(IMAGE_BEFORE, {"study": study, "uid": f"i{number:02d}", "reason": code, "words": words})
        for number, (words, *_) in enumerate(LOOKS_BEFORE):
            told = {"uid": f"l{number:02d}", "status": "analysed", "reason": ""}
            connection.execute(LOOK_BEFORE, {"study": connection.scalar(STUDY_BEFORE, told), "reason": words})
        for words, _ in ENDS_BEFORE:
            connection.execute(
                text("INSERT INTO backlog_runs (id, purpose, started_at, failed, stranded, outdated, bundle, ended_by) "
                     "VALUES (gen_random_uuid(), 'shadow', now(), 0, 0, 0, 'b', :words)"), {"words": words}
            )  # fmt: skip
        decisions = (
            "INSERT INTO quarantine_decisions (id, site_id, study_id, decision, set_aside_for, why, key_id) "
            "SELECT id, site_id, id, 'dismissed', reason, '', '00000000-0000-0000-0000-000000000002' FROM studies "
            "WHERE study_instance_uid LIKE 'r%%' OR study_instance_uid LIKE 'i%%'"
        )
        connection.exec_driver_sql(decisions)
        for ended in ("taken over", "read", "released", "expired"):
            connection.execute(
                text("INSERT INTO study_claims (id, study_id, key_id, token, claimed_at, until, ended_at, ended) SELECT "
                     "gen_random_uuid(), id, '00000000-0000-0000-0000-000000000002', gen_random_uuid(), now(), now(), "
                     "now(), :ended FROM studies LIMIT 1"), {"ended": ended}
            )  # fmt: skip
        before = {name: connection.exec_driver_sql(sql).all() for name, sql in STORED_WORDS.items()}
    run_alembic(database_url, "upgrade", "0027")

    def coded() -> None:
        """What stands there now is codes and facts, all of them."""
        with database.engine.begin() as connection:
            query = "SELECT reason, reason_detail FROM studies WHERE study_instance_uid LIKE '{}%%' ORDER BY study_instance_uid"
            of = [tuple(row) for row in connection.exec_driver_sql(query.format("r"))]
            assert of == [(code, detail) for _, code, detail in REASONS_BEFORE]
            images = [tuple(told) for _, _, *told in IMAGES_BEFORE]
            assert [tuple(row) for row in connection.exec_driver_sql(query.format("i"))] == images, "of its image"
            found = connection.exec_driver_sql(
                "SELECT error_reason, error_detail FROM instances ORDER BY sop_instance_uid"
            )
            assert [tuple(row) for row in found] == images
            assert set(connection.exec_driver_sql("SELECT error_text FROM instances").scalars()) == {""}
            looks = connection.exec_driver_sql(
                "SELECT second_looks.reason, second_looks.reason_detail FROM second_looks "
                "JOIN studies ON studies.id = study_id ORDER BY study_instance_uid"
            )
            assert [tuple(row) for row in looks] == [(code, detail) for _, code, detail in LOOKS_BEFORE]
            ends = connection.exec_driver_sql("SELECT ended_by FROM backfill_runs WHERE bundle = 'b'").scalars()
            assert sorted(ends) == sorted(code for _, code in ENDS_BEFORE)
            decided = connection.exec_driver_sql(
                "SELECT set_aside_for, set_aside_detail FROM quarantine_decisions JOIN studies ON studies.id = study_id "
                "ORDER BY study_instance_uid"
            )
            assert [tuple(row) for row in decided] == images + [(code, detail) for _, code, detail in REASONS_BEFORE]
            locks = connection.exec_driver_sql("SELECT ended FROM reading_locks").scalars()
            assert sorted(locks) == sorted(["expired", "read", "released", "taken-over"])
            assert connection.exec_driver_sql("SELECT reason, text, detail FROM rejections").all() == [
                ("not-dicom", "", "")
            ]

    coded()
    run_alembic(database_url, "downgrade", "0018")
    with database.engine.begin() as connection:
        after = {name: connection.exec_driver_sql(sql).all() for name, sql in STORED_WORDS.items()}
    for name in ("backlog_runs", "study_claims"):
        assert after[name] == before[name]
    exact = ("r00", "r01", "r02", "r03", "r04", "r05", "r06", "r08", "r24", "r25", "r26")
    for name in ("studies", "second_looks"):
        known = {words for words, *_ in (LOOKS_BEFORE[:7] if name == "second_looks" else [])}
        for old, new in zip(before[name], after[name], strict=True):
            if old[0] in exact or old[1] in known:
                assert new == old
            assert bool(new[1]) == bool(old[1])
    assert {words for _, code, words in after["instances"] if code == "decoding-failed"} == {
        words for code, words, *_ in IMAGES_BEFORE if code == "decoding-failed"
    }
    run_alembic(database_url, "upgrade", "0027")
    with database.engine.begin() as connection:
        again = "SELECT reason FROM studies WHERE study_instance_uid LIKE 'r%%' ORDER BY study_instance_uid"
        assert connection.exec_driver_sql(again).scalars().all() == [code for _, code, _ in REASONS_BEFORE]


def test_what_an_older_process_writes_in_words_becomes_a_code(hospital: Hospital) -> None:
    """During an update a worker of before may write sentences: they are translated as they are written."""
    for words, code, detail in REASONS_BEFORE:
        study = hospital.study()
        with hospital.database.transaction() as session:
            changed = text("UPDATE studies SET status = 'quarantined', reason = :words WHERE id = :study")
            session.execute(changed, {"words": words, "study": study})
        assert (hospital.row(study).reason, hospital.row(study).reason_detail) == (code, detail)
    for code, words, new, detail in IMAGES_BEFORE:
        study = hospital.study()
        with hospital.database.transaction() as session:
            its = {"code": code, "words": words, "study": study}
            session.execute(
                text("UPDATE instances SET error_reason = :code, error_text = :words WHERE study_id = :study"), its
            )
            session.execute(text("UPDATE studies SET status = 'quarantined', reason = :words WHERE id = :study"), its)
        (image,), row = hospital.instances(study), hospital.row(study)
        assert (image.error_reason, image.error_detail, image.error_text) == (new, detail, "")
        assert (row.reason, row.reason_detail) == (new, detail)


def test_an_interrupted_validation_is_done_again(
    database: Database, postgres: EmbeddedPostgres, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """0019 may be killed between its constraints and their validation: run again it ends where it must."""
    run_alembic(database_url, "downgrade", "0019")
    superuser = create_engine(f"{postgres.admin_url.rsplit('/', 1)[0]}/{database_url.rsplit('/', 1)[1]}")
    with superuser.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0018'"))
        spoilt = text("UPDATE pg_constraint SET convalidated = false WHERE conname = 'ck_studies_reason'")
        assert connection.execute(spoilt).rowcount == 1
        connection.execute(text("ALTER TABLE studies DROP CONSTRAINT ck_studies_queue"))
    superuser.dispose()
    run_alembic(database_url, "upgrade", "head")
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_constraint WHERE NOT convalidated").scalar() == 0
    test_migrations_lead_to_exactly_the_tables(database)
    test_the_checks_hold_exactly_the_codes(database)


BEFORE_ANALYSES = Path(__file__).parents[1] / "data/before_analyses/database.sql"
QUEUES_BEFORE = {
    "studies": """
        SELECT id, status, queue, queued_at, sent_at, attempts, not_before, lease_token, lease_until, started_at,
            CASE WHEN status IN ('retrying', 'quarantined') THEN reason ELSE '' END, reason_detail, analysed_at, bundle
        FROM studies ORDER BY id""",
    "second looks": """
        SELECT study_id, bundle, run_id, purpose, state, reason, reason_detail, queued_at, sent_at, attempts,
            not_before, lease_token, lease_until, finished_at, region, old_bundle, old_assessment, old_severity,
            old_probability, new_assessment, new_severity, new_probability
        FROM second_looks WHERE purpose IN ('outdated', 'shadow') ORDER BY 1, 2""",
    "accounts of runs": """
        SELECT study_id, bundle, run_id, purpose, state, reason, new_assessment
        FROM second_looks WHERE purpose IN ('failed', 'stranded') ORDER BY 1, 2""",
}


def test_two_queues_become_one_and_back(
    database: Database, database_url: str, owner_url: str, run_alembic: Callable[..., None]
) -> None:
    """The migration of analyses, on rows that the version before wrote: each has its analysis, and a downgrade gives all rows back."""
    run_alembic(database_url, "downgrade", "0020")
    run_sql(owner_url, BEFORE_ANALYSES.read_text())
    with database.engine.begin() as connection:
        before = {name: connection.exec_driver_sql(sql).all() for name, sql in QUEUES_BEFORE.items()}
    run_alembic(database_url, "upgrade", "head")
    with database.engine.begin() as connection:
        stands = connection.exec_driver_sql("""
            SELECT status, purpose, state, leftover, count(*) FROM analyses JOIN studies ON studies.id = study_id
            GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4""").all()
        current = (
            "SELECT count(*) FROM studies JOIN analyses ON analyses.id = current_analysis_id AND study_id = studies.id"
        )
        assert connection.exec_driver_sql(current).scalar() == len(before["studies"])
    assert [tuple(row) for row in stands] == [
        ("analysed", "first", "done", "failed", 1),
        ("analysed", "first", "done", None, 9),
        ("analysed", "rerun", "done", None, 1),
        ("analysed", "rerun", "failed", None, 1),
        ("analysed", "rerun", "paused", None, 1),
        ("analysed", "rerun", "queued", None, 1),
        ("analysed", "rerun", "running", None, 1),
        ("analysed", "rerun", "superseded", None, 1),
        ("analysed", "shadow", "done", None, 1),
        ("analysed", "shadow", "retrying", None, 1),
        ("analysed", "shadow", "superseded", None, 1),
        ("quarantined", "first", "failed", None, 4),
        ("queued", "first", "queued", "failed", 1),
        ("queued", "first", "queued", "stranded", 1),
        ("queued", "first", "queued", None, 6),
        ("queued", "first", "retrying", None, 1),
        ("queued", "first", "running", None, 1),
    ]
    run_alembic(database_url, "downgrade", "0020")
    with database.engine.begin() as connection:
        after = {name: connection.exec_driver_sql(sql).all() for name, sql in QUEUES_BEFORE.items()}
    assert after == before


KEYS_BEFORE = """
    INSERT INTO sites (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'one');
    INSERT INTO api_keys (id, site_id, name, role, sha256, created_at, revoked_at)
    SELECT ('00000000-0000-0000-0000-00000000001' || n)::uuid, '00000000-0000-0000-0000-000000000001', name, role,
        'hash ' || n, timestamptz '2026-01-01' + n * interval '1 day', revoked_at::timestamptz
    FROM (VALUES
        (1, 'pacs', 'submitter', '2026-02-01'), (2, 'pacs', 'submitter', NULL), (3, 'pacs', 'submitter', NULL),
        (4, 'pacs (2)', 'submitter', NULL), (5, 'ada', 'admin', NULL), (6, 'ada', 'admin', '2026-02-01')
    ) AS told (n, name, role, revoked_at);
"""


@pytest.mark.parametrize("sites", [1, 2])
def test_keys_of_before_keep_what_they_may(
    database: Database, database_url: str, run_alembic: Callable[..., None], sites: int
) -> None:
    """0014: doubles get a number, the oldest valid key keeps its name; admins of an only site stay operators too."""
    run_alembic(database_url, "downgrade", "0013")
    with database.engine.begin() as connection:
        connection.exec_driver_sql(KEYS_BEFORE)
        if sites == 2:
            connection.exec_driver_sql("INSERT INTO sites (id, name) VALUES (gen_random_uuid(), 'two')")
    run_alembic(database_url, "upgrade", "head")
    with database.engine.begin() as connection:
        names = connection.exec_driver_sql("SELECT name, operates FROM api_keys ORDER BY id").all()
    assert [name for name, _ in names] == ["pacs (4)", "pacs", "pacs (3)", "pacs (2)", "ada", "ada (2)"]
    assert {operates for name, operates in names if name.startswith("pacs")} == {False}
    assert {operates for name, operates in names if name.startswith("ada")} == {sites == 1}


def test_events_of_security_stay(database: Database, owner_url: str) -> None:
    """Postgres refuses to change or remove one: the application has no right to, and the owner is stopped."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO audit_events (kind) VALUES ('login')")
    for statement in (
        "UPDATE audit_events SET kind = 'logout'",
        "DELETE FROM audit_events",
        "TRUNCATE audit_events",
    ):
        with pytest.raises(ProgrammingError, match="permission denied"), database.engine.begin() as connection:
            connection.exec_driver_sql(statement)
        with pytest.raises(psycopg2.IntegrityError, match="never changed or removed"):
            run_sql(owner_url, statement)
