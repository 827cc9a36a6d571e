"""Hyperparameters of built-in tasks: typed, in range, and none that is not known."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from meshkit.errors import InvalidInputError


class Settings:
    """Reads values one by one; `done` refuses those that nobody asked for."""

    def __init__(self, task: str, given: Mapping[str, Any]) -> None:
        self._task = task
        self._given = given
        self._known: list[str] = []

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A number of a range, ends included. Raises InvalidInputError."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(name, value, f"a number, {least:g} to {most:g}")
        return float(value)

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number of a range. Raises InvalidInputError."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, value, f"a whole number, {least} to {most}")
        return value

    def sizes(self, name: str, default: Sequence[int], most: int = 1 << 16) -> tuple[int, ...]:
        """A list of whole numbers from 1, maybe empty. Raises InvalidInputError."""
        value = self._value(name, list(default))
        value = [value] if isinstance(value, int) and not isinstance(value, bool) else value
        whole = isinstance(value, list) and all(type(one) is int and 1 <= one <= most for one in value)
        if not whole:
            raise self.wrong(name, value, f"a list of whole numbers, 1 to {most}")
        return tuple(value)

    def choice(self, name: str, default: str, among: Sequence[str]) -> str:
        """One of some words. Raises InvalidInputError."""
        value = self._value(name, default)
        if value not in among:
            raise self.wrong(name, value, f"one of {', '.join(among)}")
        return str(value)

    def done(self) -> None:
        """Raises InvalidInputError for a hyperparameter that was never read."""
        for name in self._given:
            if name not in self._known:
                near = difflib.get_close_matches(name, self._known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(self._known))}"
                raise InvalidInputError(
                    f"task {self._task} has no hyperparameter {name!r}", hint=hint, reason="BAD_HYPERPARAMETER"
                )

    def wrong(self, name: str, value: object, expected: str) -> InvalidInputError:
        """The error of a value that cannot be."""
        return InvalidInputError(
            f"hyperparameter {name} = {value!r} of task {self._task} is not allowed",
            hint=expected,
            reason="BAD_HYPERPARAMETER",
        )

    def _value(self, name: str, default: Any) -> Any:
        self._known.append(name)
        value = self._given.get(name, default)
        return math.nan if isinstance(value, float) and not math.isfinite(value) else value
