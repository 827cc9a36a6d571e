"""Change: nodes that leave, are killed and come back; deployments that grow and shrink; reports that concern all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from meshkit.errors import AimeshError
from tools.simulate.api import Api
from tools.simulate.changes import Change, Shows, counts, has, lacks
from tools.simulate.plan import HUB
from tools.simulate.population import Population

LOST_S = 30.0
"""A change that is not everywhere after so long counts as lost."""
AWAY_S = (2.0, 14.0)
"""How long a node is away, from and to: some come back before their lease lapses (10 s), some after; those that are
away when the time is up come back then."""
KINDS = ("scaled up", "scaled down", "left", "killed")
TELL_S = 0.2

Work = tuple[set[str], Coroutine[None, None, None]]
"""(models that are busy with it, what is to be done)."""


@dataclass
class Churn:
    """Makes changes at the plan's rate and waits until each is everywhere."""

    population: Population
    api: Api
    tell: Callable[[int, int], None]
    """Told how far it is: (done, total)."""
    made: int = 0
    skipped: int = 0
    """Changes that were due while nothing was at rest that could change."""
    lost: list[str] = field(default_factory=list)
    """Changes that were not everywhere within LOST_S."""
    api_s: list[float] = field(default_factory=list)
    """How long each call of the API took."""
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the time is up: who is away comes back."""
    _grown: set[str] = field(default_factory=set)
    _busy: set[str] = field(default_factory=set)
    """Models that something is being done to."""

    async def run(self) -> None:
        """Changes for the plan's time, each kind in turn; returns when everything is everywhere and all are back."""
        plan = self.population.plan
        draw = random.Random(plan.seed)  # noqa: S311  # the same changes in each run
        began, due = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while (passed := time.monotonic() - began) < plan.duration_s:
                self.tell(round(passed), round(plan.duration_s))
                while due < passed * plan.churn:
                    self._make(KINDS[due % len(KINDS)], draw, tasks)
                    due += 1
                await asyncio.sleep(min(TELL_S, 1 / plan.churn if plan.churn else TELL_S))
            self._over.set()
        await self._drain()

    async def everyone(self, rounds: int) -> None:
        """Has the node that holds every model report its Triton not ready, and ready again: each concerns all clients.

        Its session goes on, so nothing is placed anew.
        """
        node_id = self.population.plan.node_id(HUB)
        hub, models = self.population.agents[node_id], sorted(self.population.agents[node_id].models)
        for done in range(2 * rounds):
            ready = bool(done % 2)
            shows = has(node_id) if ready else lacks(node_id)
            change = self._begin("everyone", node_id, models, shows)
            hub.set_ready(ready=ready)
            await self._await(change)
            self.tell(done + 1, 2 * rounds)

    def _make(self, kind: str, draw: random.Random, tasks: asyncio.TaskGroup) -> None:
        """Starts one change of something that is at rest."""
        work = self._scaling(kind, draw) if kind.startswith("scaled") else self._going(kind, draw)
        if work is None:
            self.skipped += 1
            return
        models, life = work
        self.made += 1
        self._busy |= models
        tasks.create_task(life).add_done_callback(lambda _: self._busy.difference_update(models))

    def _scaling(self, kind: str, draw: random.Random) -> Work | None:
        """One replica more of a model that has the usual number, or one less of one that has more."""
        usual = self.population.plan.replicas
        up = kind == "scaled up"
        resting = [name for name in self.population.called if (name in self._grown) != up and self._rests(name)]
        if not resting:
            return None
        model = draw.choice(resting)
        self._grown ^= {model}
        return {model}, self._scale(kind, model, usual + up)

    async def _scale(self, kind: str, model: str, replicas: int) -> None:
        change = self._begin(kind, model, [model], counts(replicas))
        try:
            self.api_s.append(await self.api.scale(model, replicas))
        except AimeshError as error:
            self.lost.append(f"{kind} {model}: {error.message}")
            self.population.board.supersede(kind, model)
            return
        await self._await(change)

    def _going(self, kind: str, draw: random.Random) -> Work | None:
        """One node that its models' clients know, all of whose models are at rest."""
        going = [
            index
            for index in range(HUB + 1, self.population.plan.nodes)
            if (agent := self.population.agents.get(self.population.plan.node_id(index))) is not None
            and agent.joined.is_set()
            and agent.models & set(self.population.called)
            and all(self._rests(model) for model in agent.models)
        ]
        if not going:
            return None
        index, away_s = draw.choice(going), draw.uniform(*AWAY_S)
        node_id = self.population.plan.node_id(index)
        return set(self.population.agents[node_id].models), self._go(kind, index, node_id, away_s)

    async def _go(self, kind: str, index: int, node_id: str, away_s: float) -> None:
        change = self._begin(kind, node_id, sorted(self.population.agents[node_id].models), lacks(node_id))
        if kind == "left":
            await self.population.leave_node(node_id)
        else:
            await self.population.kill_node(node_id)
        await self._await(change)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(away_s):
                await self._over.wait()
        agent = self.population.start_node(index)
        try:
            async with asyncio.timeout(LOST_S):
                await agent.joined.wait()
        except TimeoutError:
            self.lost.append(f"{node_id} did not join again within {LOST_S:g} s")

    def _rests(self, model: str) -> bool:
        """Whether nothing is on its way that concerns a model, and all its clients see the replicas that it should
        have."""
        size = self.population.plan.replicas + (model in self._grown)
        return model not in self._busy and self.population.board.rests(model, size)

    def _begin(self, kind: str, about: str, models: list[str], shows: Shows) -> Change | None:
        return self.population.board.begin(kind, about, models, shows, time.monotonic())

    async def _await(self, change: Change | None) -> None:
        if change is None:
            return
        try:
            async with asyncio.timeout(LOST_S):
                await change.arrived.wait()
        except TimeoutError:
            self._give_up(change)

    async def _drain(self) -> None:
        """Waits until the reports that changes gave rise to are everywhere, too."""
        for change in self.population.board.pending():
            await self._await(change)

    def _give_up(self, change: Change) -> None:
        waiting = f"{len(change.waiting)} of {change.concerned} clients still wait"
        self.lost.append(f"{change.kind} {change.about}: {waiting} after {LOST_S:g} s")
        self.population.board.abandon(change)
