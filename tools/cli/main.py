"""`aimesh`: every command in one place, and errors turned into one line and an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from meshkit.errors import AimeshError
from tools.cli import (
    audit,
    ca,
    cluster,
    demo,
    deployments,
    doctor,
    enroll,
    experiments,
    inference,
    install,
    keys,
    models_catalog,
    nodes,
    prompts,
    roles,
    rollout,
    routes,
    simulate,
    tokens,
    train,
    trust,
    whoami,
)
from tools.cli.output import report_error
from tools.local.groups import find_error

app = typer.Typer(
    name="aimesh",
    help="A gRPC mesh for AI on bare-metal GPU hosts. Start one on this machine: aimesh up --detach",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def common(
    tls_dir: Annotated[
        Path | None,
        typer.Option(
            "--tls-dir",
            metavar="DIR",
            help="Show the certificate in DIR (ca.pem, cert.pem, key.pem) to the mesh. "
            "Otherwise $AIMESH_TLS_DIR, or $AIMESH_TLS_CA, $AIMESH_TLS_CERT and $AIMESH_TLS_KEY; "
            "an API key goes into $AIMESH_API_KEY.",
        ),
    ] = None,
) -> None:
    """A gRPC mesh for AI on bare-metal GPU hosts. Start one on this machine: aimesh up --detach."""
    if tls_dir is not None:
        os.environ["AIMESH_TLS_DIR"] = str(tls_dir)


app.command(rich_help_panel="The mesh")(cluster.up)
app.command(rich_help_panel="The mesh")(cluster.down)
app.command(rich_help_panel="The mesh")(cluster.status)
app.command(rich_help_panel="The mesh")(cluster.env)
app.command(rich_help_panel="The mesh")(nodes.drain)
app.command(rich_help_panel="The mesh")(nodes.undrain)
app.add_typer(nodes.app, rich_help_panel="The mesh")
app.command(rich_help_panel="The mesh")(doctor.doctor)
app.command(rich_help_panel="The mesh")(demo.demo)
app.command(rich_help_panel="The mesh")(simulate.simulate)
app.add_typer(models_catalog.app, rich_help_panel="Models")
app.add_typer(prompts.app, rich_help_panel="Models")
app.command(rich_help_panel="Models")(deployments.deploy)
app.command(rich_help_panel="Models")(deployments.undeploy)
app.add_typer(routes.app, rich_help_panel="Models")
app.add_typer(rollout.app, rich_help_panel="Models")
app.add_typer(experiments.app, rich_help_panel="Models")
app.add_typer(train.app, rich_help_panel="Models")
app.command(rich_help_panel="Ask a model")(inference.infer)
app.command(rich_help_panel="Ask a model")(inference.chat)
app.command(rich_help_panel="Ask a model")(inference.embed)
app.add_typer(ca.app, rich_help_panel="Who may do what")
app.command(rich_help_panel="Who may do what")(enroll.enroll)
app.add_typer(tokens.app, rich_help_panel="Who may do what")
app.add_typer(keys.app, rich_help_panel="Who may do what")
app.command(rich_help_panel="Who may do what")(whoami.whoami)
app.add_typer(trust.app, rich_help_panel="Who may do what")
app.add_typer(audit.app, rich_help_panel="Who may do what")
app.command(rich_help_panel="Long-lived processes")(roles.agent)
app.command(rich_help_panel="Long-lived processes")(roles.coordinator)
app.command(rich_help_panel="Long-lived processes")(roles.gateway)
app.command(rich_help_panel="Long-lived processes")(install.install)


def main() -> None:
    """The entry point. An AimeshError is one clear line and its exit code; anything else keeps its traceback."""
    try:
        app()
    except AimeshError as error:
        raise SystemExit(report_error(error, as_json="--json" in sys.argv)) from None
    except BaseExceptionGroup as group:
        found = find_error(group)
        if found is None:
            raise
        raise SystemExit(report_error(found, as_json="--json" in sys.argv)) from None


if __name__ == "__main__":
    main()
