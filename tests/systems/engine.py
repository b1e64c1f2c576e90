"""A Docker engine to try containers with: the host's own, or one made of Debian's packages where there is none.

The own engine needs no image registry. debootstrap makes a Debian, apt installs docker.io, Compose and buildx in it, and
dockerd runs there in a mount namespace of its own. The images that the files name as bases are made of the same
Debian and of packages, under the very names that the files have (tests/systems/images).
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.settings import ROOT

SUITE = "forky"  # the first Debian with an engine of 28, Compose 2.40 and PostgreSQL 18
SCRIPT = "sid"  # of debootstrap, which knows older suites by name only; all newer ones are made alike
ENGINE = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "iptables", "iproute2")
IMAGES = Path(__file__).with_name("images")
# bytes of disk: while it ran 9.9 GiB were taken at most, other work included, and its folder had 8.4 (df
# and du each 5 s, 2026-11-30); a tenth more
NEEDED = 11 * 2**30
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")  # the host's: its network may have an authority of its own
# In the mount namespace: the engine's Debian becomes the root, with the host's devices and control groups, and with
# what both sides see (its data, its socket, the copy of the checkout) under the same paths.
ENTER = """
root=$1 shared=$2
mount --bind "$root" "$root"
cd "$root"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs tmpfs run
mkdir -p ".$shared" var/lib/docker
mount --bind "$shared" ".$shared"
mount --bind "$shared/docker" var/lib/docker
mkdir -p .host
pivot_root . .host
cd /
umount -l /.host
exec dockerd --host "unix://$shared/docker.sock" --pidfile "$shared/dockerd.pid" --mtu "$3"
"""

Say = Callable[[str], None]


class EngineError(Exception):
    """No engine can be had; the message tells why and what would help."""


def run(words: Sequence[str | Path], limit_s: float = 600, **more: str) -> str:
    """Run a program of this machine to its end; returns what it printed. Raises EngineError with the end of it."""
    try:
        done = subprocess.run(
            list(map(str, words)), env=os.environ | more, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=limit_s, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{words[0]}: {error}") from None
    if done.returncode:
        raise EngineError(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def as_root(words: Sequence[str]) -> list[str]:
    """A command of root's, by sudo for others."""
    return [*words] if os.geteuid() == 0 else ["sudo", "-n", *words]


class HostEngine:
    """The engine that runs on this host, with Compose and buildx; images come from their registries."""

    has_registries = True
    folder: Path

    def __init__(self, folder: Path) -> None:
        """folder: for what the proof writes."""
        self.folder = folder

    @staticmethod
    def is_there() -> bool:
        """Whether one answers that is new enough for docker-compose.yml."""
        try:
            version = run(["docker", "version", "--format", "{{.Server.Version}}"], 30)
            compose = run(["docker", "compose", "version", "--short"], 30)
        except EngineError:
            return False
        numbers = [tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (version, compose)]
        return numbers[0] >= (25, 0) and numbers[1] >= (2, 24)

    def docker(self, *words: str, limit_s: float = 600) -> str:
        """Run docker in `folder`/checkout; returns what it printed. Raises EngineError."""
        return run(["env", "-C", str(self.folder / "checkout"), "docker", *words], limit_s)

    def restart(self) -> None:
        """Restart the engine, as an upgrade of it does."""
        run(as_root(["systemctl", "restart", "docker"]), 180)


class OwnEngine(HostEngine):
    """An engine in a Debian of its own."""

    has_registries = False

    def __init__(self, folder: Path, debian: Path, say: Say) -> None:
        """folder: new, for data, socket and checkout; debian: kept from one run to the next."""
        super().__init__(folder)
        self.debian, self.say = debian, say
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> Path:
        """The smallest Debian, packed: what images are made of."""
        return self.debian / "base.tar"

    @property
    def root(self) -> Path:
        """The same with the engine's packages."""
        return self.debian / "root"

    def prepare(self) -> None:
        """Make the Debian once. Raises EngineError where this host cannot."""
        if os.geteuid() != 0:
            raise EngineError(
                "Without a Docker engine on the host one is made, which only root can: sudo make compose-test"
            )
        if shutil.disk_usage(self.folder).free < NEEDED:
            raise EngineError(f"{self.folder} has less than {NEEDED >> 30} GiB left. TMPDIR chooses another disk.")
        if (self.debian / "complete").exists():
            return
        if shutil.which("debootstrap") is None:
            self.say("installing debootstrap")
            run(["apt-get", "update", "-qq"])
            run(
                ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "debootstrap"],
                DEBIAN_FRONTEND="noninteractive",
            )
        shutil.rmtree(self.debian, ignore_errors=True)
        self.debian.mkdir(parents=True)
        sites = run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Label: Debian"]).split()
        if not sites:
            raise EngineError("This host's apt knows no mirror of Debian; the engine is made of Debian's packages.")
        self.say(f"making a Debian ({SUITE})")
        include = "--include=ca-certificates"
        run(
            [
                "debootstrap",
                "--variant=minbase",
                include,
                SUITE,
                self.root,
                sites[0],
                f"/usr/share/debootstrap/scripts/{SCRIPT}",
            ],
            1200,
        )
        (self.root / "etc/apt/apt.conf.d/99tests").write_text(
            'Acquire::Check-Valid-Until "false";\nAcquire::Retries "3";\nDPkg::Path-Exclude "/usr/share/doc/*";\n'
        )
        if CERTIFICATES.exists():
            shutil.copyfile(CERTIFICATES, self.root / CERTIFICATES.relative_to("/"))
        run(
            [
                "tar",
                "--directory",
                self.root,
                "--exclude=./dev",
                "--exclude=./var/cache/apt/archives",
                "--create",
                "--file",
                self.base,
                ".",
            ]
        )
        self.say("installing the engine in it")
        shutil.copyfile("/etc/resolv.conf", self.root / "etc/resolv.conf")
        self._inside("apt-get", "update", "-qq")
        self._inside("apt-get", "install", "-y", "-qq", "--no-install-recommends", *ENGINE)
        self._inside("apt-get", "clean")
        (self.debian / "complete").touch()

    def _inside(self, *words: str) -> str:
        return run(["chroot", self.root, "env", "DEBIAN_FRONTEND=noninteractive", *words], 900)

    def start(self) -> None:
        """Start dockerd and wait until it answers. Raises EngineError with the end of its log."""
        (self.folder / "docker").mkdir(exist_ok=True)
        with (self.folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private", "sh", "-euc", ENTER, "sh", str(self.root), str(self.folder), _mtu()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            try:
                self.docker("version", limit_s=20)
                return
            except EngineError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self.folder / "dockerd.log").read_text(errors="replace")[-3000:]
                    raise EngineError(f"dockerd does not start here:\n{said}") from None
            time.sleep(0.5)

    def end(self) -> None:
        """End dockerd, and with it its containers."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(120)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def restart(self) -> None:
        """See HostEngine."""
        self.end()
        self.start()

    def docker(self, *words: str, limit_s: float = 600) -> str:
        """See HostEngine."""
        if self._process is None:
            raise EngineError("the engine was not started")
        into = ["nsenter", "--mount", f"--target={self._process.pid}", "env", "-C", str(self.folder / "checkout")]
        return run([*into, f"DOCKER_HOST=unix://{self.folder}/docker.sock", "HOME=/root", "docker", *words], limit_s)

    def make_images(self, names: dict[str, str]) -> None:
        """Make the images that stand in for a registry's; names: folder of tests/systems/images to the name wanted."""
        self.say("making images: " + ", ".join(names.values()))
        (self.folder / "debian").mkdir(exist_ok=True)
        shutil.copyfile(self.base, self.folder / "debian/base.tar")
        (self.folder / "debian/Dockerfile").write_text(
            f"FROM scratch\nADD base.tar /\nENV SSL_CERT_FILE={CERTIFICATES} PIP_DEFAULT_TIMEOUT=120 UV_HTTP_TIMEOUT=120\nRUN apt-get update -qq\n"
        )
        self.docker("build", "--quiet", "--tag", "osteon-test-debian", str(self.folder / "debian"))
        (self.folder / "debian/base.tar").unlink()
        for folder, name in names.items():
            arguments = [
                "--build-arg",
                "DEBIAN=osteon-test-debian",
                "--build-arg",
                f"VERSION={name.rpartition(':')[2]}",
            ]
            self.docker("build", "--quiet", *arguments, "--tag", name, f"tests/systems/images/{folder}", limit_s=900)


def _mtu() -> str:
    """Of the way out: containers that send larger packets than it takes lose them where nobody tells them so."""
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    device = next((words[0] for words in routes if words[1] == "00000000"), None)
    return Path(f"/sys/class/net/{device}/mtu").read_text().strip() if device else "1500"


@contextmanager
def _network_as_it_was(root: Path) -> Iterator[None]:
    """dockerd makes rules, a bridge and lets packets pass through; all of that ends with the block."""
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    before = forward.read_text()
    rules = {tool: _rules(run(["chroot", root, f"{tool}-save"])) for tool in ("iptables", "ip6tables")}
    try:
        yield
    finally:
        for tool, text in rules.items():
            subprocess.run(
                ["chroot", str(root), f"{tool}-restore"], input=text, text=True, capture_output=True, check=False
            )
        with contextlib.suppress(EngineError):
            run(["chroot", root, "ip", "link", "delete", "docker0"])
        forward.write_text(before)


def _rules(saved: str) -> str:
    """What iptables-restore needs to make all as it was: a table that did not exist yet is to be empty."""
    empty = {"filter": ":INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n", "nat": "", "mangle": "", "raw": ""}
    return saved + "".join(
        f"*{table}\n{chains}COMMIT\n" for table, chains in empty.items() if f"*{table}\n" not in saved
    )


@contextmanager
def engine(folder: Path, say: Say) -> Iterator[HostEngine]:
    """An engine with a copy of the checkout at folder/checkout; its data go with the block. Raises EngineError."""
    kept = (".*", "__pycache__", "*.egg-info", "runs", "build", "dist", "htmlcov", "node_modules")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*kept))
    for name in (".env.example", ".dockerignore"):
        shutil.copy(ROOT / name, folder / "checkout" / name)
    if HostEngine.is_there():
        say("using the Docker engine of this host")
        yield HostEngine(folder)
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    own = OwnEngine(folder, cache / "osteon-tests" / f"debian-{SUITE}", say)
    own.prepare()
    with _network_as_it_was(own.root):
        try:
            own.start()
            told = json.loads(own.docker("version", "--format", "json"))["Server"]["Version"]
            say(f"dockerd {told} runs, Compose {own.docker('compose', 'version', '--short').strip()}")
            yield own
        finally:
            own.end()
            shutil.rmtree(folder / "docker", ignore_errors=True)


def indented(text: str) -> str:
    """A program's output under a line of ours."""
    return textwrap.indent(text.strip(), "    ")
