"""What docker-compose.yml and the Dockerfiles say, checked by reading; tests/systems/test_compose.py starts them."""

import ast
import fnmatch
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from cryptography.fernet import Fernet
from packaging.requirements import Requirement
from sqlalchemy import make_url

from api.listener import tls
from infra.daily_check import REFERENCE
from infra.embedded.parts import FLOWER_TASKS, RESULTS_STOP_S, osteon_parts, osteon_steps
from infra.embedded.state import Secrets
from shared import __version__
from shared.domain.notices import KEY_LENGTH
from shared.domain.security import Role
from shared.settings import RENAMED, ROOT, Settings
from shared.storage import S3Store, open_store
from tests.certificates import Certificates


class Loader(yaml.SafeLoader):
    """Knows Compose's words for what replaces a value of the file before, and takes the value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As Compose does, refuse a key that stands there twice; YAML's loader takes the last one."""
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"{twice} twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def _value(loader: Loader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


for word in ("!override", "!reset"):
    Loader.add_constructor(word, _value)


def load(name: str) -> dict[str, Any]:
    """A Compose file; its profiles are not chosen and its variables not filled in."""
    loaded: dict[str, Any] = yaml.load((ROOT / name).read_text(), Loader)
    return loaded


COMPOSE, SEAWEEDFS = load("docker-compose.yml"), load("docker-compose.seaweedfs.yml")
DICOM_TLS = load("docker-compose.dicom-tls.yml")
SERVICES = COMPOSE["services"]
ONE_SHOT = {"bucket", "migrate"}
LASTING = sorted(set(SERVICES) - ONE_SHOT)
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("osteon-"))
DOCKERFILES = sorted({service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service})
BUILT = {service["image"]: service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service}
FILLED_BY_HAND = "./delivery"  # logins and certificates: Docker makes it, and neither git nor an image takes it
COMPOSES_OWN = {"COMPOSE_PROFILES", "COMPOSE_FILE"}  # read by Compose itself, not named in the file
LINES = """cp .env.example .env && chmod 600 .env
docker compose up -d --build --wait --wait-timeout 900"""
# ${NAME}, ${NAME:-default}, ${NAME:?cure}; $$ is Compose's way to write a dollar sign
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?:(:?[-?])([^}]*))?\}")
# ${NEW:-${OLD:-default}}: a setting's name of before 0.2.0 works too
FORMER = re.compile(r"\$\{(" + "|".join(RENAMED) + r"):-([^{}]*)\}")
SETTINGS = {f"OSTEON_{name.upper()}" for name in Settings.model_fields}
KEYS = {f"OSTEON_KEY_{role.upper()}" for role in Role}  # infra.prepare's


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield FORMER.sub(r"\2", value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def used() -> dict[str, set[tuple[str, str]]]:
    """Every variable of the file with the operators and texts behind it."""
    found: dict[str, set[tuple[str, str]]] = {}
    for text in itertools.chain(*map(strings, (COMPOSE, SEAWEEDFS, DICOM_TLS))):
        for name, operator, rest in VARIABLE.findall(text):
            found.setdefault(name, set()).add((operator, rest))
    return found


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled(text: str) -> str:
    """A value as Compose would fill it in, with secrets that look as .env.example tells to make them."""
    return VARIABLE.sub(lambda m: m[3] if m[2] == ":-" else "a1b2c3d4e5f60718", text).replace("$$", "$")


def commands() -> Iterator[tuple[str, list[str]]]:
    """(service, words) of every command and health check that runs in an image of ours."""
    for name in OURS:
        service = SERVICES[name]
        for command in (service["command"], service.get("healthcheck", {}).get("test", [])[1:]):
            if command[:2] == ["sh", "-euc"]:
                for line in command[-1].splitlines():
                    yield name, shlex.split(line.removeprefix("exec "))
            elif command:
                yield name, command


def copies(dockerfile: str) -> list[str]:
    """What COPY lines, and mounts of RUN lines, take from the build context."""
    lines = re.sub(r"\\\n", " ", (ROOT / dockerfile).read_text()).splitlines()
    words = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    mounted = [found for line in lines for found in re.findall(r"--mount=type=bind,source=([^,]+),", line)]
    assert words, f"{dockerfile} copies nothing"
    return [*mounted, *(source for line in words for source in line[:-1])]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out; the last rule that fits wins, and a folder's rule holds for what is in it."""
    out = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = Path(path).parts
        ways = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if "**/" in rule:
            ways += list(parts)
        if any(fnmatch.fnmatch(way, pattern) and way.count("/") == pattern.count("/") for way in ways):
            out = not rule.startswith("!")
    return out


def test_variables_are_in_the_example() -> None:
    """Whoever copies .env.example and fills it in has every variable that Compose asks for, and no other."""
    assert set(used()) | COMPOSES_OWN == set(example())


def test_no_secret_is_shipped() -> None:
    """A variable without a default is empty in the example or no secret, so nobody runs with a password of ours."""
    for name, ways in used().items():
        if any(operator == ":?" for operator, _ in ways) and name != "MINIO_ROOT_USER":
            assert name.endswith(("PASSWORD", "SECRET", "TOKEN", "AUTH", "_KEY")) or "_KEY_" in name, name
            assert example()[name] == "", name


def test_missing_variables_stop_compose() -> None:
    """A variable that is missing stops Compose with a cure, or has the one default that the example shows."""
    for name, ways in used().items():
        for operator, rest in ways:
            assert operator in (":?", ":-"), f"{name} may be empty without a word"
            assert rest, f"{name} has no text behind {operator}"
            if operator == ":-":
                assert example()[name] == rest, name
        assert len({operator for operator, _ in ways}) == 1, name


def test_defaults_are_the_settings_own() -> None:
    """A default in Compose is the default of the same setting, so that both ways of running Osteon behave alike."""
    for name, ways in used().items():
        for operator, rest in ways:
            if operator == ":-" and name.startswith("OSTEON_"):
                told: dict[str, Any] = {name.removeprefix("OSTEON_").lower(): rest}
                assert getattr(Settings(**told), name[7:].lower()) == (
                    Settings.model_fields[name[7:].lower()].default
                ), name


def test_old_names_of_settings_are_passed_on() -> None:
    """Where Compose passes a setting on, it takes the value from its old name too, so an old .env goes on working."""
    raw = (ROOT / "docker-compose.yml").read_text()
    for old, new in RENAMED.items():
        assert (f"${{{new}:-${{{old}:-" in raw) == (new in used()), new


def test_osteon_variables_exist() -> None:
    """Every OSTEON_ variable is a field of Settings or a key of infra.prepare: a misspelt one would be ignored in silence."""
    services = [*SERVICES.values(), *DICOM_TLS["services"].values()]
    names = {name for service in services for name in service.get("environment", {})} | set(used())
    osteon = {name for name in names if name.startswith("OSTEON_")}
    assert osteon
    assert osteon <= SETTINGS | KEYS
    assert set(SERVICES["migrate"]["environment"]) >= KEYS


OWN_CODE = {  # what a process runs of its own, and which parts of that another one runs
    "api": ("api", ["api/listener"]),
    "check": ("infra/daily_check.py", []),
    "deliver": ("worker/delivery", []),
    "dicom": ("api/listener", []),
    "results": ("worker/results", []),
    "worker-cpu": ("worker", ["worker/delivery", "worker/results"]),
}
NOT_NEEDED = {"check": {"OSTEON_API_HOST"}}  # where OSTEON_CHECK_API_URL is set


def settings_read(service: str) -> dict[str, str]:
    """The variables of the settings that a service's own code reads, each with a place where it does."""
    place, others = OWN_CODE[service]
    read = {}
    for file in [ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"):
        if any(file.is_relative_to(ROOT / other) for other in others):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in Settings.model_fields
                and re.search(r"(settings|config)(\(\))?$", ast.unparse(node.value))
            ):
                read[f"OSTEON_{node.attr.upper()}"] = f"{file.relative_to(ROOT)}:{node.lineno}"
    return read


@pytest.mark.parametrize("name", sorted(OWN_CODE))
def test_a_setting_reaches_whoever_reads_it(name: str) -> None:
    """What Compose sets for one service it sets for every other one whose code reads it; the default would hold there."""
    told = {variable for service in OURS for variable in SERVICES[service]["environment"]}
    read = settings_read(name)
    assert read.keys() & told
    missing = (read.keys() & told) - SERVICES[name]["environment"].keys() - NOT_NEEDED.get(name, set())
    assert {variable: read[variable] for variable in missing} == {}


def test_services_agree_on_a_setting() -> None:
    """A setting that several services are told has one value."""
    values: dict[str, set[str]] = {}
    for name in OURS:
        for variable, value in SERVICES[name]["environment"].items():
            values.setdefault(variable, set()).add(value)
    assert {variable for variable, found in values.items() if len(found) > 1} == set()


def test_urls_are_understood() -> None:
    """The URLs that Compose puts together are ones that the code opens, and they name services of the file."""
    environment = {name: filled(value) for name, value in SERVICES["api"]["environment"].items()}
    store = open_store(environment["OSTEON_STORE_URL"])
    assert isinstance(store, S3Store)
    assert store.bucket == "osteon"
    hosts = {
        re.findall(r"@([a-z-]+):\d+/", environment[f"OSTEON_{part}_URL"])[0] for part in ("DATABASE", "BROKER", "STORE")
    }
    assert hosts == {"postgres", "valkey", "store"}
    assert hosts <= set(SERVICES)


def test_only_migrations_know_the_owner() -> None:
    """The tables' owner and the store's root are passwords of what prepares, and of the servers themselves."""
    for secret, knows in {
        "POSTGRES_PASSWORD": {"postgres", "migrate"},
        "MINIO_ROOT_PASSWORD": {"store", "bucket"},
        "MINIO_ROOT_USER": {"store", "bucket"},
    }.items():
        assert {name for name, service in SERVICES.items() if f"${{{secret}" in str(service)} == knows, secret
    owner = make_url(filled(SERVICES["migrate"]["environment"]["OSTEON_DATABASE_OWNER_URL"]))
    application = make_url(filled(SERVICES["migrate"]["environment"]["OSTEON_DATABASE_URL"]))
    assert (owner.username, application.username) == (
        SERVICES["postgres"]["environment"]["POSTGRES_USER"],
        "osteon_app",
    )
    assert owner.set(username="", password="") == application.set(username="", password="")


def test_example_says_how_to_make_an_identity_key() -> None:
    """The command of .env.example makes a key that the vault accepts."""
    text = (ROOT / ".env.example").read_text()
    program = re.findall(r'# python3 -c "(.+)"\nOSTEON_IDENTITY_KEY=', text)[0]
    printed: list[str] = []
    exec(program, {"print": printed.append})
    Fernet(printed[0])


def test_nobody_else_knows_the_identity_key() -> None:
    """Worker, beat and Flower get neither the key of the identities nor the secret of the page."""
    knows = {
        secret: {name for name in OURS if secret in SERVICES[name]["environment"]}
        for secret in ("OSTEON_IDENTITY_KEY", "OSTEON_SESSION_SECRET")
    }
    assert knows == {"OSTEON_IDENTITY_KEY": {"api", "dicom", "migrate"}, "OSTEON_SESSION_SECRET": {"api"}}


@pytest.mark.parametrize(("password", "starts"), [("unset", False), ("a1b2c3", True)])
def test_grafana_never_starts_with_a_password_that_all_know(password: str, starts: bool, tmp_path: Path) -> None:
    """Without a password of its own it says the cure and ends; the rest of Osteon does not need one."""
    script = SERVICES["grafana"]["command"][0].replace("$$", "$").replace("exec /run.sh", f"touch {tmp_path}/started")
    environment = {**os.environ, "GF_SECURITY_ADMIN_PASSWORD": password}
    ended = subprocess.run(["sh", "-euc", script], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode == 0) is starts is (tmp_path / "started").exists()
    assert ("GRAFANA_PASSWORD" in ended.stderr) is not starts


def test_each_image_is_built_by_one_service() -> None:
    """Services that build one tag at a time overwrite each other's; the others of a tag use what is there, and never pull."""
    assert sorted(BUILT) == sorted({SERVICES[name]["image"] for name in OURS})
    assert len(BUILT) == len([name for name in OURS if "build" in SERVICES[name]])
    for name in OURS:
        if "build" in SERVICES[name]:
            build = SERVICES[name]["build"]
            assert (ROOT / build["context"] / build["dockerfile"]).is_file()
        else:
            assert SERVICES[name]["pull_policy"] == "never", name


def test_who_builds_is_never_switched_off() -> None:
    """A service that uses an image has its builder in every profile that it is in itself."""
    for name in OURS:
        (builder,) = [
            one for one in OURS if "build" in SERVICES[one] and SERVICES[one]["image"] == SERVICES[name]["image"]
        ]
        assert SERVICES[builder].get("profiles") in (None, SERVICES[name].get("profiles")), name


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_mounts_exist(name: str) -> None:
    """A volume is declared, or it is a file or folder that exists, or one that somebody may fill and Docker makes."""
    for mount in SERVICES[name].get("volumes", []):
        source = filled_default(mount).split(":")[0]
        if source.startswith((".", "/")):
            assert (ROOT / source).exists() or source == FILLED_BY_HAND, mount
        else:
            assert source in COMPOSE["volumes"], mount


def test_volumes_and_networks_are_used() -> None:
    """Nothing is declared that no service uses, and no service uses a network that is not declared."""
    for compose in (COMPOSE, SEAWEEDFS):
        services = compose["services"].values()
        mounted = {filled_default(mount).split(":")[0] for service in services for mount in service.get("volumes", [])}
        assert {source for source in mounted if not source.startswith(".")} == set(compose["volumes"])
    assert {network for service in SERVICES.values() for network in service["networks"]} == set(COMPOSE["networks"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_dependencies_exist(name: str) -> None:
    """A service waits for services that exist; for a lasting one until it is healthy, for a one-shot until it is done."""
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES, f"{name} waits for {other}"
        assert how["condition"] == ("service_completed_successfully" if other in ONE_SHOT else "service_healthy")
        assert not set(SERVICES[other].get("profiles", [])), f"{other} may be switched off"


@pytest.mark.parametrize("name", LASTING)
def test_lasting_services_heal(name: str) -> None:
    """Every service that lasts is started again when it dies, and says whether it is well."""
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    test = service["healthcheck"]["test"]
    assert test[0] in ("CMD", "CMD-SHELL")
    assert len(test) > 1


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_are_confined(name: str) -> None:
    """Every container has a read-only root, no capability it need not have, no way to more, and bounded logs."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])
    assert not service.get("privileged")
    assert service["pids_limit"] > 0
    assert re.fullmatch(r"(\d+)[mg]", filled_default(service["mem_limit"]))


def filled_default(text: str) -> str:
    """A value with the defaults of its variables."""
    return VARIABLE.sub(lambda found: found[3], text)


def test_every_one_shot_is_waited_for() -> None:
    """`docker compose up --wait` calls a container that ends with 0 a failure, but for those that another one waits for."""
    waited = {
        other
        for service in SERVICES.values()
        for other, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    assert waited == ONE_SHOT == {name for name, service in SERVICES.items() if service["restart"] == "no"}


@pytest.mark.parametrize("name", OURS)
def test_health_checks_are_cheap(name: str) -> None:
    """A Python that starts every few seconds in each container costs a core's tenth; a shell asks a port or a file's age."""
    test = SERVICES[name].get("healthcheck", {}).get("test", ["CMD", "sh"])
    assert test[1] in ("sh", "bash")
    assert "python" not in str(test)
    if "/tmp/alive" in str(test):
        assert SERVICES[name]["environment"]["OSTEON_ALIVE_FILE"] == "/tmp/alive"


@pytest.mark.parametrize(("age_s", "well"), [(0, True), (50, True), (90, False), (None, False)])
@pytest.mark.parametrize("name", ["worker-cpu", "results", "deliver", "check", "beat", "dicom"])
def test_health_by_a_files_age(name: str, age_s: float | None, well: bool, tmp_path: Path) -> None:
    """A loop that went round within the minute is well; one that stands still, or never began, is not."""
    alive = tmp_path / "alive"
    if age_s is not None:
        alive.touch()
        os.utime(alive, (time.time() - age_s,) * 2)
    with socket.create_server(("127.0.0.1", 0)) as broker:
        command = [filled(word).replace("/tmp/alive", str(alive)) for word in SERVICES[name]["healthcheck"]["test"][1:]]
        there = f"127.0.0.1/{broker.getsockname()[1]}"
        command[-1] = command[-1].replace("valkey/6379", there).replace("127.0.0.1/11112", there)
        assert (subprocess.run(command, capture_output=True, check=False).returncode == 0) is well


@pytest.mark.parametrize(("response", "well"), [("200 OK", True), ("503 Service Unavailable", False), ("", False)])
@pytest.mark.parametrize("name", ["api", "flower"])
def test_health_by_a_response(name: str, response: str, well: bool) -> None:
    """Only 200 is well: neither 503, nor a server that takes the connection and closes it, nor none at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                head = b""
                while not head.endswith(b"\r\n\r\n"):  # bash writes it line by line
                    head += connection.recv(4096)
                connection.sendall(f"HTTP/1.0 {response}\r\n\r\n".encode() if response else b"")

        command = [filled(word) for word in SERVICES[name]["healthcheck"]["test"][1:]]
        (own,) = {found for word in command for found in re.findall(r"127\.0\.0\.1/(\d+)", word)}
        command[-1] = command[-1].replace(f"127.0.0.1/{own}", f"127.0.0.1/{port}")
        thread = threading.Thread(target=serve)
        thread.start()
        assert (subprocess.run(command, capture_output=True, check=False).returncode == 0) is well
        thread.join()
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


SECRETS_OF = {
    "postgres": {"POSTGRES_PASSWORD"},
    "valkey": {"VALKEY_PASSWORD"},
    "store": {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"},
    "bucket": {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "STORE_USER", "STORE_PASSWORD"},
    "migrate": {
        "OSTEON_DATABASE_URL", "OSTEON_DATABASE_OWNER_URL", "OSTEON_STORE_URL", "OSTEON_IDENTITY_KEY",
        "OSTEON_KEY_SUBMITTER", "OSTEON_KEY_RADIOLOGIST", "OSTEON_KEY_ADMIN", "OSTEON_KEY_OPERATOR",
    },
    "api": {
        "OSTEON_DATABASE_URL", "OSTEON_BROKER_URL", "OSTEON_STORE_URL", "OSTEON_IDENTITY_KEY", "OSTEON_SESSION_SECRET",
        "OSTEON_METRICS_TOKEN", "OSTEON_WEBHOOK_KEY",
    },
    "dicom": {"OSTEON_DATABASE_URL", "OSTEON_BROKER_URL", "OSTEON_STORE_URL", "OSTEON_IDENTITY_KEY"},
    "worker-gpu": {"OSTEON_DATABASE_URL", "OSTEON_BROKER_URL", "OSTEON_STORE_URL"},
    "worker-cpu": {"OSTEON_DATABASE_URL", "OSTEON_BROKER_URL", "OSTEON_STORE_URL"},
    "results": {"OSTEON_DATABASE_URL", "OSTEON_STORE_URL"},
    "deliver": {"OSTEON_DATABASE_URL", "OSTEON_STORE_URL", "OSTEON_WEBHOOK_KEY", "OSTEON_MAIL_PASSWORD"},
    "check": {"OSTEON_DATABASE_URL"},
    "beat": {"OSTEON_BROKER_URL"},
    "flower": {"OSTEON_BROKER_URL", "FLOWER_BASIC_AUTH", "FLOWER_COOKIE_SECRET"},
    "prometheus": {"OSTEON_METRICS_TOKEN"},
    "grafana": {"GF_SECURITY_ADMIN_PASSWORD"},
}  # fmt: skip
SECRET = re.compile("PASSWORD|SECRET|TOKEN|_KEY|_USER|_AUTH|(DATABASE|OWNER|BROKER|STORE)_URL")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_service_holds_its_own_secrets_only(name: str) -> None:
    """The worker cannot read identities or sign a login, beat and Flower know the broker only."""
    held = {variable for variable in SERVICES[name].get("environment", {}) if SECRET.search(variable)}
    named = {
        "POSTGRES_USER",
        "OSTEON_MAIL_USER",
        "OSTEON_MAIL_PASSWORD_FILE",
    }  # what is no secret, and where one stands
    assert held - named <= SECRETS_OF[name]


def test_each_part_of_up_holds_what_its_service_does() -> None:
    """`osteon up` gives its parts what Compose gives its services."""
    urls = {
        f"OSTEON_{name}": "1" for name in ("HOME", "API_HOST", "FLOWER_HOST", "BROKER_URL", "API_PORT", "FLOWER_PORT")
    }
    urls["OSTEON_DICOM_PORT"] = "1"
    secrets = cast("Secrets", dict.fromkeys(("flower_user", "flower_password", "flower_cookie_secret"), "x"))
    services = {"worker": "worker-cpu"}
    for part in osteon_parts(urls, secrets):
        assert services.get(part.name, part.name) in SERVICES
        assert part.secrets == {word for word in SECRETS_OF[services.get(part.name, part.name)] if "FLOWER" not in word}
    migrate, prepare = osteon_steps(urls, secrets)
    told = migrate.secrets | prepare.secrets | migrate.variables.keys()
    assert SECRETS_OF["migrate"] <= told <= SECRETS_OF["migrate"] | {"OSTEON_KEY", "OSTEON_KEYS_FILE"}


def test_flower_keeps_few_tasks() -> None:
    """With all tasks since its start it took 420 MB and stood still for seconds; Compose and `osteon up` say how many."""
    urls = {f"OSTEON_{name}": "127.0.0.1" for name in ("HOME", "API_HOST", "FLOWER_HOST", "BROKER_URL")}
    secrets = dict.fromkeys(("flower_user", "flower_password", "flower_cookie_secret"), "x")
    parts = osteon_parts(urls | {"OSTEON_API_PORT": "1", "OSTEON_FLOWER_PORT": "2"}, cast("Secrets", secrets))
    (local,) = [part.command for part in parts if part.name == "flower"]
    for command in (local, SERVICES["flower"]["command"]):
        (most,) = [word.partition("=")[2] for word in command if word.startswith("--max_tasks=")]
        assert int(most) == FLOWER_TASKS <= 10_000


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_stops_arrive(name: str) -> None:
    """No init runs as root before a program that changes its user: without CAP_KILL it could not stop it but by force."""
    service = SERVICES[name]
    assert service["init"] is not ("SETUID" in service.get("cap_add", []))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_local(name: str) -> None:
    """A published port listens on 127.0.0.1 until told otherwise, and only these publish one."""
    ports = SERVICES[name].get("ports", [])
    assert bool(ports) == (name in ("api", "dicom", "flower", "grafana"))
    for port in ports:
        assert filled_default(port).startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned(name: str) -> None:
    """Every image carries a tag, and none is :latest, for the next pull would be another program."""
    for service in (SERVICES[name], SEAWEEDFS["services"].get(name, SERVICES[name])):
        tag = filled_default(service["image"]).rpartition("/")[2].partition(":")[2]
        assert tag
        assert tag != "latest"
        if name not in OURS:
            assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-.+\}", service["image"]), "whoever runs it may choose a digest"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_base_images_are_pinned(dockerfile: str) -> None:
    """So do the images that ours are built on, and ours do not run as root."""
    text = (ROOT / dockerfile).read_text()
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert default == example()["PYTHON_IMAGE"]
    assert all(
        filled_default(service["build"]["args"]["PYTHON_IMAGE"]) == default
        for service in SERVICES.values()
        if "build" in service
    )
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1:] == ["osteon"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_images_hold_compiled_code(dockerfile: str) -> None:
    """Their user cannot write what Python compiles, so each process, decoders too, would compile all that it imports."""
    text = (ROOT / dockerfile).read_text()
    assert re.findall(r"uv pip install (?!.*--compile-bytecode).*", text) == []
    copied, _, after = text.rpartition("COPY ")
    assert "uv pip install" in copied
    assert text.count("\nFROM ") == 1, "what a stage copies from another lies twice on the disk of whoever builds"
    assert re.search(r"^RUN python -m compileall -q \.\nUSER osteon$", after, re.MULTILINE)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_copied_files_exist(dockerfile: str) -> None:
    """Every source of a COPY exists and .dockerignore lets it in."""
    for source in copies(dockerfile):
        assert (ROOT / source).exists(), source
        assert not ignored(source.rstrip("/")), f"{source} is left out by .dockerignore"


def test_what_is_ignored() -> None:
    """Secrets, data and the environment stay out of images; code and the shipped bundle come in."""
    for path in (
        ".env",
        ".git",
        ".venv",
        ".osteon/secrets.json",
        "runs/first",
        "shared/__pycache__",
        "training/train.py",
        "tests",
    ):
        assert ignored(path), path
    bundle = Settings.model_fields["bundle_path"].default.relative_to(ROOT)
    assert not ignored(str(bundle))
    assert bundle.parts[0] in {source.rstrip("/") for source in copies("infra/docker/Dockerfile.api")}


def test_extras_exist() -> None:
    """The extras that the Dockerfiles install are extras of the project; the API's and the results' bring no torch."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = {file: re.findall(r"--extra ([a-z]+)", (ROOT / file).read_text()) for file in DOCKERFILES}
    assert installed == {
        "infra/docker/Dockerfile.api": ["api"], "infra/docker/Dockerfile.results": ["results"],
        "infra/docker/Dockerfile.worker": ["cpu"],
    }  # fmt: skip
    assert {extra for names in installed.values() for extra in names} <= set(extras)
    assert not {"torch", "torchvision", "numpy"} & installed_by("api")
    assert not {"torch", "torchvision", "openvino"} & installed_by("results")


def test_images_carry_the_version() -> None:
    """Compose names our images by the version of the code."""
    assert {SERVICES[name]["image"].partition(":")[2] for name in OURS} == {__version__}


def test_commands_name_modules() -> None:
    """Every module that a command starts with -m or -A exists, in an image that copies it."""
    seen = set()
    for name, words in commands():
        inside = {source.rstrip("/") for source in copies(BUILT[SERVICES[name]["image"]])}
        assert words[0] in ("python", "sh", "bash"), f"{name}: {words}"
        for flag, named in itertools.pairwise(words):
            if flag not in ("-m", "-A"):
                continue
            module = named.partition(":")[0]
            assert importlib.util.find_spec(module) is not None, f"{name} starts {module}"
            top = module.partition(".")[0]
            if (ROOT / top).is_dir():
                assert top in inside, f"the image of {name} lacks {top}"
            seen.add(module)
    assert {"worker.main", "worker.results.main", "worker.delivery.main", "alembic", "infra.prepare"} <= seen
    assert {"api.server", "celery"} <= seen


def test_commands_name_objects() -> None:
    """The application factory and the Celery application that commands name are there."""
    named = {word for _, words in commands() for word in words if re.fullmatch(r"[a-z_.]+:[a-z_]+", word)}
    assert named == {"shared.queue.app:app"}
    app = importlib.import_module("shared.queue.app").app
    assert app.main == "osteon"
    assert callable(importlib.import_module("api.app").create_app)


def test_alembic_configuration_exists() -> None:
    """The migration command reads a configuration that exists and is copied into its image."""
    files = [words[words.index("-c") + 1] for _, words in commands() if "alembic" in words]
    assert files == ["migrations/alembic.ini"]
    assert (ROOT / files[0]).is_file()


def test_workers_get_time_to_finish() -> None:
    """A worker is asked with SIGTERM and has over 60 s, the GPU's is the same but for the GPU, and one profile runs one."""
    gpu, cpu = SERVICES["worker-gpu"], SERVICES["worker-cpu"]
    for worker in (gpu, cpu):
        assert worker["stop_signal"] == "SIGTERM"
        assert int(worker["stop_grace_period"].removesuffix("s")) > 60
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    different = {"profiles", "deploy", "image"}
    assert {k: v for k, v in gpu.items() if k not in different} == {k: v for k, v in cpu.items() if k not in different}
    assert (gpu["profiles"], cpu["profiles"]) == (["gpu"], ["cpu"])
    assert example()["COMPOSE_PROFILES"] in ("gpu", "cpu")


def test_only_what_sends_results_leaves_the_host() -> None:
    """Making objects reaches Postgres and the store alone; sending them gets no broker, and what both open is never served."""
    assert SERVICES["results"]["networks"] == ["inside"]
    assert SERVICES["deliver"]["networks"] == ["inside", "outside"]
    stops = [SERVICES[name]["stop_grace_period"] for name in ("results", "deliver")]
    assert all(int(one.removesuffix("s")) > RESULTS_STOP_S for one in stops)
    assert not any("ports" in SERVICES[name] for name in ("results", "deliver"))
    assert "volumes" not in SERVICES["results"]


def test_the_daily_check_stays_inside() -> None:
    """It reaches API and Postgres, is reached by `deliver` under its own name, and the API knows whether it is on."""
    check, api = SERVICES["check"], SERVICES["api"]
    assert check["networks"] == ["inside"]
    assert "ports" not in check
    assert "volumes" not in check
    environment = check["environment"]
    assert environment["OSTEON_CHECK_HOST"] == "check"
    assert environment["OSTEON_CHECK_API_URL"] == "http://api:8080"
    assert environment["OSTEON_DAILY_CHECK"] == api["environment"]["OSTEON_DAILY_CHECK"]
    assert set(check["networks"]) <= set(SERVICES["deliver"]["networks"]) & set(api["networks"])


def test_its_image_holds_the_reference_study() -> None:
    """Of the samples it has these radiographs, whose they are, and nothing else."""
    dockerfile = BUILT[SERVICES["check"]["image"]]
    taken = {source for source in copies(dockerfile) if source.startswith("samples")}
    assert taken == {
        "samples/__init__.py",
        "samples/ATTRIBUTION.md",
        *(f"samples/studies/{name}" for name in REFERENCE),
    }
    # each lands in its own folder
    lines = [
        line.split()[1:] for line in (ROOT / dockerfile).read_text().splitlines() if line.startswith("COPY samples")
    ]
    assert {f"{line[-1]}{Path(source).name}" for line in lines for source in line[:-1]} == taken
    assert ignored("samples/expected.csv")
    assert ignored("samples/studies/02-hand/1-pa.dcm")


def test_what_is_shown_to_destinations_is_read_by_what_sends_alone() -> None:
    """Logins lie in a folder that only `deliver` sees, which it cannot change; API and `deliver` know one key of webhooks."""
    (mount,) = SERVICES["deliver"]["volumes"]
    assert filled_default(mount) == f"{FILLED_BY_HAND}:/etc/osteon/delivery:ro"
    assert [name for name in SERVICES if "DELIVERY_FILES" in str(SERVICES[name])] == ["deliver"]
    told = (ROOT / ".env.example").read_text()
    assert "/etc/osteon/delivery/logins.toml" in told
    assert f"/{Path(FILLED_BY_HAND).name}/" in (ROOT / ".gitignore").read_text().splitlines()
    assert ignored(f"{Path(FILLED_BY_HAND).name}/logins.toml")
    keys = {
        name: service["environment"].get("OSTEON_WEBHOOK_KEY") for name, service in SERVICES.items() if name in OURS
    }
    assert {name for name, key in keys.items() if key} == {"api", "deliver"}
    assert keys["api"] == keys["deliver"]
    (made,) = re.findall(r"openssl rand -hex (\d+)\nOSTEON_WEBHOOK_KEY=", told)
    assert 2 * int(made) >= KEY_LENGTH


def test_the_broker_forgets_nothing() -> None:
    """Valkey writes an append-only file, never evicts, and asks for a password that no command line shows."""
    (script,) = [text for text in SERVICES["valkey"]["command"] if "valkey-server" in text]
    assert "--appendonly yes" in script
    assert "--maxmemory-policy noeviction" in script
    assert "requirepass $$VALKEY_PASSWORD" in script
    server = next(line for line in script.splitlines() if "valkey-server" in line)
    assert "PASSWORD" not in server


def test_postgres_logs_no_values() -> None:
    """As embedded: neither a failed statement nor the detail of its error is in the log."""
    command = SERVICES["postgres"]["command"]
    assert command[0] == "postgres"
    assert {"log_min_error_statement=panic", "log_error_verbosity=terse"} <= set(command)


def test_postgres_keeps_its_data() -> None:
    """From 18 on the image writes below /var/lib/postgresql; a volume mounted deeper would stay empty."""
    assert filled_default(SERVICES["postgres"]["image"]).startswith("postgres:18")
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]


def test_the_lines_are_the_same_everywhere() -> None:
    """The installation page, the example and Compose's own header say the same two lines; the profile is chosen in .env alone."""
    for name in ("docs/run/install.md", ".env.example", "docker-compose.yml"):
        text = (ROOT / name).read_text()
        said = [line.lstrip("# ").partition("  ")[0] for line in text.splitlines()]
        places = [said.index(line) for line in LINES.splitlines()]
        assert places == [places[0], places[0] + 1], name
    for name in (
        "README.md",
        "docs/run/install.md",
        ".env.example",
        "docker-compose.yml",
        "docs/run/scaling.md",
        "CONTRIBUTING.md",
    ):
        assert "compose --profile" not in (ROOT / name).read_text(), name


def test_seaweedfs_takes_the_stores_place() -> None:
    """The override names services of the file, keeps the store's port, and waits for no other."""
    services = SEAWEEDFS["services"]
    assert set(services) <= set(SERVICES)
    (script,) = services["store"]["command"]
    port = re.findall(r"@store:(\d+)/", SERVICES["api"]["environment"]["OSTEON_STORE_URL"])[0]
    assert f"-s3.port={port}" in script
    # a line that is not continued would start the server without its users, and so open to all
    server = shlex.split(re.sub(r"\\\n\s*", " ", script).splitlines()[-1].replace("$$", "$"))
    assert server[:2] == ["exec", "weed"]
    assert {"-s3.config=/tmp/s3.json", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0", "-master.telemetry=false"} <= set(
        server
    )
    assert not {"STORE_USER", "STORE_PASSWORD"} ^ set(services["store"]["environment"])


def test_the_listener_has_tls_if_it_is_chosen(tmp_path: Path) -> None:
    """Off without the override. With it the listener's settings name files of the mounted folder, which it can open."""
    plain, over = SERVICES["dicom"], DICOM_TLS["services"]["dicom"]
    assert set(DICOM_TLS["services"]) == {"dicom"}
    assert "TLS" not in str(plain)
    assert "dicom-tls" not in example()["COMPOSE_FILE"]
    (mount,) = over["volumes"]
    assert (mount["type"], mount["read_only"], mount["bind"]) == ("bind", True, {"create_host_path": False})
    (port,) = over["ports"]
    assert filled(port) == "127.0.0.1:2762:2762"
    certificate, key, _ = Certificates(tmp_path).make("certificate")
    shutil.copy(certificate, tmp_path / "clients.pem")
    key.rename(tmp_path / "key.pem")
    clients = {"OSTEON_DICOM_TLS_CLIENTS": "/etc/osteon/tls/clients.pem"}
    for chosen, asked in (({}, ssl.CERT_NONE), (clients, ssl.CERT_OPTIONAL)):
        told = {name: filled(value) for name, value in {**over["environment"], **chosen}.items()}
        values: dict[str, Any] = {
            name.removeprefix("OSTEON_").lower(): value.replace(mount["target"], str(tmp_path))
            for name, value in told.items()
        }
        settings = Settings(**values)
        assert f":{settings.dicom_tls_port}" in port
        assert tls.context(settings).verify_mode is asked


def test_seaweedfs_knows_one_user(tmp_path: Path) -> None:
    """The file that it reads is JSON with one user, who may read, write and list one bucket."""
    (script,) = SEAWEEDFS["services"]["store"]["command"]
    script = script[: script.index("unset")].replace("$$", "$").replace("/tmp/s3.json", str(tmp_path / "s3.json"))
    environment = {"STORE_USER": "osteon-app", "STORE_PASSWORD": "a1b2", "PATH": os.environ["PATH"]}
    subprocess.run(["sh", "-euc", script], env=environment, check=True)
    assert (tmp_path / "s3.json").stat().st_mode & 0o077 == 0
    (user,) = json.loads((tmp_path / "s3.json").read_text())["identities"]
    assert user["credentials"] == [{"accessKey": "osteon-app", "secretKey": "a1b2"}]
    assert {action.partition(":")[2] for action in user["actions"]} == {"osteon"}
    assert {action.partition(":")[0] for action in user["actions"]} == {"Read", "Write", "List"}


MC = """#!/bin/sh
printf '%s\\n' "$*" >> "$CALLS"
case "$*" in
  *"user add"*) cat >> "$CALLS" ;;
  *"policy create"*) cat "$6" >> "$CALLS" ;;
  *"policy attach"*) [ -z "$ATTACHED" ] || { echo "The specified policy change is already in effect." >&2; exit 1; } ;;
  *"user info"*) printf 'AccessKey: x\\nStatus: enabled\\nPolicyName: %s\\n' "$ATTACHED" ;;
esac
"""


@pytest.mark.parametrize(("attached", "ends"), [("", True), ("osteon", True), ("readonly", False)])
def test_minio_gets_a_user_of_one_bucket(attached: str, ends: bool, tmp_path: Path) -> None:
    """Bucket, policy and user are made, a second time too; the password is on no command line, the policy names one bucket.

    With a stand-in for `mc`: no package brings MinIO's server, which a forge's run of `make compose-test` starts.
    """
    (tmp_path / "mc").write_text(MC)
    (tmp_path / "mc").chmod(0o755)
    script = (
        SERVICES["bucket"]["command"][0].replace("$$", "$").replace("/tmp/policy.json", str(tmp_path / "policy.json"))
    )
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "ATTACHED": attached,
        "MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": "r00t", "STORE_USER": "osteon-app", "STORE_PASSWORD": "a1b2",
    }  # fmt: skip
    ended = subprocess.run(["sh", "-euc", script], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode == 0) is ends, ended.stderr
    calls = (tmp_path / "calls").read_text()
    assert calls.splitlines()[0] == "mb --ignore-existing store/osteon"
    assert "admin user add store\nosteon-app\na1b2\n" in calls
    assert "r00t" not in calls
    policy = json.loads((tmp_path / "policy.json").read_text())
    resources = {resource for one in policy["Statement"] for resource in one["Resource"]}
    assert resources == {"arn:aws:s3:::osteon", "arn:aws:s3:::osteon/*"}
    assert not any("*" in action or "Policy" in action or (action.endswith("Bucket") and action != "s3:ListBucket")
                   for one in policy["Statement"] for action in one["Action"])  # fmt: skip


# -- what each image's code imports ---------------------------------------------------------------------------------

PROCESSES = {  # of each image: all that its commands start, and what they import when they need it
    "infra/docker/Dockerfile.api": [
        "alembic.config", "api.listener.server", "api.server", "celery.bin.beat", "flower.command", "infra.daily_check", "infra.prepare",
        "shared.db.grants", "shared.queue.app", "shared.queue.liveness",
    ],
    "infra/docker/Dockerfile.results": [
        "shared.storage.directory", "shared.storage.s3", "worker.delivery.dicom", "worker.delivery.folder", "worker.delivery.main",
        "worker.delivery.stow", "worker.results.main", "worker.results.objects",
    ],
    "infra/docker/Dockerfile.worker": [
        "shared.model.engines", "shared.model.predictor", "shared.queue.liveness", "worker.maintenance.comparing", "worker.main", "worker.metrics",
        "worker.maintenance.backfill", "worker.maintenance.heartbeat", "worker.maintenance.sweeper", "worker.tasks",
    ],
}  # fmt: skip
BLIND = """
import importlib, importlib.machinery, importlib.metadata, json, sys

allowed, modules = json.loads(sys.argv[1])

owners = {
    name: {owner.lower().replace("_", "-").replace(".", "-") for owner in found}
    for name, found in importlib.metadata.packages_distributions().items()
}

class Image(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if owners.get(name.partition(".")[0], {"osteon"}) & set(allowed):
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Image
for module in modules:
    importlib.import_module(module)
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_by(extra: str) -> set[str]:
    """The distributions that `pip install osteon[extra]` brings, by the metadata of those that are installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in (*project["dependencies"], *extras[extra])]
    while waiting:
        wanted = waiting.pop()
        for one in ("", *wanted.extras):
            name = canonical(wanted.name)
            if (name, one) in found:
                continue
            found.add((name, one))
            try:
                lines = extras.get(one, []) if name == "osteon" else importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:  # of another platform
                continue
            needs = [Requirement(line) for line in lines]
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": one})]
    return {name for name, _ in found} | {"osteon"}


@pytest.mark.parametrize(
    "dockerfile",
    # the worker's takes ten seconds of the processor
    [pytest.param(file, marks=pytest.mark.slow if file.endswith("worker") else ()) for file in DOCKERFILES],
)
def test_an_images_extra_brings_what_its_processes_import(dockerfile: str) -> None:
    """As in the image: every other distribution of this environment is hidden, and the processes' modules are imported."""
    (extra,) = re.findall(r"--extra ([a-z]+)", (ROOT / dockerfile).read_text())
    allowed = installed_by(extra)
    assert {"celery", "redis", "packaging", "psutil", "sqlalchemy"} <= allowed
    program = [sys.executable, "-P", "-c", BLIND, json.dumps([sorted(allowed), PROCESSES[dockerfile]])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OSTEON_", "COV"))}
    ended = subprocess.run(
        program, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_every_process_is_tried() -> None:
    """What a command of Compose starts is among the modules above, and so is what they import only when they need it."""
    started: dict[str, set[str]] = {dockerfile: set() for dockerfile in DOCKERFILES}
    for name, words in commands():
        for flag, named in itertools.pairwise(words):
            if flag in ("-m", "-A", "--scheduler"):
                started[BUILT[SERVICES[name]["image"]]].add(named.partition(":")[0])
    for dockerfile, modules in started.items():
        tried = {
            module.partition(".")[0] if module.startswith(("alembic", "celery")) else module
            for module in PROCESSES[dockerfile]
        }
        assert modules <= tried, dockerfile
