"""Why a model failed, in a line or two for people; what Triton says in full belongs in the log. Pure."""

from __future__ import annotations

import re

_MOST = 300
"""Characters that fit a line of status."""
_PREFIX = re.compile(
    r"load failed for model '[^']*': (version \d+ is at UNAVAILABLE state: )?(Internal: |Invalid argument: )?"
)
_STUB = re.compile(r"Stub process '[^']*' is not healthy|stub process exited unexpectedly")

STUB_DIED = "the model's process was killed, or crashed, while it loaded"
OUT_OF_MEMORY = "the kernel has just killed a process for want of memory: give the model a node with more"


def plain_reason(text: str, oom_kills: int = 0) -> str:
    """Triton's words without its own frame and without a Python trace.

    `oom_kills` is how many processes the kernel has killed for want of memory meanwhile.
    """
    said = _PREFIX.sub("", text, count=1).partition("\n\nAt:\n")[0].strip().rstrip(";").strip()
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    short = " ".join(lines[:2])
    if _STUB.search(short):
        short = f"{STUB_DIED}; {OUT_OF_MEMORY}" if oom_kills > 0 else STUB_DIED
    return short if len(short) <= _MOST else f"{short[: _MOST - 1]}…"
