"""The `osteon` command: everything a person does with Osteon, one verb each."""

from typing import Annotated

import typer

from infra.cli import backtest, bundles, ledger, models, operating, reading, sending, stack
from shared import __version__
from shared.findings import RESEARCH_USE

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Osteon reads bone radiographs in batches. {RESEARCH_USE}",
)
for room in (stack, sending, reading, ledger, operating, bundles, models, backtest):
    app.add_typer(room.app)


def _say_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it
    if wanted:
        print(f"osteon {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    _version: Annotated[  # typer acts on it by the callback
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point of the `osteon` command."""
    app()
