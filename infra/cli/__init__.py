"""The `osteon` command: everything a person does with Osteon, one verb each."""

import typer

from infra.cli import backtest, bundles, ledger, models, operating, reading, sending, stack
from shared.findings import RESEARCH_USE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Osteon reads bone radiographs in batches. {RESEARCH_USE}",
)
for room in (stack, sending, reading, ledger, operating, bundles, models, backtest):
    app.add_typer(room.app)


def main() -> None:
    """The entry point of the `osteon` command."""
    app()
