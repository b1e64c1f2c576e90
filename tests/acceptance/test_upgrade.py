"""An installation of the version before the table `analyses` is upgraded: its messages are understood, nothing is lost."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
import pytest

from shared.model.bundle import load_bundle, save_bundle
from shared.settings import ROOT, Settings
from shared.storage import bundle_key, open_store, original_key, sha256_of
from tests.conftest import alembic
from tests.databases import run_sql
from tests.hospital import header_of
from tests.live_stack import BreakableStack, instance

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]
BEFORE = ROOT / "tests/data/before_analyses"
REVISION = "0020"  # of the database that wrote it
MODELS = ("first-model", "newer-model", "shadow-model")
FINDINGS = """
    SELECT study_instance_uid, findings.bundle, count(*) FROM findings
    JOIN instances ON instances.id = instance_id JOIN studies ON studies.id = study_id GROUP BY 1, 2
"""
STANDS = """
    SELECT studies.status, studies.bundle, analyses.state, analyses.attempts, analyses.leftover, read_at IS NOT NULL
    FROM studies JOIN analyses ON analyses.id = current_analysis_id WHERE study_instance_uid = %s
"""


@pytest.fixture
def live_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BreakableStack]:
    with BreakableStack(tmp_path_factory.mktemp("upgrade")) as made:
        made.end_processes(0)  # the API: it is stopped for an upgrade
        yield made


def image(number: int) -> bytes:
    """A radiograph of the database of before: study and image number, as 201 for study 20's second."""
    return instance("before", number, study=number // 10 * 10)


UID = {n: header_of(image(n * 10)).study_instance_uid for n in range(24)}  # of its studies


def restore(live_stack: BreakableStack, folder: Path) -> None:
    """The database, the store and the broker as the version before left them, and the database upgraded."""
    server = live_stack.postgres
    alembic(server, server.url, "downgrade", "base")
    alembic(server, server.url, "upgrade", REVISION)
    run_sql(live_stack.postgres.owner_url, (BEFORE / "database.sql").read_text())
    store = open_store(live_stack.environment["OSTEON_STORE_URL"])
    connection = psycopg2.connect(live_stack.postgres.owner_url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        for content in [image(n * 10) for n in range(24)] + [image(201)]:
            digest = sha256_of(content)
            store.put(original_key(digest), io.BytesIO(content), len(content))
            changed = "UPDATE instances SET sha256 = %s WHERE sop_instance_uid = %s"
            cursor.execute(changed, (digest, header_of(content).sop_instance_uid))
            assert cursor.rowcount == 1
        network, manifest = load_bundle(Settings().bundle_path.read_bytes())
        for name in ("first-model", "newer-model", "shadow-model"):
            its = manifest.model_copy(update={"name": name})
            save_bundle(folder / name, network, its)
            content = (folder / name).read_bytes()
            store.put(bundle_key(sha256_of(content)), io.BytesIO(content), len(content))
            changed = "UPDATE bundles SET sha256 = %s, manifest = %s WHERE name = %s"
            cursor.execute(changed, (sha256_of(content), its.model_dump_json(), name))
        # tonight's run is under way, whatever day it is
        cursor.execute(
            "UPDATE backlog_runs SET started_at = now() - interval '1 hour', ends_at = now() + interval '4 hours' "
            "WHERE finished_at IS NULL AND purpose = 'night'"
        )
    connection.close()
    with live_stack.broker() as client:
        for queue, messages in json.loads((BEFORE / "broker.json").read_text()).items():
            if messages:
                client.rpush(queue, *messages)
    alembic(server, server.url, "upgrade", "head")


def test_messages_of_before_are_worked_off_once(live_stack: BreakableStack, tmp_path: Path) -> None:
    """Studies queued, running, retrying, set aside and analysed, reruns out, held and done, a run under way: a worker
    takes the old messages, and each ends as it must, with one finding of each model that was to analyse it."""
    restore(live_stack, tmp_path)
    with live_stack.broker() as client:
        names = [json.loads(m)["headers"]["task"] for q in ("routine", "backlog") for m in client.lrange(q, 0, -1)]
    assert Counter(names) == {"osteon.analyse_study": 6, "osteon.second_look": 2}
    hour = (datetime.now(UTC).hour + 12) % 24  # no night begins
    live_stack.worker(OSTEON_BACKFILL_HOUR=str(hour), OSTEON_BACKFILL_TIMEZONE="UTC", MODEL_S="0.01")

    def settled() -> bool:
        query = "SELECT count(*) FROM analyses WHERE finished_at IS NULL"
        ended = "SELECT count(*) FROM backfill_runs WHERE finished_at IS NULL"
        return live_stack.studies.ask(query) == [(0,)] and live_stack.studies.ask(ended) == [(0,)]

    live_stack.until(settled, 120)
    found: dict[str, dict[str, int]] = {}
    for study, model, count in live_stack.studies.ask(FINDINGS):
        found.setdefault(study, {})[model] = count
    stands = {n: live_stack.studies.ask(STANDS, study)[0] for n, study in UID.items()}
    live = {n: found[UID[n]] for n in range(7)}
    assert list(live.values()) == [{"newer-model": 1}] * 7, "queued, lost, abandoned and retrying"
    assert {n: stands[n][:4] for n in range(7)} == {
        n: ("analysed", "newer-model", "done", 2 if n in (5, 6) else 1) for n in range(7)
    }
    # what was set aside stays so, with its attempts
    assert {n: stands[n][0] for n in (7, 8, 9, 23)} == dict.fromkeys((7, 8, 9, 23), "quarantined")
    assert [stands[n][3] for n in (7, 8, 9, 23)] == [3] * 4
    # the run: one failed study again, one stranded, one that had its result, and the reruns
    assert [stands[n][4] for n in (18, 19, 22)] == ["failed", "stranded", "failed"]
    assert [found[UID[n]] for n in (18, 19, 22)] == [{"newer-model": 1}] * 3
    for n in (11, 13, 14, 15, 16, 17, 21):  # done, out, abandoned, held, and what the run had still to come to
        mine = found[UID[n]]
        assert stands[n][:2] == ("analysed", "newer-model"), n
        assert mine["first-model"] == mine["newer-model"] == 1 and mine.get("shadow-model", 1) == 1, n
    # superseded, and failed, behind the cursor: the next pass over history comes to them
    assert [stands[n][:2] for n in (10, 12)] == [("analysed", "first-model")] * 2
    assert sum("shadow-model" in of_study for of_study in found.values()) == 2
    assert stands[21][5], "what was read stays read"
    # a late image: both images by the active model, and what stood there stays
    assert found[UID[20]] == {"first-model": 1, "newer-model": 2}
    ((report,),) = live_stack.studies.ask(
        "SELECT report FROM backfill_runs WHERE day = (SELECT max(day) FROM backfill_runs)"
    )
    assert report["kinds"]["failed"] == {"done": 2}
    assert report["kinds"]["stranded"] == {"done": 1}
    assert live_stack.complaints("error") == []
