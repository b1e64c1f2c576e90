"""Reasons are codes, with a fact beside them; every state, priority, role and purpose is one of the known codes.

What stands here in words becomes a code and the fact that was in the words; words that nobody knows become "other", with
the words as the fact: none of these columns ever held patient data. Old processes may go on beside the new ones for a
while: triggers translate what they write. Constraints are added unvalidated and then validated, so that nobody waits
for a table to be read.

Revision ID: 0019
Revises: 0018
"""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

REJECTED = (
    "cannot-understand", "empty-file", "not-dicom", "no-file-meta", "unknown-transfer-syntax", "sop-class-not-supported",
    "no-pixel-data", "bad-attributes", "truncated-pixels", "too-large", "bad-archive", "unsupported-pixels",
    "undecodable-pixels",
)  # fmt: skip
REASONS = (
    *REJECTED, "decoding-failed", "decoding-timed-out", "decoder-died", "decoder-out-of-memory", "store-unavailable",
    "object-missing", "object-damaged", "database-unavailable", "database-locked", "database-full", "part-unavailable",
    "bad-bundle", "analysis-failed", "worker-died", "no-image", "other",
)  # fmt: skip
LOOKS = (
    "image-unread", "images-missing", "analysed-anew", "speaks-already", "other-bundle", "image-deleted", "night-over",
)  # fmt: skip
ENDS = {  # of a run over history: its words of before, and the code
    "the next night began": "next-night",
    "retired": "retired",
    "another bundle became active": "other-bundle",
    "promoted: the nights go on with what is left": "promoted",
    "the window closed": "window-closed",
    "history came to its end": "history-ended",
    "the night''s count": "count-reached",
}
OF_LOOKS = {
    "not every image could be read again": "images-missing",
    "the study is analysed anew": "analysed-anew",
    "this bundle speaks for the study already": "speaks-already",
    "another bundle is active": "other-bundle",
    "an image was deleted": "image-deleted",
    "still in its queue when the next night began": "night-over",
}
# what was written in words, as a pattern whose first group is the fact; and the words of a downgrade, {} is the fact
WRITTEN = (
    (r"^([0-9]+) attempts ended without a result: .*", "worker-died"),
    (r"^analysis failed \((\w+)\)$", "analysis-failed"),
    (r"^Decoding took more than ([0-9]+) s and was stopped$", "decoding-timed-out"),
    (r"^Decoding ended its process \((.+)\)$", "decoder-died"),
    (r"^Decoding needs more than (.+) of memory and was stopped$", "decoder-out-of-memory"),
    (r"^Decoding failed \((\w+)\)$", "decoding-failed"),
    (r"^()Decoding an image ended its process\.$", "decoding-failed"),
    (r"^(\S+) is not in the store$", "object-missing"),
    (r"^()An object that a row names is not in the store\.$", "object-missing"),
    (r"^()The stored bytes of an image are damaged.*", "object-damaged"),
    (r"^The object store cannot be [a-z]+: ([^.]*).*", "store-unavailable"),
    (r"^The object store answered (\w+)\..*", "store-unavailable"),
    (r"^The object store does not answer \((\w+)\).*", "store-unavailable"),
    (r"^()The object store does not .*", "store-unavailable"),
    (r"^Postgres does not answer \((\w+)\).*", "database-unavailable"),
    (r"^()Postgres gave a statement up .*", "database-unavailable"),
    (r"^()Postgres closed the connection.*", "database-unavailable"),
    (r"^()All connections to Postgres are busy.*", "database-unavailable"),
    (r"^Another transaction held a lock on the table (\w+) .*", "database-locked"),
    (r"^()Another transaction (held|in Postgres holds) .*", "database-locked"),
    (r"^()Postgres has no room on its disk.*", "database-full"),
    (r"^()the study has no image$", "no-image"),
    (r"^an image could not be read again \(([a-z-]+)\)$", "image-unread"),
    *((f"^(){words}$", code) for words, code in OF_LOOKS.items()),
)
WORDS = {
    "worker-died": "{} attempts ended without a result: the worker died or hung each time",
    "analysis-failed": "analysis failed ({})",
    "decoding-timed-out": "Decoding took more than {} s and was stopped",
    "decoder-died": "Decoding ended its process ({})",
    "decoder-out-of-memory": "Decoding needs more than {} of memory and was stopped",
    "decoding-failed": "Decoding failed ({})",
    "object-missing": "{} is not in the store",
    "object-damaged": "The stored bytes of an image are damaged; send the file again",
    "store-unavailable": "The object store does not answer ({})",
    "database-unavailable": "Postgres does not answer ({})",
    "database-locked": "Another transaction held a lock on the table {} in Postgres",
    "database-full": "Postgres has no room on its disk",
    "no-image": "the study has no image",
    "image-unread": "an image could not be read again ({})",
    "other": "{}",
    **{code: words for words, code in OF_LOOKS.items()},
}
WITHOUT = {  # the words of a downgrade where there is no fact
    "decoding-failed": "Decoding an image ended its process.",
    "object-missing": "An object that a row names is not in the store.",
    "store-unavailable": "The object store does not answer.",
    "database-unavailable": "Postgres closed the connection.",
    "database-locked": "Another transaction in Postgres holds what this one needs",
}
# what an image's words said whatever was wrong with it: the code says as much
DEFAULTS = (
    "The file has no bytes.%", "This is not a DICOM file:%", "The file meta information %", "The DICOM header cannot be read%",
    "The transfer syntax is not one that Osteon can decode.%", "The SOP Class is not an image %", "The object says that it is %",
    "A required attribute is missing %", "The Pixel Data is shorter than Rows%", "The file, or the image that it claims %",
    "The zip archive is damaged, encrypted, %", "The pixels are of a kind that no bone model reads%",
    "The compressed pixel data is damaged and cannot be decoded.%",
)  # fmt: skip
DECODING = ("decoding-failed", "decoding-timed-out", "decoder-died", "decoder-out-of-memory")
PRIORITIES, SEVERITIES = ("urgent", "routine", "backlog"), ("none", "mild", "moderate", "severe")
CHECKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("api_keys", "role", ("submitter", "radiologist", "admin", "operator")),
    ("answers", "verdict", ("agree", "disagree", "supplement", "withdrawn", "done", "reopened", "seen")),
    ("answers", "fracture", ("yes", "no", "unsure")),
    ("answers", "severity", SEVERITIES),
    ("backlog_runs", "purpose", ("night", "shadow")),
    ("backlog_runs", "stage", ("leftovers", "history", "exhausted")),
    ("backlog_runs", "ended_by", ("", *ENDS.values(), "other")),
    ("findings", "severity", SEVERITIES),
    ("held_files", "kind", ("patient", "pixels", "correction", "comparing")),
    ("held_files", "state", ("open", "another-study", "same-patient", "applied", "rejected", "duplicate")),
    ("held_files", "priority", PRIORITIES),
    ("instances", "error_reason", ("", *REASONS)),
    ("quarantine_decisions", "decision", ("dismissed", "deleted")),
    ("quarantine_decisions", "set_aside_for", ("", *REASONS)),
    ("refusals", "reason", REASONS),
    ("samples", "queue", PRIORITIES),
    ("second_looks", "purpose", ("failed", "stranded", "outdated", "shadow")),
    ("second_looks", "state", ("queued", "running", "held", "done", "failed", "overtaken")),
    ("second_looks", "reason", ("", *REASONS, *LOOKS)),
    ("second_looks", "old_severity", SEVERITIES),
    ("second_looks", "new_severity", SEVERITIES),
    ("studies", "priority", PRIORITIES),
    ("studies", "status", ("queued", "running", "retrying", "analysed", "quarantined")),
    ("studies", "queue", PRIORITIES),
    ("studies", "reason", ("", *REASONS)),
    ("studies", "severity", SEVERITIES),
    ("study_claims", "ended", ("", "released", "expired", "taken-over", "read")),
)
FACTS = {  # the columns of facts, and the codes that they stand beside
    "studies": ("reason", "reason_detail"),
    "second_looks": ("reason", "reason_detail"),
    "instances": ("error_reason", "error_detail"),
    "quarantine_decisions": ("set_aside_for", "set_aside_detail"),
    "refusals": ("reason", "detail"),
}
TRIGGERS = {  # what an old process writes in words: the columns that are watched, when, and what is done
    "studies": ("reason", "NEW.reason LIKE '% %'", "translate_study_reason"),
    "second_looks": ("reason", "NEW.reason LIKE '% %'", "translate_look_reason"),
    "instances": ("error_text", "NEW.error_text <> ''", "translate_image_reason"),
    "quarantine_decisions": ("set_aside_for", "NEW.set_aside_for LIKE '% %'", "translate_decision_reason"),
    "backlog_runs": ("ended_by", "NEW.ended_by LIKE '% %'", "translate_run_end"),
    "study_claims": ("ended", "NEW.ended = 'taken over'", "translate_reading_end"),
}


def upgrade() -> None:
    """Columns and triggers in one transaction, then the rest; all of it may run again after it was cut off."""
    for table, (_, detail) in FACTS.items():
        op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {detail} varchar NOT NULL DEFAULT ''")
    for table, column in (("instances", "error_text"), ("refusals", "text")):
        op.alter_column(table, column, server_default="")
    _functions()
    for table, (column, when, function) in TRIGGERS.items():
        op.execute(f"DROP TRIGGER IF EXISTS translate_words ON {table}")
        op.execute(
            f"CREATE TRIGGER translate_words BEFORE INSERT OR UPDATE OF {column} ON {table} "
            f"FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION {function}()"
        )
    with op.get_context().autocommit_block():  # each statement by itself: none holds a table's lock for another's work
        # the triggers translate, whoever writes; images first, for a study's reason may be that of an image
        op.execute("UPDATE instances SET error_text = error_text WHERE error_text <> ''")
        for table in ("studies", "second_looks", "quarantine_decisions"):
            column = FACTS[table][0]
            op.execute(f"UPDATE {table} SET {column} = {column} WHERE {column} LIKE '% %'")  # noqa: S608 - constants
        op.execute("UPDATE backlog_runs SET ended_by = ended_by WHERE ended_by LIKE '% %'")
        op.execute("UPDATE study_claims SET ended = ended WHERE ended = 'taken over'")
        op.execute("UPDATE refusals SET text = '' WHERE text <> ''")
        for table, column, codes in CHECKS:
            listed = ", ".join(f"'{code}'" for code in dict.fromkeys(codes))
            name = f"ck_{table}_{column}"
            op.execute(
                f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, "
                f"ADD CONSTRAINT {name} CHECK ({column} IN ({listed})) NOT VALID"
            )
        for table, column, _ in CHECKS:
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT ck_{table}_{column}")


def downgrade() -> None:
    """The words of before, as far as code and fact tell them."""
    for table, column, _ in CHECKS:
        op.drop_constraint(f"ck_{table}_{column}", table)
    for table in TRIGGERS:
        op.execute(f"DROP TRIGGER translate_words ON {table}")
    for _, _, function in TRIGGERS.values():
        op.execute(f"DROP FUNCTION {function}()")
    op.execute("DROP FUNCTION reason_of_study(text, uuid, boolean)")
    op.execute("DROP FUNCTION reason_of_words(text)")
    failed = f"error_reason IN ({', '.join(repr(code) for code in DECODING)})"
    op.execute(
        f"UPDATE instances SET error_text = {_worded('error_reason', 'error_detail')}, "  # noqa: S608 - constants
        f"error_reason = CASE WHEN {failed} THEN 'decoding-failed' ELSE error_reason END WHERE error_reason <> ''"
    )
    for table in ("studies", "second_looks", "quarantine_decisions"):
        column, detail = FACTS[table]
        op.execute(f"UPDATE {table} SET {column} = {_worded(column, detail)} WHERE {column} <> ''")  # noqa: S608
    op.execute("UPDATE refusals SET text = reason || CASE detail WHEN '' THEN '' ELSE ' (' || detail || ')' END")
    ended = " ".join(f"WHEN '{code}' THEN '{words}'" for words, code in ENDS.items())
    op.execute(f"UPDATE backlog_runs SET ended_by = CASE ended_by {ended} ELSE ended_by END WHERE ended_by <> ''")  # noqa: S608
    op.execute("UPDATE study_claims SET ended = 'taken over' WHERE ended = 'taken-over'")
    for table, column in (("instances", "error_text"), ("refusals", "text")):
        op.alter_column(table, column, server_default=None)
    for table, (_, detail) in FACTS.items():
        op.drop_column(table, detail)


def _functions() -> None:
    """What makes a code and a fact of words, and the triggers' functions."""
    cases = " ".join(
        f"WHEN words ~ '{pattern}' THEN reason := '{code}'; detail := (regexp_match(words, '{pattern}'))[1];"
        for pattern, code in WRITTEN
    )
    op.execute(f"""
        CREATE OR REPLACE FUNCTION reason_of_words(words text, OUT reason text, OUT detail text)
        LANGUAGE plpgsql IMMUTABLE AS $$
        BEGIN
            CASE {cases} ELSE reason := 'other'; detail := left(words, 500); END CASE;
        END $$
    """)
    # the words of a study that no image of which could be analysed are those of its first
    op.execute("""
        CREATE OR REPLACE FUNCTION reason_of_study(
            words text, study uuid, set_aside boolean, OUT reason text, OUT detail text
        ) LANGUAGE plpgsql STABLE AS $$
        BEGIN
            SELECT told.reason, told.detail INTO reason, detail FROM reason_of_words(words) AS told;
            IF reason = 'other' AND set_aside THEN
                SELECT error_reason, error_detail INTO reason, detail FROM instances
                WHERE study_id = study AND error_reason <> '' ORDER BY received_at, id LIMIT 1;
                IF NOT FOUND THEN
                    reason := 'other';
                    detail := left(words, 500);
                END IF;
            END IF;
        END $$
    """)
    defaults = " OR ".join(f"NEW.error_text LIKE '{words}'" for words in DEFAULTS)
    failed = ", ".join(f"'{code}'" for code in DECODING)
    bodies = {
        # of an image that was refused the code is there; its words are kept as the fact, if they say more
        "translate_image_reason": f"""
            SELECT * INTO told FROM reason_of_words(NEW.error_text);
            IF NEW.error_text = NEW.error_reason THEN  -- of a downgrade
                NEW.error_detail := '';
            ELSIF starts_with(NEW.error_text, NEW.error_reason || ' (') THEN  -- likewise
                NEW.error_detail := rtrim(substr(NEW.error_text, length(NEW.error_reason) + 3), ')');
            ELSIF told.reason IN ({failed}) AND NEW.error_reason IN ({failed}) THEN
                NEW.error_reason := told.reason;
                NEW.error_detail := told.detail;
            ELSIF {defaults} THEN
                NEW.error_detail := coalesce((regexp_match(NEW.error_text, '\\(([\\w.]+)\\)$'))[1], '');
            ELSE
                NEW.error_detail := left(NEW.error_text, 500);
            END IF;
            NEW.error_text := '';
        """,
        "translate_study_reason": """
            SELECT * INTO told FROM reason_of_study(NEW.reason, NEW.id, NEW.status = 'quarantined');
            NEW.reason := told.reason;
            NEW.reason_detail := told.detail;
        """,
        "translate_look_reason": """
            SELECT * INTO told FROM reason_of_study(
                NEW.reason, NEW.study_id, NEW.purpose IN ('failed', 'stranded') AND NEW.state = 'failed'
            );
            NEW.reason := told.reason;
            NEW.reason_detail := told.detail;
        """,
        "translate_decision_reason": """
            SELECT * INTO told FROM reason_of_study(NEW.set_aside_for, NEW.study_id, true);
            NEW.set_aside_for := told.reason;
            NEW.set_aside_detail := told.detail;
        """,
        "translate_run_end": f"""
            NEW.ended_by := CASE NEW.ended_by
                {" ".join(f"WHEN '{words}' THEN '{code}'" for words, code in ENDS.items())} ELSE 'other' END;
        """,
        "translate_reading_end": """
            NEW.ended := 'taken-over';
        """,
    }
    for name, body in bodies.items():
        op.execute(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ "
            f"DECLARE told record; BEGIN {body} RETURN NEW; END $$"
        )


def _worded(column: str, detail: str) -> str:
    """The words of before, of a code and its fact; a code without words of its own stands for itself."""
    whens = ""
    for code, words in WORDS.items():
        before, fact, after = words.partition("{}")
        told = f"'{before}' || {detail} || '{after}'" if fact else f"'{before}'"
        without = f"CASE {detail} WHEN '' THEN '{WITHOUT[code]}' ELSE {told} END" if code in WITHOUT else told
        whens += f"WHEN '{code}' THEN {without} "
    plain = f"{column} || CASE {detail} WHEN '' THEN '' ELSE ' (' || {detail} || ')' END"
    return f"CASE {column} {whens} ELSE {plain} END"
