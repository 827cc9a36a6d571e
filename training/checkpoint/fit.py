"""Whether a checkpoint is of the model and the optimizer that a job has now. Pure: names and shapes only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Shape = tuple[int, ...] | None
"""A tensor's sizes; None for what is no tensor."""
_STATE = "optimizer.state."


def misfit(has: Mapping[str, Shape], wants: Mapping[str, Shape], model: Mapping[str, Shape]) -> str:
    """Why a checkpoint with these entries cannot fill a state that wants those; empty when it can.

    `model` are the tensors of the whole model, of which a worker may want some only.
    """
    for name, shape in {**model, **wants}.items():
        if name in has and has[name] != shape:
            return f"{name} is {_shown(has[name])} in it and {_shown(shape)} here"
    absent = absent_states(has, wants)
    missing = [
        name for name in {**model, **wants} if name not in has and not any(name.startswith(_of(one)) for one in absent)
    ]
    if missing:
        return f"it lacks {_some(missing)}"
    more = [name for name in has if name.startswith("model.") and name not in model]
    if more:
        return f"it has {_some(more)}, which this model has not"
    return _other_optimizer(has, wants)


def absent_states(has: Mapping[str, Shape], wants: Mapping[str, Shape]) -> set[str]:
    """Parameters for which the optimizer that wrote it had nothing yet: they had had no gradient, others had."""
    if not any(name.startswith(_STATE) for name in has):
        return set()
    parameters = {name.removeprefix("model.") for name in wants if name.startswith("model.")}
    wanted = {one for one in parameters if any(name.startswith(_of(one)) for name in wants)}
    return {one for one in wanted if not any(name.startswith(_of(one)) for name in has)}


def _other_optimizer(has: Mapping[str, Shape], wants: Mapping[str, Shape]) -> str:
    if not any(name.startswith(_STATE) for name in wants):
        return ""  # who wants the model only
    parameters = [name.removeprefix("model.") for name in wants if name.startswith("model.")]
    for one in parameters:
        more = [name for name in has if name.startswith(_of(one)) and name not in wants]
        if more:
            return f"it has {_some(more)}: it is of another optimizer"
    return ""


def _of(parameter: str) -> str:
    return f"{_STATE}{parameter}."


def _some(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first


def _shown(shape: Shape) -> str:
    return "no tensor" if shape is None else str(list(shape))
