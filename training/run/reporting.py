"""Why a process of a job ends: whatever was raised becomes one error event, with the step and the batch at hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meshkit.errors import AimeshError, DataLossError, ExhaustedError, InvalidInputError, UnavailableError
from meshkit.files import is_full
from training.entry import said

_PEER = re.compile(
    r"gloo[/\\]|nccl (error|comm)|connection (closed|reset|refused)|broken pipe|socket|tcpstore|"
    r"timed out (waiting|after)|recvvalue|"
    r"application timeout|process group",
    re.IGNORECASE,
)
"""What torch's communication says when a peer is gone. It has no error class of its own for most of it."""
_UNUSED = "Expected to have finished reduction"
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_SHOWN = 20


@dataclass
class Place:
    """Where a process is, for its errors."""

    doing: str = "starting"
    step: int = 0
    """The step under way, from 1; 0 before the first."""
    batch: Sequence[int] | npt.NDArray[np.int64] = field(default_factory=tuple)
    """This worker's samples of it."""

    def __str__(self) -> str:
        if not self.step:
            return f"while {self.doing}"
        return f"in step {self.step}, samples {shown(self.batch)}"


def shown(batch: Sequence[int] | npt.NDArray[np.int64]) -> str:
    """Numbers of samples for people, the first of them when there are many."""
    numbers = ", ".join(str(int(index)) for index in batch[:_SHOWN])
    left_out = len(batch) - _SHOWN
    return f"{numbers} and {left_out} more" if left_out > 0 else numbers or "none"


def explain(error: BaseException, place: Place, code: Path) -> tuple[AimeshError, bool]:
    """What is said of an error, and whether another try could go better."""
    text = str(error)
    if isinstance(error, AimeshError):
        return error, isinstance(error, UnavailableError | DataLossError)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return _no_memory(place, text), False
    if is_full(error):
        return ExhaustedError(f"{place}: {error}", hint="free space on the node's disk", reason="DISK_FULL"), True
    if isinstance(error, RuntimeError) and _UNUSED in text:
        return _unused(), False
    if isinstance(error, RuntimeError) and _PEER.search(text):
        return _peer_lost(place, text), True
    return _failed(error, place, code), False


def _no_memory(place: Place, text: str) -> ExhaustedError:
    return ExhaustedError(
        f"{place}: out of memory: {text[:300]}",
        hint="lower batch_size, raise resources.memory_bytes or gpu_memory_bytes, or share the model out (fsdp)",
        reason="OUT_OF_MEMORY",
    )


def _unused() -> InvalidInputError:
    return InvalidInputError(
        "a step left some of the model's parameters without a gradient, for which the other workers wait",
        hint="give the trainer unused_parameters = True, or freeze those parameters",
        reason="BAD_TRAINER",
    )


def _peer_lost(place: Place, text: str) -> UnavailableError:
    return UnavailableError(
        f"{place}: another worker was lost: {text.splitlines()[0][:300]}",
        hint="the first worker that failed says why; the job goes on from its last checkpoint",
        reason="PEER_LOST",
    )


def _failed(error: BaseException, place: Place, code: Path) -> InvalidInputError:
    return InvalidInputError(
        f"{place}: {said(error, code)}",
        hint="the worker's log has the whole trace: aimesh train logs",
        reason="TRAINER_FAILED",
    )
