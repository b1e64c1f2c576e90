"""The study's page as HTML: studies that lack something."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert

from shared.db.tables import StudyRow


@pytest.mark.parametrize("status", ["queued", "analysed", "quarantined"])
@pytest.mark.parametrize("judged", [False, True])
def test_a_study_without_images_has_a_page(in_process: Any, status: str, judged: bool) -> None:
    """A row that no image belongs to, as a hand in the database can leave it, is shown and says so."""
    study, now = uuid4(), datetime.now(UTC)
    values: dict[str, Any] = {
        "id": study, "site_id": in_process.key().site_id, "study_instance_uid": f"1.2.{study.int}",
        "priority": "routine", "status": status, "received_at": now, "due_at": now,
        "reason": "", "images": 0, "failed_images": 0,
    }  # fmt: skip
    if judged:
        values |= {"assessment": "positive", "region": "hand", "bundle": "gone"}
    with in_process.database.transaction() as session:
        session.execute(insert(StudyRow).values(values))
    headers = in_process.headers("radiologist") | {"Accept": "text/html"}
    for path in (f"/view/{study}", f"/view/{study}/report", "/"):
        page = in_process.http.get(path, headers=headers)
        assert page.status_code == 200, (path, page.text)
        if path != "/":
            assert "This study holds no images" in page.text, path
    assert in_process.http.get(f"/api/v1/studies/{study}/report.pdf", headers=headers).content.startswith(b"%PDF")
