"""Commands of an administrator: release, quarantine, delete, activate, events."""

import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from infra.cli.terminal import Json, KeyOption, Url, calling, exit_codes, line, out, print_json, stored_bundle
from shared.domain.deletion import MAX_NOTE_LENGTH, DeletionReason
from shared.domain.security import EventKind
from shared.errors import OsteonError, Unavailable

# ruff: noqa: FBT002 - whoever calls a command names its options

app = typer.Typer()


@app.command()
@exit_codes
def release(
    studies: Annotated[
        list[str], typer.Argument(help="ids of studies, as worklist and logs show them; first digits are enough")
    ],
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Try quarantined studies again, and images that broke their decoder, with all attempts.

    Exit code 1 if one could not be released.
    """
    released, refused = [], {}
    with calling(url, key, "admin") as client:
        for study in studies:
            try:
                released.append(client.release(study)["id"])
            except Unavailable:
                raise
            except OsteonError as error:
                refused[study] = str(error)
    if as_json:
        print_json({"released": released, "refused": refused})
    else:
        out.print(f"{len(released)} released")
        for study_id, why in refused.items():
            line(f"not released {study_id}: {why}")
    if refused:
        raise typer.Exit(1)


quarantine = typer.Typer(no_args_is_help=True, help="Studies that were set aside: list, dismiss, delete them.")
app.add_typer(quarantine, name="quarantine")
Reason = Annotated[str, typer.Option(help="why; it is kept on record, encrypted")]
Study = Annotated[str, typer.Argument(help="a study's id, or its first digits")]


@quarantine.command("list")
@exit_codes
def list_quarantine(
    limit: Annotated[int, typer.Option(min=1, max=500, help="studies to print")] = 50,
    after: Annotated[str | None, typer.Option(help="the `next` of the page before")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """List the studies in quarantine that were not dismissed, the latest first, each with its reason."""
    with calling(url, key, "admin") as client:
        page = client.get("/api/v1/quarantine", limit=limit, after=after)
    if as_json:
        print_json(page)
        return
    if not page["studies"]:
        line("Nothing is in quarantine.")
        return
    table = Table("study", "since", "attempts", "images", "reason", box=box.SIMPLE_HEAD)
    for one in page["studies"]:
        since = (one["since"] or "")[:16].replace("T", " ")
        table.add_row(*map(Text, (one["id"][:8], since, str(one["attempts"]), str(one["images"]), _words(one))))
    out.print(table)
    if page["next"]:
        line(f"more: osteon quarantine list --after {page['next']}")


def _words(one: dict[str, Any]) -> str:
    """Give the sentence on why a study was set aside; an API of before 0019 gave it as the reason."""
    return str(one.get("detail") or one["reason"])


@quarantine.command()
@exit_codes
def dismiss(study: Study, reason: Reason, url: Url = None, key: KeyOption = None, as_json: Json = False) -> None:
    """Take a study out of the quarantine and the worklist, without analysing it."""
    _decide("dismiss", study, reason, url, key, as_json=as_json)


@quarantine.command()
@exit_codes
def delete(
    study: Study,
    reason: Reason,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Delete a study that was set aside, with the patient's identity. Only sending it again brings it back."""
    _sure(f"Delete study {study} for good?", yes=yes)
    _decide("delete", study, reason, url, key, as_json=as_json)


def _decide(what: str, study: str, reason: str, url: str | None, key: str | None, *, as_json: bool) -> None:
    with calling(url, key, "admin") as client:
        response = client.post(f"/api/v1/quarantine/{quote(study, safe='')}/{what}", {"reason": reason})
    print_json(response) if as_json else line(f"{response['id']} {response['decision']}")


@app.command("delete")
@exit_codes
def delete_for_good(
    study: Study,
    reason: Annotated[DeletionReason, typer.Option(help="why, a code; it stays on record")],
    note: Annotated[
        str, typer.Option(help=f"more of why, at most {MAX_NOTE_LENGTH} characters; name no patient in it")
    ] = "",
    image: Annotated[
        str | None, typer.Option(help="only the image with this SOP Instance UID; of a study's only one the study")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Delete a study for good, or one image of it: rows, identity, findings, pictures, and later the stored bytes.

    Readers' feedback stays in its log without its words; bytes that another study or site holds too stay.
    Sending it again takes it in again. Asks first; where nobody can be asked it does nothing without --yes, and ends
    with 2. Needs an admin's key.
    """
    _sure(f"Delete {f'an image of study {study}' if image else f'study {study}'} for good?", yes=yes)
    path = f"/api/v1/studies/{quote(study, safe='')}" + (f"/images/{quote(image, safe='')}" if image else "")
    with calling(url, key, "admin") as client:
        response = client.delete(path, {"reason": reason}, {"note": note})
    if as_json:
        print_json(response)
    else:
        what = "deleted" if response["whole"] else "has lost an image, and is summed up again"
        kept = (
            f"; {response['feedback_entries']} feedback entries stay, without words"
            if response["feedback_entries"]
            else ""
        )
        line(f"{response['id']} {what}{kept}")


def _sure(question: str, *, yes: bool) -> None:
    """Ask for a yes unless it was given before. End the command where the answer is no, or nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody can be asked here; add --yes if you mean it", param_hint="--yes")
    typer.confirm(question, abort=True, err=True)


@app.command()
@exit_codes
def activate(
    bundle: Annotated[str, typer.Argument(help="a bundle file, as `osteon export` writes it, or a stored one's name")],
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Store a bundle and make it the active one; workers use it at once, backfill runs analyse history again.

    Give the name of a shadow to promote it: backfill runs then use its findings, without decoding an image. The API
    checks a file against its digest and its own manifest before anything is changed.
    """
    with calling(url, key, "operator") as client:
        name = stored_bundle(client, bundle)
        client.post(f"/api/v1/bundles/{quote(name, safe='')}/activate")
    print_json({"active": name}) if as_json else line(f"{name} is active")


@app.command()
@exit_codes
def events(
    kind: Annotated[
        list[EventKind] | None,
        typer.Option(help=f"only of this kind, one of: {', '.join(EventKind)}; may be repeated", metavar="KIND"),
    ] = None,
    actor: Annotated[str, typer.Option(help="only by this actor: a key's name, or e.g. system:beat")] = "",
    subject: Annotated[
        str, typer.Option(help="only about this: a model's name, a setting, or an id (a study's first digits will do)")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="events to print")] = 50,
    before: Annotated[int | None, typer.Option(min=1, help="the `next` of the page before")] = None,
    url: Url = None,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Who did what, the latest first: models, keys, settings, releases, decisions, deletions, exports, logins.

    Each line says when (UTC), who, what, and what changed from what to what. Events are never changed or removed. An
    admin's key is shown those of its site, an operator's all. What Osteon does by itself is done by system:beat (the
    schedule), system:sweeper (a worker), system:prepare (at its start) or system:migration (at an update).

    Who activated a model, and when:  osteon events --kind model-activated

    All that was done to a study:  osteon events --subject 1a2b3c4d
    """
    filters: dict[str, Any] = {"kind": kind or None, "actor": actor or None, "subject": subject or None}
    with calling(url, key, "operator") as client:
        page = client.get("/api/v1/audit-events", limit=limit, before=before, **filters)
    if as_json:
        print_json(page)
        return
    if not page["events"]:
        line("No such event.")
        return
    table = Table("time (UTC)", "who", "what", "changed", "about", "site", "from", box=box.SIMPLE_HEAD)
    for one in page["events"]:
        changed = "; ".join(
            f"{each['name']}: {_shown(each['before'])} -> {_shown(each['after'])}" for each in one["changes"]
        )
        about = one["subject_id"] or one["study_id"] or ""
        cells = (
            one["at"][:19].replace("T", " "), one["actor"] or "unknown", one["words"], changed, about,
            one["site"] or "", one["address"],
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    out.print(table)
    if page["next"]:
        line(f"more: --before {page['next']}")


def _shown(value: str | None) -> str:
    return "none" if value is None else value
