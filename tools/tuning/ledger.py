"""What a command does to a study: begins it, claims trials, reports and ends them. Blocks: call it in threads.

Optuna's tables, and the claims beside them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from meshkit.errors import PreconditionError
from tools.tuning.claims import Claims
from tools.tuning.course import PARTS, Outcome
from tools.tuning.records import FACTS, SURPLUS, Records, guarded
from tools.tuning.samplers import pruner_of, sampler_of
from tools.tuning.studyfile import Tune

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}


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


class Ledger(Records):
    """One study, of which this command follows some trials."""

    def __init__(self, storage: RDBStorage, name: str, where: str) -> None:
        super().__init__(storage, name, where)
        self.claims = Claims(storage.engine, name)

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
        if not self.claims.take_new(trial.number):  # this command stood still for so long that another took it over
            return None
        if trial.number >= most:  # another command was quicker
            self.study.tell(trial, state=TrialState.FAIL)
            self.storage.set_study_user_attr(self._study_id(), SURPLUS.format(trial.number), True)
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
    def beat(self) -> None:
        """Says that this command lives."""
        self.claims.beat()

    @guarded
    def release(self) -> None:
        """Gives free what this command follows."""
        self.claims.release()

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


def _why(part: int, value: float) -> str:
    return f"pruned after {part / PARTS:.0%}: {value:.4g} is worse than the median of the others"


def _direction(tune: Tune) -> Any:
    wanted = optuna.study.StudyDirection
    return wanted.MINIMIZE if tune.direction == "minimize" else wanted.MAXIMIZE
