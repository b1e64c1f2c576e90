"""Wrong settings are told in a sentence, in every process; what Kubernetes sets for services is passed over."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.settings import OTHERS, BadSettings, Settings, misspelt
from tests.pace import limit_s

NAMES = [f"OSTEON_{name.upper()}" for name in Settings.model_fields]


@given(st.sampled_from(NAMES), st.data())
def test_a_misspelt_variable_is_told_with_the_nearest_name(name: str, data: st.DataObject) -> None:
    """A letter left out, doubled or changed: the sentence names both."""
    at = data.draw(st.integers(len("OSTEON_"), len(name) - 1))
    wrong = name[:at] + data.draw(st.sampled_from(["", name[at] * 2, "q"])).upper() + name[at + 1 :]
    if wrong in {*NAMES, *OTHERS}:
        return
    (told,) = misspelt({wrong: "1", "PATH": "/bin"})
    assert told.startswith(f"{wrong} is no setting; did you mean OSTEON_")


def test_variables_that_are_read_are_known() -> None:
    """Settings, those that CONTRIBUTING lists, and whatever is not ours."""
    assert misspelt(dict.fromkeys([*NAMES, *OTHERS, "POSTGRES_PASSWORD", "OSTEONX"], "1")) == []


@pytest.mark.parametrize("service", ["OSTEON", "OSTEON_API", "OSTEON_FLOWER", "OSTEON_WORKER_METRICS", "OSTEON_S3_2"])
def test_variables_of_services_are_passed_over(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that Kubernetes sets for a service, also where it has a setting's name."""
    address = "tcp://10.0.0.11:8000"
    environment = {
        f"{service}_SERVICE_HOST": "10.0.0.11", f"{service}_SERVICE_PORT": "8000", f"{service}_SERVICE_PORT_HTTP": "8000",
        f"{service}_PORT": address, f"{service}_PORT_8000_TCP": address, f"{service}_PORT_8000_TCP_PROTO": "tcp",
        f"{service}_PORT_8000_TCP_PORT": "8000", f"{service}_PORT_8000_TCP_ADDR": "10.0.0.11",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    own = Settings()
    assert (own.api_port, own.flower_port, own.worker_metrics_port) == (8080, 5555, 0)
    monkeypatch.setenv("OSTEON_API_PORT", "8081")
    assert Settings().api_port == 8081


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OSTEON_BATCH_SIZE", "many", "integer"),
        ("OSTEON_BATCH_SIZE", "0", "greater than or equal to 1"),
        ("OSTEON_NIGHTLY_TIMEZONE", "Berlin", "Europe/Berlin"),
        ("OSTEON_LOG_LEVEL", "LOUD", "DEBUG"),
        ("OSTEON_API_PORT", "tcp:8000", "integer"),
    ],
)
def test_a_wrong_value_is_told_without_it(name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, and what would be right; the value may be a secret."""
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as told:
        Settings()
    assert str(told.value).startswith(f"{name}: ")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "command",
    [
        ["worker.main"],
        ["celery", "-A", "worker.main:app", "beat"],
        ["uvicorn", "api.main:create_app", "--factory"],
        ["infra.prepare"],
        ["infra.cli", "status"],
        ["alembic", "-c", "migrations/alembic.ini", "current"],
    ],
    ids=lambda command: command[0],
)
def test_every_process_says_it_in_a_sentence(command: list[str]) -> None:
    """Exit code 1, one line, no trace."""
    environment = os.environ | {"OSTEON_DATABSE_URL": "postgresql://nowhere"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip() == "osteon: OSTEON_DATABSE_URL is no setting; did you mean OSTEON_DATABASE_URL?"
