"""What a worker keeps in memory under each strategy. Sources are with the terms."""

from __future__ import annotations

from dataclasses import replace

from aimesh.training.v1 import training_pb2
from training.strategy.model import GPU_BASE_BYTES, Estimate, Work

MARGIN = 1.2
"""On top of what is counted, for buffers of messages and allocators: the same as for served models (findings.py)."""


def with_memory(estimate: Estimate, work: Work, *, share: int, held: float, extra: float = 0) -> Estimate:
    """The estimate with its memory.

    `share` samples keep their activations on a worker; `held` is the part of the model's parameters that it has, 0 to
    1, and `extra` bytes come on top. Parameters, gradients and optimizer state are 1 + 1 + slots times the bytes of
    the parameters: 16 bytes a parameter with Adam in FP32, as in Rajbhandari et al., "ZeRO", 2020, 3.1. A checkpoint
    on its way to the disk is a copy of all but the gradients, in the host's memory; at the end the whole model is
    gathered and exported, which takes four times its bytes (measured). A worker on a GPU keeps the rest there.
    """
    weights, slots = work.parameter_bytes, work.optimizer_slots
    state = weights * held * (2 + slots) + extra
    training = state + work.activation_bytes * share * (held if _cut(estimate.strategy) else 1)
    written = weights * held * (1 + slots)
    exported = 4 * weights
    if work.gpu:
        # Every engine is handed the whole model before it shares it out.
        host = work.base_bytes + MARGIN * (weights + max(written, exported))
        return replace(estimate, memory_bytes=int(host), gpu_memory_bytes=int(GPU_BASE_BYTES + MARGIN * training))
    most = max(training + written, state + exported)
    return replace(estimate, memory_bytes=int(work.base_bytes + MARGIN * most))


def _cut(strategy: int) -> bool:
    """Whether activations are shared out as the layers are."""
    return strategy == training_pb2.STRATEGY_PIPELINE
