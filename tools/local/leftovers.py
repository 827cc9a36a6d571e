"""Ends what a mesh left behind: found by recorded pid and start time, never by name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from meshkit.process import end_group
from node_agent.training.strays import end_workers
from node_agent.triton.leftover import end_leftovers as end_triton
from tools.local.children import kind_of, stop_order
from tools.local.record import MeshRecord

GRACE_S = {"gateway": 5.0, "coordinator": 10.0, "etcd": 5.0, "agent": 20.0}
"""Seconds between SIGTERM and SIGKILL; agents drain."""


def end_leftovers(record: MeshRecord, tell: Callable[[str, str], None] = lambda _name, _state: None) -> bool:
    """Ends every recorded process that is alive, in stopping order, and each agent's Triton after its agent.

    An agent goes before its Triton, for a living agent would start the next one. `tell(name, state)` hears of each
    process, from any thread. Returns whether anything was alive. Blocks.
    """
    layout = record.layout
    agents = {layout.node_id(index): layout.data_dir(layout.node_id(index)) for index in range(layout.nodes)}

    def end(name: str) -> bool:
        process = record.processes.get(name)
        found = process is not None and process.alive()
        if process is not None and found:
            tell(name, "stopping")
            end_group(process, grace_s=GRACE_S[kind_of(name)])
        if name in agents:
            found = end_tritons_of(agents[name]) or found
        if found:
            tell(name, "stopped")
        return found

    found = False
    with ThreadPoolExecutor() as pool:
        for group in stop_order(sorted({*record.processes, *agents})):
            found = any(list(pool.map(end, group))) or found
    return found


def end_tritons_of(agent_dir: Path) -> bool:
    """Ends the Tritons and the training workers of an agent that is gone. Returns whether there were any. Blocks."""
    return agent_dir.is_dir() and bool(end_workers(agent_dir) + end_triton(agent_dir))
