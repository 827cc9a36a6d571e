"""Whether workers can run on this node: which torch the Python has that they run with."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from node_agent.runtimes import TRAINING, installed_runtimes
from node_agent.settings import AgentSettings

log = structlog.get_logger()

_ASK = "import importlib.metadata as m; print(m.version('torch'))"
_ASK_S = 30.0
"""How long a Python may take to say what it has: one on a file system that hangs must not hold the agent up."""
_AGAIN_S = 30.0
"""Rest before one that did not answer is asked again."""


@dataclass
class Fitness:
    """What is known of this node. The agent's own Python is known at once, another one when it has answered."""

    settings: AgentSettings
    torch: str | None = field(init=False)
    """The version that workers have; empty for none, None while it is not known."""
    on_known: Callable[[], None] = field(default_factory=lambda: _nothing, init=False)
    """Called when another Python has answered."""

    def __post_init__(self) -> None:
        self.torch = installed_runtimes().get("torch", "") if self.settings.training.python is None else None

    @property
    def unfit(self) -> str:
        """Why no worker can run here; empty when they can, and while it is not known: then none is placed here, and
        those that an agent before has started go on.
        """
        node = self.settings.node_id
        if not self.settings.training.enabled:
            return f"node {node} takes no workers: agent.training.enabled is false there"
        if self.torch == "":
            python = self.settings.training.python or sys.executable
            return f"node {node} has no torch for {python}: pip install 'aimesh[torch]' there"
        return ""

    def runtimes(self) -> dict[str, str]:
        """What the node says that it runs, by runtime."""
        trains = bool(self.torch) and self.settings.training.enabled
        return installed_runtimes() | ({TRAINING: str(self.torch)} if trains else {})

    async def find_out(self) -> None:
        """Asks the Python that workers run with, beside everything else, until it has answered."""
        python = self.settings.training.python
        while python is not None and self.torch is None:
            self.torch = await asyncio.to_thread(torch_version, python)
            if self.torch is None:
                log.warning("training.python_silent", python=str(python), within_s=_ASK_S)
                await asyncio.sleep(_AGAIN_S)
                continue
            log.info("training.python", python=str(python), torch=self.torch or "none")
            self.on_known()


def _nothing() -> None:
    """What is called while nobody wants to know."""


def torch_version(python: Path, within_s: float = _ASK_S) -> str | None:
    """Version of torch that this Python has; empty when it has none or is no Python, None when it does not answer in
    time. Blocks so long at most.
    """
    try:
        told = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=within_s, check=False)
    except subprocess.TimeoutExpired:
        return None
    except OSError:
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""
