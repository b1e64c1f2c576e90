"""What a site's results state, and as what its pictures are sent: show, choose."""

from typing import Annotated, Any

import typer

from infra.cli.terminal import Json, KeyOption, Url, calling, exit_codes, line, print_json
from shared.domain.results import CaptureModality

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
result_choices = typer.Typer(
    no_args_is_help=True,
    help="What the results of a site state, and as what its pictures are sent.\n\n"
    "A choice holds for results that are made from now on. A study's page makes former ones anew.",
)
app.add_typer(result_choices, name="result-choices")
PATH = "/api/v1/result-choices"


@result_choices.command()
@exit_codes
def show(url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Show what your site has chosen."""
    with calling(url, key, "admin") as client:
        _tell(client.get(PATH), as_json=as_json)


@result_choices.command()
@exit_codes
def choose(
    probability: Annotated[
        bool | None,
        typer.Option("--probability/--no-probability", help="state the calibrated probability beside the assessment"),
    ] = None,
    capture_modality: Annotated[
        CaptureModality | None,
        typer.Option(help="of Secondary Captures; some archives hide OT: then CR or DX", case_sensitive=False),
    ] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Choose from now on; what is not named stays as it was."""
    with calling(url, key, "admin") as client:
        now = client.get(PATH)
        if probability is not None:
            now["states_probability"] = probability
        if capture_modality is not None:
            now["capture_modality"] = capture_modality
        _tell(client.put(PATH, now), as_json=as_json)


def _tell(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    line(f"the calibrated probability is {'stated' if found['states_probability'] else 'not stated'}")
    line(f"pictures are sent as {found['capture_modality']}")
