"""Makes the training part of an agent from its settings."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil

from aimesh.membership.v1 import membership_pb2
from node_agent.fetch import Fetcher
from node_agent.gpus import GpuReader
from node_agent.runtimes import installed_runtimes
from node_agent.settings import AgentSettings
from node_agent.store import ModelStore
from node_agent.training.environment import Site
from node_agent.training.launcher import Launcher
from node_agent.training.limits import Groups
from node_agent.training.prepare import Preparer
from node_agent.training.tasks import Keeping, Tasks
from node_agent.training.tools import Tools

_ASK = "import importlib.metadata as m; print(m.version('torch'))"
_ASK_S = 30.0


def torch_version(python: Path | None) -> str:
    """Version of torch that workers have with this Python, the agent's own when None; empty when they have none."""
    if python is None:
        return installed_runtimes().get("torch", "")
    try:
        told = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""


def interface_of(address: str) -> str:
    """The network interface that has an address; empty when none has."""
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family in (socket.AF_INET, socket.AF_INET6) and each.address.partition("%")[0] == address:
                return name
    return ""


def unfit(settings: AgentSettings, torch: str) -> str:
    """Why no worker can run on this node; empty when they can."""
    if not settings.training.enabled:
        return f"node {settings.node_id} takes no workers: agent.training.enabled is false there"
    if not torch:
        python = settings.training.python or sys.executable
        return f"node {settings.node_id} has no torch for {python}: pip install 'aimesh[torch]' there"
    return ""


def build_tasks(
    settings: AgentSettings,
    store: ModelStore,
    fetcher: Fetcher,
    gpus: GpuReader,
    capacity: membership_pb2.Capacity,
    torch: str,
) -> Tasks:
    """The training part, which does nothing yet. `torch` is the version that workers have, empty for none."""
    training = settings.training
    site = Site(
        settings.node_id,
        settings.address,
        capacity.cpu_cores,
        training.interface or interface_of(settings.address),
        {gpu.index: gpu.uuid for gpu in capacity.gpus},
        settings.tls,
    )
    python = str(training.python or sys.executable)
    launcher = Launcher(python, site, training.nice, training.log_bytes, Groups.find())

    def tools(tasks: Tasks) -> Tools:
        return Tools(
            launcher=launcher,
            preparer=Preparer(settings.node_id, store, fetcher),
            store=store,
            node_bytes=capacity.memory_bytes,
            memory_share=training.memory_share,
            prepare_timeout_s=training.prepare_timeout_s,
            stop_grace_s=training.stop_grace_s,
            unfit=unfit(settings, torch),
            on_change=tasks.changed,
            others_gone=tasks.others_gone,
        )

    return Tasks(Keeping(settings.data_dir, training.keep_days), store, tools, gpus)
