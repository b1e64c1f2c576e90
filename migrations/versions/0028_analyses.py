"""One queue: `analyses` takes over the queue columns of `studies`, and `second_looks` as a whole.

Stop the API and all workers first: code of before knows none of this, and this knows nothing of what it writes. All of
it is one transaction. A study's own analysis gets the id of its study, so that `current_analysis_id` is filled by
writing the table anew in one go: to update each of a million rows takes several times as long.

Revision ID: 0028
Revises: 0027
"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
ASSESSMENTS = ("negative", "unclear", "positive", "abstained")
SEVERITIES = ("none", "mild", "moderate", "severe")
PRIORITIES = ("urgent", "routine", "backlog")
REASONS = (
    "", "cannot-understand", "empty-file", "not-dicom", "no-file-meta", "unknown-transfer-syntax",
    "sop-class-not-supported", "no-pixel-data", "bad-attributes", "truncated-pixels", "too-large", "bad-archive",
    "unsupported-pixels", "undecodable-pixels", "decoding-failed", "decoding-timed-out", "decoder-died",
    "decoder-out-of-memory", "store-unavailable", "object-missing", "object-damaged", "database-unavailable",
    "database-locked", "database-full", "part-unavailable", "bad-bundle", "analysis-failed", "worker-died", "no-image",
    "other",
)  # fmt: skip
SUPERSEDED = ("image-unread", "images-missing", "analysed-anew", "speaks-already", "other-bundle", "image-deleted")
CHECKS = {
    "purpose": ("first", "rerun", "shadow"),
    "state": ("queued", "running", "retrying", "paused", "done", "failed", "superseded"),
    "priority": PRIORITIES,
    "reason": (*REASONS, *SUPERSEDED),
    "leftover": ("failed", "stranded"),
    "assessment": ASSESSMENTS,
    "severity": SEVERITIES,
    "old_assessment": ASSESSMENTS,
    "old_severity": SEVERITIES,
}
LOOK_CHECKS = {
    "purpose": ("failed", "stranded", "outdated", "shadow"),
    "state": ("queued", "running", "paused", "done", "failed", "superseded"),
    "reason": (*REASONS, *SUPERSEDED, "run-over"),
    "old_assessment": ASSESSMENTS,
    "old_severity": SEVERITIES,
    "new_severity": SEVERITIES,
    "new_assessment": ASSESSMENTS,
}
COLUMNS = """id, study_id, site_id, model, purpose, state, priority, attempts, queued_at, sent_at, not_before, lease_token,
    lease_until, started_at, finished_at, reason, reason_detail, run_id, leftover, assessment, severity,
    fracture_probability, old_model, old_assessment, old_severity, old_probability, old_region"""
# what the studies' own analyses came to: the first result, where a rerun has taken its place since
FIRSTS = f"""
    INSERT INTO analyses ({COLUMNS})
    SELECT studies.id, studies.id, studies.site_id,
        CASE WHEN status = 'analysed' THEN coalesce(before.old_bundle, nullif(studies.bundle, '')) END, 'first',
        CASE status WHEN 'analysed' THEN 'done' WHEN 'quarantined' THEN 'failed' ELSE status END, queue,
        studies.attempts, studies.queued_at, studies.sent_at, studies.not_before, studies.lease_token,
        studies.lease_until, started_at,
        CASE status WHEN 'analysed' THEN coalesce(analysed_at, studies.queued_at)
            WHEN 'quarantined' THEN coalesce(quarantined_at, studies.queued_at) END,
        studies.reason, studies.reason_detail, NULL, NULL,
        CASE WHEN status = 'analysed' THEN coalesce(before.old_assessment, assessment) END,
        CASE WHEN status = 'analysed' THEN coalesce(before.old_severity, severity) END,
        CASE WHEN status = 'analysed' THEN coalesce(before.old_probability, fracture_probability) END,
        NULL, NULL, NULL, NULL, NULL
    FROM studies LEFT JOIN LATERAL (
        SELECT * FROM second_looks
        WHERE study_id = studies.id AND purpose = 'outdated' AND state = 'done' AND old_bundle <> ''
        ORDER BY finished_at LIMIT 1
    ) AS before ON true
"""
RERUNS = f"""
    INSERT INTO analyses ({COLUMNS})
    SELECT gen_random_uuid(), study_id, site_id, bundle, CASE purpose WHEN 'outdated' THEN 'rerun' ELSE purpose END,
        CASE WHEN state = 'queued' AND reason <> '' THEN 'retrying' ELSE state END,
        'backlog', attempts, queued_at, sent_at, not_before, lease_token, lease_until, NULL, finished_at,
        CASE reason WHEN 'run-over' THEN '' ELSE reason END,
        reason_detail, run_id, NULL, new_assessment, new_severity, new_probability, nullif(old_bundle, ''),
        old_assessment, old_severity, old_probability, nullif(region, '')
    FROM second_looks WHERE purpose IN ('outdated', 'shadow')
"""
# of failed and stranded studies a run kept the account in rows of its own: it belongs to the analysis that it is about
ACCOUNTS_OPEN = """
    UPDATE analyses SET run_id = account.run_id, leftover = account.purpose
    FROM (
        SELECT DISTINCT ON (study_id) * FROM second_looks
        WHERE purpose IN ('failed', 'stranded') AND state = 'queued' ORDER BY study_id, queued_at DESC
    ) AS account
    WHERE analyses.id = account.study_id AND analyses.state IN ('queued', 'running', 'retrying')
"""
ABOUT_THE_LAST = """account.purpose IN ('failed', 'stranded') AND account.state = analyses.state
    AND account.queued_at <= analyses.finished_at AND account.finished_at >= analyses.finished_at"""
ACCOUNTS_ENDED = f"""
    UPDATE analyses SET run_id = account.run_id, leftover = account.purpose
    FROM second_looks AS account
    WHERE analyses.id = account.study_id AND analyses.state IN ('done', 'failed') AND {ABOUT_THE_LAST}
"""
ACCOUNTS_BEFORE = f"""
    INSERT INTO analyses ({COLUMNS})
    SELECT gen_random_uuid(), study_id, site_id, bundle, 'first', state, 'backlog', attempts, queued_at, sent_at, NULL,
        NULL, NULL, NULL, finished_at, reason, reason_detail, run_id, purpose, new_assessment, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL
    FROM second_looks AS account
    WHERE purpose IN ('failed', 'stranded') AND state IN ('done', 'failed')
        AND NOT EXISTS (SELECT FROM analyses WHERE analyses.id = account.study_id AND {ABOUT_THE_LAST})
"""
BACK_STUDIES = """
    UPDATE studies SET
        status = CASE WHEN state IN ('running', 'retrying') THEN state ELSE status END,
        queue = analyses.priority, queued_at = analyses.queued_at, sent_at = analyses.sent_at,
        attempts = analyses.attempts, not_before = analyses.not_before, lease_token = analyses.lease_token,
        lease_until = analyses.lease_until, started_at = analyses.started_at,
        reason = CASE WHEN state IN ('queued', 'running', 'retrying') THEN analyses.reason ELSE studies.reason END,
        reason_detail = CASE WHEN state IN ('queued', 'running', 'retrying') THEN analyses.reason_detail
            ELSE studies.reason_detail END
    FROM analyses WHERE analyses.id = studies.current_analysis_id
"""
LOOKS = """study_id, bundle, site_id, run_id, purpose, state, reason, reason_detail, queued_at, sent_at, attempts,
    not_before, lease_token, lease_until, finished_at, region, old_bundle, old_assessment, old_severity, old_probability,
    new_assessment, new_severity, new_probability"""
BACK_LOOKS = f"""
    INSERT INTO second_looks ({LOOKS})
    SELECT study_id, model, site_id, run_id, CASE purpose WHEN 'rerun' THEN 'outdated' ELSE purpose END,
        CASE state WHEN 'retrying' THEN 'queued' ELSE state END, reason,
        reason_detail, queued_at, sent_at, attempts, not_before, lease_token, lease_until, finished_at,
        coalesce(old_region, ''), coalesce(old_model, ''), old_assessment, old_severity, old_probability, assessment,
        severity, fracture_probability
    FROM analyses WHERE purpose <> 'first'
"""
BACK_ACCOUNTS = f"""
    INSERT INTO second_looks ({LOOKS})
    SELECT analyses.study_id, run.bundle, analyses.site_id, run_id, leftover,
        CASE WHEN state IN ('done', 'failed') THEN state ELSE 'queued' END,
        CASE WHEN state = 'failed' THEN reason ELSE '' END, CASE WHEN state = 'failed' THEN reason_detail ELSE '' END,
        queued_at, sent_at, 0, NULL, NULL, NULL, analyses.finished_at, '', '', NULL, NULL, NULL, analyses.assessment,
        NULL, NULL
    FROM analyses JOIN backfill_runs AS run ON run.id = run_id
    WHERE leftover IS NOT NULL ORDER BY queued_at DESC
    ON CONFLICT DO NOTHING
"""
QUEUE_COLUMNS = (
    "queue", "queued_at", "sent_at", "attempts", "not_before", "lease_token", "lease_until", "started_at",
)  # fmt: skip


def upgrade() -> None:
    """Fill the table before it has an index, then let go of what it replaces."""
    op.create_table(
        "analyses",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.String()),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("queued_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", TIME),
        sa.Column("not_before", TIME),
        sa.Column("lease_token", sa.Uuid()),
        sa.Column("lease_until", TIME),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("reason", sa.String(), server_default="", nullable=False),
        sa.Column("reason_detail", sa.String(), server_default="", nullable=False),
        sa.Column("run_id", sa.Uuid()),
        sa.Column("leftover", sa.String(16)),
        sa.Column("assessment", sa.String(16)),
        sa.Column("severity", sa.String(16)),
        sa.Column("fracture_probability", sa.Float()),
        sa.Column("old_model", sa.String()),
        sa.Column("old_assessment", sa.String(16)),
        sa.Column("old_severity", sa.String(16)),
        sa.Column("old_probability", sa.Float()),
        sa.Column("old_region", sa.String(32)),
        *(_check("analyses", column, codes) for column, codes in CHECKS.items()),
    )
    for statement in (FIRSTS, RERUNS):
        op.execute(statement)
    op.create_primary_key("pk_analyses", "analyses", ["id"])
    for statement in (ACCOUNTS_OPEN, ACCOUNTS_ENDED, ACCOUNTS_BEFORE):
        op.execute(statement)
    op.drop_table("second_looks")
    for name in ("ix_studies_sent", "ix_studies_waiting", "ix_studies_analysed_at"):
        op.drop_index(name, "studies")
    for name in ("ck_studies_status", "ck_studies_queue"):
        op.drop_constraint(name, "studies")
    for column in QUEUE_COLUMNS:
        op.drop_column("studies", column)
    op.execute("UPDATE studies SET status = 'queued' WHERE status IN ('running', 'retrying')")
    op.execute("UPDATE studies SET reason = '', reason_detail = '' WHERE status <> 'quarantined' AND reason <> ''")
    # one pass over the table and its indexes, where an UPDATE would write each row and each index' entry anew
    op.execute("ALTER TABLE studies ADD COLUMN current_analysis_id uuid GENERATED ALWAYS AS (id) STORED")
    op.execute("ALTER TABLE studies ALTER COLUMN current_analysis_id DROP EXPRESSION")
    op.create_check_constraint("ck_studies_status", "studies", "status IN ('queued', 'analysed', 'quarantined')")
    for column, (table, gone) in {
        "study_id": ("studies", "CASCADE"), "site_id": ("sites", None), "run_id": ("backfill_runs", None)
    }.items():  # fmt: skip
        op.create_foreign_key(f"fk_analyses_{column}", "analyses", table, [column], ["id"], ondelete=gone)
    for name, columns, where in (
        ("ix_analyses_study_id", ["study_id"], None),
        ("uq_analyses_first_open", ["study_id"], "purpose = 'first' AND state IN ('queued', 'running', 'retrying')"),
        ("uq_analyses_study_id_model", ["study_id", "model"], "purpose <> 'first'"),
        (
            "ix_analyses_open", ["state", "priority", "sent_at"],
            "state IN ('queued', 'running', 'retrying', 'paused')",
        ),
        (
            "ix_analyses_waiting", ["site_id", "priority", "queued_at"],
            "purpose = 'first' AND state IN ('queued', 'retrying')",
        ),
        ("ix_analyses_finished", ["finished_at"], "purpose = 'first' AND finished_at IS NOT NULL"),
        ("ix_analyses_run", ["run_id", "state", "finished_at"], "run_id IS NOT NULL"),
        (
            "ix_analyses_pairs", ["model", "old_model", "site_id", "old_assessment", "assessment"],
            "old_model IS NOT NULL",
        ),
    ):  # fmt: skip
        op.create_index(
            name, "analyses", columns, unique=name.startswith("uq_"),
            postgresql_where=sa.text(where) if where else None,
        )  # fmt: skip


def downgrade() -> None:
    """The two queues of before. Of a study's analyses only the current one stays, and what each run counted."""
    op.drop_constraint("ck_studies_status", "studies")
    op.add_column("studies", sa.Column("queue", sa.String(16)))
    op.add_column("studies", sa.Column("queued_at", TIME, server_default=sa.text("now()"), nullable=False))
    op.add_column("studies", sa.Column("sent_at", TIME))
    op.add_column("studies", sa.Column("attempts", sa.Integer(), server_default="0", nullable=False))
    op.add_column("studies", sa.Column("not_before", TIME))
    op.add_column("studies", sa.Column("lease_token", sa.Uuid()))
    op.add_column("studies", sa.Column("lease_until", TIME))
    op.add_column("studies", sa.Column("started_at", TIME))
    op.execute(BACK_STUDIES)
    op.execute("UPDATE studies SET queue = priority WHERE queue IS NULL")
    op.alter_column("studies", "queue", nullable=False)
    op.alter_column("studies", "attempts", server_default=None)
    op.drop_column("studies", "current_analysis_id")
    op.execute(
        "ALTER TABLE studies ADD CONSTRAINT ck_studies_status "
        "CHECK (status IN ('queued', 'running', 'retrying', 'analysed', 'quarantined')), "
        f"ADD CONSTRAINT ck_studies_queue CHECK ({_in('queue', PRIORITIES)})"
    )
    op.create_index(
        "ix_studies_sent", "studies", ["status", "queue", "sent_at"], postgresql_where=sa.text("status <> 'analysed'")
    )
    op.create_index(
        "ix_studies_waiting", "studies", ["site_id", "queue", "queued_at"],
        postgresql_where=sa.text("status IN ('queued', 'retrying')"),
    )  # fmt: skip
    op.create_index(
        "ix_studies_analysed_at", "studies", ["analysed_at"], postgresql_where=sa.text("analysed_at IS NOT NULL")
    )
    op.create_table(
        "second_looks",
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("bundle", sa.String(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("queued_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", TIME),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", TIME),
        sa.Column("lease_token", sa.Uuid()),
        sa.Column("lease_until", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("old_bundle", sa.String(), nullable=False),
        sa.Column("old_assessment", sa.String(16)),
        sa.Column("old_severity", sa.String(16)),
        sa.Column("old_probability", sa.Float()),
        sa.Column("new_assessment", sa.String(16)),
        sa.Column("new_severity", sa.String(16)),
        sa.Column("new_probability", sa.Float()),
        sa.Column("reason_detail", sa.String(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("study_id", "bundle", name="pk_second_looks"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_second_looks_study_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_second_looks_site_id"),
        sa.ForeignKeyConstraint(["run_id"], ["backfill_runs.id"], name="fk_second_looks_run_id"),
        *(_check("second_looks", column, codes) for column, codes in LOOK_CHECKS.items()),
    )
    op.execute(BACK_LOOKS)
    op.execute(BACK_ACCOUNTS)
    op.create_index(
        "ix_second_looks_open", "second_looks", ["state", "sent_at"],
        postgresql_where=sa.text("state IN ('queued', 'running', 'paused')"),
    )  # fmt: skip
    op.create_index("ix_second_looks_run", "second_looks", ["run_id", "state", "finished_at"])
    op.create_index(
        "ix_second_looks_pairs", "second_looks",
        ["bundle", "old_bundle", "site_id", "old_assessment", "new_assessment"],
    )  # fmt: skip
    op.execute(
        "CREATE TRIGGER translate_words BEFORE INSERT OR UPDATE OF reason ON second_looks "
        "FOR EACH ROW WHEN (NEW.reason LIKE '% %') EXECUTE FUNCTION translate_look_reason()"
    )
    op.drop_table("analyses")


def _in(column: str, codes: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(code) for code in codes)})"


def _check(table: str, column: str, codes: tuple[str, ...]) -> sa.CheckConstraint:
    return sa.CheckConstraint(_in(column, codes), name=op.f(f"ck_{table}_{column}"))
