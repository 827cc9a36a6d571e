"""`aimesh`: every command in one place, and errors turned into one line and an exit code."""

from __future__ import annotations

import sys

import typer

from meshkit.errors import AimeshError
from tools.cli import cluster, demo, deployments, doctor, inference, models, roles
from tools.cli.output import report_error
from tools.local.groups import find_error

app = typer.Typer(
    name="aimesh",
    help="A gRPC mesh for AI on bare-metal GPU hosts. Start one on this machine: aimesh up --detach",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(rich_help_panel="The mesh")(cluster.up)
app.command(rich_help_panel="The mesh")(cluster.down)
app.command(rich_help_panel="The mesh")(cluster.status)
app.command(rich_help_panel="The mesh")(cluster.env)
app.command(rich_help_panel="The mesh")(doctor.doctor)
app.command(rich_help_panel="The mesh")(demo.demo)
app.add_typer(models.app, rich_help_panel="Models")
app.command(rich_help_panel="Models")(deployments.deploy)
app.command(rich_help_panel="Models")(deployments.undeploy)
app.command(rich_help_panel="Ask a model")(inference.infer)
app.command(rich_help_panel="Ask a model")(inference.chat)
app.command(rich_help_panel="Ask a model")(inference.embed)
app.command(rich_help_panel="Long-lived processes")(roles.agent)
app.command(rich_help_panel="Long-lived processes")(roles.coordinator)
app.command(rich_help_panel="Long-lived processes")(roles.gateway)


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
