"""Which layers can be shared out within themselves, and over how many workers. Knows shapes only, not torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "elementwise", "other"]


@dataclass(frozen=True)
class Step:
    """A module of a chain whose output is the next one's input."""

    name: str
    """The module's name from the root."""
    kind: Kind
    """"elementwise": each output feature depends on the same input feature alone, as ReLU and dropout do."""
    inputs: int = 0
    """Input features of a linear one."""
    outputs: int = 0
    """Output features of a linear one."""
    bias: bool = True

    @property
    def parameters(self) -> int:
        """Numbers in a linear one."""
        return self.inputs * self.outputs + self.bias * self.outputs


@dataclass(frozen=True)
class Pair:
    """Two linear layers that are shared out together: the first by columns, the second by rows."""

    first: Step
    second: Step

    @property
    def width(self) -> int:
        """Features between them: each worker has some."""
        return self.first.outputs

    @property
    def parameters(self) -> int:
        """Numbers that are shared out."""
        return self.first.parameters + self.second.inputs * self.second.outputs


def pairs(chain: Sequence[Step]) -> list[Pair]:
    """Linear layers of a chain that follow each other with nothing but elementwise modules between, each once.

    The first by columns keeps its output in parts, which elementwise modules leave so, and the second by rows takes it
    in parts and needs one all-reduce: the MLP of Shoeybi et al., "Megatron-LM", 2019, section 3. Pairs are taken from
    the front. Anything else between (a norm, a convolution) needs all features and ends a pair.
    """
    found: list[Pair] = []
    open_: Step | None = None
    for step in chain:
        if step.kind == "linear":
            if open_ is not None and open_.outputs == step.inputs:
                found.append(Pair(open_, step))
                open_ = None
            else:
                open_ = step
        elif step.kind == "other":
            open_ = None
    return found


def divides(pair: Pair, workers: int) -> bool:
    """Whether each of so many workers has the same, whole number of the features between."""
    return pair.width % workers == 0


def usable(found: Sequence[Pair], workers: int) -> list[Pair]:
    """The pairs that so many workers can share out. The others stay whole on each."""
    return [pair for pair in found if divides(pair, workers)]


def layout(found: Sequence[Pair], workers: int) -> dict[str, Literal["columns", "rows"]]:
    """How each linear layer's weight is shared out, by the module's name; those not named stay whole."""
    named: dict[str, Literal["columns", "rows"]] = {}
    for pair in usable(found, workers):
        named |= {pair.first.name: "columns", pair.second.name: "rows"}
    return named
