"""A study as its database holds it: its trials, the best, what it was begun with. Blocks: call it in threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from meshkit.errors import NotFoundError
from tools.tuning.storage import translated

FACTS = "aimesh:facts"
SURPLUS = "aimesh:surplus:{}"
"""What says of a trial's number that it was one too many."""
_Study = TypeVar("_Study", bound="Records")
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def guarded(
    work: Callable[Concatenate[_Study, _Given], _Result],
) -> Callable[Concatenate[_Study, _Given], _Result]:
    """Turns what the database says into the catalogue's words."""

    @wraps(work)
    def guard(self: _Study, /, *given: _Given.args, **named: _Given.kwargs) -> _Result:
        with translated(self.where):
            return work(self, *given, **named)

    return guard


class Records:
    """One study."""

    def __init__(self, storage: RDBStorage, name: str, where: str) -> None:
        self.storage = storage
        self.name = name
        self.where = where
        self.study: optuna.Study
        self._id: int | None = None

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
    def trials(self) -> list[FrozenTrial]:
        """All, by number, without those that were one too many."""
        attrs = self.storage.get_study_user_attrs(self._study_id())
        return [trial for trial in self._trials() if SURPLUS.format(trial.number) not in attrs]

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


def best_of(trials: list[FrozenTrial], maximize: bool) -> FrozenTrial | None:
    """The completed trial with the best value, the first of several; None when none was completed."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.value is not None]
    return min(done, key=lambda trial: (-trial.values[0] if maximize else trial.values[0], trial.number), default=None)
