"""A whole run sends no packet out of its machine: counted by the kernel, so whatever library would send one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings import ROOT
from tests.outbound import outbound_calls, watched
from tests.pace import limit_s
from tests.radiographs import fracatlas_tree
from tests.systems.spaces import Space, cable, needs_namespaces, space

pytestmark = [pytest.mark.systems, needs_namespaces]
ROUTER = "192.0.2.1"


@pytest.fixture
def alone() -> Iterator[Space]:
    """A machine that has a router and a name server, neither of which answers; what it sends them is counted."""
    with space() as nobody, space(nameserver=ROUTER) as machine, cable(machine, "192.0.2.2", nobody, ROUTER):
        machine.do("ip", "route", "add", "default", "via", ROUTER)
        machine.do("iptables", "-w", "-A", "OUTPUT", "!", "-o", "lo", "-j", "DROP")
        yield machine


def sent(machine: Space) -> int:
    """Packets that it sent since this was asked last."""
    lines = machine.do("iptables", "-w", "-Z", "-L", "OUTPUT", "-n", "-v", "-x").splitlines()
    return int(next(line for line in lines if "DROP" in line.split("all")[0]).split()[0])


@pytest.mark.timeout(900)
def test_a_whole_run_sends_no_packet(alone: Space, tmp_path: Path) -> None:
    """The demo with all parts of the system, `osteon predict` and `osteon train` stay on their machine."""
    home, record = tmp_path / "home", tmp_path / "outbound"
    home.mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.startswith("OSTEON_")}
    environment = keep | watched(record) | {"HOME": str(home), "OSTEON_HOME": str(tmp_path / "osteon")}
    environment |= {"OSTEON_START_LIMIT_S": str(limit_s(120))}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*alone.prefix, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=limit_s(280),
            check=False,
        )  # fmt: skip

    run(sys.executable, "-S", "-c", "import socket; socket.getaddrinfo('elsewhere.invalid', 443)")
    assert sent(alone) > 0, "a look-up was not counted: the test could not fail"
    record.unlink(missing_ok=True)
    assert sent(alone) == 0

    data = fracatlas_tree(tmp_path / "data")
    small = ("--size", "64", "--crop", "64", "--batch", "4", "--minutes", "0.1")
    for arguments in (
        ("demo", "--once"),
        ("predict", str(ROOT / "samples/studies"), "--csv", str(tmp_path / "found.csv")),
        ("train", "--data", str(data), "--out", str(tmp_path / "run"), *small),
    ):
        done = run(sys.executable, "-m", "infra.cli", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert outbound_calls(record) == []
        assert sent(alone) == 0, arguments
    assert not (home / "intel").exists()
