"""What a snapshot has in common with the one before is made once; memory follows what there is, not what there was."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar

Key = ParamSpec("Key")
Made = TypeVar("Made")


class Memo(Generic[Key, Made]):
    """A pure function whose results are kept for as long as every generation asks for them again."""

    def __init__(self, make: Callable[Key, Made]) -> None:
        self._make = make
        self._now: dict[Hashable, Made] = {}
        self._before: dict[Hashable, Made] = {}
        _memos.append(self)

    def __call__(self, *args: Key.args, **kwargs: Key.kwargs) -> Made:
        """The result; one that was made before is the same object, so it must never be changed in place."""
        key = (args, *kwargs.items())
        if key not in self._now:
            self._now[key] = self._before[key] if key in self._before else self._make(*args, **kwargs)
        return self._now[key]

    def turn(self) -> None:
        """Begins a generation: what was not asked for in the one that ends is forgotten."""
        self._before, self._now = self._now, {}

    def __len__(self) -> int:
        return len({*self._now, *self._before})


_memos: list[Memo[Any, Any]] = []


def kept(make: Callable[Key, Made]) -> Memo[Key, Made]:
    """Decorates a pure function of hashable values; keywords must come in the same order at every call."""
    return Memo(make)


def next_generation() -> None:
    """A new snapshot is about to be made."""
    for memo in _memos:
        memo.turn()
