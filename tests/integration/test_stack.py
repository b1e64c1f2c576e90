"""The supervisor, with real Postgres and Valkey; the API and the worker are stood in for by sleepers."""

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.embedded import stack as stack_module
from infra.embedded import state
from infra.embedded.parts import Part
from infra.embedded.process import creation_time, free_port, is_same_process, wait_until
from infra.embedded.stack import Stack
from shared.errors import StackError
from shared.settings import ROOT, Settings
from tests.pace import LIMIT_S

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OSTEON_")]:
        monkeypatch.delenv(name)


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def no_parts(*_: object) -> Sequence[Part]:
    return []


def outside(home: Path, **more: object) -> Settings:
    """Settings of a stack without Postgres and Valkey, which is quick to start."""
    urls = {"database_url": SecretStr("postgresql://nowhere"), "broker_url": SecretStr("redis://nowhere")}
    return Settings.model_validate({"home": home, **urls, **more})


def sleeper(name: str, code: str = "import time; time.sleep(600)", stop_wait_s: float = 5.0) -> Part:
    return Part(name, [sys.executable, "-S", "-c", code], stop_wait_s=stop_wait_s)


def test_second_stack_in_a_home_is_refused(tmp_path: Path) -> None:
    """Two stacks never share a home; the message names the process that holds it, whose stack.json stays."""
    with Stack(outside(tmp_path / "home"), steps=no_parts, parts=no_parts):
        second = Stack(outside(tmp_path / "home"), steps=no_parts, parts=no_parts)
        with pytest.raises(StackError, match=f"pid {os.getpid()}"):
            second.start()
        second.stop()
        assert state.status(tmp_path / "home").running


def test_stack_json_of_a_dead_stack_is_not_believed(tmp_path: Path) -> None:
    """A stack.json whose pid now belongs to another program counts as stopped, and that program is not signalled."""
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]) as bystander:
        part: state.PartState = {"pid": bystander.pid, "created": 1.0, "port": None}
        old: state.StackState = {
            "pid": bystander.pid,
            "created": 1.0,
            "started_at": "2026-01-01T00:00:00+00:00",
            "urls": {},
            "parts": {"api": part},
        }
        home = tmp_path / "home"
        with Stack(outside(home), steps=no_parts, parts=no_parts):
            pass
        state.write_state(home, old)
        found = state.status(home)
        assert (found.running, found.parts[0].running) == (False, False)
        with pytest.raises(StackError, match="osteon up"):
            state.environment(home)
        assert state.down(home) is False
        assert bystander.poll() is None
        bystander.kill()


def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    """A second start finds the same keys: otherwise stored identities could not be read again."""
    home = tmp_path / "home"
    for _ in range(2):
        with Stack(outside(home), steps=no_parts, parts=no_parts):
            first = state.read_secrets(home)
            assert state.environment(home)["OSTEON_IDENTITY_KEY"] == first["identity_key"]
            assert stat.S_IMODE((home / "stack.json").stat().st_mode) == 0o600
    assert state.ensure_secrets(home) == first
    assert stat.S_IMODE((home / "secrets.json").stat().st_mode) == 0o600
    assert set(first["keys"]) == {"submitter", "radiologist", "admin", "operator"}


def test_full_disk_stops_nothing_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a nearly full disk the number and the cure are said before anything starts."""
    monkeypatch.setattr(state, "MIN_FREE_BYTES", 10**18)
    with pytest.raises(StackError, match=r"MB are free.*OSTEON_HOME"):
        Stack(outside(tmp_path / "home"), steps=no_parts, parts=no_parts).start()
    assert not (tmp_path / "home" / "secrets.json").exists()


def test_foreign_folder_is_neither_used_nor_deleted(tmp_path: Path) -> None:
    """OSTEON_HOME set to a folder with other files by mistake costs nobody a file."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StackError, match="OSTEON_HOME"):
        Stack(outside(tmp_path), steps=no_parts, parts=no_parts).start()
    with pytest.raises(StackError, match=r"secrets\.json"):
        state.down(tmp_path, delete=True)
    assert (tmp_path / "thesis.txt").exists()


def test_busy_port_moves_on_unless_it_was_chosen(tmp_path: Path) -> None:
    """Nobody's choice gives way to the next free port; a chosen one is refused by name with its variable."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"Port {port} .*OSTEON_API_PORT"):
            Stack(outside(tmp_path / "home", api_port=port), steps=no_parts, parts=no_parts).start()
        config = outside(tmp_path / "home", api_port=port)
        config.model_fields_set.discard("api_port")
        with Stack(config, steps=no_parts, parts=no_parts) as stack:
            assert int(stack.urls["api"].rsplit(":", 1)[1]) > port


def test_two_processes_never_serve_their_metrics_on_one_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was here before may hold the worker's: then it takes the next one, which would be the listener's."""
    first = free_port()
    monkeypatch.setattr(stack_module, "METRICS_PORTS", {"worker": first, "dicom": first + 1})
    with socket.create_server(("127.0.0.1", first)), Stack(outside(tmp_path), steps=no_parts, parts=no_parts) as stack:
        chosen = [int(stack._variables[f"OSTEON_{name}_METRICS_PORT"]) for name in ("WORKER", "DICOM")]
    assert first < chosen[0] < chosen[1]


def test_failed_step_shows_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    """A migration that fails is named with what it wrote, and the stack that it stopped can start again."""
    home = tmp_path / "home"
    broken = sleeper("migrate", "raise SystemExit('no such column')")
    with pytest.raises(StackError, match=r"(?s)migrate failed.*no such column"):
        Stack(outside(home), steps=lambda *_: [broken], parts=no_parts).start()
    assert not (home / "stack.json").exists()
    with Stack(outside(home), steps=no_parts, parts=no_parts):
        pass


@only_linux
def test_a_part_is_waited_for_while_it_makes_progress(tmp_path: Path) -> None:
    """One that computes for longer than the limit before it is ready is waited for; one that sleeps is given up."""
    computing = """if True:
        import time
        while time.process_time() < 1.2:
            pass
        open("ready", "w").close()
        time.sleep(600)
    """

    def busy(*_: object) -> Sequence[Part]:
        code = computing.replace("ready", str(tmp_path / "ready"))
        return [Part("busy", [sys.executable, "-S", "-c", code], (tmp_path / "ready").exists)]

    def idle(*_: object) -> Sequence[Part]:
        return [Part("idle", [sys.executable, "-S", "-c", "import time; time.sleep(600)"], lambda: False)]

    with Stack(outside(tmp_path / "busy", start_limit_s=1.0), steps=no_parts, parts=busy):
        assert (tmp_path / "ready").exists()
    late = Stack(outside(tmp_path / "idle", start_limit_s=1.0), steps=no_parts, parts=idle)
    with pytest.raises(StackError, match=r"idle was not ready, and did nothing for 1 s \(OSTEON_START_LIMIT_S"):
        late.start()


def supervise(home: Path, parts: str, *, embedded: bool = False) -> "subprocess.Popen[str]":
    """A supervisor in a process of its own, as `osteon up` is; returns when it watches."""
    config = "Settings(home=home)" if embedded else "outside(home)"
    code = f"""
        import sys
        from pathlib import Path
        sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
        from test_stack import *
        home = Path({str(home)!r})
        try:
            with Stack({config}, steps=no_parts, parts=lambda *_: [{parts}]) as stack:
                print("watching", flush=True)
                stack.watch()
        except StackError as error:
            sys.exit(str(error))
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OSTEON_")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean)
    assert process.stdout is not None
    if process.stdout.readline() != "watching\n":
        raise AssertionError(process.communicate()[1])
    return process


def processes(home: Path) -> dict[str, state.PartState]:
    found = state.read_state(home)
    assert found is not None
    return found["parts"]


def test_dead_parts_are_started_again(tmp_path: Path) -> None:
    """A killed part, database or broker comes back by itself, and down ends them all."""
    home = tmp_path / "home"
    supervisor = supervise(home, 'sleeper("api")', embedded=True)
    before = processes(home)
    assert set(before) == {"api", "valkey", "postgres"}
    for part in before.values():
        kill(part["pid"])
    assert wait_until(lambda: all(processes(home)[name]["pid"] != before[name]["pid"] for name in before), 20)
    assert all(part.running for part in state.status(home).parts)
    after = processes(home)
    assert state.down(home, delete=True)
    assert supervisor.wait(LIMIT_S) == 0
    assert not home.exists()
    assert not any(is_same_process(part["pid"], part["created"]) for part in after.values())


def test_part_that_keeps_dying_ends_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that cannot live is given up with the end of its log instead of being restarted for ever."""
    monkeypatch.setattr("infra.embedded.stack.MAX_RESTARTS", 1)
    dying = sleeper("worker", "import time; time.sleep(1.5); raise SystemExit('no model')")
    stack = Stack(outside(tmp_path / "home"), steps=no_parts, parts=lambda *_: [dying])
    with pytest.raises(StackError, match=r"(?s)worker was restarted.*no model"), stack:
        stack.watch()
    assert not state.status(tmp_path / "home").running


def test_parts_stop_before_the_servers_they_use(tmp_path: Path) -> None:
    """The worker may finish its study with broker and database still there; only then do these end, in that order."""
    said: list[str] = []
    polite = "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(0.5), sys.exit())); time.sleep(600)"
    config = Settings.model_validate({"home": tmp_path / "home"})
    with Stack(config, steps=no_parts, parts=lambda *_: [sleeper("worker", polite)], report=said.append) as stack:
        assert stack.postgres is not None
        assert stack.valkey is not None
        alive: list[tuple[bool, bool]] = []
        valkey_stop = stack.valkey.stop
        worker = processes(tmp_path / "home")["worker"]
        time.sleep(0.5)  # until it has its handler

        def stop_valkey() -> None:
            alive.append(
                (
                    is_same_process(worker["pid"], worker["created"]),
                    stack.postgres is not None and stack.postgres.running,
                )
            )
            valkey_stop()

        stack.valkey.stop = stop_valkey  # type: ignore[method-assign]
    assert alive == [(False, True)]
    assert [word for word in said if word.startswith("stopping")] == [
        "stopping worker",
        "stopping valkey",
        "stopping postgres",
    ]


def test_deaf_part_is_killed_with_its_children(tmp_path: Path) -> None:
    """A part that ignores SIGTERM ends all the same, and so does what it had started."""
    code = (
        "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN); "
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']); "
        "print(p.pid, flush=True); time.sleep(600)"
    )
    home = tmp_path / "home"
    log = home / "logs" / "worker.log"
    with Stack(outside(home), steps=no_parts, parts=lambda *_: [sleeper("worker", code, stop_wait_s=0.5)]):
        assert wait_until(lambda: log.read_text().endswith("\n"), 10)
        grandchild = int(log.read_text())
    assert wait_until(lambda: creation_time(grandchild) is None, 5)


@only_linux
def test_kill_9_of_the_supervisor_leaves_nothing_running(tmp_path: Path) -> None:
    """The kernel ends every part of a killed supervisor, Postgres under another uid included; a new start works."""
    home = tmp_path / "home"
    supervisor = supervise(home, 'sleeper("api")', embedded=True)
    before = processes(home)
    supervisor.kill()
    supervisor.wait()
    assert wait_until(lambda: not any(is_same_process(part["pid"], part["created"]) for part in before.values()), 10)
    assert not state.status(home).running
    with Stack(Settings.model_validate({"home": home}), steps=no_parts, parts=no_parts):
        assert state.status(home).running


def test_next_start_ends_what_ignored_the_death_signal(tmp_path: Path) -> None:
    """A part that outlives its killed supervisor is ended by the next start, so that no two workers of one home run."""
    home = tmp_path / "home"
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    supervisor = supervise(home, f'sleeper("worker", {deaf!r})')
    assert wait_until(lambda: (home / "logs" / "worker.log").read_text() != "", 10)
    worker = processes(home)["worker"]
    supervisor.kill()
    supervisor.wait()
    assert is_same_process(worker["pid"], worker["created"])
    state.end_orphans(home, wait_s=0.5)
    assert not is_same_process(worker["pid"], worker["created"])


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    """One Ctrl-C ends the stack cleanly, with exit status 0 and no stack.json left."""
    home = tmp_path / "home"
    supervisor = supervise(home, 'sleeper("api")')
    api = processes(home)["api"]
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(LIMIT_S) == 0
    assert not is_same_process(api["pid"], api["created"])
    assert not (home / "stack.json").exists()


def test_a_part_is_asked_to_stop_once(tmp_path: Path) -> None:
    """The worker gets a single SIGTERM, which no server can take for impatience."""
    home = tmp_path / "home"
    counting = (
        "import signal, time; signal.signal(15, lambda *_: print('asked', flush=True)); "
        "print('up', flush=True); time.sleep(1.5)"
    )
    log = home / "logs" / "worker.log"
    with Stack(outside(home), steps=no_parts, parts=lambda *_: [sleeper("worker", counting)]):
        assert wait_until(lambda: log.exists() and log.read_text() == "up\n", 10)
    assert log.read_text() == "up\nasked\n"
