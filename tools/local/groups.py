"""Errors out of task groups."""

from __future__ import annotations

from meshkit.errors import AimeshError


def find_error(group: BaseExceptionGroup[BaseException]) -> AimeshError | None:
    """The first AimeshError in a group that holds nothing else, however deep; None when something else is in it."""
    _, rest = group.split(AimeshError)
    if rest is not None:
        return None
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, AimeshError) else None
