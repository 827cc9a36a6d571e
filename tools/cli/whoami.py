"""`aimesh whoami`."""

from __future__ import annotations

from tools.cli.options import Json, StateDir


def whoami(as_json: Json = False, state_dir: StateDir = None) -> None:
    """Say as whom the mesh sees these commands, and what they may do.

    Example: [bold]AIMESH_API_KEY=... aimesh whoami[/bold]
    """
    from aimesh.identity.v1 import identity_pb2
    from meshkit.scopes import words
    from tools.cli.client import run
    from tools.cli.identity import call
    from tools.cli.output import console, print_json

    answer = run(call(state_dir, "WhoAmI", identity_pb2.WhoAmIRequest()))
    scopes = words(answer.scopes)
    if as_json:
        print_json({"actor": answer.actor, "scopes": scopes})
    else:
        console().print(f"{answer.actor}: {', '.join(scopes) or 'may do nothing but ask who it is'}")
