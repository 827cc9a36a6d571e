"""Policies in Rego: compiled when a rollout starts, evaluated at each judgement, both in a process of their own."""

from __future__ import annotations

import atexit
import json
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from coordinator.rollout.rego_process import MOST_S
from meshkit.errors import AimeshError, InvalidInputError

MOST_TEXT = 64 * 1024
"""Bytes of a policy, at most."""
_START_S = 10.0
"""Beyond MOST_S, the process may need this to start on a busy machine."""
_NAMED = re.compile(r"""\binput\.(metrics|baseline)(?:\.([A-Za-z_]\w*)|\[\s*"([^"]*)"\s*\])""")
_SECTION = re.compile(r"\binput\.([A-Za-z_]\w*)")
SECTIONS = ("metrics", "baseline", "comparisons", "surely", "cost_increase", "requests")
"""What the document has."""


class PolicyError(AimeshError):
    """A policy that failed when it was run: there is no judgement."""


@dataclass(frozen=True)
class Policy:
    """A policy that compiles."""

    text: str


@dataclass(frozen=True)
class Ruling:
    """What a policy says."""

    fail: Sequence[str] = ()
    """Why the new version goes back."""
    hold: Sequence[str] = ()
    """Why there is no telling."""


@cache
def default_policy() -> Policy:
    """The built-in one."""
    return Policy(files("coordinator.rollout").joinpath("gates.rego").read_text())


def compile(text: str, metrics: Sequence[str]) -> Policy:  # noqa: A001  # the word for it
    """A policy that parses and names no other than these metrics. Blocks for some milliseconds.

    Raises InvalidInputError with the line and the reason.
    """
    if len(text.encode()) > MOST_TEXT:
        raise _refused(f"it has {len(text.encode())} bytes, and may have {MOST_TEXT}")
    _check_names(text, metrics)
    empty = {"metrics": {}, "baseline": {}, "comparisons": [], "surely": {"error_rate": 0}, "requests": 0}
    try:
        found = _process().ask(text, empty)
    except PolicyError as error:
        raise _refused(error.message) from None
    if "syntax" in found:
        offset, why = found["syntax"]
        line = text.encode().count(b"\n", 0, offset) + 1
        raise _refused(f"line {line}: {why}")
    if "answer" in found:
        _ruling(found["answer"], _refused)
    return Policy(text)


def evaluate(policy: Policy, document: Mapping[str, Any]) -> Ruling:
    """What a policy says of a document. Blocks for some milliseconds, a second at most (see MOST_S).

    Raises PolicyError when it cannot be run: it takes too long, divides by zero, has no `fail` or no text in it.
    """
    found = _process().ask(policy.text, document)
    if "syntax" in found:
        raise PolicyError(f"the policy does not compile: {found['syntax'][1]}")
    if "broken" in found:
        raise PolicyError(f"the policy failed: {found['broken']}")
    return _ruling(found["answer"], PolicyError)


def _refused(why: str) -> AimeshError:
    hint = "see docs/operations/gates.md for the sets `fail` and `hold` of package aimesh.gates, and what they can use"
    return InvalidInputError(f"the gates' policy cannot be used: {why}", hint=hint, reason="BAD_GATE_POLICY")


def _check_names(text: str, metrics: Sequence[str]) -> None:
    """A rule over a metric that there is not would never say anything."""
    for number, line in enumerate(text.splitlines(), start=1):
        code = line.partition("#")[0]
        unknown = [name for name in _SECTION.findall(code) if name not in SECTIONS]
        if unknown:
            raise _refused(f"line {number}: input.{unknown[0]} does not exist; there is {', '.join(SECTIONS)}")
        for section, dotted, quoted in _NAMED.findall(code):
            if (dotted or quoted) not in metrics:
                named = f"input.{section}.{dotted or quoted}"
                raise _refused(f"line {number}: {named} is no metric; there is {', '.join(metrics)}")


def _ruling(answer: Any, error: Callable[[str], AimeshError]) -> Ruling:
    if not isinstance(answer, dict) or "fail" not in answer:
        raise error("it has no set `fail` in package aimesh.gates")
    found = []
    for name in ("fail", "hold"):
        messages = answer.get(name, [])
        if isinstance(messages, dict):  # what older Rego writes as fail[message]
            messages = list(messages)
        if not isinstance(messages, list) or not all(isinstance(each, str) for each in messages):
            raise error(f"`{name}` must be a set of texts: {name} contains message if {{ … }}")
        found.append(messages)
    return Ruling(*found)


class _Process:
    """The process that runs policies, started when it is needed, and again after it has ended itself."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()

    def ask(self, policy: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer. Raises PolicyError when it takes too long."""
        with self._turn:  # one at a time: the limit is for each
            child = self._running()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps({"policy": policy, "input": document}) + "\n")
                child.stdin.flush()
                ready, _, _ = select.select([child.stdout], [], [], MOST_S + _START_S)
                line = child.stdout.readline() if ready else ""
            except BrokenPipeError:
                line = ""
            if line:
                found: dict[str, Any] = json.loads(line)
                return found
            self.end()
            raise PolicyError(f"the policy took longer than {MOST_S:g} s or more memory than there is for it")

    def end(self) -> None:
        """Ends it."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            child.wait()

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self.end()
            argv = [sys.executable, "-m", "coordinator.rollout.rego_process"]
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            self._child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=null, text=True)
        return self._child


@cache
def _process() -> _Process:
    process = _Process()
    atexit.register(process.end)
    return process
