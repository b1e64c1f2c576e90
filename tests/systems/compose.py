"""`make compose-test`: docker-compose.yml started for real, each container killed once, the engine restarted once.

By the lines of docs/run/install.md: .env is copied and filled in as each of its lines says, then `docker compose up -d --build
--wait`. The samples and further instances are sent meanwhile; none is lost, none is analysed twice. Before that the daily check
runs, and once more afterwards, and a study's results go to dcmtk's storescp on this host. Where images come from a
registry both object stores are tried, else SeaweedFS alone: MinIO's server comes in no package.
"""

import argparse
import contextlib
import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from infra.client.api import Client
from infra.daily_check import data_set
from infra.embedded.process import free_ports
from shared.domain.checks import CheckStep
from shared.settings import ROOT
from tests.live_stack import instance
from tests.pace import limit_s
from tests.systems.engine import EngineError, HostEngine, OwnEngine, Say, as_root, engine, indented, run

PROJECT = "osteon-compose-test"  # not `osteon`, whose volumes may be somebody's
INSTANCES = 40  # a study each, sent when a fault comes
COUNTED = "site_id NOT IN (SELECT id FROM sites WHERE checks)"  # the daily check's studies come and go
ARCHIVE = "ARCHIVE"  # a destination and its AE title
SAMPLE = ROOT / "samples/studies/01-hand"  # whose results go there
UP = ("up", "-d", "--build", "--wait", "--wait-timeout", "900")
OVERRIDES = {"minio": "docker-compose.yml", "seaweedfs": "docker-compose.yml:docker-compose.seaweedfs.yml"}
HOW = re.compile(r'(openssl rand -hex \d+|python3 -c ".*"|echo "[^"]*")')
OSTEON = [sys.executable, "-c", "from infra.cli import main; main()"]
STAND_INS = {
    "python": "PYTHON_IMAGE",
    "postgres": "POSTGRES_IMAGE",
    "valkey": "VALKEY_IMAGE",
    "seaweedfs": "SEAWEEDFS_IMAGE",
}
WHAT_IT_MAY = """
import os
from sqlalchemy import create_engine
from sqlalchemy.exc import ProgrammingError
from minio.error import S3Error
from shared.storage import open_store
database = create_engine(os.environ["OSTEON_DATABASE_URL"], hide_parameters=True)
for statement in ("DROP TABLE feedback", "CREATE TABLE mine (id int)", "TRUNCATE studies CASCADE", "DELETE FROM feedback"):
    try:
        with database.begin() as connection:
            connection.exec_driver_sql(statement)
        print("the database let:", statement)
    except ProgrammingError:
        pass
store = open_store(os.environ["OSTEON_STORE_URL"])
store.check_writable()
for name, call in {
    "another bucket": lambda: store.client.make_bucket("another"),
    "a policy": lambda: store.client.set_bucket_policy(store.bucket, "{}"),
    "the bucket's end": lambda: store.client.remove_bucket(store.bucket),
}.items():
    try:
        call()
        print("the store let:", name)
    except S3Error as wrong:
        if wrong.code not in ("AccessDenied", "MethodNotAllowed"):
            print("the store:", name, wrong.code)
"""


class CommandFailed(Exception):
    """The stack does not do what it promises; the message tells what."""


class Deployment:
    """One deployment by docker-compose.yml, as its operator sees it."""

    def __init__(self, docker: HostEngine, store: str, say: Say) -> None:
        """store: minio or seaweedfs."""
        self.engine, self.store, self.say = docker, store, say
        self.checkout = docker.folder / "checkout"
        self.values: dict[str, str] = {}

    def write_env(self, **changes: str) -> None:
        """Copy .env.example and fill the empty lines in, each as the comment above it says."""
        how, lines = "", []
        for line in (self.checkout / ".env.example").read_text().splitlines():
            if line.startswith("#"):
                if found := HOW.search(line):
                    how = found[1]
            elif "=" in line:
                name, value = line.split("=", 1)
                value = changes.get(name) or self.values.get(name) or value or run(["sh", "-c", how]).strip()
                self.values[name] = value
                lines.append(f"{name}={value}")
                continue
            lines.append(line)
        file = self.checkout / ".env"
        file.touch(mode=0o600)
        file.write_text("\n".join(lines) + "\n")

    def compose(self, *words: str, limit: float = 600) -> str:
        """Run docker compose; returns what it printed. Raises EngineError."""
        return self.engine.docker("compose", "--project-name", PROJECT, "--progress", "plain", *words, limit_s=limit)

    def up(self) -> None:
        """The installation page's second line. Raises CommandFailed with the logs of what is not well."""
        try:
            self.compose(*UP, limit=1200)
        except EngineError as error:
            raise CommandFailed(
                f"{error}\n{self.compose('ps', '--all')}\n{self.compose('logs', '--tail', '30')}"
            ) from None

    def build(self, tries: int = 3) -> None:
        """Build the images; a package index may fail once. Raises EngineError."""
        for left in reversed(range(tries)):
            try:
                self.compose("build", limit=1200)
                break
            except EngineError as error:
                if not left:
                    raise
                self.say(f"trying again, for the build failed: {str(error).strip().splitlines()[-1]}")

    def down(self) -> None:
        """End it and remove its volumes."""
        with contextlib.suppress(EngineError):
            self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")

    def services(self) -> list[str]:
        """Those that last."""
        return self.compose("ps", "--services", "--status", "running").split()

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str, wanted: str) -> str:
        """A value of a service's container, by a template of docker inspect."""
        return self.engine.docker("inspect", "--format", wanted, self.container(service)).strip()

    def is_well(self, service: str) -> bool:
        """Whether its container runs and its health check says so."""
        with contextlib.suppress(EngineError):
            return self.inspect(service, "{{.State.Status}} {{.State.Health.Status}}") == "running healthy"
        return False

    def until_well(self, services: list[str], seconds: float) -> None:
        """Wait until all of them are. Raises CommandFailed naming those that are not."""
        deadline = time.monotonic() + limit_s(seconds)
        while ill := [service for service in services if not self.is_well(service)]:
            if time.monotonic() > deadline:
                raise CommandFailed(f"not well within {limit_s(seconds):.0f} s: {', '.join(ill)}")
            time.sleep(0.5)

    def until_more(self) -> None:
        """Wait until a further study is stored. Raises CommandFailed."""
        deadline, count = time.monotonic() + limit_s(120), f"SELECT count(*) FROM studies WHERE {COUNTED}"
        before = self.ask(count)
        while self.ask(count) == before:
            if time.monotonic() > deadline:
                raise CommandFailed("no study is stored")
            time.sleep(0.2)

    def kill(self, service: str) -> None:
        """Kill its first process as the kernel does; `docker kill` would be an operator's wish that it stays down."""
        run(as_root(["kill", "-9", self.inspect(service, "{{.State.Pid}}")]))

    def ask(self, query: str) -> list[list[str]]:
        """The rows of a query, as the database's owner."""
        words = ("psql", "--username=osteon", "--dbname=osteon", "--no-align", "--tuples-only", "--field-separator=|")
        told = self.compose("exec", "-T", "postgres", *words, "--command", query)
        return [line.split("|") for line in told.splitlines() if line]

    def variables(self, role: str) -> dict[str, str]:
        """Those of a command of `osteon` that calls this deployment's API with a role's key."""
        return {
            **os.environ, "OSTEON_API_URL": f"http://127.0.0.1:{self.values['OSTEON_API_PORT']}",
            "OSTEON_KEY": self.values[f"OSTEON_KEY_{role.upper()}"], "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def osteon(self, role: str, *words: str) -> str:
        """Run a command of `osteon` on this host; returns what it printed. Raises CommandFailed."""
        done = subprocess.run(
            [*OSTEON, *words], env=self.variables(role), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=limit_s(300), check=False,
        )  # fmt: skip
        if done.returncode:
            raise CommandFailed(f"osteon {words[0]}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    @contextmanager
    def sending(self, paths: list[Path], state: Path) -> Iterator[Callable[[], None]]:
        """`osteon submit --wait` runs meanwhile, as often as it needs to; yields what waits for its end."""
        variables = self.variables("submitter") | {"XDG_STATE_HOME": str(state)}
        program = [*OSTEON, "submit", *map(str, paths), "--wait"]
        log = state / "submit.log"
        state.mkdir(exist_ok=True)

        def start() -> "subprocess.Popen[bytes]":
            with log.open("ab") as output:
                return subprocess.Popen(program, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

        process = start()

        def finish() -> None:
            nonlocal process
            deadline = time.monotonic() + limit_s(300)
            while (code := process.poll()) != 0:
                if time.monotonic() > deadline:
                    raise CommandFailed(f"osteon submit does not end:\n{log.read_text()[-3000:]}")
                if code is not None:  # the API was away for longer than it waits; what was stored is not sent again
                    process = start()
                time.sleep(1)

        try:
            yield finish
        finally:
            process.kill()
            process.wait()


def prove(docker: HostEngine, store: str, say: Say) -> None:
    """One deployment from nothing to its end. Raises CommandFailed, EngineError."""
    deployment = Deployment(docker, store, say)
    api_port, flower_port, dicom_port = free_ports(3)
    deployment.write_env(
        COMPOSE_FILE=OVERRIDES[store], COMPOSE_PROFILES="cpu", OSTEON_API_PORT=str(api_port),
        OSTEON_FLOWER_PORT=str(flower_port), OSTEON_DICOM_PORT=str(dicom_port), WORKER_CPUS="1",
    )  # fmt: skip
    deployment.down()
    try:
        say("building the images")
        deployment.build()
        say(f"starting the stack, objects in {store}")
        deployment.up()
        _least_rights(deployment)
        _daily_check(deployment, first=True)
        _results_leave(deployment)
        _faults(deployment)
        _daily_check(deployment, first=False)
        _again(deployment)
    except (CommandFailed, EngineError):
        say("the stack's state and the ends of its logs:")
        with contextlib.suppress(EngineError):
            print(indented(deployment.compose("ps", "--all")), flush=True)
            print(indented(deployment.compose("logs", "--tail", "40"))[-20000:], flush=True)
        raise
    finally:
        say("removing the stack")
        deployment.down()


def _least_rights(deployment: Deployment) -> None:
    """What runs may do no more than it must, and has as many threads as its quota."""
    deployment.say("what the application may do in the database and the store")
    if told := deployment.compose("exec", "-T", "api", "python", "-c", WHAT_IT_MAY).strip():
        raise CommandFailed(told)
    cores = deployment.compose(
        "exec", "-T", "worker-cpu", "python", "-c", "from shared.settings import cpu_count; print(cpu_count())"
    )
    if cores.strip() != "1":
        raise CommandFailed(f"a worker with a quota of one core takes {cores.strip()}")
    for service, secret in (
        ("worker-cpu", "OSTEON_IDENTITY_KEY"), ("results", "OSTEON_IDENTITY_KEY"), ("deliver", "OSTEON_BROKER_URL"),
        ("results", "OSTEON_WEBHOOK_KEY"), ("api", "OSTEON_DATABASE_OWNER_URL"), ("check", "OSTEON_STORE_URL"),
        ("check", "OSTEON_BROKER_URL"), ("check", "OSTEON_KEY_ADMIN"),
    ):  # fmt: skip
        if f"{secret}=" in deployment.compose("exec", "-T", service, "env"):
            raise CommandFailed(f"{service} knows {secret}")
    for service, leaves in {
        "worker-cpu": False,
        "results": False,
        "check": False,
        "beat": False,
        "deliver": True,
    }.items():
        routes = deployment.compose("exec", "-T", service, "cat", "/proc/net/route").splitlines()[1:]
        if any(line.split()[1] == "00000000" for line in routes) is not leaves:
            raise CommandFailed(f"{service} has {'no' if leaves else 'a'} way out of this host")
    # what makes objects is loaded with the first of them: here it must be all there
    deployment.compose("exec", "-T", "results", "python", "-c", "import worker.results.objects, worker.delivery.dicom")


def _daily_check(deployment: Deployment, *, first: bool) -> None:
    """The check's container does it when an operator asks; it ends well, the API and Postgres say so, nothing of it stays.

    first: none was made before, so that it learns what is expected; later ones must find the same.
    """
    deployment.say("the daily check, now")
    told = json.loads(deployment.osteon("operator", "check", "--json"))
    if [step["step"] for step in told["steps"]] != list(CheckStep) or told["learned"] is not first:
        raise CommandFailed(f"the daily check: {told}")
    apart = (told["probability_deviation"], told["heatmap_deviation"])
    if not first and apart != (0, 0):
        raise CommandFailed(f"the daily check finds otherwise than before: {apart}")
    with Client(deployment.variables("admin")["OSTEON_API_URL"], deployment.values["OSTEON_KEY_ADMIN"]) as client:
        seen = client.get("/api/v1/operations")["check"]
    states = deployment.ask("SELECT state, reason, step FROM checks ORDER BY asked_at DESC LIMIT 1")
    if (seen["id"], seen["state"], states) != (told["id"], "well", [["well", "", "deleted"]]):
        raise CommandFailed(f"the daily check ended well, but operations say {seen}, and Postgres {states}")
    if left := deployment.ask(f"SELECT id FROM studies WHERE NOT {COUNTED}"):
        raise CommandFailed(f"the daily check leaves studies: {left}")
    seconds = sum(step["seconds"] for step in told["steps"])
    deployment.say(f"it ended well within {seconds:.1f} s on {told['engine']}, differences {apart}")


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """dcmtk's C-STORE receiver on this host, which writes each object into the folder; yields its port."""
    if shutil.which("storescp") is None:
        raise CommandFailed("storescp is not on PATH: install dcmtk")
    (port,) = free_ports(1)
    program = [
        "storescp",
        "--aetitle",
        ARCHIVE,
        "--output-directory",
        str(folder),
        "+xa",
        "--unique-filenames",
        str(port),
    ]
    with (folder.parent / "storescp.log").open("ab") as log:
        server = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield port
    finally:
        server.kill()
        server.wait()


def _results_leave(deployment: Deployment) -> None:
    """What is made of a study goes by C-STORE out of the container of `deliver` to this host, each object once and whole."""
    folder = deployment.engine.folder / "archive"
    folder.mkdir()
    network = f"{PROJECT}_outside"
    here = deployment.engine.docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", network)
    with storescp(folder) as port:
        deployment.say(f"results go out of a container to storescp at {here.strip()}")
        deployment.osteon("admin", "destinations", "add", ARCHIVE, f"{ARCHIVE}@{here.strip()}:{port}")
        deployment.osteon("admin", "destinations", "test", ARCHIVE)
        began = time.monotonic()
        with deployment.sending([SAMPLE], Path(tempfile.mkdtemp(dir=deployment.engine.folder))) as finish:
            finish()
        made = _until_sent(deployment)
        seconds = time.monotonic() - began
        deployment.osteon("admin", "destinations", "disable", ARCHIVE)
    arrived = [dcmread(path) for path in sorted(folder.iterdir())]
    uids = [str(one.SOPInstanceUID) for one in arrived]
    if sorted(uids) != sorted(made) or not {SecondaryCaptureImageStorage, Comprehensive3DSRStorage} <= {
        one.SOPClassUID for one in arrived
    }:
        raise CommandFailed(f"sent were {made}, arrived {uids}")
    _are_whole(deployment, folder)
    deployment.say(f"{len(made)} objects arrived, each once and whole, {seconds:.1f} s after their study was sent")


def _until_sent(deployment: Deployment) -> list[str]:
    """Wait until all that is made of the only study was sent; returns the SOP Instance UIDs. Raises CommandFailed."""
    deadline = time.monotonic() + limit_s(180)
    ours = f"FROM deliveries AS d JOIN destinations ON destinations.id = destination_id WHERE name = '{ARCHIVE}'"
    while deployment.ask(f"SELECT d.state {ours}") != [["sent"]]:
        if time.monotonic() > deadline:
            raise CommandFailed(f"not sent: {deployment.ask(f'SELECT d.state, d.reason, d.status {ours}')}")
        time.sleep(0.5)
    objects = f"SELECT o.sop_instance_uid FROM result_objects AS o JOIN delivery_objects ON object_id = o.id WHERE delivery_id IN (SELECT d.id {ours})"
    return [uid for (uid,) in deployment.ask(objects)]


def _are_whole(deployment: Deployment, folder: Path) -> None:
    """Each file's data set is, byte for byte, that of the object which DICOMweb gives. Raises CommandFailed."""
    accepts = {"Accept": "application/dicom; transfer-syntax=*"}
    key = {"Authorization": f"Bearer {deployment.values['OSTEON_KEY_RADIOLOGIST']}"}
    url = f"{deployment.variables('radiologist')['OSTEON_API_URL']}/dicom-web"
    with httpx.Client(headers=key | accepts, trust_env=False, timeout=limit_s(30)) as client:
        for path in folder.iterdir():
            one = dcmread(path, stop_before_pixels=True)
            place = (
                f"{url}/studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
            )
            stored = client.get(place).raise_for_status().content
            if data_set(stored) != data_set(path.read_bytes()):
                raise CommandFailed(f"{one.SOPInstanceUID} arrived otherwise than it was made")


def _faults(deployment: Deployment) -> None:
    """While studies arrive each container is killed once and the engine is restarted; each is analysed, and once."""
    say, folder = deployment.say, deployment.engine.folder
    with (ROOT / "samples/expected.csv").open() as file:
        samples = {row["study_instance_uid"] for row in csv.DictReader(file) if row["file"].startswith("studies/")}
    services = deployment.services()
    faults: dict[str, Callable[[], None]] = {
        f"killed {service}": functools.partial(deployment.kill, service) for service in services
    }
    faults["restarted the engine"] = deployment.engine.restart
    expected = 0
    for name, fault in faults.items():
        instances = folder / f"instances-{len(list(folder.glob('instances-*')))}"
        instances.mkdir()
        for number in range(INSTANCES):
            (instances / f"{number}.dcm").write_bytes(instance(instances.name, number))
        paths = [instances] if expected else [ROOT / "samples/studies", instances]
        expected += INSTANCES + (0 if expected else len(samples))
        with deployment.sending(paths, Path(tempfile.mkdtemp(dir=folder))) as finish:
            deployment.until_more()
            began = time.monotonic()
            fault()
            deployment.until_well(services, 240)
            well = time.monotonic() - began
            finish()
        say(
            f"{name} while studies arrived: well again after {well:.1f} s, all analysed after {time.monotonic() - began:.1f} s"
        )
    _all_once(deployment, expected)


def _all_once(deployment: Deployment, expected: int) -> None:
    """As many studies as were sent, all analysed, with one finding for each frame, and their bytes in the store."""
    studies = f"studies WHERE {COUNTED}"
    (total, analysed) = map(
        int, deployment.ask(f"SELECT count(*), count(*) FILTER (WHERE status = 'analysed') FROM {studies}")[0]
    )
    # without what is kept and not analysed: objects that were made of results are instances, too
    ours = f"instances AS i WHERE kept = '' AND study_id IN (SELECT id FROM {studies})"
    of_ours = f"SELECT count(*), count(DISTINCT (instance_id, frame, bundle)) FROM findings WHERE instance_id IN (SELECT i.id FROM {ours})"
    findings, different = map(int, deployment.ask(of_ours)[0])
    without = f"SELECT count(*) FROM {ours} AND NOT EXISTS (SELECT FROM findings AS f WHERE f.instance_id = i.id)"
    bare = int(deployment.ask(without)[0][0])
    deployment.say(
        f"{expected} studies sent, {total} stored, {analysed} analysed: {expected - analysed} lost, {total - expected} doubled; "
        f"{findings} findings, {findings - different} of them double; {bare} images without any"
    )
    if (total, analysed, findings, bare) != (expected, expected, different, 0):
        raise CommandFailed("a study was lost or doubled")


def _again(deployment: Deployment) -> None:
    """The same lines again change nothing; a part that cannot start makes them fail, and the rest stays up."""
    deployment.say("the same line again: nothing is to do")
    deployment.up()
    deployment.say("a worker that cannot start: the line must fail")
    deployment.write_env(OSTEON_BATCH_SIZE="nonsense")
    try:
        deployment.compose(*UP, limit=1200)
    except EngineError as told:
        if f"{PROJECT}-worker-cpu-1" not in str(told).splitlines()[-1]:
            raise
    else:
        raise CommandFailed("`docker compose up -d --build --wait` reports success over a crash loop")
    deployment.until_well(["api"], 120)


def stores_of(docker: HostEngine, chosen: str | None) -> list[str]:
    """The object stores to try; without registries the images that .env.example names are made, but for MinIO's.

    Raises EngineError where MinIO alone was asked for.
    """
    if not isinstance(docker, OwnEngine):
        return [chosen] if chosen else sorted(OVERRIDES)
    if chosen == "minio":
        raise EngineError("MinIO's server comes in no package; a host with Docker and a way to registries can try it.")
    example = (ROOT / ".env.example").read_text()
    docker.make_images(
        {folder: re.findall(rf"^{name}=(\S+)$", example, re.MULTILINE)[0] for folder, name in STAND_INS.items()}
    )
    return ["seaweedfs"]


def main() -> int:
    """Prove it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--store",
        choices=sorted(OVERRIDES),
        help="only with this object store; without registries there is SeaweedFS only",
    )
    chosen = parser.parse_args().store
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="osteon-compose-", ignore_cleanup_errors=True) as folder:
        try:
            with engine(Path(folder), say) as docker:
                for store in stores_of(docker, chosen):
                    prove(docker, store, say)
        except (CommandFailed, EngineError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
    say("all of it holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
