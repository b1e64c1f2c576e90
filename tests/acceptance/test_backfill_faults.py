"""A backfill run under way when things die: each outdated study gets its rerun, once, and live work goes first."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.prepare import store_bundle_file
from shared.db.clock import db_now
from shared.db.engine import Database
from shared.model.bundle import load_bundle, save_bundle
from shared.queries import backfill
from shared.queries.models import activate_bundle, active_bundle
from shared.settings import Settings
from tests.live_stack import BreakableStack
from tests.pace import LIMIT_S

pytestmark = pytest.mark.timeout(400)
RERUNS = "SELECT state, count(*) FROM analyses WHERE model = %s AND purpose = 'rerun' GROUP BY 1"


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BreakableStack]:
    """A stack of these tests' own: a backfill run takes all that any test left, at studies without radiographs in the store too."""
    with BreakableStack(tmp_path_factory.mktemp("backfill")) as made:
        yield made


@pytest.fixture
def newer(live_stack: BreakableStack, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """A function that activates the shipped bundle under another name, and opens a backfill run over what the old one read."""
    database = Database(live_stack.postgres.url, 2)
    settings = Settings(store_url=live_stack.environment["OSTEON_STORE_URL"])
    with database.transaction() as session:
        active = active_bundle(session)
    assert active is not None
    old = active.name

    def begin(name: str) -> None:
        network, manifest = load_bundle(settings.bundle_path.read_bytes())
        save_bundle(tmp_path / name, network, manifest.model_copy(update={"name": name}))
        store_bundle_file(settings, database, tmp_path / name, activate=True)
        with database.transaction() as session:
            now = db_now(session)
            assert backfill.open_backfill_run(session, now.date(), now, name, 4.0, 5000)

    yield begin
    with database.transaction() as session:
        activate_bundle(session, old)
        for rows in (
            "revised_findings",
            "analyses WHERE purpose <> 'first'",
            "backfill_runs",
        ):  # there is one run a day
            session.connection().exec_driver_sql(f"DELETE FROM {rows}")
    database.close()


def done(live_stack: BreakableStack, name: str) -> int:
    return int(dict(live_stack.studies.ask(RERUNS, name)).get("done", 0))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["worker killed", "broker forgets"])
def test_a_backfill_run_that_is_disturbed(live_stack: BreakableStack, newer: Callable[[str], None], fault: str) -> None:
    """kill -9 of the worker, or a broker that forgets everything, in the middle of a run: nothing is lost, nothing is
    looked at twice, and every study shows the old bundle's finding until it shows the new one's."""
    worker = live_stack.worker()
    ids = live_stack.submit(f"backfill {fault}", 24)
    live_stack.all_analysed_once(ids, time.monotonic())
    name = fault.replace(" ", "-")
    newer(name)
    live_stack.until(lambda: done(live_stack, name) >= 4, 90)
    assert done(live_stack, name) < 20, "the fault would come too late to show anything"
    assert {state[0] for state in live_stack.studies.states(ids)} == {"analysed"}
    if fault == "worker killed":
        worker.kill()
        worker.wait(LIMIT_S)
        live_stack.worker()
    else:
        with live_stack.broker() as client:
            client.flushall()
    spoken_for = "SELECT count(*) FROM studies WHERE id = ANY(%s::uuid[]) AND bundle = %s AND status = 'analysed'"
    live_stack.until(lambda: live_stack.studies.ask(spoken_for, ids, name) == [(len(ids),)], 90)
    assert live_stack.studies.findings(ids) == [2] * len(ids)
    live_stack.until(
        lambda: live_stack.studies.ask("SELECT 1 FROM backfill_runs WHERE bundle = %s AND report IS NOT NULL", name), 30
    )
    mine = (
        "SELECT state, count(*) FROM analyses "
        "WHERE model = %s AND purpose = 'rerun' AND study_id = ANY(%s::uuid[]) GROUP BY 1"
    )
    assert live_stack.studies.ask(mine, name, ids) == [("done", len(ids))]


@pytest.mark.slow
def test_live_work_goes_before_a_backfill_run(live_stack: BreakableStack, newer: Callable[[str], None]) -> None:
    """An urgent study that comes while a backfill run is out is done long before the run is."""
    live_stack.worker(MODEL_S="0.3")
    ids = live_stack.submit("slow backfill", 24)
    live_stack.until(lambda: live_stack.studies.done(ids) == len(ids), 120)
    newer("in-the-background")
    live_stack.until(lambda: done(live_stack, "in-the-background") >= 2, 90)
    (urgent,) = live_stack.submit("urgent beside a backfill", 1, priority="urgent")
    live_stack.until(lambda: live_stack.studies.done([urgent]) == 1, 60)
    looked = done(live_stack, "in-the-background")
    print(f"{looked} of {len(ids)} reruns were done by then")
    assert looked < len(ids)
