"""`aimesh ca revoke | revoked`: certificates that coordinators take no longer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tools.cli.options import Json, StateDir


def revoke(
    role: Annotated[str, typer.Argument(help="node, coordinator, gateway, client or admin.")],
    name: Annotated[str, typer.Argument(help="Its id, as in aimesh ca show: spiffe://aimesh/ROLE/NAME.")],
    force: Annotated[bool, typer.Option("--force", help="Also the certificate that this call is made with.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Revoke the certificates that a machine, program or person has by now. New ones to the same name are taken.

    Coordinators refuse them within a second, renewals too, and end the streams that run with them. Tritons and etcd
    check certificates themselves and know no revocations: see docs/operations/identity.md.

    Example: [bold]aimesh ca revoke node gpu-7[/bold]
    """
    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import call
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain

    request = identity_pb2.RevokeCertificatesRequest(role=role, id=name, force=force)
    made = plain(run(call(state_dir, "RevokeCertificates", request)).revocation)
    if as_json:
        print_json(made)
        return
    console().print(
        f"Coordinators take no certificate of {role} {name} that was issued by {made['revoked_at']}.\n"
        f"{_not_reached(role)}\n"
        f"Next, to let it back in: aimesh ca issue {role} {name}",
        soft_wrap=True,
    )


def revoked(as_json: Json = False, state_dir: StateDir = None) -> None:
    """List whose certificates were revoked, and when.

    Example: [bold]aimesh ca revoked --json | jq '.[] | select(.role == "node").id'[/bold]
    """
    from rich.table import Table

    from aimesh.identity.v1 import identity_pb2
    from tools.cli.client import run
    from tools.cli.identity import pages
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain

    found: list[dict[str, Any]] = []

    async def take(answer: identity_pb2.ListRevocationsResponse) -> None:
        found.extend(plain(made) for made in answer.revocations)

    run(pages(state_dir, "ListRevocations", identity_pb2.ListRevocationsRequest(page_size=1000), take))
    if as_json:
        print_json(found)
        return
    table = Table("role", "name", "issued until", "revoked by", box=None)
    for made in found:
        table.add_row(made["role"], made["id"], made["revoked_at"], made["revoked_by"])
    console().print(table if found else "No certificates are revoked. Revoke some: aimesh ca revoke ROLE NAME")


def _not_reached(role: str) -> str:
    """What who has a revoked certificate can still do until it ends."""
    models = "Until they end, Tritons still take them: whoever has one and reaches a Triton can ask its models"
    if role == "coordinator":
        return (
            f"{models}, and etcd takes them, which is everything; callers take them for a coordinator. "
            "When the key may be in other hands, make new authorities: docs/operations/rotate-certificates.md"
        )
    if role in ("node", "gateway"):
        return f"{models}; and callers take them for that {role} at its addresses. Close these in the firewall."
    return f"{models}. Close the machine's address in the firewall."
