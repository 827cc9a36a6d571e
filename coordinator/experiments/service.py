"""ExperimentService: what users ask of experiments. A write only states what is wanted; the runner carries it out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aimesh.experiment.v1 import experiment_pb2, experiment_pb2_grpc
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator import keys
from coordinator.evaluation.dataset import Question
from coordinator.evaluation.datasets import Datasets
from coordinator.evaluation.runner import Evaluator
from coordinator.experiments import lifecycle
from coordinator.experiments.asking import check_served
from coordinator.experiments.check import check_questions, checked_spec, repeats, with_metrics
from coordinator.experiments.configuration import check_not_quarantined, check_parameters, content_of, hash_of
from coordinator.experiments.evaluate import Wanted
from coordinator.experiments.runner import Experimenter
from coordinator.experiments.store import Result
from coordinator.order import Order
from coordinator.paging import DEFAULT_SIZE, MOST, page
from coordinator.registry.finding import check_is_model, find_version
from coordinator.rollout.gates import check_gates
from meshkit.auth import current_principal
from meshkit.errors import ExhaustedError, InvalidInputError, PreconditionError

TELL_S = 0.5
"""How often a comparison says how far it is."""
MOST_COMPARISONS = 2
"""At a time: each asks as fast as it is answered."""
_LAST = 2**63 - 1


@dataclass
class ExperimentService(experiment_pb2_grpc.ExperimentServiceServicer):
    """Serves aimesh.experiment.v1."""

    runner: Experimenter
    datasets: Datasets
    evaluator: Evaluator
    _comparing: int = field(default=0, init=False)

    async def CreateExperiment(  # noqa: N802
        self, request: experiment_pb2.CreateExperimentRequest, context: Any
    ) -> experiment_pb2.CreateExperimentResponse:
        """Creates one; see experiment.proto."""
        spec = checked_spec(request.spec)
        if unshared := self._unshared():
            raise PreconditionError(
                unshared[0], hint=f"{unshared[1]}, then restart them", reason="EXPERIMENTS_NOT_SHARED"
            )
        state = self.runner.evaluation.mirror.state
        baseline, candidate = (find_version(state, spec.model, each) for each in (spec.baseline, spec.candidate))
        config_hash = hash_of(candidate, spec.parameters)
        check_not_quarantined(state.quarantined.values(), candidate, config_hash)
        questions = await self._questions(spec.evaluation, [baseline, candidate])
        spec.gates.evaluation.CopyFrom(spec.evaluation)
        await asyncio.to_thread(check_gates, spec.gates)
        check_questions(len(questions))
        spec.repeat = repeats(spec.repeat, len(questions))
        made = experiment_pb2.Experiment(spec=spec, hash=config_hash, content=content_of(candidate))
        made = lifecycle.moved(made, lifecycle.CREATED, self._order("created"))
        event = self.runner.outbox.draft(f"experiments/{spec.name}", None, keys.encode(made))
        await self.runner.store.create(made, await asyncio.to_thread(_lines, questions), event)
        self.runner.ring()
        return experiment_pb2.CreateExperimentResponse(experiment=made)

    async def GetExperiment(  # noqa: N802
        self, request: experiment_pb2.GetExperimentRequest, context: Any
    ) -> experiment_pb2.GetExperimentResponse:
        """One with its report."""
        held = await self.runner.store.get(request.name)
        result = await self.runner.store.result(request.name)
        return experiment_pb2.GetExperimentResponse(
            experiment=held.experiment, report=result.report if result else None
        )

    async def ListExperiments(  # noqa: N802
        self, request: experiment_pb2.ListExperimentsRequest, context: Any
    ) -> experiment_pb2.ListExperimentsResponse:
        """A page, newest first."""
        most = min(request.page_size or DEFAULT_SIZE, MOST)
        found = await self.runner.store.list(_before(request.page_token), most + 1, request.model)
        answer = experiment_pb2.ListExperimentsResponse(
            experiments=[each for _, each in found[:most]], warning="; ".join(self._unshared())
        )
        if len(found) > most:
            answer.next_page_token = base64.urlsafe_b64encode(str(found[most - 1][0]).encode()).decode()
        return answer

    async def PromoteExperiment(  # noqa: N802
        self, request: experiment_pb2.PromoteExperimentRequest, context: Any
    ) -> experiment_pb2.PromoteExperimentResponse:
        """A person's decision for the candidate."""
        order = self._order(request.reason)
        made = await self._change(request.name, lambda found: lifecycle.promoted_by(found, order))
        return experiment_pb2.PromoteExperimentResponse(experiment=made)

    async def RejectExperiment(  # noqa: N802
        self, request: experiment_pb2.RejectExperimentRequest, context: Any
    ) -> experiment_pb2.RejectExperimentResponse:
        """A person's decision against it."""
        order = self._order(request.reason)
        made = await self._change(request.name, lambda found: lifecycle.rejected_by(found, order))
        return experiment_pb2.RejectExperimentResponse(experiment=made)

    async def CancelExperiment(  # noqa: N802
        self, request: experiment_pb2.CancelExperimentRequest, context: Any
    ) -> experiment_pb2.CancelExperimentResponse:
        """Ends one."""
        order = self._order(request.reason)
        made = await self._change(request.name, lambda found: lifecycle.cancelled_by(found, order))
        return experiment_pb2.CancelExperimentResponse(experiment=made)

    async def Compare(  # noqa: N802
        self, request: experiment_pb2.CompareRequest, context: Any
    ) -> AsyncIterator[experiment_pb2.CompareResponse]:
        """Compares two versions now; ends when the caller goes."""
        wanted = await self._compared(request)
        if self._comparing >= MOST_COMPARISONS:
            raise ExhaustedError(
                f"this coordinator makes {self._comparing} comparisons already", hint="try again when one is over"
            )
        done = 0

        def tell() -> None:
            nonlocal done
            done += 1

        asker = replace(self.runner.asker, parameters=dict(request.parameters), tell=tell)
        self._comparing += 1
        task = asyncio.create_task(self.runner.evaluation.run(wanted, asker), name="comparison")
        try:
            while not task.done():
                yield experiment_pb2.CompareResponse(done=min(done, wanted.requests), total=wanted.requests)
                await asyncio.wait({task}, timeout=TELL_S)
            result: Result = await task
            yield experiment_pb2.CompareResponse(done=wanted.requests, total=wanted.requests, report=result.report)
        finally:
            self._comparing -= 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def ListQuarantine(  # noqa: N802
        self, request: experiment_pb2.ListQuarantineRequest, context: Any
    ) -> experiment_pb2.ListQuarantineResponse:
        """A page, by hash."""
        found = [each for _, each in sorted(self.runner.evaluation.mirror.state.quarantined.items())]
        items, token = page(found, request.page_size, request.page_token, lambda each: each.hash)
        return experiment_pb2.ListQuarantineResponse(quarantined=items, next_page_token=token)

    async def ReleaseQuarantine(  # noqa: N802
        self, request: experiment_pb2.ReleaseQuarantineRequest, context: Any
    ) -> experiment_pb2.ReleaseQuarantineResponse:
        """Lifts one."""
        found = await self.runner.quarantines.release(request.hash, self._order(request.reason))
        return experiment_pb2.ReleaseQuarantineResponse(quarantine=found)

    async def _change(
        self, name: str, make: Callable[[experiment_pb2.Experiment], experiment_pb2.Experiment]
    ) -> experiment_pb2.Experiment:
        held = await self.runner.store.get(name)
        return (await self.runner.change(held, make(held.experiment))).experiment

    async def _compared(self, request: experiment_pb2.CompareRequest) -> Wanted:
        check_parameters(request.parameters)
        state = self.runner.evaluation.mirror.state
        baseline = find_version(state, request.baseline_model, request.baseline)
        candidate = find_version(state, request.candidate_model, request.candidate)
        evaluation = with_metrics(request.evaluation)
        questions = await self._questions(evaluation, [baseline, candidate])
        check_served(state, [baseline, candidate])
        return Wanted(baseline, candidate, evaluation, questions, repeats(request.repeat, len(questions)))

    async def _questions(
        self, evaluation: rollout_pb2.Evaluation, versions: Sequence[registry_pb2.ModelVersion]
    ) -> Sequence[Question]:
        """The set, which fits both. Fills in the output where there is only one."""
        for version in versions:
            check_is_model(version)
            outputs = [spec.name for spec in version.signature.outputs]
            if not evaluation.output and len(outputs) == 1:
                evaluation.output = outputs[0]
            for spec in version.signature.outputs:
                if spec.name == evaluation.output and spec.data_type == registry_pb2.DATA_TYPE_BF16:
                    raise InvalidInputError(
                        f"output {spec.name!r} of {version.name}:{version.version} is BF16, which cannot be compared",
                        hint="name another output",
                        reason="BAD_GATES",
                    )
        if not evaluation.output:
            raise InvalidInputError(
                f"{versions[0].name} has several outputs", hint="say which one holds the answer", reason="BAD_GATES"
            )
        gates = rollout_pb2.Gates(evaluation=evaluation)
        await asyncio.to_thread(check_gates, gates)
        await self.evaluator.check(evaluation, versions)
        return await self.datasets.read(evaluation.dataset)

    def _unshared(self) -> tuple[str, ...]:
        """What is wrong and what to do, where another coordinator that is asked would know nothing of it."""
        many = len(self.runner.evaluation.mirror.state.coordinators)
        if many == 1 or self.runner.store.shared:
            return ()
        return (
            f"each of the {many} coordinators keeps experiments in a file of its own",
            "set coordinator.experiments.url to one PostgreSQL database on all of them",
        )

    def _order(self, reason: str) -> Order:
        return Order(current_principal().actor, reason, self.runner.now_ns())


def _before(token: str) -> int:
    with contextlib.suppress(binascii.Error, ValueError):
        before = int(base64.b64decode(token.encode(), altchars=b"-_", validate=True)) if token else 0
        if 0 <= before <= _LAST:
            return before
    raise InvalidInputError(f"page_token {token!r} is not valid", hint="pass next_page_token unchanged")


def _lines(questions: Sequence[Question]) -> bytes:
    """As the set was, but for what JSON leaves free."""
    return "\n".join(
        json.dumps({"inputs": dict(each.inputs), "expected": each.expected}) for each in questions
    ).encode()
