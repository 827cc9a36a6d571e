"""Faults of single things that a loop looks at: kept from the others and from the process, logged, and told to people.

A loop that decides for many must not end because of one of them: every coordinator would end in turn, each as soon as
it leads. What nobody foresaw is a bug all the same: it is logged with its traceback, and whoever asks is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

import structlog

log = structlog.get_logger()

_MOST_TEXT = 300


@dataclass
class Faults:
    """Use as `with faults.kept(name, version): ...`; `faults.of(name)` says afterwards what went wrong."""

    event: str
    """The log event, as rollout.fault."""
    _held: dict[str, tuple[object, str, str]] = field(default_factory=dict, init=False)
    """By name: of which version, where, and what."""

    def kept(self, name: str, version: object = None) -> _Kept:
        """Ends every Exception in its block. It is logged once for each version of the thing and place in the code."""
        return _Kept(self, name, version)

    def of(self, name: str) -> str:
        """What went wrong the last time; empty when nothing did."""
        return self._held.get(name, (None, "", ""))[2]

    def only(self, names: set[str]) -> None:
        """Forgets of all others."""
        for name in self._held.keys() - names:
            del self._held[name]

    def ended(self, name: str, version: object, error: Exception | None, trace: TracebackType | None) -> None:
        """Takes in how a block ended."""
        if error is None:
            self._held.pop(name, None)
            return
        where, what = _place(trace), f"{type(error).__name__}: {error}"[:_MOST_TEXT]
        before = self._held.get(name)
        self._held[name] = version, where, what
        if before is None or before[:2] != (version, where):
            log.error(self.event, name=name, error=what, where=where, exc_info=(type(error), error, trace))


@dataclass(frozen=True)
class _Kept:
    faults: Faults
    name: str
    version: object

    def __enter__(self) -> None:
        """Nothing is held while the block runs."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False  # cancelled, or told to end
        self.faults.ended(self.name, self.version, error, trace)
        return True


def _place(trace: TracebackType | None) -> str:
    """File and line where it was raised."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
