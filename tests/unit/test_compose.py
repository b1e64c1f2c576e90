"""No Docker engine runs where the tests run: what docker-compose.yml and the Dockerfiles say is checked by reading."""

import fnmatch
import importlib
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.fernet import Fernet

from shared import __version__
from shared.repository.access import Role
from shared.settings import ROOT, Settings
from shared.storage import S3Store, open_store

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
ONE_SHOT = {"migrate"}
LASTING = sorted(set(SERVICES) - ONE_SHOT)
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
DOCKERFILES = sorted({SERVICES[name]["build"]["dockerfile"] for name in OURS})
COMPOSES_OWN = {"COMPOSE_PROFILES"}  # read by Compose itself, not named in the file
# ${NAME}, ${NAME:-default}, ${NAME:?cure}; $$ is Compose's way to write a dollar sign
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?:(:?[-?])([^}]*))?\}")
SETTINGS = {f"OSTEON_{name.upper()}" for name in Settings.model_fields}
KEYS = {f"OSTEON_KEY_{role.upper()}" for role in Role}  # infra.prepare's


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def used() -> dict[str, set[tuple[str, str]]]:
    """Every variable of the file with the operators and texts behind it."""
    found: dict[str, set[tuple[str, str]]] = {}
    for text in strings(COMPOSE):
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
            if command[:1] == ["sh"]:
                for line in command[-1].splitlines():
                    yield name, shlex.split(line.removeprefix("exec "))
            elif command:
                yield name, command


def copies(dockerfile: str) -> list[str]:
    """The sources of COPY lines that come from the build context."""
    lines = re.sub(r"\\\n", " ", (ROOT / dockerfile).read_text()).splitlines()
    words = [line.split()[1:] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    assert words, f"{dockerfile} copies nothing"
    return [source for line in words for source in line[:-1]]


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


def test_osteon_variables_exist() -> None:
    """Every OSTEON_ variable is a field of Settings or a key of infra.prepare: a misspelt one would be ignored in silence."""
    names = {name for service in SERVICES.values() for name in service.get("environment", {})} | set(used())
    osteon = {name for name in names if name.startswith("OSTEON_")}
    assert osteon
    assert osteon <= SETTINGS | KEYS
    assert set(SERVICES["migrate"]["environment"]) >= KEYS


def test_urls_are_understood() -> None:
    """The URLs that Compose puts together are ones that the code opens, and they name services of the file."""
    environment = {name: filled(value) for name, value in SERVICES["api"]["environment"].items()}
    store = open_store(environment["OSTEON_STORE_URL"])
    assert isinstance(store, S3Store)
    assert store.bucket == "osteon"
    hosts = {
        re.findall(r"@([a-z-]+):\d+/", environment[f"OSTEON_{part}_URL"])[0] for part in ("DATABASE", "BROKER", "STORE")
    }
    assert hosts == {"postgres", "valkey", "minio"}
    assert hosts <= set(SERVICES)


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
    assert knows == {"OSTEON_IDENTITY_KEY": {"api", "migrate"}, "OSTEON_SESSION_SECRET": {"api"}}


@pytest.mark.parametrize(("password", "starts"), [("unset", False), ("a1b2c3", True)])
def test_grafana_never_starts_with_a_password_that_all_know(password: str, starts: bool, tmp_path: Path) -> None:
    """Without a password of its own it says the cure and ends; the rest of Osteon does not need one."""
    script = SERVICES["grafana"]["command"][0].replace("$$", "$").replace("exec /run.sh", f"touch {tmp_path}/started")
    environment = {**os.environ, "GF_SECURITY_ADMIN_PASSWORD": password}
    ended = subprocess.run(["sh", "-euc", script], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode == 0) is starts is (tmp_path / "started").exists()
    assert ("GRAFANA_PASSWORD" in ended.stderr) is not starts


@pytest.mark.parametrize("name", OURS)
def test_build_files_exist(name: str) -> None:
    """Every image of ours is built from a Dockerfile and a context that exist."""
    build = SERVICES[name]["build"]
    assert (ROOT / build["context"]).is_dir()
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_mounts_exist(name: str) -> None:
    """A volume is declared, or it is a file or folder that exists."""
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith((".", "/")):
            assert (ROOT / source).exists(), mount
        else:
            assert source in COMPOSE["volumes"], mount


def test_volumes_and_networks_are_used() -> None:
    """Nothing is declared that no service uses, and no service uses a network that is not declared."""
    mounted = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert {source for source in mounted if not source.startswith(".")} == set(COMPOSE["volumes"])
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


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_stops_arrive(name: str) -> None:
    """No init runs as root before a program that changes its user: without CAP_KILL it could not stop it but by force."""
    service = SERVICES[name]
    assert service["init"] is not ("SETUID" in service.get("cap_add", []))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_local(name: str) -> None:
    """A published port listens on 127.0.0.1 only, and only the page, Flower and Grafana publish one."""
    ports = SERVICES[name].get("ports", [])
    assert bool(ports) == (name in ("api", "flower", "grafana"))
    for port in ports:
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned(name: str) -> None:
    """Every image carries a tag, and none is :latest, for the next pull would be another program."""
    tag = SERVICES[name]["image"].rpartition("/")[2].partition(":")[2]
    assert tag
    assert tag != "latest"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_base_images_are_pinned(dockerfile: str) -> None:
    """So do the images that ours are built on, and ours do not run as root."""
    text = (ROOT / dockerfile).read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert bases
    assert all(":" in base and not base.endswith(":latest") for base in bases)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1:] == ["osteon"]


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
    assert bundle.parts[0] in {source.rstrip("/") for source in copies("infra/Dockerfile.api")}


def test_extras_exist() -> None:
    """The extras that the Dockerfiles install are extras of the project, and the API's brings no torch."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = {file: re.findall(r"--extra ([a-z]+)", (ROOT / file).read_text()) for file in DOCKERFILES}
    assert installed == {"infra/Dockerfile.api": ["api"], "infra/Dockerfile.worker": ["cpu"]}
    assert {extra for names in installed.values() for extra in names} <= set(extras)
    assert not {"torch", "torchvision", "numpy"} & {re.findall(r"^[a-z0-9-]+", line)[0] for line in extras["api"]}


def test_images_carry_the_version() -> None:
    """Compose names our images by the version of the code."""
    assert {SERVICES[name]["image"].partition(":")[2] for name in OURS} == {__version__}


def test_commands_name_modules() -> None:
    """Every module that a command starts with -m or -A exists, in an image that copies it."""
    seen = set()
    for name, words in commands():
        inside = {source.rstrip("/") for source in copies(SERVICES[name]["build"]["dockerfile"])}
        assert words[0] == "python", f"{name}: {words}"
        for flag, named in itertools.pairwise(words):
            if flag not in ("-m", "-A"):
                continue
            module = named.partition(":")[0]
            assert importlib.util.find_spec(module) is not None, f"{name} starts {module}"
            top = module.partition(".")[0]
            if (ROOT / top).is_dir():
                assert top in inside, f"the image of {name} lacks {top}"
            seen.add(module)
    assert {"worker.main", "alembic", "infra.prepare", "uvicorn", "celery"} <= seen


def test_commands_name_objects() -> None:
    """The application factory and the Celery application that commands name are there."""
    named = {word for _, words in commands() for word in words if re.fullmatch(r"[a-z_.]+:[a-z_]+", word)}
    assert named == {"api.main:create_app", "worker.main:app"}
    app = importlib.import_module("worker.main").app
    assert app.main == "osteon"
    assert callable(importlib.import_module("api.main").create_app)


def test_health_checks_compile() -> None:
    """The Python in health checks has no syntax error, which Docker would report as illness only."""
    programs = [words[2] for _, words in commands() if words[:2] == ["python", "-c"]]
    assert len(programs) >= 4
    for program in programs:
        compile(program, "healthcheck", "exec")


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
    different = {"profiles", "deploy"}
    assert {k: v for k, v in gpu.items() if k not in different} == {k: v for k, v in cpu.items() if k not in different}
    assert (gpu["profiles"], cpu["profiles"]) == (["gpu"], ["cpu"])
    assert example()["COMPOSE_PROFILES"] in ("gpu", "cpu")


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
    assert SERVICES["postgres"]["image"].startswith("postgres:18")
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
