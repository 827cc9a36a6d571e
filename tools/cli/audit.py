"""`aimesh audit list | verify | export`: who changed what."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from collections.abc import Callable

    from aimesh.identity.v1 import identity_pb2

app = typer.Typer(name="audit", help="Who changed what.", no_args_is_help=True)

VERIFY_TIMEOUT_S = 600.0

Target = Annotated[str, typer.Option(help="Only changes of keys that begin so: deployments/, models/, keys/ ...")]
Actor = Annotated[str, typer.Option(help="Only changes by this one: key:ci, admin:admin ...")]


@app.command(name="list")
def list_(target: Target = "", actor: Actor = "", as_json: Json = False, state_dir: StateDir = None) -> None:
    """List changes, oldest first.

    Example: [bold]aimesh audit list --target deployments/smollm2[/bold]
    """
    from rich.table import Table

    from tools.cli.output import console, print_json
    from tools.cli.plain import plain

    found: list[identity_pb2.AuditEvent] = []
    warning = _each(state_dir, target, actor, found.append)
    if as_json:
        print_json([plain(event) for event in found])
    else:
        table = Table("number", "when", "who", "what", "on", "from", box=None)
        for column in table.columns:
            column.overflow = "fold"  # names are to be copied
        for event in found:
            when = event.at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
            what = event.action.rpartition("/")[2]
            table.add_row(str(event.sequence or "-"), when, event.actor, what, event.target, event.peer)
        console().print(table if found else "No change was made yet.")
    _warn(warning)


@app.command()
def export(target: Target = "", actor: Actor = "", state_dir: StateDir = None) -> None:
    """Print the whole log as lines of JSON, with every event's value before and after, and its hash.

    Example: [bold]aimesh audit export > audit.jsonl[/bold]
    """
    from tools.cli.plain import plain

    _warn(_each(state_dir, target, actor, lambda event: print(json.dumps(plain(event)), file=sys.stdout)))


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(help="An export of the whole log; the mesh's own log when not given.")
    ] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Check that no event was changed, removed or put in. Exit code 9 names the first that does not fit.

    The last hash, kept elsewhere, tells later whether the log was cut off or written anew.

    Example: [bold]aimesh audit verify[/bold]
    """
    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import call
    from tools.cli.output import console, print_json

    if file is not None:
        answer = _verify_file(file)
    else:
        answer = run(call(state_dir, "VerifyAudit", identity_pb2.VerifyAuditRequest(), VERIFY_TIMEOUT_S))
    if as_json:
        print_json({"events": answer.events, "last_hash": answer.last_hash, "warning": answer.warning})
    else:
        console().print(f"{answer.events} events, none changed, removed or put in. Last hash {answer.last_hash}.")
    _warn(answer.warning)


def _each(state_dir: Path | None, target: str, actor: str, take: Callable[[identity_pb2.AuditEvent], object]) -> str:
    """Hands every event on; why the log may not be whole."""
    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import pages

    warning = ""

    async def page(answer: identity_pb2.ListAuditEventsResponse) -> None:
        nonlocal warning
        warning = answer.warning
        for event in answer.events:
            take(event)

    request = identity_pb2.ListAuditEventsRequest(page_size=1000, target_prefix=target, actor=actor)
    run(pages(state_dir, "ListAuditEvents", request, page))
    return warning


def _verify_file(file: Path) -> identity_pb2.VerifyAuditResponse:
    from google.protobuf import json_format

    from aimesh.identity.v1 import identity_pb2
    from coordinator.identity.chain import verify as verify_chain
    from meshkit.errors import InvalidInputError, NotFoundError

    try:
        lines = file.read_text().splitlines()
        events = [json_format.Parse(line, identity_pb2.AuditEvent()) for line in lines]
    except OSError as error:
        raise NotFoundError(f"cannot read {file}: {error.strerror}") from None
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} is no export of the audit log: {error}", hint="aimesh audit export") from None
    waiting = [event for event in events if not event.sequence]
    head = verify_chain(event for event in events if event.sequence)
    warning = f"{len(waiting)} events at the end were not in the log yet" if waiting else ""
    return identity_pb2.VerifyAuditResponse(events=head.sequence, last_hash=head.hash, warning=warning)


def _warn(warning: str) -> None:
    from tools.cli.output import progress_console

    if warning:
        progress_console().print(f"warning: {warning}", soft_wrap=True)
