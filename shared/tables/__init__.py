"""The tables, by noun; migrations/ must lead to exactly these (tests/integration/test_migrations.py holds it so)."""

from shared.tables.access import IdentityReadRow, IdentityRow, KeyRow, SiteRow
from shared.tables.answers import AnswerRow
from shared.tables.base import Base
from shared.tables.findings import BundleRow, FindingRow
from shared.tables.held import HeldFileRow, HeldTokenRow
from shared.tables.nights import AlertRow, BacklogRunRow, SecondLookRow
from shared.tables.operations import HoldingRow, QuarantineDecisionRow, RefusalRow, SampleRow, WorkerRow
from shared.tables.reading_room import (
    AllowancesRow,
    IdentitySearchRow,
    IdentityTokenRow,
    SavedFilterRow,
    StudyClaimRow,
)
from shared.tables.studies import InstanceRow, StudyRow, UploadRow

__all__ = [
    "AlertRow",
    "AllowancesRow",
    "AnswerRow",
    "BacklogRunRow",
    "Base",
    "BundleRow",
    "FindingRow",
    "HeldFileRow",
    "HeldTokenRow",
    "HoldingRow",
    "IdentityReadRow",
    "IdentityRow",
    "IdentitySearchRow",
    "IdentityTokenRow",
    "InstanceRow",
    "KeyRow",
    "QuarantineDecisionRow",
    "RefusalRow",
    "SampleRow",
    "SavedFilterRow",
    "SecondLookRow",
    "SiteRow",
    "StudyClaimRow",
    "StudyRow",
    "UploadRow",
    "WorkerRow",
]
