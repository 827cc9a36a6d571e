"""`aimesh train logs` and `train results`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from aimesh.training.v1 import training_pb2
    from tools.cli.target import Mesh

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as aimesh train list shows it.")]


def logs(
    job: JobId,
    rank: Annotated[int | None, typer.Option(min=0, help="Only of this worker.")] = None,
    attempt: Annotated[int, typer.Option(min=0, help="Of this attempt; the newest when 0.")] = 0,
    tail: Annotated[int, typer.Option(min=0, help="Lines from the end of each worker's log; all when 0.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until the job ends.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Print what workers printed, each line with its rank.

    Example: [bold]aimesh train logs digits-abc123 --rank 0 --follow[/bold]
    """
    from aimesh.training.v1 import training_pb2
    from tools.cli.client import run
    from tools.cli.interrupt import interruptible
    from tools.cli.target import find_mesh

    request = training_pb2.GetJobLogsRequest(id=job, rank=rank, attempt=attempt, tail=tail, follow=follow)
    with interruptible(job, f"aimesh train cancel {job}"):
        run(_print_logs(find_mesh(state_dir), request))


def results(
    job: JobId,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each measured point as a line of CSV; - prints them.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the curves; needs aimesh\\[report].")
    ] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Show what a job measured at its end and on its way; as CSV, JSON or a picture.

    Example: [bold]aimesh train results digits-abc123 --plot curve.png --csv points.csv[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh
    from tools.cli.train_client import get_job, metrics
    from tools.training.export import results_json, to_csv

    mesh = find_mesh(state_dir)
    found = run(get_job(mesh, job)).job
    points = run(metrics(mesh, job))
    if csv is not None:
        _write(csv, to_csv(points))
    if plot is not None:
        _plot(found, points, plot)
    if as_json:
        print_json(results_json(found, points))
    elif str(csv) != "-":
        console().print(_view(found, points))
        for path in (csv, plot):
            if path is not None:
                console().print(f"Wrote {path}.")


async def _print_logs(mesh: Mesh, request: training_pb2.GetJobLogsRequest) -> None:
    """The line's rank stands before it unless only one is asked for; what is missing goes to standard error."""
    import sys

    from tools.cli.output import progress_console, shown
    from tools.cli.train_client import logs as lines

    asked = request.HasField("rank")
    async for answer in lines(mesh, request):
        if answer.missing:
            progress_console().print(f"rank {answer.rank} on {answer.node or '?'}: {answer.missing}", soft_wrap=True)
        for line in answer.text.splitlines():
            sys.stdout.write(f"{'' if asked else f'[{answer.rank}] '}{shown(line)}\n")
        sys.stdout.flush()


def _view(job: training_pb2.Job, points: list[training_pb2.MetricPoint]) -> object:
    from rich.console import Group
    from rich.text import Text

    from tools.training.view import curve, headline, results_table

    measured = [results_table(job.results)] if job.results else [Text("Nothing was measured at its end.", "dim")]
    return Group(headline(job), *measured, *curve(points, "loss"))


def _write(path: Path, text: str) -> None:
    """Raises InvalidInputError when the file cannot be written."""
    import sys

    from meshkit.errors import InvalidInputError

    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidInputError(f"--csv {path}: {error.strerror}", hint="name a file that can be written") from None


def _plot(job: training_pb2.Job, points: list[training_pb2.MetricPoint], path: Path) -> None:
    from meshkit.errors import InvalidInputError, NotFoundError, PreconditionError

    if not points:
        raise NotFoundError(
            f"job {job.id} has no measured points to draw",
            hint="its workers' nodes keep them for some days, and one of those must be up",
        )
    try:
        from tools.training.plot import plot
    except ImportError as error:
        raise PreconditionError(f"--plot needs matplotlib: {error}", hint="pip install 'aimesh[report]'") from None
    try:
        plot(job, points, path)
    except OSError as error:
        raise InvalidInputError(f"--plot {path}: {error.strerror}", hint="name a file that can be written") from None
