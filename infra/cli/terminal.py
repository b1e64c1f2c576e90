"""Input and output of the commands: text for people at a terminal, JSON for scripts, and a client for the API."""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.errors import OsteonError
from shared.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="print JSON for scripts instead of text")]
Url = Annotated[str | None, typer.Option(envvar="OSTEON_API_URL", help="the API; default: the local stack's")]
KeyOption = Annotated[
    str | None, typer.Option("--key", envvar="OSTEON_KEY", help="an API key; default: the local stack's")
]
# without a terminal (a file, a pipe) Rich would squeeze everything into 80 columns
WIDTH_OF_FILES = 1000  # no row of ours is longer; tables take no more than their content needs
LINE_EVERY_S = 5.0  # of progress, without a terminal
WIDE = 110  # columns from which on the worklist shows everything
# what a command needs beyond the client that every installation has, by the module that it stands in
EXTRAS = {"infra.cli.stack": "embedded", "infra.cli.reading": "cpu", "infra.cli.conformance": "api"}


def _width(*, terminal: bool) -> int | None:
    return None if terminal or "COLUMNS" in os.environ else WIDTH_OF_FILES


errors = Console(stderr=True, width=_width(terminal=sys.stderr.isatty()))
out = Console(width=_width(terminal=sys.stdout.isatty()))


def exit_codes(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command, so that known errors become one line and exit code 1, not a trace."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (OsteonError, OSError) as error:
            errors.print(f"osteon: {error}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(command.__module__, "training")
            errors.print(
                f"osteon: this command needs {error.name}, which is not installed. Install Osteon with its extra "
                f"{extra}: osteon[{extra}] in place of osteon",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            errors.print("osteon: interrupted", markup=False)
            raise typer.Exit(130) from None

    return run


def line(text: str, style: str | None = None) -> None:
    """Print text as it is: no markup, and broken only where the terminal breaks it.

    Args:
        text: may have several lines.
        style: of Rich; None for plain text.
    """
    out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on standard error, so that what a script reads stays as it is."""
    errors.print(f"osteon: {text}", markup=False, highlight=False, soft_wrap=True)


def renamed(old: str, value: T, new: str, current: T | None) -> T:
    """Take an option that was given by its old name, with a warning.

    Args:
        old: the name that was given.
        value: what was given with it.
        new: the name to use.
        current: what was given under the new name; None: nothing.

    Returns:
        The value.

    Raises:
        OsteonError: Both names are given.
    """
    if current is not None:
        raise OsteonError(f"{old} and {new} are the same option; give {new} alone")
    warn(f"{old} is now {new}; the old name works until version 0.3.0")
    return value


def former_name(app: typer.Typer, old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a command answer to its name of before as well, hidden and with a warning, until version 0.3.0.

    Args:
        app: where the command is registered.
        old: the name of before.
        new: the name of today, for the warning.

    Returns:
        A decorator of the command.
    """

    def register(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            warn(f"osteon {old} is now osteon {new}; the old name works until version 0.3.0")
            return command(*args, **kwargs)

        app.command(old, hidden=True)(run)
        return command

    return register


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Print any JSON value, for scripts."""
    print(json.dumps(value, indent=1, default=str))


def progress(*, quiet: bool = False) -> Progress:
    """Make bars on standard error, for people at a terminal only."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=errors, disable=quiet or not errors.is_terminal)


@contextmanager
def watching(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show how far a run is, on standard error: a bar at a terminal, elsewhere a line every few seconds.

    Args:
        total: files of the run.
        quiet: show nothing.

    Yields:
        A function to call with the number of files that are done.
    """
    if errors.is_terminal or quiet:
        with progress(quiet=quiet) as bar:
            task = bar.add_task("reading", total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    begun = last = time.monotonic()

    def line_now_and_then(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_S or done == total:
            return
        last, speed = now, done / (now - begun)
        minutes, seconds = divmod(round((total - done) / speed), 60)
        errors.print(f"{done:,} of {total:,} files, {speed:.1f} a second, {minutes}:{seconds:02} left", highlight=False)

    yield line_now_and_then


@contextmanager
def calling(url: str | None, key: str | None, role: str) -> Iterator[Any]:
    """Make a client for a command.

    Args:
        url: of the API; None: the local stack's.
        key: for that API; None: the local stack's own.
        role: whose key of the local stack is taken.

    Yields:
        A client, closed after the block.

    Raises:
        OsteonError: A URL is given without a key, or no stack runs here.
    """
    from infra.client.api import Client
    from infra.embedded import state

    home = Settings().home.absolute()
    if key is None and url is not None:  # the local stack's keys are sent to its own API only
        raise OsteonError("Give that API's key with OSTEON_KEY (or --key, which other users of this machine can see)")
    if url is None:
        try:
            url = state.environment(home)["OSTEON_API_URL"]
        except OsteonError as error:
            raise OsteonError(f"{error} Or name an API with OSTEON_API_URL, and its key with OSTEON_KEY.") from None
    key = key or state.read_secrets(home)["keys"][role]
    with Client(url, key) as client:
        yield client


def stored_bundle(client: Any, bundle: str) -> str:  # noqa: ANN401 - infra.client.api, imported late
    """Find the name of a bundle; a file is stored first.

    Args:
        client: with an administrator's key.
        bundle: a name, or the path of a file.

    Returns:
        The name under which the API has it.

    Raises:
        OsteonError: The file does not exist, or the API does not take it.
    """
    file = Path(bundle)
    if not file.is_file():
        if file.suffix == ".safetensors":
            raise OsteonError(f"{bundle} does not exist; give the path of a bundle, or the name of a stored one")
        return bundle
    with progress() as bar:
        task = bar.add_task("storing, MB", total=file.stat().st_size // 10**6)
        response = client.store_bundle(file, lambda sent: bar.update(task, completed=sent // 10**6))
    return str(response["name"])
