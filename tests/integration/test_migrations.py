"""The schema is what the migrations make, and they can be undone."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from infra.postgres import EmbeddedPostgres
from shared.findings import SCORED, OperatingPoints, assessment_of
from shared.repository import Database
from shared.tables import Base
from tests.ward import Ward


def test_migrations_lead_to_exactly_the_tables(database: Database) -> None:
    """A table, column, index or constraint that only one side knows is a difference."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


@pytest.mark.parametrize(
    ("before", "step", "index"),
    [
        ("0003", "0004", "ix_studies_history"),
        ("0004", "0005", "ix_studies_unread_region"),
        ("0006", "0007", "ix_studies_analysed_at"),
        ("0007", "0008", "ix_studies_sent"),
        ("0008", "0009", "ix_studies_unread_by_region"),
        ("0010", "0011", "ix_studies_unfilled"),
    ],
)
def test_an_interrupted_upgrade_is_done_again(
    database: Database, postgres: EmbeddedPostgres, database_url: str, run_alembic: Callable[..., None],
    before: str, step: str, index: str,
) -> None:  # fmt: skip
    """A step that builds indexes outside its transaction may be killed half done: run again it ends where it must.

    What a killed CREATE INDEX CONCURRENTLY leaves, an index that is not valid, is built anew.
    """
    run_alembic(database_url, "downgrade", step)
    superuser = create_engine(f"{postgres.admin_url.rsplit('/', 1)[0]}/{database_url.rsplit('/', 1)[1]}")
    with superuser.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :before"), {"before": before})
        spoilt = text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:index)")
        assert connection.execute(spoilt, {"index": index}).rowcount == 1
    superuser.dispose()
    run_alembic(database_url, "upgrade", "head")
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_index WHERE NOT indisvalid").scalar() == 0
    test_migrations_lead_to_exactly_the_tables(database)


def test_two_upgrades_at_once_take_turns(
    database: Database, database_url: str, run_alembic: Callable[..., None]
) -> None:
    """Two hosts that start together both end well."""
    run_alembic(database_url, "downgrade", "base")
    with ThreadPoolExecutor(2) as pool:
        for started in [pool.submit(run_alembic, database_url, "upgrade", "head") for _ in range(2)]:
            started.result()
    assert set(inspect(database.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


def test_a_difference_would_be_seen(database: Database) -> None:
    """The comparison above can fail: a dropped column shows."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE studies DROP COLUMN abstention")
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
        '{"kinds": {"failed": {"done": 1}}, "changes": {"none": {"likely": 2, "none": 1}, "abstained": {"possible": 3}}}');
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
READ_BACK = {
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
        (report,) = connection.exec_driver_sql(READ_BACK["report"]).scalars()
        assert report["changes"] == {"negative": {"positive": 2, "negative": 1}, "abstained": {"unclear": 3}}
        assert report["kinds"] == {"failed": {"done": 1}}
        (minutes,) = connection.exec_driver_sql(READ_BACK["allowances"]).scalars()
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


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("assessment = 'likely'", "assessment"),
        ("abstention = 'metal is in view', assessment = 'abstained'", "abstention"),
        ("assessment = 'abstained'", "abstained_with_reason"),
        ("abstention = 'metal'", "abstained_with_reason"),
        ("abstention = 'metal', assessment = 'unclear'", "abstained_with_reason"),
        ("abstention = 'region', assessment = 'positive'", "abstained_with_reason"),
        ("assessment = 'negative', score = 3", "score"),
        ("assessment = 'unclear', score = 2.99", "score"),
        ("assessment = 'positive', score = 6.99", "score"),
    ],
)
def test_postgres_refuses_what_is_no_code(ward: Ward, change: str, constraint: str) -> None:
    """A word that is no code, an abstention without a reason, a reason without one, and a score of another assessment cannot be stored."""
    study = ward.study()
    with pytest.raises(IntegrityError, match=f"ck_studies_{constraint}"), ward.database.transaction() as session:
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
