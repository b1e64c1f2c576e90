"""The self-test of a deployment: conformance."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from infra.cli.terminal import Json, KeyOption, Url, calling, errors, exit_codes, line, out, print_json
from shared.domain.peers import OUR_TITLE
from shared.errors import OsteonError

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()
STYLES = {"passed": "green", "failed": "bold red", "not-run": "yellow"}


@app.command()
@exit_codes
def conformance(
    dicom: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="the DICOM listener, without TLS; default: not tried")
    ] = None,
    tls: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="the DICOM listener's port for TLS; default: not tried")
    ] = None,
    tls_ca: Annotated[
        str | None, typer.Option(help="file in PEM with the authority of its certificate; default: the system's")
    ] = None,
    calling_ae: Annotated[
        str, typer.Option("--calling", help="AE title to call by; it must be admitted as a DICOM peer")
    ] = "OSTEON-TEST",
    called: Annotated[str, typer.Option("--called", help="AE title of the listener")] = OUR_TITLE,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Try a deployment's DICOM services as senders and viewers do: C-ECHO, C-STORE, STOW-RS, QIDO-RS, WADO-RS, TLS.

    It sends two made-up images of a made-up patient, with an admin's key, and deletes them at its end; it lists what it
    cannot delete. For C-STORE admit its AE title first: let it run once, then osteon peers admit OSTEON-TEST.
    Exit code 0: nothing failed; 1: something did. What was not tried is listed, and is no failure.
    """
    from infra.conformance import Check, Outcome, SelfTest, Target

    def tell(check: Check) -> None:
        if not as_json:
            words = Text(f"{check.outcome.value:8}", style=STYLES[check.outcome.value])
            words.append(f"  {check.area}: {check.name}", style="default")
            out.print(words.append(f"  ({check.detail})" if check.detail else "", style="default"), soft_wrap=True)

    with calling(url, key, "admin") as client:
        target = Target(
            client.url, client.key, _place("--dicom", dicom), _place("--tls", tls), tls_ca, calling_ae, called
        )
    report = SelfTest(target, tell).run()
    if as_json:
        print_json({"passed": report.passed, "checks": [asdict(one) for one in report.checks], "left": report.left})
    else:
        count = {one: sum(check.outcome is one for check in report.checks) for one in Outcome}
        counts = ", ".join(f"{number} {outcome.value}" for outcome, number in count.items())
        line(f"\n{counts}", style="bold")
        line("What stays, because nothing deletes it:")
        for text in report.left:
            line(f"  {text}")
    if not report.passed:
        errors.print("osteon: the deployment does not do what its conformance statement says", markup=False)
        raise typer.Exit(1)


def _place(option: str, text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise OsteonError(f"Give {option} as HOST:PORT, such as osteon.example:11112")
    return host.strip("[]"), int(port)
