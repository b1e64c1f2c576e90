"""Network namespaces: machines that a test makes of this one, with cables that it can cut. As root, with iproute2 and iptables."""

import ctypes
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("iptables")),
    reason="needs root, iproute2 and iptables",
)


def _do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Space:
    """A namespace; what runs in it sees its own addresses only."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def prefix(self) -> list[str]:
        """The words before a command that run it in here."""
        return ["ip", "netns", "exec", self.name]

    def do(self, *command: str) -> str:
        """Run a short command to its end; returns what it printed."""
        return _do(*self.prefix, *command)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and the threads and processes that it starts, see the namespace's network during the block."""
        before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        inside = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _enter(inside)
            yield
        finally:
            _enter(before)
            os.close(inside)
            os.close(before)


@contextmanager
def space(*, nameserver: str = "") -> Iterator[Space]:
    """A namespace with a loopback, and without IPv6, whose kernel would greet its neighbours unasked."""
    name = f"osteon-{os.getpid()}-{next(_numbers)}"
    _do("ip", "netns", "add", name)
    settings = Path("/etc/netns") / name  # `ip netns exec` mounts these files over those of /etc
    try:
        if nameserver:
            settings.mkdir(parents=True)
            (settings / "resolv.conf").write_text(f"nameserver {nameserver}\noptions timeout:1 attempts:1\n")
        made = Space(name)
        made.do("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
        made.do("ip", "link", "set", "lo", "up")
        yield made
    finally:
        shutil.rmtree(settings, ignore_errors=True)
        _do("ip", "netns", "delete", name)


@contextmanager
def cable(near: Space, near_address: str, far: Space, far_address: str) -> Iterator[None]:
    """A network between two namespaces; addresses are as 192.0.2.1, of one /24."""
    number = next(_numbers)
    ends = [(near, f"near{number}", near_address), (far, f"far{number}", far_address)]
    _do(
        "ip",
        "link",
        "add",
        ends[0][1],
        "netns",
        near.name,
        "type",
        "veth",
        "peer",
        "name",
        ends[1][1],
        "netns",
        far.name,
    )
    for end, device, address in ends:
        end.do("ip", "address", "add", f"{address}/24", "dev", device)
        end.do("ip", "link", "set", device, "up")
    yield  # it goes with its namespaces


@contextmanager
def cut(*spaces: Space) -> Iterator[None]:
    """No packet reaches or leaves these namespaces during the block, and nobody is told."""
    rules = ("INPUT", "-i"), ("OUTPUT", "-o")
    with ExitStack() as mended:
        for one in spaces:
            for chain, direction in rules:
                rule = (chain, "!", direction, "lo", "-j", "DROP")
                one.do("iptables", "-w", "-I", *rule)
                mended.callback(one.do, "iptables", "-w", "-D", *rule)
        yield
