"""Follows the pickles of a file: plain ones, joblib's with arrays between the opcodes, torch's five in a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from training.formats import arrays
from training.formats.dangers import Dangers
from training.formats.opcodes import NotAPickleError, Opcodes, Source, TooLongError
from training.formats.symbolic import Array, Global, Machine, Made, Pairs

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file of torch before 1.6 (torch/serialization.py, MAGIC_NUMBER)."""
_TORCH_PICKLES = 4  # after the magic number: protocol, system, the object, the storages' keys
_DEEPEST = 8


@dataclass
class Walk:
    """What was seen of a file's pickles."""

    dangers: Dangers = field(default_factory=Dangers)
    roots: list[Any] = field(default_factory=list)
    problem: str = ""
    """Why it could not be followed to its end."""
    too_long: bool = False
    """It goes on beyond what is looked at."""
    joblib: bool = False
    end: int = 0
    """The first byte after the last pickle."""
    opcodes: int = 0

    @property
    def is_legacy_torch(self) -> bool:
        """Whether it is what torch.save wrote before 1.6."""
        return len(self.roots) == 1 + _TORCH_PICKLES and self.roots[0] == TORCH_MAGIC


def follow(file: BinaryIO, size: int | None, *, joblib: bool = True) -> Walk:
    """Follows the pickle that begins here, and those that belong to it. Never raises for what it reads."""
    walk, source = Walk(), Source(file, size)
    opcodes = Opcodes(source)
    reader = _Joblib(walk) if joblib else None
    try:
        walk.roots.append(_machine(walk, opcodes, reader).run())
        if walk.roots[0] == TORCH_MAGIC:
            for _ in range(_TORCH_PICKLES):
                walk.roots.append(_machine(walk, opcodes, None).run())
    except TooLongError as error:
        walk.problem, walk.too_long = str(error), True
        walk.dangers.unseen(walk.problem)
    except NotAPickleError as error:
        walk.problem = str(error)
    walk.end, walk.opcodes = source.position, opcodes.count
    return walk


def _machine(walk: Walk, opcodes: Opcodes, reader: _Joblib | None) -> Machine:
    return Machine(opcodes, walk.dangers.on_import, walk.dangers.on_call, reader.built if reader else None)


class _Joblib:
    """Passes over the arrays that joblib writes behind their descriptions (joblib/numpy_pickle.py, read_array)."""

    def __init__(self, walk: Walk) -> None:
        self._walk, self._depth = walk, 0

    def built(self, made: Made, opcodes: Opcodes) -> Any:
        """Takes the array's bytes, or the pickle of its objects, when an array's description is complete."""
        maker = made.maker
        if not isinstance(maker, Global) or (maker.module, maker.name) != ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return made
        self._walk.joblib = True
        state = made.states[-1]
        dtype = state.get("dtype") if isinstance(state, Pairs) else None
        shape = arrays.shape_of(state.get("shape")) if isinstance(state, Pairs) else None
        width = arrays.item_size(dtype)
        if width is not None and shape is not None:
            self._pass(opcodes.source, width, shape, padded=state.get("numpy_array_alignment_bytes") is not None)
        elif arrays.holds_objects(dtype):
            self._objects(opcodes)
        else:
            self._walk.dangers.unseen(f"an array before byte {opcodes.source.position} has an unknown element type")
            raise NotAPickleError(f"no size of the array before byte {opcodes.source.position}")
        return Array(arrays.type_name(dtype), shape or ())

    def _pass(self, source: Source, width: int, shape: tuple[int, ...], *, padded: bool) -> None:
        if any(size < 0 for size in shape):
            raise NotAPickleError(f"an array of shape {list(shape)} before byte {source.position}")
        if padded:
            source.skip(source.take(1)[0])
        source.skip(math.prod(shape) * width)

    def _objects(self, opcodes: Opcodes) -> None:
        if self._depth >= _DEEPEST:
            self._walk.dangers.unseen("its arrays hold each other too deep")
            raise NotAPickleError("its arrays hold each other too deep")
        self._depth += 1
        _machine(self._walk, opcodes, self).run()
        self._depth -= 1
