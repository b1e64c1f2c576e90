"""A night under way when things die: each outdated study gets its second look, once, and live work goes first."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.prepare import publish
from shared.repository import Database, nights, work
from shared.repository.bundles import activate_bundle, active_bundle
from shared.settings import Settings
from shared.vision.bundle import load_bundle, save_bundle
from tests.pace import LIMIT_S
from tests.plant import Plant

pytestmark = pytest.mark.timeout(400)
LOOKS = "SELECT state, count(*) FROM second_looks WHERE bundle = %s GROUP BY 1"


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A plant of these tests' own: a night looks at all that any test left, at studies without films in the store too."""
    with Plant(tmp_path_factory.mktemp("nights")) as made:
        yield made


@pytest.fixture
def newer(plant: Plant, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """A function that activates the shipped bundle under another name, and opens a night over what the old one read."""
    database = Database(plant.postgres.url, 2)
    settings = Settings(store_url=plant.environment["OSTEON_STORE_URL"])
    with database.transaction() as session:
        active = active_bundle(session)
    assert active is not None
    old = active.name

    def begin(name: str) -> None:
        network, manifest = load_bundle(settings.bundle_path.read_bytes())
        save_bundle(tmp_path / name, network, manifest.model_copy(update={"name": name}))
        publish(settings, database, tmp_path / name, activate=True)
        with database.transaction() as session:
            now = work.clock(session)
            assert nights.begin_night(session, now.date(), now, name, 4.0, 5000)

    yield begin
    with database.transaction() as session:
        activate_bundle(session, old)
        for table in ("alerts", "second_looks", "backlog_runs"):  # there is one night a day
            session.connection().exec_driver_sql(f"DELETE FROM {table}")
    database.close()


def done(plant: Plant, name: str) -> int:
    return int(dict(plant.studies.ask(LOOKS, name)).get("done", 0))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["worker killed", "broker forgets"])
def test_a_night_that_is_disturbed(plant: Plant, newer: Callable[[str], None], fault: str) -> None:
    """kill -9 of the worker, or a broker that forgets everything, in the middle of a night: nothing is lost, nothing is
    looked at twice, and every study shows the old bundle's finding until it shows the new one's."""
    worker = plant.worker()
    ids = plant.submit(f"night {fault}", 24)
    plant.all_analysed_once(ids, time.monotonic())
    name = fault.replace(" ", "-")
    newer(name)
    plant.until(lambda: done(plant, name) >= 4, 90)
    assert done(plant, name) < 20, "the fault would come too late to show anything"
    assert {state[0] for state in plant.studies.states(ids)} == {"analysed"}
    if fault == "worker killed":
        worker.kill()
        worker.wait(LIMIT_S)
        plant.worker()
    else:
        with plant.broker() as client:
            client.flushall()
    spoken_for = "SELECT count(*) FROM studies WHERE id = ANY(%s::uuid[]) AND bundle = %s AND status = 'analysed'"
    plant.until(lambda: plant.studies.ask(spoken_for, ids, name) == [(len(ids),)], 90)
    assert plant.studies.findings(ids) == [2] * len(ids)
    plant.until(
        lambda: plant.studies.ask("SELECT 1 FROM backlog_runs WHERE bundle = %s AND report IS NOT NULL", name), 30
    )
    mine = "SELECT state, count(*) FROM second_looks WHERE bundle = %s AND study_id = ANY(%s::uuid[]) GROUP BY 1"
    assert plant.studies.ask(mine, name, ids) == [("done", len(ids))]


@pytest.mark.slow
def test_live_work_overtakes_a_night(plant: Plant, newer: Callable[[str], None]) -> None:
    """An urgent study that comes while a night is out is done long before the night is."""
    plant.worker(MODEL_S="0.3")
    ids = plant.submit("slow night", 24)
    plant.until(lambda: plant.studies.done(ids) == len(ids), 120)
    newer("overtaken")
    plant.until(lambda: done(plant, "overtaken") >= 2, 90)
    (urgent,) = plant.submit("urgent in the night", 1, priority="urgent")
    plant.until(lambda: plant.studies.done([urgent]) == 1, 60)
    looked = done(plant, "overtaken")
    print(f"{looked} of {len(ids)} second looks were done by then")
    assert looked < len(ids)
