"""The faults: mistakes of one line, of different kinds and over all parts, and the quick tests that must find each.

A fault is text of the code and what a mistake would have made of it. The text must stand in its file exactly once: who
changes such a line brings the fault along, and names another test where the old one finds it no more.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One mistake."""

    name: str
    wrong: str  # in a sentence, what goes wrong with it
    file: str  # from the top of the checkout
    text: str  # as it stands there, exactly once
    instead: str
    tests: tuple[str, ...]  # node ids, without parameters; each must fail


FAULTS = (
    # -- storage
    Fault(
        "rename-before-fsync",
        "An object gets its name before its bytes are on the disk: a power cut leaves half an object under it.",
        "shared/storage.py",
        """\
                    file.flush()
                    os.fsync(file.fileno())
                Path(name)""",
        """\
                    file.flush()
                Path(name)""",
        ("tests/integration/test_storage.py::test_an_object_is_on_the_disk_before_it_has_its_name",),
    ),
    # -- intake
    Fault(
        "commit-dropped",
        "A transaction ends without its commit: what was written is gone.",
        "shared/repository/__init__.py",
        "with self._sessions.begin() as session:",
        "with self._sessions() as session:",
        ("tests/integration/test_work.py::test_unsent_studies_are_sent_once",),
    ),
    Fault(
        "duplicate-by-uid-alone",
        "Other bytes under a known SOP Instance UID pass for a duplicate, and are lost without a word.",
        "shared/repository/intake.py",
        "Known.DUPLICATE if sha256 in (self.sha256, self.header_sha256) else Known.HELD",
        "Known.DUPLICATE if self.sha256 else Known.HELD",
        ("tests/integration/test_upload.py::test_other_bytes_are_no_duplicate",),
    ),
    Fault(
        "header-unbounded",
        "A header of any length is read into memory.",
        "shared/elements.py",
        "        self.budget.bytes_left -= len(data)\n",
        "",
        ("tests/unit/shared/test_dicom.py::test_large_header_is_refused",),
    ),
    # -- queue
    Fault(
        "urgent-is-not-first",
        "Routine studies are served before urgent ones.",
        "shared/jobs.py",
        "QUEUES = (Priority.URGENT, Priority.ROUTINE, Priority.BACKLOG)",
        "QUEUES = (Priority.ROUTINE, Priority.URGENT, Priority.BACKLOG)",
        ("tests/integration/test_jobs.py::test_queues_are_served_in_strict_order",),
    ),
    Fault(
        "lease-not-checked",
        "A worker that lost its lease still writes its results, over those of the one that has it.",
        "shared/repository/work.py",
        "    held = {row.lease_token: row for row in rows}\n",
        "    held = {one.claim.token: row for row in rows for one in done if one.claim.study_id == row.id}\n",
        ("tests/integration/test_work.py::test_a_worker_that_lost_its_lease_writes_nothing",),
    ),
    Fault(
        "attempts-not-counted",
        "A study that kills its worker each time is tried for ever.",
        "shared/repository/work.py",
        "            attempts=StudyRow.attempts + 1,\n",
        "",
        ("tests/integration/test_work.py::test_a_study_that_kills_its_worker_each_time_is_quarantined_with_words",),
    ),
    Fault(
        "sent-again-and-again",
        "A study's row does not note that its message was sent: each sweep sends another one.",
        "shared/repository/work.py",
        "    row.sent_at = now\n",
        "",
        ("tests/integration/test_work.py::test_unsent_studies_are_sent_once",),
    ),
    # -- worker
    Fault(
        "batch-dies-with-one",
        "One image that the model fails at takes all others of its batch with it.",
        "worker/batching.py",
        "if len(batch) == 1 or isinstance(wrong, self._common):",
        "if len(batch) <= self._max_batch or isinstance(wrong, self._common):",
        ("tests/unit/worker/test_batching.py::test_many_threads_get_their_own_answers",),
    ),
    Fault(
        "claimed-twice-in-a-group",
        "Two messages for one study in one group of claims both get it, and it is analysed twice.",
        "worker/ledger.py",
        "return [answers.pop(one, None) for one in wanted]",
        "return [answers.get(one) for one in wanted]",
        ("tests/integration/test_work.py::test_two_messages_in_one_group_give_one_claim",),
    ),
    # -- pixels
    Fault(
        "overlay-bits-in-the-image",
        "The mask keeps bits over High Bit: old overlays become the brightest pixels.",
        "shared/vision/codecs.py",
        "        raw = raw << (width - 1 - high_bit)\n",
        "        raw = raw & ((1 << width) - 1)\n",
        ("tests/unit/shared/test_pixels.py::test_bits_beyond_bits_stored_are_no_pixels",),
    ),
    Fault(
        "monochrome1-not-mirrored",
        "Where black is the greater value the network sees a negative.",
        "shared/vision/pixels.py",
        """        if self.photometric == "MONOCHROME1":""",
        """        if self.photometric == "MONOCHROME 1":""",
        ("tests/unit/shared/test_pixels.py::test_monochrome1_inversion_undoes_itself",),
    ),
    # -- model
    Fault(
        "heatmap-mirrored",
        "The heatmap lies over the film the wrong way round: the evidence is shown on the other side.",
        "api/studies.py",
        "    seen = square.crop((left, top, left + width, top + height))\n",
        "    seen = square.crop((left, top, left + width, top + height)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)\n",
        ("tests/integration/test_reading.py::test_heatmap_lies_where_the_evidence_is",),
    ),
    Fault(
        "abstention-skipped",
        "The model says positive or negative of images that it was never trained for.",
        "shared/vision/reader.py",
        "        if abstention is not None and not caveat:\n",
        "        if caveat:\n",
        ("tests/unit/shared/test_reader.py::test_out_of_scope_abstains_and_says_why",),
    ),
    Fault(
        "training-sees-other-pixels",
        "Training prepares the stored values, serving the modality values: the network meets films it never learned.",
        "training/datasets/film.py",
        "radiograph(open_pixels(data), 0)",
        "of_picture(open_pixels(data).stored(0))",
        ("tests/unit/training/test_datasets.py::test_training_evaluation_and_worker_see_one_tensor",),
    ),
    # -- worklist
    Fault(
        "page-unordered",
        "Studies of one due time come in no certain order: pages repeat some and leave others out.",
        "shared/repository/reading.py",
        "        query = query.order_by(*PLACE)\n",
        "        query = query.order_by(*PLACE[:2])\n",
        ("tests/integration/test_reading.py::test_studies_of_one_due_time_keep_their_order",),
    ),
    # -- access
    Fault(
        "any-key-releases",
        "A route asks for any key where it should ask for an administrator's.",
        "api/studies.py",
        "def release(study_id: StudyId, parts: PartsDep, key: Admin)",
        "def release(study_id: StudyId, parts: PartsDep, key: AnyReader)",
        ("tests/integration/test_upload.py::test_roles",),
    ),
    Fault(
        "study-of-another-site",
        "Who knows a study's id can read it with a key of another hospital.",
        "shared/repository/reading.py",
        "select(StudyRow).where(StudyRow.id == study_id, StudyRow.site_id == site_id)",
        "select(StudyRow).where(StudyRow.id == study_id)",
        ("tests/integration/test_upload.py::test_sites_do_not_see_each_other",),
    ),
    Fault(
        "reading-not-audited",
        "Patients' names are read without a trace.",
        "shared/repository/access.py",
        "            session.execute(insert(IdentityReadRow), new)\n",
        "            session.flush()\n",
        ("tests/integration/test_reading.py::test_every_reading_of_an_identity_is_recorded",),
    ),
    # -- pages
    Fault(
        "name-not-escaped",
        "A patient name that holds a script runs it in the reader's browser.",
        "api/pages/render.py",
        "autoescape=True",
        "autoescape=False",
        ("tests/integration/test_reading.py::test_a_name_is_text_on_every_page",),
    ),
    Fault(
        "times-in-utc",
        "The pages say the reader's time zone and show UTC.",
        "api/pages/static/times.js",
        """{ hour: "2-digit", minute: "2-digit", hourCycle: "h23" }""",
        """{ hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone: "UTC" }""",
        ("tests/browser/test_page.py::test_times_are_in_the_zone_of_the_reader",),
    ),
    # -- infra
    Fault(
        "secrets-for-all",
        "Any user of the computer can read the keys and the identities' key.",
        "infra/state.py",
        """    with os.fdopen(descriptor, "w") as file:""",
        """    os.fchmod(descriptor, 0o644)\n    with os.fdopen(descriptor, "w") as file:""",
        ("tests/integration/test_stack.py::test_secrets_are_made_once_and_private",),
    ),
    Fault(
        "cut-line-swallows-the-next",
        "After a crash of the sender, the next file that it notes as stored is lost from its journal.",
        "infra/sending/journal.py",
        r"""("\n" + "\n".join(map(json.dumps, lines)) + "\n")""",
        r"""("\n".join(map(json.dumps, lines)) + "\n")""",
        ("tests/unit/infra/test_uploading.py::test_journal_cut_off_anywhere",),
    ),
    # -- alerts
    Fault(
        "alert-reversed",
        "Readers are alerted of studies that the newer model calls negative, and of no others.",
        "shared/backlog.py",
        "return old == Assessment.NEGATIVE and new in POSITIVE",
        "return new == Assessment.NEGATIVE and old in POSITIVE",
        ("tests/unit/shared/test_backlog.py::test_what_counts_as_newly_positive",),
    ),
)
