"""Ctrl-C while a command follows something that goes on without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tools.cli.output import progress_console

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of SIGINT."""


@contextmanager
def interruptible(what: str, end: str) -> Iterator[None]:
    """Ctrl-C within ends the command with 130: how `what` ends is not known. `end` is the command that ends it."""
    try:
        yield
    except KeyboardInterrupt:
        progress_console().print(f"Stopped watching: {what} goes on.\n  {end}   ends it", soft_wrap=True)
        raise SystemExit(INTERRUPTED) from None
