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
        "shared/storage/directory.py",
        """\
                    file.flush()
                    os.fsync(file.fileno())
                Path(name)""",
        """\
                    file.flush()
                Path(name)""",
        ("tests/integration/test_storage.py::test_an_object_is_on_the_disk_before_it_has_its_name",),
    ),
    # -- search
    Fault(
        "search-of-all-sites",
        "A query of DICOMweb finds the studies of every hospital.",
        "shared/queries/qido.py",
        ").where(StudyRow.site_id == self.site_id)",
        ")",
        ("tests/integration/test_search.py::test_only_readers_of_the_site_find_anything",),
    ),
    Fault(
        "pieces-of-the-name-before",
        "A corrected name is not found, because the index still has the pieces of the name before.",
        "shared/queries/access.py",
        'columns = {"ciphertext": self.seal(vars(identity)), "pieces": self.piece_numbers(site_id, identity)}',
        'columns = {"ciphertext": self.seal(vars(identity))}',
        ("tests/integration/test_search.py::test_a_correction_is_found_under_its_new_name",),
    ),
    Fault(
        "priors-of-another-issuer",
        "Another patient's image stands beside a study, because two hospitals gave the same number.",
        "shared/domain/identity.py",
        "(number, issuer) == (other_number, other_issuer)",
        "number == other_number",
        ("tests/integration/test_priors.py::test_what_is_no_prior",),
    ),
    # -- intake
    Fault(
        "commit-dropped",
        "A transaction ends without its commit: what was written is gone.",
        "shared/db/engine.py",
        "with self._sessions.begin() as session:\n                if lock_s",
        "with self._sessions() as session:\n                if lock_s",
        ("tests/integration/test_analyses.py::test_unsent_studies_are_sent_once",),
    ),
    Fault(
        "duplicate-by-uid-alone",
        "Other bytes under a known SOP Instance UID pass for a duplicate, and are lost without a word.",
        "shared/queries/intake.py",
        "IntakeState.DUPLICATE if sha256 in (self.sha256, self.header_sha256) else IntakeState.HELD",
        "IntakeState.DUPLICATE if self.sha256 else IntakeState.HELD",
        ("tests/integration/test_upload.py::test_other_bytes_are_no_duplicate",),
    ),
    Fault(
        "header-unbounded",
        "A header of any length is read into memory.",
        "shared/dicom/elements.py",
        "        self.budget.bytes_left -= len(data)\n",
        "",
        ("tests/unit/shared/test_dicom.py::test_large_header_is_refused",),
    ),
    # -- queue
    Fault(
        "urgent-is-not-first",
        "Routine studies are served before urgent ones.",
        "shared/queue/celery_app.py",
        "QUEUES = (Priority.URGENT, Priority.ROUTINE, Priority.BACKLOG)",
        "QUEUES = (Priority.ROUTINE, Priority.URGENT, Priority.BACKLOG)",
        ("tests/integration/test_jobs.py::test_queues_are_served_in_strict_order",),
    ),
    Fault(
        "lease-not-checked",
        "A worker that lost its lease still writes its results, over those of the one that has it.",
        "shared/queries/analyses.py",
        "    held = {row.lease_token: row for row in rows if row.study_id in studies}\n",
        "    held = {one.claim.token: row for row in rows for one in done if one.claim.analysis_id == row.id}\n",
        ("tests/integration/test_analyses.py::test_a_worker_that_lost_its_lease_writes_nothing",),
    ),
    Fault(
        "attempts-not-counted",
        "A study that kills its worker each time is tried for ever.",
        "shared/queries/analyses.py",
        '"attempts": AnalysisRow.attempts + 1, "lease_token"',
        '"lease_token"',
        ("tests/integration/test_analyses.py::test_a_study_that_kills_its_worker_each_time_is_quarantined_with_words",),
    ),
    Fault(
        "sent-again-and-again",
        "A study's row does not note that its message was sent: each sweep sends another one.",
        "shared/queries/analyses.py",
        "sent.values(sent_at=now, **values)",
        "sent.values(attempts=AnalysisRow.attempts, **values)",
        ("tests/integration/test_analyses.py::test_unsent_studies_are_sent_once",),
    ),
    # -- worker
    Fault(
        "batch-dies-with-one",
        "One image that the model fails at takes all others of its batch with it.",
        "worker/batching.py",
        "if len(batch) == 1 or isinstance(error, self._common):",
        "if len(batch) <= self._max_batch or isinstance(error, self._common):",
        ("tests/unit/worker/test_batching.py::test_many_threads_get_their_own_results",),
    ),
    Fault(
        "claimed-twice-in-a-group",
        "Two messages for one study in one group of claims both get it, and it is analysed twice.",
        "worker/group_commit.py",
        "return [results.pop(one, None) for one in requests]",
        "return [results.get(one) for one in requests]",
        ("tests/integration/test_analyses.py::test_two_messages_in_one_group_give_one_claim",),
    ),
    # -- pixels
    Fault(
        "overlay-bits-in-the-image",
        "The mask keeps bits over High Bit: old overlays become the brightest pixels.",
        "shared/pixels/codecs.py",
        "        raw = raw << (width - 1 - high_bit)\n",
        "        raw = raw & ((1 << width) - 1)\n",
        ("tests/unit/shared/test_pixels.py::test_bits_beyond_bits_stored_are_no_pixels",),
    ),
    Fault(
        "monochrome1-not-mirrored",
        "Where black is the greater value the network sees a negative.",
        "shared/pixels/decode.py",
        """        if self.photometric == "MONOCHROME1":""",
        """        if self.photometric == "MONOCHROME 1":""",
        ("tests/unit/shared/test_pixels.py::test_monochrome1_inversion_undoes_itself",),
    ),
    # -- model
    Fault(
        "sign-not-extended",
        "Negative samples become the brightest pixels.",
        "shared/pixels/codecs.py",
        """raw.view(f"{'i' if signed else 'u'}{values.dtype.itemsize}")""",
        """raw.view(f"u{values.dtype.itemsize}")""",
        ("tests/unit/shared/test_pixels.py::test_signed_samples_are_extended_from_their_own_width",),
    ),
    Fault(
        "rescale-ignored",
        "Windows, which are in modality units, are laid over stored values.",
        "shared/pixels/decode.py",
        "if (self.slope, self.intercept) != (1, 0):",
        "if (self.slope, self.intercept) == (1, 0):",
        ("tests/unit/shared/test_pixels.py::test_rescale_and_modality_lut_give_modality_units",),
    ),
    Fault(
        "operating-points-exchanged",
        "Nothing is unclear any more: what the sensitive point is for passes as negative.",
        "shared/domain/manifest.py",
        "OperatingPoints(self.sensitive, self.specific)",
        "OperatingPoints(self.specific, self.sensitive)",
        ("tests/unit/shared/test_predictor.py::test_in_scope_calls_by_the_operating_points",),
    ),
    Fault(
        "heatmap-mirrored",
        "The heatmap lies over the radiograph the wrong way round: the evidence is shown on the other side.",
        "api/studies/routes.py",
        "    seen = square.crop((left, top, left + width, top + height))\n",
        "    seen = square.crop((left, top, left + width, top + height)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)\n",
        ("tests/integration/test_reading.py::test_heatmap_lies_where_the_evidence_is",),
    ),
    Fault(
        "abstention-skipped",
        "The model says positive or negative of images that it was never trained for.",
        "shared/model/predictor.py",
        "        if abstention is not None and not caveat:\n",
        "        if caveat:\n",
        ("tests/unit/shared/test_predictor.py::test_out_of_scope_abstains_and_says_why",),
    ),
    Fault(
        "training-sees-other-pixels",
        "Training prepares the stored values, serving the modality values: the network meets radiographs it never learned.",
        "training/datasets/radiograph.py",
        "radiograph(open_pixels(data), 0)",
        "of_picture(open_pixels(data).stored(0))",
        ("tests/unit/training/test_datasets.py::test_training_evaluation_and_worker_see_one_tensor",),
    ),
    # -- worklist
    Fault(
        "page-unordered",
        "Studies of one due time come in no certain order: pages repeat some and leave others out.",
        "shared/queries/worklist.py",
        "if self.falls else list(self.place)\n",
        "if self.falls else list(self.place[:2])\n",
        ("tests/integration/test_reading.py::test_studies_of_one_due_time_keep_their_order",),
    ),
    # -- access
    Fault(
        "cursor-without-score",
        "The next page leaves out studies that are due in the same minute as the last one of the page before.",
        "shared/queries/worklist.py",
        "tuple_(*PLACE) > (after.time, after.calmness, after.study_id)",
        "tuple_(PLACE[0], PLACE[2]) > (after.time, after.study_id)",
        ("tests/integration/test_reading.py::test_order_and_paging",),
    ),
    Fault(
        "cookie-of-anybody",
        "Cookies are signed by a word that everybody can read in the code.",
        "api/app.py",
        "secret_key=settings.session_secret.get_secret_value(),",
        'secret_key="osteon",',
        ("tests/integration/test_logins.py::test_a_login_in_a_cookie_of_another_secret_opens_nothing",),
    ),
    Fault(
        "any-key-releases",
        "A route asks for any key where it should ask for an administrator's.",
        "api/studies/routes.py",
        "def release(study_id: StudyId, parts: PartsDep, key: Admin)",
        "def release(study_id: StudyId, parts: PartsDep, key: SubmitterOrRadiologist)",
        ("tests/integration/test_permissions.py::test_every_route_by_every_role",),
    ),
    Fault(
        "change-without-its-event",
        "A change is committed before its event: where that fails, nobody knows who did it.",
        "api/models/routes.py",
        "    backfill.retire_shadow(session, name, now)\n",
        "    backfill.retire_shadow(session, name, now)\n    session.commit()\n",
        ("tests/integration/test_audit_events.py::test_a_change_and_its_event_are_there_together_or_not_at_all",),
    ),
    Fault(
        "study-of-another-site",
        "Who knows a study's id can read it with a key of another hospital.",
        "shared/queries/studies.py",
        "select(StudyRow).where(StudyRow.id == study_id, StudyRow.site_id == site_id)",
        "select(StudyRow).where(StudyRow.id == study_id)",
        ("tests/integration/test_upload.py::test_sites_do_not_see_each_other",),
    ),
    Fault(
        "reading-not-audited",
        "Patients' names are read without a trace.",
        "shared/queries/access.py",
        "            session.execute(insert(IdentityReadRow), rows)\n",
        "            session.flush()\n",
        ("tests/integration/test_reading.py::test_every_reading_of_an_identity_is_recorded",),
    ),
    Fault(
        "two-sites-one-caller",
        "A site can have another's images sent to itself, by a peer with the same AE titles.",
        "shared/queries/peers.py",
        "if row.site_id != site_id and not are_disjoint(rule_of(row), rule):",
        "if False and not are_disjoint(rule_of(row), rule):",
        ("tests/integration/test_peers.py::test_no_site_can_have_the_images_of_another",),
    ),
    Fault(
        "peer-from-anywhere",
        "A DICOM peer is taken for what its titles say, wherever it calls from.",
        "shared/domain/peers.py",
        "    if rule.address and not _within(caller.address, rule.address):\n        return CallerReason.ADDRESS\n",
        "",
        (
            "tests/unit/shared/test_peers.py::test_why_a_caller_is_not_the_peer",
            "tests/integration/test_peers.py::test_who_is_refused_and_why",
        ),
    ),
    Fault(
        "callers-without-bounds",
        "Every AE title that somebody makes up fills a row of the database, for ever.",
        "shared/queries/peers.py",
        ".offset(max_callers - 1)",
        ".offset(1_000_000)",
        ("tests/integration/test_peers.py::test_a_flood_of_titles_drives_out_itself",),
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
        "api/pages/static/lib/times.js",
        """{ hour: "2-digit", minute: "2-digit", hourCycle: "h23" }""",
        """{ hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone: "UTC" }""",
        ("tests/browser/test_page.py::test_times_are_in_the_zone_of_the_reader",),
    ),
    Fault(
        "body-before-key",
        "A body is read and parsed for people without a key.",
        "api/requests.py",
        "            await check_key(request)  # raises what the dependencies raise\n",
        "",
        ("tests/integration/test_requests.py::test_no_body_is_read_without_a_key",),
    ),
    Fault(
        "nobody-gives-way",
        "Connections that wait keep their places, and new ones are refused.",
        "api/server.py",
        "oldest = next((one for one in _waiting if one.connections is self.connections), None)",
        "oldest = None",
        ("tests/integration/test_server.py::test_half_open_connections_give_way",),
    ),
    # -- infra
    Fault(
        "servers-stop-first",
        "Postgres stops before what still writes to it.",
        "infra/embedded/stack.py",
        "for name, server in reversed(self._servers().items()):",
        "for name, server in self._servers().items():",
        ("tests/integration/test_stack.py::test_parts_stop_before_the_servers_they_use",),
    ),
    Fault(
        "secrets-for-all",
        "Any user of the computer can read the keys and the identities' key.",
        "infra/embedded/state.py",
        """    with os.fdopen(descriptor, "w") as file:""",
        """    os.fchmod(descriptor, 0o644)\n    with os.fdopen(descriptor, "w") as file:""",
        ("tests/integration/test_stack.py::test_secrets_are_made_once_and_private",),
    ),
    Fault(
        "cut-line-swallows-the-next",
        "After a crash of the sender, the next file that it notes as stored is lost from its journal.",
        "infra/client/journal.py",
        r"""("\n" + "\n".join(map(json.dumps, lines)) + "\n")""",
        r"""("\n".join(map(json.dumps, lines)) + "\n")""",
        ("tests/unit/infra/test_uploading.py::test_journal_cut_off_anywhere",),
    ),
    # -- revised findings
    Fault(
        "revision-reversed",
        "Studies that the newer model assesses as negative are revised findings, and no others.",
        "shared/domain/backfill.py",
        "return old == Assessment.NEGATIVE and new in POSITIVE",
        "return new == Assessment.NEGATIVE and old in POSITIVE",
        ("tests/unit/shared/test_backfill.py::test_what_counts_as_newly_positive",),
    ),
)
