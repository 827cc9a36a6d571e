"""Work and plans for tests."""

from __future__ import annotations

from typing import Any

from aimesh.training.v1 import training_pb2
from training.analyse.analysis import Analysis
from training.plan.tensor import Pair, Step
from training.strategy.model import Basis, Network, Part, Work

GIB = 1 << 30


def chain(count: int, width: int) -> tuple[list[Part], tuple[Pair, ...]]:
    """Square linear layers in a row."""
    parts = [Part(2.0 * width * width, 4.0 * width * width, 4.0 * width)] * count
    steps = [Step(str(at), "linear", width, width, bias=False) for at in range(count)]
    return parts, tuple(Pair(one, other) for one, other in zip(steps[::2], steps[1::2], strict=False))


def work(count: int = 4, width: int = 1024, batch: int = 64, **more: Any) -> Work:
    parts, pairs = chain(count, width)
    return Work(
        flops=sum(part.flops for part in parts),
        parameter_bytes=4.0 * count * width * width,
        activation_bytes=8.0 * width * count,
        batch=batch,
        samples=5000,
        parts=parts,
        pairs=pairs,
        pairs_bytes=4.0 * count * width * width,
        units=count,
        unit_bytes=4.0 * width * width,
        **more,
    )


def basis(bandwidth: float = 1.25e9, latency_s: float = 1e-4, flops_per_s: float = 1e10) -> Basis:
    return Basis(flops_per_s, 1e-3, Network(bandwidth, latency_s))


def analysis(count: int = 4, width: int = 1024, **more: Any) -> Analysis:
    parts, pairs = chain(count, width)
    profile = training_pb2.ModelProfile(
        size_class="medium",
        parameters=count * width * width,
        parameter_bytes=4 * count * width * width,
        flops=sum(part.flops for part in parts),
        activation_bytes=8 * width * count,
        family="mlp",
        layers=[
            training_pb2.Layer(
                name=str(at), parameters=width * width, flops=part.flops, output_bytes=int(part.output_bytes)
            )
            for at, part in enumerate(parts)
        ],
        source="made up",
    )
    given: dict[str, Any] = {"samples": 5000, "pairs": pairs, "units": count, "basis": basis(), **more}
    return Analysis(profile, **given)


def spec(least: int = 1, most: int = 2, batch: int = 64, **more: Any) -> training_pb2.JobSpec:
    resources = training_pb2.Resources(min_workers=least, max_workers=most)
    return training_pb2.JobSpec(name="a", batch_size=batch, epochs=2, resources=resources, **more)


def nodes(count: int, memory_bytes: int = 16 * GIB, speeds: tuple[float, ...] = ()) -> list[training_pb2.Worker]:
    return [
        training_pb2.Worker(rank=at, node=f"node-{at}", memory_bytes=memory_bytes, speed=speeds[at] if speeds else 0.0)
        for at in range(count)
    ]
