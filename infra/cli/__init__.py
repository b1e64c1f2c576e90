"""The `osteon` command: everything a person does with Osteon, one verb each."""

from typing import Annotated

import typer

from infra.cli import (
    backtest,
    bundles,
    checks,
    conformance,
    destinations,
    feedback,
    keys,
    models,
    operating,
    peers,
    reading,
    refused_kinds,
    result_choices,
    sending,
    stack,
)
from shared import __version__
from shared.domain.findings import RESEARCH_USE

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Osteon reads bone radiographs in batches. {RESEARCH_USE}",
)
GROUPS = (
    stack, sending, reading, feedback, operating, keys, peers, destinations, refused_kinds, result_choices,
    conformance, checks, bundles, models, backtest,
)  # fmt: skip
for group in GROUPS:
    app.add_typer(group.app)


def _say_version(show: bool) -> None:  # noqa: FBT001 - typer calls it
    if show:
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
