"""From two versions and a set to their report: asks, scores, compares."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimesh.experiment.v1 import experiment_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.evaluation.dataset import Question
from coordinator.evaluation.scorer import run_scorer, scorer_path
from coordinator.evaluation.scores import SCORER, score
from coordinator.experiments import gating
from coordinator.experiments.asking import Loads, Taken, TimedAsker, check_answers, take
from coordinator.experiments.compare import Scores, compare, mean_scores, window
from coordinator.experiments.store import Result
from coordinator.mirror import Mirror


@dataclass(frozen=True)
class Wanted:
    """What is to be compared."""

    baseline: registry_pb2.ModelVersion
    candidate: registry_pb2.ModelVersion
    evaluation: rollout_pb2.Evaluation
    questions: Sequence[Question]
    repeat: int

    @property
    def requests(self) -> int:
        """In all, but for those that only warm the models up."""
        return 2 * self.repeat * len(self.questions)


@dataclass(frozen=True)
class Evaluation:
    """Asks through this coordinator."""

    mirror: Mirror
    loads: Loads
    scorers_dir: Path | None

    async def run(self, wanted: Wanted, asker: TimedAsker) -> Result:
        """What it comes to. Raises PreconditionError, UnavailableError, InvalidInputError, ScorerError."""
        output, questions = wanted.evaluation.output, wanted.questions
        versions = (wanted.baseline, wanted.candidate)
        old, new = await take(lambda: self.mirror.state, self.loads, asker, versions, output, questions, wanted.repeat)
        check_answers(new, output)
        old_scores, new_scores = await self._scores(wanted, old), await self._scores(wanted, new)
        expected = [question.expected for question in wanted.questions]
        report = await asyncio.to_thread(compare, expected, old, new, old_scores, new_scores)
        _tell(report, wanted, asker)
        return Result(report, gating.encode(window(old, old_scores), window(new, new_scores)))

    async def _scores(self, wanted: Wanted, taken: Taken) -> Scores:
        expected = [question.expected for question in wanted.questions]
        answers = [[each.answer for each in one] for one in taken.rounds]
        return {
            metric: mean_scores([await self._score(metric, expected, each) for each in answers])
            for metric in wanted.evaluation.metrics
        }

    async def _score(self, metric: str, expected: Sequence[Any], answers: Sequence[Any]) -> list[float]:
        if metric.startswith(SCORER):
            return await run_scorer(scorer_path(self.scorers_dir, metric.removeprefix(SCORER)), expected, answers)
        return await asyncio.to_thread(score, metric, expected, answers)


def _tell(report: experiment_pb2.Report, wanted: Wanted, asker: TimedAsker) -> None:
    report.at.GetCurrentTime()
    report.questions, report.repeat = len(wanted.questions), wanted.repeat
    report.dataset = wanted.evaluation.dataset
    report.parameters.update(asker.parameters)
