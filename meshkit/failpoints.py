"""Named failpoints: places in the code where a test can make the process die, stop, hang or fail.

They are for the windows that a kill from outside rarely hits: between a write and what follows it. AIMESH_FAILPOINTS
arms them, as `name=action;name=action`, or as `@FILE` with the same text in a file that is read again at each hit, so
that a test can arm and disarm a process that runs; each hit is then written to FILE.hits. Without the variable
`failpoint` is a function that does nothing.

Actions: `exit` (at once, with status 86, as kill -9 would), `stop` (SIGSTOP: all of the process, until SIGCONT),
`sleep:SECONDS` (the event loop and all), `error` (UnavailableError), `nospace` (OSError: the disk is full); with `#N`
at its end an action is taken at the first N hits only.

Source: etcd's gofail, reduced to what a test here needs.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshkit.errors import InvalidInputError, UnavailableError

VARIABLE = "AIMESH_FAILPOINTS"
EXIT_STATUS = 86
"""Status of a process that a failpoint ended."""

FAILPOINTS: Mapping[str, str] = {
    "election.won": "the leader's key is written; nothing has been done in the new term",
    "session.lease_granted": "a joining node has a lease; its record is not written",
    "session.node_written": "a joining node's record is written; its agent has not been told",
    "session.left_deleted": "a leaving node's record is deleted; its lease lives",
    "placement.decided": "an assignment is decided; it is not written",
    "placement.written": "an assignment is written; this coordinator has not seen it",
    "rollout.decided": "a rollout's next move is decided; it is not written",
    "rollout.written": "a rollout's next move is written; this coordinator has done nothing after it",
    "training.decided": "a training job's next move is decided; it is not written",
    "training.written": "a training job's next move is written; this coordinator has done nothing after it",
    "fetch.downloaded": "all bytes of a blob are on the agent's disk; its digest is not checked",
    "fetch.chunks_came": "all chunks of a blob are on the agent's disk, verified; its own digest is not checked",
    "chunk.write": "a verified chunk is about to be written to the agent's disk",
    "model.loaded": "Triton has loaded a model; it is not tested and nobody knows",
    "blob.append": "bytes of a blob are about to be written to the disk",
    "checkpoint.write": "a training job's worker is about to write a file of a checkpoint",
    "audit.stored": "audit events are in the database; etcd has them still",
    "experiment.executed": "both versions of an experiment have answered; nothing is written",
    "experiment.promoted": "the alias points at an experiment's candidate; the experiment does not say so yet",
    "experiment.quarantined": "a quarantine is written; its experiment does not say so yet",
    "worker.started": "the agent has started a process of a training job; it has not written down which",
    "triton.started": "the agent has started Triton; it has not written down which",
}
"""Every failpoint, and the window that it is in."""

_FORM = re.compile(r"(?P<kind>exit|stop|error|nospace|sleep:(?P<seconds>[0-9.]+))(#(?P<most>[1-9][0-9]*))?")


@dataclass(frozen=True)
class Action:
    """What to do at a failpoint."""

    kind: str
    seconds: float = 0.0
    most: int = 0
    """At how many hits; 0 for all."""


def parse(text: str) -> dict[str, Action]:
    """Actions by failpoint. Raises InvalidInputError naming the part that is wrong, and what is known."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, action = part.partition("=")
        if name not in FAILPOINTS:
            raise InvalidInputError(f"{VARIABLE}: unknown failpoint {name!r}", hint=f"known: {', '.join(FAILPOINTS)}")
        form = _FORM.fullmatch(action)
        if form is None:
            raise InvalidInputError(
                f"{VARIABLE}: {name}={action!r} is no action",
                hint="use exit, stop, sleep:SECONDS, error or nospace, each with #N for the first N hits only",
            )
        kind = form["kind"].partition(":")[0]
        found[name] = Action(kind, float(form["seconds"] or 0), int(form["most"] or 0))
    return found


class Armed:
    """The failpoints of a process that was started with the variable set."""

    def __init__(self, value: str) -> None:
        """Raises InvalidInputError when the value is malformed."""
        self._file = Path(value[1:]) if value.startswith("@") else None
        self._text = "" if self._file else value
        self._taken: Counter[str] = Counter()
        parse(self._read())

    def __call__(self, name: str) -> None:
        """Acts when the failpoint is armed. Raises UnavailableError or OSError when that is the action."""
        action = parse(self._read()).get(name)
        if action is None or (action.most and self._taken[name] >= action.most):
            return
        self._taken[name] += 1
        if self._file is not None:
            with self._file.with_name(f"{self._file.name}.hits").open("a") as hits:
                hits.write(f"{name}\n")
        _act(name, action)

    def _read(self) -> str:
        if self._file is None:
            return self._text
        return self._file.read_text() if self._file.exists() else ""


def _act(name: str, action: Action) -> None:
    match action.kind:
        case "exit":
            os._exit(EXIT_STATUS)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(action.seconds)
        case "error":
            raise UnavailableError(f"failpoint {name}")
        case "nospace":
            raise OSError(errno.ENOSPC, f"failpoint {name}")


def _unarmed(name: str) -> None:
    """What a failpoint is in every process but those of tests."""


failpoint: Callable[[str], None] = Armed(os.environ[VARIABLE]) if VARIABLE in os.environ else _unarmed
"""Call it with a name of FAILPOINTS, where the window is."""
