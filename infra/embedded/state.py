"""The files in a stack's home folder: the lock, the secrets, and stack.json while it runs."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from cryptography.fernet import Fernet

from infra.embedded.process import end_process, is_same_process, wait_until
from shared.errors import StackError

MIN_FREE_BYTES = 500 * 10**6
STOP_LIMIT_S = 180.0  # a worker may take 60 s to finish, every other part 20
ROLES = ("submitter", "radiologist", "admin", "operator")


class Secrets(TypedDict):
    """Content of home/secrets.json, made once. Without identity_key the stored patient identities cannot be read."""

    identity_key: str  # Fernet key
    session_secret: str
    flower_user: str
    flower_password: str
    flower_cookie_secret: str
    keys: dict[str, str]  # API key per role


class PartState(TypedDict):
    """A process in stack.json. Pid and created identify it together: a later process may get the same pid."""

    pid: int
    created: float  # seconds since 1970
    port: int | None


class StackState(TypedDict):
    """Content of home/stack.json, which exists while a stack runs (or after its supervisor was killed)."""

    pid: int
    created: float
    started_at: str  # ISO 8601, UTC
    urls: dict[str, str]  # database, broker, store, api, flower; dicom is host:port
    parts: dict[str, PartState]


@dataclass(frozen=True)
class PartStatus:
    """Whether one process of the stack runs."""

    name: str
    running: bool
    pid: int
    port: int | None


@dataclass(frozen=True)
class StackStatus:
    """Whether the stack runs. When its supervisor was killed, `running` is False while `parts` may still end."""

    running: bool
    pid: int | None
    started_at: str | None
    urls: dict[str, str]
    parts: tuple[PartStatus, ...]


@contextlib.contextmanager
def lock(home: Path) -> Iterator[None]:
    """Hold the home's lock; raises StackError naming the process that holds it."""
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            message = (
                f"An Osteon stack (pid {holder}) already runs in {home}. Stop it with `osteon down`, or choose another "
                "folder with OSTEON_HOME."
            )
            raise StackError(message) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)  # the file stays: removing it would let two processes lock two files of one name


def prepare_home(home: Path) -> None:
    """Make the folder; raises StackError if it holds other things, cannot be made, or its disk is nearly full."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in home.iterdir()}
        if (
            names - {"lock", "logs", "objects", "cache"} and "secrets.json" not in names
        ):  # later `down --delete` removes the whole folder
            message = f"{home} holds files that are not Osteon's. Set OSTEON_HOME to an empty or a new folder."
            raise StackError(message)
        # every file in it is private; as root, Postgres' own uid must pass through without capabilities
        home.chmod(0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        message = f"The folder {home} cannot be used ({error.strerror}). Set OSTEON_HOME to a folder of yours."
        raise StackError(message) from error
    free = shutil.disk_usage(home).free
    if free < MIN_FREE_BYTES:
        message = (
            f"Only {free // 10**6} MB are free on the disk of {home}; Osteon needs {MIN_FREE_BYTES // 10**6} MB to "
            "start. Free some space, or set OSTEON_HOME to a folder on another disk."
        )
        raise StackError(message)


def read_secrets(home: Path) -> Secrets:
    """Read the secrets of this home; raises StackError if there are none, or the file is damaged."""
    path = home / "secrets.json"
    try:
        found: Secrets = json.loads(path.read_text())
        missing = Secrets.__required_keys__ - found.keys()
    except FileNotFoundError as error:
        message = f"There is no Osteon stack in {home} yet. Start it with `osteon up`."
        raise StackError(message) from error
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}). Restore it from a backup: it holds the key of the identities."
        raise StackError(message) from error
    if missing:
        message = f"{path} lacks {', '.join(sorted(missing))}. Restore it from a backup."
        raise StackError(message)
    return found


def ensure_secrets(home: Path) -> Secrets:
    """Read the secrets of this home; make them if there are none, and a key for each role that has none yet."""
    if not (home / "secrets.json").exists():
        made: Secrets = {
            "identity_key": Fernet.generate_key().decode(),
            "session_secret": secrets.token_urlsafe(32),
            "flower_user": "admin",
            "flower_password": secrets.token_urlsafe(18),
            "flower_cookie_secret": secrets.token_urlsafe(48),
            "keys": {role: "osk_" + secrets.token_urlsafe(24) for role in ROLES},
        }
        _write(home / "secrets.json", made)
    found = read_secrets(home)
    if new := [role for role in ROLES if role not in found["keys"]]:  # roles that are younger than this home
        found["keys"] |= {role: "osk_" + secrets.token_urlsafe(24) for role in new}
        _write(home / "secrets.json", found)
    return found


def write_state(home: Path, state: StackState) -> None:
    """Write stack.json.

    Args:
        home: folder of the stack.
        state: its supervisor and parts.
    """
    _write(home / "stack.json", state)


def read_state(home: Path) -> StackState | None:
    """Read stack.json, which may be about a stack long dead; None if there is no whole one."""
    try:
        state: StackState = json.loads((home / "stack.json").read_text())
    except (OSError, ValueError):
        return None
    return state


def status(home: Path) -> StackStatus:
    """Find out whether the stack in this home runs, and each of its parts."""
    state = read_state(home.absolute())
    if state is None:
        return StackStatus(running=False, pid=None, started_at=None, urls={}, parts=())
    parts = tuple(
        PartStatus(name, is_same_process(part["pid"], part["created"]), part["pid"], part["port"])
        for name, part in state["parts"].items()
    )
    running = is_same_process(state["pid"], state["created"])
    return StackStatus(running, state["pid"], state["started_at"], state["urls"], parts)


def environment(home: Path) -> dict[str, str]:
    """Collect the OSTEON_* variables of the stack that runs in this home, for other commands.

    Args:
        home: folder of the stack.

    Returns:
        Values by name; those set in this process's own environment win.

    Raises:
        StackError: No stack runs there.
    """
    home = home.absolute()
    state = read_state(home)
    if state is None or not is_same_process(state["pid"], state["created"]):
        message = f"No Osteon stack runs in {home}. Start it with `osteon up`, or name its folder with OSTEON_HOME."
        raise StackError(message)
    secret = read_secrets(home)
    found = {f"OSTEON_{name.upper()}_URL": url for name, url in state["urls"].items() if name != "dicom"}
    found |= {"OSTEON_IDENTITY_KEY": secret["identity_key"], "OSTEON_SESSION_SECRET": secret["session_secret"]}
    found |= {name: os.environ[name] for name in found if os.environ.get(name)}
    return found | {"OSTEON_HOME": str(home)}


def end_orphans(home: Path, wait_s: float = 20.0) -> None:
    """End what a killed supervisor left running. Call it with the lock held.

    Args:
        home: folder of the stack.
        wait_s: seconds until SIGKILL, for each process.

    Raises:
        StackError: A process stays.
    """
    state = read_state(home)
    if state is None:
        return
    for name, part in state["parts"].items():  # in the order of stopping
        first = signal.SIGINT if name == "postgres" else signal.SIGTERM
        if not end_process(part["pid"], part["created"], wait_s, first):
            message = f"{name} (pid {part['pid']}) of an earlier stack does not end. End it: kill -9 {part['pid']}"
            raise StackError(message)
    (home / "stack.json").unlink(missing_ok=True)


def down(home: Path, *, delete: bool = False) -> bool:
    """Stop the stack in this home and wait until it has gone.

    Args:
        home: folder of the stack.
        delete: remove the home and all data in it.

    Returns:
        Whether one ran.

    Raises:
        StackError: It does not stop, or `delete` is asked for a folder that is no home of a stack.
    """
    home = home.absolute()
    if delete and home.exists() and not (home / "secrets.json").is_file():
        message = f"{home} has no secrets.json, so it is no folder of an Osteon stack; nothing was deleted."
        raise StackError(message)
    state = read_state(home)
    ran = state is not None and is_same_process(state["pid"], state["created"])
    if state is not None and ran:
        pid, created_at = state["pid"], state["created"]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not wait_until(lambda: not is_same_process(pid, created_at), STOP_LIMIT_S):
            message = f"The stack (pid {pid}) did not stop within {STOP_LIMIT_S:.0f} s. End it with: kill -9 {pid}"
            raise StackError(message)
    if home.exists():
        with lock(home):
            end_orphans(home)
            if delete:
                shutil.rmtree(home)
    return ran


def _write(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Write JSON that only its owner can read, whole or not at all."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mkstemp makes it 0600
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    Path(partial).replace(path)
