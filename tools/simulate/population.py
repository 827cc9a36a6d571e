"""Everybody who is simulated: the agents, one task each, and the xDS clients, in processes of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tools.simulate.agent import Agent, Tally
from tools.simulate.changes import Board, has
from tools.simulate.client import Traffic
from tools.simulate.crowd import CLIENTS, Crowd
from tools.simulate.plan import Plan, hello, watchers


class Population:
    """Starts, ends and watches agents and clients."""

    def __init__(self, plan: Plan, coordinators: Sequence[str]) -> None:
        self.plan = plan
        self.board = Board(watchers(plan))
        self.tally = Tally()
        self.traffic = Traffic()
        self.agents: dict[str, Agent] = {}
        """Nodes that are up, by id."""
        self.called = tuple(watchers(plan))
        """Models that some client calls."""
        self._coordinators = tuple(coordinators)
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._crowds: list[Crowd] = []
        self._streams: list[asyncio.Task[None]] = []

    def start_node(self, index: int) -> Agent:
        """Starts a node with nothing loaded; its coordinator is the next in turn."""
        agent = Agent(hello(self.plan, index), self._from(index), self.tally, self._told)
        self.agents[agent.node_id] = agent
        self._lives[agent.node_id] = asyncio.create_task(agent.run(), name=agent.node_id)
        return agent

    def start_clients(self) -> None:
        """Starts every client."""
        wanted = [(each, self.plan.wanted_by(each), self._from(each)) for each in range(self.plan.clients)]
        for first in range(0, len(wanted), CLIENTS):
            crowd = Crowd(wanted[first : first + CLIENTS], self.board, self.traffic)
            self._crowds.append(crowd)
            self._streams.append(asyncio.create_task(crowd.run(), name=f"clients from {first}"))

    def pids(self) -> dict[str, int]:
        """The clients' processes, by name."""
        return {f"simulator-{index + 2}": crowd.pid for index, crowd in enumerate(self._crowds) if crowd.pid}

    async def kill_node(self, node_id: str) -> None:
        """The node vanishes: its connection is cut."""
        self._down(node_id)
        life = self._lives.pop(node_id)
        life.cancel()
        await asyncio.wait({life})

    async def leave_node(self, node_id: str) -> None:
        """The node says goodbye, and goes."""
        agent = self._down(node_id)
        agent.leave()
        await asyncio.wait({self._lives.pop(node_id)})

    async def close(self) -> None:
        """Ends everybody, without a word."""
        tasks = [*self._lives.values(), *self._streams]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _down(self, node_id: str) -> Agent:
        self.board.supersede("ready", node_id)
        return self.agents.pop(node_id)

    def _told(self, node_id: str, added: frozenset[str], removed: frozenset[str]) -> None:
        for model in removed:
            self.board.supersede("ready", node_id, model)
        for model in added if self._streams else ():  # before there is a client, nobody has to see anything
            self.board.begin("ready", node_id, [model], has(node_id), time.monotonic())

    def _from(self, index: int) -> tuple[str, ...]:
        """The coordinators in the order of one who is that far round the ring."""
        first = index % len(self._coordinators)
        return self._coordinators[first:] + self._coordinators[:first]
