"""Studies to work on, made as the API makes them."""

import io
import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.fernet import Fernet
from pydicom import dcmread
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from shared.db.engine import Database
from shared.db.tables import AnalysisRow, FindingRow, InstanceRow, StudyRow
from shared.domain.analysis import Claim, Purpose
from shared.domain.findings import AbstentionReason, Assessment, Extent, Finding, Heatmap, InstanceResult
from shared.domain.study import Header, Identity, Priority, StoredFile, StoredStatus, StudyStatus
from shared.queries import analyses
from shared.queries.access import Vault
from shared.queries.intake import take_in
from shared.queries.models import activate_bundle, add_bundle
from shared.storage import Store, original_key, sha256_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)
SAMPLES = Path(__file__).parents[1] / "samples" / "studies"
IDENTITY_KEY = Fernet.generate_key().decode()  # of all databases in this process
_numbers = itertools.count(1)
SHARED = {"reason", "reason_detail"}  # both rows have them: a study's of what set it aside
OF_ANALYSIS = SHARED | {
    "state", "purpose", "model", "attempts", "queued_at", "sent_at", "not_before", "lease_token", "lease_until", "started_at", "finished_at",
}  # fmt: skip
STATES = {status: status.value for status in (StudyStatus.QUEUED, StudyStatus.RUNNING, StudyStatus.RETRYING)} | {
    StudyStatus.ANALYSED: "done", StudyStatus.QUARANTINED: "failed",
}  # fmt: skip


class StudyWithAnalysis:
    """A study's row with its current analysis: what of the latter has no column in the former, and whether it runs."""

    def __init__(self, study: StudyRow, analysis: Any) -> None:
        self.study, self.analysis = study, analysis

    def __getattr__(self, name: str) -> Any:
        queued = self.study.status == StoredStatus.QUEUED
        if name == "status" and queued and self.analysis:
            return self.analysis.state
        if name == "queue":
            return self.analysis and self.analysis.priority
        if name in OF_ANALYSIS and (name not in SHARED or queued):
            return getattr(self.analysis, name, None)
        return getattr(self.study, name)


def header_of(content: bytes) -> Header:
    """What the API would read from a file."""
    ds = dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
    return Header(
        str(ds.get("StudyInstanceUID", "2.25.1")),
        str(ds.get("SOPInstanceUID", f"2.25.{uuid.uuid4().int}")),
        str(ds.get("SOPClassUID", "1.2")),
        "1.2.840.10008.1.2.1",
        str(ds.get("Modality", "CR")),
        "HAND",
        1,
        1,
        int(ds.get("NumberOfFrames", 1) or 1),
        Identity("DOE^JANE"),
    )


@dataclass
class Hospital:
    """A site with studies in a database of its own."""

    database: Database
    site_id: UUID
    vault: Vault = field(default_factory=lambda: Vault(IDENTITY_KEY))

    def take_in(self, files: Sequence[StoredFile], priority: Priority = Priority.ROUTINE, now: datetime = NOW) -> UUID:
        """Rows as an upload leaves them; the study of the first file."""
        with self.database.transaction() as session:
            return take_in(session, self.vault, self.site_id, priority, list(files), now)[0].study_id

    def study(self, images: int = 1, priority: Priority = Priority.ROUTINE, now: datetime = NOW) -> UUID:
        """A study with images of which only the rows exist."""
        number = next(_numbers)
        return self.take_in([self.file(number, image) for image in range(images)], priority, now)

    def file(self, study: int, image: int, modality: str = "CR") -> StoredFile:
        """An invented file of study number `study`."""
        header = Header(
            f"2.25.{study}",
            f"2.25.{study}.{image}",
            "1.2",
            "1.2.840.10008.1.2.1",
            modality,
            "HAND",
            9,
            9,
            1,
            Identity(),
        )
        return StoredFile(sha256_of(f"{study}/{image}".encode()), 9, header)

    def stored(
        self,
        store: Store,
        contents: Sequence[bytes],
        priority: Priority = Priority.ROUTINE,
        *,
        keep: bool = True,
        **changes: Any,
    ) -> UUID:
        """A study of real files; with keep=False their objects are missing. changes: of the headers."""
        files: list[StoredFile] = []
        for content in contents:
            digest = sha256_of(content)
            if keep:
                store.put(original_key(digest), io.BytesIO(content), len(content))
            values = {**header_of(content).__dict__, "study_instance_uid": f"2.25.77.{next(_numbers)}"} | changes
            if files:
                values["study_instance_uid"] = files[0].header.study_instance_uid
            files.append(StoredFile(digest, len(content), Header(**values)))
        return self.take_in(files, priority)

    def row(self, study_id: UUID) -> "StudyWithAnalysis":
        """The study as it stands, with what its current analysis tells."""
        with self.database.transaction() as session:
            study = session.get_one(StudyRow, study_id)
            current = study.current_analysis_id  # a study that a test wrote by itself has none
            return StudyWithAnalysis(study, session.get(AnalysisRow, current) if current else None)

    def set(self, *study_ids: UUID, **values: Any) -> None:
        """As `change`."""
        with self.database.transaction() as session:
            change(session, *study_ids, **values)

    def current(self, study_id: UUID) -> UUID:
        """The id of a study's current analysis; of a study that is not there, what was asked with."""
        with self.database.transaction() as session:
            found = session.scalar(select(StudyRow.current_analysis_id).where(StudyRow.id == study_id))
        return found or study_id

    def rerun(self, study_id: UUID, model: str) -> AnalysisRow:
        """The rerun or shadow of a study by a model."""
        with self.database.transaction() as session:
            mine = AnalysisRow.study_id == study_id, AnalysisRow.model == model, AnalysisRow.purpose != Purpose.FIRST
            return session.scalars(select(AnalysisRow).where(*mine)).one()

    def analyses(self, study_id: UUID) -> list[AnalysisRow]:
        """All analyses of a study, in the order in which they were asked for."""
        with self.database.transaction() as session:
            query = select(AnalysisRow).where(AnalysisRow.study_id == study_id)
            return list(session.scalars(query.order_by(AnalysisRow.queued_at, AnalysisRow.finished_at)))

    def instances(self, study_id: UUID) -> list[InstanceRow]:
        """The images of a study, in their order of arrival and name."""
        with self.database.transaction() as session:
            order = (InstanceRow.received_at, InstanceRow.sop_instance_uid)
            return list(session.scalars(select(InstanceRow).where(InstanceRow.study_id == study_id).order_by(*order)))

    def findings(self, study_id: UUID) -> list[FindingRow]:
        """All findings of a study."""
        with self.database.transaction() as session:
            query = select(FindingRow).join(InstanceRow).where(InstanceRow.study_id == study_id)
            return list(session.scalars(query.order_by(FindingRow.instance_id, FindingRow.bundle, FindingRow.frame)))

    def count(self, **values: Any) -> int:
        """How many studies have these column values, the status as their rows say it."""
        queue = values.pop("queue", None)
        query = select(func.count()).select_from(StudyRow).filter_by(**values)
        if queue:
            query = query.where(
                StudyRow.current_analysis_id.in_(select(AnalysisRow.id).where(AnalysisRow.priority == queue))
            )
        with self.database.transaction() as session:
            return session.scalar(query) or 0

    def add_bundle(self, name: str, sha256: str = "0" * 64, manifest: dict[str, Any] | None = None) -> None:
        """Record a bundle and make it the active one."""
        with self.database.transaction() as session:
            add_bundle(session, name, sha256, manifest or {})
            activate_bundle(session, name)

    def claim(
        self, study_id: UUID, now: datetime = NOW, *, bundle: str = "a", alone: bool = False, most: int = 4
    ) -> Any:
        """Claim a study's current analysis as a worker does."""
        wanted = [self.current(study_id)]
        with self.database.transaction() as session:
            (result,) = analyses.claim(session, wanted, bundle, now, LEASE, max_attempts=most, alone=alone)
        return result

    def finish(self, claim: Claim, results: Sequence[InstanceResult], bundle: str = "a", now: datetime = NOW) -> bool:
        """Finish an analysis as a worker does, which must have been claimed for this bundle."""
        assert claim.model == bundle
        with self.database.transaction() as session:
            (written,) = analyses.finish(session, [analyses.AnalysisResult(claim, results)], now)
        assert isinstance(written, bool)
        return written

    def results(self, claim: Claim, bundle: str = "a") -> list[InstanceResult]:
        """A finding for every image of a claim."""
        return [InstanceResult(instance.id, [finding(bundle)]) for instance in claim.instances]

    def lost(self, oldest: dict[Priority, datetime | None], now: datetime, grace_s: float = 30) -> list[UUID]:
        """What the reconciler would send now."""
        with self.database.transaction() as session:
            return [
                to_send.study_id for to_send in analyses.resend_lost(session, oldest, now, timedelta(seconds=grace_s))
            ]


def change(session: Session, *study_ids: UUID, **values: Any) -> None:
    """Change columns of studies, and those of their current analyses by the same names, whatever move() says."""
    if values.get("status") in set(StudyStatus):
        values["state"] = STATES[StudyStatus(values["status"])]
        if values["status"] in (StudyStatus.RUNNING, StudyStatus.RETRYING):
            values["status"] = StoredStatus.QUEUED
    its = {name: value for name, value in values.items() if name in OF_ANALYSIS}
    if "queue" in values:
        its["priority"] = values.pop("queue")
    own = {name: value for name, value in values.items() if name not in OF_ANALYSIS or name in SHARED}
    current = select(StudyRow.current_analysis_id).where(StudyRow.id.in_(study_ids))
    if its:
        session.execute(update(AnalysisRow).where(AnalysisRow.id.in_(current)).values(**its))
    if own:
        session.execute(update(StudyRow).where(StudyRow.id.in_(study_ids)).values(**own))


def finding(bundle: str = "a", frame: int = 1, assessment: Assessment = Assessment.POSITIVE) -> Finding:
    """A finding."""
    why = AbstentionReason.METAL if assessment is Assessment.ABSTAINED else None
    return Finding(frame, bundle, "hand", 0.9, 0.8, assessment, Extent.MILD, Heatmap(b"\0\1\2\3", 2, 2), abstention=why)
