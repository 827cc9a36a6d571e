"""Has the versions of running rollouts answer their evaluation sets, on the leader, once for each version and set."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.election import Election
from coordinator.evaluation.ask import Asker, request_of
from coordinator.evaluation.dataset import Question
from coordinator.evaluation.datasets import Datasets
from coordinator.evaluation.scorer import run_scorer, scorer_path
from coordinator.evaluation.scores import OVERLAP, SCORER, overlap, said, score
from coordinator.faults import Faults
from coordinator.mirror import Mirror
from coordinator.rollout.course import compared, is_over
from coordinator.state import VersionKey, serving_nodes
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError, InvalidInputError

log = structlog.get_logger()

STEP_S = 1.0
AT_ONCE = 4
"""Versions that are evaluated at the same time: a slow one keeps no other waiting, as long as there are not so many."""
MOST_RESULTS = 256
"""Kept; the one that was not used for the longest time goes first."""
_Result = tuple[str, str, str]
"""(dataset's digest, output, version's digest)."""


@dataclass(frozen=True)
class _Answered:
    """What a version's answers to a set came to."""

    scores: Mapping[str, list[float]]
    """One a question, by metric."""
    said: Sequence[int]
    """Short hashes of its answers: the same for the same label."""


class Evaluator:
    """Asks, scores and remembers. A leader that comes anew asks again."""

    def __init__(
        self, mirror: Mirror, election: Election, datasets: Datasets, asker: Asker, scorers_dir: Path | None = None
    ) -> None:
        self._mirror = mirror
        self._election = election
        self._datasets = datasets
        self._asker = asker
        self._scorers_dir = scorers_dir
        self._results: OrderedDict[_Result, _Answered] = OrderedDict()
        self._waits: dict[_Result, tuple[Backoff, float, str]] = {}
        """By what could not be evaluated: when it is tried again, by the loop's clock, and why it could not."""
        self._running: set[_Result] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._faults = Faults("evaluation.fault")

    async def run(self) -> None:
        """Evaluates what is to be, while this coordinator leads; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                with self._faults.kept("all"):
                    if self._election.term and not self._mirror.frozen:
                        for each in self._due():
                            tasks.create_task(self._evaluated(*each))
                await asyncio.sleep(STEP_S)

    async def step(self) -> None:
        """Evaluates each version of a rollout that has not been and that some node serves."""
        async with asyncio.TaskGroup() as tasks:
            for each in self._due():
                tasks.create_task(self._evaluated(*each))

    def _due(self) -> list[tuple[rollout_pb2.Evaluation, registry_pb2.ModelVersion]]:
        """What is to be evaluated now and is not on its way."""
        found: dict[_Result, tuple[rollout_pb2.Evaluation, registry_pb2.ModelVersion]] = {}
        state = self._mirror.state
        for rollout in [each for each in state.rollouts.values() if not is_over(each)]:
            gates = rollout.spec.gates
            for version in versions_of(rollout) if gates.HasField("evaluation") else ():
                recorded = state.versions.get((rollout.spec.name, version))
                if recorded is not None and self._is_due(gates.evaluation, recorded):
                    found[_result(gates.evaluation, recorded)] = gates.evaluation, recorded
        return [each for result, each in found.items() if result not in self._running]

    async def _evaluated(self, evaluation: rollout_pb2.Evaluation, version: registry_pb2.ModelVersion) -> None:
        result, name = _result(evaluation, version), f"{version.name}:{version.version}"
        self._running.add(result)
        try:
            async with self._slots:
                with self._faults.kept(name, result):
                    await self._evaluate(evaluation, version)
                if fault := self._faults.of(name):
                    self._wait(result, fault)
        finally:
            self._running.discard(result)

    def scores(self, name: str, version: str) -> Mapping[str, list[float]]:
        """A version's scores in the evaluation of its rollout, one a question, by metric; none while there are none.

        Among them OVERLAP with the version that it is compared with, once both have answered.
        """
        found = self._of(name, version)
        if found is None:
            return {}
        evaluation, recorded = found
        held = self._scored(evaluation, recorded)
        return {
            **{metric: held[metric] for metric in evaluation.metrics if metric in held},
            **self._overlap(evaluation, recorded),
        }

    def pending(self, name: str, version: str) -> str:
        """Why a version has no scores yet that its rollout asks for; empty when it has, or none are asked for."""
        found = self._of(name, version)
        if found is None or self._is_scored(*found):
            return ""
        wait = self._waits.get(_result(*found))
        return f"{name}:{version} could not be evaluated: {wait[2]}" if wait else f"{name}:{version} is being evaluated"

    def awaited(self, name: str) -> list[str]:
        """What is missing before the first requests should move to the new versions of a rollout; for people.

        Later steps wait for nothing: versions were evaluated before the first, or a person went past the gates.
        """
        state = self._mirror.state
        rollout = state.rollouts.get(name)
        if rollout is None or rollout.state != rollout_pb2.ROLLOUT_STATE_RUNNING or rollout.step:
            return []
        served = [version for version in versions_of(rollout) if serving_nodes(state, name, version)]
        return [why for version in served if (why := self.pending(name, version))]

    async def check_spec(self, spec: rollout_pb2.RolloutSpec) -> None:
        """The same as `check`, of all that a rollout to be started brings and replaces."""
        if not spec.gates.HasField("evaluation"):
            return
        state = self._mirror.state
        deployment = state.deployments.get(spec.name, routing_pb2.Deployment())
        running = [target.version for target in deployment.targets if target.weight]
        arms = [arm.version for arm in spec.experiment.arms]
        keys = [(spec.name, version) for version in dict.fromkeys([spec.version, *arms, *running])]
        await self.check(spec.gates.evaluation, [state.versions[key] for key in keys if key in state.versions])

    async def check(self, evaluation: rollout_pb2.Evaluation, versions: Sequence[registry_pb2.ModelVersion]) -> None:
        """Raises NotFoundError or InvalidInputError when the set cannot be put to these versions, or not be scored."""
        for metric in evaluation.metrics:
            if metric.startswith(SCORER):
                scorer_path(self._scorers_dir, metric.removeprefix(SCORER))
        questions = await self._datasets.read(evaluation.dataset)
        for version in versions:
            outputs = [spec.name for spec in version.signature.outputs]
            if outputs and evaluation.output not in outputs:
                raise InvalidInputError(
                    f"{version.name}:{version.version} has no output {evaluation.output!r}",
                    hint=f"set gates.evaluation.output to one of {', '.join(outputs)}",
                    reason="BAD_GATES",
                )
            await asyncio.to_thread(_check_questions, version, evaluation.output, questions)

    def _of(self, name: str, version: str) -> tuple[rollout_pb2.Evaluation, registry_pb2.ModelVersion] | None:
        state = self._mirror.state
        rollout, recorded = state.rollouts.get(name), state.versions.get((name, version))
        if rollout is None or recorded is None or not rollout.spec.gates.HasField("evaluation"):
            return None
        return rollout.spec.gates.evaluation, recorded

    def _is_due(self, evaluation: rollout_pb2.Evaluation, version: registry_pb2.ModelVersion) -> bool:
        if self._is_scored(evaluation, version):
            return False
        wait = self._waits.get(_result(evaluation, version))
        due = wait is None or asyncio.get_running_loop().time() >= wait[1]
        return due and bool(serving_nodes(self._mirror.state, version.name, version.version))

    async def _evaluate(self, evaluation: rollout_pb2.Evaluation, version: registry_pb2.ModelVersion) -> None:
        key: VersionKey = (version.name, version.version)
        result = _result(evaluation, version)
        try:
            questions = await self._datasets.read(evaluation.dataset)
            nodes = serving_nodes(self._mirror.state, *key)
            answers = await self._asker.ask(version, evaluation.output, questions, nodes)
            expected = [question.expected for question in questions]
            found = {metric: await self._score(metric, expected, answers) for metric in evaluation.metrics}
        except (AimeshError, OSError) as error:
            reason = error.message if isinstance(error, AimeshError) else str(error)
            self._wait(result, reason)
            log.warning("evaluation.failed", model=version.name, version=version.version, reason=reason)
            return
        self._waits.pop(result, None)
        answered = await asyncio.to_thread(said, expected, answers)
        self._results[result] = _Answered({**self._scored(evaluation, version), **found}, answered)
        self._results.move_to_end(result)
        if len(self._results) > MOST_RESULTS:
            self._results.popitem(last=False)
        means = {metric: round(sum(scores) / len(scores), 4) for metric, scores in found.items()}
        log.info("evaluation.done", model=version.name, version=version.version, questions=len(expected), **means)

    def _scored(
        self, evaluation: rollout_pb2.Evaluation, version: registry_pb2.ModelVersion
    ) -> Mapping[str, list[float]]:
        held = self._results.get(_result(evaluation, version))
        return held.scores if held else {}

    def _is_scored(self, evaluation: rollout_pb2.Evaluation, version: registry_pb2.ModelVersion) -> bool:
        held = self._scored(evaluation, version)
        return all(metric in held for metric in evaluation.metrics)

    def _overlap(
        self, evaluation: rollout_pb2.Evaluation, version: registry_pb2.ModelVersion
    ) -> dict[str, list[float]]:
        base, others = compared(self._mirror.state.rollouts[version.name])
        recorded = self._mirror.state.versions.get((version.name, base))
        if recorded is None or version.version not in others:
            return {}
        old, new = (self._results.get(_result(evaluation, each)) for each in (recorded, version))
        return {OVERLAP: overlap(old.said, new.said)} if old and new else {}

    def _wait(self, result: _Result, reason: str) -> None:
        backoff = self._waits[result][0] if result in self._waits else Backoff(first_s=1.0, most_s=30.0)
        self._waits[result] = backoff, asyncio.get_running_loop().time() + backoff.next_delay(), reason

    async def _score(self, metric: str, expected: Sequence[Any], answers: Sequence[Any]) -> list[float]:
        if metric.startswith(SCORER):
            return await run_scorer(scorer_path(self._scorers_dir, metric.removeprefix(SCORER)), expected, answers)
        return await asyncio.to_thread(score, metric, expected, answers)


def versions_of(rollout: rollout_pb2.Rollout) -> list[str]:
    """The versions that a rollout compares, the new one first."""
    arms = [arm.version for arm in rollout.spec.experiment.arms]
    old = [target.version for target in rollout.before.targets if target.weight]
    return list(dict.fromkeys([rollout.spec.version, *arms, *old]))


def _result(evaluation: rollout_pb2.Evaluation, version: registry_pb2.ModelVersion) -> _Result:
    return evaluation.dataset, evaluation.output, version.digest


def _check_questions(version: registry_pb2.ModelVersion, output: str, questions: Sequence[Question]) -> None:
    for number, question in enumerate(questions, start=1):
        request_of(version, output, number, question)
