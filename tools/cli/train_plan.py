"""`aimesh train plan` and `train strategy explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aimesh.training.v1 import training_pb2

strategy = typer.Typer(name="strategy", help="What the mesh has learned of strategies.", no_args_is_help=True)


def plan(
    job: Annotated[Path, typer.Argument(metavar="job.toml", help="The job's file.")],
    nodes: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Plan for so many nodes, all alike, without any mesh.")
    ] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Show what a job is and how it would be shared out, without running it: its model, needs, every strategy, shares.

    With a mesh at hand for its nodes and what it has learned, else for as many nodes as the job asks for. The job's
    code runs on this machine to look at the model.

    Example: [bold]aimesh train plan training/examples/ddp.toml --nodes 4[/bold]
    """
    from tools.cli.output import console, print_json, progress_console
    from tools.training.jobfile import read_job
    from tools.training.pack import Packed, pack
    from tools.training.plan_view import planned, planned_json
    from tools.training.planning import alike, plan_here

    packed = pack(read_job(job))
    packed = Packed(_checked(packed.spec), packed.paths, packed.contents)
    found, table = _mesh(state_dir, packed.spec.resources.gpus) if nodes is None else (alike(nodes), None)
    with progress_console().status("looking at the job") as showing:
        made = plan_here(packed, found, table, lambda what: showing.update(what))
    if as_json:
        print_json(planned_json(made))
    else:
        console().print(planned(made))


@strategy.command()
def explain(as_json: Json = False, state_dir: StateDir = None) -> None:
    """Show what finished jobs have taught: what each strategy is worth where, and from how many jobs that is known.

    Example: [bold]aimesh train strategy explain[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh
    from tools.cli.train_client import strategies
    from tools.training.plan_view import learned, learned_json

    table = run(strategies(find_mesh(state_dir)))
    if as_json:
        print_json(learned_json(table))
    else:
        console().print(learned(table))


def _checked(spec: training_pb2.JobSpec) -> training_pb2.JobSpec:
    """With its defaults, as SubmitJob fills them in. Raises InvalidInputError."""
    from coordinator.training.check import check_job

    return check_job(spec)


def _mesh(state_dir: Path | None, gpus: int) -> tuple[Sequence[training_pb2.Worker], training_pb2.StrategyTable | None]:
    """Nodes with what is free there for a worker with so many GPUs, and what was learned, of a mesh that answers.

    Without one, none: said on standard error. Raises UnavailableError when a mesh was named that is not there.
    """
    from aimesh.training.v1 import training_pb2
    from meshkit.errors import UnavailableError
    from tools.cli.client import run
    from tools.cli.output import progress_console
    from tools.cli.status_command import get_status
    from tools.cli.target import find_mesh
    from tools.cli.train_client import list_jobs, strategies
    from tools.training.planning import nodes_of

    try:
        mesh = find_mesh(state_dir)
        jobs = [each.job for each in run(list_jobs(mesh, [training_pb2.JOB_STATE_RUNNING]))]
        found = nodes_of(run(get_status(mesh)), jobs, gpus)
        table = run(strategies(mesh))
    except UnavailableError as error:
        if state_dir is not None:
            raise
        progress_console().print(f"Planned without a mesh ({error.message}); --nodes N plans for N nodes.", style="dim")
        return [], None
    if not found:
        progress_console().print("No node of the mesh has torch and is ready: planned for nodes alike.", style="dim")
    return found, table
