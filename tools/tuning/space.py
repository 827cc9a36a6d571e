"""What a study searches: a space for each hyperparameter. Pure; imports optuna only for its distributions."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from meshkit.errors import InvalidInputError
from tools.training.values import as_json, check_keys

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Label = str | int | float | bool
KEYS: Mapping[str, tuple[str, ...]] = {
    "float": ("type", "low", "high", "step", "points"),
    "log": ("type", "low", "high", "points"),
    "int": ("type", "low", "high", "step", "log"),
    "categorical": ("type", "choices"),
}
BATCH_SIZE = "batch_size"
"""Not handed to the trainer: it is the job's own."""
MOST_SPACES = 64
MOST_GRID = 10_000
_MOST_WHOLE = 2**53
_FORM = 'for example lr = { type = "log", low = 1e-4, high = 1e-1 }'


@dataclass(frozen=True)
class Space:
    """The values that one hyperparameter may have."""

    name: str
    kind: str
    """float, log, int or categorical."""
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    points: int = 0
    """Of float and log: how many values a grid takes from it."""
    choices: tuple[Any, ...] = ()

    @property
    def labels(self) -> tuple[Label, ...]:
        """The choices as a study keeps them: what is no scalar as its JSON."""
        return tuple(choice if isinstance(choice, Label) else json.dumps(choice) for choice in self.choices)

    def distribution(self) -> BaseDistribution:
        """As optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "categorical":
            return CategoricalDistribution(self.labels)
        if self.kind == "int":
            return IntDistribution(int(self.low), int(self._last()), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self._last(), log=self.log, step=self.step)

    def grid(self) -> list[Label]:
        """Every value that a grid tries."""
        if self.kind == "categorical":
            return list(self.labels)
        if self.kind == "int":
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is not None:
            return [self._at(index) for index in range(self._steps() + 1)]
        return _spread(self.low, self.high, self.points, log=self.log)

    def _steps(self) -> int:
        """How often the step goes into the range, as the numbers are written: 0.3 is three times 0.1."""
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) // Decimal(str(self.step or 1)))

    def _at(self, index: int) -> float:
        return float(Decimal(str(self.low)) + index * Decimal(str(self.step or 1)))

    def _last(self) -> float:
        """The largest value that the steps reach."""
        return self.high if self.step is None else self._at(self._steps())

    def value(self, label: object) -> Any:
        """What the trainer is handed for a label."""
        if self.kind != "categorical":
            return label
        return self.choices[self.labels.index(label)]


def parse_spaces(found: object, where: str) -> tuple[Space, ...]:
    """The table tune.search. Raises InvalidInputError that names the hyperparameter and what is wrong with it."""
    if not isinstance(found, dict) or not found:
        raise InvalidInputError(f"{where} has nothing to search", hint=_FORM)
    if len(found) > MOST_SPACES:
        raise InvalidInputError(f"{where} has {len(found)} spaces", hint=f"at most {MOST_SPACES}")
    spaces = tuple(_space(name, table, f"{where}.{name}") for name, table in found.items())
    for space in spaces:
        if space.name == BATCH_SIZE:
            _check_batch_size(space, f"{where}.{space.name}")
    return spaces


def combinations(spaces: Sequence[Space], seed: int, where: str) -> list[dict[str, Label]]:
    """Every point of the grid, in an order drawn with the seed: the same for each command that goes on with it.

    Raises InvalidInputError for a space that no grid can be made of, and for a grid that is too large.
    """
    for space in spaces:
        if space.kind in ("float", "log") and space.step is None and not space.points:
            raise InvalidInputError(
                f"{where}.{space.name} has no end of values, and the sampler is grid",
                hint="set points = 5, for example",
            )
    count = math.prod(len(space.grid()) for space in spaces)
    if count > MOST_GRID:
        raise InvalidInputError(
            f"{where} makes a grid of {count} trials", hint=f"at most {MOST_GRID}; use tpe or random"
        )
    names = [space.name for space in spaces]
    found = [dict(zip(names, values, strict=True)) for values in itertools.product(*(space.grid() for space in spaces))]
    random.Random(seed).shuffle(found)  # noqa: S311 - an order, no secret
    return found


def _space(name: str, table: object, where: str) -> Space:
    if not isinstance(table, dict):
        raise InvalidInputError(f"{where} = {table!r} is no space", hint=_FORM)
    kind = table.get("type")
    if not isinstance(kind, str) or kind not in KEYS:
        raise InvalidInputError(f"{where}.type {kind!r} is not known", hint=f"one of {', '.join(KEYS)}")
    check_keys(table, KEYS[kind], where)
    if kind == "categorical":
        return Space(name, "categorical", choices=_choices(table.get("choices"), where))
    low, high = (_number(table.get(key), f"{where}.{key}", whole=kind == "int") for key in ("low", "high"))
    if low >= high:
        raise InvalidInputError(f"{where}: low {low:g} is not below high {high:g}", hint="raise high, or leave it out")
    log = kind == "log" or _flag(table.get("log", False), f"{where}.log")
    if log and low <= 0:
        raise InvalidInputError(f"{where}: low {low:g} has no logarithm", hint="low must be above 0")
    step = _step(table, where, whole=kind == "int")
    if log and step is not None:
        raise InvalidInputError(f"{where} has both log and step", hint="leave one out")
    if step is not None and "points" in table:
        raise InvalidInputError(f"{where} has both step and points", hint="leave one out")
    return Space(name, kind, low, high, step, log, _points(table, where))


def _choices(found: object, where: str) -> tuple[Any, ...]:
    if not isinstance(found, list) or not found:
        raise InvalidInputError(
            f"{where}.choices must be a list of values, not {found!r}", hint="choices = [[32], [64]]"
        )
    texts = [as_json(choice, f"{where}.choices[{index}]") for index, choice in enumerate(found)]
    space = Space("", "categorical", choices=tuple(found))
    for index, label in enumerate(space.labels):
        if label in space.labels[:index]:
            raise InvalidInputError(f"{where}.choices has {texts[index]} twice", hint="each value once")
    return tuple(found)


def _number(value: object, where: str, *, whole: bool) -> float:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is None or not fine or (whole and not isinstance(value, int)) or abs(float(str(value))) > _MOST_WHOLE:
        missing = "is missing" if value is None else f"= {value!r} is not possible"
        raise InvalidInputError(f"{where} {missing}", hint="a whole number" if whole else "a number, at most 2^53")
    return float(str(value))


def _step(table: Mapping[str, object], where: str, *, whole: bool) -> float | None:
    if "step" not in table:
        return None
    step = _number(table["step"], f"{where}.step", whole=whole)
    if step <= 0:
        raise InvalidInputError(f"{where}.step {step:g} is not possible", hint="above 0")
    return step


def _points(table: Mapping[str, object], where: str) -> int:
    points = table.get("points", 0)
    if "points" in table and (not isinstance(points, int) or isinstance(points, bool) or not 2 <= points <= MOST_GRID):
        raise InvalidInputError(
            f"{where}.points = {points!r} is not possible", hint=f"a whole number, 2 to {MOST_GRID}"
        )
    return int(str(points))


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"{where} = {value!r} is not possible", hint="true or false")
    return value


def _spread(low: float, high: float, points: int, *, log: bool) -> list[Label]:
    """So many values from low to high, at the same distance or ratio."""
    shares = [index / (points - 1) for index in range(1, points - 1)]
    inner = [low * (high / low) ** share if log else low + share * (high - low) for share in shares]
    return [low, *inner, high]


def _check_batch_size(space: Space, where: str) -> None:
    values = list(space.choices) if space.kind == "categorical" else [int(space.low)]
    whole = all(isinstance(value, int) and not isinstance(value, bool) and value >= 1 for value in values)
    if space.kind not in ("int", "categorical") or not whole:
        raise InvalidInputError(f"{where} is the job's batch size", hint="an int or categorical space of 1 or more")
