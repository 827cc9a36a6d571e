"""What a change of a model's tensors does to those who call it.

A caller of the old version builds its requests and reads its answers by the old signature. What it sends must still be
taken, so inputs may only get wider; what it reads must still be what it was, so outputs may only get narrower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from aimesh.registry.v1 import registry_pb2

Spec = registry_pb2.TensorSpec
ANY = -1
"""A dimension of any size."""


def breaks(old: registry_pb2.Signature, new: registry_pb2.Signature) -> list[str]:
    """What in a new signature breaks callers of an old one, a line each; empty when nothing does.

    An old signature without tensors says nothing of what its callers send, and nothing can break them.
    """
    if not old.inputs and not old.outputs:
        return []
    return [
        *_inputs(_by_name(old.inputs), _by_name(new.inputs)),
        *_outputs(_by_name(old.outputs), _by_name(new.outputs)),
        *_calls(old, new),
    ]


def _inputs(old: Mapping[str, Spec], new: Mapping[str, Spec]) -> list[str]:
    found = []
    for name, was in old.items():
        now = new.get(name)
        if now is None:
            found.append(f"input {name!r} is gone")
        else:
            found += _tensor(f"input {name!r}", was, now, fits=_fits(was.shape, now.shape))
            if was.optional and not now.optional:
                found.append(f"input {name!r} can no longer be left out")
    return found + [
        f"input {name!r} is new and cannot be left out"
        for name, now in new.items()
        if name not in old and not now.optional
    ]


def _outputs(old: Mapping[str, Spec], new: Mapping[str, Spec]) -> list[str]:
    found = []
    for name, was in old.items():
        now = new.get(name)
        if now is None:
            found.append(f"output {name!r} is gone")
        else:
            found += _tensor(f"output {name!r}", was, now, fits=_fits(now.shape, was.shape))
    return found


def _calls(old: registry_pb2.Signature, new: registry_pb2.Signature) -> list[str]:
    found = []
    if old.decoupled != new.decoupled:
        ways = ("once", "any number of times")
        found.append(f"a request is answered {ways[new.decoupled]}, not {ways[old.decoupled]}")
    if new.max_batch_size < old.max_batch_size:
        now = f"up to {new.max_batch_size}" if new.max_batch_size else "none"
        found.append(f"batches: {now}, not up to {old.max_batch_size}")
    return found


def _tensor(what: str, was: Spec, now: Spec, *, fits: bool) -> list[str]:
    found = []
    if was.data_type != now.data_type:
        found.append(f"{what} is {_type(now)}, not {_type(was)}")
    if not fits:
        found.append(f"{what} has the shape {list(now.shape)}, not {list(was.shape)}")
    return found


def _fits(shape: Sequence[int], within: Sequence[int]) -> bool:
    """Whether every tensor of one shape is also of another."""
    return len(shape) == len(within) and all(wide in (ANY, narrow) for narrow, wide in zip(shape, within, strict=True))


def _by_name(specs: Iterable[Spec]) -> dict[str, Spec]:
    return {spec.name: spec for spec in specs}


def _type(spec: Spec) -> str:
    known = registry_pb2.DataType.DESCRIPTOR.values_by_number.get(spec.data_type)
    return known.name.removeprefix("DATA_TYPE_") if known else str(spec.data_type)
