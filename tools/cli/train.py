"""`aimesh train`: jobs on the mesh's own machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir
from tools.cli.train_plan import plan, strategy
from tools.cli.train_results import logs, results
from tools.cli.train_tune import tune

if TYPE_CHECKING:
    from aimesh.training.v1 import training_pb2
    from tools.cli.target import Mesh
    from tools.cli.train_client import Verb

app = typer.Typer(name="train", help="Train models on the mesh's machines.", no_args_is_help=True)

JobPath = Annotated[
    Path, typer.Argument(metavar="job.toml", help="The job; training/examples/full.toml has every key.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as aimesh train list shows it.")]
Reason = Annotated[str, typer.Option(help="Why; kept with the decision.")]


@app.command()
def submit(
    job: JobPath,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow it to its end; exit code 5 if it fails.")
    ] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Upload what a job needs and let it wait for its turn. It goes on by itself.

    With --json, {"job": id}; with --watch as well, its status once it has ended.

    Example: [bold]aimesh train submit training/examples/ddp.toml --watch[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh
    from tools.cli.train_client import submit as send
    from tools.cli.train_upload import upload
    from tools.training.jobfile import read_job
    from tools.training.pack import pack

    packed = pack(read_job(job))
    mesh = find_mesh(state_dir)
    upload(mesh, packed)
    made = run(send(mesh, packed.spec))
    if watch:
        _watch_new(mesh, made, as_json=as_json)
    elif as_json:
        print_json({"job": made.id})
    else:
        console().print(f"Submitted {made.id}. Next: aimesh train status {made.id} --watch")


@app.command("list")
def list_(
    state: Annotated[
        list[str] | None, typer.Option(metavar="STATE", help="Only these: pending, running, paused, succeeded, failed.")
    ] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """List all jobs, newest first.

    Example: [bold]aimesh train list --state running[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh
    from tools.cli.train_client import list_jobs
    from tools.training.status import status_json
    from tools.training.view import listed

    found = run(list_jobs(find_mesh(state_dir), _states(state or [])))
    if as_json:
        print_json([status_json(each.job, each.progress) for each in found])
    elif found:
        console().print(listed(found))
    else:
        console().print("No jobs yet: aimesh train submit training/examples/ddp.toml")


@app.command()
def status(
    job: JobId,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it as it goes on, until it has ended.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Show a job: progress, loss, speed, who works where, and why it waits or failed.

    With --watch and --json, one document a line. With --watch, exit code 5 when it failed.

    Example: [bold]aimesh train status digits-abc123 --watch[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh
    from tools.cli.train_client import get_job
    from tools.cli.train_follow import follow_json, follow_live
    from tools.training.status import status_json
    from tools.training.view import shown

    mesh = find_mesh(state_dir)
    if watch:
        (follow_json if as_json else follow_live)(mesh, job)
        return
    found = run(get_job(mesh, job))
    if as_json:
        print_json(status_json(found.job, found.progress))
    else:
        console().print(shown(found.job, found.progress))


@app.command()
def pause(job: JobId, reason: Reason = "", as_json: Json = False, state_dir: StateDir = None) -> None:
    """Let a job write a checkpoint and give its nodes free.

    Example: [bold]aimesh train pause digits-abc123 --reason "the nodes are needed until noon"[/bold]
    """
    _steer("pause", job, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def resume(job: JobId, reason: Reason = "", as_json: Json = False, state_dir: StateDir = None) -> None:
    """Let a paused job wait for its turn again; it goes on at the sample at which it stopped.

    Example: [bold]aimesh train resume digits-abc123[/bold]
    """
    _steer("resume", job, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def cancel(job: JobId, reason: Reason = "", as_json: Json = False, state_dir: StateDir = None) -> None:
    """End a job for good. Its checkpoints and logs stay on their nodes for some days.

    Example: [bold]aimesh train cancel digits-abc123 --reason "wrong data"[/bold]
    """
    _steer("cancel", job, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def rm(job: JobId, state_dir: StateDir = None) -> None:
    """Remove a job that has ended. The model that it made stays; its logs and checkpoints go from the nodes soon after.

    Example: [bold]aimesh train rm digits-abc123[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console
    from tools.cli.target import find_mesh
    from tools.cli.train_client import delete_job

    run(delete_job(find_mesh(state_dir), job))
    console().print(f"Removed {job}.")


app.command()(logs)
app.command()(results)
app.command()(plan)
app.add_typer(strategy)
app.add_typer(tune)


def _watch_new(mesh: Mesh, made: training_pb2.Job, *, as_json: bool) -> None:
    from meshkit.errors import PreconditionError
    from tools.cli.output import print_json
    from tools.cli.train_follow import follow_live, follow_quietly
    from tools.training.status import status_json

    if not as_json:
        follow_live(mesh, made.id)
        return
    last = follow_quietly(mesh, made.id)
    found = status_json(last.job, last.progress)
    print_json(found)
    if found["state"] == "FAILED":
        raise SystemExit(PreconditionError.exit_code)


def _states(names: list[str]) -> list[training_pb2.JobState.ValueType]:
    from aimesh.training.v1 import training_pb2
    from meshkit.errors import InvalidInputError
    from tools.training.values import words

    known = words(training_pb2.JobState.DESCRIPTOR)
    for name in names:
        if name.lower() not in known:
            raise InvalidInputError(f"--state {name!r} is no state of a job", hint=f"one of {', '.join(known)}")
    return [training_pb2.JobState.Value(known[name.lower()]) for name in names]


def _steer(verb: Verb, job: str, reason: str, *, as_json: bool, state_dir: Path | None) -> None:
    from aimesh.training.v1 import training_pb2
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh
    from tools.cli.train_client import steer
    from tools.training.status import status_json
    from tools.training.view import headline

    found = run(steer(find_mesh(state_dir), verb, job, reason))
    if as_json:
        print_json(status_json(found, training_pb2.JobProgress(step=found.step, steps=found.plan.steps)))
    else:
        console().print(headline(found))
