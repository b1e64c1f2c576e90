"""Wrong settings are told in a sentence, in every process; what Kubernetes sets for services is passed over."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.settings import (
    OTHERS,
    RENAMED,
    ROOT,
    BadSettings,
    Settings,
    _warn_of_old_name,
    cpu_count,
    misspelt,
)
from tests.forked import run_module

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


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_an_old_name_counts_with_a_warning(
    old: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A setting's name of before 0.2.0 is taken, and the log says how it is called now; both names are an error."""
    new = RENAMED[old]
    field = new.removeprefix("OSTEON_").lower()
    value = {"FULL_FRAMES": "False", "BACKFILL_TIMEZONE": "Europe/Berlin"}.get(field.upper(), "7")
    monkeypatch.setenv(old, value)
    _warn_of_old_name.cache_clear()
    assert str(getattr(Settings(), field)).removesuffix(".0") == value
    assert [(vars(one)["old"], vars(one)["new"]) for one in caplog.records] == [(old, new)]
    monkeypatch.setenv(new, value)
    with pytest.raises(BadSettings, match=f"{old} is the old name of {new}, and both are set"):
        Settings()
    monkeypatch.setenv(old, "")  # as Compose sets what is left out
    assert str(getattr(Settings(), field)).removesuffix(".0") == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OSTEON_BATCH_SIZE", "many", "integer"),
        ("OSTEON_BATCH_SIZE", "0", "greater than or equal to 1"),
        ("OSTEON_BACKFILL_TIMEZONE", "Berlin", "Europe/Berlin"),
        ("OSTEON_LOG_LEVEL", "LOUD", "DEBUG"),
        ("OSTEON_OVERLAY_AT_START", "heatmap and outlines", "none|outlines"),
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
        ["celery", "-A", "shared.queue.app:app", "beat"],
        ["api.server"],
        ["infra.prepare"],
        ["infra.cli", "status"],
        ["alembic", "-c", "migrations/alembic.ini", "current"],
    ],
    ids=lambda command: command[0],
)
def test_every_process_says_it_in_a_sentence(command: list[str], tmp_path: Path) -> None:
    """Exit code 1, one line, no trace."""
    done = run_module(command, os.environ | {"OSTEON_DATABSE_URL": "postgresql://nowhere"}, tmp_path)
    assert done.returncode == 1, done.stdout
    assert done.stdout.strip() == "osteon: OSTEON_DATABSE_URL is no setting; did you mean OSTEON_DATABASE_URL?"


# -- the cores that a control group grants --------------------------------------------------------------------------


def control_group(folder: Path, cgroup: str, files: dict[str, str]) -> dict[str, Path]:
    """A process's view of its control groups: /proc/self/cgroup, and what stands in the tree."""
    proc, mounts = folder / "proc", folder / "mounts"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    for name, text in files.items():
        file = mounts / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return {"proc": proc, "mounts": mounts}


V1, V1_TOGETHER = "5:cpu:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n", "3:cpu,cpuacct:/docker/abc\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),  # version 2, in a container, which sees its own group as the root
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "20000 100000"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),  # the group above grants less
        ("0::/a/b\n", {"a/b/cpu.max": "100000 50000", "a/cpu.max": "300000 100000"}, 2),
        ("0::/a\n", {"a/cpu.max": "6400000 100000"}, 8),  # more than there are
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),  # version 1, in a container
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "250000", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        (V1_TOGETHER, {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"unified/docker/abc/cpu.max": "400000 100000"}, 4),  # both versions, the quota in the second's tree
        ("0::/\n", {"cpu.max": "nonsense"}, 8),
        ("0::/\n", {"cpu.max": "100000 0"}, 8),
        ("4:memory:/x\n", {"x/cpu.max": "100000 100000"}, 8),
        ("", {}, 8),
    ],
)
def test_a_quota_sets_the_number_of_cores(
    cgroup: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a core counts whole; no quota, or one that cannot be read, grants what the process is bound to."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cpu_count(**control_group(tmp_path, cgroup, files)) == cores


def test_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert cpu_count(tmp_path / "nowhere", tmp_path) == 2


def test_nobody_counts_cores_by_himself() -> None:
    """Threads are chosen by `cpu_count` of the settings alone, which knows the quota."""
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for folder in ("api", "infra", "shared", "training", "worker")
        for file in (ROOT / folder).rglob("*.py")
        for line in file.read_text().splitlines()
        if re.search(r"\b(os|multiprocessing|psutil|torch)\.\w*cpu_count\(|sched_getaffinity\(", line)
    ]
    assert len(found) == 1, found
    assert found[0].startswith("shared/settings.py")
