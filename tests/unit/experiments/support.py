"""What tests of experiments share."""

from __future__ import annotations

import random
from collections.abc import Sequence

from aimesh.experiment.v1 import experiment_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.experiments.asking import Asked, Sample, Taken


def version(number: str = "2.0.0", name: str = "m", content: str = "a") -> registry_pb2.ModelVersion:
    return registry_pb2.ModelVersion(
        name=name,
        version=number,
        runtime="python",
        digest=content * 64,
        files=[registry_pb2.ModelFile(path="1/model.py", digest=content * 64, size=3)],
    )


def spec(name: str = "e1", **fields: object) -> experiment_pb2.ExperimentSpec:
    evaluation = rollout_pb2.Evaluation(dataset="d" * 64, output="y", metrics=["accuracy"])
    values: dict[str, object] = {
        "name": name,
        "model": "m",
        "candidate": "2.0.0",
        "baseline": "1.0.0",
        "evaluation": evaluation,
        **fields,
    }
    return experiment_pb2.ExperimentSpec(**values)  # type: ignore[arg-type]


def taken(
    number: str,
    answers: Sequence[object],
    *,
    repeat: int = 3,
    milliseconds: float = 10.0,
    failing: int = 0,
    parts: int = 0,
    price: float | None = None,
    memory: float | None = None,
    seed: int = 1,
) -> Taken:
    """Answers that took about so long; the first `failing` questions fail."""
    drawn = random.Random(f"{seed}{number}")
    rounds = [
        [
            Asked(None, 0.001, "INTERNAL")
            if place < failing
            else Asked(answer, milliseconds * drawn.lognormvariate(0, 0.2) / 1000, parts=parts)
            for place, answer in enumerate(answers)
        ]
        for _ in range(repeat)
    ]
    return Taken(
        version(number),
        ("n1",),
        rounds,
        [sum(each.seconds for each in one) / 4 for one in rounds],
        [Sample(memory, None, 1.5, None)],
        price,
    )
