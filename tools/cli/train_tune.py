"""`aimesh train tune`: a search for hyperparameters, each trial a job of the mesh."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aimesh.training.v1 import training_pb2
    from tools.cli.target import Mesh
    from tools.tuning.ledger import Ledger
    from tools.tuning.studyfile import StudyFile
    from tools.tuning.view import Study

tune = typer.Typer(
    name="tune", help="Search for hyperparameters: each trial is a job. Needs aimesh\\[tune].", no_args_is_help=True
)

StudyPath = Annotated[
    Path,
    typer.Argument(metavar="study.toml", help="A job file with \\[tune]; training/examples/tune.toml has every key."),
]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Its name, as aimesh train tune list shows it.")]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="AIMESH_TUNE_STORAGE",
        help="Where studies are kept: sqlite:////path/to/file or postgresql://user:password@host/database. "
        "Otherwise tuning.db in the mesh's state directory.",
    ),
]


@tune.command()
def start(
    study: StudyPath,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the study in all, earlier ones counted.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, max=256, help="Trials that this command runs at a time.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Search, or go on with a study: also one whose command was killed, or which others work on at the same time.

    Example: [bold]aimesh train tune start training/examples/tune.toml --trials 30 --parallel 4[/bold]
    """
    _need_optuna()
    from tools.cli.interrupt import INTERRUPTED
    from tools.cli.output import print_json
    from tools.cli.target import find_mesh
    from tools.tuning.studyfile import read_study
    from tools.tuning.view import study_json

    asked = _overridden(read_study(study), trials, parallel)
    mesh = find_mesh(state_dir)
    with _ledger(storage, asked.tune.study, mesh.state_dir) as ledger:
        try:
            published = _search(mesh, ledger, asked)
        except KeyboardInterrupt:
            _say_interrupted(ledger.name)
            raise SystemExit(INTERRUPTED) from None
        found = _study(ledger)
    if as_json:
        print_json(study_json(found) | {"model": published.model if published else None})
    else:
        _print_end(found, published)


@tune.command()
def show(
    study: StudyName,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw history and importance; needs aimesh\\[report].")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Show a study: its trials, the best, and which hyperparameters matter.

    Example: [bold]aimesh train tune show digits --plot study.png[/bold]
    """
    _need_optuna()
    from tools.cli.output import console, print_json
    from tools.tuning import view

    with _ledger(storage, study, _folder(state_dir)) as ledger:
        ledger.open()
        found = _study(ledger)
    if plot is not None:
        _plot(found, plot)
    if as_json:
        print_json(view.study_json(found))
        return
    console().print(view.shown(found))
    if plot is not None:
        console().print(f"Wrote {plot}.")


@tune.command("list")
def list_(storage: Storage = None, as_json: Json = False, state_dir: StateDir = None) -> None:
    """List the studies of a database.

    Example: [bold]aimesh train tune list[/bold]
    """
    _need_optuna()
    from tools.cli.output import console, print_json
    from tools.tuning.storage import names
    from tools.tuning.view import headline

    url = _url(storage, _folder(state_dir))
    studies = []
    for name in names(url):
        with _ledger(url, name, None) as ledger:
            ledger.open()
            studies.append(_study(ledger))
    if as_json:
        print_json([{"study": each.name, "trials": len(each.trials), "completed": each.completed} for each in studies])
        return
    for each in studies:
        console().print(headline(each))
    if not studies:
        console().print("No studies yet: aimesh train tune start training/examples/tune.toml")


def _search(mesh: Mesh, ledger: Ledger, asked: StudyFile) -> training_pb2.Job | None:
    """Runs the study to its end; the job that published its best, when that was asked for."""
    from tools.cli.client import run
    from tools.cli.train_upload import upload
    from tools.training.pack import pack
    from tools.tuning.records import best_of
    from tools.tuning.samplers import most_trials
    from tools.tuning.search import Search, publish
    from tools.tuning.studyfile import facts
    from tools.tuning.watching import Watching

    tuned = asked.tune
    packed = pack(asked.job)
    ledger.begin(tuned, facts(tuned, packed.spec))
    upload(mesh, packed)
    trials = ledger.trials()
    ended, best = len(trials) - ledger.running(), best_of(trials, tuned.direction == "maximize")
    before = best.value if best is not None else None
    with Watching(tuned.study, tuned.metric, tuned.direction, ended, most_trials(tuned), before) as watching:
        run(Search(mesh, ledger, tuned, packed.spec, watching.show).run())
    return run(publish(mesh, ledger, tuned, packed.spec)) if tuned.publish else None


def _overridden(asked: StudyFile, trials: int | None, parallel: int | None) -> StudyFile:
    from dataclasses import replace

    tuned = asked.tune
    return replace(asked, tune=replace(tuned, trials=trials or tuned.trials, parallel=parallel or tuned.parallel))


@contextmanager
def _ledger(storage: str | None, name: str, folder: Path | None) -> Iterator[Ledger]:
    """The study's ledger; what it follows is given free at the end."""
    from contextlib import suppress

    from meshkit.errors import UnavailableError
    from tools.tuning.ledger import Ledger
    from tools.tuning.storage import open_storage

    opened, where = open_storage(_url(storage, folder))
    ledger = Ledger(opened, name, where)
    try:
        yield ledger
    finally:
        with suppress(UnavailableError):  # whoever comes next waits for the lease instead
            ledger.release()
        ledger.close()


def _study(ledger: Ledger) -> Study:
    """The study as it stands."""
    from tools.tuning.reading import study_of

    return study_of(ledger)


def _url(storage: str | None, folder: Path | None) -> str:
    """What --storage says, or a file in the state directory."""
    if storage:
        return storage
    chosen = folder or _folder(None)
    chosen.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{chosen.absolute() / 'tuning.db'}"


def _folder(state_dir: Path | None) -> Path:
    import os

    from tools.local.record import default_state_dir

    return (state_dir or default_state_dir(os.environ)).absolute()


def _need_optuna() -> None:
    from meshkit.errors import PreconditionError

    try:
        import optuna  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise PreconditionError(f"this needs optuna: {error}", hint="pip install 'aimesh[tune]'") from None


def _plot(study: Study, path: Path) -> None:
    from meshkit.errors import InvalidInputError, NotFoundError, PreconditionError

    if not study.completed:
        raise NotFoundError(
            f"no trial of study {study.name!r} was completed",
            hint="there is nothing to draw yet",
            reason="TUNE_NO_BEST",
        )
    try:
        from tools.tuning.plot import plot
    except ImportError as error:
        raise PreconditionError(f"--plot needs matplotlib: {error}", hint="pip install 'aimesh[report]'") from None
    try:
        plot(study, path)
    except OSError as error:
        raise InvalidInputError(f"--plot {path}: {error.strerror}", hint="name a file that can be written") from None


def _print_end(study: Study, published: training_pb2.Job | None) -> None:
    from tools.cli.output import console
    from tools.tuning.view import shown

    console().print(shown(study))
    if published is not None:
        console().print(f"Recorded {published.model}. Next: aimesh deploy {published.model}")


def _say_interrupted(name: str) -> None:
    from tools.cli.output import progress_console

    said = f"Stopped following study {name}; jobs that were submitted run on.\n  The same command goes on with them."
    progress_console().print(said, soft_wrap=True)
