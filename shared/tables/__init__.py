"""The tables, by noun; migrations/ must lead to exactly these (tests/integration/test_migrations.py holds it so)."""

from shared.tables.access import IdentityReadRow, IdentityRow, KeyRow, SiteRow
from shared.tables.base import Base
from shared.tables.findings import BundleRow, FindingRow
from shared.tables.nights import BacklogRunRow
from shared.tables.reading_room import (
    AllowancesRow,
    IdentitySearchRow,
    IdentityTokenRow,
    SavedFilterRow,
    StudyClaimRow,
)
from shared.tables.studies import InstanceRow, StudyRow, UploadRow

__all__ = [
    "AllowancesRow",
    "BacklogRunRow",
    "Base",
    "BundleRow",
    "FindingRow",
    "IdentityReadRow",
    "IdentityRow",
    "IdentitySearchRow",
    "IdentityTokenRow",
    "InstanceRow",
    "KeyRow",
    "SavedFilterRow",
    "SiteRow",
    "StudyClaimRow",
    "StudyRow",
    "UploadRow",
]
