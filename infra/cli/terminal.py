"""How a command talks: to people at a terminal, to scripts in JSON; and whom it talks to."""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.errors import OsteonError
from shared.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
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
EXTRAS = {"infra.cli.stack": "embedded", "infra.cli.reading": "cpu"}


def _width(*, terminal: bool) -> int | None:
    return None if terminal or "COLUMNS" in os.environ else WIDTH_OF_FILES


errors = Console(stderr=True, width=_width(terminal=sys.stderr.isatty()))
out = Console(width=_width(terminal=sys.stdout.isatty()))


def honest(command: Callable[P, R]) -> Callable[P, R]:
    """Known errors become one line and exit code 1, not a trace."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (OsteonError, OSError) as wrong:
            errors.print(f"osteon: {wrong}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except ModuleNotFoundError as missing:
            extra = EXTRAS.get(command.__module__, "training")
            errors.print(
                f"osteon: this command needs {missing.name}, which is not installed. Install Osteon with its extra "
                f"{extra}: osteon[{extra}] in place of osteon",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            errors.print("osteon: interrupted", markup=False)
            raise typer.Exit(130) from None

    return run


def line(text: str, style: str | None = None) -> None:
    """Print text as it is: no markup, and broken only where the terminal breaks it."""
    out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Print any JSON value, for scripts."""
    print(json.dumps(value, indent=1, default=str))


def progress(*, quiet: bool = False) -> Progress:
    """Bars on standard error, for people at a terminal only."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=errors, disable=quiet or not errors.is_terminal)


@contextmanager
def watching(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """How far a run is, on standard error: a bar at a terminal, elsewhere a line every few seconds.

    Yields what is to be told how many files are done.
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
    """A client of the API at `url`, or of the local stack's; role: whose key of that stack. Raises OsteonError."""
    from infra import state
    from infra.client import Client

    home = Settings().home.absolute()
    if key is None and url is not None:  # the local stack's keys are nobody else's business
        raise OsteonError("Give that API's key with OSTEON_KEY (or --key, which other users of this machine can see)")
    if url is None:
        url = state.environment(home)["OSTEON_API_URL"]
    key = key or state.read_secrets(home)["keys"][role]
    with Client(url, key) as client:
        yield client


def connected() -> Settings:
    """Settings with the URLs of the stack that runs here, or those of the environment. Raises OsteonError."""
    from infra import state

    if not {"OSTEON_DATABASE_URL", "OSTEON_STORE_URL"} <= os.environ.keys():
        os.environ |= state.environment(Settings().home)
    return Settings()
