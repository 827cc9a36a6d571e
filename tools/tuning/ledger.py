"""A study in its database: optuna's tables, and the claims beside them. What is here blocks: call it in threads."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
import sqlalchemy as sql
from optuna.exceptions import DuplicatedStudyError, OptunaError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from meshkit.errors import (
    AimeshError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    SupersededError,
    UnavailableError,
)
from tools.tuning.claims import Claims
from tools.tuning.course import PARTS, Outcome
from tools.tuning.samplers import pruner_of, sampler_of
from tools.tuning.studyfile import Tune

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}
FACTS = "aimesh:facts"
_TIMEOUT_S = 20
_MAKE_TRIES = 5
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def guarded(work: Callable[Concatenate[Ledger, _Given], _Result]) -> Callable[Concatenate[Ledger, _Given], _Result]:
    """Turns what the database says into the catalogue's words."""

    @wraps(work)
    def guard(self: Ledger, /, *given: _Given.args, **named: _Given.kwargs) -> _Result:
        with translated(self.where):
            return work(self, *given, **named)

    return guard


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raises UnavailableError for what the database refuses, SupersededError for a trial that another has ended."""
    try:
        yield
    except UpdateFinishedTrialError:
        raise SupersededError("another command has ended this trial") from None
    except (sql.exc.SQLAlchemyError, OptunaError) as error:
        said = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UnavailableError(
            f"the study's database {where} does not do its work: {said}",
            hint="once it does, the same command goes on where it was",
            reason="TUNE_STORAGE",
        ) from None


@dataclass
class Task:
    """A trial that this command has claimed."""

    number: int
    labels: dict[str, Any]
    request: str
    """Of SubmitJob: however often it is sent, it is one job."""
    job: str
    """Its id, once it was submitted."""
    pruned: str
    """Why it is to be cancelled, when that was decided."""


class Ledger:
    """One study, of which this command follows some trials."""

    def __init__(self, storage: RDBStorage, name: str, where: str) -> None:
        self.storage = storage
        self.name = name
        self.where = where
        self.claims = Claims(storage.engine, name)
        self.study: optuna.Study
        self._id: int | None = None

    @guarded
    def begin(self, tune: Tune, facts: dict[str, str]) -> None:
        """Makes the study, or goes on with it. Raises PreconditionError when it was made to search something else."""
        self.claims.make_table()
        try:
            self.storage.create_new_study([_direction(tune)], self.name)
            self.storage.set_study_user_attr(self._study_id(), FACTS, facts)
        except DuplicatedStudyError:
            pass
        attrs = self.storage.get_study_user_attrs(self._study_id())
        held = attrs.get(FACTS)
        if held is None:  # whoever made it has not come so far, or was killed just then
            self.storage.set_study_user_attr(self._study_id(), FACTS, facts)
        elif changed := sorted(key for key in {*facts, *held} if held.get(key) != facts.get(key)):
            raise PreconditionError(
                f"study {self.name!r} was begun with another {' and '.join(changed)}",
                hint="its trials could not be compared: give tune.study a new name, or undo the change",
                reason="TUNE_CHANGED",
            )
        self._load()
        self.study.sampler = sampler_of(tune)
        self.study.pruner = pruner_of(tune)

    @guarded
    def open(self) -> None:
        """For reading. Raises NotFoundError."""
        try:
            self._load()
        except KeyError:
            known = ", ".join(sorted(each.study_name for each in self.storage.get_all_studies())) or "none"
            raise NotFoundError(
                f"there is no study {self.name!r} in {self.where}", hint=f"there is {known}", reason="TUNE_NOT_FOUND"
            ) from None

    @guarded
    def orphan(self, tune: Tune) -> Task | None:
        """A trial that was begun, and that nobody follows any more; it is this command's now."""
        number = self.claims.take_over([trial.number for trial in self._running()])
        if number is None:
            return None
        self._complete(self._trial(number), tune)
        return self._task(self._trial(number))

    @guarded
    def running(self) -> int:
        """How many trials have not ended, whoever follows them."""
        return len(self._running())

    @guarded
    def fresh(self, tune: Tune, most: int) -> Task | None:
        """A new trial, unless the study has as many as it may."""
        if self.storage.get_n_trials(self._study_id()) >= most:
            return None
        trial = self.study.ask({space.name: space.distribution() for space in tune.spaces})
        self.claims.take_new(trial.number)
        if trial.number >= most:  # another command was quicker
            self.study.tell(trial, state=TrialState.FAIL)
            self.storage.set_study_user_attr(self._study_id(), f"aimesh:surplus:{trial.number}", True)
            self.claims.drop(trial.number)
            return None
        return self._task(self._trial(trial.number))

    @guarded
    def submitted(self, task: Task, job: str) -> None:
        """Keeps the id of a trial's job."""
        self._note(task.number, "job", job)
        task.job = job

    @guarded
    def report(self, task: Task, sign: float, measured: dict[int, float]) -> str:
        """Keeps what was measured on the way; why the trial is to be pruned, or nothing."""
        trial = self._trial(task.number)
        new = sorted(set(measured) - set(trial.intermediate_values))
        for part in new:
            self.storage.set_trial_intermediate_value(trial._trial_id, part, sign * measured[part])
        if new and not task.pruned and self.study.pruner.prune(self.study, self._trial(task.number)):
            task.pruned = _why(new[-1], measured[new[-1]])
            self._note(task.number, "pruned", task.pruned)
        return task.pruned

    @guarded
    def tell(self, task: Task, found: Outcome) -> None:
        """Ends a trial, unless it was ended before. Raises SupersededError when another command ended it."""
        if found.error:
            self._note(task.number, "error", found.error[:2000])
        self.study.tell(task.number, found.value, state=STATES[found.state], skip_if_finished=True)
        self.claims.drop(task.number)

    @guarded
    def trials(self) -> list[FrozenTrial]:
        """All, by number, without those that were one too many."""
        attrs = self.storage.get_study_user_attrs(self._study_id())
        return [trial for trial in self._trials() if f"aimesh:surplus:{trial.number}" not in attrs]

    @guarded
    def best(self) -> FrozenTrial:
        """The completed trial with the best value, the first of several. Raises NotFoundError without any."""
        found = best_of(self.trials(), self.study.direction is optuna.study.StudyDirection.MAXIMIZE)
        if found is None:
            raise NotFoundError(
                f"no trial of study {self.name!r} was completed",
                hint=f"see: aimesh train tune show {self.name}",
                reason="TUNE_NO_BEST",
            )
        return found

    @guarded
    def facts(self) -> dict[str, str]:
        """What the study was begun with; nothing for one that optuna was used on by other means."""
        return dict(self.storage.get_study_user_attrs(self._study_id()).get(FACTS, {}))

    @guarded
    def beat(self) -> None:
        """Says that this command lives."""
        self.claims.beat()

    @guarded
    def release(self) -> None:
        """Gives free what this command follows."""
        self.claims.release()

    @guarded
    def importance(self) -> dict[str, float]:
        """How much each hyperparameter matters, together 1 (PED-ANOVA, Watanabe et al., IJCAI 2023)."""
        return dict(optuna.importance.get_param_importances(self.study))

    def close(self) -> None:
        """Closes what is open."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def _load(self) -> None:
        self.study = optuna.load_study(study_name=self.name, storage=self.storage, sampler=None, pruner=None)

    def _study_id(self) -> int:
        if self._id is None:
            self._id = self.storage.get_study_id_from_name(self.name)
        return self._id

    def _trials(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self._study_id(), deepcopy=False)

    def _running(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self._study_id(), deepcopy=False, states=(TrialState.RUNNING,))

    def _trial(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self.storage.get_trial_id_from_study_id_trial_number(self._study_id(), number))

    def _complete(self, trial: FrozenTrial, tune: Tune) -> None:
        """Draws what is missing of a trial whose command was killed while it drew."""
        missing = [space for space in tune.spaces if space.name not in trial.params]
        if missing:
            self.study.sampler.before_trial(self.study, trial)
        for space in missing:
            drawn = space.distribution()
            value = self.study.sampler.sample_independent(self.study, trial, space.name, drawn)
            self.storage.set_trial_param(trial._trial_id, space.name, drawn.to_internal_repr(value), drawn)

    def _note(self, number: int, key: str, value: str) -> None:
        self.storage.set_trial_user_attr(self._trial(number)._trial_id, key, value)

    def _task(self, trial: FrozenTrial) -> Task:
        """The request's id is kept before anything is sent."""
        request = trial.user_attrs.get("request", "")
        if not request:
            request = f"tune/{self.name}/{trial.number}/{uuid.uuid4().hex}"
            self._note(trial.number, "request", request)
        attrs = trial.user_attrs
        return Task(trial.number, dict(trial.params), request, attrs.get("job", ""), attrs.get("pruned", ""))


def names(url: str) -> list[str]:
    """The studies of a database. Raises InvalidInputError, UnavailableError."""
    storage, where = open_storage(url)
    with translated(where):
        found = sorted(each.study_name for each in storage.get_all_studies())
    storage.engine.dispose()
    return found


def best_of(trials: list[FrozenTrial], maximize: bool) -> FrozenTrial | None:
    """The completed trial with the best value, the first of several; None when none was completed."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.value is not None]
    return min(done, key=lambda trial: (-trial.values[0] if maximize else trial.values[0], trial.number), default=None)


def open_storage(url: str) -> tuple[RDBStorage, str]:
    """The database at a URL, and its name without a password. Raises InvalidInputError, UnavailableError."""
    try:
        parsed = sql.make_url(url)
    except sql.exc.ArgumentError:
        raise _bad_url(url) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise _bad_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    where = parsed.render_as_string(hide_password=True)
    sqlite = parsed.get_backend_name() == "sqlite"
    limits: dict[str, Any] = {"timeout": _TIMEOUT_S} if sqlite else {"connect_timeout": _TIMEOUT_S}
    engine = {"connect_args": limits, **({} if sqlite else {"pool_pre_ping": True})}
    with translated(where):
        return _made(parsed.render_as_string(hide_password=False), engine), where


def _made(url: str, engine: dict[str, Any]) -> RDBStorage:
    """Tried again when another command makes the same tables at this moment."""
    for tried in range(1, _MAKE_TRIES + 1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return RDBStorage(url, engine_kwargs=engine)
        except (sql.exc.OperationalError, sql.exc.IntegrityError, sql.exc.ProgrammingError) as error:
            if tried == _MAKE_TRIES or ("exists" not in str(error) and "UNIQUE" not in str(error).upper()):
                raise
    raise AssertionError("the last try returns or raises")


def _bad_url(url: str) -> AimeshError:
    return InvalidInputError(
        f"--storage {url.rpartition('@')[2]!r} is no database",
        hint="sqlite:////path/to/file or postgresql://user:password@host/database",
    )


def _why(part: int, value: float) -> str:
    return f"pruned after {part / PARTS:.0%}: {value:.4g} is worse than the median of the others"


def _direction(tune: Tune) -> Any:
    wanted = optuna.study.StudyDirection
    return wanted.MINIMIZE if tune.direction == "minimize" else wanted.MAXIMIZE
