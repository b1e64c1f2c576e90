"""The tables, by noun; migrations/ must lead to exactly these (tests/integration/test_migrations.py holds it so)."""

from shared.db.tables.access import IdentityReadRow, IdentityRow, KeyCheckRow, KeyRow, SiteRow
from shared.db.tables.analyses import AnalysisRow
from shared.db.tables.audit import AuditEventRow, KeyAddressRow, SessionRow
from shared.db.tables.backfill import BackfillRunRow, RevisedFindingRow
from shared.db.tables.base import Base
from shared.db.tables.checks import CheckExpectationRow, CheckRow
from shared.db.tables.deletions import DeletionRow, LeftObjectRow
from shared.db.tables.feedback import FeedbackRow
from shared.db.tables.findings import BundleRow, FindingRow
from shared.db.tables.held import HeldFileRow, HeldTokenRow
from shared.db.tables.operations import (
    HoldingRow,
    QuarantineDecisionRow,
    RejectionRow,
    StatisticRow,
    UploadUsageRow,
    WorkerRow,
)
from shared.db.tables.peers import CallerRow, CommitmentRow, PeerDayRow, PeerRow, SendingRow
from shared.db.tables.results import (
    CommitmentRequestRow,
    DeliveryObjectRow,
    DeliveryRow,
    DestinationRow,
    DestinationRuleRow,
    NoticeRow,
    ResultObjectRow,
    ResultSetRow,
)
from shared.db.tables.studies import InstanceRow, RejectedInstanceRow, SeriesRow, StudyRow, UploadRow
from shared.db.tables.worklist import (
    IdentitySearchRow,
    IdentityTokenRow,
    ReadingLockRow,
    SavedFilterRow,
    TurnaroundTargetsRow,
)

__all__ = [
    "AnalysisRow",
    "AuditEventRow",
    "BackfillRunRow",
    "Base",
    "BundleRow",
    "CallerRow",
    "CheckExpectationRow",
    "CheckRow",
    "CommitmentRequestRow",
    "CommitmentRow",
    "DeletionRow",
    "DeliveryObjectRow",
    "DeliveryRow",
    "DestinationRow",
    "DestinationRuleRow",
    "FeedbackRow",
    "FindingRow",
    "HeldFileRow",
    "HeldTokenRow",
    "HoldingRow",
    "IdentityReadRow",
    "IdentityRow",
    "IdentitySearchRow",
    "IdentityTokenRow",
    "InstanceRow",
    "KeyAddressRow",
    "KeyCheckRow",
    "KeyRow",
    "LeftObjectRow",
    "NoticeRow",
    "PeerDayRow",
    "PeerRow",
    "QuarantineDecisionRow",
    "ReadingLockRow",
    "RejectedInstanceRow",
    "RejectionRow",
    "ResultObjectRow",
    "ResultSetRow",
    "RevisedFindingRow",
    "SavedFilterRow",
    "SendingRow",
    "SeriesRow",
    "SessionRow",
    "SiteRow",
    "StatisticRow",
    "StudyRow",
    "TurnaroundTargetsRow",
    "UploadRow",
    "UploadUsageRow",
    "WorkerRow",
]
