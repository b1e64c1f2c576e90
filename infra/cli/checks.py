"""The daily check at once: check."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.text import Text

from infra.cli.terminal import Json, KeyOption, Url, calling, errors, exit_codes, line, out, print_json
from shared.domain.checks import ENDED, CheckState
from shared.errors import OsteonError

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
CODES = {CheckState.WELL: 0, CheckState.BROKEN: 1, CheckState.DRIFTED: 2, CheckState.BEHIND: 3}
STYLES = {"well": "green", "behind": "yellow"}
TAKEN_WITHIN_S = 60.0  # by the process of the check
POLL_S = 1.0


@app.command()
@exit_codes
def check(
    accept: Annotated[
        bool, typer.Option("--accept", help="expect what it finds from now on, whatever was expected before")
    ] = False,
    last: Annotated[bool, typer.Option("--last", help="print the check that ended last, and begin none")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Check the whole system now, as it does by itself once a day.

    A reference study is sent, analysed, its results are made and delivered to a receiver of the check, its findings are
    compared with those that are expected of this model on this engine, and it is deleted. No list and no count has it.

    Exit code 0: all is well; 1: something is broken; 2: the findings have drifted; 3: there is so much to do that its
    turn did not come in time. Needs an operator's key.
    """
    with calling(url, key, "operator") as client:
        found = _last(client) if last else None
        for now in [found] if found else _watched(client, accept=accept):
            if not as_json:
                _tell_steps(now, found)
            found = now
    assert found is not None
    if as_json:
        print_json(found)
    else:
        _tell_end(found)
    if code := CODES[CheckState(found["state"])]:
        raise typer.Exit(code)


def _last(client: Any) -> dict[str, Any]:  # noqa: ANN401 - infra.client.api, imported late
    listed = client.get("/api/v1/checks", limit=100)
    ended: dict[str, Any] | None = next((one for one in listed if one["state"] in ENDED), None)
    if ended is None:
        raise OsteonError("No check has ended yet: osteon check makes one now")
    return ended


def _watched(client: Any, *, accept: bool) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - infra.client.api
    """Ask for a check, and yield it whenever it is looked at, until it has ended."""
    now: dict[str, Any] = client.post("/api/v1/checks", {"accept": accept})
    path, until = f"/api/v1/checks/{now['id']}", time.monotonic() + TAKEN_WITHIN_S
    while True:
        yield now
        if now["state"] in ENDED:
            return
        if now["state"] == CheckState.ASKED and time.monotonic() > until:
            raise OsteonError("Nobody takes the check: look whether the process check runs, and its log")
        time.sleep(POLL_S)
        now = client.get(path)


def _tell_steps(now: dict[str, Any], before: dict[str, Any] | None) -> None:
    """Print the steps that are done since the last look."""
    printed = 0 if before is None or before is now else len(before["steps"])
    for step in now["steps"][printed:]:
        out.print(Text(f"{step['step']:10}", style="green").append(f"{step['seconds']:9.2f} s", style="default"))


def _tell_end(found: dict[str, Any]) -> None:
    state = found["state"]
    if found["probability_deviation"] is not None:
        line(
            f"deviation from what is expected of {found['model']} on {found['engine']}: probability "
            f"{found['probability_deviation']:.2g}, heatmap {found['heatmap_deviation']} of 255"
        )
    if found["learned"]:
        line(f"what was found is expected from now on of {found['model']} on {found['engine']}")
    text = f"{state} at {found['step']}: {found['detail']}" if found["detail"] else state
    (out if state == CheckState.WELL else errors).print(Text(text, style=STYLES.get(state, "bold red")), soft_wrap=True)
