"""Makes the training part of an agent from its settings."""

from __future__ import annotations

import sys

from aimesh.membership.v1 import membership_pb2
from meshkit.interfaces import interface_of
from node_agent.fetch import Fetcher
from node_agent.gpus import GpuReader
from node_agent.settings import AgentSettings
from node_agent.store import ModelStore
from node_agent.training.environment import Site
from node_agent.training.fitness import Fitness
from node_agent.training.launcher import Launcher
from node_agent.training.limits import Groups
from node_agent.training.prepare import Preparer
from node_agent.training.retired import Keeping
from node_agent.training.tasks import Tasks
from node_agent.training.tools import Tools


def build_tasks(
    settings: AgentSettings,
    store: ModelStore,
    fetcher: Fetcher,
    gpus: GpuReader,
    capacity: membership_pb2.Capacity,
    fitness: Fitness,
) -> Tasks:
    """The training part, which does nothing yet."""
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
            fitness=fitness,
            on_change=tasks.changed,
            others_gone=tasks.others_gone,
        )

    return Tasks(Keeping(settings.data_dir, training.keep_days), store, tools, gpus)
