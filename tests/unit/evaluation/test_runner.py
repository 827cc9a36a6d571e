"""Evaluations beside each other: one that breaks, or takes for ever, keeps no other from being done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import structlog

from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.election import Election
from coordinator.evaluation.ask import Asker
from coordinator.evaluation.dataset import Question
from coordinator.evaluation.datasets import Datasets
from coordinator.evaluation.runner import Evaluator
from coordinator.mirror import Mirror
from meshkit.tls import TlsSettings
from tests.processes import eventually
from tests.unit.rollout.world import NAME, OLD, state_of, target

BROKEN, ENDLESS, GOOD = "broken", "endless", "good"


class Sets(Datasets):
    """Of which one cannot be read, for a reason that nobody foresaw."""

    def __init__(self) -> None:
        self.endless = asyncio.Event()

    async def read(self, digest: str) -> Sequence[Question]:
        if digest == BROKEN:
            raise KeyError("nobody foresaw this")
        if digest == ENDLESS:
            await self.endless.wait()
        return [Question({"x": 1}, 2)]


class Answers(Asker):
    async def ask(self, version: registry_pb2.ModelVersion, output: str, questions: Any, nodes: Any) -> list[Any]:
        return [2]


def evaluator(sets: Sets) -> Evaluator:
    """Of three rollouts that judge what is served, each by another set."""
    served = state_of(2, target(OLD))
    rollouts = {}
    for dataset in (BROKEN, ENDLESS, GOOD):
        made = rollout_pb2.Rollout(state=rollout_pb2.ROLLOUT_STATE_RUNNING)
        made.spec.name, made.spec.version = NAME, OLD
        made.spec.gates.evaluation.CopyFrom(
            rollout_pb2.Evaluation(dataset=dataset, output="y", metrics=["exact_match"])
        )
        rollouts[dataset] = made
    state = SimpleNamespace(rollouts=rollouts, versions=served.versions, serving=served.serving)
    mirror, election = SimpleNamespace(state=state, frozen=""), SimpleNamespace(term=1)
    return Evaluator(cast(Mirror, mirror), cast(Election, election), sets, Answers(TlsSettings()))


async def test_one_that_breaks_or_takes_for_ever_keeps_no_other_waiting() -> None:
    sets = Sets()
    made = evaluator(sets)
    rollouts = made._mirror.state.rollouts
    with structlog.testing.capture_logs() as logs:
        loop = asyncio.create_task(made.run())
        await eventually(lambda: any(each["event"] == "evaluation.done" for each in logs), what="an evaluation")
        assert not loop.done()
        for dataset, said in ((GOOD, ""), (ENDLESS, "is being evaluated"), (BROKEN, "KeyError: 'nobody foresaw this'")):
            made._mirror.state.rollouts = {NAME: rollouts[dataset]}  # type: ignore[misc]
            assert made.pending(NAME, OLD).endswith(said)
            assert bool(made.awaited(NAME)) == bool(said)
            rollouts[dataset].step = 1
            assert made.awaited(NAME) == [], "past the first step nothing waits"
        loop.cancel()
        await asyncio.wait([loop])
    assert [each["name"] for each in logs if each["event"] == "evaluation.fault"] == [f"{NAME}:{OLD}"]
