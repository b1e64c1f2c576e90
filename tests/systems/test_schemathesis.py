"""Schemathesis with all its checks against a real API, once for each role.

No server error, and no response that the OpenAPI document does not name.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.client.api import Client
from shared.settings import ROOT
from tests.live_stack import KEYS, BreakableStack
from tests.pace import limit_s

pytestmark = pytest.mark.systems
EXAMPLES = 12  # random requests of each kind for each operation, besides examples and limits of each value
ENDLESS = "/api/v1/worklist/events"  # a stream of ten minutes; tests/integration/test_events.py has it
CONFIG = (Path(__file__).parent / "schemathesis.toml").read_text()


@pytest.fixture(scope="module")
def live_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BreakableStack, str]]:
    """An API with some analysed studies, and the id of one."""
    with BreakableStack(tmp_path_factory.mktemp("schemathesis")) as made:
        made.worker()
        paths = sorted((ROOT / "samples/studies").rglob("*.dcm"))[:6]
        with Client(made.url, KEYS["admin"]) as client:
            receipt = client.submit([(path, path.name) for path in paths])
            client.wait_for_states(list(receipt.studies), limit_s(120))
        # one that does not hold wrong keys up: each request is also sent with one, and 401 is meant
        made.url = made.api(OSTEON_FAILURES_A_MINUTE="1000000")
        yield made, next(iter(receipt.studies))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ["nobody", *KEYS])
def test_every_response_is_documented(live_stack: tuple[BreakableStack, str], role: str, tmp_path: Path) -> None:
    """Examples, limits and random requests, those that fit and those that do not."""
    made, study_id = live_stack
    config = tmp_path / "schemathesis.toml"
    config.write_text(f"[parameters]\nstudy_id = {json.dumps(study_id)}\n\n{CONFIG}")
    key = [] if role == "nobody" else ["--header", f"Authorization: Bearer {KEYS[role]}"]
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "--no-color",
            "run", f"{made.url}/openapi.json", *key, "--checks", "all", "--phases", "examples,coverage,fuzzing",
            "--max-examples", str(EXAMPLES), "--exclude-path", ENDLESS, "--seed", "1", "--generation-database", "none",
            "--request-timeout", str(limit_s(30)), "--warnings", "off", "--generation-allow-x00", "false",  # test_hostile_input.py has NUL
        ],
        capture_output=True, text=True, timeout=limit_s(600), check=False, cwd=tmp_path,
    )  # fmt: skip
    print(f"{role}: {re.findall(r'[0-9]+ generated.*', done.stdout)}")
    assert done.returncode == 0, done.stdout[-12_000:]
