"""Kinds of objects that a site refuses: show, choose, follow the installation."""

from typing import Annotated, Any

import typer

from infra.cli.terminal import Json, KeyOption, Url, calling, exit_codes, line, print_json
from shared.domain.study import StoredOnly

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
refused_kinds = typer.Typer(
    no_args_is_help=True,
    help="Kinds of objects that a site refuses, in place of keeping them without analysis.\n\n"
    "A site that has not chosen refuses those of OSTEON_REFUSED_KINDS. The sender is told, with failure reason 0122.",
)
app.add_typer(refused_kinds, name="refused-kinds")
PATH = "/api/v1/refused-kinds"


@refused_kinds.command()
@exit_codes
def show(url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Show what your site refuses, and what can be refused."""
    with calling(url, key, "admin") as client:
        _tell(client.get(PATH), as_json=as_json)


@refused_kinds.command()
@exit_codes
def choose(
    kinds: Annotated[list[StoredOnly] | None, typer.Argument(help="what to refuse; nothing: keep all")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Let your site refuse these kinds from now on, and keep all others. What was stored before stays."""
    with calling(url, key, "admin") as client:
        _tell(client.put(PATH, {"kinds": kinds or []}), as_json=as_json)


@refused_kinds.command()
@exit_codes
def reset(url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Let your site follow OSTEON_REFUSED_KINDS again."""
    with calling(url, key, "admin") as client:
        _tell(client.put(PATH, {"kinds": None}), as_json=as_json)


def _tell(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    source = "as OSTEON_REFUSED_KINDS says" if found["kinds"] is None else "as your site has chosen"
    line(f"refused, {source}: {', '.join(found['in_force']) or 'nothing'}")
    line(f"kept: {', '.join(kind for kind in found['possible'] if kind not in found['in_force']) or 'nothing'}")
