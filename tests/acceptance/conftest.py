"""What the tests of faults share."""

from collections.abc import Iterator

import pytest

from tests.plant import Plant


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """The parts that outlive one test."""
    made = Plant(tmp_path_factory.mktemp("plant"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def plant(standing: Plant) -> Iterator[Plant]:
    """Postgres, Valkey and API, running; what the test starts itself ends with it."""
    standing.begin()
    yield standing
    standing.end_processes(1)
