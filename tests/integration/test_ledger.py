"""Claims and results of many threads, in few transactions."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

from shared.repository import work
from shared.study import Claim, StudyStatus
from worker.ledger import Ledger


def test_what_comes_together_shares_a_transaction(ward, monkeypatch):
    """Eight studies that ask within the wait cost one transaction for their claims and one for their results, and each
    gets its own answer."""
    monkeypatch.setattr("worker.ledger.WAIT_S", 2.0)
    studies = [ward.study() for _ in range(8)]
    begun = []
    transaction = ward.database.transaction

    @contextmanager
    def counted():
        begun.append(1)
        with transaction() as session:
            yield session

    monkeypatch.setattr(ward.database, "transaction", counted)
    ledger = Ledger(ward.database, timedelta(seconds=60), 4)
    try:
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(lambda study: ledger.claim(study, "a"), studies))
            assert [isinstance(claim, Claim) and claim.study_id for claim in claims] == studies
            done = [work.Analysed(claim, ward.answers(claim), "a") for claim in claims]
            assert list(pool.map(ledger.finish, done)) == [True] * 8
    finally:
        ledger.close()
    assert len(begun) == 2
    monkeypatch.undo()
    assert {ward.row(study).status for study in studies} == {StudyStatus.ANALYSED}
    assert [len(ward.findings(study)) for study in studies] == [1] * 8
