"""`aimesh train plan` and `train strategy explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aimesh.training.v1 import training_pb2
    from tools.training.planning import Planned

strategy = typer.Typer(name="strategy", help="What the mesh has learned of strategies.", no_args_is_help=True)


def plan(
    job: Annotated[
        Path | None, typer.Argument(metavar="[job.toml]", show_default=False, help="The job's file.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Plan for so many nodes, all alike, without any mesh.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Plan by a model's file or folder in place of the job's code: nothing is loaded or run."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="With --model: samples to learn from.")] = 10_000,
    workers: Annotated[
        int | None, typer.Option(min=1, max=4096, help="With --model: most workers; 4, or what the job says.")
    ] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Show what a job is and how it would be shared out, without running it: its model, needs, every strategy, shares.

    With a mesh at hand for its nodes and what it has learned, else for as many nodes as the job asks for. The job's
    code runs on this machine to look at the model.

    With [bold]--model[/bold] a file says what the model is (a torch.export program, a state dict, safetensors, GGUF,
    ONNX, or a folder of them): its profile, its size class, what it needs, and how it can be shared out; the job's file
    may be left out.

    Example: [bold]aimesh train plan training/examples/ddp.toml --nodes 4[/bold]

    Example: [bold]aimesh train plan --model model.safetensors --samples 100000 --workers 8[/bold]
    """
    from meshkit.errors import InvalidInputError
    from tools.cli.output import console, print_json, progress_console
    from tools.training.jobfile import read_job
    from tools.training.pack import Packed, pack
    from tools.training.plan_view import planned, planned_json
    from tools.training.planning import alike, plan_here

    if model is not None:
        made = _by_file(model, job, samples, workers, nodes)
        console().print(planned(made)) if not as_json else print_json(planned_json(made))
        return
    if job is None:
        raise InvalidInputError(
            "neither a job nor a model is named", hint="aimesh train plan job.toml, or --model FILE"
        )
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


def _by_file(model: Path, job: Path | None, samples: int, workers: int | None, nodes: int | None) -> Planned:
    """The plan of a job with a model's file in place of its code; without a job, of one that says nothing else."""
    from aimesh.training.v1 import training_pb2
    from tools.training.jobfile import read_job
    from tools.training.pack import pack
    from tools.training.planning import alike, plan_model

    spec = training_pb2.JobSpec(name=model.name, epochs=1) if job is None else _checked(pack(read_job(job)).spec)
    most = workers or (max(spec.resources.max_workers, spec.resources.min_workers) if job is not None else 4)
    spec.resources.max_workers = most
    spec.resources.min_workers = min(spec.resources.min_workers, most)
    return plan_model(model, spec, samples, alike(nodes or most))


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
