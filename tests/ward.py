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

from shared.findings import AbstentionReason, Assessment, Finding, Heatmap, InstanceResult, Severity
from shared.repository import Database, work
from shared.repository.access import Vault
from shared.repository.bundles import activate_bundle, add_bundle
from shared.repository.intake import take_in
from shared.storage import Store, original_key, sha256_of
from shared.study import Claim, Header, Identity, Priority, StoredFile
from shared.tables import FindingRow, InstanceRow, StudyRow

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)
SAMPLES = Path(__file__).parents[1] / "samples" / "studies"
_numbers = itertools.count(1)


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
class Ward:
    """A site with studies in a database of its own."""

    database: Database
    site_id: UUID
    vault: Vault = field(default_factory=lambda: Vault(Fernet.generate_key().decode()))

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

    def row(self, study_id: UUID) -> StudyRow:
        """The study as it stands."""
        with self.database.transaction() as session:
            return session.get_one(StudyRow, study_id)

    def set(self, *study_ids: UUID, **values: Any) -> None:
        """Change columns of studies."""
        with self.database.transaction() as session:
            session.execute(update(StudyRow).where(StudyRow.id.in_(study_ids)).values(**values))

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
        """How many studies have these column values."""
        with self.database.transaction() as session:
            return session.scalar(select(func.count()).select_from(StudyRow).filter_by(**values)) or 0

    def add_bundle(self, name: str, sha256: str = "0" * 64, manifest: dict[str, Any] | None = None) -> None:
        """Record a bundle and make it the active one."""
        with self.database.transaction() as session:
            add_bundle(session, name, sha256, manifest or {})
            activate_bundle(session, name)

    def claim(
        self, study_id: UUID, now: datetime = NOW, *, bundle: str = "a", alone: bool = False, most: int = 4
    ) -> Any:
        """Claim a study as a worker does."""
        with self.database.transaction() as session:
            (answer,) = work.claim(session, [study_id], bundle, now, LEASE, max_attempts=most, alone=alone)
        return answer

    def finish(self, claim: Claim, results: Sequence[InstanceResult], bundle: str = "a", now: datetime = NOW) -> bool:
        """Finish a study as a worker does."""
        with self.database.transaction() as session:
            (written,) = work.finish(session, [work.Analysed(claim, results, bundle)], now)
        return written

    def answers(self, claim: Claim, bundle: str = "a") -> list[InstanceResult]:
        """A finding for every image of a claim."""
        return [InstanceResult(instance.id, [finding(bundle)]) for instance in claim.instances]

    def lost(self, heads: dict[Priority, datetime | None], now: datetime, grace_s: float = 30) -> list[UUID]:
        """What the reconciler would send now."""
        with self.database.transaction() as session:
            return [to_send.study_id for to_send in work.lost(session, heads, now, timedelta(seconds=grace_s))]


def finding(bundle: str = "a", frame: int = 1, assessment: Assessment = Assessment.POSITIVE) -> Finding:
    """A finding."""
    why = AbstentionReason.METAL if assessment is Assessment.ABSTAINED else None
    return Finding(
        frame, bundle, "hand", 0.9, 0.8, assessment, Severity.MILD, Heatmap(b"\0\1\2\3", 2, 2), abstention=why
    )
