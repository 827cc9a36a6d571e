"""Runs policies in Rego, in a process of its own: `python -m coordinator.rollout.rego_process`.

Rego has no endless loops, but it has very long ones, and its interpreter is C++ that cannot be interrupted: a process
can be. Reads {"policy": text, "input": {...}} lines and answers each with {"answer": ...}, {"syntax": [offset, why]} or
{"broken": why}. Ends itself when a policy computes longer than MOST_S, or when nobody writes any more.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from typing import Any

import psutil
from regopy import Interpreter, LogLevel, RegoError

MOST_S = 1.0
"""Seconds of processor time that one policy may use: a busy machine's pauses are not the policy's."""
MOST_MEMORY = 1024 * 1024 * 1024
"""Bytes of address space that this process may take beyond what it has when it starts: regopy's allocator reserves 256
GiB at its import, and a limit below what there is already would fail the next page that anything asks for."""
QUERY = "data.aimesh.gates"
_CALL = re.compile(r"\b([a-z_][\w.]*)\(")
_ERROR = re.compile(r"\(error \d+:policy\|(\d+)\|\d+\s*\(errormsg \d+:(.*?)\)\s*\(error", re.DOTALL)


def answer(policy: str, document: Any) -> dict[str, Any]:
    """What the policy says of a document; see the module."""
    rego = Interpreter()
    rego.log_level = LogLevel.NONE
    rego.strict_built_in_errors = True  # else what fails is undefined, and a rule that fails would let everything pass
    try:
        rego.add_module("policy", policy)
    except RegoError as error:
        return {"syntax": _first(str(error))}
    rego.set_input(document)
    try:
        output = rego.query(QUERY)
        if output.ok():
            text = str(output)
            return {"answer": None if text == "undefined" else json.loads(text)["expressions"][0]}
    except json.JSONDecodeError:  # regopy makes this of every error of the compiler
        return {"syntax": _unknown_call(rego, policy)}
    except RegoError as error:
        return {"broken": _first(str(error))[1]}
    return {"broken": "a value that a function cannot take, a division by zero, or a rule with two values"}


def _unknown_call(rego: Interpreter, policy: str) -> list[Any]:
    """Offset in bytes and words of a call of a function that there is not, or else of what it may be."""
    for found in _CALL.finditer(policy):
        own = re.search(rf"^\s*{re.escape(found[1])}\(", policy, re.MULTILINE)
        if not own and not rego.is_builtin(found[1]):
            return [len(policy[: found.start()].encode()), f"there is no function {found[1]}"]
    return [0, "it has rules that need each other, or something else that cannot be compiled"]


def _first(text: str) -> list[Any]:
    """Offset in bytes and words of the first error that rego-cpp lists, which is the innermost."""
    found = _ERROR.search(text)
    return [int(found[1]), found[2].strip()] if found else [0, " ".join(text.split())[:200]]


def main() -> None:
    """Answers line by line until standard input ends."""
    most = psutil.Process().memory_info().vms + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl+C is for the coordinator
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, MOST_S)
        said = answer(asked["policy"], asked["input"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
