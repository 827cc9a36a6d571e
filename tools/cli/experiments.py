"""`aimesh experiments`: two versions asked the same, compared, judged; what is bad is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir, parse_pairs

if TYPE_CHECKING:
    from aimesh.experiment.v1 import experiment_pb2
    from aimesh.rollout.v1 import rollout_pb2
    from tools.cli.experiments_client import Verb
    from tools.cli.target import Mesh

app = typer.Typer(
    name="experiments", help="Compare versions, promote good ones, remember bad ones.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The experiment's name.")]
Dataset = Annotated[
    Path, typer.Option(metavar="FILE", help='A question a line: {"inputs": {NAME: [...]}, "expected": ...}')
]
Output = Annotated[str, typer.Option(help="The output that holds the answer; not needed when there is only one.")]
Metric = Annotated[
    list[str] | None,
    typer.Option(help="accuracy, precision, recall, f1 (these when none is given), exact_match, embedding_similarity."),
]
Repeat = Annotated[int, typer.Option(min=0, max=20, help="How often each question is put; 0 for what suits the set.")]
Parameter = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="A request parameter for both versions.")
]
Reason = Annotated[str, typer.Option(help="Why; kept with the decision.")]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the numbers, a line each metric.")]
Pdf = Annotated[Path | None, typer.Option("--pdf", metavar="FILE", help="Write a document with plots.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name; never used twice.")],
    candidate: Annotated[str, typer.Argument(metavar="MODEL:VERSION", help="The version that is tried.")],
    baseline: Annotated[str, typer.Option(metavar="VERSION", help="The version that it is held against.")],
    dataset: Dataset,
    output: Output = "",
    metric: Metric = None,
    repeat: Repeat = 0,
    parameter: Parameter = None,
    gates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What is judged: TOML, or a policy in a .rego file.")
    ] = None,
    manual: Annotated[bool, typer.Option("--manual", help="When it passes, wait for a person to promote it.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Create it and return; it goes on by itself.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Try a version: both are asked a dataset of 100 questions or more; a good one becomes `stable`.

    A bad one is quarantined: no rollout and no experiment takes it again before somebody has reviewed it. Both versions
    must be loaded; a target of weight 0 is enough. Ctrl-C ends the following and not the experiment. Exit code 5 when
    it ends in quarantine.

    Example: [bold]aimesh experiments create chat-2 chat:2.0.0 --baseline 1.0.0 --dataset questions.jsonl[/bold]
    """
    from aimesh.experiment.v1 import experiment_pb2
    from tools.cli import experiments_client as client
    from tools.cli.client import run
    from tools.cli.reference import exact
    from tools.cli.rollout_gates import read_gates
    from tools.cli.target import find_mesh

    model, version = exact(candidate, f"aimesh experiments create {name} MODEL:VERSION --baseline ...")
    mesh = find_mesh(state_dir)
    spec = experiment_pb2.ExperimentSpec(
        name=name,
        model=model,
        candidate=version,
        baseline=baseline.removeprefix(f"{model}:"),
        parameters=parse_pairs(parameter or [], "--parameter"),
        repeat=repeat,
        gates=read_gates(gates) if gates is not None else None,
        manual=manual,
    )
    spec.evaluation.CopyFrom(_evaluation(mesh, dataset, output, metric))
    made = run(client.create(mesh, spec))
    if detach:
        _tell(made, None, as_json=as_json)
        return
    _follow(mesh, name, as_json=as_json)


@app.command("list")
def list_(
    model: Annotated[str, typer.Option(help="Only of this model.")] = "",
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """List experiments, the newest first.

    Example: [bold]aimesh experiments list --model chat[/bold]
    """
    from tools.cli import experiments_client as client
    from tools.cli.client import run
    from tools.cli.experiments_view import listed
    from tools.cli.output import console, print_json, progress_console
    from tools.cli.plain import plain
    from tools.cli.target import find_mesh

    found, warning = run(client.list_all(find_mesh(state_dir), model))
    if as_json:
        print_json([plain(each) for each in found])
    elif found:
        console().print(listed(found))
    else:
        console().print("No experiments yet: aimesh experiments create NAME MODEL:VERSION --baseline V --dataset FILE")
    if warning:
        progress_console().print(f"! {warning}", style="yellow")


@app.command()
def show(name: Name, csv: Csv = None, pdf: Pdf = None, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Show an experiment: where it is, how it came there, what was measured.

    Example: [bold]aimesh experiments show chat-2 --pdf chat-2.pdf[/bold]
    """
    from meshkit.errors import PreconditionError
    from tools.cli import experiments_client as client
    from tools.cli.client import run
    from tools.cli.target import find_mesh

    found = run(client.get(find_mesh(state_dir), name))
    report = found.report if found.HasField("report") else None
    if report is None and (csv or pdf):
        raise PreconditionError(f"experiment {name!r} has no report yet", hint=f"it says: {found.experiment.reason}")
    if report is not None:
        _write(report, csv, pdf, found.experiment)
    _tell(found.experiment, report, as_json=as_json)


@app.command()
def watch(name: Name, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Follow an experiment until it is over or waits for a person. Exit code 5 when it ends in quarantine.

    Example: [bold]aimesh experiments watch chat-2[/bold]
    """
    from tools.cli.target import find_mesh

    _follow(find_mesh(state_dir), name, as_json=as_json)


@app.command()
def promote(name: Name, reason: Reason, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Make the candidate `stable`, whatever the gates said: a decision that is kept with its reason.

    Example: [bold]aimesh experiments promote chat-2 --reason "slower, and worth it"[/bold]
    """
    _decide("promote", name, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def reject(name: Name, reason: Reason, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Quarantine the candidate, whatever the gates said: a decision that is kept with its reason.

    Example: [bold]aimesh experiments reject chat-2 --reason "invents sources"[/bold]
    """
    _decide("reject", name, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def cancel(name: Name, reason: Reason = "", as_json: Json = False, state_dir: StateDir = None) -> None:
    """End an experiment without a decision.

    Example: [bold]aimesh experiments cancel chat-2[/bold]
    """
    _decide("cancel", name, reason, as_json=as_json, state_dir=state_dir)


@app.command()
def compare(
    baseline: Annotated[str, typer.Argument(metavar="MODEL:VERSION", help="The version that is there.")],
    candidate: Annotated[str, typer.Argument(metavar="MODEL:VERSION", help="The version that is looked at.")],
    dataset: Dataset,
    output: Output = "",
    metric: Metric = None,
    repeat: Repeat = 0,
    parameter: Parameter = None,
    csv: Csv = None,
    pdf: Pdf = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Compare any two versions on a dataset now; nothing is promoted or remembered.

    Example: [bold]aimesh experiments compare chat:1.0.0 chat:2.0.0 --dataset questions.jsonl --pdf report.pdf[/bold]
    """
    from aimesh.experiment.v1 import experiment_pb2
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.reference import exact
    from tools.cli.target import find_mesh
    from tools.reports.table import report_view

    example = "aimesh experiments compare MODEL:VERSION MODEL:VERSION --dataset FILE"
    old, new = exact(baseline, example), exact(candidate, example)
    mesh = find_mesh(state_dir)
    request = experiment_pb2.CompareRequest(
        baseline_model=old[0],
        baseline=old[1],
        candidate_model=new[0],
        candidate=new[1],
        evaluation=_evaluation(mesh, dataset, output, metric),
        repeat=repeat,
        parameters=parse_pairs(parameter or [], "--parameter"),
    )
    report = _compared(mesh, request)
    _write(report, csv, pdf, None)
    if as_json:
        print_json(plain(report))
    else:
        console().print(report_view(report))


@app.command()
def quarantine(as_json: Json = False, state_dir: StateDir = None) -> None:
    """List the configurations that are quarantined, and those that were.

    Example: [bold]aimesh experiments quarantine[/bold]
    """
    from tools.cli import experiments_client as client
    from tools.cli.client import run
    from tools.cli.experiments_view import quarantine_table
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.target import find_mesh

    found = run(client.quarantined(find_mesh(state_dir)))
    if as_json:
        print_json([plain(each) for each in found])
    else:
        console().print(quarantine_table(found) if found else "Nothing is or was quarantined.")


@app.command()
def review(
    digits: Annotated[str, typer.Argument(metavar="HASH", help="The configuration's hash, or its first digits.")],
    reason: Reason,
    release: Annotated[bool, typer.Option("--release", help="Lift the quarantine.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Lift a quarantine after a review: a decision that is kept with its reason.

    Example: [bold]aimesh experiments review 3f9a52c0 --release --reason "the labels were wrong"[/bold]
    """
    from meshkit.errors import InvalidInputError
    from tools.cli import experiments_client as client
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.target import find_mesh

    if not release:
        raise InvalidInputError("a review without --release changes nothing", hint="add --release to lift it")
    found = run(client.release(find_mesh(state_dir), digits, reason))
    if as_json:
        print_json(plain(found))
    else:
        console().print(f"{found.model}:{found.version} ({found.hash[:12]}) may be tried again")


def _evaluation(mesh: Mesh, dataset: Path, output: str, metrics: list[str] | None) -> rollout_pb2.Evaluation:
    """Uploads the dataset. Raises InvalidInputError when it cannot be read."""
    from aimesh.rollout.v1 import rollout_pb2
    from meshkit.errors import InvalidInputError
    from tools.cli.client import run
    from tools.cli.upload import push_blob

    try:
        content = dataset.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"--dataset {dataset}: {error.strerror}", hint="name a file with a question a line"
        ) from None
    return rollout_pb2.Evaluation(dataset=run(push_blob(mesh, content)), output=output, metrics=metrics or ())


def _compared(mesh: Mesh, request: experiment_pb2.CompareRequest) -> experiment_pb2.Report:
    from rich.progress import Progress

    from tools.cli import experiments_client as client
    from tools.cli.client import run
    from tools.cli.output import progress_console

    with Progress(console=progress_console(), transient=True) as progress:
        task = progress.add_task("asking", total=None)
        return run(
            client.compare(mesh, request, lambda done, total: progress.update(task, completed=done, total=total))
        )


def _write(
    report: experiment_pb2.Report, csv: Path | None, pdf: Path | None, experiment: experiment_pb2.Experiment | None
) -> None:
    """The files that were asked for. Raises InvalidInputError when one cannot be written."""
    from meshkit.errors import InvalidInputError
    from tools.reports.export import to_csv

    try:
        if csv is not None:
            csv.write_text(to_csv(report))
        if pdf is not None:
            from tools.reports.pdf import write_pdf  # matplotlib takes a second

            write_pdf(pdf, report, experiment)
    except OSError as error:
        raise InvalidInputError(f"{error.filename or ''} cannot be written: {error.strerror}") from None


def _tell(experiment: experiment_pb2.Experiment, report: experiment_pb2.Report | None, *, as_json: bool) -> None:
    from tools.cli.experiments_view import shown
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.reports.table import report_view

    if as_json:
        print_json({"experiment": plain(experiment), "report": plain(report) if report is not None else None})
        return
    console().print(shown(experiment))
    if report is not None:
        console().print()
        console().print(report_view(report))


def _follow(mesh: Mesh, name: str, *, as_json: bool) -> None:
    from aimesh.experiment.v1 import experiment_pb2
    from meshkit.errors import PreconditionError
    from tools.cli import experiments_client as client
    from tools.cli.client import run
    from tools.cli.experiments_view import headline
    from tools.cli.output import progress_console

    console = progress_console()
    found = run(client.follow(mesh, name, lambda experiment: console.print(headline(experiment))))
    _tell(found.experiment, found.report if found.HasField("report") else None, as_json=as_json)
    if found.experiment.state == experiment_pb2.EXPERIMENT_STATE_QUARANTINED:
        raise typer.Exit(PreconditionError.exit_code)


def _decide(verb: Verb, name: str, reason: str, *, as_json: bool, state_dir: Path | None) -> None:
    from tools.cli import experiments_client as client
    from tools.cli.client import run
    from tools.cli.experiments_view import headline
    from tools.cli.output import console, print_json
    from tools.cli.plain import plain
    from tools.cli.target import find_mesh

    mesh = find_mesh(state_dir)
    run(client.decide(mesh, verb, name, reason))
    found = run(client.follow(mesh, name, lambda _: None)).experiment
    if as_json:
        print_json(plain(found))
    else:
        console().print(headline(found))
