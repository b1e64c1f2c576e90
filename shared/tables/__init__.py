"""The tables, by noun; migrations/ must lead to exactly these (tests/integration/test_migrations.py holds it so)."""

from shared.tables.access import IdentityReadRow, IdentityRow, KeyRow, SiteRow
from shared.tables.answers import AnswerRow
from shared.tables.base import Base
from shared.tables.findings import BundleRow, FindingRow
from shared.tables.nights import AlertRow, BacklogRunRow, SecondLookRow
from shared.tables.operations import HoldingRow, RefusalRow, SampleRow, WorkerRow
from shared.tables.studies import InstanceRow, StudyRow, UploadRow

__all__ = [
    "AlertRow",
    "AnswerRow",
    "BacklogRunRow",
    "Base",
    "BundleRow",
    "FindingRow",
    "HoldingRow",
    "IdentityReadRow",
    "IdentityRow",
    "InstanceRow",
    "KeyRow",
    "RefusalRow",
    "SampleRow",
    "SecondLookRow",
    "SiteRow",
    "StudyRow",
    "UploadRow",
    "WorkerRow",
]
